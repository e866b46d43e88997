"""Parts of a request's time: end to end, on the device, copies to it and back.

A source that only knows end-to-end time returns plain nanoseconds. On a GPU, `split_timings` takes a clock whose marks
are CUDA events (`adapters.cuda_clock`) on the device's own stream, so ``device`` is the time of the kernels, while the
wall time is what a caller waits for. Recording an event costs the host microseconds, so each request is sent once for
its wall time and once more for its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import TYPE_CHECKING, Protocol, TypeVar, overload, runtime_checkable

from mlflowkit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Timings(Sequence[int]):
    """End-to-end nanoseconds of requests, and of their parts (equally long; empty if unknown).

    >>> timings = Timings([5, 6, 7], {"device": [2, 3, 4]})
    >>> list(timings[1:]), timings[1:].parts
    ([6, 7], {'device': [3, 4]})
    """

    wall: Sequence[int]
    parts: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, times in self.parts.items():
            if len(times) != len(self.wall):
                raise UsageError(f"{len(self.wall)} requests have {len(times)} times of their part {name}")

    def __len__(self) -> int:
        return len(self.wall)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Timings: ...
    def __getitem__(self, index: int | slice) -> int | Timings:
        if isinstance(index, slice):
            return Timings(self.wall[index], {name: times[index] for name, times in self.parts.items()})
        return self.wall[index]


def stack_parts(blocks: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Stack the parts of all blocks in microseconds, each float64 [blocks, requests]; empty if blocks have none.

    Raises UsageError if some blocks have a part that others lack.
    """
    import numpy as np

    blocks_parts = [block.parts if isinstance(block, Timings) else {} for block in blocks]
    names = {name for parts in blocks_parts for name in parts}
    for name in names:
        if any(name not in parts for parts in blocks_parts):
            raise UsageError(f"some blocks have the part {name} and others do not", hint="time every request alike")
    return {name: np.array([parts[name] for parts in blocks_parts]) / 1000 for name in sorted(names)}


def time_requests(request: Callable[[int], object], indices: Iterable[int]) -> list[int]:
    """Send requests in sequence; return the nanoseconds of each by the monotonic clock."""
    times = []
    for index in indices:
        before = perf_counter_ns()
        request(index)
        times.append(perf_counter_ns() - before)
    return times


Mark = TypeVar("Mark")


class DeviceClock(Protocol[Mark]):
    """Clock of a device."""

    def mark(self) -> Mark:
        """Enqueue a timestamp on the device; returns at once."""

    def wait(self) -> None:
        """Wait until the device is idle."""

    def nanoseconds(self, first: Mark, last: Mark) -> int:
        """Return the time between two completed marks."""


@runtime_checkable
class MarkedSession(Protocol):
    """Session whose ``run`` calls ``mark`` four times, each on the stream of that work.

    Before inputs are copied to the device, before and after the model runs there, and after outputs are copied back.
    ``on_device`` is whether there is a device apart from the host.
    """

    on_device: bool
    mark: Callable[[], object]


def no_mark() -> None:
    """Do nothing: ``mark`` outside a measurement."""


PARTS = ("copy_in", "device", "copy_out")
"""Parts between the four marks of a request."""


def split_timings(
    request: Callable[[int], object], session: MarkedSession, clock: DeviceClock[Mark]
) -> Callable[[int, int], Timings]:
    """Return a block source that times each request end to end and, sent again, its copies and its run on the device.

    ``request`` calls ``session``, one at a time. Marks are read after the block, not between its requests. Raises
    UsageError if a request does not pass four marks.
    """

    def block(start: int, count: int) -> Timings:
        wall = time_requests(request, range(start, start + count))
        passed: list[list[Mark]] = []
        session.mark = lambda: passed[-1].append(clock.mark())
        try:
            for index in range(start, start + count):
                passed.append([])
                request(index)
                clock.wait()
        finally:
            session.mark = no_mark
        if any(len(marks) != len(PARTS) + 1 for marks in passed):
            raise UsageError(f"a request passed {len(passed[0])} marks", hint="a session marks four points of a run")
        pairs = enumerate(PARTS)
        return Timings(wall, {name: [clock.nanoseconds(m[i], m[i + 1]) for m in passed] for i, name in pairs})

    return block
