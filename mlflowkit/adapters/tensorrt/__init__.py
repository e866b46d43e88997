"""TensorRT (10, 11) and TensorRT for RTX behind one adapter.

Precision is part of the graph (FP16 and BF16 casts, explicit Q/DQ), and networks are strongly typed: the served engine
is the measured one. TensorRT for RTX builds engines ahead of time for named compute capabilities, without a GPU;
TensorRT builds on the GPU that runs them. An `engine_store.EngineStore` caches engines by everything they depend on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path

from mlflowkit.adapters.tensorrt import builder, library
from mlflowkit.adapters.tensorrt.shapes import RowCounts, dynamic_ranges
from mlflowkit.errors import EngineError, UsageError
from mlflowkit.graphs import cuda_device
from mlflowkit.graphs.candidates import Engine
from mlflowkit.graphs.engine_key import EngineKey, Shape
from mlflowkit.graphs.engine_store import EngineStore
from mlflowkit.graphs.onnx_file import graph_digest, load_checked
from mlflowkit.ports import Session

__all__ = ["RowCounts", "TensorRTEngines"]


@dataclass(frozen=True)
class TensorRTEngines:
    """The Engines port for tensorrt and tensorrt-rtx, and the builder of engines ahead of time.

    ``rows`` is the range of dynamic first dimensions; ``shapes`` gives whole input shapes, required where another
    dimension is dynamic. ``version_compatible`` lets a later TensorRT run the engine (TensorRT only; such engines
    contain code and must be trusted like libraries).
    """

    rows: RowCounts = RowCounts(1, 32, 1024)  # noqa: RUF009 - a NamedTuple
    shapes: Mapping[str, tuple[Shape, Shape, Shape]] = field(default_factory=dict)
    _: KW_ONLY
    version_compatible: bool = False

    def missing(self, engine: Engine) -> str:
        """Why this machine cannot run ``engine``, or "": no library, driver, or supported GPU."""
        if reason := library.library_missing(engine.runtime):
            return reason
        device = cuda_device.detect_gpu()
        if isinstance(device, str):
            note = "; engines can be built here ahead of time (mlkit engines build)"
            return device + note * library.builds_ahead(engine.runtime)
        supported = library.targets(engine.runtime)
        if supported and device.capability not in supported:
            title = library.load(engine.runtime).title
            return f"{title} has no kernels for compute capability {device.capability}: it has {', '.join(supported)}"
        return library.torch_missing()

    def load(self, model: Path, engine: Engine, *, store: Path | None = None) -> Session:
        """Open a session on this machine's GPU with the engine of ``store``, built and stored there if absent.

        Raises EngineError: the reason of `missing`, operators that TensorRT lacks (with their nodes), a dynamic
        dimension without a range, a truncated, altered or foreign engine, too little GPU memory. Raises StoreError
        when the engine cannot be written.
        """
        if reason := self.missing(engine):
            raise EngineError(f"{model.name} cannot run on {engine.runtime}: {reason}", hint=library.HINT)
        from mlflowkit.adapters.tensorrt.session import TensorRTSession

        job = self._build_job(model, engine.runtime, cuda_device.require_gpu().capability)
        plan = builder.build(job, None) if store is None else _get_or_build(job, EngineStore(store))[0]
        return TensorRTSession(job.library, plan, model, job.key.shapes, cuda_graph=engine.cuda_graph)

    def build(self, model: Path, runtime: str, target: str, store: Path) -> tuple[Path, bool]:
        """Build an engine for a compute capability unless ``store`` has it; returns its file and whether it was built.

        Raises EngineError and StoreError as `load` does, and UsageError for a target, shapes or a compatibility that
        the library or the graph does not support. Needs no GPU where the library builds ahead of time.
        """
        if reason := library.library_missing(runtime):
            raise EngineError(f"no {runtime} engine can be built: {reason}", hint=library.HINT)
        library.check_target(runtime, target)
        job = self._build_job(model, runtime, target)
        engines = EngineStore(store)
        _, built = _get_or_build(job, engines)
        return engines.path(job.key), built

    def _build_job(self, model: Path, runtime: str, target: str) -> builder.EngineBuildJob:
        tensorrt = library.load(runtime)
        if self.version_compatible and library.builds_ahead(runtime):
            raise UsageError(f"{tensorrt.title} has no version-compatible engines", hint="omit --version-compatible")
        proto = load_checked(model, weights=False)
        builder.refuse_strings(proto, model, tensorrt)
        ranges = dynamic_ranges(proto, self.rows, self.shapes, model.name)
        key = EngineKey(
            graph=graph_digest(model),
            runtime=runtime,
            target=target,
            driver="" if library.builds_ahead(runtime) else cuda_device.require_gpu().driver,
            libraries={tensorrt.module.__name__: tensorrt.version},
            shapes=ranges,
            precision="strongly typed" + ", version compatible" * self.version_compatible,
        )
        return builder.EngineBuildJob(
            tensorrt, model, key, ahead=library.builds_ahead(runtime), compatible=self.version_compatible
        )


def _get_or_build(job: builder.EngineBuildJob, store: EngineStore) -> tuple[bytes, bool]:
    """The job's engine from the store, and whether this call built it."""
    return store.get_or_build(job.key, partial(builder.build, job, None if job.ahead else store))
