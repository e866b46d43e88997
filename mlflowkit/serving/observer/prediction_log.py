"""The prediction log: requests and answers in Parquet, a row per answered row.

::

    time id row                        when, the request's id, the row's index in the request
    experiment epoch                   of the routing table
    variant version answered how       the variant assigned, and how; the variant that answered ("mirror": a shadow)
    seconds error                      from the request to the answer; why ``variant`` failed, "" when it did not
    input.<column>                     as the graph took it: NaN and "" are missing; null in a shadow's rows
    label probability.<class>          the answer of a classification, or
    prediction                         of a regression

Segments are written under a temporary name and renamed, every ROLL_SECONDS or ROLL_BYTES, and merged later, so that a
day is hundreds of files, not tens of thousands. A segment is called ``<writer>-<first>-<last>.parquet``: the writer
(a replica's observer, from its start to its end) numbers its segments, and a merged segment stores in its metadata
how many rows each number has. So a reader that keeps one number per writer reads each row once (`read_since`), whatever
is merged or removed meanwhile.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from mlflowkit.bundle import Signature
from mlflowkit.serving.observer.frames import Batch
from mlflowkit.serving.observer.shadow_comparison import label_texts
from mlflowkit.system.files import make_folder, private_opener
from mlflowkit.system.log_once import LogOnce
from mlflowkit.system.text import category_text

ROLL_SECONDS = 2.0
ROLL_BYTES = 16 << 20
MERGE_FACTOR = 16
"""Segments of one level that are merged into one of the next."""
LEVELS = 2
MAX_MERGED_BYTES = 64 << 20
"""Segments that are larger together are not merged."""
SWEEP_SECONDS = 10.0
CHUNK_ROWS = 65_536
_PARTS = b"mlkit.parts"
_TEMPORARY = ".tmp"
_SEGMENT_NAME = re.compile(r"([^.].*)-([0-9]+)-([0-9]+)\.parquet")
_log = logging.getLogger("mlflowkit.observer")


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """A file of the log: the segments that a writer numbered ``first`` to ``last``."""

    writer: str
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.writer}-{self.first:08d}-{self.last:08d}.parquet"

    @classmethod
    def parse(cls, name: str) -> Segment | None:
        """Parse a file name; None when it is no segment: it is another name than that of the segment it tells of.

        >>> Segment.parse("r1-18c-00000003-00000018.parquet")
        Segment(writer='r1-18c', first=3, last=18)
        >>> Segment.parse("r1-3-18.parquet")
        """
        match = _SEGMENT_NAME.fullmatch(name)
        segment = None if match is None else cls(match[1], int(match[2]), int(match[3]))
        return segment if segment is not None and segment.name == name else None


def segments(folder: Path) -> list[Segment]:
    """List the segments of a log by writer and number, without those whose rows are all in a merged one."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    listed: list[Segment] = []
    parsed = filter(None, map(Segment.parse, names))
    for segment in sorted(parsed, key=lambda segment: (segment.writer, segment.first, -segment.last)):
        if not listed or listed[-1].writer != segment.writer or segment.last > listed[-1].last:
            listed.append(segment)
    return listed


def log_rows(batch: Batch, signature: Signature) -> pa.Table:
    """Convert a batch to rows of the log. Raises KeyError or ValueError if the signature is not of its answers."""
    header = batch.header
    assigned = {"variant": header.variant, "version": header.version, "answered": header.answered, "how": header.how}
    columns = _common_columns(batch, assigned, batch.errors, batch.seconds)
    for tensor in signature.inputs:
        matrix = batch.inputs[tensor.name].reshape(batch.rows, -1)
        for index, column in enumerate(tensor.columns):
            columns[f"input.{column}"] = pa.array(np.ascontiguousarray(matrix[:, index]))
    return pa.table(columns | _answer_columns(batch.answers, signature))


def shadow_log_rows(batch: Batch, signature: Signature) -> pa.Table:
    """Convert a shadow's answers to rows of the log, without inputs: the client's rows of the same id have those."""
    shadow, seconds = batch.header.shadow, batch.shadow_seconds
    assert batch.shadow is not None
    assert seconds is not None  # a batch has both or neither
    assigned = {"variant": shadow, "version": batch.header.shadow_version, "answered": shadow, "how": "mirror"}
    columns = _common_columns(batch, assigned, [""] * len(batch.ids), seconds)
    return pa.table(columns | _answer_columns(batch.shadow, signature))


