"""Taking latency samples: warm-up until stationary, then short blocks of every candidate in turn."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from mlflowkit.bench.analysis import stationary
from mlflowkit.bench.timings import parts_of
from mlflowkit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

Request = Callable[[int], object]
"""Asks a candidate the i-th of the prepared requests and waits for the answer."""

BlockSource = Callable[[int, int], Sequence[int]]
"""``(start, count)`` asks requests ``start`` to ``start + count - 1`` one after another and gives the nanoseconds of
each (`timings.Timings` where it can tell what they were made of), as the side that asked has timed them: a candidate
may run in a process of its own. Before the first block of all,
``start`` is negative (the lead-in); requests repeat cyclically, as an index of Python does."""

Stop = Callable[[Mapping[str, Sequence[Sequence[int]]]], Collection[str]]
"""Told after each round the blocks so far, in nanoseconds, of the sources that have turns, it names those that are to
have no more."""

BLOCK = 50
"""Requests of one candidate before the next has its turn."""
LEAD_IN = 5
"""Requests at the start of a block that are not counted: the caches still hold the candidate before."""
MAX_WARM_UP = 40
"""Blocks of warm-up after which measuring begins, stationary or not."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Requests in the order in which they were made.

    ``microseconds`` is float64 [blocks, requests of a block]; block i of every candidate was measured in round i.
    ``settled`` says whether the warm-up ended because block medians no longer moved.
    """

    microseconds: np.ndarray
    warm_up: int
    settled: bool
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Of what the time was made (device, copy_in, copy_out), microseconds shaped alike; empty where nobody told."""

    def to_json(self) -> dict[str, Any]:
        """As latency.json keeps it: samples in order, to a tenth of a microsecond, and the size of a block."""
        plain: dict[str, Any] = {
            "samples_us": _rounded(self.microseconds),
            "block": int(self.microseconds.shape[1]),
            "warm_up": self.warm_up,
            "settled": self.settled,
        }
        return plain | ({"parts_us": {name: _rounded(part) for name, part in self.parts.items()}} if self.parts else {})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Samples:
        """What `to_json` gave. Raises KeyError, TypeError or ValueError for anything else.

        >>> taken = measure({"a": lambda i: None}, 100)["a"]
        >>> Samples.from_json(taken.to_json()).microseconds.shape
        (2, 50)
        """
        import numpy as np

        def blocks(flat: Any) -> np.ndarray:
            return np.asarray(flat, dtype=np.float64).reshape(-1, int(value["block"]))

        parts = {name: blocks(flat) for name, flat in value.get("parts_us", {}).items()}
        return cls(blocks(value["samples_us"]), int(value.get("warm_up", 0)), bool(value["settled"]), parts)


def pooled(starts: Sequence[Samples]) -> Samples:
    """The samples of all starts of a process, one start after the other; ``warm_up`` is the longest.

    >>> taken = [measure({"a": lambda i: None}, 100)["a"] for _ in range(3)]
    >>> pooled(taken).microseconds.shape
    (6, 50)
    """
    import numpy as np

    return Samples(
        np.concatenate([one.microseconds for one in starts]),
        max(one.warm_up for one in starts),
        all(one.settled for one in starts),
        {name: np.concatenate([one.parts[name] for one in starts]) for name in starts[0].parts},
    )


def _rounded(microseconds: np.ndarray) -> list[float]:
    return [round(float(value), 1) for value in microseconds.ravel()]


def measure(
    candidates: Mapping[str, Request], samples: int, *, progress: Callable[[float], None] | None = None
) -> dict[str, Samples]:
    """Measure requests that are asked in this process; see `measure_blocks`.

    >>> taken = measure({"a": lambda i: None, "b": lambda i: sum(range(i % 7))}, 180)
    >>> {name: samples.microseconds.shape for name, samples in taken.items()}
    {'a': (4, 50), 'b': (4, 50)}
    """
    sources = {name: timed(request) for name, request in candidates.items()}
    return measure_blocks(sources, samples, progress=progress)


def measure_blocks(
    sources: Mapping[str, BlockSource],
    samples: int,
    *,
    size: int = BLOCK,
    lead_in: int = LEAD_IN,
    warm_up: int = MAX_WARM_UP,
    progress: Callable[[float], None] | None = None,
    stop: Stop | None = None,
) -> dict[str, Samples]:
    """Measure every source in interleaved blocks of ``size`` requests, at least ``samples`` requests each.

    Where a request takes long, smaller blocks, a shorter lead-in and fewer blocks of warm-up keep a measurement short.

    The order of turns is rotated from round to round, so that no source always follows the same one. Garbage of this
    process is collected before each round and not during it. Whatever a source raises is passed on; UsageError where it
    gives another number of times than it was asked for. A source that ``stop`` names after a round has no more turns.
    """
    import numpy as np

    names = list(sources)
    rounds = -(-samples // size)
    take = partial(_block, size=size, lead_in=lead_in)
    taken: dict[str, list[Sequence[int]]] = {name: [] for name in names}
    with uncollected():
        warm = {name: _warm_up(partial(take, name, source), size, warm_up) for name, source in sources.items()}
        for index in range(rounds):
            gc.collect(0)
            turn = index % len(names)
            for name in names[turn:] + names[:turn]:
                taken[name].append(take(name, sources[name], index * size))
            if progress is not None:
                progress((index + 1) / rounds)
            stopped = stop({name: taken[name] for name in names}) if stop is not None else ()
            names = [name for name in names if name not in stopped]
            if not names:
                break
    return {
        name: Samples(np.array([list(block) for block in taken[name]]) / 1000, *warm[name], parts_of(taken[name]))
        for name in sources
    }


@contextmanager
def uncollected() -> Iterator[None]:
    """No collection of garbage meanwhile; afterwards it is as before."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def timed(request: Request) -> BlockSource:
    """A source that asks in this process and times each request with the monotonic clock.

    >>> len(timed(lambda index: None)(0, 3))
    3
    """

    def block(start: int, count: int) -> list[int]:
        times = []
        for index in range(start, start + count):
            before = perf_counter_ns()
            request(index)
            times.append(perf_counter_ns() - before)
        return times

    return block


def _warm_up(block: Callable[[int], Sequence[int]], size: int, most: int) -> tuple[int, bool]:
    """Ask until block medians are stationary; returns the blocks that it took and whether they became so."""
    medians: list[float] = []
    while not stationary(medians) and len(medians) < most:
        medians.append(statistics.median(block(len(medians) * size)))
    return len(medians), stationary(medians)


def _block(name: str, source: BlockSource, start: int, *, size: int, lead_in: int) -> Sequence[int]:
    """Nanoseconds of ``size`` requests one after another, after a lead-in that is not counted."""
    times = source(start - lead_in, lead_in + size)
    if len(times) != lead_in + size:
        raise UsageError(
            f"{name} was asked {lead_in + size} requests and gave {len(times)} times",
            hint="a block source gives one time in nanoseconds for each request",
        )
    return times[lead_in:]


def requests_over(
    run: Callable[[Mapping[str, np.ndarray]], object], inputs: Mapping[str, np.ndarray], batch: int
) -> Request:
    """Requests of ``batch`` rows each over real rows, cut beforehand; the i-th request is the i-th cut, cyclically."""
    import numpy as np

    rows = len(next(iter(inputs.values())))
    starts: Sequence[int] = range(0, max(1, rows - batch + 1), batch)
    cuts = [
        {name: np.ascontiguousarray(matrix[np.arange(start, start + batch) % rows]) for name, matrix in inputs.items()}
        for start in starts
    ]
    count = len(cuts)
    return lambda index: run(cuts[index % count])
