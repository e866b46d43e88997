"""Fetches objects: several at a time, in chunks, resumed where they were cut, checked before anything reads them.

What failed for the moment (429, 5xx, a timeout, a short body) is tried again from the byte that was received last, with
full jitter between attempts ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015), until nothing has been
received for `TransferLimits.stall_seconds`. What will not change (401, 403, 404, 410, 412) is not.
"""

from __future__ import annotations

import contextlib
import queue
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from mlflowkit.data_access.content_digests import ContentDigests
from mlflowkit.data_access.object_cache import ObjectCache
from mlflowkit.errors import DataError, MlkitError, StoreError
from mlflowkit.system.files import disk_error, make_folder
from mlflowkit.system.text import first_line
from mlflowkit.values import DataObject

CHUNK_BYTES = 1 << 20
POLL_SECONDS = 0.1
"""How often an interrupted fetch notices it."""


@dataclass(frozen=True, slots=True)
class TransferLimits:
    """Limits of a fetch, in seconds and bytes.

    streams        objects received at a time
    read_seconds   longest wait for the next bytes of a response
    stall_seconds  longest time in which nothing at all is received
    first_wait     longest first wait before another attempt; doubled with each, up to ``last_wait``
    room           bytes that are left free on the disk
    """

    streams: int = 8
    read_seconds: float = 30.0
    stall_seconds: float = 180.0
    first_wait: float = 0.5
    last_wait: float = 20.0
    room: int = 64 << 20


