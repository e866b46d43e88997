"""A thread that does what is handed to it, behind a queue of so many bytes."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

WAITING_BYTES = 64 << 20
"""What may wait for the disk, or for the profiler; more is dropped."""
_log = logging.getLogger("mlflowkit.observer")


class Worker:
    """A thread with a bounded queue: what does not fit is dropped and counted."""

    def __init__(self, name: str, tick: Callable[[], None], close: Callable[[], None]) -> None:
        self.dropped = 0
        self._queue: queue.SimpleQueue[tuple[int, int, Callable[[], None]] | None] = queue.SimpleQueue()
        self._bytes = 0
        self._lock = threading.Lock()
        self._complaint = ""
        self._tick, self._close = tick, close
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def offer(self, work: Callable[[], None], *, size: int, rows: int) -> None:
        """Have ``work`` done, which holds ``size`` bytes for so long."""
        with self._lock:
            if self._bytes > WAITING_BYTES:
                self.dropped += rows
                return
            self._bytes += size
        self._queue.put((size, rows, work))

    def stop(self, seconds: float) -> None:
        """Do what is queued, for up to ``seconds``."""
        self._queue.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=0.25)
            except queue.Empty:
                self._guarded(self._tick, 0)
                continue
            if item is None:
                self._close()
                return
            size, rows, work = item
            self._guarded(work, rows)
            with self._lock:
                self._bytes -= size
            self._guarded(self._tick, 0)

    def _guarded(self, work: Callable[[], None], rows: int) -> None:
        """Do something; whatever fails costs its rows, not the thread."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - counted, and told with its traceback when it is another than before
            self.dropped += rows
            if repr(error) != self._complaint:
                _log.exception("the %s thread", self._thread.name)
            self._complaint = repr(error)
