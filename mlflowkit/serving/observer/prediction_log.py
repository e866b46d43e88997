"""The prediction log: what was asked and answered, in Parquet, a row an answered row.

::

    time id row                        when, the request's id, the row's place in it
    experiment epoch                   of the routing table
    variant version answered how       what the router chose and why; who answered in the end ("mirror": a shadow)
    seconds error                      from the request to the answer; why ``variant`` failed, "" when it did not
    input.<column>                     as the graph took it: NaN and "" are missing; null in a shadow's rows
    label probability.<class>          a classification's answer, or
    prediction                         a regression's

Segments are written under a temporary name and renamed, every ROLL_SECONDS or ROLL_BYTES, and merged later, so that a
day is hundreds of files, not tens of thousands. A segment is called ``<writer>-<first>-<last>.parquet``: the writer
(a replica's observer, from its start to its end) numbers what it writes, and a merged segment says in its metadata
where the rows of each number are. So a reader that keeps a number a writer reads each row once (`read_since`),
whatever is merged or removed meanwhile.
"""

from __future__ import annotations

import json
import logging
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlflowkit.bundle import Signature
from mlflowkit.features.tensors import category_text
from mlflowkit.serving.observer.frames import Batch
from mlflowkit.serving.observer.shadow_comparison import label_texts

