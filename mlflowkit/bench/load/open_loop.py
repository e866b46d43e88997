"""Load whose arrivals are fixed in advance and wait for nobody: what users do who know nothing of one another.

A loop that asks its next request when the last is answered asks less while the server is slow, and so forgets the very
requests that would have waited ("coordinated omission": Tene, "How NOT to measure latency", and wrk2). Here the moment
of each arrival is drawn before the first request, and latency counts from that moment, not from when somebody was free
to ask. What a caller waited for a free caller is the server's doing and is part of the latency. What the generator
itself was late by is not: it is counted apart, and where it is more than a little of what was measured, the figures are
no open-loop figures, which is said.
"""

from __future__ import annotations

import itertools
import select
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Literal

from mlflowkit.bench.analysis import quantile
from mlflowkit.bench.measure import Request, uncollected
from mlflowkit.bench.validity import percentile
from mlflowkit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

Arrivals = Literal["poisson", "constant"]

SPIN_NS = 200_000
"""Before an arrival is due, its caller stops sleeping so long and watches the clock: a sleep ends late."""
MOST_LATE = 0.1
"""Share of a quantile of the latency that the same quantile of the generator's own lateness may be."""
JUDGED = (0.5, 0.99)
"""The quantiles at which it is held against that."""
SATURATED = 0.05
"""Share of all requests that wait when the last one arrives, from which on the backlog is said to have grown."""
BEGIN_NS = 2_000_000
"""From the start of the callers to time zero."""


def arrivals(rate: float, count: int, kind: Arrivals = "poisson", *, seed: int = 0) -> np.ndarray:
    """Moments of ``count`` arrivals in nanoseconds from the start, int64 ascending; ``rate`` is arrivals a second.

    Raises UsageError for a rate that is not above zero or for no request.

    >>> arrivals(1000, 3, "constant").tolist()
    [0, 1000000, 2000000]
    """
    import numpy as np

    if not 0 < rate < float("inf") or count < 1:
        raise UsageError(f"{count} requests at {rate:g} a second are no load", hint="give a rate and a count above 0")
    if kind == "constant":
        gaps = np.full(count, 1e9 / rate)
    elif kind == "poisson":
        gaps = np.random.default_rng(seed).exponential(1e9 / rate, size=count)
    else:
        raise UsageError(f"no arrivals {kind!r}", hint="one of poisson, constant")
    return np.asarray((np.cumsum(gaps) - gaps[0]).astype(np.int64))


@dataclass(frozen=True, slots=True)
class OpenLoad:
    """What became of requests that arrived when they would. Arrays are float64 [requests], in order of arrival."""

    latency_us: np.ndarray
    """From the intended arrival to the answer."""
    queued_us: np.ndarray
    """Of it, waiting for a free caller."""
    late_us: np.ndarray
    """Of it, the generator's own doing: the caller was free, and asked after the moment all the same."""
    callers: int
    offered: float
    """Requests a second that arrived."""
    achieved: float
    """Requests a second that were answered."""
    backlog: int
    """Requests that had arrived and not begun when the last one arrived."""

    @property
    def open_loop(self) -> bool:
        """Whether requests came when they were meant to; where not, latencies are not those of an open loop."""
        return not self._behind()

    @property
    def saturated(self) -> bool:
        """Whether the backlog grew: latencies then tell how long the test was, not how fast the server is."""
        return self.backlog > max(self.callers, SATURATED * len(self.latency_us))

    @property
    def notes(self) -> list[str]:
        """What must be known to believe the figures, in words."""
        said = [
            f"not an open loop: the generator was {late:,.0f} µs late at {percentile(q)}, more than {MOST_LATE:.0%} of "
            f"the latency there ({latency:,.0f} µs): the machine is too busy, or the requests too short, to tell"
            for q, late, latency in self._behind()
        ]
        if self.saturated:
            said.append(
                f"saturated: {self.backlog:,} requests waited when the last one arrived, and {self.achieved:,.0f} of "
                f"{self.offered:,.0f} a second were answered; latencies grow with the length of the test"
            )
        return said

    def _behind(self) -> list[tuple[float, float, float]]:
        judged = [(q, quantile(self.late_us, q), quantile(self.latency_us, q)) for q in JUDGED]
        return [(q, late, latency) for q, late, latency in judged if late > MOST_LATE * latency]

    def to_json(self) -> dict[str, Any]:
        """Figures without the samples; times in microseconds."""
        parts = (("latency", self.latency_us), ("queued", self.queued_us), ("late", self.late_us))
        times = {f"{name}_{percentile(q)}_us": quantile(part, q) for name, part in parts for q in (0.5, 0.95, 0.99)} | {
            "late_max_us": float(self.late_us.max())
        }
        return {
            "callers": self.callers,
            "requests": len(self.latency_us),
            "offered": self.offered,
            "achieved": self.achieved,
            **times,
            "backlog": self.backlog,
            "open_loop": self.open_loop,
            "saturated": self.saturated,
            "notes": self.notes,
        }