def _common_columns(
    batch: Batch, assigned: Mapping[str, str], errors: Sequence[str], seconds: np.ndarray
) -> dict[str, pa.Array]:
    header, requests = batch.header, pa.array(batch.request)
    times = pa.array((batch.times * 1e6).astype(np.int64)).cast(pa.timestamp("us", "UTC"))
    constants = {"experiment": header.experiment, "epoch": pa.scalar(header.epoch, pa.int64()), **assigned}
    return {
        "time": times.take(requests),
        "id": pa.array(batch.ids, pa.string()).take(requests),
        "row": pa.array(batch.row),
        **{name: pa.repeat(value, batch.rows) for name, value in constants.items()},
        "seconds": pa.array(seconds).take(requests),
        "error": pa.array(errors, pa.string()).take(requests),
    }


def _answer_columns(answers: Mapping[str, np.ndarray], signature: Signature) -> dict[str, pa.Array]:
    if signature.task == "regression":
        return {"prediction": pa.array(answers["prediction"].reshape(-1).astype(np.float64))}
    columns = {"label": pa.array(label_texts(answers["label"]), pa.string())}
    probabilities = answers.get("probabilities")
    if probabilities is not None:
        for index, label in enumerate(signature.classes):
            column = np.ascontiguousarray(probabilities[:, index])
            columns[f"probability.{category_text(label)}"] = pa.array(column)
    return columns


def sample_requests(table: pa.Table, batch: Batch, sampling: float) -> pa.Table:
    """Filter a batch's rows to a share of its requests, chosen by a hash of the id."""
    if sampling >= 1.0:
        return table
    sampled = np.array([zlib.crc32(request_id.encode()) < sampling * 2**32 for request_id in batch.ids], dtype=bool)
    return table.filter(pa.array(sampled[batch.request]))


class LogWriter:
    """Writes one replica's part of the log. Used by one thread.

    When the disk refuses a segment, its rows are counted in ``dropped`` and the next segment is tried. ``days`` and
    ``megabytes`` bound the whole folder; the oldest segments are removed first.
    """

    def __init__(self, folder: Path, replica: str, *, days: float, megabytes: float) -> None:
        self.folder = folder
        self.days, self.megabytes = days, megabytes
        self.written = self.dropped = 0
        self._writer = f"{replica}-{time.time_ns() // 1_000_000:x}"
        self._next = 1
        self._pending: list[pa.Table] = []
        self._bytes = 0
        self._since = self._swept = time.monotonic()
        self._levels: list[list[Segment]] = [[] for _ in range(LEVELS + 1)]
        self._errors = LogOnce(_log)

    def add(self, table: pa.Table) -> None:
        """Add rows; they are written at most ROLL_SECONDS later, if `tick` is called meanwhile."""
        if not table.num_rows:
            return
        if not self._pending:
            self._since = time.monotonic()
        self._pending.append(table)
        self._bytes += table.nbytes
        if self._bytes >= ROLL_BYTES:
            self.roll()

    def tick(self) -> None:
        now = time.monotonic()
        if self._pending and now - self._since >= ROLL_SECONDS:
            self.roll()
        if now - self._swept >= SWEEP_SECONDS:
            self._swept = now
            self._attempt(0, lambda: sweep(self.folder, days=self.days, megabytes=self.megabytes))

    def roll(self) -> None:
        """Write pending rows as a segment, or as several where columns cannot share a file; then merge."""
        tables, self._pending, self._bytes = self._pending, [], 0
        for table in _combine_compatible(tables):
            segment, parts = Segment(self._writer, self._next, self._next), [(self._next, table.num_rows)]
            if self._attempt(table.num_rows, partial(_store, self.folder, segment, [table], table.schema, parts)):
                self._next += 1
                self.written += table.num_rows
                self._levels[0].append(segment)
        for level in range(LEVELS):
            if len(self._levels[level]) < MERGE_FACTOR:
                continue
            oldest, self._levels[level] = self._levels[level][:MERGE_FACTOR], self._levels[level][MERGE_FACTOR:]
            merged = Segment(self._writer, oldest[0].first, oldest[-1].last)
            if self._attempt(0, partial(merge, self.folder, oldest, merged)):
                self._levels[level + 1].append(merged)
        self._levels[LEVELS].clear()

    def _attempt(self, rows: int, work: Callable[[], None]) -> bool:
        try:
            work()
        except (OSError, pa.ArrowException) as error:
            self._errors.error(f"the prediction log: {error}")
            self.dropped += rows
            return False
        self._errors.clear()
        return True


