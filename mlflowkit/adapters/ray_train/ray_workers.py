"""The training loop on N workers of Ray Train, on a local Ray that is running or is started for the purpose.

The workers share the scratch folder: they read the prepared matrices there, the first of them leaves checkpoints and
progress there. A lost worker makes Ray Train start the group again (FailureConfig), which resumes at the checkpoint.
An error that is mlflowkit's to explain is written down in the scratch folder, so that it reaches the user as it is.
When every worker has written one, as most errors make them, all end in peace; when only some have, the others are
stuck waiting for them, so these raise, and the group that Ray Train starts in their place ends at once.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer, get_device
from safetensors.torch import load_file, save
from torch import Tensor, distributed, nn

from mlflowkit import errors
from mlflowkit.adapters.ray_train import checkpoint, loop
from mlflowkit.errors import EngineError, MlkitError
from mlflowkit.system.files import replace_file

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less to start: a local machine is not preempted
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a lost worker, or the end, is noticed; Ray's own is 2
}
"""Environment variables for Ray Train, unless the user set them."""
OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Shared memory of a Ray started here: the data goes through files, not through the object store."""
WORKER_CPUS = 0.5
"""CPUs reserved for a worker: less than one, so that a gateway on a small machine does not keep training off it."""
NICENESS = 15
"""Of the workers: a gateway on the same machine comes first."""
POLL_SECONDS = 0.1
"""Time between two looks at the workers' progress."""
PEACE_SECONDS = 2.0
"""How long a worker that failed waits for the others to fail too."""


class Workers:
    """The group of Ray Train workers that this process belongs to."""

    def __init__(self) -> None:
        self.rank: int = get_context().get_world_rank()
        self.size: int = get_context().get_world_size()
        self.device: torch.device = get_device()

    def wrap(self, model: nn.Module, *, unused: bool) -> nn.Module:
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices, find_unused_parameters=unused)

    def total(self, value: Tensor) -> Tensor:
        distributed.all_reduce(value)
        return value

    def share(self, value: Tensor) -> Tensor:
        distributed.broadcast(value, src=0)
        return value


def train_on_ray(
    job: loop.Job, data: loop.Data, environment: Mapping[str, str] | None, report: loop.Report
) -> loop.Fitted:
    """`loop.train` on ``job.train.workers`` workers. Raises what it raises; EngineError when Ray gives up.

    ``environment`` says where a local Ray is, if one runs (see `attach.running`).
    """
    files = _Files(job.scratch)
    files.begin(data)
    run = f"train-{uuid.uuid4().hex[:12]}"
    with local_ray(environment, job.train.workers):
        trainer = TorchTrainer(
            work,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(
                num_workers=job.train.workers,
                use_gpu=torch.cuda.is_available(),
                resources_per_worker={"CPU": WORKER_CPUS},
            ),
            run_config=RunConfig(
                name=run,
                storage_path=str(files.ray),
                failure_config=FailureConfig(max_failures=job.train.max_failures),
            ),
        )
        with _following(files, report):
            try:
                trainer.fit()
            except ray.train.v2.api.exceptions.TrainingFailedError as error:
                files.raise_failure()
                reason = str(error).strip().splitlines()[-1]
                raise EngineError(
                    f"training on {job.train.workers} workers failed: {reason}",
                    hint="run it again to resume at the last checkpoint, or use train.workers=0",
                ) from error
    files.raise_failure()
    return files.fitted(job)


def work(config: Mapping[str, Any]) -> None:
    """What each worker runs. Returns nothing: results are in the scratch folder."""
    os.nice(max(0, NICENESS - os.nice(0)))
    job: loop.Job = config["job"]
    files = _Files(job.scratch)
    if files.failures():
        return
    group = Workers()
    data = loop.Data(**load_file(files.data))
    try:
        fitted = loop.train(job, data, group, files.report)
    except MlkitError as error:
        files.write_failure(error, group.rank)
        if not files.all_failed(group.size):
            raise
        return
    if group.rank == 0:
        files.write_outcome(fitted)


