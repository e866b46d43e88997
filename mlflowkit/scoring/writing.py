"""Write scored rows to a file in batches. The file appears whole when the last batch is written, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as parquet

from mlflowkit.errors import DataError, UsageError
from mlflowkit.scoring.reading import format_of
from mlflowkit.system.files import disk_errors
from mlflowkit.system.text import first_line

WRITABLE = ("csv", "parquet", "jsonl")


def check_writable(path: Path) -> None:
    """Raise UsageError unless rows can be written to a file of this name."""
    if format_of(path) not in WRITABLE or path.suffix in (".gz", ".bz2", ".zst"):
        formats = ", ".join("." + name for name in WRITABLE)
        raise UsageError(f"--out {path}: rows can be written as {formats}", hint=f"--out {path.stem}.parquet")


@contextmanager
def open_writer(path: Path) -> Iterator[RowWriter]:
    """Yield a writer whose file replaces ``path`` when the block ends without an error.

    The format follows the name: .csv, .parquet or .jsonl. Raises UsageError for any other, StoreError for a full disk.
    """
    check_writable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    openers = {"csv": _open_csv, "parquet": parquet.ParquetWriter, "jsonl": _JsonLines}
    writer = RowWriter(temporary, openers[format_of(path)])
    try:
        with disk_errors(path):
            try:
                yield writer
            finally:
                writer.close()
            if writer.schema is not None:
                temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class RowWriter:
    """Writes batches with the same columns. The first one opens the file; the others are cast to its types."""

    def __init__(self, path: Path, opener: Callable[[str, pa.Schema], Any]) -> None:
        self._path = path
        self._opener = opener
        self._file: Any = None
        self.schema: pa.Schema | None = None

    def write(self, table: pa.Table) -> None:
        """Append a batch. Raises DataError when its values do not fit the types of the first batch."""
        table = table.replace_schema_metadata(None)
        if self.schema is None:
            self.schema = table.schema
            self._file = self._opener(str(self._path), table.schema)
        try:
            self._file.write(table.cast(self.schema))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            hint = "--keep COLUMN names the columns to keep beside the predictions"
            raise DataError(
                f"a column changes its type within the file: {first_line(error)[:200]}", hint=hint
            ) from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _open_csv(path: str, schema: pa.Schema) -> Any:
    return arrow_csv.CSVWriter(path, schema, write_options=arrow_csv.WriteOptions(quoting_style="needed"))


class _JsonLines:
    """One JSON object a line; NaN and missing values are null."""

    def __init__(self, path: str, schema: pa.Schema) -> None:
        self._stream = open(path, "wb")  # noqa: SIM115  (closed by close)

    def write(self, table: pa.Table) -> None:
        options = orjson.OPT_APPEND_NEWLINE
        self._stream.writelines(orjson.dumps(row, default=str, option=options) for row in table.to_pylist())

    def close(self) -> None:
        self._stream.close()
