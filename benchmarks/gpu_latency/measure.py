"""All candidates of one model and batch size, each in its own process, measured in turns; and the rows that come of it.

A row has the keys of ``mlkit bench --json`` and, beside them, ``model``, ``precision``, ``intervals`` of all quantiles,
``start_ms`` (as cold_start_ms, from the start of the process), ``difference`` (of the answers from the first candidate
in FP32, relative, in the Euclidean norm), ``device`` ("cuda" or "cpu": where it would run, or ran) and, on a GPU,
``gpu_memory_bytes`` and ``copies``.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_latency.children import Child, ChildError, Served, once
from benchmarks.gpu_latency.models import Model
from benchmarks.gpu_latency.plan import BUILT, Cell, Effort, cells, sampling
from mlflowkit.adapters.tensorrt import library
from mlflowkit.bench.analysis import QUANTILES, quantile, quantile_interval
from mlflowkit.bench.environment import read_moment
from mlflowkit.bench.measure import Samples, measure_blocks
from mlflowkit.bench.validity import check_adequacy, disturbances, notes, throttling
from mlflowkit.graphs import cuda_device
from mlflowkit.system.machine import cores
from mlflowkit.wiring import Wiring

KEYS = {"latency_p50": "p50_us", "latency_p95": "p95_us", "latency_p99": "p99_us"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """What is asked for. ``seconds`` is how long one child may stay silent."""

    batches: Sequence[int]
    runtimes: Sequence[str]
    precisions: Sequence[str]
    threads: int
    effort: Effort = field(default_factory=Effort)
    seconds: float = 300.0


@dataclass
class Standing:
    """One candidate of a group on its way to a row."""

    cell: Cell
    row: Row
    served: Served | None = None
    answers: Mapping[str, np.ndarray] = field(default_factory=dict)
    request: float = 0.0

    def stop(self, status: str, reason: str) -> None:
        """There will be no figures, for a reason."""
        self.served = None
        self.row |= {"status": status, "reason": reason}


@dataclass(frozen=True)
class Measured:
    """Rows of one model and batch size; the samples of those that have figures [blocks, requests], by name."""

    rows: list[Row]
    samples: Mapping[str, np.ndarray]
    conditions: list[Row]
    """The machine before and after: clocks, load, and temperature and clocks of a GPU."""


def measured(model: Model, suite: Suite) -> Iterator[Measured]:
    """One group for each batch size, in their order; a candidate that was too slow is not asked with larger ones."""
    listed = cells(model.heads, suite.runtimes, suite.precisions, suite.threads)
    lacking = {cell.candidate.name: missing(model, cell) for cell in listed}
    able = [
        cell
        for cell in listed
        if not lacking[cell.candidate.name] and not all(_left_out(cell, n, suite.effort) for n in suite.batches)
    ]
    graphs = {cell.candidate.name: _prepared(model, cell, suite) for cell in able}
    pace: dict[str, float] = {}
    for batch in suite.batches:
        group = [Standing(cell, blank(model, cell, batch)) for cell in listed]
        for one in group:
            _before(one, lacking, graphs, pace, batch, suite.effort)
        with tempfile.TemporaryDirectory(prefix="mlkit-gpu-latency-") as place:
            samples: dict[str, np.ndarray] = {}
            before = read_moment().to_json()
            for on_gpu in (True, False):
                side = [one for one in group if not one.row["status"] and uses_gpu(one.cell) == on_gpu]
                samples |= _side(model, batch, side, graphs, suite, Path(place))
        for one in group:
            if one.request:
                pace[one.cell.candidate.name] = one.request / batch
        _differences(group)
        conditions = {"model": model.name, "batch": batch, "before": before, "after": read_moment().to_json()}
        yield Measured([one.row for one in group], samples, [conditions])


def blank(model: Model, cell: Cell, batch: int) -> Row:
    """A row without figures; a status comes later."""
    candidate = cell.candidate
    return {
        "model": model.name,
        "name": candidate.name,
        "runtime": cell.runtime,
        "precision": cell.precision,
        "device": "cuda" if uses_gpu(cell) else "cpu",
        "batch": batch,
        "samples": 0,
        **dict.fromkeys(("p50_us", "p95_us", "p99_us", "interval", "intervals", "throughput")),
        "status": "",
        "reason": "",
        "passes": [one.model_dump(mode="json") for one in candidate.passes],
        "engine": candidate.engine.model_dump(mode="json"),
        **dict.fromkeys(("size_bytes", "memory_bytes", "build_seconds", "cold_start_ms", "start_ms", "difference")),
        **dict.fromkeys(("gpu_memory_bytes", "copies")),
        "notes": [],
    }


def uses_gpu(cell: Cell) -> bool:
    """Whether a candidate's requests run on the GPU: torch is measured there where there is one, and not elsewhere."""
    torch_here = cell.runtime.startswith("torch") and bool(cuda_device.missing())
    return cell.runtime != "ort-cpu" and not torch_here


