"""What leaves the hot path: a record an answer, one a mirrored request. A `Tap` takes them, may drop, and counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

How = Literal["hash", "override", "version"]


@dataclass(slots=True)
class Record:
    """One answered request; not frozen, because a frozen one takes three times as long to make.

    time      seconds since the epoch, when it was answered
    variant   the name that the router gave the request to; ``answered`` is the one that answered in the end
    how       by the split, by a tester's header, or by a version in the path: only the split is evidence
    seconds   from the request's headers to the answer
    inputs    arrays by tensor, as the graph took them; answers, arrays by output
    error     why ``variant`` failed; "" when it did not
    """

    time: float
    id: str
    key: str
    experiment: str
    epoch: int
    variant: str
    version: str
    answered: str
    how: How
    seconds: float
    rows: int
    inputs: Mapping[str, np.ndarray]
    answers: Mapping[str, np.ndarray]
    error: str = ""


@dataclass(slots=True)
class Mirrored:
    """One mirrored request: the answer that the client got, and the shadow's. ``answers`` is None when it failed."""

    record: Record
    shadow: str
    version: str
    seconds: float
    answers: Mapping[str, np.ndarray] | None
    error: str = ""


class Tap(Protocol):
    """Where records go. Both verbs return at once and never raise."""

    def answered(self, record: Record) -> None: ...
    def compared(self, mirrored: Mirrored) -> None: ...


class Mirror(Protocol):
    """Hands answered requests on to shadows. Returns at once and never raises; what does not fit is counted."""

    def offer(self, record: Record) -> None: ...


class NoTap:
    """Takes everything and keeps nothing."""

    def answered(self, record: Record) -> None:
        return None

    def compared(self, mirrored: Mirrored) -> None:
        return None

    def offer(self, record: Record) -> None:
        return None
