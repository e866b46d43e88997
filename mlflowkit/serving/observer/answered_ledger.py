"""The answered ledger: how many rows a gateway answered, by version and window, in a file that survives its SIGKILL.

::

    <service>/profiles/answered.<writer>.<number>.ledger

A file is a header and SLOTS slots of SLOT_BYTES, mapped into the gateway's memory, so that counting is an addition and
what was counted is in the file whatever becomes of the process. A row is counted before its answer leaves, and its
record carries the time that it was counted by: rows in the panes of a window never exceed those in the ledgers, and the
difference was lost on the way. Refused requests are counted in slots of their own, by reason.

The writer is a gateway from its start to its end. A full file is followed by the next, which is made before it is
needed; where the disk refuses it, counting goes on in memory until it does not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import re
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mlflowkit.serving.inference.answer_records import Record
from mlflowkit.system import failpoint
from mlflowkit.system.files import FILE_MODE, make_folder
from mlflowkit.system.log_once import LogOnce

MAGIC = b"mlkit answered 1\n"
HEADER_BYTES = 256
SLOT_BYTES = 256
SLOTS = 255
FILE_BYTES = HEADER_BYTES + SLOTS * SLOT_BYTES
SPARE_SLOTS = 64
"""The next file is made when fewer slots than this are free."""
MAX_REASONS = 50
"""Reasons of refusals of one version that are told apart; half of them for names that clients choose."""
OTHER_REASONS = "(other)"
MICROSECONDS = 1_000_000
_TEXT_BYTES = 104
_NAME = re.compile(r"answered\.(.+)\.(\d+)\.ledger")
_USED, _START, _SECONDS, _ROWS, _REQUESTS, _REFUSED = range(6)
"""Positions of a slot's integers; then two texts, of the version and of the reason."""
_SLOT = struct.Struct(f"=6q{_TEXT_BYTES}s{_TEXT_BYTES}s")
_log = logging.getLogger("mlflowkit.serving")


class LedgerSlot(NamedTuple):
    """What one gateway answered, or refused for one reason, in one window of one version."""

    version: str
    start: float
    seconds: float
    rows: int
    requests: int
    refused: int
    reason: str


def window_start(time_answered: float, seconds: float) -> float:
    """The start of the window of a time, in seconds since the epoch: windows begin at whole multiples.

    >>> window_start(1000.5, 300.0)
    900.0
    """
    return time_answered // seconds * seconds


