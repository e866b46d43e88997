"""Closed loop: concurrent callers, each of which sends its next request after the reply to its last one.

Each caller always has one request in flight, so throughput is their number over the mean latency (Little's law; see
`analysis.summarise`). For requests that do not wait for one another, see `open_loop`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mlflowkit.bench.measure import Request
from mlflowkit.bench.timings import time_requests
from mlflowkit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Callers:
    """A block source with one thread for each of ``requests`` (the same one, if it can be shared).

    The callers of a block begin together; request i is sent by caller i modulo their number. Close it, or use it as a
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
            raise UsageError("a closed loop needs a caller", hint="give one caller or more")
        return cls(tuple(requests), ThreadPoolExecutor(len(requests), thread_name_prefix="caller"))

    def __call__(self, start: int, count: int) -> list[int]:
        callers = len(self.requests)
        barrier = threading.Barrier(callers)
        futures = [
            self.pool.submit(_send, request, range(start + caller, start + count, callers), barrier)
            for caller, request in enumerate(self.requests)
        ]
        times = [0] * count
        for caller, future in enumerate(futures):
            times[caller::callers] = future.result()
        return times

    def __enter__(self) -> Callers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown()


def _send(request: Callable[[int], object], indices: range, barrier: threading.Barrier) -> list[int]:
    barrier.wait()
    return time_requests(request, indices)
