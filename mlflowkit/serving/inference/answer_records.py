"""Records that leave the request path: of each answer, and of each mirrored request. A `RecordSink` takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from mlflowkit.serving.protocol.http_error import RequestError

AssignedBy = Literal["hash", "override", "version"]
"""How a request got its variant: the split, the override header, or a version in the path."""


@dataclass(slots=True)
class Record:
    """One answered request; not frozen, because a frozen one takes three times as long to construct.

    time      when it was answered, in seconds since the epoch
    variant   the variant that the request was routed to; ``answered`` is the variant that answered in the end
    how       how it was routed; only "hash" (the split) is evidence
    seconds   from the request's headers to the answer
    inputs    arrays by tensor, as the graph took them; answers: arrays by output
    error     why ``variant`` failed; "" when it did not
    pane_seconds  length of the window that the rows were counted in as answered; 0 for none: they are not profiled
    """

    time: float
    id: str
    key: str
    experiment: str
    epoch: int
    variant: str
    version: str
    answered: str
    how: AssignedBy
    seconds: float
    rows: int
    inputs: Mapping[str, np.ndarray]
    answers: Mapping[str, np.ndarray]
    error: str = ""
    pane_seconds: float = 300.0


@dataclass(slots=True)
class MirrorRecord:
    """One mirrored request: the client's record, and the shadow's answers (None when it failed)."""

    record: Record
    shadow: str
    version: str
    seconds: float
    answers: Mapping[str, np.ndarray] | None
    error: str = ""


class RecordSink(Protocol):
    """Takes records. The methods return at once and never raise; a sink may drop records and counts those."""

    def answered(self, record: Record) -> None: ...
    def compared(self, mirrored: MirrorRecord) -> None: ...
    def refused(self, version: str, error: RequestError) -> None: ...


class RequestMirror(Protocol):
    """Queues answered requests for shadows. Returns at once and never raises; dropped requests are counted."""

    def offer(self, record: Record) -> None: ...


class NullSink:
    """A sink and mirror that discards everything."""

    def answered(self, record: Record) -> None: ...
    def compared(self, mirrored: MirrorRecord) -> None: ...
    def refused(self, version: str, error: RequestError) -> None: ...
    def offer(self, record: Record) -> None: ...