def offer(requests: Sequence[Request], moments: np.ndarray) -> OpenLoad:
    """Ask the i-th request at the i-th moment (nanoseconds from the start), or as soon after as a caller is free.

    There is one caller, a thread, for each of ``requests`` (the same one, where it can be shared); they are what the
    server can do at once. Whatever a request raises is passed on. Raises UsageError for no caller or no moment.

    >>> load = offer([lambda index: None], arrivals(2000, 20, "constant"))
    >>> len(load.latency_us), load.callers
    (20, 1)
    """
    return found(marked(requests, moments), len(requests))


def marked(requests: Sequence[Request], moments: np.ndarray) -> np.ndarray:
    """What `offer` does, as int64 [4, arrivals] nanoseconds from the start: when each was due, a caller was free for
    it, asked it, and had its answer."""
    import numpy as np

    if not requests or not len(moments):
        raise UsageError("nobody asks, or nothing is asked", hint="give a caller and a moment or more")
    marks = np.zeros((4, len(moments)), dtype=np.int64)
    marks[0] = moments
    following, errors = itertools.count(), list[BaseException]()
    with uncollected():
        begin = perf_counter_ns() + BEGIN_NS
        threads = [
            threading.Thread(target=_call, args=(request, marks, following, begin, errors), name=f"caller-{place}")
            for place, request in enumerate(requests)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return marks


def _call(
    request: Request, marks: np.ndarray, following: Iterator[int], begin: int, errors: list[BaseException]
) -> None:
    """Take the next arrival, wait for its moment, ask; again, until there is none or a caller has failed."""
    due, free, asked, done = marks
    try:
        while not errors and (index := next(following)) < len(due):
            moment = int(due[index])
            free[index] = perf_counter_ns() - begin
            _wait_until(begin + moment)
            asked[index] = perf_counter_ns() - begin
            request(index)
            done[index] = perf_counter_ns() - begin
    except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits for this one
        errors.append(error)


def _wait_until(moment: int) -> None:
    while (left := moment - perf_counter_ns()) > 0:
        if left > SPIN_NS:
            time.sleep((left - SPIN_NS) / 1e9)
        else:
            select.select((), (), (), 0)  # lets the other callers run, and returns at once: a sleep of 0 would not


def found(marks: np.ndarray, callers: int) -> OpenLoad:
    """What became of requests, from the moments of `marked`."""
    import numpy as np

    due, free, asked, done = marks
    begun = np.maximum(due, free)
    count, last = len(due), int(due[-1])
    over = int(done.max() - due[0])
    return OpenLoad(
        latency_us=(done - due) / 1000,
        queued_us=(begun - due) / 1000,
        late_us=(asked - begun) / 1000,
        callers=callers,
        offered=(count - 1) / (last - int(due[0])) * 1e9 if last > due[0] else 0.0,
        achieved=count / over * 1e9 if over else 0.0,
        backlog=int((begun > last).sum()),
    )
