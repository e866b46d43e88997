"""The grid: which candidates a model is measured with. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlflowkit.graphs.candidates import Candidate, Engine, Float16, Fuse, Int8, Pass

RUNTIMES = ("ort-cpu", "ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx", "torch", "torch-compile")
PRECISIONS: Mapping[str, tuple[Pass, ...]] = {"fp32": (), "fp16": (Float16(),), "int8": (Int8(per_channel=True),)}
CPU_INT8: tuple[Pass, ...] = (Int8(form="cpu", per_channel=True),)
"""INT8 on a processor: the form that its kernels are written for, which TensorRT refuses."""
BATCHES = (1, 8, 32, 128)

FUSED = ("ort-cpu", "ort-cuda")
"""Runtimes whose kernels ORT's transformer fusions are written for."""
CAPTURED = ("ort-cuda", "tensorrt", "tensorrt-rtx")
"""Runtimes that can replay a captured CUDA graph: what matters where a request is shorter than its kernel launches."""
BUILT = ("ort-tensorrt", "tensorrt", "tensorrt-rtx")
"""Runtimes that keep what they build: once for the time it takes, then from what was kept, as a service does."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A candidate in the precision that it was made for."""

    candidate: Candidate
    precision: str

    @property
    def runtime(self) -> str:
        """Of the candidate's engine."""
        return self.candidate.engine.runtime


def cells(heads: int, runtimes: Sequence[str], precisions: Sequence[str], threads: int) -> list[Cell]:
    """All candidates of a model with that many attention heads (0: none), in the order in which they are preferred.

    torch baselines are the Python model in FP32 and FP16: they have no static INT8.

    >>> [cell.candidate.name for cell in cells(12, ["ort-cpu", "torch"], ["fp32", "int8"], 1)]
    ['ort-cpu fp32', 'ort-cpu fp32 fused', 'ort-cpu int8', 'torch fp32']
    """
    return list(_cells(heads, runtimes, precisions, threads))


def _cells(heads: int, runtimes: Sequence[str], precisions: Sequence[str], threads: int) -> Iterator[Cell]:
    for runtime in runtimes:
        for precision in precisions:
            if runtime.startswith("torch") and precision == "int8":
                continue
            engine = Engine.model_validate({"runtime": runtime, "threads": threads})
            passes = CPU_INT8 if (runtime, precision) == ("ort-cpu", "int8") else PRECISIONS[precision]
            yield _cell(f"{runtime} {precision}", passes, engine, precision)
            if heads and runtime in FUSED and precision != "int8":
                yield _cell(f"{runtime} {precision} fused", (Fuse(heads=heads), *passes), engine, precision)
            if runtime in CAPTURED and precision == "fp16":
                captured = engine.model_copy(update={"cuda_graph": True})
                yield _cell(f"{runtime} {precision} CUDA graph", passes, captured, precision)


def _cell(name: str, passes: Sequence[Pass], engine: Engine, precision: str) -> Cell:
    return Cell(Candidate(name=name, passes=list(passes), engine=engine), precision)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much measuring a group of candidates may cost.

    seconds    for all candidates of one model and batch together
    longest    seconds that a request may take; a candidate whose requests take longer is not measured
    most       samples of a candidate
    fewest     samples of a candidate, however long they take
    thorough   whether torch.compile is waited for, and FP16 measured on a processor, which computes it through FP32
    aside      batch sizes at which those two are measured on a processor; on a GPU they are at all sizes
    """

    seconds: float = 3.0
    longest: float = 2.0
    most: int = 2000
    fewest: int = 8
    thorough: bool = True
    aside: tuple[int, ...] = (1,)


@dataclass(frozen=True, slots=True)
class Sampling:
    """What `mlflowkit.bench.measure.measure_blocks` is asked for."""

    samples: int
    size: int
    lead_in: int
    warm_up: int


def sampling(requests: Sequence[float], effort: Effort) -> Sampling:
    """How to sample candidates whose requests take so many seconds each.

    Blocks of a hundredth of a second at least or of one request, at least eight of them: the intervals draw blocks.

    >>> sampling([20e-6, 50e-6], Effort())
    Sampling(samples=2000, size=50, lead_in=5, warm_up=40)
    >>> sampling([1.0, 0.7], Effort())
    Sampling(samples=8, size=1, lead_in=0, warm_up=2)
    """
    together, slowest = sum(requests), max(requests)
    samples = max(effort.fewest, min(effort.most, int(effort.seconds / together)))
    size = max(1, min(50, int(0.1 / slowest), samples // 8))
    rounds = effort.seconds / (together * size)
    return Sampling(samples, size, min(5, size // 2), max(2, min(40, int(rounds / 4))))
