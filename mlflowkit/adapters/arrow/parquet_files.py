"""Reads Parquet files into memory or into files of columns, and finds the type that holds a column of all of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

from mlflowkit.adapters.arrow.file_columns import require_unique, unreadable
from mlflowkit.adapters.arrow.stored_table import BATCH_ROWS, ColumnFolder, ColumnWriter, StoredTable, has_categories
from mlflowkit.errors import DataError
from mlflowkit.system.machine import memory

OPEN_COLUMNS = 64
"""Columns that are written at a time: each is an open file, and every Parquet file is opened once for so many."""
MAX_DIGITS = 38
"""Digits of Arrow's widest decimal that is read exactly."""


def read_header(file: Path) -> list[str]:
    """The names of a file's columns."""
    try:
        names: list[str] = parquet.read_schema(file).names
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, "Parquet", error) from error
    require_unique(file, names)
    return names


def read_columns(files: Sequence[Path], names: Sequence[str]) -> tuple[pa.Table, list[int]]:
    """Columns of all files, each with the type that holds all its values; and how many rows each file has."""
    tables = [_read(file, names) for file in files]
    rows = [table.num_rows for table in tables]
    if len(tables) == 1:
        return tables[0], rows
    common = {name: common_type([table.schema.field(name).type for table in tables]) for name in names}
    for index, table in enumerate(tables):
        for column, (name, kind) in enumerate(common.items()):
            if table.schema.field(column).type != kind:
                table = table.set_column(column, name, _convert(table.column(column), kind))
        tables[index] = table.cast(pa.schema(list(common.items())))
    return pa.concat_tables(tables), rows


def store_columns(files: Sequence[Path], names: Sequence[str], folder: ColumnFolder) -> tuple[StoredTable, list[int]]:
    """As `read_columns`, a batch of a column at a time into files of ``folder``.

    Raises DataError, before anything is read, where the disk has no room for the columns or the memory for one.
    """
    kinds: dict[str, list[pa.DataType]] = {name: [] for name in names}
    sizes = dict.fromkeys(names, 0.0)
    rows = []
    for file in files:
        with _opened(file) as reader:
            rows.append(reader.metadata.num_rows)
            for name, size in _least_bytes(reader, names).items():
                kinds[name].append(reader.schema_arrow.field(name).type)
                sizes[name] += size
    _require_room(files, sizes, sum(rows), folder.path)
    common = {name: common_type(kinds[name]) for name in names}
    columns = {}
    for start in range(0, len(names), OPEN_COLUMNS):
        block = names[start : start + OPEN_COLUMNS]
        writers = {name: folder.writer(common[name]) for name in block}
        for file in files:
            _copy_columns(file, writers)
        columns.update({name: writer.close() for name, writer in writers.items()})
    return StoredTable(folder, columns, sum(rows)), rows


def _copy_columns(file: Path, writers: Mapping[str, ColumnWriter]) -> None:
    """Write columns of one file, each a batch at a time; categories at once, since each batch has them all."""
    with _opened(file) as reader:
        for name, writer in writers.items():
            if has_categories(reader.schema_arrow.field(name).type):
                chunks = reader.read(columns=[name]).column(name).chunks
            else:
                chunks = (batch.column(name) for batch in reader.iter_batches(BATCH_ROWS, columns=[name]))
            for chunk in chunks:
                writer.add(chunk if chunk.type == writer.kind else _convert(chunk, writer.kind).cast(writer.kind))


def common_type(types: Sequence[pa.DataType]) -> pa.DataType:
    """The narrowest type that holds values of all ``types``; categories count by their values.

    >>> common_type([pa.int64(), pa.null(), pa.float64()])
    DataType(double)
    >>> common_type([pa.decimal128(10, 2), pa.float32()]), common_type([pa.decimal128(5, 1), pa.decimal128(6, 3)])
    (DataType(double), Decimal128Type(decimal128(7, 3)))
    >>> common_type([pa.int64(), pa.string()])
    DataType(string)
    """
    present = list(dict.fromkeys(kind for kind in types if not pa.types.is_null(kind)))
    if not present:
        return pa.null()
    if len(present) == 1:
        return present[0]
    values = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in present]
    if values != present:
        return pa.dictionary(pa.int32(), common_type(values))
    if all(pa.types.is_integer(kind) for kind in present):
        return pa.int64()
    if all(pa.types.is_integer(kind) or pa.types.is_decimal(kind) for kind in present):
        return _common_decimal(present)
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) for kind in present):
        return pa.float64()
    if all(pa.types.is_temporal(kind) and not pa.types.is_time(kind) for kind in present):
        return pa.timestamp("us")
    return pa.string()


