"""Takes records off the request path and hands them to the replica's observer, a process of its own.

`ObserverTap.answered` and `ObserverTap.compared` append to a bounded queue and return. A thread empties it every
TURN_SECONDS, makes Arrow batches of what it found and writes them to the observer's pipe without ever waiting for it
longer than a turn. What does not fit is dropped and counted: an observer that hangs fills its pipe, then the backlog,
and costs nothing more; one that ended is started again, after ever longer pauses; one that reads nothing for
STALL_SECONDS is ended first.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlflowkit.serving.inference.answer_records import Mirrored, Record
from mlflowkit.serving.observer import frames
from mlflowkit.values import RoutingTable

TURN_SECONDS = 0.05
QUEUE_RECORDS = 32_768
"""Records that wait for a turn; more are dropped."""
BACKLOG_BYTES = 32 << 20
"""Encoded batches that wait for the observer; while there are more, records are dropped unread."""
STALL_SECONDS = 30.0
"""An observer that has read nothing for as long, with something to read, is ended."""
PAUSES = (0.1, 0.5, 2.0, 10.0, 30.0)
"""Seconds before an observer that ended is started again; the last holds from then on."""
STEADY_SECONDS = 60.0
"""One that lasted as long begins with the first pause again."""
PIPE_BYTES = 1 << 20
TABLES = 64
"""Routing tables that a restarted observer is told again."""
_log = logging.getLogger("mlflowkit.serving")
Encoder = Callable[[Any, Any], Any]


def command(folder: Path, replica: str, profiler: str) -> list[str]:
    """How an observer is started; ``profiler`` is the ``module:class`` of a Profiler, or "" for no profiles."""
    return [sys.executable, "-m", "mlflowkit.serving.observer.observer_process", str(folder), replica, profiler]


class ObserverTap:
    """The Tap of a gateway replica. Neither verb waits, fails or takes longer than a microsecond.

    ``argv`` is the command line of the observer (see `command`).
    """

    def __init__(self, argv: Sequence[str], *, backlog_bytes: int = BACKLOG_BYTES) -> None:
        self._argv = list(argv)
        self._limit = backlog_bytes
        self._queue: deque[Record | Mirrored | RoutingTable] = deque()
        self._tables: deque[RoutingTable] = deque(maxlen=TABLES)
        self._backlog: deque[tuple[memoryview, memoryview]] = deque()
        self._backlog_bytes = 0
        self._sent = 0
        self._observer: subprocess.Popen[bytes] | None = None
        self._started = self._progress = self._next_start = 0.0
        self._failures = 0
        self._reported = b""
        self._overflowed = 0
        self._counts = {"observed": 0, "dropped": 0, "unencodable": 0, "restarts": 0, "stalls": 0}
        self._theirs: Mapping[str, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlkit-tap", daemon=True)
        self._thread.start()

    def answered(self, record: Record) -> None:
        """Take the record of an answered request, or drop and count it."""
        if len(self._queue) < QUEUE_RECORDS:
            self._queue.append(record)
        else:
            self._overflowed += 1

    def compared(self, mirrored: Mirrored) -> None:
        """Take a mirrored request with the shadow's answer, or drop and count it."""
        if len(self._queue) < QUEUE_RECORDS:
            self._queue.append(mirrored)
        else:
            self._overflowed += 1

    def follow(self, table: RoutingTable) -> None:
        """Tell the observer of a table, before the first record that is made under it."""
        self._queue.append(table)

    def counters(self) -> Mapping[str, float]:
        """What was counted, by name: gauges ``queued`` and ``backlog_bytes``, the rest only grows.

        observed (records handed over), dropped, unencodable (records whose arrays do not fit together), restarts and
        stalls of the observer; and what the observer last said of itself, prefixed with ``observer_``.
        """
        theirs = {f"observer_{name}": value for name, value in self._theirs.items()}
        counts = {**self._counts, "dropped": self._counts["dropped"] + self._overflowed}
        return {"queued": len(self._queue), "backlog_bytes": self._backlog_bytes, **counts, **theirs}

    @property
    def pid(self) -> int | None:
        """The observer's process id; None while there is none."""
        observer = self._observer
        return None if observer is None else observer.pid

    def stop(self, seconds: float = 3.0) -> None:
        """Hand over what is queued, let the observer write it down for up to ``seconds``, and end it."""
        self._stopping.set()
        self._thread.join(seconds)
        observer = self._observer
        if observer is None:
            return
        self._observer = None
        assert observer.stdin is not None  # it was started with a pipe
        observer.stdin.close()
        try:
            observer.wait(seconds)
        except subprocess.TimeoutExpired:
            observer.kill()
            observer.wait()

    def _run(self) -> None:
        while True:
            last = self._stopping.is_set()
            begin = time.monotonic()
            try:
                self._turn(begin + (1.0 if last else TURN_SECONDS))
            except Exception:  # noqa: BLE001 - the thread must go on; told with its traceback
                _log.exception("the tap lost what it had gathered in one turn")
            if last:
                return
            self._stopping.wait(max(0.001, TURN_SECONDS - (time.monotonic() - begin)))

    def _turn(self, until: float) -> None:
        """Keep the observer running, gather what is queued, hand over what fits."""
        self._supervise()
        records: list[Record | Mirrored] = []
        for _ in range(len(self._queue)):
            taken = self._queue.popleft()
            if isinstance(taken, RoutingTable):
                self._gather(records)
                records = []
                self._tables.append(taken)
                self._put(frames.TABLE, json.dumps(asdict(taken)).encode())
            else:
                records.append(taken)
        self._gather(records)
        if self._observer is not None:
            self._write(self._observer, until)
            self._listen(self._observer)

    def _gather(self, records: Sequence[Record | Mirrored]) -> None:
        if self._backlog_bytes > self._limit:
            self._counts["dropped"] += len(records)
            return
        answered = [record for record in records if isinstance(record, Record) and record.rows]
        compared = [record for record in records if isinstance(record, Mirrored) and record.record.rows]
        self._encode(frames.ANSWERED, frames.answered_groups(answered), frames.answered_payload)
        self._encode(frames.COMPARED, frames.compared_groups(compared), frames.compared_payload)

    def _encode(self, kind: bytes, groups: Iterable[tuple[Any, Sequence[Any]]], payload: Encoder) -> None:
        for head, members in groups:
            try:
                self._put(kind, payload(head, members))
            except Exception as error:  # noqa: BLE001 - whatever an array does not allow: counted, told once
                if not self._counts["unencodable"]:
                    _log.error("records of version %s cannot be observed: %r", head.version, error)
                self._counts["unencodable"] += len(members)
            else:
                self._counts["observed"] += len(members)

    def _put(self, kind: bytes, payload: Any) -> None:
        head, content = frames.frame(kind, payload)
        prefix, body = memoryview(head), memoryview(content)
        self._backlog.append((prefix, body))
        self._backlog_bytes += len(prefix) + len(body)

    def _write(self, observer: subprocess.Popen[bytes], until: float) -> None:
        """Write until the backlog is empty or the turn is over; the pipe never blocks."""
        pipe = _fd(observer.stdin)
        while self._backlog:
            prefix, body = self._backlog[0]
            left = len(prefix) - self._sent
            try:
                self._sent += os.writev(pipe, [prefix[self._sent :], body] if left > 0 else [body[-left:]])
            except BlockingIOError:
                if not select.select([], [pipe], [], max(0.0, until - time.monotonic()))[1]:
                    return
                continue
            except BrokenPipeError:
                return
            self._progress = time.monotonic()
            if self._sent == len(prefix) + len(body):
                self._backlog.popleft()
                self._backlog_bytes -= self._sent
                self._sent = 0
        self._progress = time.monotonic()

    def _listen(self, observer: subprocess.Popen[bytes]) -> None:
        """Read what the observer counted: a line of JSON a second, the last whole one holds."""
        assert observer.stdout is not None  # it was started with a pipe
        try:
            self._reported += os.read(observer.stdout.fileno(), 65_536)
        except BlockingIOError:
            return
        *lines, self._reported = self._reported.split(b"\n")
        if lines:
            self._theirs = json.loads(lines[-1])

    def _supervise(self) -> None:
        """Start the observer where there is none, after a pause that grows; end one that has stopped reading."""
        now = time.monotonic()
        observer = self._observer
        if observer is not None and observer.poll() is None:
            if self._backlog and now - self._progress > STALL_SECONDS:
                self._counts["stalls"] += 1
                _log.error("the observer (process %d) reads nothing; it is started again", observer.pid)
                observer.kill()
                self._progress = now
            return
        if observer is not None:
            self._lost(observer, now)
        if now >= self._next_start and not self._stopping.is_set():
            self._start(now)

    def _lost(self, observer: subprocess.Popen[bytes], now: float) -> None:
        """Note that an observer ended; a frame that it got a part of is sent anew, one that it had is gone."""
        self._failures = 0 if now - self._started > STEADY_SECONDS else self._failures
        self._next_start = now + PAUSES[min(self._failures, len(PAUSES) - 1)]
        self._failures += 1
        _log.error("the observer (process %d) ended with %s", observer.pid, observer.returncode)
        for stream in (observer.stdin, observer.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        self._observer = None
        self._theirs, self._reported = {}, b""

    def _start(self, now: float) -> None:
        if self._started:
            self._counts["restarts"] += 1
        try:
            observer = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        except OSError as error:
            self._next_start = now + PAUSES[-1]
            _log.error("the observer does not start: %s", error)
            return
        for stream in (observer.stdin, observer.stdout):
            os.set_blocking(_fd(stream), False)
        with contextlib.suppress(OSError):  # a smaller pipe does as well
            fcntl.fcntl(_fd(observer.stdin), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._observer = observer
        self._started = self._progress = now
        self._restore()

    def _restore(self) -> None:
        """Have a new observer begin with the tables that it needs, and with a whole frame."""
        waiting = list(self._backlog)
        self._backlog.clear()
        self._backlog_bytes = self._sent = 0
        for table in self._tables:
            self._put(frames.TABLE, json.dumps(asdict(table)).encode())
        self._backlog.extend(waiting)
        self._backlog_bytes += sum(len(prefix) + len(body) for prefix, body in waiting)


def _fd(stream: Any) -> int:
    return int(stream.fileno())
