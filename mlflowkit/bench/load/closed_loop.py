"""Several callers at once, each of which asks its next request when its last one is answered (a closed loop).

Each caller always has one request under way, so the throughput of ``callers`` is their number over the mean latency
(Little's law); `analysis.summarise` takes the number. What a server does with requests that do not wait for one
another is asked by `open_loop`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter_ns
from types import TracebackType

from mlflowkit.bench.measure import Request
from mlflowkit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Callers:
    """A block source of several threads, one for each of ``requests`` (the same one, where it can be shared).

    The callers of a block begin together; request i is asked by caller i modulo their number. Close it, or use it as a
    context, to end its threads.

    >>> with Callers.of([lambda index: None] * 4) as source:
    ...     len(source(0, 50))
    50
    """

    requests: Sequence[Request]
    pool: ThreadPoolExecutor

    @classmethod
    def of(cls, requests: Sequence[Request]) -> Callers:
        """Raises UsageError for no caller."""
        if not requests:
            raise UsageError("nobody asks", hint="give one caller or more")
        return cls(tuple(requests), ThreadPoolExecutor(len(requests), thread_name_prefix="caller"))

    def __call__(self, start: int, count: int) -> list[int]:
        together = threading.Barrier(len(self.requests))
        shares = [range(start + place, start + count, len(self.requests)) for place in range(len(self.requests))]
        asked = [
            self.pool.submit(_ask, request, share, together)
            for request, share in zip(self.requests, shares, strict=True)
        ]
        times = [0] * count
        for place, future in enumerate(asked):
            times[place :: len(self.requests)] = future.result()
        return times

    def __enter__(self) -> Callers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown()


def _ask(request: Callable[[int], object], share: range, together: threading.Barrier) -> list[int]:
    together.wait()
    times = []
    for index in share:
        before = perf_counter_ns()
        request(index)
        times.append(perf_counter_ns() - before)
    return times
