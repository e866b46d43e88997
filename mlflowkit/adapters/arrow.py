"""Tables on disk through Apache Arrow: CSV and Parquet in, Parquet out. Every fault of a file becomes a DataError."""

from __future__ import annotations

import csv as python_csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as parquet

from mlflowkit.errors import DataError, nearest

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

BATCH = 65_536
"""Rows filtered and written at a time."""


class ArrowTables:
    """The Tables port. Each column is held once, whatever the number of files or parts."""

    def read_csv(self, files: Sequence[Path], *, separator: str = ",", skip: Sequence[str] = ()) -> pa.Table:
        """All rows of files with the same columns, in the order given, without the columns in ``skip``.

        Types are inferred over all rows of all files: a column that is whole numbers in one file and text in another
        is text. Empty fields, NA, NaN, null and their kin are missing, as in pandas.
        """
        headers = [_header(file, separator) for file in files]
        _same_columns(files, headers)
        names = _kept(files[0], headers[0], skip)

        def read(file: Path, types: dict[str, pa.DataType]) -> pa.Table:
            return _read_csv(file, separator, names, types)

        return _joined(files, read)

    def read_parquet(self, files: Sequence[Path], *, skip: Sequence[str] = ()) -> pa.Table:
        """All rows of files with the same columns, in the order given, without the columns in ``skip``."""
        schemas = [_parquet_schema(file) for file in files]
        headers = [schema.names for schema in schemas]
        for file, header in zip(files, headers, strict=True):
            _distinct(file, header)
        _same_columns(files, headers)
        names = _kept(files[0], headers[0], skip)

        def read(file: Path, types: dict[str, pa.DataType]) -> pa.Table:
            try:
                table = parquet.ParquetFile(file).read(columns=names).select(names)
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(file, "Parquet", error) from error
            for name, kind in types.items():
                index = table.schema.get_field_index(name)
                table = table.set_column(index, name, table.column(index).cast(kind))
            return table

        return _joined(files, read)

    def from_pandas(self, holder: list[pd.DataFrame], source: str, *, skip: Sequence[str] = ()) -> pa.Table:
        """A DataFrame as an Arrow table. The frame is taken out of ``holder`` and given up column by column, so that
        it is not held twice where the caller keeps no other reference. The index is left out."""
        frame = holder.pop().copy(deep=False)
        names = list(frame.columns)
        odd = [name for name in names if not isinstance(name, str) or not name]
        if odd:
            raise DataError(f"{source}: column name {odd[0]!r} is not text", hint="rename the columns to text")
        _distinct(Path(source), names)
        arrays = {}
        kept = _kept(Path(source), names, skip)
        for name in names:
            series = frame.pop(name)
            if name in kept:
                arrays[name] = _from_series(series, source)
        return pa.table(arrays)

    def write_parquet(self, table: pa.Table, rows: np.ndarray, path: Path) -> None:
        """Write the rows where the boolean mask ``rows`` is true, a batch at a time; equal input, equal bytes."""
        schema = table.schema.remove_metadata()
        texts = [field.name for field in schema if pa.types.is_string(field.type)]
        with parquet.ParquetWriter(path, schema, version="2.6", compression="snappy", use_dictionary=texts) as writer:
            for start in range(0, table.num_rows, BATCH):
                mask = rows[start : start + BATCH]
                if mask.any():
                    writer.write_table(table.slice(start, BATCH).filter(pa.array(mask)))


# --------------------------------------------------------------------------------------------------------- many files


def _same_columns(files: Sequence[Path], headers: Sequence[Sequence[str]]) -> None:
    first = set(headers[0])
    for file, header in zip(files, headers, strict=True):
        lacks = [name for name in headers[0] if name not in header]
        extra = [name for name in header if name not in first]
        if lacks or extra:
            parts = [f"lacks {_listed(lacks)}"] if lacks else []
            parts += [f"has {_listed(extra)} besides"] if extra else []
            raise DataError(
                f"{file} {' and '.join(parts)}, compared with {files[0]}",
                hint="files read together need the same columns; narrow data.source.path, or mend the file",
            )


def _joined(files: Sequence[Path], read: Callable[[Path, dict[str, pa.DataType]], pa.Table]) -> pa.Table:
    """One table of all files. Where types differ, the type that holds both; text where there is none."""
    tables = [read(file, {}) for file in files]
    if len(tables) == 1:
        return tables[0]
    common = {name: _common([table.schema.field(name).type for table in tables]) for name in tables[0].column_names}
    for index, file in enumerate(files):
        table = tables[index]
        different = {name: kind for name, kind in common.items() if table.schema.field(name).type != kind}
        if different:
            tables[index] = table = None
            tables[index] = read(file, different)
    return pa.concat_tables(tables)


