"""Reads Parquet files, and finds the type that holds a column of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

from mlflowkit.adapters.arrow.file_columns import require_unique, unreadable
from mlflowkit.errors import DataError
from mlflowkit.system.machine import memory

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

    A few kilobytes may hold thousands of millions of rows. What the file says of itself is a lower bound: a row takes
    the width of its type, text its offset and what the pages hold.
    """
    free = memory("MemAvailable")
    if free is None:
        return
    rows = reader.metadata.num_rows
    width = sum(_row_bytes(reader.schema_arrow.field(name).type) for name in names)
    included = set(names)
    pages = 0
    for group in range(reader.metadata.num_row_groups):
        columns = reader.metadata.row_group(group)
        chunks = (columns.column(index) for index in range(columns.num_columns))
        pages += sum(
            chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in included
        )
    needed = max(rows * width, pages)
    if needed > free:
        message = (
            f"{file} of {file.stat().st_size / 2**20:,.1f} MiB expands to {needed / 2**30:,.1f} GiB at least "
            f"({rows:,} rows of {len(included)} columns), and {free / 2**30:,.1f} GiB of memory are free"
        )
        raise DataError(message, hint="read fewer columns (data.drop) or fewer rows, or use a machine with more memory")


def _row_bytes(kind: pa.DataType) -> float:
    """The least that a value of a type takes in memory."""
    try:
        return int(kind.bit_width) / 8
    except ValueError:
        return 4  # an offset


def _read(file: Path, names: Sequence[str]) -> pa.Table:
    try:
        with parquet.ParquetFile(file) as reader:
            _require_memory(file, reader, names)
            table: pa.Table = reader.read(columns=list(names)).select(list(names))
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, "Parquet", error) from error
    return table
