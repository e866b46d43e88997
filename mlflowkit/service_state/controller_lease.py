"""The lease on controlling the rollouts of a state folder: one holder at a time, numbered by a fencing token.

``<state>/controller.json`` names the holder, its last heartbeat, and the fence, which grows with every acquisition. A
holder whose process is gone is replaced at once, one that does not respond (stopped, swapped out, on a machine that is
gone) after EXPIRY_SECONDS. When it resumes, its fence is smaller: `ControllerLease.guard` refuses its writes, and it
cannot replace a gateway's table that has a larger fence.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mlflowkit.errors import ServiceError
from mlflowkit.ports import ControlRecords
from mlflowkit.service_state.records import control_records, process_started
from mlflowkit.system.files import make_folder
from mlflowkit.system.text import shell_word

_KEY = "controller.json"
_LOCK = "controller"
EXPIRY_SECONDS = 10.0
"""Time without a heartbeat after which a holder loses the lease, if its process is not known to be gone."""
BEAT_SECONDS = 2.0


class LeaseLostError(ServiceError):
    """Another controller took over while this one did not respond."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The holder of the lease. ``seen`` is its last heartbeat in seconds since the epoch."""

    fence: int
    pid: int
    started: float
    node: str
    seen: float

    def is_gone(self, now: float) -> bool:
        """Whether its process is gone, or its heartbeat too old (or in the future: a clock moved)."""
        if self.node == socket.gethostname() and process_started(self.pid) != self.started:
            return True
        return abs(now - self.seen) > EXPIRY_SECONDS


class ControllerLease:
    """The right to control the rollouts of ``state``, under ``fence``."""

    def __init__(self, state: Path, records: ControlRecords, fence: int, clock: Callable[[], float]) -> None:
        self.fence = fence
        self._state = state
        self._records = records
        self._clock = clock

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Prevent a takeover while the block runs. Raises LeaseLostError when the lease is already lost."""
        with self._records.lock(_LOCK):
            self.check()
            yield

    def check(self) -> None:
        """Raise LeaseLostError when another controller has taken over."""
        holder = _read(self._records)
        if holder is None or holder.fence != self.fence:
            raise LeaseLostError(
                f"another controller took over the rollouts of {self._state}",
                hint="nothing to do: the other controller continues",
            )

    def renew(self) -> None:
        """Write a heartbeat. Raises LeaseLostError."""
        with self.guard():
            _write(self._records, _this_process(self.fence, self._clock()))

    def release(self) -> None:
        """Let another controller acquire the lease at once; the fence stays."""
        with self._records.lock(_LOCK):
            holder = _read(self._records)
            if holder is not None and holder.fence == self.fence:
                _write(self._records, Holder(self.fence, 0, 0.0, socket.gethostname(), 0.0))


def acquire(state: Path, clock: Callable[[], float] = time.time) -> ControllerLease | None:
    """Acquire the lease; None while a live controller holds it.

    >>> import tempfile
    >>> state = Path(tempfile.mkdtemp())
    >>> first = acquire(state)
    >>> first.fence, acquire(state)
    (1, None)
    >>> first.release(); acquire(state).fence
    2
    """
    make_folder(state)
    records = control_records(state)
    with records.lock(_LOCK):
        holder = _read(records)
        if holder is not None and not holder.is_gone(clock()):
            return None
        fence = 1 if holder is None else holder.fence + 1
        _write(records, _this_process(fence, clock()))
    return ControllerLease(state, records, fence, clock)


def read_holder(state: Path) -> Holder | None:
    """Read the holder; None before the first. Raises ServiceError when the record is damaged."""
    return _read(control_records(state))


def _read(records: ControlRecords) -> Holder | None:
    record = records.get(_KEY)
    try:
        return None if record is None else Holder(**json.loads(record.value))
    except (ValueError, TypeError, RecursionError) as error:
        place = records.location(_KEY)
        raise ServiceError(
            f"{place} is damaged: {error!r}", hint=f"cat {shell_word(place)}; correct it, and do not lower its fence"
        ) from error


def _this_process(fence: int, now: float) -> Holder:
    return Holder(fence, os.getpid(), process_started(os.getpid()) or 0.0, socket.gethostname(), now)


def _write(records: ControlRecords, holder: Holder) -> None:
    records.put(_KEY, json.dumps(asdict(holder)).encode())
