"""What the machine's own counters say of a stretch of a measurement: whether anything else took its processor. Pure.

A time is evidence of a machine at a moment. These counters do not depend on how long the measured requests take: a
stretch is kept or left out as a whole, with all its slow requests, so leaving out disturbed ones favours no verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflowkit.bench.validity import MAX_STOLEN
from mlflowkit.system.text import join_words

if TYPE_CHECKING:
    from mlflowkit.bench.environment import MachineMoment

MAX_WAITED = 0.1
"""Share of the wall time without the processor, for a thread that never waits by itself."""
MAX_PRESSURE = 0.25
"""Share of the wall time in which some process waited for a core (pressure stall information)."""


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Counters over one stretch; a counter that the system hides is 0, which is undisturbed."""

    waited: float = 0.0
    """Share of the wall time in which the measuring thread waited for a core."""
    running: float = 0.0
    """Processes that ran or waited for a core: the mean of both ends of the stretch."""
    cores: int = 1
    """All cores of the machine, since its run queue is over all of them."""
    pressure: float = 0.0
    """Share of the wall time in which some process waited for a core."""
    stolen: float = 0.0
    """Share of the busy time that the hypervisor gave to others."""
    throttled: float = 0.0
    """Seconds in which the container was held at its limit of processor time."""
    preempted: int = 0
    """Involuntary context switches of the measuring thread: a figure, and no cause by itself."""

    @property
    def causes(self) -> tuple[str, ...]:
        """The kinds of counters beyond their limit; empty for an undisturbed stretch.

        >>> Disturbance(waited=0.02, running=2, cores=2).causes
        ()
        >>> Disturbance(waited=0.9, running=9, cores=2, pressure=1.0).causes
        ('running', 'waited', 'pressure')
        """
        beyond = {
            "running": self.running > self.cores,
            "waited": self.waited > MAX_WAITED,
            "pressure": self.pressure > MAX_PRESSURE,
            "stolen": self.stolen > MAX_STOLEN,
            "throttled": self.throttled > 0,
        }
        return tuple(kind for kind, exceeds in beyond.items() if exceeds)


def observe(before: MachineMoment, after: MachineMoment, cores: int, *, single_threaded: bool) -> Disturbance:
    """Compare the machine's state before and after a stretch.

    ``single_threaded`` is whether the measuring thread itself does all the work, so that it waits for nothing but a
    core; else its processor time says nothing.
    """
    wall = after.clock - before.clock
    if wall <= 0:
        return Disturbance(cores=cores)
    running = [moment.running for moment in (before, after) if moment.running is not None]
    busy = _growth(before.busy_ticks, after.busy_ticks)
    return Disturbance(
        waited=max(0.0, 1 - (after.thread_seconds - before.thread_seconds) / wall) if single_threaded else 0.0,
        running=sum(running) / len(running) if running else 0.0,
        cores=cores,
        pressure=min(1.0, _growth(before.pressure_seconds, after.pressure_seconds) / wall),
        stolen=_growth(before.stolen_ticks, after.stolen_ticks) / busy if busy else 0.0,
        throttled=_growth(before.throttled_seconds, after.throttled_seconds),
        preempted=int(_growth(before.preempted, after.preempted)),
    )


def _growth(before: float | None, after: float | None) -> float:
    return 0.0 if before is None or after is None else max(0.0, float(after) - float(before))


def describe(disturbances: Sequence[Disturbance]) -> str:
    """The figures of the disturbed stretches among these, the worst of each kind; "" if none was disturbed.

    >>> describe([Disturbance(running=1, cores=2), Disturbance(waited=0.93, running=9, cores=2, preempted=4)])
    'up to 9 processes at once for 2 cores and up to 93 % of the time spent waiting for a core'
    """
    disturbed = [each for each in disturbances if each.causes]
    if not disturbed:
        return ""
    waited, pressure, stolen = (
        _percent(getattr(each, name) for each in disturbed) for name in ("waited", "pressure", "stolen")
    )
    most = max(each.running for each in disturbed)
    phrases = {
        "running": f"up to {most:.0f} processes at once for {disturbed[0].cores} cores",
        "waited": f"up to {waited} of the time spent waiting for a core",
        "pressure": f"some process waiting for a core up to {pressure} of the time",
        "stolen": f"up to {stolen} of the busy time given to other machines by the hypervisor",
        "throttled": f"the container held at its limit for {sum(each.throttled for each in disturbed):.2g} s",
    }
    kinds = {kind for each in disturbed for kind in each.causes}
    return join_words([phrase for kind, phrase in phrases.items() if kind in kinds])


def _percent(shares: Iterable[float]) -> str:
    return f"{100 * max(shares):.0f} %"
