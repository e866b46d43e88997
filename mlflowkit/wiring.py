"""Connects the ports to adapters, each imported on first use. The only module that imports adapters.

The function that makes an adapter is named for its port, or ``PORT_KIND`` where a recipe selects one of several. The
fingerprints of stages read from this file which adapter modules their results depend on
(`pipeline.fingerprint.adapter_modules`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mlflowkit.errors import UsageError

if TYPE_CHECKING:
    from mlflowkit.bench.timings import DeviceClock
    from mlflowkit.data_access.connections import ConnectionSection
    from mlflowkit.data_access.registry_sections import HuggingfaceRegistry, OciRegistry
    from mlflowkit.data_access.results.write_back import WriteBackSection
    from mlflowkit.graphs.candidates import Candidate, Engine
    from mlflowkit.monitoring.export.evidently_report import SampleReports
    from mlflowkit.monitoring.export.whylabs_upload import ProfileUploads, StampingProfiler
    from mlflowkit.ports import (
        Checker,
        EngineBuilder,
        Engines,
        Exporter,
        FileChecker,
        Journal,
        ModelRegistry,
        ObjectStore,
        Passes,
        Platform,
        Profiler,
        RunTarget,
        Runtime,
        Search,
        Session,
        Tables,
        Tracker,
        Trainer,
        Trials,
    )
    from mlflowkit.recipe.schema import RecipeSchema


class Wiring:
    """The Ports of one state folder."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def open_journal(self, *, create: bool = True) -> Journal:
        """Open the journal: SQLite in the state folder. Without ``create`` a missing one reads as empty."""
        from mlflowkit.pipeline.storage.journal import SqliteJournal

        return SqliteJournal(self.state, create)

    @cached_property
    def objects(self) -> ObjectStore:
        from mlflowkit.pipeline.storage.store import FolderStore

        return FolderStore(self.state)

    @cached_property
    def tables(self) -> Tables:
        from mlflowkit.adapters.arrow import ArrowTables

        return ArrowTables()

    @cached_property
    def checker(self) -> Checker:
        from mlflowkit.adapters.pandera import PanderaChecker

        return PanderaChecker()

    def file_checker(self, kind: str) -> FileChecker:
        checkers: dict[str, Callable[[], FileChecker]] = {
            "expectations": self.checker_expectations,
            "pandera": self.checker_pandera,
            "tfdv": self.checker_tfdv,
        }
        if kind not in checkers:
            raise UsageError(f"no checker for files of kind {kind!r}", hint=f"use {' or '.join(checkers)}")
        return checkers[kind]()

    def checker_expectations(self) -> FileChecker:
        from mlflowkit.adapters.data_checks.expectations import ExpectationSuites

        return ExpectationSuites()

    def checker_pandera(self) -> FileChecker:
        from mlflowkit.adapters.data_checks.pandera_schemas import PanderaSchemas

        return PanderaSchemas()

    def checker_tfdv(self) -> FileChecker:
        from mlflowkit.adapters.data_checks.tfdv_schemas import TfdvSchemas

        return TfdvSchemas()

    @cached_property
    def profiler(self) -> Profiler:
        from mlflowkit.adapters.whylogs import WhylogsProfiler

        return WhylogsProfiler()

    @cached_property
    def live_profiler(self) -> StampingProfiler:
        """The profiler of live traffic, whose profiles are merged."""
        from mlflowkit.adapters.whylogs import WhylogsProfiler

        return WhylogsProfiler()

    @cached_property
    def profile_uploads(self) -> ProfileUploads:
        from mlflowkit.adapters.whylabs import WhylabsUploads
        from mlflowkit.rollout.outbound import request

        return WhylabsUploads(request)

    @cached_property
    def sample_reports(self) -> SampleReports:
        from mlflowkit.adapters.evidently import EvidentlyReports

        return EvidentlyReports()

    @cached_property
    def runtime(self) -> Runtime:
        return ServingRuntime()

    @cached_property
    def passes(self) -> Passes:
        from mlflowkit.adapters.onnx_passes import OnnxPasses

        return OnnxPasses()

    @cached_property
    def engines(self) -> Engines:
        return EnginesByRuntime()

    def engine_builder(
        self,
        rows: Sequence[int],
        shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]],
        *,
        version_compatible: bool = False,
    ) -> EngineBuilder:
        """A builder for (min, opt, max) numbers of rows and (min, opt, max) shapes of inputs. Raises UsageError."""
        from mlflowkit.adapters.tensorrt import RowCounts, TensorRTEngines

        return TensorRTEngines(RowCounts.of(*rows), shapes, version_compatible=version_compatible)

    @cached_property
    def trials(self) -> Trials:
        from mlflowkit.adapters.trials import ProcessTrials

        return ProcessTrials(self.state)

    def search(self, candidates: Sequence[Candidate], trials: int, seed: int) -> Search:
        """An Optuna search. Raises UsageError when Optuna is not installed."""
        return self.search_optuna(candidates, trials, seed)

    def search_optuna(self, candidates: Sequence[Candidate], trials: int, seed: int) -> Search:
        from mlflowkit.adapters.optuna import OptunaSearch

        return OptunaSearch(candidates, trials, seed)

    def trial_child(self, plan: Mapping[str, Any], answers: BinaryIO, reach: Callable[[str, str], None]) -> None:
        """Serve as the process of a trial (see adapters.trials.child)."""
        from mlflowkit.adapters.trials import child

        child.serve_requests(child.TrialWorker(plan, lambda: self.passes, self.engines, reach, device_clock), answers)

    def trial_once(self, plan: Mapping[str, Any], reach: Callable[[str, str], None]) -> str:
        """Build, run and time one candidate in this process; returns a summary in words."""
        from mlflowkit.adapters.trials import child

        return child.run_once(child.TrialWorker(plan, lambda: self.passes, self.engines, reach, device_clock))

    @cached_property
    def exporter(self) -> Exporter:
        from mlflowkit.adapters.onnx_exporter import OnnxExporter

        return OnnxExporter()

    @cached_property
    def tracker(self) -> Tracker:
        from mlflowkit.adapters.mlflow import MlflowTracker

        return MlflowTracker(self.state)

    def model_registry(
        self, section: HuggingfaceRegistry | OciRegistry, folder: Path, connections: Mapping[str, ConnectionSection]
    ) -> ModelRegistry:
        if section.kind == "oci":
            from mlflowkit.delivery.image.bundle_artifact import OciBundles

            return OciBundles(section.repository)
        return self.registry_huggingface(section, folder, connections)

    def registry_huggingface(
        self, section: HuggingfaceRegistry, folder: Path, connections: Mapping[str, ConnectionSection]
    ) -> ModelRegistry:
        from mlflowkit.adapters.model_registries.huggingface_registry import HubModels
        from mlflowkit.data_access.registry_sections import hub_connection

        return HubModels(section, hub_connection(section, connections), folder, self.state)

    @cached_property
    def tracker_target(self) -> RunTarget:
        from mlflowkit.pipeline.outbox.tracker_target import TrackerTarget

        return TrackerTarget(self.tracker, self)

    def run_targets(self, recipe: RecipeSchema, folder: Path) -> Sequence[RunTarget]:
        """The systems to which finished runs of a recipe in ``folder`` are delivered."""
        from mlflowkit.pipeline.outbox.registry_target import RegistryTarget
        from mlflowkit.pipeline.requirements import is_tracked

        targets: list[RunTarget] = [self.tracker_target] if is_tracked() else []
        for section in recipe.registries:
            if section.kind != "mlflow":
                targets.append(RegistryTarget(section, self.model_registry(section, folder, recipe.connections)))
        if recipe.data.write_back is not None:
            targets.append(self.write_back_target(recipe, folder, recipe.data.write_back))
        return targets

    def write_back_target(self, recipe: RecipeSchema, folder: Path, section: WriteBackSection) -> RunTarget:
        """What writes results back to the store of a recipe's data. Raises UsageError for one that has no branches."""
        from mlflowkit import __version__
        from mlflowkit.adapters.data_sources.lakefs_source import LakefsSource
        from mlflowkit.adapters.data_sources.lakefs_write_back import LakefsWriteBack
        from mlflowkit.data_access.remote_source import RemoteAccess

        source = recipe.data.source
        if not isinstance(source, LakefsSource):
            message = f"data.write_back needs a source of kind lakefs, not {source.kind}"
            raise UsageError(message, hint="mlkit validate RECIPE")
        return LakefsWriteBack(source, section, RemoteAccess(folder, self.state, recipe.connections), __version__)

    @cached_property
    def platform(self) -> Platform:
        from mlflowkit.adapters.ray_serve import RayServePlatform

        return RayServePlatform(
            self.state, runtime="mlflowkit.wiring:ServingRuntime", sidecars=("mlflowkit.processes.controller_main",)
        )

    def trainer(self, kind: str) -> Trainer:
        trainers = {
            "torch": self.trainer_torch,
            "sklearn": self.trainer_sklearn,
            "onnx": self.trainer_onnx,
            "bundle": self.trainer_bundle,
        }
        if kind not in trainers:
            raise UsageError(f"no trainer for model.kind {kind!r}", hint=f"use {' or '.join(trainers)}")
        return trainers[kind]()

    def trainer_torch(self) -> Trainer:
        from mlflowkit.adapters.ray_train import RayTorchTrainer

        return RayTorchTrainer(self.state)

    def trainer_sklearn(self) -> Trainer:
        from mlflowkit.adapters.sklearn_trainer import SklearnTrainer

        return SklearnTrainer()

    def trainer_onnx(self) -> Trainer:
        from mlflowkit.adapters.onnx_exporter.external_model import OnnxImporter

        return OnnxImporter()

    def trainer_bundle(self) -> Trainer:
        from mlflowkit.adapters.onnx_exporter.bundle_model import BundleImporter

        return BundleImporter()


