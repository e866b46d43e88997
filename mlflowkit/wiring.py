"""From a recipe and a state folder to adapters: the only file that imports adapters, each on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mlflowkit.errors import UsageError

if TYPE_CHECKING:
    from mlflowkit.bench.timings import DeviceClock
    from mlflowkit.graphs.candidates import Candidate, Engine
    from mlflowkit.ports import (
        Checker,
        EngineBuilder,
        Engines,
        Exporter,
        Passes,
        Platform,
        Profiler,
        Runtime,
        Search,
        Session,
        Tables,
        Tracker,
        Trainer,
        Trials,
    )


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
        """What builds engines for least, usual and most rows, and for shapes of whole inputs. Raises UsageError."""
        from mlflowkit.adapters.tensorrt import Rows, TensorRTEngines

        return TensorRTEngines(Rows.of(*rows), shapes, version_compatible=version_compatible)

    @cached_property
    def trials(self) -> Trials:
        from mlflowkit.adapters.trials import ProcessTrials

        return ProcessTrials(self.state)

    def search(self, candidates: Sequence[Candidate], trials: int, seed: int) -> Search:
        """A search by Optuna. Raises UsageError where it is not installed."""
        from importlib.util import find_spec

        if find_spec("optuna") is None:
            raise UsageError(
                f"{len(candidates)} candidates are more than optimize.search.trials, and Optuna is not installed",
                hint="pip install 'mlflowkit[search]', or write optimize.search.method: exhaustive",
            )
        from mlflowkit.adapters.optuna import OptunaSearch

        return OptunaSearch(candidates, trials, seed)

    def trial_child(self, plan: Mapping[str, Any], answers: BinaryIO, reach: Callable[[str, str], None]) -> None:
        """Be the process of a trial (see adapters.trials.child)."""
        from mlflowkit.adapters.trials import child

        child.serve(child.Child(plan, lambda: self.passes, self.engines, reach, device_clock), answers)

    def trial_once(self, plan: Mapping[str, Any], reach: Callable[[str, str], None]) -> str:
        """Build, ask and time one candidate in this process; returns in words how it went."""
        from mlflowkit.adapters.trials import child

        return child.once(child.Child(plan, lambda: self.passes, self.engines, reach, device_clock))

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

        return RayServePlatform(
            self.state, runtime="mlflowkit.wiring:ServingRuntime", companions=("mlflowkit.processes.controller_main",)
        )

    def trainer(self, kind: str) -> Trainer:
        if kind == "torch":
            from mlflowkit.adapters.ray_train import RayTorchTrainer

            return RayTorchTrainer(self.state)
        if kind == "sklearn":
            from mlflowkit.adapters.sklearn_trainer import SklearnTrainer

            return SklearnTrainer()
        if kind == "onnx":
            from mlflowkit.adapters.onnx_exporter.external_model import OnnxImporter

            return OnnxImporter()
        raise UsageError(f"no trainer for model.kind {kind!r}", hint="use torch, sklearn or onnx")


def device_clock() -> DeviceClock[Any]:
    """The clock of the GPU. Raises EngineError where there is none."""
    from mlflowkit.adapters.cuda_clock import CudaClock

    return CudaClock()


class EnginesByRuntime:
    """The Engines port: each runtime's own adapter, imported when a candidate asks for it."""

    def missing(self, engine: Engine) -> str:
        """Why this machine cannot run an engine, or ""."""
        return self._adapter(engine).missing(engine)

    def load(self, model: Path, engine: Engine, *, store: Path | None = None) -> Session:
        """A session over a graph. Raises EngineError."""
        return self._adapter(engine).load(model, engine, store=store)

    def _adapter(self, engine: Engine) -> Engines:
        if engine.runtime.startswith("ort-"):
            from mlflowkit.adapters.onnxruntime import OnnxRuntimeEngines

            return OnnxRuntimeEngines()
        if engine.runtime.startswith("tensorrt"):
            from mlflowkit.adapters.tensorrt import TensorRTEngines

            return TensorRTEngines()
        from mlflowkit.adapters.torch_runtime import TorchEngines

        return TorchEngines()


class ServingRuntime:
    """The Runtime port of stages and gateways: a graph runs on the engine that its bundle asks for."""

    def load(self, model: Path, *, threads: int = 1, engine: Engine | None = None) -> Session:
        """A session; without ``engine`` on ONNX Runtime and the CPU. Raises EngineError.

        The larger number of threads counts: ``threads`` is a floor. Engines that are built come from, and go to,
        `engine_store.default_store`.
        """
        if engine is None or engine.runtime == "ort-cpu":
            from mlflowkit.adapters.onnxruntime import OnnxRuntime

            return OnnxRuntime().load(model, threads=threads, engine=engine)
        from mlflowkit.graphs.engine_store import default_store

        asked = engine.model_copy(update={"threads": max(threads, engine.threads)})
        return EnginesByRuntime().load(model, asked, store=default_store())
