"""What the time of a request was made of: from end to end, on a device, copies to it and back.

A source that only knows the time from end to end gives plain nanoseconds. One that runs on a GPU asks through
`stepped`, with a clock whose marks are CUDA events (`adapters.cuda_clock`): an event is recorded on the device's own
stream, so ``device`` is what the kernels took, whatever the host did meanwhile, and the wall time around all of it is
what a caller waits for. They differ by launches, by waiting, and by what runs at once; both are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, overload

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


class Steps(Protocol):
    """A request in three steps, each asked of the device without waiting for it."""

    def copy_in(self, index: int) -> object:
        """Copy the inputs of the index-th request to the device."""

    def run(self) -> object:
        """Run the model on them."""

    def copy_out(self) -> object:
        """Copy the answers back."""


@dataclass(frozen=True, slots=True)
class HostClock:
    """The monotonic clock as a device's: for steps that run on the host and are done when they return."""

    def mark(self) -> int:
        return perf_counter_ns()

    def wait(self) -> None:
        return

    def nanoseconds(self, first: int, last: int) -> int:
        return last - first


@dataclass(frozen=True, slots=True)
class _Stepped(Generic[Mark]):
    steps: Steps
    clock: DeviceClock[Mark]

    def __call__(self, start: int, count: int) -> Timings:
        wall, marks = [], []
        for index in range(start, start + count):
            self.clock.wait()
            before = perf_counter_ns()
            marks.append(self._one(index))
            wall.append(perf_counter_ns() - before)
        return Timings(wall, {name: self._between(marks, place) for name, place in _PLACES.items()})

    def _one(self, index: int) -> tuple[Mark, Mark, Mark, Mark]:
        clock, steps = self.clock, self.steps
        first = clock.mark()
        steps.copy_in(index)
        second = clock.mark()
        steps.run()
        third = clock.mark()
        steps.copy_out()
        last = clock.mark()
        clock.wait()
        return first, second, third, last

    def _between(self, marks: Sequence[tuple[Mark, ...]], place: int) -> list[int]:
        return [self.clock.nanoseconds(each[place], each[place + 1]) for each in marks]


_PLACES: Mapping[str, int] = {"copy_in": 0, "device": 1, "copy_out": 2}


def stepped(steps: Steps, clock: DeviceClock[Mark]) -> Callable[[int, int], Timings]:
    """A block source that times each request from end to end, and its copies and its run by the device's clock.

    Times between marks are read after the block, not between its requests.

    >>> class Doubling:
    ...     def copy_in(self, index): self.value = index
    ...     def run(self): self.value *= 2
    ...     def copy_out(self): return self.value
    >>> timings = stepped(Doubling(), HostClock())(0, 3)
    >>> len(timings), sorted(timings.parts)
    (3, ['copy_in', 'copy_out', 'device'])
    """
    return _Stepped(steps, clock)
