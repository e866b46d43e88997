"""Workers of a training as processes of their own, joined by torch's gloo, without Ray.

``python -m tests.support.gloo_workers FOLDER RANK`` trains the jobs of ``FOLDER/jobs.json`` with the first 2, then with
all `PROCESSES` processes, and writes the weights to ``FOLDER/<name>-<size>.safetensors``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed

from mlflowkit.adapters.ray_train import loop
from mlflowkit.stages.train import TrainSection

PROCESSES = 3
SIZES = (2, PROCESSES)


class GlooGroup(loop.WorkerGroup):
    """The first ``size`` processes."""

    def __init__(self, size: int) -> None:
        super().__init__(distributed.get_rank(), size, torch.device("cpu"))
        self._group = distributed.new_group(list(range(size)))

    def gather(self, rows: Tensor) -> list[Tensor]:
        gathered = [torch.empty_like(rows) for _ in range(self.size)]
        distributed.all_gather(gathered, rows, group=self._group)
        return gathered

    def broadcast(self, value: Tensor) -> Tensor:
        distributed.broadcast(value, src=0, group=self._group)
        return value


def make_job(folder: Path, scratch: Path, settings: Mapping[str, Any]) -> tuple[loop.TrainingJob, loop.TrainingData]:
    """A job of three classes on noise, and its data: 150 rows to train on and 40 to validate."""
    features = settings["features"]
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(190, features, generator=generator), torch.randint(3, (190,), generator=generator)
    job = loop.TrainingJob(
        reference=settings["module"], folder=folder, args=settings["args"], task="classification", features=features,
        outputs=3, class_weights=(0.5, 1.0, 2.0), target_scale=1.0, train=TrainSection(**settings["train"]), seed=7,
        scratch=scratch,
    )  # fmt: skip
    scratch.mkdir(exist_ok=True)
    return job, loop.TrainingData(x[:150], y[:150], x[150:], y[150:])


def train_in_processes(folder: Path, jobs: Mapping[str, Mapping[str, Any]]) -> None:
    """Train each job with 2 and with `PROCESSES` processes."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "tests.support.gloo_workers", str(folder)]
    processes = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE) for rank in range(PROCESSES)]
    failed = [(process.wait(240), process.communicate()[1].decode()) for process in processes]
    assert all(code == 0 for code, _ in failed), "\n".join(text for _, text in failed)


def main(arguments: Sequence[str]) -> None:
    folder, rank = Path(arguments[0]), int(arguments[1])
    store = f"file://{folder / 'rendezvous'}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    jobs = json.loads((folder / "jobs.json").read_text())
    for size in SIZES:
        group = GlooGroup(size)
        for name, settings in jobs.items():
            if rank >= size:
                continue
            job, data = make_job(folder, folder / f"scratch-{name}-{size}", settings)
            fitted = loop.train(job, data, group, lambda epoch, metrics: None)
            if rank == 0:
                save_file(dict(fitted.weights), folder / f"{name}-{size}.safetensors")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
