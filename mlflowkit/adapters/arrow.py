"""Reads CSV and Parquet and writes Parquet with Apache Arrow. Every defect of a file becomes a DataError."""

from __future__ import annotations

import csv as python_csv
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as parquet

from mlflowkit.errors import DataError, closest_match
from mlflowkit.system.text import first_line, format_list

BATCH_ROWS = 65_536
"""Rows filtered and written at a time."""


class ArrowTables:
    """The Tables port. Each column is held in memory once, for any number of files or parts."""

    def read_csv(self, files: Sequence[Path], *, separator: str = ",", skip: Sequence[str] = ()) -> pa.Table:
        """All rows of files with the same columns, in the order given, without the columns in ``skip``.

        Types are inferred over all rows of all files: a column of integers in one file and text in another is text.
        Empty fields, NA, NaN, null and the like are missing, as in pandas.
        """
        headers = [_header(file, separator) for file in files]
        _same_columns(files, headers)
        return _read_all(files, partial(_read_csv, separator, _remaining_columns(files[0], headers[0], skip)))

    def read_parquet(self, files: Sequence[Path], *, skip: Sequence[str] = ()) -> pa.Table:
        """All rows of files with the same columns, in the order given, without the columns in ``skip``."""
        headers = []
        for file in files:
            try:
                headers.append(parquet.read_schema(file).names)
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(file, "Parquet", error) from error
            _check_unique(file, headers[-1])
        _same_columns(files, headers)
        return _read_all(files, partial(_read_parquet, _remaining_columns(files[0], headers[0], skip)))

    def from_pandas(self, holder: list[pd.DataFrame], source: str, *, skip: Sequence[str] = ()) -> pa.Table:
        """Convert a DataFrame, without its index, to an Arrow table.

        Pops the frame from ``holder`` and frees it column by column, so that it is not held twice if the caller keeps
        no other reference.
        """
        frame = holder.pop().copy(deep=False)
        names = list(frame.columns)
        invalid = [name for name in names if not isinstance(name, str) or not name]
        if invalid:
            raise DataError(f"{source}: column name {invalid[0]!r} is not text", hint="rename the columns to text")
        _check_unique(Path(source), names)
        included = _remaining_columns(Path(source), names, skip)
        for name in set(skip):
            del frame[name]
        return pa.table({name: _from_series(frame.pop(name), source) for name in included})

    def write_parquet(self, table: pa.Table, rows: np.ndarray, path: Path) -> None:
        """Write the rows where the boolean mask ``rows`` is true, in batches; equal input gives equal bytes."""
        schema = table.schema.remove_metadata()
        texts = [field.name for field in schema if pa.types.is_string(field.type)]
        with parquet.ParquetWriter(path, schema, version="2.6", compression="snappy", use_dictionary=texts) as writer:
            for start in range(0, table.num_rows, BATCH_ROWS):
                mask = rows[start : start + BATCH_ROWS]
                if mask.any():
                    writer.write_table(table.slice(start, BATCH_ROWS).filter(pa.array(mask)))


def _same_columns(files: Sequence[Path], headers: Sequence[Sequence[str]]) -> None:
    first = set(headers[0])
    for file, header in zip(files, headers, strict=True):
        missing = [name for name in headers[0] if name not in header]
        extra = [name for name in header if name not in first]
        if missing or extra:
            parts = [f"lacks {format_list(missing, 8)}"] if missing else []
            parts += [f"has {format_list(extra, 8)} besides"] if extra else []
            hint = "files read together need the same columns; narrow data.source.path, or fix the file"
            raise DataError(f"{file} {' and '.join(parts)}, compared with {files[0]}", hint=hint)


def _read_all(files: Sequence[Path], read: Callable[[Path, dict[str, pa.DataType]], pa.Table]) -> pa.Table:
    """One table of all files. Columns of different types get their common type, or text."""
    tables = [read(file, {}) for file in files]
    if len(tables) == 1:
        return tables[0]
    names = tables[0].column_names
    common = {name: _common_type([table.schema.field(name).type for table in tables]) for name in names}
    for index, file in enumerate(files):
        schema = tables[index].schema
        if different := {name: kind for name, kind in common.items() if schema.field(name).type != kind}:
            tables[index] = None  # frees it first
            tables[index] = read(file, different)
    return pa.concat_tables(tables)


def _common_type(types: Sequence[pa.DataType]) -> pa.DataType:
    """The narrowest type that holds values of all ``types``.

    >>> _common_type([pa.int64(), pa.null(), pa.float64()])
    DataType(double)
    >>> _common_type([pa.int64(), pa.string()])
    DataType(string)
    """
    present = list(dict.fromkeys(kind for kind in types if not pa.types.is_null(kind)))
    if not present:
        return pa.null()
    if len(present) == 1:
        return present[0]
    if all(pa.types.is_integer(kind) for kind in present):
        return pa.int64()
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in present):
        return pa.float64()
    if all(pa.types.is_temporal(kind) and not pa.types.is_time(kind) for kind in present):
        return pa.timestamp("us")
    return pa.string()


