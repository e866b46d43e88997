"""The schema of recipes, and the Spec of each stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from mlflowkit.data_access.connections import Connection
from mlflowkit.data_access.registry_sections import ModelRegistrySection
from mlflowkit.delivery.delivery_settings import DeliverySection
from mlflowkit.judging.decision_rule import DecisionSection
from mlflowkit.monitoring.monitor_settings import MonitorSection, RetrainSection
from mlflowkit.sections import Section
from mlflowkit.stages import data as data_stage
from mlflowkit.stages import deploy as deploy_stage
from mlflowkit.stages import evaluate as evaluate_stage
from mlflowkit.stages import export as export_stage
from mlflowkit.stages import optimize as optimize_stage
from mlflowkit.stages import package as package_stage
from mlflowkit.stages import train as train_stage
from mlflowkit.stages import validate as validate_stage
from mlflowkit.stages.base import Check, LeakageCheck
from mlflowkit.stages.evaluation import gating, timing
from mlflowkit.system.digests import digest_json
from mlflowkit.values import Json


class RecipeSchema(Section):
    """From data to a model that answers requests."""

    model_config = ConfigDict(title="Recipe")

    name: str = Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9_-]*[a-z0-9])?$")
    """Name of the recipe and of the registered model."""
    task: Literal["classification", "regression"]
    """What is predicted: a class or a number."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the split, the initial weights, the order of rows and the bootstrap."""
    connections: dict[str, Connection] = Field(default_factory=dict)
    """Stores by name, with references to their credentials; a source names one."""
    data: data_stage.DataSection
    """The table."""
    preprocess: train_stage.PreprocessSettings = Field(default_factory=train_stage.PreprocessSettings)
    """What is done to the columns before the model; fitted on the training rows, exported with the model."""
    model: train_stage.Model
    """The model."""
    train: train_stage.TrainSection = Field(default_factory=train_stage.TrainSection)
    """How it is fitted."""
    export: export_stage.ExportSection = Field(default_factory=export_stage.ExportSection)
    """The graph."""
    decision: DecisionSection | None = None
    """When a binary task answers its positive class; without it, when that class is the more probable one."""
    optimize: optimize_stage.OptimizeSection = Field(default_factory=optimize_stage.OptimizeSection)
    """Which graphs to try and how to choose."""
    gates: list[gating.Gate] = Field(default_factory=list)
    """What must hold before the bundle is blessed."""
    latency: timing.LatencySection = Field(default_factory=timing.LatencySection)
    """How long gates on latency may measure."""
    serve: deploy_stage.ServeSection | None = None
    """The service; without it a run ends at the bundle."""
    monitor: MonitorSection | None = None
    """What is watched in the service's traffic; nothing by default."""
    retrain: RetrainSection | None = None
    """When the recipe is run again; never by default."""
    registries: list[ModelRegistrySection] = Field(default_factory=list)
    """Where a blessed bundle is pushed to at the end of its run; a push that fails is made by a later run."""
    delivery: DeliverySection | None = None
    """CI/CD: what `mlkit export` generates; nothing by default."""


def stage_specs(recipe: RecipeSchema) -> Mapping[str, Section]:
    """The Spec of each stage, keyed by stage; deploy is absent when the recipe has no ``serve``."""
    task, split = recipe.task, recipe.data.split
    time_column = split.column if split.kind == "time" else ""
    table = recipe.data.model_dump(exclude={"checks", "write_back"})
    specs: dict[str, Section] = {
        "data": data_stage.Spec.model_validate({"task": task, **table}),
        "validate": validate_stage.Spec(checks=[_with_time(check, time_column) for check in recipe.data.checks]),
        "train": train_stage.Spec(
            task=task, model=recipe.model, preprocess=recipe.preprocess, train=recipe.train.with_shards()
        ),
        "export": export_stage.Spec(export=recipe.export, decision=recipe.decision),
        "optimize": optimize_stage.Spec(task=task, optimize=recipe.optimize),
        "evaluate": evaluate_stage.Spec(task=task, gates=recipe.gates, latency=recipe.latency),
        "package": package_stage.Spec(
            name=recipe.name,
            policy=policy_digest(recipe),
            time_column=time_column,
            segments=tuple(recipe.monitor.segments) if recipe.monitor else (),
            outliers=recipe.monitor.outliers.max_share if recipe.monitor and recipe.monitor.outliers else None,
        ),
    }
    if recipe.serve is not None:
        specs["deploy"] = deploy_stage.Spec(
            name=recipe.name, serve=recipe.serve, monitor=recipe.monitor, retrain=recipe.retrain
        )
    return specs


def _with_time(check: Check, column: str) -> Check:
    """A leakage check whose time is that of the split, with the column's name."""
    timed = isinstance(check, LeakageCheck) and check.time is True and column
    return check.model_copy(update={"time": column}) if timed else check


def policy_digest(recipe: RecipeSchema) -> str:
    """Digest of the gates, bound by the blessing."""
    return digest_json([gate.model_dump(mode="json") for gate in recipe.gates])


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A composed, valid recipe."""

    recipe: RecipeSchema
    path: Path
    """Its file, absolute."""
    overrides: tuple[str, ...]
    composed: Mapping[str, Json]
    """The recipe as plain JSON, with defaults."""
    files: tuple[Path, ...] = ()
    """The files it was composed from, the recipe first."""

    @property
    def folder(self) -> Path:
        return self.path.parent