def device_clock() -> DeviceClock[Any]:
    """The clock of the GPU. Raises EngineError where there is none."""
    from mlflowkit.adapters.cuda_clock import CudaClock

    return CudaClock()


class EnginesByRuntime:
    """The Engines port: delegates to the adapter of each engine's runtime, imported on demand."""

    def missing(self, engine: Engine) -> str:
        """Why this machine cannot run an engine, or ""."""
        return self._adapter(engine).missing(engine)

    def load(self, model: Path, engine: Engine, *, store: Path | None = None) -> Session:
        """Open a session. Raises EngineError."""
        return self._adapter(engine).load(model, engine, store=store)

    def _adapter(self, engine: Engine) -> Engines:
        if engine.runtime.startswith("ort-"):
            return engines_ort()
        return engines_tensorrt() if engine.runtime.startswith("tensorrt") else engines_torch()


def engines_ort() -> Engines:
    from mlflowkit.adapters.onnxruntime import OnnxRuntimeEngines

    return OnnxRuntimeEngines()


def engines_tensorrt() -> Engines:
    from mlflowkit.adapters.tensorrt import TensorRTEngines

    return TensorRTEngines()


def engines_torch() -> Engines:
    from mlflowkit.adapters.torch_runtime import TorchEngines

    return TorchEngines()


def runtime_ort() -> Runtime:
    from mlflowkit.adapters.onnxruntime import OnnxRuntime

    return OnnxRuntime()


class ServingRuntime:
    """The Runtime port of stages and gateways: runs a graph on the engine of its bundle."""

    def load(self, model: Path, *, threads: int = 1, engine: Engine | None = None) -> Session:
        """Open a session, by default on ONNX Runtime's CPU provider. Raises EngineError.

        ``threads`` is a minimum. Built engines are cached in `engine_store.default_store`.
        """
        if engine is None or engine.runtime == "ort-cpu":
            return runtime_ort().load(model, threads=threads, engine=engine)
        from mlflowkit.graphs.engine_store import default_store

        engine = engine.model_copy(update={"threads": max(threads, engine.threads)})
        return EnginesByRuntime().load(model, engine, store=default_store())
