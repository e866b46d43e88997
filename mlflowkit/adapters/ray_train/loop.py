"""The training loop, the same for any number of workers.

Runs are reproducible and resumable: the order of rows depends on (seed, epoch), the noise on (seed, epoch) or, with
several shards, on (seed, epoch, step, shard), so a checkpoint between epochs is complete.

The loss of a batch is a weighted mean over its rows. Each shard's loss is divided by the weight of the whole batch, and
the shards' gradients are added in a fixed order (`shards`), so the weights have the same bits on any number of workers.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mlflowkit import usercode
from mlflowkit.adapters.ray_train import checkpoint, torch_objective
from mlflowkit.adapters.ray_train.shards import ShardedStep
from mlflowkit.errors import EngineError, UserCodeError
from mlflowkit.models import build

EVALUATION_ROWS = 8192
"""Rows per forward pass in validation."""
SMALL_STEP = 20_000_000
"""Multiply-adds of a step (parameters times rows) below which one thread beats several."""


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """The inputs of a training besides its data. ``train`` is a stages.train.TrainSection; picklable, for workers."""

    reference: str
    folder: Path
    args: Mapping[str, Any]
    task: Literal["classification", "regression"]
    features: int
    outputs: int
    class_weights: tuple[float, ...] | None
    target_scale: float
    """Standard deviation of a regression's target; 1 for a classification."""
    train: Any
    seed: int
    scratch: Path
    """Folder for the checkpoint."""

    @property
    def checkpoint(self) -> Path:
        return self.scratch / "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Matrices float32 [rows, features] and targets (int64 classes or float32 standardised values) [rows]."""

    x: Tensor
    y: Tensor
    x_validation: Tensor
    y_validation: Tensor

    def to(self, device: torch.device) -> TrainingData:
        return TrainingData(*(tensor.to(device) for tensor in (self.x, self.y, self.x_validation, self.y_validation)))


@dataclass(frozen=True, slots=True)
class FittedModel:
    """The result of a training: ``weights`` of the best epoch, on the CPU."""

    weights: Mapping[str, Tensor]
    progress: checkpoint.TrainingProgress
    device: str
    precision: str
    parameters: int
    resumed_from: int | None


class WorkerGroup:
    """The workers of one training: here only this process."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size = rank, size
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def gather(self, rows: Tensor) -> list[Tensor]:
        """The tensors of all workers, of one shape, by rank."""
        return [rows]

    def broadcast(self, value: Tensor) -> Tensor:
        """The first worker's value, on every worker."""
        return value


ReportEpoch = Callable[[int, Mapping[str, float]], None]
"""Called with the number of finished epochs and the latest metrics."""


def train(job: TrainingJob, data: TrainingData, group: WorkerGroup, report: ReportEpoch) -> FittedModel:
    """Fit the model of ``job``, resuming from its checkpoint if there is one; every worker of ``group`` calls this.

    Raises UserCodeError when the model is unusable or raises, EngineError when the loss becomes infinite or NaN or the
    precision is unavailable, StoreError when a checkpoint cannot be written.
    """
    precision = choose_precision(job.train.precision, group.device)
    with _reproducible(group):
        loop = _TrainingLoop(job, data.to(group.device), group, precision)
        resumed = loop.resume()
        while loop.progress.epoch < job.train.epochs and not loop.progress.stopped:
            metrics = loop.run_epoch()
            if group.rank == 0:
                report(loop.progress.epoch, metrics)
        weights = loop.best or checkpoint.weights_of(loop.model)
        return FittedModel(weights, loop.progress, group.device.type, precision, loop.parameters, resumed)


def choose_precision(requested: str, device: torch.device) -> str:
    """Resolve train.precision to fp32, bf16 or fp16. Raises EngineError for fp16 without a GPU."""
    if requested == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if requested == "fp16" and device.type != "cuda":
        raise EngineError("train.precision fp16 needs a GPU and there is none", hint="train.precision=auto")
    return requested