def missing(model: Model, cell: Cell) -> str:
    """Why this machine cannot run a candidate, or "". Never another provider in its stead."""
    if not cell.runtime.startswith("torch"):
        return Wiring(Path()).engines.missing(cell.candidate.engine)
    if not model.network:
        return f"{model.name} is a graph only: its columns of strings have no form in torch"
    if uses_gpu(cell):
        return library.torch_missing()
    if cell.runtime == "torch-compile" and not shutil.which("g++"):
        return "torch.compile for a processor needs a C++ compiler, and there is no g++ on PATH"
    return ""


def _prepared(model: Model, cell: Cell, suite: Suite) -> dict[str, Any]:
    """The candidate's graph, made in a child: {"path", "seconds", "size", "reason", "failed"}."""
    if cell.runtime.startswith("torch"):
        return {"path": "", "seconds": None, "size": None, "reason": "", "failed": False}
    job = {"do": "prepare", "model": model.name, "candidate": cell.candidate.model_dump(mode="json")}
    try:
        found: dict[str, Any] = once(job, seconds=suite.seconds, threads=cores())
    except ChildError as error:
        return {"reason": str(error), "failed": True}
    return {**found, "failed": False}


def _before(
    one: Standing, lacking: Mapping[str, str], graphs: Mapping[str, Mapping[str, Any]], pace: Mapping[str, float],
    batch: int, effort: Effort,
) -> None:  # fmt: skip
    """Say what is known without starting a candidate."""
    name = one.cell.candidate.name
    if lacking[name]:
        return one.stop("unavailable", lacking[name])
    if reason := _left_out(one.cell, batch, effort):
        return one.stop("skipped", reason)
    graph = graphs[name]
    if graph["reason"]:
        return one.stop("failed" if graph["failed"] else "unavailable", graph["reason"])
    one.row |= {"size_bytes": graph["size"], "build_seconds": graph["seconds"]}
    if pace.get(name, 0.0) * batch > 2 * effort.longest:
        expected = f"about {pace[name] * batch:.1f} s by its smaller batches"
        return one.stop("skipped", f"a request would take {expected}; at most {effort.longest:g} s are measured here")
    return None


def _left_out(cell: Cell, batch: int, effort: Effort) -> str:
    """Why a candidate that this machine could run is not worth its time, or ""."""
    compiled = cell.runtime == "torch-compile"
    if compiled and not effort.thorough:
        return "compiling takes longer than a quick pass: leave --quick out"
    if uses_gpu(cell):
        return ""
    if cell.precision == "fp16":
        return _half(compiled, batch, effort)
    if compiled and batch not in effort.aside:
        return f"torch.compile for a processor, which compiles anew for each batch size, is measured {_at(effort)}"
    return ""


def _half(compiled: bool, batch: int, effort: Effort) -> str:
    """Why FP16 on a processor is left out, or "": it is computed through FP32, so it only shows what that costs."""
    if not effort.thorough:
        return "FP16 on a processor, which computes it through FP32, is not in a quick pass: leave --quick out"
    if compiled:
        return "a processor computes FP16 through FP32"
    return "" if batch in effort.aside else f"a processor computes FP16 through FP32; it is measured {_at(effort)}"


def _at(effort: Effort) -> str:
    return f"at batch {', '.join(map(str, effort.aside))} only (--aside)"