ROLL_SECONDS = 2.0
ROLL_BYTES = 16 << 20
MERGED = 16
"""Segments of one level that are merged into one of the next."""
LEVELS = 2
MERGED_BYTES = 64 << 20
"""Segments that together are larger are not merged."""
SWEEP_SECONDS = 10.0
CHUNK_ROWS = 65_536
_PARTS = b"mlkit.parts"
_TEMPORARY = ".tmp"
_log = logging.getLogger("mlflowkit.observer")


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """A file of the log: what a writer numbered ``first`` to ``last``."""

    writer: str
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.writer}-{self.first:08d}-{self.last:08d}.parquet"

    @classmethod
    def named(cls, name: str) -> Segment | None:
        """The segment of a file's name; None when it is none.

        >>> Segment.named("r1-18c-00000003-00000018.parquet")
        Segment(writer='r1-18c', first=3, last=18)
        """
        writer, *numbers = name.removesuffix(".parquet").rsplit("-", 2)
        if not name.endswith(".parquet") or name.startswith(".") or len(numbers) != 2 or not all(map(_number, numbers)):
            return None
        return cls(writer, int(numbers[0]), int(numbers[1]))


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def segments(folder: Path) -> list[Segment]:
    """The segments of a log, by writer and number; one whose rows are all in a merged one is left out."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    found: list[Segment] = []
    for segment in sorted(filter(None, map(Segment.named, names)), key=lambda one: (one.writer, one.first, -one.last)):
        if not found or found[-1].writer != segment.writer or segment.last > found[-1].last:
            found.append(segment)
    return found


def logged(batch: Batch, signature: Signature, *, sampling: float = 1.0) -> pa.Table:
    """The rows of a batch as the log keeps them; of requests, the share ``sampling``, chosen by a hash of the id.

    ``signature`` is that of the model that answered. Raises KeyError or ValueError where the two do not fit.
    """
    head = batch.head
    columns = _common(batch, head.variant, head.version, head.how, head.answered, batch.errors, batch.seconds)
    for tensor in signature.inputs:
        matrix = batch.inputs[tensor.name].reshape(batch.rows, -1)
        for place, column in enumerate(tensor.columns):
            columns[f"input.{column}"] = pa.array(np.ascontiguousarray(matrix[:, place]))
    columns |= _answers(batch.answers, signature)
    return _sampled(pa.table(columns), batch, sampling)


def logged_shadow(batch: Batch, signature: Signature, *, sampling: float = 1.0) -> pa.Table:
    """A shadow's answers as the log keeps them, without the inputs, which are in the client's rows of the same id."""
    head, seconds = batch.head, batch.shadow_seconds
    assert batch.shadow is not None
    assert seconds is not None  # a batch has both or neither
    columns = _common(batch, head.shadow, head.shadow_version, "mirror", head.shadow, [""] * len(batch.ids), seconds)
    return _sampled(pa.table(columns | _answers(batch.shadow, signature)), batch, sampling)


def _common(
    batch: Batch, variant: str, version: str, how: str, answered: str, errors: Sequence[str], seconds: np.ndarray
) -> dict[str, pa.Array]:
    head, rows = batch.head, pa.array(batch.request)
    times = pa.array((batch.times * 1e6).astype(np.int64)).cast(pa.timestamp("us", "UTC"))
    same = {
        "experiment": head.experiment,
        "epoch": pa.scalar(head.epoch, pa.int64()),
        "variant": variant,
        "version": version,
        "answered": answered,
        "how": how,
    }
    return {
        "time": times.take(rows),
        "id": pa.array(batch.ids, pa.string()).take(rows),
        "row": pa.array(batch.row),
        **{name: pa.repeat(value, batch.rows) for name, value in same.items()},
        "seconds": pa.array(seconds).take(rows),
        "error": pa.array(errors, pa.string()).take(rows),
    }


def _answers(answers: Mapping[str, np.ndarray], signature: Signature) -> dict[str, pa.Array]:
    if signature.task == "regression":
        return {"prediction": pa.array(answers["prediction"].reshape(-1).astype(np.float64))}
    found = {"label": pa.array(label_texts(answers["label"]), pa.string())}
    probabilities = answers.get("probabilities")
    if probabilities is not None:
        for place, label in enumerate(signature.classes):
            column = np.ascontiguousarray(probabilities[:, place])
            found[f"probability.{category_text(label)}"] = pa.array(column)
    return found


def _sampled(table: pa.Table, batch: Batch, sampling: float) -> pa.Table:
    if sampling >= 1.0:
        return table
    taken = np.array([zlib.crc32(number.encode()) < sampling * 2**32 for number in batch.ids], dtype=bool)
    return table.filter(pa.array(taken[batch.request]))


class LogWriter:
    """Writes one replica's part of the log. Used by one thread.

    A disk that refuses a segment costs that segment: its rows are counted in ``dropped``, and the next is tried.
    ``days`` and ``megabytes`` bound the whole folder; the oldest segments go first.
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
        self._complaint = ""

    def add(self, table: pa.Table) -> None:
        """Take rows; they are in a segment ROLL_SECONDS later at most, if `tick` is called meanwhile."""
        if not table.num_rows:
            return
        if not self._pending:
            self._since = time.monotonic()
        self._pending.append(table)
        self._bytes += table.nbytes
        if self._bytes >= ROLL_BYTES:
            self.roll()

    def tick(self) -> None:
        """Write, merge and remove what is due."""
        now = time.monotonic()
        if self._pending and now - self._since >= ROLL_SECONDS:
            self.roll()
        if now - self._swept >= SWEEP_SECONDS:
            self._swept = now
            self._attempt(0, lambda: sweep(self.folder, days=self.days, megabytes=self.megabytes))

    def roll(self) -> None:
        """Write what was taken as a segment; tables whose columns cannot be in one file, as several."""
        tables, self._pending, self._bytes = self._pending, [], 0
        for group in _compatible(tables):
            rows = sum(table.num_rows for table in group)
            segment = Segment(self._writer, self._next, self._next)
            if self._attempt(rows, lambda group=group, segment=segment: _write(self.folder, segment, group)):
                self._next += 1
                self.written += rows
                self._levels[0].append(segment)
        self._merge()

    def _merge(self) -> None:
        """Replace the oldest MERGED segments of a level by one of the next."""
        for level in range(LEVELS):
            if len(self._levels[level]) < MERGED:
                continue
            taken, self._levels[level] = self._levels[level][:MERGED], self._levels[level][MERGED:]
            whole = Segment(self._writer, taken[0].first, taken[-1].last)
            if self._attempt(0, lambda taken=taken, whole=whole: merge(self.folder, taken, whole)):
                self._levels[level + 1].append(whole)
        self._levels[LEVELS].clear()

    def _attempt(self, rows: int, work: Any) -> bool:
        try:
            work()
        except (OSError, pa.ArrowException) as error:
            if str(error) != self._complaint:
                _log.error("the prediction log: %s", error)
            self._complaint = str(error)
            self.dropped += rows
            return False
        self._complaint = ""
        return True


def _compatible(tables: Sequence[pa.Table]) -> Iterator[list[pa.Table]]:
    """Runs of tables that fit into one file: their columns have the same types wherever they have the same names."""
    group: list[pa.Table] = []
    for table in tables:
        if group and not _fits([*group, table]):
            yield group
            group = []
        group.append(table)
    if group:
        yield group


def _fits(tables: Sequence[pa.Table]) -> bool:
    try:
        pa.unify_schemas([table.schema for table in tables])
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return False
    return True


def _write(folder: Path, segment: Segment, tables: Sequence[pa.Table]) -> None:
    table = pa.concat_tables(tables, promote_options="default")
    _store(folder, segment, [table], table.schema, [(segment.first, table.num_rows)])