@contextmanager
def _reproducible(group: WorkerGroup) -> Iterator[None]:
    """Use deterministic algorithms and private random states; restores the caller's.

    torch only warns about operations without a deterministic implementation (some on GPUs).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    states = random.getstate(), np.random.get_state(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng([group.device] if group.device.type == "cuda" else []):
        try:
            torch.use_deterministic_algorithms(True, warn_only=True)
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_num_threads(states[2])


def derive_seed(purpose: str, *numbers: int) -> int:
    """A seed in [0, 2**32) for one purpose, independent of other purposes.

    >>> derive_seed("order", 7, 1) == derive_seed("order", 7, 1) != derive_seed("order", 7, 2)
    True
    """
    text = ":".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def batches(order: Tensor, size: int, shards: int) -> list[Tensor]:
    """Split an epoch's order into batches; a remainder of fewer than two rows per shard joins the batch before it.

    >>> [batch.tolist() for batch in batches(torch.arange(7), 3, 1)]
    [[0, 1, 2], [3, 4, 5, 6]]
    """
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) < 2 * shards:
        remainder = parts.pop()
        parts[-1] = torch.cat([parts[-1], remainder])
    return parts


def check_same_weights(model: nn.Module, group: WorkerGroup) -> None:
    """Raise UserCodeError on a worker whose model does not begin with the first worker's weights and buffers."""
    if group.size == 1:
        return
    digest = hashlib.sha256()
    for name, value in checkpoint.weights_of(model).items():
        digest.update(name.encode() + value.reshape(-1).view(torch.uint8).numpy().tobytes())
    own = torch.tensor(list(digest.digest()), device=group.device)
    if not torch.equal(own, group.broadcast(own.clone())):
        raise UserCodeError(
            f"{type(model).__name__} begins with other weights on worker {group.rank} than on worker 0",
            hint="draw initial weights by torch, numpy or random without a seed of their own: mlflowkit seeds them",
        )


class _UserModel(nn.Module):  # type: ignore[misc]  # mypy does not read torch
    """Wraps a user's module so that its errors become UserCodeErrors with its own line."""

    def __init__(self, model: nn.Module, job: TrainingJob) -> None:
        super().__init__()
        self.model, self.job = model, job

    def forward(self, x: Tensor) -> Tensor:
        try:
            with usercode.translate_user_errors(self.job.reference, self.job.folder):
                return self.model(x)
        except UserCodeError as error:
            if isinstance(error.__cause__, torch.cuda.OutOfMemoryError):
                raise EngineError("the GPU has no memory left", hint="lower train.batch_size") from error
            if self.training and len(x) == 1 and isinstance(error.__cause__, ValueError):
                least = 2 * self.job.train.shard_count
                hint = f"a shard of one row has no variance: train.batch_size={least} or more gives each two"
                raise UserCodeError(error.message, hint=hint) from error
            raise