def _side(
    model: Model, batch: int, side: Sequence[Standing], graphs: Mapping[str, Mapping[str, Any]], suite: Suite,
    place: Path,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Start candidates of one device one after the other, then measure those that stand in turns."""
    with ExitStack() as stack:
        for one in side:
            _say(f"{model.name} batch {batch} {one.cell.candidate.name}")
            try:
                _start(one, model, batch, graphs[one.cell.candidate.name]["path"], suite, place, stack)
            except ChildError as error:
                one.stop("failed", str(error))
        taken = _in_turns([one for one in side if one.served is not None], suite.effort)
        for one in side:
            if one.cell.candidate.name in taken:
                _fill(one, taken[one.cell.candidate.name], batch)
        return {name: samples.microseconds for name, samples in taken.items()}


def _start(one: Standing, model: Model, batch: int, path: str, suite: Suite, place: Path, stack: ExitStack) -> None:
    """Build it where it is to be built, load it anew, and ask it once or twice. Raises ChildError."""
    cell, stem = one.cell, one.cell.candidate.name.replace(" ", "-")  # compilers do not bear spaces in paths
    store, answers = place / stem, place / f"{stem}.npz"
    job = {
        "do": "serve",
        "model": model.name,
        "candidate": cell.candidate.model_dump(mode="json"),
        "precision": cell.precision,
        "batch": batch,
        "path": path,
        "store": str(store),
        "answers": str(answers),
        "gpu": uses_gpu(cell),
    }
    variables = {"OMP_NUM_THREADS": str(suite.threads), "TORCHINDUCTOR_CACHE_DIR": str(store / "inductor")}
    if cell.runtime in BUILT:
        with Child(job, variables) as child:
            built = Served(child, suite.seconds)
        one.row["build_seconds"] = round((one.row["build_seconds"] or 0.0) + built.cold_start_ms / 1000, 3)
    served = Served(stack.enter_context(Child(job, variables)), suite.seconds)
    one.row |= {"cold_start_ms": round(served.cold_start_ms, 2), "start_ms": round(served.start_ms, 1)}
    with np.load(answers, allow_pickle=False) as file:
        one.answers = {name: file[name] for name in file.files}
    one.request = _request(served)
    if one.request > suite.effort.longest:
        one.stop(
            "skipped", f"a request takes {one.request:.1f} s; at most {suite.effort.longest:g} s are measured here"
        )
    else:
        one.served = served


def _request(served: Served) -> float:
    """Seconds of a request: the quickest of two, and of fifty more where they are quick."""
    seconds = min(served.block(0, 2)) / 1e9
    return min(seconds, *(time / 1e9 for time in served.block(2, 50))) if seconds < 0.02 else seconds


def _in_turns(standing: list[Standing], effort: Effort) -> dict[str, Samples]:
    """Samples of all that last; one that fails is taken out, and the others are measured anew without it."""
    while standing:
        plan = sampling([one.request for one in standing], effort)
        sources = {one.cell.candidate.name: one.served.block for one in standing if one.served is not None}
        before = read_moment()
        try:
            taken = measure_blocks(
                {name: _named(name, block) for name, block in sources.items()},
                plan.samples, size=plan.size, lead_in=plan.lead_in, warm_up=plan.warm_up,
            )  # fmt: skip
        except LostError as error:
            for one in standing:
                if one.cell.candidate.name == error.name:
                    one.stop("failed", str(error))
            standing = [one for one in standing if one.served is not None]
            continue
        blocks = {name: samples.microseconds for name, samples in taken.items()}
        shared = [
            words
            for words in (throttling(blocks), *disturbances([before, read_moment()], os.cpu_count() or 1))
            if words
        ]
        for one in standing:
            one.row["notes"] = [*notes(taken[one.cell.candidate.name]), *shared]
        return taken
    return {}


class LostError(Exception):
    """A candidate failed while it was measured."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


def _named(name: str, block: Any) -> Any:
    def source(start: int, count: int) -> Any:
        try:
            return block(start, count)
        except ChildError as error:
            raise LostError(name, str(error)) from error

    return source


def _fill(one: Standing, samples: Samples, batch: int) -> None:
    """Figures of a candidate that was measured; an interval only where there are samples enough for it."""
    blocks = samples.microseconds
    intervals = {
        key: [round(end, 1) for end in quantile_interval(blocks, QUANTILES[name])]
        if check_adequacy(int(blocks.size), QUANTILES[name]).sufficient
        else None
        for name, key in KEYS.items()
    }
    one.row |= {key: round(quantile(blocks, QUANTILES[name]), 1) for name, key in KEYS.items()}
    one.row |= {
        "samples": int(blocks.size),
        "intervals": intervals,
        "interval": intervals["p50_us"],
        "throughput": round(batch * blocks.size / float(blocks.sum()) * 1e6, 1),
        "status": "ok",
    }
    try:
        assert one.served is not None
        one.row |= one.served.end()
    except ChildError as error:
        one.row["notes"] = [*one.row["notes"], f"after the last request: {error}"]


def _differences(group: Sequence[Standing]) -> None:
    """How far answers are from those of the first candidate in FP32."""
    first = next((one for one in group if one.cell.precision == "fp32" and one.answers), None)
    for one in group:
        if first is not None and one.answers:
            one.row["difference"] = difference(one.answers, first.answers)


def difference(answers: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> float | None:
    """Euclidean norm of what differs over that of the reference, of all outputs of floats that both have.

    >>> difference({"a": np.array([3.0, 4.0])}, {"a": np.array([3.0, 0.0]), "label": np.array(["x"])})
    1.3333333333333333
    """
    shared = [name for name in reference if name in answers and reference[name].dtype.kind == "f"]
    if not shared:
        return None
    ours, theirs = (np.concatenate([side[name].ravel() for name in shared]) for side in (answers, reference))
    return float(np.linalg.norm(ours.astype(np.float64) - theirs) / np.linalg.norm(theirs.astype(np.float64)))


def _say(words: str) -> None:
    print(f"  {words}", file=sys.stderr, flush=True)
