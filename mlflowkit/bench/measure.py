"""Latency sampling: warm-up until stationary, then interleaved short blocks of every candidate."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflowkit.bench.analysis import stationary
from mlflowkit.bench.timings import stack_parts, time_requests
from mlflowkit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

Request = Callable[[int], object]
"""Sends the i-th prepared request to a candidate and waits for the reply."""

BlockSource = Callable[[int, int], Sequence[int]]
"""``(start, count)`` sends requests ``start`` to ``start + count - 1`` in sequence and returns the nanoseconds of each
(`timings.Timings` if their parts are known), timed where they are sent: a candidate may run in its own process. In the
first lead-in ``start`` is negative; requests repeat cyclically, like a Python index."""

Stop = Callable[[Mapping[str, Sequence[Sequence[int]]]], Collection[str]]
"""Called after each round with the blocks so far (nanoseconds) of the active sources; returns the names of those to
stop."""

BLOCK = 50
"""Requests of one candidate per turn."""
LEAD_IN = 5
"""Uncounted requests at the start of a block: the caches still hold the previous candidate."""
MAX_WARM_UP = 40
"""Maximum number of warm-up blocks."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of one candidate, in order.

    ``microseconds`` is float64 [blocks, requests of a block]; block i of every candidate was measured in round i.
    ``settled`` is whether the warm-up reached stationary block medians.
    """

    microseconds: np.ndarray
    warm_up: int
    settled: bool
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Parts of the time (device, copy_in, copy_out), microseconds of the same shape; empty if unknown."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of latency.json: samples in order, to 0.1 microseconds, and the block size."""
        block = int(self.microseconds.shape[1])
        value: dict[str, Any] = {"samples_us": _rounded(self.microseconds), "block": block}
        value |= {"warm_up": self.warm_up, "settled": self.settled}
        return value | ({"parts_us": {name: _rounded(part) for name, part in self.parts.items()}} if self.parts else {})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Samples:
        """Parse the result of `to_json`. Raises KeyError, TypeError or ValueError.

        >>> samples = measure({"a": lambda i: None}, 100)["a"]
        >>> Samples.from_json(samples.to_json()).microseconds.shape
        (2, 50)
        """
        import numpy as np

        def blocks(flat: Any) -> np.ndarray:
            return np.asarray(flat, dtype=np.float64).reshape(-1, int(value["block"]))

        parts = {name: blocks(flat) for name, flat in value.get("parts_us", {}).items()}
        return cls(blocks(value["samples_us"]), int(value.get("warm_up", 0)), bool(value["settled"]), parts)


def pool_samples(starts: Sequence[Samples]) -> Samples:
    """Concatenate the samples of all starts of a process; ``warm_up`` is the longest.

    >>> starts = [measure({"a": lambda i: None}, 100)["a"] for _ in range(3)]
    >>> pool_samples(starts).microseconds.shape
    (6, 50)
    """
    import numpy as np

    return Samples(
        np.concatenate([start.microseconds for start in starts]),
        max(start.warm_up for start in starts),
        all(start.settled for start in starts),
        {name: np.concatenate([start.parts[name] for start in starts]) for name in starts[0].parts},
    )


def _rounded(microseconds: np.ndarray) -> list[float]:
    return [round(float(value), 1) for value in microseconds.ravel()]


def measure(
    candidates: Mapping[str, Request], samples: int, *, progress: Callable[[float], None] | None = None
) -> dict[str, Samples]:
    """Measure requests sent by this process; see `measure_blocks`.

    >>> results = measure({"a": lambda i: None, "b": lambda i: sum(range(i % 7))}, 180)
    >>> {name: samples.microseconds.shape for name, samples in results.items()}
    {'a': (4, 50), 'b': (4, 50)}
    """
    sources = {name: timed_source(request) for name, request in candidates.items()}
    return measure_blocks(sources, samples, progress=progress)


def measure_blocks(
    sources: Mapping[str, BlockSource],
    samples: int,
    *,
    size: int = BLOCK,
    lead_in: int = LEAD_IN,
    warm_up: int = MAX_WARM_UP,
    progress: Callable[[float], None] | None = None,
    started: Callable[[], None] | None = None,
    stop: Stop | None = None,
) -> dict[str, Samples]:
    """Measure every source in interleaved blocks of ``size`` requests, at least ``samples`` requests each.

    The order of turns rotates, so that no source always follows the same one. This process collects garbage before each
    round and not during it. ``started`` is called after the warm-up. A source that ``stop`` returns gets no more turns.
    Raises what a source raises, and UsageError if it returns a wrong number of times.
    """
    import numpy as np

    names = list(sources)
    rounds = -(-samples // size)
    take_block = partial(_block, size=size, lead_in=lead_in)
    blocks: dict[str, list[Sequence[int]]] = {name: [] for name in names}
    with gc_disabled():
        warm = {name: _warm_up(partial(take_block, name, source), size, warm_up) for name, source in sources.items()}
        if started is not None:
            started()
        for index in range(rounds):
            gc.collect(0)
            turn = index % len(names)
            for name in names[turn:] + names[:turn]:
                blocks[name].append(take_block(name, sources[name], index * size))
            if progress is not None:
                progress((index + 1) / rounds)
            stopped = stop({name: blocks[name] for name in names}) if stop is not None else ()
            names = [name for name in names if name not in stopped]
            if not names:
                break
    return {
        name: Samples(np.array([list(block) for block in blocks[name]]) / 1000, *warm[name], stack_parts(blocks[name]))
        for name in sources
    }


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Disable garbage collection inside the context."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def timed_source(request: Request) -> BlockSource:
    """Return a source that sends each request from this process and times it with the monotonic clock.

    >>> len(timed_source(lambda index: None)(0, 3))
    3
    """
    return lambda start, count: time_requests(request, range(start, start + count))


def _warm_up(block: Callable[[int], Sequence[int]], size: int, limit: int) -> tuple[int, bool]:
    """Run blocks until their medians are stationary; return the number of blocks and whether they became so."""
    medians: list[float] = []
    while not stationary(medians) and len(medians) < limit:
        medians.append(statistics.median(block(len(medians) * size)))
    return len(medians), stationary(medians)


def _block(name: str, source: BlockSource, start: int, *, size: int, lead_in: int) -> Sequence[int]:
    """Return the nanoseconds of ``size`` requests after an uncounted lead-in."""
    times = source(start - lead_in, lead_in + size)
    if len(times) != lead_in + size:
        raise UsageError(
            f"{name} returned {len(times)} times for {lead_in + size} requests",
            hint="a block source returns one time in nanoseconds for each request",
        )
    return times[lead_in:]


def requests_over(
    run: Callable[[Mapping[str, np.ndarray]], object], inputs: Mapping[str, np.ndarray], batch: int
) -> Request:
    """Return requests of ``batch`` rows each, cut from real rows in advance; they repeat cyclically."""
    import numpy as np

    rows = len(next(iter(inputs.values())))
    starts: Sequence[int] = range(0, max(1, rows - batch + 1), batch)
    cuts = [
        {name: np.ascontiguousarray(matrix[np.arange(start, start + batch) % rows]) for name, matrix in inputs.items()}
        for start in starts
    ]
    count = len(cuts)
    return lambda index: run(cuts[index % count])
