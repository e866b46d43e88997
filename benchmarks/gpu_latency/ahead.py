"""Engines of TensorRT for RTX, built here for GPUs that are not here: seconds, bytes, and why none is run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_latency.children import Child, ChildError, once
from benchmarks.gpu_latency.models import Model
from benchmarks.gpu_latency.plan import PRECISIONS, cells
from mlflowkit.graphs import cuda_device

RUNTIME = "tensorrt-rtx"
TARGETS = ("89", "120")
"""Compute capabilities that engines are built for unless others are asked for: Ada and Blackwell, as on desks."""
Row = dict[str, Any]


def targets() -> tuple[tuple[str, ...], str]:
    """Compute capabilities that engines can be built for, and the reason where there are none."""
    from mlflowkit.adapters.tensorrt import library

    if reason := library.library_missing(RUNTIME):
        return (), reason
    return library.targets(RUNTIME), ""


def rows(model: Model, precisions: Sequence[str], wanted: Sequence[str], lacking: str, seconds: float) -> Iterator[Row]:
    """One row for each precision and compute capability. ``lacking`` says why none can be built, or is ""."""
    for precision in precisions:
        blank = {"model": model.name, "runtime": RUNTIME, "precision": precision}
        graph = {"reason": lacking} if lacking else _graph(model, precision, seconds)
        if graph["reason"]:
            yield blank | _figures("", "unavailable" if lacking else "failed", graph["reason"])
            continue
        left = list(wanted)
        while left:
            for row in _built(model, graph["path"], left, seconds):
                left = left[1:]
                yield blank | row


def _graph(model: Model, precision: str, seconds: float) -> Mapping[str, Any]:
    candidate = cells(0, [RUNTIME], [precision], 1)[0].candidate
    job = {"do": "prepare", "model": model.name, "candidate": candidate.model_dump(mode="json")}
    assert candidate.passes == list(PRECISIONS[precision])
    try:
        found: Mapping[str, Any] = once(job, seconds=seconds)
    except ChildError as error:
        return {"reason": str(error)}
    return found


def _built(model: Model, path: str, wanted: Sequence[str], seconds: float) -> Iterator[Row]:
    """What one process builds before it is done or has crashed; a crash is a row, and the last one."""
    with tempfile.TemporaryDirectory(prefix="mlkit-engines-") as store:
        job = {"do": "build", "model": model.name, "path": path, "targets": list(wanted), "store": store}
        with Child(job, {}) as child:
            for target in wanted:
                try:
                    said = child.answer(seconds)
                except ChildError as error:
                    yield _figures(target, "failed", str(error))
                    return
                if said["reason"]:
                    yield _figures(target, "failed", said["reason"])
                else:
                    yield _figures(target, "built", f"not run: {_why(target)}", said["seconds"], said["size"])


def _why(target: str) -> str:
    device = cuda_device.detect_gpu()
    if isinstance(device, str):
        return f"no GPU ({device})"
    return f"the GPU here has compute capability {device.capability}" if device.capability != target else "see its rows"


def _figures(target: str, status: str, reason: str, seconds: float | None = None, size: int | None = None) -> Row:
    return {"target": target, "status": status, "reason": reason, "build_seconds": seconds, "size_bytes": size}


def build(job: Mapping[str, Any], say: Callable[[Any], None]) -> None:
    """In the child: build for each target and forget the engine; {"seconds", "size", "reason"} a line."""
    import time

    from mlflowkit.adapters.tensorrt import RowCounts, TensorRTEngines
    from mlflowkit.errors import MlkitError

    engines = TensorRTEngines(RowCounts(1, 32, 128))
    for target in job["targets"]:
        begin = time.perf_counter()
        try:
            engine, _ = engines.build(Path(job["path"]), RUNTIME, target, Path(job["store"]))
        except MlkitError as error:
            say({"seconds": None, "size": None, "reason": str(error)})
            continue
        say({"seconds": round(time.perf_counter() - begin, 3), "size": engine.stat().st_size, "reason": ""})
        engine.unlink()
