"""Rounds of candidates in turns until a caller's question is decided, within a budget of seconds and rounds.

A question is put at *looks*, whose numbers of rounds double. Look k spends the share 1 / (k (k + 1)) of the error rate;
the shares of all looks together are at most 1, so however often a gate looks, its verdict is wrong with the probability
of one look at a fixed sample (`spend`; alpha spending: Lan, DeMets, Biometrika 1983).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mlflowkit.bench.environment import MachineMoment, read_moment
from mlflowkit.bench.measure import BLOCK, LEAD_IN, BlockSource, measure_blocks
from mlflowkit.bench.sequential.disturbance import Disturbance, describe, observe

if TYPE_CHECKING:
    import numpy as np

FIRST_LOOK = 20
"""Rounds before the first look."""
STRETCH_ROUNDS = 10
STRETCH_SECONDS = 0.05
"""A stretch has as many rounds, and lasts as long, at least: counters of the machine have coarse clocks."""
WARM_UP_BLOCKS = 8
PILOT_REQUESTS = 3


@dataclass(frozen=True, slots=True)
class LatencyBudget:
    """When a measurement ends that has not decided."""

    seconds: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive rounds and what disturbed them."""

    first: int
    end: int
    disturbance: Disturbance


@dataclass(frozen=True, slots=True)
class TimedRounds:
    """What was measured so far: microseconds [rounds, requests of a block] of each candidate, in the same rounds."""

    blocks: Mapping[str, np.ndarray]
    stretches: tuple[Stretch, ...] = ()
    look: int = 1
    seconds: float = 0.0
    last: bool = False
    """Whether the budget ends with this look."""

    @property
    def rounds(self) -> int:
        return len(next(iter(self.blocks.values())))

    @property
    def disturbed(self) -> tuple[Stretch, ...]:
        return tuple(stretch for stretch in self.stretches if stretch.disturbance.causes)

    def undisturbed(self) -> TimedRounds:
        """The rounds of undisturbed stretches only; without stretches, since rounds between them are gone."""
        import numpy as np

        quiet = [stretch for stretch in self.stretches if not stretch.disturbance.causes]
        rows = np.array([index for stretch in quiet for index in range(stretch.first, stretch.end)], dtype=np.int64)
        return replace(self, blocks={name: blocks[rows] for name, blocks in self.blocks.items()}, stretches=())

    def describe_disturbance(self) -> str:
        """What disturbed the measurement, with its figures; "" if nothing did."""
        if not self.disturbed:
            return ""
        figures = describe([stretch.disturbance for stretch in self.stretches])
        rounds = sum(stretch.end - stretch.first for stretch in self.disturbed)
        return f"the machine was disturbed in {rounds:,} of {self.rounds:,} rounds: {figures}"


def spend(confidence: float, look: int) -> float:
    """The confidence at look ``look`` (from 1) of an interval that holds at all looks together with ``confidence``.

    >>> [round(spend(0.95, look), 4) for look in (1, 2, 3)]
    [0.975, 0.9917, 0.9958]
    """
    return 1 - (1 - confidence) / (look * (look + 1))


def block_for(seconds: float, request_seconds: float) -> int:
    """Requests of a block such that the first look takes at most half of the budget.

    >>> block_for(30, 1e-4), block_for(30, 0.05)
    (50, 15)
    """
    return max(1, min(BLOCK, int(seconds / (2 * FIRST_LOOK * max(request_seconds, 1e-9)))))


@dataclass
class SequentialMeasurement:
    """Measures candidates in turns until ``decided`` says so at a look, or the budget ends."""

    sources: Mapping[str, BlockSource]
    budget: LatencyBudget
    decided: Callable[[TimedRounds], bool]
    progress: Callable[[float, str], None]
    """Called with the used share of the budget, and a text."""
    single_threaded: bool = True
    """See `disturbance.observe`."""
    read: Callable[[], MachineMoment] = read_moment
    cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    clock: Callable[[], float] = time.monotonic
    """The clock of `MachineMoment.clock`."""
    _moment: MachineMoment | None = None
    _began: float = 0.0
    _next_look: int = FIRST_LOOK
    _first: int = 0
    _stretches: list[Stretch] = field(default_factory=list)
    _look: int = 0
    _taken: TimedRounds | None = None

    def run(self) -> TimedRounds:
        """Raises what a source raises."""
        size = block_for(self.budget.seconds, self._pilot())
        self.progress(0.0, "warming up")
        measure_blocks(
            self.sources,
            self.budget.rounds * size,
            size=size,
            lead_in=min(LEAD_IN, -(-size // 10)),
            warm_up=WARM_UP_BLOCKS,
            started=self._start,
            stop=self._after_round,
        )
        assert self._taken is not None
        return self._taken

    def _pilot(self) -> float:
        """Seconds that one request of every candidate takes together: the fastest of a few."""
        seconds = 0.0
        for source in self.sources.values():
            source(0, 1)  # the first one initialises
            seconds += min(source(0, PILOT_REQUESTS)) / 1e9
        return seconds

    def _start(self) -> None:
        self._moment = self.read()
        self._began = self._moment.clock

    def _after_round(self, blocks: Mapping[str, Sequence[Sequence[int]]]) -> Collection[str]:
        """All names when the measurement is over; looks at the end of a stretch."""
        import numpy as np

        assert self._moment is not None
        rounds = len(next(iter(blocks.values())))
        seconds = self.clock() - self._began
        last = rounds >= self.budget.rounds or seconds >= self.budget.seconds
        if not last and (rounds - self._first < STRETCH_ROUNDS or self._stretch_seconds(seconds) < STRETCH_SECONDS):
            return ()
        load = observe(self._moment, self.read(), self.cores, single_threaded=self.single_threaded)
        self._stretches.append(Stretch(self._first, rounds, load))
        self._first = rounds
        if last or rounds >= self._next_look:
            self._look, self._next_look = self._look + 1, 2 * rounds
            arrays = {name: np.array([list(block) for block in taken]) / 1000 for name, taken in blocks.items()}
            self._taken = TimedRounds(arrays, tuple(self._stretches), self._look, seconds, last)
            if self.decided(self._taken) or last:
                return tuple(blocks)
        self._report(rounds, seconds)
        self._moment = self.read()  # the look itself is in no stretch
        return ()

    def _stretch_seconds(self, seconds: float) -> float:
        assert self._moment is not None
        return self._began + seconds - self._moment.clock

    def _report(self, rounds: int, seconds: float) -> None:
        used = max(rounds / self.budget.rounds, seconds / self.budget.seconds)
        disturbed = sum(bool(stretch.disturbance.causes) for stretch in self._stretches)
        text = f"undecided after {rounds:,} rounds in {seconds:.1f} of at most {self.budget.seconds:g} s"
        if disturbed:
            text += f"; disturbed for {disturbed} of {len(self._stretches)} stretches"
        self.progress(min(1.0, used), text)