def _common(types: Sequence[pa.DataType]) -> pa.DataType:
    """
    >>> _common([pa.int64(), pa.null(), pa.float64()])
    DataType(double)
    >>> _common([pa.int64(), pa.string()])
    DataType(string)
    """
    known = list(dict.fromkeys(kind for kind in types if not pa.types.is_null(kind)))
    if not known:
        return pa.null()
    if len(known) == 1:
        return known[0]
    if all(pa.types.is_integer(kind) for kind in known):
        return pa.int64()
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in known):
        return pa.float64()
    if all(pa.types.is_temporal(kind) and not pa.types.is_time(kind) for kind in known):
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


# ---------------------------------------------------------------------------------------------------------------- CSV


def _header(file: Path, separator: str) -> list[str]:
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            header = next(python_csv.reader(stream, delimiter=separator), [])
    except (python_csv.Error, OSError) as error:
        raise _unreadable(file, "CSV", error) from error
    if not header:
        raise DataError(f"{file} is empty: not even a header", hint="the first line must name the columns")
    if any(mark == "\0" or "\ud800" <= mark <= "\udfff" for mark in "".join(header)):
        raise _not_utf8(file, "its first line")
    if "" in header:
        raise DataError(
            f"{file}: column {header.index('') + 1} has no name",
            hint="name it in the first line (pandas: to_csv(..., index=False) leaves the index out)",
        )
    _distinct(file, header)
    return header


def _read_csv(file: Path, separator: str, names: list[str], types: dict[str, pa.DataType]) -> pa.Table:
    try:
        table = _parse(file, separator, names, _first_types(file, separator, names) | types)
    except (pa.ArrowException, OSError):
        try:
            table = _parse(file, separator, names, types)
        except (pa.ArrowException, OSError) as error:
            raise _csv_fault(file, separator, error) from error
    for name in names:
        if pa.types.is_binary(table.schema.field(name).type):
            raise _not_utf8(file, f"column {name!r}, row {_first_bad_text(table.column(name))}")
    return table


def _parse(file: Path, separator: str, names: list[str], types: dict[str, pa.DataType]) -> pa.Table:
    options = _csv_options(separator, names, types)
    try:
        return arrow_csv.read_csv(file, **options)
    finally:
        pa.default_memory_pool().release_unused()


def _first_types(file: Path, separator: str, names: list[str]) -> dict[str, pa.DataType]:
    """Types of the columns in the first mebibyte. A file is read with them in hand where they hold throughout, since
    types told after the last row need the text of all rows to be kept until then."""
    with arrow_csv.open_csv(file, **_csv_options(separator, names, {})) as reader:
        return {field.name: field.type for field in reader.schema if _tells(field.type)}


def _tells(kind: pa.DataType) -> bool:
    return not (pa.types.is_null(kind) or pa.types.is_binary(kind))


def _csv_options(separator: str, names: list[str], types: dict[str, pa.DataType]) -> dict[str, Any]:
    return {
        "parse_options": arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        "convert_options": arrow_csv.ConvertOptions(
            include_columns=names, column_types=types, strings_can_be_null=True
        ),
    }


def _csv_fault(file: Path, separator: str, error: Exception) -> DataError:
    """A ragged line is looked for with Python's own reader, which counts lines; it is read on this path only."""
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
                    hint=f"mend line {reader.line_num}, or set data.source.separator if {separator!r} is not it",
                )
    return _unreadable(file, "CSV", error)


def _first_bad_text(column: pa.ChunkedArray) -> int:
    for row, value in enumerate(column):
        content = value.as_py()
        if content is not None and content.decode("utf-8", errors="ignore").encode() != content:
            return row
    return 0


def _not_utf8(file: Path, where: str) -> DataError:
    return DataError(
        f"{file} is not UTF-8: {where}",
        hint=f"convert it, for example: iconv -f latin1 -t utf-8 {file.name} > utf8-{file.name}",
    )


# ------------------------------------------------------------------------------------------------------------- shared


def _parquet_schema(file: Path) -> pa.Schema:
    try:
        return parquet.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, "Parquet", error) from error


def _distinct(file: Path, header: Sequence[str]) -> None:
    twice = sorted({name for name in header if list(header).count(name) > 1})
    if twice:
        raise DataError(f"{file} has more than one column named {_listed(twice)}", hint="give each its own name")


def _kept(file: Path, header: Sequence[str], skip: Sequence[str]) -> list[str]:
    for name in skip:
        if name not in header:
            near = nearest(name, header)
            hint = f"did you mean {near!r}?" if near else f"the columns are {_listed(header, 20)}"
            raise DataError(f"{file} has no column {name!r} to drop", hint=hint)
    return [name for name in header if name not in skip]


def _unreadable(file: Path, kind: str, error: Exception) -> DataError:
    reason = str(error).splitlines()[0][:200]
    return DataError(f"{file} cannot be read as {kind}: {reason}", hint="check data.source.kind and the file")


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
