"""Feedback intake: ground truth for answered requests, which may arrive days later and more than once.

``POST /v2/feedback`` takes ``{"id": request id, "label" | "target": value, "time": seconds since the epoch}``, where
value is a list for a request of several rows (null for a row whose truth is not known yet), or many such items as
``{"feedback": [...]}``. The reply is 202 once the items are on disk. Whether the request exists is not checked here:
`join` matches feedback and answers in whatever order they appear; duplicates do no harm.

::

    <service>/feedback/<writer>-<number>.jsonl     a line per item: {"id", "label" | "target", "time", "received",
                                                   "source"}

``source`` is the id of the API key that sent the item, and absent where no key was asked for.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, Literal

from mlflowkit.errors import closest_match
from mlflowkit.serving.auth import Keyring
from mlflowkit.serving.inference.batching import resolve
from mlflowkit.serving.protocol.http_error import RequestError
from mlflowkit.system.files import make_folder, private_opener
from mlflowkit.system.text import parse_json
from mlflowkit.values import Json

Kind = Literal["label", "target"]
KEYS = frozenset({"id", "label", "target", "time"})
ASKING = "+infer"
"""Suffix of a source whose key may also send the requests that it labels."""
FILE_BYTES = 16 << 20
MAX_QUEUED_ITEMS = 200_000
"""Items that wait for the disk; more are refused with 503."""
SWEEP_SECONDS = 60.0
SUFFIX = ".jsonl"
_RETRY_AFTER = ((b"retry-after", b"5"),)
_log = logging.getLogger("mlflowkit.serving")
_Submission = tuple[float, Sequence["Feedback"], "asyncio.Future[None]"]
"""(time received, items, what to resolve once they are on disk)."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """The ground truth of one request: ``values`` has a value per row, None where it is not known.

    ``time`` is when the truth became known, in seconds since the epoch, if the sender gave it. ``source`` is the id of
    the sender's API key, with the suffix ASKING if that key may also send requests; "" where no key is asked for.
    """

    id: str
    kind: Kind
    values: tuple[Json, ...]
    time: float | None = None
    source: str = ""

    def to_line(self, received: float) -> bytes:
        value = {"id": self.id, self.kind: list(self.values), "time": self.time, "received": received}
        if self.source:
            value["source"] = self.source
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> tuple[Feedback, float]:
        """Decode a line into (feedback, received). Raises ValueError, KeyError or TypeError when it is malformed."""
        value = parse_json(line)
        kind: Kind = "label" if "label" in value else "target"
        source = str(value.get("source", ""))
        return cls(value["id"], kind, tuple(value[kind]), value["time"], source), float(value["received"])


def feedback_source(keys: Keyring | None, token: bytes) -> str:
    """The source of what a client with a checked token sends; "" where no key is asked for."""
    if keys is None:
        return ""
    key, scopes = keys.scopes(token)
    return f"{key}{ASKING}" if "infer" in scopes else key


def parse_lines(lines: Iterable[bytes]) -> Iterator[tuple[Feedback, float]]:
    """(feedback, received) of each line; damaged lines are logged and skipped."""
    for line in lines:
        try:
            yield Feedback.from_line(line)
        except (ValueError, KeyError, TypeError) as error:
            _log.error("a line of feedback is damaged: %r", error)


def parse(document: Mapping[str, Any], *, limit: int, source: str = "") -> list[Feedback]:
    """Parse the items of a source's request. Raises RequestError 400 for the first invalid item, 413 above ``limit``.

    >>> parse({"id": "r1", "label": "good"}, limit=10)
    [Feedback(id='r1', kind='label', values=('good',), time=None, source='')]
    """
    items = document.get("feedback") if "feedback" in document else [document]
    if type(items) is not list or not items:
        raise RequestError(400, 'feedback: a list is needed, such as [{"id": "...", "label": "..."}]')
    if "feedback" in document and len(document) > 1:
        other = next(key for key in document if key != "feedback")
        raise RequestError(400, f"{_quote(other)} has no place beside feedback, which is a list of items")
    if len(items) > limit:
        raise RequestError(413, f"{len(items)} items; at most {limit} are accepted at once")
    many = "feedback" in document
    return [_parse_item(item, f"feedback[{index}]: " if many else "", source) for index, item in enumerate(items)]


def _parse_item(item: Any, prefix: str, source: str) -> Feedback:
    if type(item) is not dict:
        raise RequestError(400, f'{prefix}an object is needed, such as {{"id": "...", "label": "..."}}')
    for key in item:
        if key not in KEYS:
            match = closest_match(key, KEYS)
            advice = f"; did you mean {match}?" if match else ""
            raise RequestError(400, f"{prefix}unknown key {_quote(key)}{advice}")
    request_id, time_known = item.get("id"), item.get("time")
    if type(request_id) is not str or not 0 < len(request_id) <= 256:
        raise RequestError(400, f"{prefix}id: the request's id is needed, from the reply's header x-mlkit-request-id")
    if time_known is not None and (type(time_known) not in (int, float) or not 0 <= time_known < 1e11):
        raise RequestError(400, f"{prefix}time: seconds since 1970 are needed")
    if ("label" in item) == ("target" in item):
        raise RequestError(400, f"{prefix}either a label (classification) or a target (regression) is needed")
    kind: Kind = "label" if "label" in item else "target"
    values = tuple(item[kind]) if type(item[kind]) is list else (item[kind],)
    given = [value for value in values if value is not None]
    if not given:
        raise RequestError(400, f"{prefix}{kind}: no value is given")
    if kind == "label" and not all(map(_is_label, given)):
        raise RequestError(400, f"{prefix}label: text, a whole number, true or false is needed, or a list of them")
    if kind == "target" and not all(type(value) in (int, float) and abs(value) < 1e300 for value in given):
        raise RequestError(400, f"{prefix}target: a number is needed, or a list of them")
    return Feedback(request_id, kind, values, None if time_known is None else float(time_known), source)


def _is_label(value: Any) -> bool:
    """Whether a value can be a class label; JSON's 1.0 counts as the integer 1."""
    if type(value) is str:
        return len(value) <= 256
    is_integer = type(value) is int or (type(value) is float and value.is_integer())
    return type(value) is bool or (is_integer and abs(value) <= 1 << 53)


