"""A machine whose clock, load and counters a test sets: measurements on it depend on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlflowkit.bench.environment import MachineMoment
from mlflowkit.bench.nvml import GpuReadings
from mlflowkit.bench.sequential.sampling import LatencyBudget, SequentialMeasurement, TimedRounds

CORES = 2
Requests = Callable[[np.random.Generator, int], np.ndarray]
"""Draws the processor seconds of so many requests."""
SLICE = 3e-3
"""Seconds of processor time before a process that shares its core has to wait."""


@dataclass
class FakeMachine:
    """Two cores on which ``others(now)`` further processes want to run."""

    others: Callable[[float], float] = lambda now: 0.0
    seed: int = 0
    hidden: bool = False
    """Whether the system hides its counters, as in some containers: only the thread's own processor time is known."""
    clock: float = 0.0
    busy: float = 0.0
    thread: float = 0.0
    pressure: float = 0.0
    _used: float = 0.0
    _generator: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(self.seed)

    def source(self, request_seconds: Requests) -> Callable[[int, int], Sequence[int]]:
        """A candidate whose requests take so much processor time; it waits when its slice is used up."""
        return lambda start, count: [round(seconds * 1e9) for seconds in self._serve(request_seconds, count)]

    def _serve(self, request_seconds: Requests, count: int) -> list[float]:
        own = request_seconds(self._generator, count)
        others = self.others(self.clock)
        contended = others + 1 > CORES
        waited = np.zeros(count)
        if contended:
            ends = self._used + np.cumsum(own)
            slices = np.diff(np.floor(ends / SLICE), prepend=np.floor(self._used / SLICE))
            waited = slices * SLICE * (others / CORES) * self._generator.exponential(size=count)
            self._used = float(ends[-1])
        wall = own + waited
        self.thread += float(own.sum())
        self.clock += float(wall.sum())
        self.busy += float(wall.sum()) * min(CORES, others + 1)
        self.pressure += float(wall.sum()) if contended else 0.0
        return list(wall)

    def read(self) -> MachineMoment:
        self.clock += 1e-4
        self.thread += 1e-4
        return MachineMoment(
            mhz=None, load=None, busy_ticks=round(self.busy * 100), stolen_ticks=0, throttled_seconds=0.0,
            gpus=GpuReadings(None, "no driver"), clock=self.clock, thread_seconds=self.thread, preempted=0,
            running=None if self.hidden else round(self.others(self.clock)) + 1,
            pressure_seconds=None if self.hidden else self.pressure,
        )  # fmt: skip

    def measure(
        self,
        sources: dict[str, Callable[[int, int], Sequence[int]]],
        decided: Callable[[TimedRounds], bool],
        budget: LatencyBudget,
        progress: Callable[[float, str], None] = lambda used, text: None,
    ) -> TimedRounds:
        measurement = SequentialMeasurement(
            sources, budget, decided, progress, read=self.read, cores=CORES, clock=lambda: self.clock
        )
        return measurement.run()
