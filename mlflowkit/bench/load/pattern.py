"""Load patterns: callers that each wait for their reply (closed loop), or independent arrivals (open loop)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

import numpy as np

from mlflowkit.bench.analysis import quantile
from mlflowkit.bench.load.open_loop import OpenLoad, open_load
from mlflowkit.bench.measure import BLOCK, LEAD_IN, BlockSource, Samples, gc_disabled, measure_blocks
from mlflowkit.bench.validity import percentile
from mlflowkit.values import Json

MIN_CALLER_REQUESTS = 16
"""Minimum requests of each caller in a block: callers begin a block together and end it apart."""
MIN_ARRIVALS = 20
"""Minimum arrivals in a stretch: a shorter one ends before requests could queue."""
STRETCHES = 2
"""Stretches of each start if intervals rest on starts: the longer they are, the more can queue."""


@dataclass(frozen=True, slots=True)
class LoadPattern:
    """Closed loop of ``callers``, or open loop of ``rate`` arrivals a second that ``callers`` serve."""

    callers: int = 1
    rate: float | None = None

    @property
    def label(self) -> str:
        """
        >>> LoadPattern().label, LoadPattern(8).label, LoadPattern(2, 150.0).label
        ('one caller', '8 callers', '150 a second on 2 callers')
        """
        callers = "one caller" if self.callers == 1 else f"{self.callers} callers"
        return callers if self.rate is None else f"{self.rate:g} a second on {callers}"

    def to_json(self) -> dict[str, Json]:
        return {"kind": "closed" if self.rate is None else "open", "callers": self.callers, "rate": self.rate}

    @property
    def block(self) -> int:
        """Requests of one candidate per turn, in a closed loop."""
        return max(BLOCK, MIN_CALLER_REQUESTS * self.callers) if self.callers > 1 else BLOCK


class LoadSource(Protocol):
    """Target of either load pattern, such as `ports.Trial`."""

    def block(self, start: int, count: int) -> Sequence[int]:
        """See `measure.BlockSource`."""

    def offered(self, rate: float, count: int, seed: int) -> np.ndarray:
        """Send ``count`` requests that arrive at ``rate`` a second; returns the times of `open_loop.offer_marked`."""


@dataclass(frozen=True, slots=True)
class LoadSamples:
    """Samples of one start of one candidate; in an open loop, block i of ``samples`` is stretch i."""

    samples: Samples
    stretches: tuple[OpenLoad, ...] = ()


def take_samples(
    sources: Mapping[str, LoadSource], load: LoadPattern, samples: int, *, stretches: int, seed: int,
    progress: Callable[[float], None],
) -> dict[str, LoadSamples]:  # fmt: skip
    """Measure every source in turns, at least ``samples`` requests each; raises what a source raises.

    The requests of an open loop come in ``stretches``, between which the other sources have their turns; all sources
    have the same arrivals in a round.
    """
    blocks: dict[str, BlockSource] = {name: source.block for name, source in sources.items()}
    if load.rate is None:
        count, lead_in = max(samples, 2 * load.block), max(LEAD_IN, load.callers)
        closed = measure_blocks(blocks, count, size=load.block, lead_in=lead_in, progress=progress)
        return {name: LoadSamples(source_samples) for name, source_samples in closed.items()}
    warm = measure_blocks(blocks, BLOCK)
    names, count = list(sources), max(MIN_ARRIVALS, -(-samples // stretches))
    loads: dict[str, list[OpenLoad]] = {name: [] for name in names}
    with gc_disabled():
        for index in range(stretches):
            turn = index % len(names)
            for name in names[turn:] + names[:turn]:
                times = sources[name].offered(load.rate, count, seed + index)
                loads[name].append(open_load(times, load.callers))
            progress((index + 1) / stretches)
    return {
        name: LoadSamples(
            Samples(np.array([stretch.latency_us for stretch in loads[name]]), warm[name].warm_up, warm[name].settled),
            tuple(loads[name]),
        )
        for name in names
    }


def pool_stretches(stretches: Sequence[OpenLoad]) -> dict[str, Json]:
    """Summarise all stretches of an open loop: times in microseconds, rates a second."""
    queued, late = (np.concatenate([getattr(load, name) for load in stretches]) for name in ("queued_us", "late_us"))
    times: dict[str, Json] = {
        f"{name}_{percentile(q)}_us": quantile(part, q)
        for name, part in (("queued", queued), ("late", late))
        for q in (0.5, 0.99)
    }
    return {
        "offered": fmean(load.offered for load in stretches),
        "achieved": fmean(load.achieved for load in stretches),
        "stretches": len(stretches),
        "saturated_stretches": sum(load.saturated for load in stretches),
        "most_waiting": max(load.backlog for load in stretches),
        "open_loop": all(load.open_loop for load in stretches),
        **times,
    }


def notes(stretches: Sequence[OpenLoad]) -> list[str]:
    """Return the caveats of an open loop as sentences: the target fell behind, or the load generator did."""
    messages = []

    def where(affected: Sequence[OpenLoad]) -> str:
        return "" if len(stretches) == 1 else f" in {len(affected)} of {len(stretches)} stretches"

    saturated = [load for load in stretches if load.saturated]
    if saturated:
        verb = "saturated" if 2 * len(saturated) >= len(stretches) else "fell behind"
        messages.append(
            f"{verb}{where(saturated)}: it could not keep up with {fmean(s.offered for s in saturated):,.0f} a second "
            f"and answered {fmean(s.achieved for s in saturated):,.0f}; up to "
            f"{max(s.backlog for s in saturated):,} waited, and latencies grow with the length of the test"
        )
    late = [load for load in stretches if not load.open_loop]
    if late:
        messages.append(
            f"no open loop{where(late)}: the load generator itself was later than the requests took, by up to "
            f"{max(float(s.late_us.max()) for s in late):,.0f} µs: the machine is too busy, or the requests too short"
        )
    return messages