def _from_series(series: pd.Series, source: str) -> pa.ChunkedArray | pa.Array:
    try:
        return pa.array(series, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError) as error:
        kinds = sorted({type(value).__name__ for value in series if value is not None})
        raise DataError(
            f"{source}: column {series.name!r} mixes {', '.join(kinds[:5])}",
            hint=f"give it one type, for example table[{series.name!r}].astype(str), or add it to data.drop",
        ) from error


def _header(file: Path, separator: str) -> list[str]:
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            header = next(python_csv.reader(stream, delimiter=separator), [])
    except (python_csv.Error, OSError) as error:
        raise _unreadable(file, "CSV", error) from error
    if not header:
        raise DataError(f"{file} is empty: not even a header", hint="the first line must name the columns")
    if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in "".join(header)):
        raise _not_utf8(file, "its first line")
    if "" in header:
        raise DataError(
            f"{file}: column {header.index('') + 1} has no name",
            hint="name it in the first line (pandas: to_csv(..., index=False) leaves the index out)",
        )
    _check_unique(file, header)
    return header


def _read_parquet(names: list[str], file: Path, types: dict[str, pa.DataType]) -> pa.Table:
    try:
        table = parquet.ParquetFile(file).read(columns=names).select(names)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, "Parquet", error) from error
    for name, kind in types.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, table.column(index).cast(kind))
    return table


def _read_csv(separator: str, names: list[str], file: Path, types: dict[str, pa.DataType]) -> pa.Table:
    try:
        table = _parse(file, separator, names, _first_types(file, separator, names) | types)
    except (pa.ArrowException, OSError):
        try:
            table = _parse(file, separator, names, types)
        except (pa.ArrowException, OSError) as error:
            raise _csv_error(file, separator, error) from error
    for name in names:
        if pa.types.is_binary(table.schema.field(name).type):
            values = (value.as_py() or b"" for value in table.column(name))
            faulty = (row for row, value in enumerate(values) if value.decode(errors="ignore").encode() != value)
            raise _not_utf8(file, f"column {name!r}, row {next(faulty, 0)}")
    return table


def _parse(file: Path, separator: str, names: list[str], types: dict[str, pa.DataType]) -> pa.Table:
    try:
        return arrow_csv.read_csv(file, **_csv_options(separator, names, types))
    finally:
        pa.default_memory_pool().release_unused()


def _first_types(file: Path, separator: str, names: list[str]) -> dict[str, pa.DataType]:
    """Types of the columns in the first mebibyte.

    Reading a file with fixed types saves memory: inferring them over all rows keeps every row's text until the end.
    """
    with arrow_csv.open_csv(file, **_csv_options(separator, names, {})) as reader:
        types = {field.name: field.type for field in reader.schema}
    return {name: kind for name, kind in types.items() if not (pa.types.is_null(kind) or pa.types.is_binary(kind))}


def _csv_options(separator: str, names: list[str], types: dict[str, pa.DataType]) -> dict[str, Any]:
    parse = arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    convert = arrow_csv.ConvertOptions(include_columns=names, column_types=types, strings_can_be_null=True)
    return {"parse_options": parse, "convert_options": convert}


def _csv_error(file: Path, separator: str, error: Exception) -> DataError:
    """The DataError of a parse error, with the line of a ragged row, located by Python's csv reader."""
    if "CSV parse error" not in str(error):
        return _unreadable(file, "CSV", error)
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        reader = python_csv.reader(stream, delimiter=separator)
        width = len(next(reader))
        for fields in reader:
            if fields and len(fields) != width:
                return DataError(
                    f"{file}:{reader.line_num}: {len(fields)} fields where the header has {width}: "
                    f"{separator.join(fields)[:80]}",
                    hint=f"fix line {reader.line_num}, or set data.source.separator if it is not {separator!r}",
                )
    return _unreadable(file, "CSV", error)


def _not_utf8(file: Path, where: str) -> DataError:
    return DataError(
        f"{file} is not UTF-8: {where}",
        hint=f"convert it, for example: iconv -f latin1 -t utf-8 {file.name} > utf8-{file.name}",
    )


def _check_unique(file: Path, header: Sequence[str]) -> None:
    duplicates = sorted({name for name in header if list(header).count(name) > 1})
    if duplicates:
        hint = "give each its own name"
        raise DataError(f"{file} has more than one column named {format_list(duplicates, 8)}", hint=hint)


def _remaining_columns(file: Path, header: Sequence[str], skip: Sequence[str]) -> list[str]:
    for name in skip:
        if name not in header:
            match = closest_match(name, header)
            hint = f"did you mean {match!r}?" if match else f"the columns are {format_list(header, 20)}"
            raise DataError(f"{file} has no column {name!r} to drop", hint=hint)
    return [name for name in header if name not in skip]


def _unreadable(file: Path, kind: str, error: Exception) -> DataError:
    reason = first_line(error)[:200]
    return DataError(f"{file} cannot be read as {kind}: {reason}", hint="check data.source.kind and the file")
