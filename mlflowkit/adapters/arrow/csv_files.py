"""Reads CSV files, plain or compressed: every field as the text that it is, then typed by `features.text_columns`.

The files are read in blocks, so that a number's text is held for one block only. A column that turns out to be text
after blocks of numbers is read again.
"""

from __future__ import annotations

import csv as python_csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.csv as arrow_csv

from mlflowkit.adapters.arrow.file_columns import require_unique, unreadable
from mlflowkit.errors import DataError
from mlflowkit.features.cells import ReadingPlan
from mlflowkit.features.text_columns import TextColumn
from mlflowkit.system.text import shell_word

BLOCK_BYTES = 4 << 20
"""Bytes of text read at a time; a row must fit."""
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4", ".br")
"""Ends of the names of files that Arrow reads compressed."""


def read_header(file: Path, separator: str) -> list[str]:
    """The column names in a file's first line. Raises DataError for a line that names no columns."""
    try:
        with _open_text(file, errors="surrogateescape") as stream:
            header = next(python_csv.reader(stream, delimiter=separator), [])
    except (python_csv.Error, OSError, pa.ArrowException) as error:
        raise _unreadable(file, error) from error
    if not header:
        raise DataError(f"{file} is empty: not even a header", hint="the first line must name the columns")
    if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in "".join(header)):
        raise _not_utf8(file, "its first line")
    if "" in header:
        raise DataError(
            f"{file}: column {header.index('') + 1} has no name",
            hint="name it in the first line (pandas: to_csv(..., index=False) leaves the index out)",
        )
    require_unique(file, header)
    return header


def read_columns(
    files: Sequence[Path], separator: str, names: Sequence[str], plan: ReadingPlan, *, trim: bool
) -> tuple[list[TextColumn], list[int]]:
    """Read columns of all files; and how many rows each file has. With ``trim``, blanks around names are removed."""
    readers = {raw: TextColumn(raw.strip() if trim else raw, plan) for raw in names}
    rows = [_read_file(file, separator, readers) for file in files]
    again = {raw: reader.as_text() for raw, reader in readers.items() if reader.reread}
    if again:
        for file in files:
            _read_file(file, separator, again)
    pa.default_memory_pool().release_unused()
    return list((readers | again).values()), rows


def _read_file(file: Path, separator: str, readers: dict[str, TextColumn]) -> int:
    rows = 0
    try:
        for batch in _batches(file, separator, list(readers)):
            for index, name in enumerate(batch.schema.names):
                readers[name].add(_as_text(batch.column(index), file, name, rows))
            rows += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _csv_error(file, separator, error) from error
    return rows


def _batches(file: Path, separator: str, names: list[str]) -> Iterator[pa.RecordBatch]:
    """The columns as bytes, null where empty: Arrow must neither parse nor check them."""
    convert = arrow_csv.ConvertOptions(
        include_columns=names,
        column_types=dict.fromkeys(names, pa.binary()),
        null_values=[""],
        strings_can_be_null=True,
        check_utf8=False,
    )
    parse = arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    read = arrow_csv.ReadOptions(block_size=BLOCK_BYTES)
    with (
        pa.input_stream(str(file)) as stream,
        arrow_csv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert) as reader,
    ):
        yield from reader


def _as_text(column: pa.Array, file: Path, name: str, first: int) -> pa.Array:
    """Bytes as text. Raises DataError naming the row of bytes that are not UTF-8, or of a NUL."""
    content = column.buffers()[2]
    if content is not None and b"\0" in content.to_pybytes():
        row = next(row for row, value in enumerate(column.to_pylist()) if value and b"\0" in value)
        message = f"{file}: column {name!r}, row {first + row} has a NUL byte, which no text has"
        raise DataError(message, hint=f"remove them, for example: tr -d '\\000' < {file.name} > clean-{file.name}")
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid as error:
        values = (value or b"" for value in column.to_pylist())
        faulty = (row for row, value in enumerate(values) if value.decode(errors="ignore").encode() != value)
        raise _not_utf8(file, f"column {name!r}, row {first + next(faulty, 0)}") from error


def _open_text(file: Path, errors: str) -> IO[str]:
    return io.TextIOWrapper(pa.input_stream(str(file)), encoding="utf-8-sig", errors=errors, newline="")


def _csv_error(file: Path, separator: str, error: Exception) -> DataError:
    """The DataError of a parse error, with the line of a ragged row, located by Python's csv reader."""
    if "CSV parse error" not in str(error):
        return _unreadable(file, error)
    with _open_text(file, errors="replace") as stream:
        reader = python_csv.reader(stream, delimiter=separator)
        width = len(next(reader))
        for fields in reader:
            if fields and len(fields) != width:
                return DataError(
                    f"{file}:{reader.line_num}: {len(fields)} fields where the header has {width}: "
                    f"{separator.join(fields)[:80]}",
                    hint=f"fix line {reader.line_num}, or set data.source.separator if it is not {separator!r}",
                )
    return _unreadable(file, error)


def _unreadable(file: Path, error: Exception) -> DataError:
    if file.suffix in COMPRESSED:
        return DataError(
            f"{file} is damaged, or not compressed as {file.suffix} says: {error}"[:300],
            hint=f"ls -l {shell_word(file)}",
        )
    if "straddl" in str(error):
        message = f"{file} has a row of more than {BLOCK_BYTES >> 20} MB"
        raise DataError(message, hint="is a quotation mark never closed? Else leave out the long column at the source")
    return unreadable(file, "CSV", error)


def _not_utf8(file: Path, where: str) -> DataError:
    if file.suffix in COMPRESSED:
        return DataError(f"{file} does not hold UTF-8: {where}", hint="unpack it, convert it to UTF-8, pack it again")
    return DataError(
        f"{file} is not UTF-8: {where}",
        hint=f"iconv -f latin1 -t utf-8 {shell_word(file.name)} > {shell_word(f'utf8-{file.name}')} converts it",
    )
