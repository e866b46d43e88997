"""The training loop on N workers of Ray Train, on a running local Ray or one started for the purpose.

The workers share the scratch folder: all read the prepared matrices there, the first writes checkpoints and progress.
After a lost worker Ray Train restarts the group (FailureConfig), which resumes from the checkpoint. A worker that
raises an MlkitError writes it to the scratch folder, so that the driver can raise it unchanged. If all workers fail,
they return normally; if only some do, the others block on them, so the failed ones raise, and the group that Ray Train
starts in their place returns at once.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import ray
import torch
from ray.job_config import JobConfig
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer, get_device
from safetensors.torch import load_file, save
from torch import Tensor, distributed

from mlflowkit import errors
from mlflowkit.adapters.ray_train import checkpoint, loop
from mlflowkit.errors import EngineError, MlkitError
from mlflowkit.service_state.ray_cluster import check_address
from mlflowkit.system.child_process import SAFE_PATH, set_environment
from mlflowkit.system.files import private_opener, replace_file
from mlflowkit.system.text import first_line

RAY_DEFAULTS = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # saves a process: a local machine is not preempted
    "RAY_TRAIN_METRICS_ENABLED": "0",
    **SAFE_PATH,
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # delay until a lost worker, or the end, is noticed; default 2
    "RAY_raylet_start_wait_time_s": "120",  # a busy machine takes longer than the 30 s that Ray allows
    "RAY_agent_register_timeout_ms": "120000",
}
"""Default environment variables for Ray Train, and for a Ray that is started for it."""
OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Shared memory of a Ray started here; small, because data passes through files, not the object store."""
WORKER_CPUS = 0.5
"""CPUs reserved per worker: less than one, so that training starts beside a gateway on a small machine."""
NICENESS = 15
"""Niceness of the workers: a gateway on the same machine has priority."""
POLL_SECONDS = 0.1
"""Polling interval of the workers' progress."""
FAILURE_WAIT_SECONDS = 2.0
"""How long a failed worker waits for the others to fail too."""


def _ignore(message: str) -> None:
    """Tell nobody."""


class RayWorkerGroup(loop.WorkerGroup):
    """The group of this Ray Train worker."""

    def __init__(self) -> None:
        context = get_context()
        super().__init__(context.get_world_rank(), context.get_world_size(), get_device())

    def gather(self, rows: Tensor) -> list[Tensor]:
        gathered = [torch.empty_like(rows) for _ in range(self.size)]
        distributed.all_gather(gathered, rows)
        return gathered

    def broadcast(self, value: Tensor) -> Tensor:
        distributed.broadcast(value, src=0)
        return value


class _Trainer(TorchTrainer):  # type: ignore[misc]  # mypy does not read ray
    """A TorchTrainer that leaves SIGINT alone.

    Ray's (2.60) installs a handler for it that ends the process with 1, and never puts back the one before: Ctrl-C in a
    later stage then asks a Ray that is gone. Without it KeyboardInterrupt leaves `fit`, and the end of this process's
    connection ends the controller, the workers and their placement group.
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        """Register nothing."""


def train_on_ray(
    job: loop.TrainingJob,
    data: loop.TrainingData,
    environment: Mapping[str, str] | None,
    report: loop.ReportEpoch,
    notify: Callable[[str], None],
) -> loop.FittedModel:
    """`loop.train` on ``job.train.workers`` workers, with the same errors, and EngineError when Ray fails.

    ``environment`` locates a running local Ray, if any (see `service_state.ray_cluster`); ``notify`` is told when
    another is started although there is one.
    """
    files = _ScratchFiles(job.scratch)
    files.prepare(data)
    resources = {"CPU": WORKER_CPUS}
    failures = FailureConfig(max_failures=job.train.max_failures)
    with local_ray(environment, job.train.workers, notify):
        trainer = _Trainer(
            run_worker,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(
                num_workers=job.train.workers, use_gpu=torch.cuda.is_available(), resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=f"train-{uuid.uuid4().hex[:12]}", storage_path=str(files.ray), failure_config=failures
            ),
        )
        with _forward_progress(files, report):
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
    return files.read_result(job)


def run_worker(config: Mapping[str, Any]) -> None:
    """Entry point of each worker; results go to the scratch folder."""
    os.nice(max(0, NICENESS - os.nice(0)))
    job: loop.TrainingJob = config["job"]
    files = _ScratchFiles(job.scratch)
    if files.failures():
        return
    group = RayWorkerGroup()
    data = loop.TrainingData(**load_file(files.data))
    try:
        fitted = loop.train(job, data, group, files.report)
    except MlkitError as error:
        if not files.write_failure(error, group.rank, group.size):
            raise
        return
    if group.rank == 0:
        names = ("device", "precision", "parameters", "resumed_from")
        replace_file(files.outcome, json.dumps({name: getattr(fitted, name) for name in names}).encode())


class _ScratchFiles:
    """Files that driver and workers exchange in the scratch folder."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.ray = scratch, scratch / "ray"
        self.data, self.outcome = scratch / "prepared.safetensors", scratch / "outcome.json"
        self.progress = scratch / "progress.jsonl"

    def prepare(self, data: loop.TrainingData) -> None:
        """Remove files of an earlier attempt and write the data."""
        for path in (*self.failures(), self.outcome, self.progress):
            path.unlink(missing_ok=True)
        names = ("x", "y", "x_validation", "y_validation")
        replace_file(self.data, save({name: getattr(data, name) for name in names}))

    def failures(self) -> list[Path]:
        """Error files of the workers, by rank."""
        return sorted(self.scratch.glob("failure-*.json"))

    def write_failure(self, error: MlkitError, rank: int, size: int) -> bool:
        """Write a worker's error; returns whether all ``size`` workers write one within FAILURE_WAIT_SECONDS."""
        content = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
        replace_file(self.scratch / f"failure-{rank:06d}.json", json.dumps(content).encode())
        deadline = time.monotonic() + FAILURE_WAIT_SECONDS
        while len(self.failures()) < size:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def raise_failure(self) -> None:
        """Raise the first error that a worker wrote, if any."""
        for path in self.failures():
            failure = json.loads(path.read_text())
            raise getattr(errors, failure["type"])(failure["message"], hint=failure["hint"])

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        with open(self.progress, "a", opener=private_opener) as stream:
            stream.write(json.dumps([epoch, dict(metrics)]) + "\n")

    def read_result(self, job: loop.TrainingJob) -> loop.FittedModel:
        """The trained model from the last checkpoint. Removes the files that only the workers needed."""
        state = checkpoint.read(job.checkpoint)
        if state is None or not self.outcome.exists():
            raise EngineError("the workers ended without a result", hint="run it again, or use train.workers=0")
        outcome = json.loads(self.outcome.read_text())
        shutil.rmtree(self.ray, ignore_errors=True)
        self.data.unlink()
        return loop.FittedModel(weights=state.best or state.weights, progress=state.progress, **outcome)


