"""What the time of a request was made of: from end to end, on a device, copies to it and back.

A source that only knows the time from end to end gives plain nanoseconds. One that runs on a GPU asks through
`apart`, with a clock whose marks are CUDA events (`adapters.cuda_clock`): an event is recorded on the device's own
stream, so ``device`` is what the kernels took, whatever the host did meanwhile, and the wall time around all of it is
what a caller waits for. They differ by launches, by waiting, and by what runs at once; both are needed. Recording an
event takes the host microseconds, which are none of a caller's: each request is asked once for its wall time and once
more for its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, overload, runtime_checkable

from mlflowkit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Timings(Sequence[int]):
    """Nanoseconds of requests from end to end, and of their parts, each as long. Empty parts: nothing more is known.

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


def parts_of(blocks: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """The parts of all blocks in microseconds, each float64 [blocks, requests]; empty where blocks have none.

    Raises UsageError where some blocks have a part that others lack.
    """
    import numpy as np

    told = [block.parts if isinstance(block, Timings) else {} for block in blocks]
    names = {name for parts in told for name in parts}
    for name in names:
        if any(name not in parts for parts in told):
            raise UsageError(f"some blocks have the part {name} and others do not", hint="time every request alike")
    return {name: np.array([parts[name] for parts in told]) / 1000 for name in sorted(names)}


Mark = TypeVar("Mark")


class DeviceClock(Protocol[Mark]):
    """A clock that runs on a device."""

    def mark(self) -> Mark:
        """Ask the device to note the time when it gets here; returns at once."""

    def wait(self) -> None:
        """Wait until the device has done all that it was asked."""

    def nanoseconds(self, first: Mark, last: Mark) -> int:
        """Time between two marks that the device has passed."""


@runtime_checkable
class Marking(Protocol):
    """A session that says where a request is.

    ``run`` calls ``mark`` four times, each on the stream of that work: before inputs are copied to the device, before
    and after the model runs there, and after the answers were copied back. ``on_device`` is whether there is a device
    apart from the host.
    """

    on_device: bool
    mark: Callable[[], object]


def unmarked() -> None:
    """What ``mark`` is while nobody asks."""


@dataclass(frozen=True, slots=True)
class HostClock:
    """The monotonic clock as a device's: for steps that run on the host and are done when they return."""

    def mark(self) -> int:
        return perf_counter_ns()

    def wait(self) -> None:
        return

    def nanoseconds(self, first: int, last: int) -> int:
        return last - first


PARTS = ("copy_in", "device", "copy_out")
"""What lies between the marks of a request."""


@dataclass(frozen=True, slots=True)
class _Apart(Generic[Mark]):
    request: Callable[[int], object]
    session: Marking
    clock: DeviceClock[Mark]

    def __call__(self, start: int, count: int) -> Timings:
        wall = []
        for index in range(start, start + count):
            before = perf_counter_ns()
            self.request(index)
            wall.append(perf_counter_ns() - before)
        marks = self._marked(start, count)
        between = self.clock.nanoseconds
        return Timings(
            wall, {name: [between(one[place], one[place + 1]) for one in marks] for place, name in enumerate(PARTS)}
        )

    def _marked(self, start: int, count: int) -> list[list[Mark]]:
        passed: list[list[Mark]] = []
        self.session.mark = lambda: passed[-1].append(self.clock.mark())
        try:
            for index in range(start, start + count):
                passed.append([])
                self.request(index)
                self.clock.wait()
        finally:
            self.session.mark = unmarked
        if any(len(marks) != len(PARTS) + 1 for marks in passed):
            raise UsageError(f"a request passed {len(passed[0])} marks", hint="a session marks four points of a run")
        return passed


def apart(
    request: Callable[[int], object], session: Marking, clock: DeviceClock[Mark]
) -> Callable[[int, int], Timings]:
    """A block source that times each request from end to end and, asked again, its copies and its run on the device.

    ``request`` asks ``session``, one at a time. Times between marks are read after the block, not between its requests.
    Raises UsageError where a request does not pass four marks.

    >>> class Doubling:
    ...     on_device, mark = True, staticmethod(unmarked)
    ...     def run(self, value):
    ...         self.mark()
    ...         value = float(value)
    ...         self.mark()
    ...         value *= 2
    ...         self.mark()
    ...         self.mark()
    >>> session = Doubling()
    >>> timings = apart(session.run, session, HostClock())(0, 3)
    >>> len(timings), sorted(timings.parts)
    (3, ['copy_in', 'copy_out', 'device'])
    """
    return _Apart(request, session, clock)
