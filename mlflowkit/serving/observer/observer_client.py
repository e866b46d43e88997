"""Takes records off the request path and hands them to the replica's observer, a separate process.

`ObserverClient.answered` and `ObserverClient.compared` append to a bounded queue and return. A thread empties the queue
every FLUSH_SECONDS, encodes Arrow batches and writes them to the observer's pipe, without blocking on the pipe for
longer than one flush. Records that do not fit are dropped and counted: an observer that hangs fills its pipe, then the
backlog, and costs nothing more. An observer that exits is restarted with growing pauses; one that reads nothing for
STALL_SECONDS is killed and restarted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import select
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlflowkit.serving.inference.answer_records import MirrorRecord, Record
from mlflowkit.serving.observer import frames
from mlflowkit.serving.observer.answered_ledger import AnsweredLedger
from mlflowkit.serving.protocol.http_error import RequestError, refusal_reason
from mlflowkit.system.child_process import module_command
from mlflowkit.values import RoutingTable

FLUSH_SECONDS = 0.05
MAX_QUEUED_RECORDS = 32_768
BACKLOG_BYTES = 32 << 20
"""Encoded batches that wait for the observer; while there are more, records are dropped unencoded."""
STALL_SECONDS = 30.0
RESTART_PAUSES = (0.1, 0.5, 2.0, 10.0, 30.0)
"""Seconds before the first, second, ... restart of an observer that exits; the last repeats."""
STABLE_SECONDS = 60.0
"""An observer that ran this long resets the restart pauses."""
PIPE_BYTES = 1 << 20
MAX_TABLES = 64
"""Routing tables that are sent again to a restarted observer."""
_log = logging.getLogger("mlflowkit.serving")


def observer_command(folder: Path, replica: str, profiler: str) -> list[str]:
    """The observer's command line; ``profiler`` is the ``module:class`` of a profiler, or "" for no profiles."""
    return module_command("mlflowkit.serving.observer.observer_process", str(folder), replica, profiler)


