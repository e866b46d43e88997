"""Panes: counts of live traffic by version and window, in files that are written once.

::

    <service>/profiles/<version>/<start>+<seconds>.<writer>.<sequence>.pane

The window is [start, start + seconds), in seconds since the epoch. The writer is an observer from its start to its end;
it numbers its panes, over all versions and windows, and never uses a number again. Several panes are merged into one,
whose name has a digest instead (``<start>+<seconds>.merged.<digest>.pane``) and which lists the numbers that it holds:
it supersedes all panes of these numbers. So merging may be cut anywhere: a reader counts each number once.

A file is MAGIC, the SHA-256 digest of the rest, the length of a JSON document, that document compressed, and a profile
of the same rows by the profiler of the traffic, if there is one. A file is read only when its digest holds and its name
is the one that its content gives: a truncated file, a copy under another name, or a pane of another service or version
is left out and told.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from mlflowkit.judging.shift.counts import ProfileCounts, WindowCounts
from mlflowkit.serving.observer.answered_ledger import LedgerSlot, ledger_version, read_ledgers
from mlflowkit.system.files import replace_file
from mlflowkit.system.log_once import LogOnce

MAGIC = b"MLKPANE1"
SUFFIX = ".pane"
OLD_SUFFIX = ".profile"
"""Profiles of earlier releases, ``<start>.<replica>.profile``: a whylogs profile and no counts."""
MERGED = "merged"
MAX_BYTES = 64 << 20
"""Of a file, and of its document: what is larger is no pane."""
MAX_SECONDS = 86_400
"""No window is longer."""
READ_ATTEMPTS = 5
_PREFIX = struct.Struct(f">{len(MAGIC)}s32sI")
_NAME = re.compile(r"(\d+)\+(\d+)\.(.+)\.([0-9a-f]+)\.pane")
_log = logging.getLogger("mlflowkit.observer")
_errors = LogOnce(_log)


class PaneRange(NamedTuple):
    """Consecutive numbers of one writer, from ``first`` to ``last``."""

    writer: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Pane:
    """What a file holds.

    counts    of the rows, with ``answered`` 0 and no refusals: these are in the ledgers
    ranges    the numbers that the counts are the sum of, ascending
    profile   the profiler's bytes of ``profiled`` of the rows; empty for none
    """

    service: str
    counts: WindowCounts
    ranges: tuple[PaneRange, ...]
    profile: bytes = b""
    profiled: int = 0

    @property
    def numbers(self) -> int:
        """How many numbers the pane holds."""
        return sum(item.last - item.first + 1 for item in self.ranges)


class PaneName(NamedTuple):
    """The window in the name of a file, in whole seconds."""

    start: int
    seconds: int
    name: str

    @property
    def end(self) -> int:
        return self.start + self.seconds


def parse_name(name: str) -> PaneName | None:
    """The window of a pane's file name; None for another file.

    >>> parse_name("1200+300.r1-18c.7.pane")
    PaneName(start=1200, seconds=300, name='1200+300.r1-18c.7.pane')
    """
    match = _NAME.fullmatch(name)
    return PaneName(int(match[1]), int(match[2]), name) if match and int(match[2]) else None


def list_panes(folder: Path) -> list[PaneName]:
    """The panes in the folder of a version, by window."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(filter(None, map(parse_name, names)))


def encode_pane(pane: Pane) -> tuple[str, bytes]:
    """The name and the content of a pane's file."""
    document = {
        "format": 1,
        "service": pane.service,
        "counts": pane.counts.to_json(),
        "ranges": [list(item) for item in pane.ranges],
        "profiled": pane.profiled,
    }
    packed = zlib.compress(json.dumps(document, separators=(",", ":")).encode(), 6)
    rest = struct.pack(">I", len(packed)) + packed + pane.profile
    digest = hashlib.sha256(rest)
    return _name_of(pane, digest.hexdigest()), MAGIC + digest.digest() + rest


