"""From a recipe and a state folder to adapters: the only file that imports adapters, each on first use."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.errors import UsageError

if TYPE_CHECKING:
    from mlflowkit.ports import Checker, Exporter, Platform, Profiler, Runtime, Tables, Tracker, Trainer


class Wiring:
    """The Ports of one state folder."""

    def __init__(self, state: Path) -> None:
        self.state = state

    @cached_property
    def tables(self) -> Tables:
        from mlflowkit.adapters.arrow import ArrowTables

        return ArrowTables()

    @cached_property
    def checker(self) -> Checker:
        from mlflowkit.adapters.pandera import PanderaChecker

        return PanderaChecker()

    @cached_property
    def profiler(self) -> Profiler:
        from mlflowkit.adapters.whylogs import WhylogsProfiler

        return WhylogsProfiler()

    @cached_property
    def runtime(self) -> Runtime:
        from mlflowkit.adapters.onnxruntime import OnnxRuntime

        return OnnxRuntime()

    @cached_property
    def exporter(self) -> Exporter:
        from mlflowkit.adapters.onnx_exporter import OnnxExporter

        return OnnxExporter()

    @cached_property
    def tracker(self) -> Tracker:
        from mlflowkit.adapters.mlflow import MlflowTracker

        return MlflowTracker(self.state)

    @cached_property
    def platform(self) -> Platform:
        from mlflowkit.adapters.ray_serve import RayServePlatform

        return RayServePlatform(self.state, companions=("mlflowkit.cli.controller",))

    def trainer(self, kind: str) -> Trainer:
        if kind == "torch":
            from mlflowkit.adapters.ray_train import RayTorchTrainer

            return RayTorchTrainer(self.state)
        if kind == "sklearn":
            from mlflowkit.adapters.sklearn_trainer import SklearnTrainer

            return SklearnTrainer()
        raise UsageError(f"no trainer for model.kind {kind!r}", hint="use torch or sklearn")
