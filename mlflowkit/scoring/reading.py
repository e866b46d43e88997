"""Read the rows of a file in batches, so that a file of any size fits in memory: CSV, Parquet, JSON and JSON lines."""

from __future__ import annotations

import csv as python_csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as parquet

from mlflowkit.errors import DataError, UsageError
from mlflowkit.system.text import first_line, format_list, shell_word

BATCH_ROWS = 8192
"""Rows of one batch of Parquet and JSON lines."""
BLOCK_BYTES = 4 * 2**20
"""Bytes of a CSV that are parsed at a time; a single row must fit."""
FORMATS = ("csv", "parquet", "jsonl", "json")
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
}
_COMPRESSED = (".gz", ".bz2", ".zst")


@dataclass(frozen=True, slots=True)
class RowFile:
    """An open file of rows.

    names     columns, in the order of the file
    text      whether every value is text as it stands in the file (CSV)
    total     number of rows where the file says it (Parquet), else None
    batches   the rows, as tables with the columns ``names``; read once
    """

    path: Path
    names: tuple[str, ...]
    text: bool
    total: int | None
    batches: Iterator[pa.Table]


def format_of(path: Path) -> str:
    """The format of a file by its name, one of `FORMATS`. Raises UsageError for any other.

    >>> format_of(Path("rows.csv.gz")), format_of(Path("rows.ndjson"))
    ('csv', 'jsonl')
    """
    name = path.with_suffix("") if path.suffix in _COMPRESSED else path
    kind = _SUFFIXES.get(name.suffix.lower())
    if kind is None:
        raise UsageError(
            f"{path}: the format cannot be told from the name {path.name!r}",
            hint=f"give it a name that ends in {', '.join('.' + name for name in FORMATS)} (a CSV also in .csv.gz)",
        )
    return kind


def open_rows(path: Path, *, separator: str | None = None) -> RowFile:
    """Open a file. Raises UsageError for an unknown format, DataError for a file that cannot be read.

    ``separator`` is the character between the fields of a CSV: by default a tab for .tsv, else a comma.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}", hint=f"ls {shell_word(path.parent)}")
    kind = format_of(path)
    try:
        if kind == "csv":
            return _open_csv(path, separator or ("\t" if ".tsv" in path.suffixes else ","))
        return {"parquet": _open_parquet, "jsonl": _open_json_lines, "json": _open_json}[kind](path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _open_csv(path: Path, separator: str) -> RowFile:
    names = _csv_header(path, separator)
    try:
        reader = arrow_csv.open_csv(
            pa.input_stream(str(path), compression="detect"),
            read_options=arrow_csv.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, check_utf8=True
            ),
        )
    except (pa.ArrowException, OSError) as error:
        raise _csv_error(path, separator, error) from error
    return RowFile(path, names, True, None, _csv_batches(path, separator, reader))


def _csv_header(path: Path, separator: str) -> tuple[str, ...]:
    with io.TextIOWrapper(pa.input_stream(str(path), compression="detect"), "utf-8-sig", newline="") as stream:
        try:
            header = tuple(next(python_csv.reader(stream, delimiter=separator), []))
        except (UnicodeDecodeError, python_csv.Error) as error:
            raise DataError(f"{path}:1: {first_line(error)}", hint="the first line must name the columns") from error
    if not header:
        raise DataError(f"{path} is empty: not even a header", hint="the first line must name the columns")
    _check_names(path, header)
    return header


def _csv_batches(path: Path, separator: str, reader: Any) -> Iterator[pa.Table]:
    while True:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return
        except (pa.ArrowException, OSError) as error:
            raise _csv_error(path, separator, error) from error
        if batch.num_rows:
            yield pa.Table.from_batches([batch])


def _csv_error(path: Path, separator: str, error: Exception) -> DataError:
    """The DataError of a parse error, with the line of a ragged row, located by Python's csv reader."""
    with io.TextIOWrapper(
        pa.input_stream(str(path), compression="detect"), "utf-8-sig", errors="replace", newline=""
    ) as stream:
        reader = python_csv.reader(stream, delimiter=separator)
        width = len(next(reader, []))
        try:
            for fields in reader:
                if fields and len(fields) != width:
                    message = f"{path}:{reader.line_num}: {len(fields)} fields; the header has {width}"
                    return DataError(message, hint=f"sed -n {reader.line_num}p {shell_word(path)}")
        except python_csv.Error as reason:
            return DataError(
                f"{path}:{reader.line_num}: not CSV: {reason}", hint=f"sed -n {reader.line_num}p {shell_word(path)}"
            )
    return _unreadable(path, error)


