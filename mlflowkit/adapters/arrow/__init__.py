"""Reads CSV and Parquet and writes Parquet with Apache Arrow. Every defect of a file becomes a DataError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet

from mlflowkit.adapters.arrow import csv_files, parquet_files
from mlflowkit.adapters.arrow.file_columns import (
    partition_columns,
    remaining_columns,
    require_same_columns,
    require_unique,
)
from mlflowkit.adapters.arrow.stored_table import BATCH_ROWS, ColumnFolder, StoredTable
from mlflowkit.bundle import TextRule
from mlflowkit.errors import DataError
from mlflowkit.features.cells import DEFAULT_MISSING, ReadingPlan
from mlflowkit.features.text_columns import TableRead, TextColumn, read_texts

Folders = Sequence[Mapping[str, str | None]]


class ArrowTables:
    """The Tables port. Each column is held in memory once, for any number of files or parts.

    With a ``folder``, columns of Parquet files that are read by a plan are files there and not in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def on_disk(self, folder: Path) -> ArrowTables:
        """The port that keeps the columns of Parquet files in ``folder``."""
        return ArrowTables(folder)

    def read_csv(self, files: Sequence[Path], *, separator: str = ",", skip: Sequence[str] = ()) -> pa.Table:
        """All rows of CSV files, read with the default texts of missing values."""
        plan = ReadingPlan(TextRule(missing=DEFAULT_MISSING))
        return self.read_csv_by_plan(files, plan, separator=separator, skip=skip).table

    def read_parquet(self, files: Sequence[Path], *, skip: Sequence[str] = ()) -> pa.Table:
        """All rows of Parquet files with the same columns, in the order given, without the columns in ``skip``."""
        return self.read_parquet_by_plan(files, ReadingPlan(), skip=skip).table

    def read_csv_by_plan(
        self,
        files: Sequence[Path],
        plan: ReadingPlan,
        *,
        separator: str = ",",
        skip: Sequence[str] = (),
        folders: Folders = (),
    ) -> TableRead:
        """All rows of files with the same columns, in the order given, without the columns in ``skip``.

        The type of a column is found over all rows of all files: integers in one file and text in another are text.
        ``folders`` gives each file's columns from folder names.
        """
        trim = plan.rule.trim
        headers = [csv_files.read_header(file, separator) for file in files]
        shown = [[name.strip() if trim else name for name in header] for header in headers]
        require_unique(files[0], shown[0])
        require_same_columns(files, headers)
        keys = [name for name in (folders[0] if folders else ()) if name not in shown[0]]
        names = remaining_columns(files[0], [*shown[0], *keys], skip)
        included = [raw for raw, name in zip(headers[0], shown[0], strict=True) if name in names]
        readers, rows = csv_files.read_columns(files, separator, included, plan, trim=trim)
        readers += _folder_columns(files, folders, rows, keys, names, plan)
        table = pa.table({reader.name: reader.values() for reader in readers})
        missing = {reader.name: dict(reader.missing) for reader in readers if reader.missing}
        return TableRead(table, missing, parsed=True)

    def read_parquet_by_plan(
        self, files: Sequence[Path], plan: ReadingPlan, *, skip: Sequence[str] = (), folders: Folders = ()
    ) -> TableRead:
        """All rows of files with the same columns, in the order given, without the columns in ``skip``."""
        headers = [parquet_files.read_header(file) for file in files]
        require_same_columns(files, headers)
        keys = [name for name in (folders[0] if folders else ()) if name not in headers[0]]
        names = remaining_columns(files[0], [*headers[0], *keys], skip)
        table, rows = self._parquet_columns(files, [name for name in headers[0] if name in names])
        read = read_texts(table, plan)
        table, missing = read.table, dict(read.missing)
        for reader in _folder_columns(files, folders, rows, keys, names, plan):
            table = table.append_column(reader.name, reader.values())
            missing |= {reader.name: dict(reader.missing)} if reader.missing else {}
        return TableRead(table, missing)

    def _parquet_columns(self, files: Sequence[Path], names: Sequence[str]) -> tuple[pa.Table | StoredTable, list[int]]:
        if self._folder is None:
            return parquet_files.read_columns(files, names)
        return parquet_files.store_columns(files, names, ColumnFolder(self._folder))

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
        require_unique(Path(source), names)
        included = remaining_columns(Path(source), names, skip)
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
                    rows_of_part = table.slice(start, BATCH_ROWS).filter(pa.array(mask))
                    writer.write_table(rows_of_part.combine_chunks())


def _folder_columns(
    files: Sequence[Path],
    folders: Folders,
    rows: Sequence[int],
    keys: Sequence[str],
    names: Sequence[str],
    plan: ReadingPlan,
) -> list[TextColumn]:
    """The columns of folder names among ``names``, typed as those of a CSV file."""
    readers = []
    for name, texts in partition_columns(files, folders, rows, keys).items():
        if name in names:
            reader = TextColumn(name, plan)
            for chunk in texts.chunks:
                reader.add(chunk)
            if reader.reread:
                reader = reader.as_text()
                for chunk in texts.chunks:
                    reader.add(chunk)
            readers.append(reader)
    return readers


def _from_series(series: pd.Series, source: str) -> pa.ChunkedArray | pa.Array:
    try:
        return pa.array(series, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError) as error:
        kinds = sorted({type(value).__name__ for value in series if value is not None})
        raise DataError(
            f"{source}: column {series.name!r} mixes {', '.join(kinds[:5])}",
            hint=f"give it one type, for example table[{series.name!r}].astype(str), or add it to data.drop",
        ) from error
