"""The same weights, bit for bit, on any number of workers: noise, running statistics and recurrent layers included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.training_workers import FIT, JOBS, make_job, prepare_folder, start_workers
from mlflowkit.adapters.ray_train import loop
from mlflowkit.adapters.ray_train.shards import ShardedStep

pytestmark = pytest.mark.heavy

SIZES = (2, 3)
"""Numbers of workers for four shards; of three, one computes two."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards")
    prepare_folder(path)
    return path


@pytest.fixture(scope="module")
def together(folder: Path) -> Path:
    """The weights of each job by 2 and by 3 processes."""
    processes = start_workers(folder, folder / "store", SIZES)
    failed = [(process.wait(240), process.communicate()[1].decode()) for process in processes]
    assert all(code == 0 for code, _ in failed), "\n".join(text for _, text in failed)
    return folder


def settings(name: str, **changes: Any) -> dict[str, Any]:
    return {**JOBS[name], "train": {**FIT, "epochs": 2, **changes}}


def train_alone(folder: Path, scratch: Path, job_settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    job, data = make_job(folder, scratch, job_settings)
    return dict(loop.train(job, data, loop.WorkerGroup(), lambda epoch, metrics: None).weights)


def assert_same_bits(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name


@pytest.mark.parametrize("name", sorted(JOBS))
def test_several_processes_learn_what_one_learns(together: Path, tmp_path: Path, name: str) -> None:
    alone = train_alone(together, tmp_path / "alone", settings(name))
    for size in SIZES:
        assert_same_bits(alone, load_file(together / f"{name}-{size}.safetensors"))


@pytest.mark.parametrize("name", sorted(JOBS))
def test_a_training_that_is_cut_off_ends_with_the_same_bits(folder: Path, tmp_path: Path, name: str) -> None:
    whole = train_alone(folder, tmp_path / "whole", settings(name))
    job, data = make_job(folder, tmp_path / "cut", settings(name))

    def stop(epoch: int, metrics: Any) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(job, data, loop.WorkerGroup(), stop)
    assert_same_bits(whole, train_alone(folder, tmp_path / "cut", settings(name)))


def test_without_noise_shards_change_only_the_rounding(folder: Path, tmp_path: Path) -> None:
    job_settings = {**settings("dropout", early_stopping=None), "args": {"dropout": 0.0}}
    sharded = train_alone(folder, tmp_path / "four", job_settings)
    whole = train_alone(folder, tmp_path / "one", {**job_settings, "train": {**job_settings["train"], "shards": 1}})
    for name, value in sharded.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-4)


def test_running_statistics_change_by_the_mean_of_the_shards() -> None:
    model = torch.nn.BatchNorm1d(2, affine=True)
    rows = torch.arange(16.0).reshape(8, 2)
    step = ShardedStep(model, 4, loop.WorkerGroup())

    def compute(shard: int) -> torch.Tensor:
        loss = model(rows[shard::4]).square().sum()
        loss.backward()
        return loss.detach()

    step.backward(compute)
    means = torch.stack([rows[shard::4].mean(0) for shard in range(4)])
    torch.testing.assert_close(model.running_mean, 0.1 * means.mean(0))
    assert int(model.num_batches_tracked) == 1, "a step is one batch, whatever its shards"


def test_batch_normalisation_of_one_row_names_the_batch_that_shards_need(folder: Path, tmp_path: Path) -> None:
    code = "from torch import nn\n\nclass Norm(nn.Sequential):\n    def __init__(self, features, outputs):\n"
    code += "        super().__init__(nn.Linear(features, outputs), nn.BatchNorm1d(outputs))\n"
    (folder / "norm.py").write_text(code)
    job_settings = {**settings("dropout", epochs=1, batch_size=6), "module": "norm:Norm", "args": {}}
    with pytest.raises(loop.UserCodeError, match="Expected more than 1 value per channel") as caught:
        train_alone(folder, tmp_path / "small", job_settings)
    assert "train.batch_size=8 or more" in caught.value.hint
    job_settings["train"]["batch_size"] = 8
    assert train_alone(folder, tmp_path / "enough", job_settings)


def test_a_model_whose_weights_no_seed_governs_is_refused(folder: Path) -> None:
    class Others(loop.WorkerGroup):
        def broadcast(self, value: torch.Tensor) -> torch.Tensor:
            return value + 1

    model = torch.nn.Linear(2, 2)
    with pytest.raises(loop.UserCodeError, match="begins with other weights on worker 1 than on worker 0"):
        loop.check_same_weights(model, Others(rank=1, size=2))