class TransientError(Exception):
    """A failure that may pass. ``after`` is how many seconds the server asked to wait."""

    def __init__(self, message: str, *, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class ObjectStream(Protocol):
    """The bytes of an object. Reading raises TransientError or DataError."""

    start: int
    """The offset of its first byte: 0 where the server ignores that less was asked for."""

    def chunks(self, size: int) -> Iterator[bytes]:
        """The bytes, in pieces of at most ``size``."""


ObjectOpener = Callable[[DataObject, int], AbstractContextManager[ObjectStream]]
"""Opens an object at an offset. Raises TransientError for what may pass, DataError for what will not."""


@dataclass
class Transfer:
    """The fetch of the objects of one snapshot. Its threads end with the process at the latest."""

    uri: str
    opener: ObjectOpener
    cache: ObjectCache
    progress: Callable[[str, float], None]
    limits: TransferLimits = field(default_factory=TransferLimits)
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _received: int = 0
    _last_bytes: float = 0.0

    def fetch(self, objects: Sequence[DataObject]) -> Mapping[str, Path]:
        """Receive objects that the cache lacks: the file of each by path; complete ones are kept whatever happens.

        Raises DataError, and StoreError for the disk.
        """
        self._last_bytes = self.clock()
        files: dict[str, Path] = {}
        total = sum(item.size for item in objects)
        self._require_room(total)
        work: queue.SimpleQueue[DataObject] = queue.SimpleQueue()
        for item in objects:
            work.put(item)
        results: queue.SimpleQueue[tuple[DataObject, Path | BaseException]] = queue.SimpleQueue()
        workers = [
            threading.Thread(target=self._work, args=(work, results), daemon=True, name=f"mlkit-fetch-{index}")
            for index in range(min(self.limits.streams, len(objects)))
        ]
        try:
            for worker in workers:
                worker.start()
            while len(files) < len(objects):
                try:
                    item, result = results.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    self._report(len(files), len(objects), total)
                    continue
                if isinstance(result, BaseException):
                    raise result
                files[item.path] = result
                self._report(len(files), len(objects), total)
        finally:
            self._stop.set()
        return files

    def _report(self, done: int, count: int, total: int) -> None:
        shown = f"{done:,} of {count:,} objects, {_megabytes(self._received)} of {_megabytes(total)} MB received"
        self.progress(shown, min(self._received / total, 1.0) if total else 1.0)

    def _require_room(self, needed: int) -> None:
        free = shutil.disk_usage(make_folder(self.cache.folder)).free
        if needed + self.limits.room > free:
            message = f"{self.uri} needs {_megabytes(needed)} MB, and {_megabytes(free)} MB are free under "
            hint = "make room, or choose another place with --state DIR"
            raise StoreError(f"{message}{self.cache.folder}", hint=hint)

    def _work(
        self,
        work: queue.SimpleQueue[DataObject],
        results: queue.SimpleQueue[tuple[DataObject, Path | BaseException]],
    ) -> None:
        while not self._stop.is_set():
            try:
                item = work.get_nowait()
            except queue.Empty:
                return
            try:
                results.put((item, self._fetch_object(item)))
            except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
                results.put((item, error))
                return

    def _fetch_object(self, item: DataObject) -> Path:
        identity = self.cache.identity(self.uri, item)
        while True:
            with self.cache.part(identity) as part:
                if part is not None:
                    return self._complete(identity, item, part)
            self._wait(POLL_SECONDS)  # another process receives it
            if (path := self.cache.find(self.uri, item)) is not None:
                return path

    def _complete(self, identity: str, item: DataObject, part: BinaryIO) -> Path:
        """Receive what is missing of an object, check it and publish it; once more from its beginning when the digest
        differs, which may be an earlier attempt's fault or the network's."""
        expected, problem = self.cache.known_digest(identity), ""
        for _ in range(2):
            with contextlib.closing(ReceivedContent(item, part)) as content:
                self._receive(item, content)
                problem = content.mismatch(expected)
                if not problem:
                    return self.cache.publish(identity, item, content.sha256, part)
                content.restart()
        raise DataError(
            f"{self.uri}{item.path}: {problem}: these are not the bytes of this version",
            hint="ask who runs the store to restore the object, or name another version",
        )

    def _receive(self, item: DataObject, content: ReceivedContent) -> None:
        """Receive the bytes of an object after those that are there. Raises DataError when nothing comes any more."""
        wait, failures = self.limits.first_wait, 0
        while content.size < item.size or (item.size == 0 and failures == 0):
            before = content.size
            try:
                self._receive_once(item, content)
                if content.size < item.size:
                    raise TransientError(f"the body ended after {content.size:,} of {item.size:,} bytes")
                return
            except TransientError as error:
                failures += 1
                if content.size > before:
                    wait = self.limits.first_wait
                pause = max(random.uniform(0, wait), error.after)
                idle = self.clock() + pause - self._last_bytes
                if idle > self.limits.stall_seconds:
                    message = f"{self.uri}{item.path}: {first_line(error)}; {failures} attempts, nothing received for"
                    raise DataError(
                        f"{message} {self.clock() - self._last_bytes:.0f} s (limit {self.limits.stall_seconds:.0f} s)",
                        hint="what was received is kept: run the same command again to resume",
                    ) from None
                wait = min(2 * wait, self.limits.last_wait)
                self._wait(pause)

    def _receive_once(self, item: DataObject, content: ReceivedContent) -> None:
        with self.opener(item, content.size) as stream:
            if stream.start != content.size:
                if stream.start != 0:
                    raise TransientError(f"the server answered from byte {stream.start:,}, not {content.size:,}")
                content.restart()
            for chunk in stream.chunks(CHUNK_BYTES):
                if self._stop.is_set():
                    raise _StoppedError
                content.append(chunk)
                with self._lock:
                    self._received += len(chunk)
                    self._last_bytes = self.clock()

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _StoppedError


class _StoppedError(MlkitError):
    """Another object failed, or the run was interrupted."""

    def __init__(self) -> None:
        super().__init__("stopped", hint="run the same command again to resume")


class ReceivedContent:
    """The bytes of an object so far, with their digests."""

    def __init__(self, item: DataObject, part: BinaryIO) -> None:
        self.item, self._part = item, part
        self._digests = ContentDigests(item.digest, item.size)
        self.size = 0
        part.seek(0)
        while chunk := part.read(CHUNK_BYTES):
            self._digests.update(chunk)
            self.size += len(chunk)
        if self.size > item.size:
            self.restart()

    @property
    def sha256(self) -> str:
        return self._digests.sha256

    def append(self, chunk: bytes) -> None:
        """Add bytes. Raises TransientError when there are more than the object has, StoreError for the disk."""
        if self.size + len(chunk) > self.item.size:
            self.restart()
            raise TransientError(f"the body has more than {self.item.size:,} bytes")
        self._digests.update(chunk)
        try:
            self._part.write(chunk)
            self._part.flush()
        except OSError as error:
            raise disk_error(error, Path(str(self._part.name))) from error
        self.size += len(chunk)

    def restart(self) -> None:
        """Forget all bytes."""
        self._part.seek(0)
        self._part.truncate()
        self.size = 0
        self._digests.restart()

    def mismatch(self, expected: str) -> str:
        """How the content differs from the digest of an earlier fetch (``expected``) or of the store; "" if not."""
        if expected and self.sha256 != expected:
            return f"the content has SHA-256 {self.sha256}, and had {expected} when it was first fetched"
        return self._digests.mismatch()

    def close(self) -> None:
        """End what computes the digests."""
        self._digests.close()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"
