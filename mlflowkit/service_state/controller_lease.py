"""Who controls the rollouts of a state folder: one process at a time, numbered by a fence.

``<state>/controller.json`` names the holder, when it last was seen, and the fence, which grows with every taking. A
holder whose process is gone is followed at once, one that stands still (stopped, swapped out, on a machine that is
gone) after EXPIRY_SECONDS. A holder that wakes up then has the smaller fence: `Lease.guard` lets it write nothing any
more, and a gateway's table with a larger fence is not replaced by its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mlflowkit.errors import ServiceError
from mlflowkit.system.files import replace_file
from mlflowkit.system.machine import process_ticks

EXPIRY_SECONDS = 10.0
"""How long a holder whose process cannot be seen to be gone may stand still."""
BEAT_SECONDS = 2.0


class LeaseLostError(ServiceError):
    """Another controller took over while this one stood still."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lease. ``seen`` is seconds since the epoch."""

    fence: int
    pid: int
    started: float
    node: str
    seen: float

    def gone(self, now: float) -> bool:
        """Whether the holder is known to be gone, or was not seen for too long (also in the future: a clock moved)."""
        if self.node == socket.gethostname() and _started(self.pid) != self.started:
            return True
        return abs(now - self.seen) > EXPIRY_SECONDS


class Lease:
    """The right to control the rollouts of ``state``, under ``fence``."""

    def __init__(self, state: Path, fence: int, clock: Callable[[], float]) -> None:
        self.fence = fence
        self._state = state
        self._clock = clock

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Do something while nobody can take over. Raises LeaseLostError when somebody has."""
        with _locked(self._state):
            self.check()
            yield

    def check(self) -> None:
        """Raise LeaseLostError when somebody else has taken over."""
        holder = read(self._state)
        if holder is None or holder.fence != self.fence:
            raise LeaseLostError(
                f"another controller took over the rollouts of {self._state}",
                hint="nothing to do: the other controller goes on",
            )

    def beat(self) -> None:
        """Say that the holder is alive. Raises LeaseLostError."""
        with self.guard():
            _write(self._state, _me(self.fence, self._clock()))

    def release(self) -> None:
        """Let others follow at once; the fence stays."""
        with _locked(self._state):
            holder = read(self._state)
            if holder is not None and holder.fence == self.fence:
                _write(self._state, Holder(self.fence, 0, 0.0, socket.gethostname(), 0.0))


def take(state: Path, clock: Callable[[], float] = time.time) -> Lease | None:
    """The lease, or None while a living controller holds it.

    >>> import tempfile
    >>> state = Path(tempfile.mkdtemp())
    >>> first = take(state)
    >>> first.fence, take(state)
    (1, None)
    >>> first.release(); take(state).fence
    2
    """
    state.mkdir(parents=True, exist_ok=True)
    with _locked(state):
        holder = read(state)
        if holder is not None and not holder.gone(clock()):
            return None
        fence = 1 if holder is None else holder.fence + 1
        _write(state, _me(fence, clock()))
    return Lease(state, fence, clock)


def read(state: Path) -> Holder | None:
    """The holder as the file has it; None before the first. Raises ServiceError when the file is damaged."""
    path = state / "controller.json"
    try:
        return Holder(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServiceError(f"{path} cannot be read: {error.strerror}", hint=f"ls -ld {path}") from error
    except (ValueError, TypeError) as error:
        raise ServiceError(f"{path} is damaged: {error!r}", hint=f"see {path}; its fence must not shrink") from error


def _me(fence: int, now: float) -> Holder:
    return Holder(fence, os.getpid(), _started(os.getpid()) or 0.0, socket.gethostname(), now)


def _started(pid: int) -> float | None:
    ticks = process_ticks(pid)
    return None if ticks is None else float(ticks)


def _write(state: Path, holder: Holder) -> None:
    replace_file(state / "controller.json", json.dumps(asdict(holder)).encode())


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    with (state / "controller.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