def _common_decimal(types: Sequence[pa.DataType]) -> pa.DataType:
    scale = max(kind.scale if pa.types.is_decimal(kind) else 0 for kind in types)
    integer_digits = max(kind.precision - kind.scale if pa.types.is_decimal(kind) else 19 for kind in types)
    return pa.decimal128(integer_digits + scale, scale) if integer_digits + scale <= MAX_DIGITS else pa.float64()


def _convert(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_dictionary(kind):
        return column.cast(kind.value_type).dictionary_encode()
    return column.cast(kind)


def _require_memory(file: Path, reader: parquet.ParquetFile, names: Sequence[str]) -> None:
    """Raise DataError for a file that expands to more than the memory that is free, before it is expanded.

    A few kilobytes may hold thousands of millions of rows.
    """
    free = memory("MemAvailable")
    needed = sum(_least_bytes(reader, names).values())
    if free is not None and needed > free:
        raise _too_large([file], needed, f"{reader.metadata.num_rows:,} rows of {len(names)} columns", free, "memory")


def _require_room(files: Sequence[Path], sizes: Mapping[str, float], rows: int, folder: Path) -> None:
    """Raise DataError where the columns are larger than the free disk, or the largest than the free memory."""
    needed, free = sum(sizes.values()), shutil.disk_usage(folder).free
    if not sizes:
        return
    if needed > free:
        raise _too_large(files, needed, f"{rows:,} rows of {len(sizes)} columns", free, f"the disk of {folder}")
    largest, available = max(sizes, key=lambda name: sizes[name]), memory("MemAvailable")
    if available is not None and sizes[largest] > available:
        raise _too_large(files, sizes[largest], f"{rows:,} rows of column {largest!r}", available, "memory")


def _too_large(files: Sequence[Path], needed: float, what: str, free: int, place: str) -> DataError:
    size = sum(file.stat().st_size for file in files) / 2**20
    which = f"{files[0]}" if len(files) == 1 else f"{files[0]} and {len(files) - 1} more,"
    message = f"{which} of {size:,.1f} MiB expands to {needed / 2**30:,.1f} GiB at least ({what}), "
    hint = "read fewer columns (data.drop) or fewer rows, or use a machine with more memory"
    message += f"and {free / 2**30:,.1f} GiB of {place} are free"
    return DataError(message, hint=hint if place == "memory" else f"{hint.partition(', or')[0]}, or make room there")


def _least_bytes(reader: parquet.ParquetFile, names: Sequence[str]) -> dict[str, float]:
    """The least that each column takes in memory, by what the file says of itself: a row takes the width of its type,
    text its offset or what the pages hold."""
    rows, schema = reader.metadata.num_rows, reader.schema_arrow
    pages = dict.fromkeys(names, 0.0)
    for group in range(reader.metadata.num_row_groups):
        columns = reader.metadata.row_group(group)
        for index in range(columns.num_columns):
            chunk = columns.column(index)
            name = chunk.path_in_schema.split(".")[0]
            if name in pages:
                pages[name] += chunk.total_uncompressed_size
    return {name: max(rows * _row_bytes(schema.field(name).type), pages[name]) for name in names}


def _row_bytes(kind: pa.DataType) -> float:
    """The least that a value of a type takes in memory."""
    try:
        return int(kind.bit_width) / 8
    except ValueError:
        return 4  # an offset


@contextmanager
def _opened(file: Path) -> Iterator[parquet.ParquetFile]:
    """A Parquet file; what goes wrong in the block because of it becomes a DataError."""
    try:
        with parquet.ParquetFile(file) as reader:
            yield reader
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, "Parquet", error) from error


def _read(file: Path, names: Sequence[str]) -> pa.Table:
    with _opened(file) as reader:
        _require_memory(file, reader, names)
        table: pa.Table = reader.read(columns=list(names)).select(list(names))
    return table