def _combine_compatible(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Concatenate runs of tables that fit into one file: columns of the same name have the same type."""
    combined: list[pa.Table] = []
    for table in tables:
        try:
            combined[-1:] = [pa.concat_tables([*combined[-1:], table], promote_options="default")]
        except (pa.ArrowTypeError, pa.ArrowInvalid):
            combined.append(table)
    return combined


def merge(folder: Path, sources: Sequence[Segment], target: Segment) -> None:
    """Merge segments into ``target`` and remove them; does nothing when one is gone, too large or does not fit.

    Raises OSError or pyarrow.ArrowException when the disk refuses; the sources are then unchanged.
    """
    paths = [folder / segment.name for segment in sources]
    if not all(path.exists() for path in paths) or sum(path.stat().st_size for path in paths) > MAX_MERGED_BYTES:
        return
    files = [parquet.ParquetFile(path) for path in paths]
    try:
        schema = pa.unify_schemas([file.schema_arrow.remove_metadata() for file in files])
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return
    parts = [part for file in files for part in _parts(file)]
    tables = (pa.concat_tables([schema.empty_table(), file.read()], promote_options="default") for file in files)
    _store(folder, target, tables, schema, parts)
    for path in paths:
        path.unlink(missing_ok=True)


def _store(
    folder: Path, segment: Segment, tables: Iterable[pa.Table], schema: pa.Schema, parts: Sequence[tuple[int, int]]
) -> None:
    make_folder(folder)
    temporary = folder / f".{segment.name}{_TEMPORARY}"
    schema = schema.with_metadata({_PARTS: json.dumps(parts).encode()})
    try:
        with open(temporary, "wb", opener=private_opener) as stream:
            with parquet.ParquetWriter(stream, schema, compression="zstd", compression_level=1) as writer:
                for table in tables:
                    writer.write_table(table.replace_schema_metadata(schema.metadata))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(folder / segment.name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _parts(file: Any) -> list[tuple[int, int]]:
    """(number, rows) of the segments merged into a file, in the order of its rows."""
    return [(int(number), int(rows)) for number, rows in json.loads(file.schema_arrow.metadata[_PARTS])]


def sweep(folder: Path, *, days: float, megabytes: float) -> None:
    """Remove segments older than ``days``, the oldest beyond ``megabytes``, and temporary files of dead writers."""
    now, remaining = time.time(), []
    for path in folder.glob("*") if folder.is_dir() and not folder.is_symlink() else ():
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        age = now - status.st_mtime
        if age > days * 86_400 or (path.name.endswith(_TEMPORARY) and age > 3600):
            path.unlink(missing_ok=True)
        elif Segment.parse(path.name):
            remaining.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in remaining)
    for _, size, path in sorted(remaining):
        if total <= megabytes * (1 << 20):
            break
        path.unlink(missing_ok=True)
        total -= size


def read_since(
    folder: Path, cursor: Mapping[str, int], columns: Sequence[str] | None = None
) -> Iterator[tuple[pa.Table, str, int]]:
    """Read what each writer wrote after ``cursor[writer]``: (rows, writer, number), at most CHUNK_ROWS at a time.

    Store ``number`` in the cursor once the rows are processed; it grows with the last rows of a segment. ``columns``
    selects columns by prefix. A segment that disappears meanwhile was merged or removed: its remaining rows are read
    from the merged one, if any. A damaged segment (after a power failure) is skipped and logged.
    """
    reached = dict(cursor)
    waiting = _unread(folder, reached)
    while waiting:
        segment = waiting.pop(0)
        before = reached.get(segment.writer, 0)
        held: pa.Table | None = None
        try:
            for rows in _chunks(folder / segment.name, before, columns):
                if held is not None:
                    yield held, segment.writer, before
                held = rows
        except FileNotFoundError:
            waiting = _unread(folder, reached)
            continue
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
            _log.error("the prediction log: %s is damaged: %s", segment.name, error)
        reached[segment.writer] = segment.last
        if held is not None:
            yield held, segment.writer, segment.last


def _unread(folder: Path, reached: Mapping[str, int]) -> list[Segment]:
    return [segment for segment in segments(folder) if segment.last > reached.get(segment.writer, 0)]


def _chunks(path: Path, after: int, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """Read the rows of a segment whose number is greater than ``after``."""
    with parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        selected = names if columns is None else [name for name in names if name.startswith(tuple(columns))]
        skipped = sum(rows for number, rows in _parts(file) if number <= after)
        for batch in file.iter_batches(CHUNK_ROWS, columns=selected):
            rows = pa.Table.from_batches([batch]).replace_schema_metadata(None).slice(skipped)
            skipped = max(0, skipped - batch.num_rows)
            if rows.num_rows:
                yield rows


def read_log(
    folder: Path, since: float = 0.0, until: float = float("inf"), columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Read the rows answered in [since, until), in seconds since the epoch, as tables by writer and then by time.

    Tables of versions with different inputs have different columns; `pyarrow.concat_tables` with
    ``promote_options="default"`` combines them when types agree.
    """
    for table, _, _ in read_since(folder, {}, columns):
        seconds = compute.divide(table["time"].cast(pa.int64()), 1e6)
        rows = table.filter(compute.and_(compute.greater_equal(seconds, since), compute.less(seconds, until)))
        if rows.num_rows:
            yield rows
