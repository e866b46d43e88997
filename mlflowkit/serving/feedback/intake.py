"""Feedback: what turned out to be true of requests that were answered, days later perhaps, and more than once.

``POST /v2/feedback`` takes ``{"id": request id, "label" | "target": value, "time": seconds since the epoch}``, the
value being a list for a request of several rows (null where nothing is known of a row yet), or many of those as
``{"feedback": [...]}``. It is answered with 202 once the disk has it. Whether there is such a request is not asked
here: `join` finds out, in whatever order the two become visible; saying the same again does no harm.

::

    <service>/feedback/<writer>-<number>.jsonl     one line an item: {"id", "label" | "target", "time", "received"}
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, Literal

from mlflowkit.errors import nearest
from mlflowkit.serving.protocol.http_error import Refusal
from mlflowkit.values import Json

Kind = Literal["label", "target"]
KEYS = frozenset({"id", "label", "target", "time"})
FILE_BYTES = 16 << 20
QUEUED_ITEMS = 200_000
"""Items that wait for the disk; more are refused with 503."""
SWEEP_SECONDS = 60.0
SUFFIX = ".jsonl"
_RETRY = ((b"retry-after", b"5"),)
_log = logging.getLogger("mlflowkit.serving")


@dataclass(frozen=True, slots=True)
class Feedback:
    """The truth of one request: ``values`` has one a row, None where it is not known.

    ``time`` is when it became known, in seconds since the epoch, as the sender says; None when it does not.
    """

    id: str
    kind: Kind
    values: tuple[Json, ...]
    time: float | None = None

    def line(self, received: float) -> bytes:
        """The line of JSON that is kept."""
        value = {"id": self.id, self.kind: list(self.values), "time": self.time, "received": received}
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> tuple[Feedback, float]:
        """What `line` was made of. Raises ValueError, KeyError or TypeError for anything else."""
        value = json.loads(line)
        kind: Kind = "label" if "label" in value else "target"
        return cls(value["id"], kind, tuple(value[kind]), value["time"]), float(value["received"])


def parse(document: Mapping[str, Any], *, limit: int) -> list[Feedback]:
    """The items of a body. Raises Refusal(400) that says which one is wrong, and how; all are taken, or none.

    >>> parse({"id": "r1", "label": "good"}, limit=10)
    [Feedback(id='r1', kind='label', values=('good',), time=None)]
    """
    items = document.get("feedback") if "feedback" in document else [document]
    if type(items) is not list or not items:
        raise Refusal(400, 'feedback: a list is needed, such as [{"id": "...", "label": "..."}]')
    if "feedback" in document and len(document) > 1:
        other = next(key for key in document if key != "feedback")
        raise Refusal(400, f"{_show(other)} has no place beside feedback, which is a list of items")
    if len(items) > limit:
        raise Refusal(413, f"{len(items)} items; at most {limit} are taken at once")
    return [_item(item, f"feedback[{index}]: " if "feedback" in document else "") for index, item in enumerate(items)]


def _item(item: Any, where: str) -> Feedback:
    if type(item) is not dict:
        raise Refusal(400, f'{where}an object is needed, such as {{"id": "...", "label": "..."}}')
    for key in item:
        if key not in KEYS:
            close = nearest(key, KEYS)
            raise Refusal(400, f"{where}{_show(key)} is not known" + (f"; did you mean {close}?" if close else ""))
    number, when = item.get("id"), item.get("time")
    if type(number) is not str or not 0 < len(number) <= 256:
        raise Refusal(400, f"{where}id: the request's id is needed, which x-mlkit-request-id of its reply said")
    if when is not None and (type(when) not in (int, float) or not 0 <= when < 1e11):
        raise Refusal(400, f"{where}time: seconds since 1970 are needed")
    if ("label" in item) == ("target" in item):
        raise Refusal(400, f"{where}either a label (classification) or a target (regression) is needed")
    kind: Kind = "label" if "label" in item else "target"
    given = item[kind]
    values = tuple(given) if type(given) is list else (given,)
    if not values or all(value is None for value in values):
        raise Refusal(400, f"{where}{kind}: nothing is said")
    for value in values:
        _check(kind, value, where)
    return Feedback(number, kind, values, None if when is None else float(when))


def _check(kind: Kind, value: Any, where: str) -> None:
    if value is None:
        return
    if kind == "label" and not _names(value):
        raise Refusal(400, f"{where}label: text, a whole number, true or false is needed, or a list of them")
    if kind == "target" and not (type(value) in (int, float) and abs(value) < 1e300):
        raise Refusal(400, f"{where}target: a number is needed, or a list of them")


def _names(value: Any) -> bool:
    """Whether a value can be a class's label; JSON's 1.0 is the whole number 1."""
    if type(value) is str:
        return len(value) <= 256
    whole = type(value) is int or (type(value) is float and value.is_integer())
    return type(value) is bool or (whole and abs(value) <= 1 << 53)


def _show(key: object) -> str:
    return json.dumps(str(key)[:40], ensure_ascii=False)


class Intake:
    """Makes feedback durable, off the event loop: all that waits is written and synced at once (group commit).

    Lives on one event loop and one thread of its own. ``days`` is how long files are kept.
    """

    def __init__(self, folder: Path, replica: str, *, days: float) -> None:
        self.folder = folder
        self.days = days
        self.accepted = self.refused = 0
        self._writer = f"{replica}-{time.time_ns() // 1_000_000:x}"
        self._number = 0
        self._stream: BinaryIO | None = None
        self._waiting = 0
        self._swept = time.monotonic()
        self._queue: SimpleQueue[tuple[Sequence[Feedback], asyncio.Future[None]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def accept(self, items: Sequence[Feedback]) -> None:
        """Return once the disk has all items. Raises Refusal(503) when it has no room, or too many wait for it."""
        if self._waiting + len(items) > QUEUED_ITEMS:
            self.refused += len(items)
            raise Refusal(503, "too much feedback waits for the disk already", _RETRY)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mlkit-feedback", daemon=True)
            self._thread.start()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting += len(items)
        self._queue.put((items, done))
        try:
            await done
        except Refusal:
            self.refused += len(items)
            raise
        finally:
            self._waiting -= len(items)
        self.accepted += len(items)

    def stop(self) -> None:
        """Write what waits, and end the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(5.0)

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            group = [first]
            last = False
            while not self._queue.empty():
                item = self._queue.get()
                last = item is None
                if item is None:
                    break
                group.append(item)
            self._commit(group)
            if last:
                break
        if self._stream is not None:
            self._stream.close()

    def _commit(self, group: Sequence[tuple[Sequence[Feedback], asyncio.Future[None]]]) -> None:
        now = time.time()
        refusal: Refusal | None = None
        try:
            self._write(b"".join(item.line(now) for items, _ in group for item in items))
        except OSError as error:
            _log.error("feedback cannot be kept: %s", error)
            refusal = Refusal(503, f"feedback cannot be kept now: {error.strerror or error}", _RETRY)
        for _, done in group:
            if not done.get_loop().is_closed():
                done.get_loop().call_soon_threadsafe(_settle, done, refusal)
        if time.monotonic() - self._swept > SWEEP_SECONDS:
            self._swept = time.monotonic()
            self._sweep(now)

    def _write(self, lines: bytes) -> None:
        """Append lines and sync them. A file that a write failed on is not written to again: a reader may have seen
        the part of a line that got there."""
        if self._stream is None or self._stream.tell() > FILE_BYTES:
            if self._stream is not None:
                self._stream.close()
                self._stream = None
            self.folder.mkdir(parents=True, exist_ok=True)
            self._number += 1
            self._stream = (self.folder / f"{self._writer}-{self._number:06d}{SUFFIX}").open("ab", buffering=0)
        try:
            view = memoryview(lines)
            while view:
                view = view[self._stream.write(view) :]
            os.fsync(self._stream.fileno())
        except OSError:
            stream, self._stream = self._stream, None
            stream.close()
            raise

    def _sweep(self, now: float) -> None:
        for path in self.folder.glob(f"*{SUFFIX}"):
            try:
                if now - path.stat().st_mtime > self.days * 86_400:
                    path.unlink(missing_ok=True)
            except OSError as error:  # another replica removed it, or may not: told, tried again in a minute
                _log.warning("%s: %s", path, error)


def _settle(done: asyncio.Future[None], refusal: Refusal | None) -> None:
    if done.cancelled():
        return
    if refusal is None:
        done.set_result(None)
    else:
        done.set_exception(refusal)


def read_since(
    folder: Path, cursor: Mapping[str, int], *, most: int = 4 << 20
) -> Iterator[tuple[str, int, list[bytes]]]:
    """(file, offset to go on from, whole lines) of what was appended to each file after ``cursor[file]``.

    About ``most`` bytes of a file are given at once; ask again for more.
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
                data = stream.read(most)
                if len(data) == most and not data.endswith(b"\n"):
                    data += stream.readline()
        except FileNotFoundError:
            continue
        end = data.rfind(b"\n") + 1
        if end:
            yield name, offset + end, data[:end].split(b"\n")[:-1]
