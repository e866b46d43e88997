"""The training loop, one for every number of workers.

What makes two runs equal, and a resumed run equal to one that was never cut: the order of rows and the noise of an
epoch depend on (seed, epoch, rank) alone, so a checkpoint between epochs holds everything that the rest depends on.

The loss of a batch is a weighted mean over the rows of *all* workers. Each worker divides the sum of its own rows by
the weight of the whole batch and multiplies by the number of workers, so that DDP's mean over workers is that mean.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mlflowkit import usercode
from mlflowkit.adapters.ray_train import checkpoint, torch_objective
from mlflowkit.errors import EngineError, UserCodeError
from mlflowkit.models import build

EVALUATION_ROWS = 8192
"""Rows of a forward pass when validating."""
SMALL_STEP = 20_000_000
"""Multiply-adds of a step (parameters times rows) below which one thread is faster than several."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be trained. ``train`` is a stages.train.TrainSection; picklable, so that it can be sent to workers."""

    reference: str
    folder: Path
    args: Mapping[str, Any]
    task: Literal["classification", "regression"]
    features: int
    outputs: int
    weights: tuple[float, ...] | None
    """Of the classes, or None."""
    scale: float
    """Standard deviation of a regression's target; 1 for a classification."""
    train: Any
    seed: int
    scratch: Path
    """Folder for the checkpoint."""

    @property
    def checkpoint(self) -> Path:
        return self.scratch / "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class Data:
    """Matrices float32 [rows, features] and targets (int64 classes or float32 standardised values) [rows]."""

    x: Tensor
    y: Tensor
    x_validation: Tensor
    y_validation: Tensor

    def to(self, device: torch.device) -> Data:
        return Data(*(tensor.to(device) for tensor in (self.x, self.y, self.x_validation, self.y_validation)))


@dataclass(frozen=True, slots=True)
class Fitted:
    """What training ended with: ``weights`` of the kept epoch, on the CPU."""

    weights: Mapping[str, Tensor]
    progress: checkpoint.Progress
    device: str
    precision: str
    parameters: int
    resumed_from: int | None


class Group(Protocol):
    """The workers that train together."""

    rank: int
    size: int
    device: torch.device

    def wrap(self, model: nn.Module, *, unused: bool) -> nn.Module:
        """The model with gradients averaged over the workers."""

    def total(self, value: Tensor) -> Tensor:
        """Sum over the workers."""

    def share(self, value: Tensor) -> Tensor:
        """The first worker's value, on every worker."""


class Alone:
    """A group of one: this process."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def wrap(self, model: nn.Module, *, unused: bool) -> nn.Module:
        return model

    def total(self, value: Tensor) -> Tensor:
        return value

    def share(self, value: Tensor) -> Tensor:
        return value


Report = Callable[[int, Mapping[str, float]], None]
"""Takes the number of finished epochs and the latest figures."""


def train(job: Job, data: Data, group: Group, report: Report) -> Fitted:
    """Fit the model of ``job``, resuming at its checkpoint when there is one; every worker of ``group`` calls this.

    Raises UserCodeError when the model is not usable or raises, EngineError when the loss is no longer finite or the
    precision cannot be had, StoreError when a checkpoint cannot be written.
    """
    precision = choose_precision(job.train.precision, group.device)
    with reproducible(group):
        run = _Run(job, data.to(group.device), group, precision)
        resumed = run.resume()
        while run.progress.epoch < job.train.epochs and not run.progress.stopped:
            figures = run.epoch()
            if group.rank == 0:
                report(run.progress.epoch, figures)
        return run.fitted(resumed)


def choose_precision(asked: str, device: torch.device) -> str:
    """fp32, bf16 or fp16 from what the recipe asks. Raises EngineError when fp16 is asked of a CPU."""
    if asked == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if asked == "fp16" and device.type != "cuda":
        raise EngineError("train.precision fp16 needs a GPU and there is none", hint="train.precision=auto")
    return asked


@contextmanager
def reproducible(group: Group) -> Iterator[None]:
    """Deterministic algorithms and random states of our own; the caller's are put back.

    Where torch has no deterministic form of an operation (some on GPUs) it warns and goes on.
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


