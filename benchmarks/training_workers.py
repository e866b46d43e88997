"""Workers of a training as processes of their own, joined by torch's gloo, without Ray.

``python -m benchmarks.training_workers FOLDER STORE RANK SIZE [SIZE ...]`` is one of as many processes as the largest
SIZE. The first SIZE of them train each job of ``FOLDER/jobs.json`` together, one SIZE after the other, and write the
weights to ``FOLDER/<job>-<SIZE>.safetensors``. STORE is a file, by which they meet.
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

ROWS, VALIDATION_ROWS, CLASSES = 150, 40, 3
RECURRENT = """
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
"""The module ``net`` of a folder of jobs."""
JOBS: Mapping[str, Mapping[str, Any]] = {
    "dropout": {"module": "mlflowkit.models:TabularMLP", "args": {"dropout": 0.3}, "features": 6},
    "statistics": {
        "module": "mlflowkit.models:SmallCNN", "args": {"image": [1, 4, 4], "channels": [4]}, "features": 16,
    },
    "recurrent": {"module": "net:Recurrent", "args": {}, "features": 6},
}  # fmt: skip
"""Models with noise, with running statistics, and with both kinds of gradients that lack."""
FIT: Mapping[str, Any] = {
    "epochs": 2, "batch_size": 50, "shards": 4, "clip_norm": 1.0, "optimizer": {"name": "adamw", "lr": 0.01},
    "early_stopping": {"patience": 3},
}  # fmt: skip


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
    """A job of a few classes on noise, and its data."""
    features = settings["features"]
    generator = torch.Generator().manual_seed(3)
    rows = ROWS + VALIDATION_ROWS
    x, y = torch.randn(rows, features, generator=generator), torch.randint(CLASSES, (rows,), generator=generator)
    job = loop.TrainingJob(
        reference=settings["module"], folder=folder, args=settings["args"], task="classification", features=features,
        outputs=CLASSES, class_weights=(0.5, 1.0, 2.0), target_scale=1.0, train=TrainSection(**settings["train"]),
        seed=7, scratch=scratch,
    )  # fmt: skip
    scratch.mkdir(exist_ok=True)
    return job, loop.TrainingData(x[:ROWS], y[:ROWS], x[ROWS:], y[ROWS:])


def prepare_folder(folder: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    """Write the jobs and the module that they use; returns the jobs by name."""
    jobs = {name: {**job, "train": {**FIT, **changes}} for name, job in JOBS.items()}
    (folder / "net.py").write_text(RECURRENT)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    return jobs


def start_workers(folder: Path, store: Path, sizes: Sequence[int]) -> list[subprocess.Popen[bytes]]:
    """Start as many processes as the largest of ``sizes``."""
    command = [sys.executable, "-m", "benchmarks.training_workers", str(folder), str(store)]
    numbers = [str(size) for size in sizes]
    return [
        subprocess.Popen([*command, str(rank), *numbers], stderr=subprocess.PIPE, start_new_session=True)
        for rank in range(max(sizes))
    ]


def main(arguments: Sequence[str]) -> None:
    folder, store, rank = Path(arguments[0]), Path(arguments[1]), int(arguments[2])
    sizes = [int(text) for text in arguments[3:]]
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=max(sizes))
    jobs = json.loads((folder / "jobs.json").read_text())
    for size in sizes:
        group = GlooGroup(size)
        for name, settings in jobs.items():
            if rank >= size:
                continue
            scratch = folder / (f"scratch-{name}" if len(sizes) == 1 else f"scratch-{name}-{size}")
            job, data = make_job(folder, scratch, settings)
            fitted = loop.train(job, data, group, lambda epoch, metrics: None)
            if rank == 0:
                save_file(dict(fitted.weights), folder / f"{name}-{size}.safetensors")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