def _open_parquet(path: Path) -> RowFile:
    file = parquet.ParquetFile(path)
    names = tuple(file.schema_arrow.names)
    _check_names(path, names)
    return RowFile(path, names, False, file.metadata.num_rows, _parquet_batches(path, file))


def _parquet_batches(path: Path, file: parquet.ParquetFile) -> Iterator[pa.Table]:
    try:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            if batch.num_rows:
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _open_json_lines(path: Path) -> RowFile:
    chunks = _json_chunks(path)
    first = next(chunks, [])
    if not first:
        raise DataError(f"{path} has no rows", hint='one object a line: {"column": value}')
    names = tuple(first[0])

    def batches() -> Iterator[pa.Table]:
        yield _to_table(path, first, names, 0)
        start = len(first)
        for rows in chunks:
            yield _to_table(path, rows, names, start)
            start += len(rows)

    return RowFile(path, names, False, None, batches())


def _json_chunks(path: Path) -> Iterator[list[Any]]:
    rows: list[Any] = []
    with io.TextIOWrapper(pa.input_stream(str(path), compression="detect"), "utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line, parse_constant=_not_json))
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}:{number}: not JSON: {first_line(error)}", hint=f"sed -n {number}p {shell_word(path)}"
                ) from error
            if len(rows) == BATCH_ROWS:
                yield rows
                rows = []
    if rows:
        yield rows


def _open_json(path: Path) -> RowFile:
    return rows_of_json(path, path.read_bytes())


def rows_of_json(path: Path, text: str | bytes) -> RowFile:
    """The rows of a JSON document: a list of objects, ``{"rows": [...]}`` or one object. Raises DataError.

    >>> rows_of_json(Path("--rows"), '[{"age": 41}]').names
    ('age',)
    """
    example = 'such as [{"column": value}]'
    try:
        document = json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {first_line(error)}", hint=example) from error
    rows = document.get("rows", [document]) if isinstance(document, dict) else document
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        raise DataError(f"{path} is not a list of rows", hint=example)
    names = tuple(rows[0])
    return RowFile(path, names, False, len(rows), iter([_to_table(path, rows, names, 0)]))


def _not_json(text: str) -> None:
    raise ValueError(f"{text} is no JSON; use null for a missing value")


def _to_table(path: Path, rows: Sequence[Any], names: Sequence[str], start: int) -> pa.Table:
    """Rows of JSON as a table. Raises DataError for a row with other columns, or a column that mixes types."""
    for index, row in enumerate(rows, start):
        if not isinstance(row, dict) or row.keys() != set(names):
            message = f"{path}: row {index} does not have the columns of row 0"
            raise DataError(message, hint=f"each row needs {format_list(names, 12)}; null says that a value is missing")
    columns = {}
    for name in names:
        values = [row[name] for row in rows]
        try:
            columns[name] = pa.array(values)
        except OverflowError as error:
            message = f"{path}: column {name!r} has a whole number beyond 64 bits"
            raise DataError(message, hint="write a number with a decimal point, or a category as text") from error
        except (pa.ArrowException, TypeError, ValueError) as error:
            message = f"{path}: column {name!r} mixes types: {first_line(error)[:160]}"
            raise DataError(message, hint="give each column one type: all numbers or all text") from error
    return pa.table(columns)


def _check_names(path: Path, names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise DataError(f"{path}:1: column {format_list(repeated)} occurs twice", hint="name each column once")


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = first_line(error)[:200]
    return DataError(f"{path} cannot be read as {format_of(path)}: {reason}", hint=f"file {path}")
