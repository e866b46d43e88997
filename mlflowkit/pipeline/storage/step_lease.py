"""Step leases: one live owner per fingerprint, with a fencing number.

A lease is taken in one journal transaction. An owner on this machine is alive while its process (pid and start time)
is; on another, while its heartbeat changes. Taking a lease raises the fence, and only the holder of the current fence
can publish: an owner mistaken for dead cannot.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from mlflowkit.system.machine import process_ticks
from mlflowkit.values import HeldLease, Owner

HEARTBEAT_SECONDS = 2.0
EXPIRY_SECONDS = 20.0
"""An owner on another machine whose heartbeat did not change for this long is considered dead."""


def this_owner() -> Owner:
    """The calling process as an owner."""
    pid = os.getpid()
    return Owner(_host(), pid, _start_time(pid) or "")


def is_alive(owner: Owner) -> bool | None:
    """Whether an owner's process is alive; None when it is on another machine.

    >>> is_alive(this_owner()), is_alive(Owner("elsewhere", 1, "0"))
    (True, None)
    """
    if owner.host != _host():
        return None
    return _start_time(owner.pid) == owner.started


def _start_time(pid: int) -> str | None:
    """Start time of a live process, else None (a zombie is not alive)."""
    if not Path("/proc/self/stat").exists():
        return _start_time_without_proc(pid)
    ticks = process_ticks(pid)
    return None if ticks is None else str(ticks)


def _start_time_without_proc(pid: int) -> str | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return None


@lru_cache(maxsize=1)
def _host() -> str:
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [platform.node()]
    if boot.exists():
        parts.append(boot.read_text().strip())
    if namespace.exists():
        parts.append(os.readlink(namespace))
    return "/".join(parts)


@dataclass
class LeaseWatcher:
    """Detects a dead owner from successive reads of its lease."""

    clock: Callable[[], float] = time.monotonic
    _last_beat: tuple[int, int] | None = None
    _since: float = 0.0

    def is_dead(self, held: HeldLease) -> bool:
        """Whether the owner is known to be dead now.

        >>> now = [0.0]
        >>> watcher = LeaseWatcher(clock=lambda: now[0])
        >>> held = HeldLease(Owner("elsewhere", 1, "0"), "run", "train", heartbeat=3, fence=1)
        >>> watcher.is_dead(held)
        False
        >>> now[0] = EXPIRY_SECONDS + 1
        >>> watcher.is_dead(held)
        True
        """
        alive = is_alive(held.owner)
        if alive is not None:
            return not alive
        beat = (held.fence, held.heartbeat)
        if beat != self._last_beat:
            self._last_beat, self._since = beat, self.clock()
        return self.clock() - self._since > EXPIRY_SECONDS


@dataclass
class Heartbeat:
    """Renews a lease from a thread inside a ``with`` block.

    A failed renewal (full disk, locked journal) is kept in ``failure`` and retried: the fence protects the result.
    """

    beat: Callable[[], None]
    seconds: float = HEARTBEAT_SECONDS
    failure: Exception | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Heartbeat:
        self._thread = threading.Thread(target=self._run, name="mlkit-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self.seconds):
            try:
                self.beat()
                self.failure = None
            except Exception as error:  # noqa: BLE001 - retried; publishing checks the fence
                self.failure = error