class _Files:
    """What driver and workers tell one another through the scratch folder."""

    def __init__(self, scratch: Path) -> None:
        self.data = scratch / "prepared.safetensors"
        self.scratch = scratch
        self.outcome = scratch / "outcome.json"
        self.progress = scratch / "progress.jsonl"
        self.ray = scratch / "ray"

    def begin(self, data: loop.Data) -> None:
        for path in (*self.failures(), self.outcome, self.progress):
            path.unlink(missing_ok=True)
        names = ("x", "y", "x_validation", "y_validation")
        replace_file(self.data, save({name: getattr(data, name) for name in names}))

    def failures(self) -> list[Path]:
        """What workers wrote down about their errors, in the order of their ranks."""
        return sorted(self.scratch.glob("failure-*.json"))

    def write_failure(self, error: MlkitError, rank: int) -> None:
        content = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
        replace_file(self.scratch / f"failure-{rank:06d}.json", json.dumps(content).encode())

    def all_failed(self, size: int) -> bool:
        """Whether every worker writes down an error within PEACE_SECONDS."""
        deadline = time.monotonic() + PEACE_SECONDS
        while len(self.failures()) < size:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def raise_failure(self) -> None:
        """Raise the error that a worker wrote down, if one did."""
        for path in self.failures():
            found = json.loads(path.read_text())
            raise getattr(errors, found["type"])(found["message"], hint=found["hint"])

    def report(self, epoch: int, figures: Mapping[str, float]) -> None:
        with self.progress.open("a") as stream:
            stream.write(json.dumps([epoch, dict(figures)]) + "\n")

    def write_outcome(self, fitted: loop.Fitted) -> None:
        names = ("device", "precision", "parameters", "resumed_from")
        replace_file(self.outcome, json.dumps({name: getattr(fitted, name) for name in names}).encode())

    def fitted(self, job: loop.Job) -> loop.Fitted:
        """What training ended with: its last checkpoint. Removes what only the workers needed."""
        snapshot = checkpoint.read(job.checkpoint)
        if snapshot is None or not self.outcome.exists():
            raise EngineError("the workers ended without a result", hint="run it again, or use train.workers=0")
        outcome = json.loads(self.outcome.read_text())
        shutil.rmtree(self.ray, ignore_errors=True)
        self.data.unlink()
        return loop.Fitted(weights=snapshot.best or snapshot.weights, progress=snapshot.progress, **outcome)


@contextmanager
def _following(files: _Files, report: loop.Report) -> Iterator[None]:
    """Hand the workers' progress to ``report``, from a thread of its own, while the block runs."""
    done = threading.Event()

    def follow() -> None:
        position = 0
        while True:
            last = done.wait(POLL_SECONDS)
            if files.progress.exists():
                with files.progress.open() as stream:
                    stream.seek(position)
                    for line in iter(stream.readline, ""):
                        if not line.endswith("\n"):
                            break
                        position += len(line)
                        report(*json.loads(line))
            if last:
                return

    thread = threading.Thread(target=follow, name="train-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def local_ray(environment: Mapping[str, str] | None, workers: int) -> Iterator[None]:
    """A Ray with CPUs for the workers: the one this process is connected to, that of ``environment``, or a new one.

    What was started or connected here is left again at the end. Ray's own words about lost workers go to stderr, as
    stdout is for results. Raises EngineError when Ray does not start.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)
    with redirect_stdout(sys.stderr):
        if ray.is_initialized():
            yield
            return
        if environment is None or not _connect(environment["RAY_ADDRESS"], workers):
            _start(workers)
        try:
            yield
        finally:
            ray.shutdown()


def _connect(address: str, workers: int) -> bool:
    """Connect to a running Ray; False (and not connected) when it is gone or too few of its CPUs are free."""
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError):
        return False
    if ray.available_resources().get("CPU", 0) >= workers * WORKER_CPUS:
        return True
    ray.shutdown()
    return False


def _start(workers: int) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=max(workers, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    except Exception as error:
        raise EngineError(
            f"a local Ray does not start: {error}", hint="train.workers=0 trains in this process"
        ) from error
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        token.chmod(0o600)
