"""Open loop: load whose arrival times are fixed in advance, as from independent users.

A closed loop sends less while the server is slow, and so omits the very requests that would have waited ("coordinated
omission": Tene, "How NOT to measure latency", and wrk2). Here every arrival time is drawn before the first request, and
latency counts from that time. Waiting for a free caller is part of the latency. Lateness of the load generator itself
is counted separately; if it is more than a small share of the latency, the results are noted as no open loop.
"""

from __future__ import annotations

import itertools
import select
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Literal

import numpy as np

from mlflowkit.bench.analysis import quantile
from mlflowkit.bench.measure import Request, gc_disabled
from mlflowkit.errors import UsageError

Arrivals = Literal["poisson", "constant"]

SPIN_NS = 200_000
"""Time before an arrival at which its caller polls instead of sleeping: a sleep ends late."""
MAX_LATENESS = 0.1
"""Maximum lateness of the generator, as a share of the latency at the same quantile."""
LATENESS_QUANTILES = (0.5, 0.99)
"""Quantiles at which lateness is checked."""
MAX_BACKLOG = 0.05
"""Share of all requests waiting at the last arrival beyond which the target counts as saturated."""
BEGIN_NS = 2_000_000
"""Time from the start of the callers to time zero."""


def arrivals(rate: float, count: int, kind: Arrivals = "poisson", *, seed: int = 0) -> np.ndarray:
    """Return the times of ``count`` arrivals in nanoseconds from the start, int64 ascending; ``rate`` is per second.

    Raises UsageError for a rate or a count that is not positive.

    >>> arrivals(1000, 3, "constant").tolist()
    [0, 1000000, 2000000]
    """
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
    """Results of an open loop. Arrays are float64 [requests], in order of arrival."""

    latency_us: np.ndarray
    """Time from the intended arrival to the reply."""
    queued_us: np.ndarray
    """Part of it: waiting for a free caller."""
    late_us: np.ndarray
    """Part of it: lateness of the generator while a caller was free."""
    callers: int
    offered: float
    """Arrivals a second."""
    achieved: float
    """Replies a second."""
    backlog: int
    """Requests not yet sent at the last arrival."""

    @property
    def open_loop(self) -> bool:
        """Whether requests were sent on time; otherwise the latencies are not those of an open loop."""
        checked = [(quantile(self.late_us, q), quantile(self.latency_us, q)) for q in LATENESS_QUANTILES]
        return all(late <= MAX_LATENESS * latency for late, latency in checked)

    @property
    def saturated(self) -> bool:
        """Whether the backlog grew: latencies then depend on the length of the test."""
        return self.backlog > max(self.callers, MAX_BACKLOG * len(self.latency_us))


def offer(requests: Sequence[Request], due: np.ndarray) -> OpenLoad:
    """Send request i at the i-th time (nanoseconds from the start), or as soon after as a caller is free.

    There is one caller thread for each of ``requests`` (the same one, if it can be shared). Raises what a request
    raises; UsageError without a caller or a time.

    >>> load = offer([lambda index: None], arrivals(2000, 20, "constant"))
    >>> len(load.latency_us), load.callers
    (20, 1)
    """
    return open_load(offer_marked(requests, due), len(requests))


def offer_marked(requests: Sequence[Request], due: np.ndarray) -> np.ndarray:
    """Send requests like `offer`; return int64 [4, arrivals] nanoseconds from the start.

    The rows are the times at which each request was due, a caller was free, the request was sent, and the reply came.
    """
    if not requests or not len(due):
        raise UsageError("an open loop needs a caller and an arrival", hint="give one or more of each")
    times = np.zeros((4, len(due)), dtype=np.int64)
    times[0] = due
    indices, errors = itertools.count(), list[BaseException]()
    with gc_disabled():
        begin = perf_counter_ns() + BEGIN_NS
        threads = [
            threading.Thread(target=_run_caller, args=(request, times, indices, begin, errors), name=f"caller-{caller}")
            for caller, request in enumerate(requests)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return times


def _run_caller(
    request: Request, times: np.ndarray, indices: Iterator[int], begin: int, errors: list[BaseException]
) -> None:
    """Send arrivals at their times until there are none or a caller has failed."""
    due, free, sent, done = times
    try:
        while not errors and (index := next(indices)) < len(due):
            free[index] = perf_counter_ns() - begin
            _wait_until(begin + int(due[index]))
            sent[index] = perf_counter_ns() - begin
            request(index)
            done[index] = perf_counter_ns() - begin
    except BaseException as error:  # noqa: BLE001 - raised again by the waiting thread
        errors.append(error)


def _wait_until(nanoseconds: int) -> None:
    while (left := nanoseconds - perf_counter_ns()) > 0:
        if left > SPIN_NS:
            time.sleep((left - SPIN_NS) / 1e9)
        else:
            select.select((), (), (), 0)  # lets the other callers run and returns at once, unlike a sleep of 0


def open_load(times: np.ndarray, callers: int) -> OpenLoad:
    """Compute the results from the times of `offer_marked`."""
    due, free, sent, done = times
    begun = np.maximum(due, free)
    count, last = len(due), int(due[-1])
    duration = int(done.max() - due[0])
    offered = (count - 1) / (last - int(due[0])) * 1e9 if last > due[0] else 0.0
    achieved = count / duration * 1e9 if duration else 0.0
    latency, queued, late = (done - due) / 1000, (begun - due) / 1000, (sent - begun) / 1000
    return OpenLoad(latency, queued, late, callers, offered, achieved, backlog=int((begun > last).sum()))
