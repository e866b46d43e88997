"""Torch training: in this process with ``train.workers: 0``, else by N workers under Ray Train.

Both run the same loop (`loop.train`). Without workers Ray is not imported: TorchTrainer's own in-process mode
(``num_workers=0``) would call the same function after 0.75 s of imports (ray and ray.train.torch after torch and
scikit-learn, 2 cores).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from mlflowkit.adapters.ray_train import loop
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
from mlflowkit.service_state.ray_cluster import ray_environment
from mlflowkit.system.child_process import set_environment
from mlflowkit.system.files import replace_file
from mlflowkit.values import Event

PROGRESS_SECONDS = 0.1
"""Minimum time between two progress events."""


class RayTorchTrainer:
    """Fits torch modules. ``state`` is the state folder; the Ray that serves it is reused when it has free CPUs."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def fit(self, spec: Any, context: StageContext) -> Mapping[str, Any]:
        """Fit by a stages.train.Spec, write ``context.out``, return the fields of a stages.train.FitResult.

        Raises DataError, UsageError, UserCodeError, EngineError or StoreError; the checkpoint in ``context.scratch``
        stays, and the next call resumes from it.
        """
        _check_division(spec.train)
        table = open_table(context.inputs["data"], spec.preprocess)
        train, validation = table.read("train"), table.read("validation")
        check_target(table, train)
        preprocess = fit_preprocess(train.inputs, spec.preprocess, table.features, context.folder)
        mean, scale = (0.0, 1.0) if table.classes else (float(np.mean(train.target)), float(np.std(train.target)))

        def target(part: Part) -> torch.Tensor:
            scaled = part.target if table.classes else ((part.target - mean) / scale).astype(np.float32)
            return torch.from_numpy(scaled)

        x, x_validation = (torch.from_numpy(transform(preprocess, part.inputs)) for part in (train, validation))
        data = loop.TrainingData(x, target(train), x_validation, target(validation))
        job = loop.TrainingJob(
            reference=spec.model.module,
            folder=context.folder,
            args=dict(spec.model.args),
            task=spec.task,
            features=x.shape[1],
            outputs=len(table.classes) or 1,
            class_weights=class_weights(spec.train.class_weights, table.classes, train.target),
            target_scale=scale,
            train=spec.train,
            seed=context.seed,
            scratch=context.scratch,
        )
        report = make_reporter(context, spec.train.epochs)
        if spec.train.workers == 0:
            fitted = loop.train(job, data, loop.WorkerGroup(), report)
        else:
            environment = None if os.environ.get("RAY_ADDRESS") else ray_environment(self.state)
            with set_environment(environment or {}):
                from mlflowkit.adapters.ray_train.ray_workers import train_on_ray

                def warn(message: str) -> None:
                    context.progress(Event("train", "warning", message))

                fitted = train_on_ray(job, data, environment, report, warn)
        save_preprocess(preprocess, context.out)
        replace_file(context.out / "model.safetensors", save(dict(fitted.weights)))
        standardised = {"mean": mean, "scale": scale, "double": bool(table.target_offset)}
        return _fit_result(fitted, job, table, None if table.classes else standardised)


def _check_division(train: Any) -> None:
    """Refuse more shards than rows of a batch, and more workers than shards. Raises UsageError."""
    if train.batch_size < train.shard_count:
        of = "train.shards" if train.shards else "train.workers"
        message = f"train.batch_size {train.batch_size} is smaller than {of} {train.shard_count}"
        raise UsageError(message, hint=f"train.batch_size={train.shard_count * 32}")
    if train.workers > train.shard_count:
        message = f"train.workers {train.workers} is larger than train.shards {train.shard_count}"
        raise UsageError(message, hint=f"train.workers={train.shard_count}")


def make_reporter(context: StageContext, epochs: int) -> loop.ReportEpoch:
    """A callback that emits finished epochs as progress events, at most one per PROGRESS_SECONDS."""
    last = 0.0

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS or epoch == epochs:
            last = now
            message = f"epoch {epoch}/{epochs}"
            values = {"epoch": float(epoch), **metrics}
            context.progress(Event("train", "progress", message, fraction=epoch / epochs, metrics=values))

    return report


def _fit_result(
    fitted: loop.FittedModel, job: loop.TrainingJob, table: Table, target_scale: Mapping[str, float] | None
) -> Mapping[str, Any]:
    progress = fitted.progress
    best = progress.best_epoch - 1
    return {
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "metrics": {name: values[best] for name, values in progress.curves.items() if name != "epoch"},
        "curves": progress.curves,
        "device": fitted.device,
        "precision": fitted.precision,
        "parameters": fitted.parameters,
        "resumed_from": fitted.resumed_from,
        "features": asdict(table.features),
        "classes": table.classes,
        "width": job.features,
        "outputs": job.outputs,
        "target_scale": target_scale,
    }
