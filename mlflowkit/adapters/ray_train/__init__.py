"""Torch training: in this process with ``train.workers: 0``, else by N workers (DDP) under Ray Train.

Both run the same loop (`loop.train`). Without workers Ray is not imported at all: TorchTrainer's own in-process mode
(``num_workers=0``) would call the same function after 0.75 s of imports (ray and ray.train.torch after torch and
scikit-learn, 2 cores).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from mlflowkit.adapters.ray_train import loop
from mlflowkit.adapters.ray_train.attach import running
from mlflowkit.errors import UsageError
from mlflowkit.features.preprocess import (
    Part,
    Table,
    check_target,
    class_weights,
    fit_preprocess,
    open_table,
    save_preprocess,
    transform,
)
from mlflowkit.ports import StageContext
from mlflowkit.system.files import replace_file
from mlflowkit.values import Event

PROGRESS_SECONDS = 0.1
"""Smallest time between two progress events."""


@dataclass(frozen=True, slots=True)
class TargetScale:
    """What a regression's target was standardised with: ``(y - mean) / scale``."""

    mean: float
    scale: float


class RayTorchTrainer:
    """Fits torch modules. ``state`` is the state folder; the Ray that serves it is reused when it has room."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def fit(self, spec: Any, context: StageContext) -> Mapping[str, Any]:
        """Fit as a stages.train.Spec says, write ``context.out``, return the fields of a stages.train.FitResult.

        Raises DataError, UsageError, UserCodeError, EngineError or StoreError; the checkpoint in ``context.scratch``
        stays, and the next call resumes at it.
        """
        if spec.train.batch_size < spec.train.workers:
            raise UsageError(
                f"train.batch_size {spec.train.batch_size} is smaller than train.workers {spec.train.workers}",
                hint=f"train.batch_size={spec.train.workers * 32}",
            )
        table = open_table(context.inputs["data"])
        train, validation = table.read("train"), table.read("validation")
        check_target(table, train)
        preprocess = fit_preprocess(train.inputs, spec.preprocess)
        scale = target_scale(table, train)
        data = _data(preprocess, train, validation, scale)
        job = _job(spec, context, table, data, train, scale)
        report = reporter(context, spec.train.epochs)
        if spec.train.workers == 0:
            fitted = loop.train(job, data, loop.Alone(), report)
        else:
            fitted = self._fit_on_ray(job, data, report)
        save_preprocess(preprocess, context.out)
        replace_file(context.out / "model.safetensors", save(dict(fitted.weights)))
        return _fields(fitted, job, table, scale)

    def _fit_on_ray(self, job: loop.Job, data: loop.Data, report: loop.Report) -> loop.Fitted:
        environment = running(self.state)
        os.environ.update(environment or {})
        from mlflowkit.adapters.ray_train.ray_workers import train_on_ray

        return train_on_ray(job, data, environment, report)


def target_scale(table: Table, train: Part) -> TargetScale | None:
    """Mean and standard deviation of a regression's target in the training rows; None for a classification."""
    if table.task == "classification":
        return None
    return TargetScale(float(np.mean(train.target)), float(np.std(train.target)))


def reporter(context: StageContext, epochs: int) -> loop.Report:
    """Turns finished epochs into progress events, not more often than every PROGRESS_SECONDS."""
    last = 0.0

    def report(epoch: int, figures: Mapping[str, float]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS or epoch == epochs:
            last = now
            message = f"epoch {epoch}/{epochs}"
            metrics = {"epoch": float(epoch), **figures}
            context.progress(Event("train", "progress", message, fraction=epoch / epochs, metrics=metrics))

    return report


def _data(preprocess: Any, train: Part, validation: Part, scale: TargetScale | None) -> loop.Data:
    def target(part: Part) -> torch.Tensor:
        if scale is None:
            return torch.from_numpy(part.target)
        return torch.from_numpy(((part.target - scale.mean) / scale.scale).astype(np.float32))

    return loop.Data(
        torch.from_numpy(transform(preprocess, train.inputs)),
        target(train),
        torch.from_numpy(transform(preprocess, validation.inputs)),
        target(validation),
    )


def _job(
    spec: Any, context: StageContext, table: Table, data: loop.Data, train: Part, scale: TargetScale | None
) -> loop.Job:
    return loop.Job(
        reference=spec.model.module,
        folder=context.folder,
        args=dict(spec.model.args),
        task=spec.task,
        features=data.x.shape[1],
        outputs=len(table.classes) if scale is None else 1,
        weights=class_weights(spec.train.class_weights, table.classes, train.target),
        scale=1.0 if scale is None else scale.scale,
        train=spec.train,
        seed=context.seed,
        scratch=context.scratch,
    )


def _fields(fitted: loop.Fitted, job: loop.Job, table: Table, scale: TargetScale | None) -> Mapping[str, Any]:
    progress = fitted.progress
    kept = progress.best_epoch - 1
    return {
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "metrics": {name: values[kept] for name, values in progress.curves.items() if name != "epoch"},
        "curves": progress.curves,
        "device": fitted.device,
        "precision": fitted.precision,
        "parameters": fitted.parameters,
        "resumed_from": fitted.resumed_from,
        "features": {"numeric": table.features.numeric, "categorical": table.features.categorical},
        "classes": table.classes,
        "width": job.features,
        "outputs": job.outputs,
        "target_scale": None if scale is None else {"mean": scale.mean, "scale": scale.scale},
    }
