"""The same weights, bit for bit, on any number of workers: noise, running statistics and recurrent layers included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mlflowkit.adapters.ray_train import loop
from mlflowkit.adapters.ray_train.shards import ShardedStep
from tests.support.gloo_workers import SIZES, make_job, train_in_processes

pytestmark = pytest.mark.heavy

NET = """
import torch
from torch import nn

class Recurrent(nn.Module):
    '''A GRU with dropout, a frozen layer, and a layer that only some batches use.'''

    def __init__(self, features, outputs):
        super().__init__()
        self.gru = nn.GRU(2, 8, num_layers=2, dropout=0.3, batch_first=True)
        self.rare, self.frozen, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, outputs)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        state = self.frozen(self.gru(x.reshape(len(x), -1, 2))[0][:, -1])
        if x[0, 0] > 0:
            state = state + self.rare(state)
        return self.last(state)
"""
FIT = {"epochs": 3, "batch_size": 32, "shards": 4, "clip_norm": 1.0, "optimizer": {"name": "adamw", "lr": 0.01},
       "early_stopping": {"patience": 3}}  # fmt: skip
JOBS: dict[str, dict[str, Any]] = {
    "dropout": {"module": "mlflowkit.models:TabularMLP", "args": {"dropout": 0.3}, "features": 6},
    "statistics": {"module": "mlflowkit.models:SmallCNN", "args": {"image": [1, 4, 4], "channels": [4]},
                   "features": 16},
    "recurrent": {"module": "net:Recurrent", "args": {}, "features": 6},
}  # fmt: skip


def settings(name: str, **changes: Any) -> dict[str, Any]:
    return {**JOBS[name], "train": {**FIT, **changes}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards")
    (path / "net.py").write_text(NET)
    return path


@pytest.fixture(scope="module")
def together(folder: Path) -> Path:
    """The weights of each job by 2 and 3 processes (of which one computes two of the four shards)."""
    train_in_processes(folder, {name: settings(name) for name in JOBS})
    return folder


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
        if epoch == 2:
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


def test_a_model_whose_weights_no_seed_governs_is_refused(folder: Path) -> None:
    class Others(loop.WorkerGroup):
        def broadcast(self, value: torch.Tensor) -> torch.Tensor:
            return value + 1

    model = torch.nn.Linear(2, 2)
    with pytest.raises(loop.UserCodeError, match="begins with other weights on worker 1 than on worker 0"):
        loop.check_same_weights(model, Others(rank=1, size=2))
