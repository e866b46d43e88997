"""Ages that a step of the wall clock does not change: for budgets and cooldowns that outlive the process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from mlflowkit.system.machine import boot_identity
from mlflowkit.values import Json


@dataclass(frozen=True, slots=True)
class Moment:
    """A time by two clocks: seconds since the epoch, and seconds since the start of the machine (``boot``)."""

    wall: float
    uptime: float
    boot: str

    def to_json(self) -> Json:
        return {"wall": self.wall, "uptime": self.uptime, "boot": self.boot}

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Moment:
        """The moment that `to_json` returned. Raises KeyError, TypeError or ValueError for anything else.

        >>> Moment.from_json(Moment(7.0, 3.0, "b").to_json())
        Moment(wall=7.0, uptime=3.0, boot='b')
        """
        return cls(float(value["wall"]), float(value["uptime"]), str(value["boot"]))


def this_moment() -> Moment:
    """Now. The uptime counts the time in which the machine was suspended."""
    return Moment(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), boot_identity())


def age(moment: Moment, now: Moment) -> float:
    """Seconds from a moment to now, never negative.

    Within one boot of the machine the wall clock does not count. Between boots nothing else is there; a wall clock that
    went back makes the age 0, so that a cooldown becomes longer rather than shorter.

    >>> age(Moment(100.0, 5.0, "b"), Moment(9_999_999.0, 8.0, "b"))
    3.0
    >>> age(Moment(100.0, 50.0, "a"), Moment(160.0, 1.0, "b")), age(Moment(100.0, 50.0, "a"), Moment(60.0, 1.0, "b"))
    (60.0, 0.0)
    """
    if moment.boot and moment.boot == now.boot:
        return max(0.0, now.uptime - moment.uptime)
    return max(0.0, now.wall - moment.wall)