def decode_pane(content: bytes, name: str) -> Pane:
    """The pane in a file called ``name``. Raises ValueError, KeyError or TypeError for anything else."""
    if len(content) < _PREFIX.size or len(content) > MAX_BYTES:
        raise ValueError(f"it has {len(content):,} bytes")
    magic, digest, length = _PREFIX.unpack_from(content)
    rest = memoryview(content)[len(MAGIC) + len(digest) :]
    if magic != MAGIC or hashlib.sha256(rest).digest() != digest:
        raise ValueError("its digest is another one than its content's")
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(rest[4 : 4 + length], MAX_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not unpacker.eof:
        raise ValueError(f"its document is cut off, or larger than {MAX_BYTES >> 20} MiB")
    document = json.loads(text)
    ranges = tuple(PaneRange(str(item[0]), int(item[1]), int(item[2])) for item in document["ranges"])
    counts = WindowCounts.from_json(document["counts"])
    pane = Pane(str(document["service"]), counts, ranges, bytes(rest[4 + length :]), int(document["profiled"]))
    if not ranges or any(item.first > item.last for item in ranges):
        raise ValueError("it holds no numbers of a writer")
    if _name_of(pane, digest.hex()) != name:
        raise ValueError(f"it is a copy of {_name_of(pane, digest.hex())}")
    return pane


def write_pane(folder: Path, pane: Pane, *, durable: bool) -> Path:
    """Write a pane to the folder of its version. Raises StoreError."""
    name, content = encode_pane(pane)
    path = folder / name
    replace_file(path, content, durable=durable)
    return path


def load_pane(folder: Path, name: str) -> Pane:
    """Read a pane of the version and service that a folder belongs to.

    Raises OSError, or ValueError, KeyError or TypeError when the file is no pane of it.
    """
    with open(folder / name, "rb") as stream:
        pane = decode_pane(stream.read(MAX_BYTES + 1), name)
    if pane.counts.version != folder.name or pane.service != folder.parent.parent.name:
        raise ValueError(f"it is of version {pane.counts.version} of the service {pane.service}")
    return pane


def merge_panes(panes: Sequence[Pane], start: float, seconds: float) -> Pane:
    """The sum of panes that have no number in common, as a pane of a window that holds theirs; without profiles."""
    counts = panes[0].counts
    for pane in panes[1:]:
        counts = counts + pane.counts
    ranges = merge_ranges(item for pane in panes for item in pane.ranges)
    return Pane(panes[0].service, replace(counts, start=start, seconds=seconds), ranges)


def merge_ranges(ranges: Iterable[PaneRange]) -> tuple[PaneRange, ...]:
    """Ranges that have no number in common, ascending, adjacent ones as one.

    >>> merge_ranges([PaneRange("b", 7, 7), PaneRange("a", 3, 4), PaneRange("a", 1, 2)])
    (PaneRange(writer='a', first=1, last=4), PaneRange(writer='b', first=7, last=7))
    """
    merged: list[PaneRange] = []
    for item in sorted(ranges):
        if merged and merged[-1].writer == item.writer and merged[-1].last + 1 >= item.first:
            merged[-1] = PaneRange(item.writer, merged[-1].first, max(merged[-1].last, item.last))
        else:
            merged.append(item)
    return tuple(merged)


def _name_of(pane: Pane, digest: str) -> str:
    window = f"{pane.counts.start:.0f}+{pane.counts.seconds:.0f}"
    first = pane.ranges[0]
    alone = len(pane.ranges) == 1 and first.first == first.last
    return f"{window}.{first.writer}.{first.first}{SUFFIX}" if alone else f"{window}.{MERGED}.{digest[:16]}{SUFFIX}"


class _Kept:
    """The numbers of the panes that a reader has kept."""

    def __init__(self) -> None:
        self._ranges: dict[str, list[PaneRange]] = {}

    def overlap(self, item: PaneRange) -> int:
        """How many numbers of a range are kept already."""
        ranges = self._ranges.get(item.writer, [])
        begin = max(0, bisect_right(ranges, item) - 1)
        shared = 0
        for other in ranges[begin:]:
            if other.first > item.last:
                break
            shared += max(0, min(other.last, item.last) - max(other.first, item.first) + 1)
        return shared

    def add(self, pane: Pane) -> None:
        for item in pane.ranges:
            self._ranges.setdefault(item.writer, []).append(item)
            self._ranges[item.writer].sort()


def choose_panes(panes: Mapping[str, Pane]) -> tuple[list[str], list[str]]:
    """The names of panes that hold each number once, those with most numbers first; and the names of panes that are
    left out although they hold numbers that no other does, because they share some with a larger one.

    >>> one, two = (Pane("s", WindowCounts("v", 0, 1), (PaneRange("w", 1, last),)) for last in (1, 2))
    >>> choose_panes({"one": one, "two": two})
    (['two'], [])
    """
    kept = _Kept()
    chosen: list[str] = []
    conflicting: list[str] = []
    for name in sorted(panes, key=lambda name: (-panes[name].numbers, name)):
        pane = panes[name]
        shared = sum(map(kept.overlap, pane.ranges))
        if not shared:
            kept.add(pane)
            chosen.append(name)
        elif shared < pane.numbers:
            conflicting.append(name)
    return chosen, conflicting


@dataclass(frozen=True, slots=True)
class PaneReading:
    """Windows of a version with the rows that the gateways answered, and what was wrong with files left out.

    profiles  the profiler's bytes by the start of their window; profiled: the rows in them
    """

    windows: tuple[WindowCounts, ...]
    problems: tuple[str, ...] = ()
    profiles: Mapping[float, tuple[bytes, ...]] = field(default_factory=dict)
    profiled: int = 0


def read_panes(folder: Path, version: str, since: float = 0.0, until: float = float("inf")) -> PaneReading:
    """Read the windows of a version that begin in [since, until), each number once, in order of their start.

    ``folder`` is the service's ``profiles``. Windows in which rows were answered, and all of them lost, are among them.
    What a damaged, foreign or copied file holds is counted as lost and told in ``problems``. Safe beside writers.
    """
    home = folder / version
    problems: dict[str, str] = {}
    for attempt in range(READ_ATTEMPTS):
        names = _overlapping(home, since, until)
        try:
            panes = _load_all(home, names, problems)
        except FileNotFoundError:  # merged meanwhile
            continue
        if attempt == READ_ATTEMPTS - 1 or not set(names) - set(_overlapping(home, since, until)):
            break
    else:
        panes = _load_all(home, [name for name in names if (home / name).exists()], problems)
    chosen, conflicting = choose_panes(panes)
    for name in conflicting:
        problems[name] = f"{name} holds a part of the rows of another pane and was left out"
    ledgers = read_ledgers(folder)  # after the panes: a row is in its ledger before it is in a pane
    windows = _join(version, [panes[name].counts for name in chosen], ledgers.slots, since, until)
    windows, missing = _check_answered(windows)
    profiles: dict[float, tuple[bytes, ...]] = {}
    for name in chosen:
        pane = panes[name]
        if pane.profile and since <= pane.counts.start < until:
            profiles[pane.counts.start] = (*profiles.get(pane.counts.start, ()), pane.profile)
    profiled = sum(panes[name].profiled for name in chosen if since <= panes[name].counts.start < until)
    return PaneReading(tuple(windows), (*problems.values(), *ledgers.problems, *missing), profiles, profiled)


def read_windows(folder: Path, version: str, since: float = 0.0, until: float = float("inf")) -> list[WindowCounts]:
    """The windows that `read_panes` reads; files that are left out are logged, each once."""
    reading = read_panes(folder, version, since, until)
    for problem in reading.problems:
        _errors.error(f"profiles of version {version}: {problem}", key=f"{folder}/{problem}")
    return list(reading.windows)


def read_profiles(folder: Path, version: str, since: float, until: float) -> Mapping[int, list[bytes]]:
    """The profiler's bytes by the start of their window, for windows that begin in [since, until), to be merged.

    Those of an earlier release are among them.
    """
    reading = read_panes(folder, version, since, until)
    profiles = {int(start): list(items) for start, items in reading.profiles.items()}
    for path in sorted((folder / version).glob(f"*{OLD_SUFFIX}")):
        start = path.name.partition(".")[0]
        if start.isdigit() and since <= int(start) < until:
            profiles.setdefault(int(start), []).append(path.read_bytes())
    return profiles


def _overlapping(home: Path, since: float, until: float) -> list[str]:
    """Names of panes whose window has a part in [since, until)."""
    return [item.name for item in list_panes(home) if item.start < until and item.end > since]


def _load_all(home: Path, names: Iterable[str], problems: dict[str, str]) -> dict[str, Pane]:
    """The panes of these names; what is wrong with a file is added to ``problems``. Raises FileNotFoundError."""
    panes: dict[str, Pane] = {}
    for name in names:
        try:
            panes[name] = load_pane(home, name)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            problems[name] = f"{name} was left out: {error}"
    return panes


def _join(
    version: str, counts: Sequence[WindowCounts], slots: Sequence[LedgerSlot], since: float, until: float
) -> list[WindowCounts]:
    """Counts of the same window added up, a window within another one added to it, with what the ledgers say."""
    name = ledger_version(version)
    begin, end = since - MAX_SECONDS, until + MAX_SECONDS
    answered = [_slot_counts(version, slot) for slot in slots if slot.version == name and begin <= slot.start < end]
    joined: list[WindowCounts] = []
    for item in sorted([*counts, *answered], key=lambda item: (item.start, -item.seconds)):
        last = joined[-1] if joined else None
        if last is not None and item.start + item.seconds <= last.start + last.seconds:
            joined[-1] = last + item
        else:
            joined.append(item)
    return [item for item in joined if since <= item.start < until]


def _slot_counts(version: str, slot: LedgerSlot) -> WindowCounts:
    refused = {slot.reason: slot.refused} if slot.refused else {}
    return WindowCounts(version, slot.start, slot.seconds, ProfileCounts(), {}, slot.rows, refused)


def _check_answered(windows: Sequence[WindowCounts]) -> tuple[list[WindowCounts], list[str]]:
    """Windows with at least as many rows answered as counted, and what is wrong with others: a ledger is missing."""
    problems = [
        f"{window.total.rows - window.answered:,} rows of the window {window.start:.0f} are in no ledger of answers"
        for window in windows
        if window.answered < window.total.rows
    ]
    return [replace(window, answered=max(window.answered, window.total.rows)) for window in windows], problems