@contextmanager
def _forward_progress(files: _ScratchFiles, report: loop.ReportEpoch) -> Iterator[None]:
    """Pass the workers' progress to ``report`` from a background thread while the block runs."""
    done = threading.Event()

    def poll() -> None:
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

    thread = threading.Thread(target=poll, name="train-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def local_ray(
    environment: Mapping[str, str] | None, workers: int, notify: Callable[[str], None] = _ignore
) -> Iterator[None]:
    """Connect to a Ray with CPUs for the workers: the current one, that of ``environment`` (which serves), that of the
    variable RAY_ADDRESS, or a new one. ``notify`` gets the reason where a new one is started although another serves.

    A Ray connected or started here is left at the end, and this process's environment is as before: what it starts
    later must not inherit ``PYTHONSAFEPATH``. Ray's messages about lost workers go to stderr, as stdout is for results.
    Raises EngineError when Ray does not start, and when that of ``RAY_ADDRESS`` cannot be used.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    defaults = {name: value for name, value in RAY_DEFAULTS.items() if name not in os.environ}
    with set_environment(defaults), redirect_stdout(sys.stderr):
        if ray.is_initialized():
            yield
            return
        given = os.environ.get("RAY_ADDRESS", "")
        if environment is None and given not in ("", "local"):
            _connect_given(given, workers)
        elif environment is None or not _connect_serving(environment["RAY_ADDRESS"], workers, notify):
            _start_ray(workers)
        try:
            yield
        finally:
            ray.shutdown()


def _connect_serving(address: str, workers: int, notify: Callable[[str], None]) -> bool:
    """Connect to the Ray that serves; False (and disconnected, and told) when it is gone or lacks free CPUs."""
    try:
        _connect(address)
    except (ConnectionError, RuntimeError) as error:
        notify(f"the Ray that serves does not answer ({first_line(error)}): a Ray is started for training")
        return False
    free = ray.available_resources().get("CPU", 0)
    if free >= workers * WORKER_CPUS:
        return True
    ray.shutdown()
    needed = f"{free:g} of the {workers * WORKER_CPUS:g} CPUs that {workers} workers need"
    notify(f"the Ray that serves has {needed} free: a Ray is started for training, on the same CPUs")
    return False


def _connect_given(address: str, workers: int) -> None:
    """Connect to the Ray of the environment variable RAY_ADDRESS. Raises EngineError when it cannot be used."""
    check_address(address)
    try:
        _connect(address)
    except (ConnectionError, RuntimeError) as error:
        message = f"RAY_ADDRESS is {address}, and connecting fails: {first_line(error)}"
        raise EngineError(message, hint="unset RAY_ADDRESS: training then starts a Ray of its own") from error
    alive = [node for node in ray.nodes() if node["Alive"]]
    if len(alive) > 1:
        ray.shutdown()
        raise EngineError(
            f"the Ray at RAY_ADDRESS {address} has {len(alive)} machines, and the workers of a training share a folder",
            hint="unset RAY_ADDRESS: training then starts a Ray on this machine",
        )
    total = ray.cluster_resources().get("CPU", 0)
    if total < workers * WORKER_CPUS:
        ray.shutdown()
        raise EngineError(
            f"the Ray at RAY_ADDRESS {address} has {total:g} CPUs; {workers} workers need {workers * WORKER_CPUS:g}",
            hint=f"train.workers={max(1, int(total / WORKER_CPUS))}",
        )


def _connect(address: str) -> None:
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, job_config=_job_config())


class _NoPaths(list[str]):
    """An empty list that stays empty."""

    def extend(self, values: Iterable[str]) -> None:
        """Add nothing."""


def _job_config() -> JobConfig:
    """A job whose workers do not import from this working directory.

    Ray puts it first on their ``sys.path`` (ray 2.60, ``ray/_private/worker.py``), and has no option against it. User
    code is loaded by path (`usercode`).
    """
    return JobConfig(_py_driver_sys_path=_NoPaths())


def _start_ray(workers: int) -> None:
    try:
        ray.init(
            "local", num_cpus=max(workers, os.cpu_count() or 1), include_dashboard=False, log_to_driver=False,
            logging_level=logging.ERROR, object_store_memory=OBJECT_STORE_BYTES, job_config=_job_config(),
        )  # fmt: skip
    except Exception as error:
        hint = "train.workers=0 trains in this process"
        raise EngineError(f"a local Ray does not start: {error}", hint=hint) from error
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        token.chmod(0o600)