class _TrainingLoop:
    """The training loop of one worker and its state."""

    def __init__(self, job: TrainingJob, data: TrainingData, group: WorkerGroup, precision: str) -> None:
        self.job, self.data, self.group, self.precision = job, data, group, precision
        seed_everything(derive_seed("weights", job.seed))
        model = build(job.reference, job.folder, job.args, features=job.features, outputs=job.outputs)
        self.parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        multiplications = sum(p.numel() for p in model.parameters())  # frozen parameters included
        small = multiplications * min(job.train.batch_size, len(data.y)) < SMALL_STEP
        if small or job.train.shard_count > 1:  # another number of threads adds in another order
            torch.set_num_threads(1)
        self.model = model.to(group.device)
        self.user_model = _UserModel(self.model, job)
        weights = torch.tensor(job.class_weights, device=group.device) if job.class_weights else None
        self.objective = torch_objective.Objective(job.task, weights)
        self._check_model()
        check_same_weights(self.model, group)
        shards = job.train.shard_count
        self.sharded = ShardedStep(self.model, shards, group) if shards > 1 else None
        self.optimizer = torch_objective.optimizer(job.train.optimizer, self.model)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=precision == "fp16")
        self.metric = torch_objective.metric_name(job.task, data.y_validation, job.outputs)
        self.steps = len(batches(torch.arange(len(data.y)), job.train.batch_size, shards))
        self.progress = checkpoint.TrainingProgress()
        self.best: dict[str, Tensor] = {}

    def resume(self) -> int | None:
        """Load the checkpoint if there is one; returns its epoch."""
        state = checkpoint.read(self.job.checkpoint)
        if state is None:
            return None
        self.progress, self.best = state.progress, state.best
        self.model.load_state_dict(state.weights)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state.optimizer, "param_groups": groups})
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)
        return self.progress.epoch

    def run_epoch(self) -> Mapping[str, float]:
        """Train and validate one epoch, update the best epoch and early stopping, write a checkpoint; the metrics."""
        number = self.progress.epoch + 1
        train_loss, rate = self._train_epoch(number)
        self._check_finite("training", train_loss, number)
        on_validation = self._validate() if self.group.rank == 0 else (0.0, 0.0)
        validation = torch.tensor(on_validation, dtype=torch.float64, device=self.group.device)
        val_loss, value = self.group.broadcast(validation).tolist()
        self._check_finite("validation", val_loss, number)
        metrics = {"train_loss": train_loss, "val_loss": val_loss, f"val_{self.metric}": value, "lr": rate}
        for name, metric in {"epoch": number, **metrics}.items():
            self.progress.curves.setdefault(name, []).append(metric)
        self.progress.epoch = number
        self._update_best(val_loss)
        self._write_checkpoint()
        return metrics

    def _train_epoch(self, number: int) -> tuple[float, float]:
        """One pass over the training rows; returns the mean loss and the last learning rate."""
        job, device = self.job, self.group.device
        seed_everything(derive_seed("noise", job.seed, number))
        generator = torch.Generator().manual_seed(derive_seed("order", job.seed, number))
        order = torch.randperm(len(self.data.y), generator=generator).to(device)
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.user_model.train()
        rate = 0.0
        for index, rows in enumerate(batches(order, job.train.batch_size, job.train.shard_count)):
            step = (number - 1) * self.steps + index
            optimizer = job.train.optimizer
            rate = torch_objective.learning_rate(job.train.schedule, optimizer.lr, step, self.steps, job.train.epochs)
            for parameters in self.optimizer.param_groups:
                parameters["lr"] = rate
            sums += self._step(rows, number, index)
        loss, weight = sums.tolist()
        return loss / weight, rate

    def _step(self, rows: Tensor, epoch: int, index: int) -> Tensor:
        """One optimiser step; returns the batch's sums of losses and of weights."""
        weight = self.objective.weight(self.data.y[rows])
        if self.sharded is None:
            self.optimizer.zero_grad()
            loss = self._backward(rows, weight)
        else:
            shards = self.job.train.shard_count

            def compute(shard: int) -> Tensor:
                seed_everything(derive_seed("noise", self.job.seed, epoch, index, shard))
                return self._backward(rows[shard::shards], weight)

            loss = self.sharded.backward(compute)
        if self.job.train.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.job.train.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return torch.stack([loss.double(), weight.double()])

    def _backward(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Add the gradients of the loss over some rows of a batch of this weight; returns the sum of the losses."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        with torch.autocast(self.group.device.type, dtype=dtype, enabled=self.precision != "fp32"):
            outputs = self.user_model(self.data.x[rows])
        loss = self.objective.loss(outputs, self.data.y[rows])
        self.scaler.scale(loss * (1 / weight)).backward()
        return loss.detach()

    def _validate(self) -> tuple[float, float]:
        """Loss and metric on the validation rows."""
        self.model.eval()
        with torch.no_grad():
            parts = self.data.x_validation.split(EVALUATION_ROWS)
            outputs = torch.cat([self.user_model(part) for part in parts])
            target = self.data.y_validation
            loss = float(self.objective.loss(outputs, target) / self.objective.weight(target))
        if not math.isfinite(loss):
            return loss, 0.0
        return loss, torch_objective.metric(self.metric, outputs, target, self.job.target_scale)

    def _check_model(self) -> None:
        """Check the outputs for two rows."""
        rows = self.data.x[:2]
        self.model.eval()
        outputs = self.user_model(rows)
        shape, name = (len(rows), self.job.outputs), f"{self.job.reference}.forward"
        if not isinstance(outputs, Tensor):
            raise UserCodeError(f"{name} returned a {type(outputs).__name__}", hint="return one tensor")
        if tuple(outputs.shape) != shape:
            unit = "one column per class" if self.job.task == "classification" else "one column"
            raise UserCodeError(
                f"{name} returned {list(outputs.shape)} for {len(rows)} rows; expected {list(shape)} ({unit})",
                hint="end the model with a layer of `outputs` columns",
            )
        if not outputs.dtype.is_floating_point or not outputs.requires_grad:
            raise UserCodeError(f"{name} returned a tensor without a gradient", hint="return the logits themselves")
        if outputs.dtype == torch.float64:
            raise UserCodeError(f"{name} returned float64; expected float32", hint="return answers.float()")
        self.objective.loss(outputs, self.data.y[:2]).backward()
        self.model.zero_grad()

    def _check_finite(self, part: str, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            rate = self.job.train.optimizer.lr
            raise EngineError(
                f"the {part} loss became {loss} in epoch {epoch}",
                hint=f"lower train.optimizer.lr (now {rate:g}), try {rate / 10:g}, or set train.clip_norm=1.0",
            )

    def _update_best(self, val_loss: float) -> None:
        """Track the best epoch (the last one without early stopping); stop when patience is exhausted."""
        progress, stopping = self.progress, self.job.train.early_stopping
        if stopping is None:
            progress.best_epoch, progress.best_loss = progress.epoch, val_loss
        elif val_loss < progress.best_loss - stopping.min_delta:
            progress.best_epoch, progress.best_loss, progress.waited = progress.epoch, val_loss, 0
            self.best = checkpoint.weights_of(self.model)
        else:
            progress.waited += 1
            progress.stopped = progress.waited >= stopping.patience

    def _write_checkpoint(self) -> None:
        progress, every = self.progress, self.job.train.checkpoint_every
        last = progress.stopped or progress.epoch == self.job.train.epochs
        if self.group.rank == 0 and (last or progress.epoch % every == 0):
            progress.scaler = self.scaler.state_dict()
            weights = checkpoint.weights_of(self.model)
            checkpoint.write(self.job.checkpoint, progress, weights, self.best, self.optimizer)