class ObserverClient:
    """The RecordSink of a gateway replica, given an `observer_command`. Its methods do not block or raise.

    ``ledger`` counts what was answered on the thread that calls `answered`, before anything can be lost.
    """

    def __init__(
        self, argv: Sequence[str], *, ledger: AnsweredLedger | None = None, backlog_bytes: int = BACKLOG_BYTES
    ) -> None:
        self._argv = list(argv)
        self._ledger = ledger
        self._limit = backlog_bytes
        self._queue: deque[Record | MirrorRecord | RoutingTable] = deque()
        self._tables: deque[RoutingTable] = deque(maxlen=MAX_TABLES)
        self._backlog: deque[tuple[memoryview, memoryview]] = deque()
        self._backlog_bytes = self._sent = self._failures = self._overflowed = 0
        self._observer: subprocess.Popen[bytes] | None = None
        self._started = self._last_write = self._next_start = 0.0
        self._counts = {"observed": 0, "dropped": 0, "unencodable": 0, "restarts": 0, "stalls": 0}
        self._report_buffer = b""
        self._observer_counts: Mapping[str, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlkit-observer-client", daemon=True)
        self._thread.start()

    def answered(self, record: Record | MirrorRecord) -> None:
        """Count an answered request in the ledger; queue its record, or drop and count it."""
        if self._ledger is not None and type(record) is Record:
            self._ledger.count(record)
        if len(self._queue) < MAX_QUEUED_RECORDS:
            self._queue.append(record)
        else:
            self._overflowed += 1

    def compared(self, mirrored: MirrorRecord) -> None:
        """Queue a mirrored request with the shadow's answer, or drop and count it."""
        self.answered(mirrored)

    def refused(self, version: str, error: RequestError) -> None:
        """Count a request that a version's inputs refused."""
        if self._ledger is not None:
            self._ledger.refuse(version, *refusal_reason(error))

    def send_table(self, table: RoutingTable) -> None:
        """Queue a routing table; call it before the first record that is answered under the table."""
        self._queue.append(table)

    def counters(self) -> Mapping[str, float]:
        """Return counters by name: gauges ``queued`` and ``backlog_bytes``; the others only grow.

        observed (records handed over), dropped, unencodable (records whose arrays do not fit together), restarts and
        stalls of the observer; and the observer's own last report, prefixed with ``observer_``.
        """
        reported = {f"observer_{name}": value for name, value in self._observer_counts.items()}
        counts = {**self._counts, "dropped": self._counts["dropped"] + self._overflowed}
        return {"queued": len(self._queue), "backlog_bytes": self._backlog_bytes, **counts, **reported}

    @property
    def pid(self) -> int | None:
        """The observer's process id; None while there is none."""
        observer = self._observer
        return None if observer is None else observer.pid

    def stop(self, seconds: float = 3.0) -> None:
        """Hand over what is queued, let the observer write for up to ``seconds``, and end it."""
        self._stopping.set()
        self._thread.join(seconds)
        observer, self._observer = self._observer, None
        if observer is None:
            return
        assert observer.stdin is not None  # it was started with a pipe
        observer.stdin.close()
        try:
            observer.wait(seconds)
        except subprocess.TimeoutExpired:
            observer.kill()
            observer.wait()

    def _run(self) -> None:
        last = False
        while not last:
            last = self._stopping.is_set()
            begin = time.monotonic()
            try:
                self._flush(begin + (1.0 if last else FLUSH_SECONDS))
            except Exception:  # noqa: BLE001 - the thread must go on
                _log.exception("the observer client lost the records of one flush")
            self._stopping.wait(max(0.001, FLUSH_SECONDS - (time.monotonic() - begin)))

    def _flush(self, deadline: float) -> None:
        """Keep the observer running, encode what is queued and write what fits."""
        self._supervise()
        records: list[Record | MirrorRecord] = []
        for _ in range(len(self._queue)):
            item = self._queue.popleft()
            if isinstance(item, RoutingTable):
                self._encode_records(records)
                records = []
                self._tables.append(item)
                self._append_frame(frames.TABLE, json.dumps(asdict(item)).encode())
            else:
                records.append(item)
        self._encode_records(records)
        if self._observer is not None:
            self._write(self._observer, deadline)
            self._read_report(self._observer)

    def _encode_records(self, records: Sequence[Record | MirrorRecord]) -> None:
        if self._backlog_bytes > self._limit:
            self._counts["dropped"] += len(records)
            return
        filled = [item for item in records if (item.rows if isinstance(item, Record) else item.record.rows)]
        for header, members in frames.group_records(filled):
            try:
                if header.shadow:
                    self._append_frame(frames.COMPARED, frames.encode_mirrored(header, members))
                else:
                    self._append_frame(frames.ANSWERED, frames.encode_records(header, members))
            except Exception as error:  # noqa: BLE001 - arrays may be anything; logged the first time
                if not self._counts["unencodable"]:
                    _log.error("records of version %s cannot be observed: %r", header.version, error)
                self._counts["unencodable"] += len(members)
            else:
                self._counts["observed"] += len(members)

    def _append_frame(self, kind: bytes, payload: Any) -> None:
        header, content = frames.encode_frame(kind, payload)
        prefix, body = memoryview(header), memoryview(content)
        self._backlog.append((prefix, body))
        self._backlog_bytes += len(prefix) + len(body)

    def _write(self, observer: subprocess.Popen[bytes], deadline: float) -> None:
        """Write until the backlog is empty or the deadline is over; the pipe is non-blocking."""
        pipe = _fd(observer.stdin)
        while self._backlog:
            prefix, body = self._backlog[0]
            rest = [prefix[self._sent :], body[max(0, self._sent - len(prefix)) :]]
            try:
                self._sent += os.writev(pipe, rest)
            except BlockingIOError:
                if not select.select([], [pipe], [], max(0.0, deadline - time.monotonic()))[1]:
                    return
                continue
            except BrokenPipeError:
                return
            self._last_write = time.monotonic()
            if self._sent == len(prefix) + len(body):
                self._backlog.popleft()
                self._backlog_bytes -= self._sent
                self._sent = 0
        self._last_write = time.monotonic()

    def _read_report(self, observer: subprocess.Popen[bytes]) -> None:
        """Read the observer's counters: it prints a line of JSON per second, and the last complete line holds."""
        try:
            self._report_buffer += os.read(_fd(observer.stdout), 65_536)
        except BlockingIOError:
            return
        *lines, self._report_buffer = self._report_buffer.split(b"\n")
        if lines:
            self._observer_counts = json.loads(lines[-1])

    def _supervise(self) -> None:
        """Start the observer when there is none and the restart pause is over; kill it when it has stalled."""
        now = time.monotonic()
        observer = self._observer
        if observer is not None and observer.poll() is None:
            if self._backlog and now - self._last_write > STALL_SECONDS:
                self._counts["stalls"] += 1
                _log.error("the observer (process %d) reads nothing; restarting it", observer.pid)
                observer.kill()
                self._last_write = now
            return
        if observer is not None:
            self._clean_up_after(observer, now)
        if now >= self._next_start and not self._stopping.is_set():
            self._start(now)

    def _clean_up_after(self, observer: subprocess.Popen[bytes], now: float) -> None:
        self._failures = 0 if now - self._started > STABLE_SECONDS else self._failures
        self._next_start = now + RESTART_PAUSES[min(self._failures, len(RESTART_PAUSES) - 1)]
        self._failures += 1
        _log.error("the observer (process %d) ended with %s", observer.pid, observer.returncode)
        for stream in (observer.stdin, observer.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        self._observer = None
        self._observer_counts, self._report_buffer = {}, b""

    def _start(self, now: float) -> None:
        if self._started:
            self._counts["restarts"] += 1
        try:
            observer = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        except OSError as error:
            self._next_start = now + RESTART_PAUSES[-1]
            _log.error("the observer does not start: %s", error)
            return
        for stream in (observer.stdin, observer.stdout):
            os.set_blocking(_fd(stream), False)
        with contextlib.suppress(OSError):  # a smaller pipe works too
            fcntl.fcntl(_fd(observer.stdin), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._observer = observer
        self._started = self._last_write = now
        # The known tables go before the backlog; a frame that the last observer read in part is sent again whole.
        waiting = list(self._backlog)
        self._backlog.clear()
        self._backlog_bytes = self._sent = 0
        for table in self._tables:
            self._append_frame(frames.TABLE, json.dumps(asdict(table)).encode())
        self._backlog.extend(waiting)
        self._backlog_bytes += sum(len(prefix) + len(body) for prefix, body in waiting)


def _fd(stream: Any) -> int:
    return int(stream.fileno())