class AnsweredLedger:
    """Counts one gateway's answered rows. Used by one thread, the event loop's; its methods do not raise.

    ``pane_seconds`` is the length of a window; 0 counts nothing, because nothing is profiled.
    """

    def __init__(self, folder: Path, replica: str, *, pane_seconds: float) -> None:
        self.pane_seconds = pane_seconds
        self.writer = f"{replica}-{time.time_ns() // 1_000_000:x}{os.urandom(2).hex()}"
        self._folder = folder
        self._errors = LogOnce(_log)
        self._number = 0
        self._file: mmap.mmap | None = None
        self._spare: mmap.mmap | None = None
        self._in_memory = False
        self._longs = memoryview(b"")
        self._free = SLOTS
        self._slots: dict[tuple[str, float, float, str], int] = {}
        self._current: dict[str, tuple[float, float, float, int]] = {}
        self._reasons: dict[str, set[str]] = {}
        self._retry_at = 0.0
        self._may_fail = failpoint.VARIABLE in os.environ  # asked once: a look-up takes longer than the counting

    def count(self, record: Record) -> None:
        """Count the rows of a record that is evidence, and mark the record with the window's length."""
        record.pane_seconds = self.pane_seconds
        if record.how != "hash" or record.answered != record.variant or not self.pane_seconds or not record.rows:
            return
        current = self._current.get(record.version)
        if current is None or not current[0] <= record.time < current[1] or current[2] != self.pane_seconds:
            try:
                current = self._enter(record.version, record.time)
            except Exception as error:  # noqa: BLE001 - counting must not cost the answer
                self._errors.error(f"answered rows are not counted: {error!r}")
                record.pane_seconds = 0.0  # rows in no ledger are in no pane
                return
        longs, slot = self._longs, current[3]
        longs[slot + _REQUESTS] += 1
        longs[slot + _ROWS] += record.rows
        if self._may_fail:
            failpoint.hit("ledger.counted")

    def refuse(self, version: str, reason: str, free: bool) -> None:
        """Count a request that was refused; ``free`` if the reason has a name that the client chose."""
        if not self.pane_seconds:
            return
        try:
            reasons = self._reasons.setdefault(version, set())
            if reason not in reasons:
                if len(reasons) >= (MAX_REASONS // 2 if free else MAX_REASONS):
                    reason = OTHER_REASONS
                reasons.add(reason)
            seconds = self.pane_seconds
            slot = self._slot(version, window_start(time.time(), seconds), seconds, reason)
            self._longs[slot + _REFUSED] += 1
        except Exception as error:  # noqa: BLE001 - counting must not change the reply
            self._errors.error(f"refused requests are not counted: {error!r}")

    def _enter(self, version: str, now: float) -> tuple[float, float, float, int]:
        """Make the window of ``now`` the version's current one."""
        seconds = self.pane_seconds
        start = window_start(now, seconds)
        slot = self._slot(version, start, seconds, "")
        self._current[version] = (start, start + seconds, seconds, slot)
        return self._current[version]

    def _slot(self, version: str, start: float, seconds: float, reason: str) -> int:
        """The position of a slot's integers in the mapped file; takes a free slot when there is none."""
        key = (version, start, seconds, reason)
        slot = self._slots.get(key)
        if slot is not None:
            return slot
        if self._file is None or not self._free:
            self._begin_file()
        elif self._in_memory and time.monotonic() >= self._retry_at:
            self._move_to_disk()
        elif self._free <= SPARE_SLOTS and self._spare is None and time.monotonic() >= self._retry_at:
            self._spare = self._create(self._number + 1)
        assert self._file is not None
        position = HEADER_BYTES + (SLOTS - self._free) * SLOT_BYTES
        window = (round(start * MICROSECONDS), round(seconds * MICROSECONDS))
        _SLOT.pack_into(self._file, position, 0, *window, 0, 0, 0, _bounded(version), _bounded(reason))
        slot = position // 8
        self._longs[slot + _USED] = 1  # last: a slot that a reader sees used is whole
        self._free -= 1
        self._slots[key] = slot
        return slot

    def _begin_file(self) -> None:
        """Count in the next file from now on; in memory alone where the disk refuses one."""
        file = self._spare or self._create(self._number + 1)
        self._in_memory = file is None
        self._file, self._spare = file or mmap.mmap(-1, FILE_BYTES), None
        self._number += 1
        self._longs = memoryview(self._file).cast("q")
        self._free = SLOTS
        self._slots, self._current, self._reasons = {}, {}, {}

    def _move_to_disk(self) -> None:
        """Write what was counted in memory to the file that the disk refused, and go on there."""
        assert self._file is not None
        file = self._create(self._number, self._file[HEADER_BYTES:])
        if file is not None:
            self._file, self._longs, self._in_memory = file, memoryview(file).cast("q"), False

    def _create(self, number: int, slots: bytes = b"") -> mmap.mmap | None:
        """A new file whose blocks are on the disk, because a write to a mapped page cannot be refused."""
        path = self._folder / f"answered.{self.writer}.{number}.ledger"
        temporary = path.with_name(f".{path.name}")
        try:
            make_folder(self._folder)
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
            try:
                os.posix_fallocate(descriptor, 0, FILE_BYTES)
                mapped = mmap.mmap(descriptor, FILE_BYTES)
            finally:
                os.close(descriptor)
            mapped[:HEADER_BYTES] = _header(self._folder, self.writer, number)
            mapped[HEADER_BYTES : HEADER_BYTES + len(slots)] = slots
            temporary.rename(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            self._retry_at = time.monotonic() + 10.0
            self._errors.error(f"{path} cannot be made, rows answered are counted in memory only: {error.strerror}")
            return None
        failpoint.hit("ledger.created")
        self._errors.clear()
        return mapped


@dataclass(frozen=True, slots=True)
class LedgerReading:
    """The slots of all ledgers of a service, and what was wrong with files that were left out."""

    slots: tuple[LedgerSlot, ...]
    problems: tuple[str, ...] = ()


def read_ledgers(folder: Path) -> LedgerReading:
    """Read all ledgers in a folder of profiles. Files that are none, or copies under another name, are left out."""
    slots: list[LedgerSlot] = []
    problems: list[str] = []
    for path in ledger_files(folder):
        try:
            slots += _read_ledger(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{path.name} is no ledger of answered rows and was left out: {error}")
    return LedgerReading(tuple(slots), tuple(problems))


def ledger_files(folder: Path) -> list[Path]:
    """The ledgers in a folder of profiles, by name."""
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in names if _NAME.fullmatch(name)]


def last_window_end(path: Path) -> float:
    """The end of the last window in a ledger; 0.0 when there is none, or the file is no ledger."""
    try:
        return max((slot.start + slot.seconds for slot in _read_ledger(path)), default=0.0)
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _read_ledger(path: Path) -> list[LedgerSlot]:
    """The used slots of a file. Raises OSError, or ValueError for a file that is no ledger of this service."""
    with open(path, "rb") as stream:
        content = stream.read(FILE_BYTES + 1)
    match = _NAME.fullmatch(path.name)
    if match is None or len(content) != FILE_BYTES:
        raise ValueError(f"it has {len(content):,} bytes of {FILE_BYTES:,}")
    if content[:HEADER_BYTES] != _header(path.parent, match[1], int(match[2])):
        raise ValueError("its header names another service, writer or number")
    return list(_slots_in(content))


def _slots_in(content: bytes) -> Iterator[LedgerSlot]:
    for position in range(HEADER_BYTES, FILE_BYTES, SLOT_BYTES):
        used, start, seconds, rows, requests, refused, *texts = _SLOT.unpack_from(content, position)
        if not used:
            return
        if used != 1 or seconds <= 0 or min(rows, requests, refused) < 0:
            raise ValueError(f"the slot at byte {position} is damaged")
        version, reason = (text.rstrip(b"\0").decode(errors="replace") for text in texts)
        yield LedgerSlot(version, start / MICROSECONDS, seconds / MICROSECONDS, rows, requests, refused, reason)


def ledger_version(version: str) -> str:
    """The name of a version in a slot: itself, or shortened with a digest where it is long."""
    return _bounded(version).decode()


def _bounded(text: str) -> bytes:
    encoded = text.replace("\0", " ").encode(errors="replace")
    if len(encoded) <= _TEXT_BYTES:
        return encoded
    digest = hashlib.sha256(encoded).hexdigest()[:24]
    return encoded[: _TEXT_BYTES - 40].decode(errors="ignore").encode() + b"~" + digest.encode()


def _header(folder: Path, writer: str, number: int) -> bytes:
    """The header of a file: the names of its service and writer, and its number."""
    names = json.dumps([folder.parent.name, writer, number]).encode()
    if len(MAGIC) + len(names) > HEADER_BYTES:
        names = hashlib.sha256(names).hexdigest().encode()
    return (MAGIC + names).ljust(HEADER_BYTES, b"\0")