def merge(folder: Path, taken: Sequence[Segment], whole: Segment) -> None:
    """Write segments as one and remove them; does nothing when one is gone, they are too large or do not fit.

    Raises OSError or pyarrow.ArrowException when the disk refuses; the segments are then as they were.
    """
    import pyarrow.parquet as parquet

    paths = [folder / segment.name for segment in taken]
    if not all(path.exists() for path in paths) or sum(path.stat().st_size for path in paths) > MERGED_BYTES:
        return
    files = [parquet.ParquetFile(path) for path in paths]
    try:
        schema = pa.unify_schemas([file.schema_arrow.remove_metadata() for file in files])
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return
    parts = [part for file in files for part in _parts(file)]
    tables = (pa.concat_tables([schema.empty_table(), file.read()], promote_options="default") for file in files)
    _store(folder, whole, tables, schema, parts)
    for path in paths:
        path.unlink(missing_ok=True)


def _store(folder: Path, segment: Segment, tables: Any, schema: pa.Schema, parts: Sequence[tuple[int, int]]) -> None:
    import pyarrow.parquet as parquet

    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{segment.name}{_TEMPORARY}"
    try:
        with temporary.open("wb") as stream:
            told = schema.with_metadata({_PARTS: json.dumps(parts).encode()})
            with parquet.ParquetWriter(stream, told, compression="zstd", compression_level=1) as writer:
                for table in tables:
                    writer.write_table(table.replace_schema_metadata(told.metadata))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(folder / segment.name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _parts(file: Any) -> list[tuple[int, int]]:
    """(number, rows) of what was written into a segment, in the order of its rows."""
    return [(int(number), int(rows)) for number, rows in json.loads(file.schema_arrow.metadata[_PARTS])]


def sweep(folder: Path, *, days: float, megabytes: float) -> None:
    """Remove what is too old, and the oldest while all is too large; also what a writer that died left half-written."""
    now, kept = time.time(), []
    for path in folder.glob("*") if folder.is_dir() else ():
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        age = now - found.st_mtime
        if age > days * 86_400 or (path.name.endswith(_TEMPORARY) and age > 3600):
            path.unlink(missing_ok=True)
        elif Segment.named(path.name):
            kept.append((found.st_mtime, found.st_size, path))
    size = sum(size for _, size, _ in kept)
    for _, bytes_, path in sorted(kept):
        if size <= megabytes * (1 << 20):
            break
        path.unlink(missing_ok=True)
        size -= bytes_


def read_since(
    folder: Path, cursor: Mapping[str, int], columns: Sequence[str] | None = None
) -> Iterator[tuple[pa.Table, str, int]]:
    """(rows, writer, number): at most CHUNK_ROWS of what each writer wrote after ``cursor[writer]``, and the number to
    put there once they are taken in; it grows when the last rows of a segment are given.

    ``columns``: only those whose name begins with one of these. A segment that vanishes meanwhile was merged or
    removed: what is left of it is read from what is there then. One that is damaged (the machine lost power) is
    skipped and logged.
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
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            _log.error("the prediction log: %s is damaged: %s", segment.name, error)
        reached[segment.writer] = segment.last
        if held is not None:
            yield held, segment.writer, segment.last


def _unread(folder: Path, reached: Mapping[str, int]) -> list[Segment]:
    return [segment for segment in segments(folder) if segment.last > reached.get(segment.writer, 0)]


def _chunks(path: Path, after: int, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """The rows of a segment beyond what was numbered up to ``after``."""
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        wanted = names if columns is None else [name for name in names if name.startswith(tuple(columns))]
        skipped = sum(rows for number, rows in _parts(file) if number <= after)
        for batch in file.iter_batches(CHUNK_ROWS, columns=wanted):
            rows = pa.Table.from_batches([batch]).replace_schema_metadata(None).slice(skipped)
            skipped = max(0, skipped - batch.num_rows)
            if rows.num_rows:
                yield rows


def read_log(folder: Path, since: float = 0.0, until: float = float("inf")) -> Iterator[pa.Table]:
    """The rows answered in [since, until), in seconds since the epoch: tables by writer and then by time.

    Tables of versions with different inputs have different columns; `pyarrow.concat_tables` with
    ``promote_options="default"`` puts them together where types agree.
    """
    import pyarrow.compute as compute

    for table, _, _ in read_since(folder, {}):
        seconds = compute.divide(table["time"].cast(pa.int64()), 1e6)
        rows = table.filter(compute.and_(compute.greater_equal(seconds, since), compute.less(seconds, until)))
        if rows.num_rows:
            yield rows
