"""Who does the work of a fingerprint: one owner at a time, known to be alive, numbered by a fence.

A lease is taken in one transaction of the journal. On this machine an owner is alive while its process (pid and
start time) is; elsewhere, while its heartbeat moves. Each taking raises the fence, and a result is published only
under the fence that the journal holds: an owner that was taken for dead can no longer publish.
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

HEARTBEAT_SECONDS = 2.0
EXPIRY_SECONDS = 20.0
"""How long the heartbeat of an owner on another machine may stand still before it is taken for dead."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, told from every other: machine (name, boot, pid namespace), pid and start time in clock ticks."""

    host: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"{self.host}|{self.pid}|{self.started}"

    @classmethod
    def parse(cls, text: str) -> Owner:
        """
        >>> Owner.parse(str(Owner("host", 7, "99"))) == Owner("host", 7, "99")
        True
        """
        host, pid, started = text.rsplit("|", 2)
        return cls(host, int(pid), started)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to do the work of ``fingerprint``."""

    fingerprint: str
    fence: int


@dataclass(frozen=True, slots=True)
class Held:
    """Somebody else's lease, as seen once. ``heartbeat`` is a counter that a living owner raises."""

    owner: Owner
    run: str
    stage: str
    heartbeat: int
    fence: int


def this_owner() -> Owner:
    """The calling process as an owner."""
    pid = os.getpid()
    return Owner(_host(), pid, _start_time(pid) or "")


def lives_here(owner: Owner) -> bool | None:
    """Whether an owner's process is alive; None when it is on another machine and cannot be asked.

    >>> lives_here(this_owner()), lives_here(Owner("elsewhere", 1, "0"))
    (True, None)
    """
    if owner.host != _host():
        return None
    return _start_time(owner.pid) == owner.started


def _start_time(pid: int) -> str | None:
    """Start time of a process that is not a zombie; None when there is none."""
    if not Path("/proc/self/stat").exists():
        return _start_time_elsewhere(pid)
    ticks = process_ticks(pid)
    return None if ticks is None else str(ticks)


def _start_time_elsewhere(pid: int) -> str | None:
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
class Watch:
    """Decides from successive looks at a foreign lease whether its owner is dead."""

    clock: Callable[[], float] = time.monotonic
    _seen: tuple[int, int] | None = None
    _since: float = 0.0

    def dead(self, held: Held) -> bool:
        """Whether the owner is dead as far as can be known now.

        >>> now = [0.0]
        >>> watch = Watch(clock=lambda: now[0])
        >>> held = Held(Owner("elsewhere", 1, "0"), "run", "train", heartbeat=3, fence=1)
        >>> watch.dead(held)
        False
        >>> now[0] = EXPIRY_SECONDS + 1
        >>> watch.dead(held)
        True
        """
        alive = lives_here(held.owner)
        if alive is not None:
            return not alive
        look = (held.fence, held.heartbeat)
        if look != self._seen:
            self._seen, self._since = look, self.clock()
        return self.clock() - self._since > EXPIRY_SECONDS


@dataclass
class Heartbeat:
    """Raises a lease's heartbeat from a thread until it is left.

    A beat that fails (a full disk, a journal that is locked for long) is kept in ``failure`` and tried again: what
    guards the result is the fence, not the beat.
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
            except Exception as error:  # noqa: BLE001 - kept for the one who publishes
                self.failure = error
