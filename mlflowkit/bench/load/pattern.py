"""How requests come: one caller or several that each wait for their answer, or arrivals that wait for nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mlflowkit.bench.analysis import quantile
from mlflowkit.bench.load import open_loop
from mlflowkit.bench.load.open_loop import OpenLoad
from mlflowkit.bench.measure import BLOCK, LEAD_IN, BlockSource, Samples, measure_blocks, uncollected
from mlflowkit.bench.validity import percentile
from mlflowkit.values import Json

if TYPE_CHECKING:
    import numpy as np

EACH = 16
"""Requests of each caller in a block, at least: they begin together and do not end together."""
FEWEST = 20
"""Arrivals in a stretch, at least: a shorter one ends before requests could queue."""
STRETCHES = 2
"""Stretches of each start, where intervals rest on the starts: the longer, the more can queue."""


@dataclass(frozen=True, slots=True)
class Load:
    """``rate`` is arrivals a second that wait for nobody (an open loop; ``callers`` then answer them); None: each of
    ``callers`` asks its next request when its last one is answered (a closed loop)."""

    callers: int = 1
    rate: float | None = None

    @property
    def words(self) -> str:
        """
        >>> Load().words, Load(8).words, Load(2, 150.0).words
        ('one caller', '8 callers', '150 a second on 2 callers')
        """
        callers = "one caller" if self.callers == 1 else f"{self.callers} callers"
        return callers if self.rate is None else f"{self.rate:g} a second on {callers}"

    def to_json(self) -> dict[str, Json]:
        return {"kind": "closed" if self.rate is None else "open", "callers": self.callers, "rate": self.rate}

    @property
    def block(self) -> int:
        """Requests of one candidate before the next has its turn, in a closed loop."""
        return max(BLOCK, EACH * self.callers) if self.callers > 1 else BLOCK


class Offering(Protocol):
    """What can be asked in both ways; `ports.Trial` can."""

    def block(self, start: int, count: int) -> Sequence[int]:
        """See `measure.BlockSource`."""

    def offered(self, rate: float, count: int, seed: int) -> np.ndarray:
        """Ask ``count`` requests that arrive at ``rate`` a second; moments as `open_loop.marked` returns them."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What one start of one candidate gave; ``stretches`` are of an open loop, block i of ``samples`` is stretch i."""

    samples: Samples
    stretches: tuple[OpenLoad, ...] = ()


def take(
    sources: Mapping[str, Offering], load: Load, samples: int, *, stretches: int, seed: int,
    progress: Callable[[float], None],
) -> dict[str, Taken]:  # fmt: skip
    """Measure every source in turns, at least ``samples`` requests each; whatever a source raises is passed on.

    An open loop's requests come in ``stretches``, between which the others have their turns; all sources have the same
    arrivals in the same round.
    """
    blocks: dict[str, BlockSource] = {name: source.block for name, source in sources.items()}
    if load.rate is None:
        least, lead_in = max(samples, 2 * load.block), max(LEAD_IN, load.callers)
        taken = measure_blocks(blocks, least, size=load.block, lead_in=lead_in, progress=progress)
        return {name: Taken(found) for name, found in taken.items()}
    warm = measure_blocks(blocks, BLOCK)
    names, count = list(sources), max(FEWEST, -(-samples // stretches))
    found: dict[str, list[OpenLoad]] = {name: [] for name in names}
    with uncollected():
        for index in range(stretches):
            turn = index % len(names)
            for name in names[turn:] + names[:turn]:
                marks = sources[name].offered(load.rate, count, seed + index)
                found[name].append(open_loop.found(marks, load.callers))
            progress((index + 1) / stretches)
    return {name: Taken(_as_samples(each, warm[name]), tuple(each)) for name, each in found.items()}


def _as_samples(stretches: Sequence[OpenLoad], warm: Samples) -> Samples:
    import numpy as np

    return Samples(np.array([one.latency_us for one in stretches]), warm.warm_up, warm.settled)


def together(stretches: Sequence[OpenLoad]) -> dict[str, Json]:
    """An open loop's stretches as one: times in microseconds, rates a second."""
    import numpy as np

    queued, late = (np.concatenate([getattr(one, name) for one in stretches]) for name in ("queued_us", "late_us"))
    times: dict[str, Json] = {
        f"{name}_{percentile(q)}_us": quantile(part, q)
        for name, part in (("queued", queued), ("late", late))
        for q in (0.5, 0.99)
    }
    return {
        "offered": _mean([one.offered for one in stretches]),
        "achieved": _mean([one.achieved for one in stretches]),
        "stretches": len(stretches),
        "saturated_stretches": sum(one.saturated for one in stretches),
        "most_waiting": max(one.backlog for one in stretches),
        "open_loop": all(one.open_loop for one in stretches),
        **times,
    }


def notes(stretches: Sequence[OpenLoad]) -> list[str]:
    """What must be known to believe an open loop's figures, in words: it fell behind, or its generator did."""
    said = []
    saturated = [one for one in stretches if one.saturated]
    if saturated:
        where = "" if len(stretches) == 1 else f" in {len(saturated)} of {len(stretches)} stretches"
        word = "saturated" if 2 * len(saturated) >= len(stretches) else "fell behind"
        said.append(
            f"{word}{where}: it could not keep up with {_mean([one.offered for one in saturated]):,.0f} a second "
            f"and answered {_mean([one.achieved for one in saturated]):,.0f}; up to "
            f"{max(one.backlog for one in saturated):,} waited, and latencies grow with the length of the test"
        )
    late = [one for one in stretches if not one.open_loop]
    if late:
        where = "" if len(stretches) == 1 else f" in {len(late)} of {len(stretches)} stretches"
        said.append(
            f"no open loop{where}: what asks was itself later than the requests took, by up to "
            f"{max(float(one.late_us.max()) for one in late):,.0f} µs: the machine is too busy, or they are too short"
        )
    return said


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
