"""TensorRT (10, 11) and TensorRT for RTX behind one adapter.

A graph's precision is in the graph (FP16 and BF16 casts, explicit Q/DQ) and is built strongly typed: what runs is what
was measured. TensorRT for RTX builds engines ahead of time, on a machine without a GPU, for compute capabilities that
are named; TensorRT builds on the GPU that runs them. Engines are kept in an `engine_store.EngineStore`, keyed by
everything that they depend on.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from mlflowkit.adapters.tensorrt import builder, library
from mlflowkit.adapters.tensorrt.shapes import Rows, dynamic_ranges
from mlflowkit.errors import EngineError, UsageError
from mlflowkit.graphs import cuda_device
from mlflowkit.graphs.candidates import Engine
from mlflowkit.graphs.engine_key import EngineKey, Shape
from mlflowkit.graphs.engine_store import EngineStore
from mlflowkit.graphs.onnx_file import checked_load, graph_digest
from mlflowkit.ports import Session

__all__ = ["Rows", "TensorRTEngines"]

ROWS = Rows(1, 32, 1024)
"""Least, usual and most rows of a request, where nothing else is said."""


class TensorRTEngines:
    """The Engines port for tensorrt and tensorrt-rtx, and the builder of engines ahead of time.

    ``rows`` and ``shapes`` say what engines are built for: the first says it of an input's first dimension where that
    is dynamic; the second of a whole input, and is needed where another dimension is dynamic. ``version_compatible``
    lets a later TensorRT run the engine (TensorRT only; such engines hold code, so they are trusted as libraries are).
    """

    def __init__(
        self,
        rows: Rows = ROWS,
        shapes: Mapping[str, tuple[Shape, Shape, Shape]] | None = None,
        *,
        version_compatible: bool = False,
    ) -> None:
        self.rows = rows
        self.shapes = dict(shapes or {})
        self.version_compatible = version_compatible

    def missing(self, engine: Engine) -> str:
        """Why this machine cannot run it, or "": the library, the GPU's driver, or a GPU that the library knows."""
        if reason := library.absent(engine.runtime):
            return reason
        device = cuda_device.gpu()
        if isinstance(device, str):
            ahead = "; engines can be built here ahead of time (mlkit engines build)"
            return device + ahead * library.builds_ahead(engine.runtime)
        known = library.targets(engine.runtime)
        if known and device.capability not in known:
            title = library.load(engine.runtime).title
            return f"{title} has no kernels for compute capability {device.capability}: it has {', '.join(known)}"
        return library.torch_missing()

    def load(self, model: Path, engine: Engine, *, store: Path | None = None) -> Session:
        """A session on this machine's GPU, from ``store`` when the engine is there, else built and kept there.

        Raises EngineError: what `missing` says, operators that TensorRT lacks (named, with their nodes), a dynamic
        dimension with no range, an engine that was cut short, altered or is another's, too little GPU memory.
        Raises StoreError when the disk refuses the engine.
        """
        if reason := self.missing(engine):
            raise EngineError(f"{model.name} cannot run on {engine.runtime}: {reason}", hint=library.HINT)
        from mlflowkit.adapters.tensorrt.session import TensorRTSession

        job = self._job(model, engine.runtime, cuda_device.here().capability)
        plan = _build(job) if store is None else _kept(job, EngineStore(store))[0]
        return TensorRTSession(job.vendor, plan, model, job.key.shapes, cuda_graph=engine.cuda_graph)

    def build(self, model: Path, runtime: str, target: str, store: Path) -> tuple[Path, bool]:
        """Build an engine for a compute capability unless ``store`` has it: its file, and whether it was built now.

        Raises EngineError and StoreError as `load` does, and UsageError for a target, shapes or a compatibility that
        the library or the graph does not have; no GPU is needed where the library builds ahead of time.
        """
        if reason := library.absent(runtime):
            raise EngineError(f"no {runtime} engine can be built: {reason}", hint=library.HINT)
        library.check_target(runtime, target)
        job = self._job(model, runtime, target)
        kept = EngineStore(store)
        _, built = _kept(job, kept)
        return kept.path(job.key), built

    def _job(self, model: Path, runtime: str, target: str) -> builder.Job:
        vendor = library.load(runtime)
        if self.version_compatible and library.builds_ahead(runtime):
            raise UsageError(f"{vendor.title} has no version-compatible engines", hint="leave --version-compatible out")
        proto = checked_load(model, weights=False)
        builder.refuse_strings(proto, model, vendor)
        ranges = dynamic_ranges(proto, self.rows, self.shapes, model.name)
        key = EngineKey(
            graph=graph_digest(model),
            runtime=runtime,
            target=target,
            driver="" if library.builds_ahead(runtime) else cuda_device.here().driver,
            libraries={vendor.module.__name__: vendor.version},
            shapes=ranges,
            precision="strongly typed" + ", version compatible" * self.version_compatible,
        )
        return builder.Job(vendor, model, key, ahead=library.builds_ahead(runtime), compatible=self.version_compatible)


def _kept(job: builder.Job, store: EngineStore) -> tuple[bytes, bool]:
    """The job's engine from the store, built by whoever comes first; and whether it was this call."""
    return store.get_or_build(job.key, partial(_build, job, store))


def _build(job: builder.Job, store: EngineStore | None = None) -> bytes:
    return builder.build(job, None if job.ahead else store)