def _quote(key: object) -> str:
    return json.dumps(str(key)[:40], ensure_ascii=False)


class Intake:
    """Makes feedback durable off the event loop: all queued items are written and synced together (group commit).

    Belongs to one event loop and has one thread of its own. Files are removed after ``days``, and the oldest while all
    replicas' together are larger than ``megabytes``; ``warning`` tells the latter, "" if it did not happen.
    """

    def __init__(self, folder: Path, replica: str, *, days: float, megabytes: float = 1024.0) -> None:
        self.folder = folder
        self.days = days
        self.megabytes = megabytes
        self.accepted = 0
        self.warning = ""
        self._removed_bytes = 0
        self._writer = f"{replica}-{time.time_ns() // 1_000_000:x}"
        self._number = 0
        self._stream: BinaryIO | None = None
        self._queued_items = 0
        self._swept = time.monotonic()
        self._queue: SimpleQueue[_Submission | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def accept(self, items: Sequence[Feedback]) -> None:
        """Return once all items are on disk. Raises RequestError(503) when the disk is full or the queue too long."""
        if self._queued_items + len(items) > MAX_QUEUED_ITEMS:
            raise RequestError(503, "too much feedback is waiting for the disk", _RETRY_AFTER)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mlkit-feedback", daemon=True)
            self._thread.start()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queued_items += len(items)
        self._queue.put((time.time(), items, done))
        try:
            await done
        finally:
            self._queued_items -= len(items)
        self.accepted += len(items)

    def stop(self) -> None:
        """Write what is queued and end the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(5.0)

    def _run(self) -> None:
        running = True
        while running:
            queued = [self._queue.get()]
            while not self._queue.empty():
                queued.append(self._queue.get())
            running = None not in queued
            if group := [submission for submission in queued if submission is not None]:
                self._commit(group)
        if self._stream is not None:
            self._stream.close()

    def _commit(self, group: Sequence[_Submission]) -> None:
        failure: RequestError | None = None
        try:
            self._write(b"".join(item.to_line(received) for received, items, _ in group for item in items))
        except OSError as error:
            _log.error("feedback cannot be stored: %s", error)
            failure = RequestError(503, f"feedback cannot be stored now: {error.strerror or error}", _RETRY_AFTER)
        for *_, done in group:
            if not done.get_loop().is_closed():
                done.get_loop().call_soon_threadsafe(resolve, done, failure)
        if time.monotonic() - self._swept > SWEEP_SECONDS:
            self._remove_old_files()

    def _write(self, lines: bytes) -> None:
        """Append lines and sync. After a failed write the next one starts a new file: a reader may already have seen
        the partial line. A file that was removed while it was idle holds nothing: the lines go to a new one."""
        self._append(lines)
        if self._stream is not None and os.fstat(self._stream.fileno()).st_nlink == 0:
            self._stream.close()
            self._stream = None
            self._append(lines)

    def _append(self, lines: bytes) -> None:
        if self._stream is None or self._stream.tell() > FILE_BYTES:
            if self._stream is not None:
                self._stream.close()
                self._stream = None
            self._remove_old_files()
            make_folder(self.folder)
            self._number += 1
            path = self.folder / f"{self._writer}-{self._number:06d}{SUFFIX}"
            self._stream = open(path, "ab", buffering=0, opener=private_opener)  # noqa: SIM115  (open until it is full)
        try:
            view = memoryview(lines)
            while view:
                view = view[self._stream.write(view) :]
            os.fsync(self._stream.fileno())
        except OSError:
            stream, self._stream = self._stream, None
            stream.close()
            raise

    def _remove_old_files(self) -> None:
        """Remove files beyond the age, then the oldest until one more file fits into the size."""
        self._swept, now = time.monotonic(), time.time()
        files: list[tuple[float, int, Path]] = []
        for path in () if self.folder.is_symlink() else self.folder.glob(f"*{SUFFIX}"):
            try:
                status = path.stat()
                if now - status.st_mtime > self.days * 86_400:
                    path.unlink(missing_ok=True)
                else:
                    files.append((status.st_mtime, status.st_size, path))
            except OSError as error:  # another replica removed it, or access is denied: retried in a minute
                _log.warning("%s: %s", path, error)
        excess = sum(size for _, size, _ in files) + FILE_BYTES - self.megabytes * (1 << 20)
        for _, size, path in sorted(files):
            if excess <= 0:
                return
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                _log.warning("%s: %s", path, error)
                continue
            excess -= size
            self._removed_bytes += size
            self.warning = (
                f"feedback is larger than {self.megabytes:g} MiB: its oldest {self._removed_bytes >> 20} MiB were "
                "removed; a larger serve.feedback.max_mb keeps more"
            )
            _log.error("%s", self.warning)


def read_since(
    folder: Path, cursor: Mapping[str, int], *, max_bytes: int = 4 << 20
) -> Iterator[tuple[str, int, list[bytes]]]:
    """Read what was appended to each file after offset ``cursor[file]``: (file, next offset, complete lines).

    Reads about ``max_bytes`` of each file; call it again for more.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX))
    except FileNotFoundError:
        return
    for name in names:
        offset = cursor.get(name, 0)
        try:
            with (folder / name).open("rb") as stream:
                stream.seek(offset)
                data = stream.read(max_bytes)
                if len(data) == max_bytes and not data.endswith(b"\n"):
                    data += stream.readline()
        except FileNotFoundError:
            continue
        end = data.rfind(b"\n") + 1
        if end:
            yield name, offset + end, data[:end].split(b"\n")[:-1]