def seed_of(purpose: str, *numbers: int) -> int:
    """A seed in [0, 2**32) for one purpose, independent of the others.

    >>> seed_of("order", 7, 1) == seed_of("order", 7, 1) != seed_of("order", 7, 2)
    True
    """
    text = ":".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def seed_everything(seed: int) -> None:
    """Seed torch, NumPy and random."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def batches(order: Tensor, size: int, workers: int) -> list[Tensor]:
    """Cut an epoch's order into batches; a rest of fewer than two rows a worker joins the batch before it.

    >>> [batch.tolist() for batch in batches(torch.arange(7), 3, 1)]
    [[0, 1, 2], [3, 4, 5, 6]]
    """
    cuts = list(order.split(size))
    if len(cuts) > 1 and len(cuts[-1]) < 2 * workers:
        rest = cuts.pop()
        cuts[-1] = torch.cat([cuts[-1], rest])
    return cuts


class Guarded(nn.Module):  # type: ignore[misc]  # mypy does not read torch
    """A user's module whose errors become UserCodeErrors at their own line; those of DDP around it do not."""

    def __init__(self, model: nn.Module, job: Job) -> None:
        super().__init__()
        self.model = model
        self.job = job

    def forward(self, x: Tensor) -> Tensor:
        try:
            with usercode.blame(self.job.reference, self.job.folder):
                answers: Tensor = self.model(x)
                return answers
        except UserCodeError as error:
            if isinstance(error.__cause__, torch.cuda.OutOfMemoryError):
                raise EngineError("the GPU has no memory left", hint="lower train.batch_size") from error
            raise


class _Run:
    """The state of one worker of one training."""

    def __init__(self, job: Job, data: Data, group: Group, precision: str) -> None:
        self.job, self.data, self.group, self.precision = job, data, group, precision
        seed_everything(seed_of("weights", job.seed))
        model = build(job.reference, job.folder, job.args, features=job.features, outputs=job.outputs)
        self.parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        multiplied = sum(p.numel() for p in model.parameters())  # frozen ones take part in every step too
        if multiplied * min(job.train.batch_size, len(data.y)) < SMALL_STEP:
            torch.set_num_threads(1)
        self.model = model.to(group.device)
        self.guarded = Guarded(self.model, job)
        weights = torch.tensor(job.weights, device=group.device) if job.weights else None
        self.objective = torch_objective.Objective(job.task, weights)
        unused = self._probe()
        self.optimizer = torch_objective.optimizer(job.train.optimizer, self.model)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=precision == "fp16")
        self.wrapped = group.wrap(self.guarded, unused=unused)
        self.metric = torch_objective.metric_name(job.task, data.y_validation, job.outputs)
        self.steps = len(batches(torch.arange(len(data.y)), job.train.batch_size, group.size))
        self.progress = checkpoint.Progress()
        self.best: dict[str, Tensor] = {}

    def resume(self) -> int | None:
        """Take up the checkpoint, if there is one; returns the epoch that it was made after."""
        snapshot = checkpoint.read(self.job.checkpoint)
        if snapshot is None:
            return None
        self.progress, self.best = snapshot.progress, snapshot.best
        self.model.load_state_dict(snapshot.weights)
        checkpoint.restore_optimizer(self.optimizer, snapshot.optimizer)
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)
        return self.progress.epoch

    def epoch(self) -> Mapping[str, float]:
        """Train and validate one epoch, decide whether it is the best or the last, and leave a checkpoint."""
        number = self.progress.epoch + 1
        train_loss, rate = self._train_epoch(number)
        self._refuse_nonfinite("training", train_loss, number)
        validation = torch.zeros(2, dtype=torch.float64, device=self.group.device)
        if self.group.rank == 0:
            validation = torch.tensor(self._validate(), dtype=torch.float64, device=self.group.device)
        val_loss, value = self.group.share(validation).tolist()
        self._refuse_nonfinite("validation", val_loss, number)
        figures = {"train_loss": train_loss, "val_loss": val_loss, f"val_{self.metric}": value, "lr": rate}
        for name, figure in {"epoch": number, **figures}.items():
            self.progress.curves.setdefault(name, []).append(figure)
        self.progress.epoch = number
        self._keep(val_loss)
        self._checkpoint()
        return figures

    def fitted(self, resumed: int | None) -> Fitted:
        weights = self.best or checkpoint.weights_of(self.model)
        return Fitted(weights, self.progress, str(self.group.device.type), self.precision, self.parameters, resumed)

    def _train_epoch(self, number: int) -> tuple[float, float]:
        """One pass over the training rows; returns the mean loss and the last learning rate."""
        job, group = self.job, self.group
        seed_everything(seed_of("noise", job.seed, number, group.rank))
        generator = torch.Generator().manual_seed(seed_of("order", job.seed, number))
        order = torch.randperm(len(self.data.y), generator=generator).to(group.device)
        sums = torch.zeros(2, dtype=torch.float64, device=group.device)
        self.wrapped.train()
        rate = 0.0
        for index, rows in enumerate(batches(order, job.train.batch_size, group.size)):
            step = (number - 1) * self.steps + index
            optimizer = job.train.optimizer
            rate = torch_objective.learning_rate(job.train.schedule, optimizer.lr, step, self.steps, job.train.epochs)
            for parameters in self.optimizer.param_groups:
                parameters["lr"] = rate
            sums += self._step(rows)
        loss, weight = group.total(sums).tolist()
        return loss / weight, rate

    def _step(self, rows: Tensor) -> Tensor:
        """One step of the optimiser; returns this worker's sum of losses and of weights."""
        group = self.group
        weight = self.objective.weight(self.data.y[rows])
        mine = rows[group.rank :: group.size]
        x, y = self.data.x[mine], self.data.y[mine]
        with self._autocast():
            answers = self.wrapped(x)
        loss = self.objective.loss(answers, y)
        self.optimizer.zero_grad()
        self.scaler.scale(loss * (group.size / weight)).backward()
        if self.job.train.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.job.train.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return torch.stack([loss.detach().double(), weight.double() / group.size])

    def _validate(self) -> tuple[float, float]:
        """Loss and metric on the validation rows."""
        self.model.eval()
        with torch.no_grad():
            parts = self.data.x_validation.split(EVALUATION_ROWS)
            answers = torch.cat([self.guarded(part) for part in parts])
            target = self.data.y_validation
            loss = float(self.objective.loss(answers, target) / self.objective.weight(target))
        if not math.isfinite(loss):
            return loss, 0.0
        return loss, torch_objective.metric(self.metric, answers, target, self.job.scale)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        context: AbstractContextManager[Any] = torch.autocast(self.group.device.type, dtype=dtype)
        return context

    def _probe(self) -> bool:
        """Check the answer to two rows; returns whether some parameters get no gradient."""
        rows = self.data.x[:2]
        self.model.eval()
        answers = self.guarded(rows)
        shape, name = (len(rows), self.job.outputs), f"{self.job.reference}.forward"
        if not isinstance(answers, Tensor):
            raise UserCodeError(f"{name} returned a {type(answers).__name__}", hint="return one tensor")
        if tuple(answers.shape) != shape:
            unit = "one column a class" if self.job.task == "classification" else "one column"
            raise UserCodeError(
                f"{name} returned {list(answers.shape)} for {len(rows)} rows; expected {list(shape)} ({unit})",
                hint="end the model with a layer of `outputs` columns",
            )
        if not answers.dtype.is_floating_point or not answers.requires_grad:
            raise UserCodeError(f"{name} returned something without a gradient", hint="return the logits themselves")
        if answers.dtype == torch.float64:
            raise UserCodeError(f"{name} returned float64; expected float32", hint="return answers.float()")
        self.objective.loss(answers, self.data.y[:2]).backward()
        unused = any(p.grad is None for p in self.model.parameters() if p.requires_grad)
        self.model.zero_grad()
        return unused

    def _refuse_nonfinite(self, part: str, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            rate = self.job.train.optimizer.lr
            raise EngineError(
                f"the {part} loss became {loss} in epoch {epoch}",
                hint=f"lower train.optimizer.lr (now {rate:g}), try {rate / 10:g}, or set train.clip_norm=1.0",
            )

    def _keep(self, val_loss: float) -> None:
        """With early stopping keep the best epoch and stop when patience ends; without it keep the last."""
        progress, stopping = self.progress, self.job.train.early_stopping
        if stopping is None:
            progress.best_epoch, progress.best_loss = progress.epoch, val_loss
        elif val_loss < progress.best_loss - stopping.min_delta:
            progress.best_epoch, progress.best_loss, progress.waited = progress.epoch, val_loss, 0
            self.best = checkpoint.weights_of(self.model)
        else:
            progress.waited += 1
            progress.stopped = progress.waited >= stopping.patience

    def _checkpoint(self) -> None:
        progress, every = self.progress, self.job.train.checkpoint_every
        last = progress.stopped or progress.epoch == self.job.train.epochs
        if self.group.rank == 0 and (last or progress.epoch % every == 0):
            progress.scaler = self.scaler.state_dict()
            weights = checkpoint.weights_of(self.model)
            checkpoint.write(self.job.checkpoint, progress, weights, self.best, self.optimizer)
