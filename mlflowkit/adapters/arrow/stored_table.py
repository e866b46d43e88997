"""A table whose columns are files of a folder: one column is in memory at a time, or a range of rows of all of them.

`StoredTable` has those methods of pyarrow.Table by which the data stage works, with the same results. A column is an
Arrow file that is mapped into memory where the whole column is asked for, and read where some rows are.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mlflowkit.system.files import disk_errors, make_folder, private_opener

BATCH_ROWS = 65_536
"""Rows of a batch of a column's file."""


@dataclass(frozen=True, slots=True)
class StoredColumn:
    """The file of a column; ``batch_rows`` are those of all its batches but the last."""

    path: Path
    kind: pa.DataType
    batch_rows: int

    def values(self) -> pa.ChunkedArray:
        """All values, in memory that is mapped to the file."""
        with pa.memory_map(str(self.path)) as source:
            return pa.ipc.open_file(source).read_all().column(0)

    def slice(self, start: int, length: int) -> pa.ChunkedArray:
        """The values of some rows; only their batches are read."""
        with pa.OSFile(str(self.path)) as source:
            reader = pa.ipc.open_file(source)
            first, last = start // self.batch_rows, (start + length - 1) // self.batch_rows
            batches = range(first, min(last + 1, reader.num_record_batches))
            chunks = [reader.get_batch(number).column(0) for number in batches]
        return pa.chunked_array(chunks, self.kind).slice(start - first * self.batch_rows, length)


def has_categories(kind: pa.DataType) -> bool:
    """Whether values of a type refer to a dictionary."""
    return "dictionary<" in str(kind)


class ColumnWriter:
    """Writes the values of a column into its file, in batches of BATCH_ROWS; categories as one batch, since an Arrow
    file has one dictionary. Raises StoreError where the disk refuses to write."""

    def __init__(self, path: Path, kind: pa.DataType) -> None:
        self.kind, self._path = kind, path
        self._batch_rows = 0 if has_categories(kind) else BATCH_ROWS
        self._pending: list[pa.Array] = []
        self._rows = 0
        self._schema = pa.schema([pa.field("values", kind)])
        with disk_errors(path):
            self._file = open(path, "wb", opener=private_opener)  # noqa: SIM115 closed by `close`
            self._writer = pa.ipc.new_file(self._file, self._schema)

    def add(self, values: pa.Array) -> None:
        """Write the next values, or keep them until they fill a batch."""
        self._pending.append(values)
        self._rows += len(values)
        if self._batch_rows and self._rows >= self._batch_rows:
            waiting = pa.chunked_array(self._pending, self.kind)
            whole = self._rows - self._rows % self._batch_rows
            for start in range(0, whole, self._batch_rows):
                self._write(waiting.slice(start, self._batch_rows))
            self._pending, self._rows = waiting.slice(whole).chunks, self._rows - whole

    def close(self) -> StoredColumn:
        """Write what is left. The column can be read."""
        rows = self._rows
        self._write(pa.chunked_array(self._pending, self.kind))
        self._pending.clear()
        with disk_errors(self._path):
            self._writer.close()
            self._file.close()
        return StoredColumn(self._path, self.kind, self._batch_rows or max(rows, 1))

    def _write(self, values: pa.ChunkedArray) -> None:
        if len(values):
            array = pa.concat_arrays(values.chunks) if values.num_chunks > 1 else values.chunk(0)
            with disk_errors(self._path):
                self._writer.write_batch(pa.record_batch([array], schema=self._schema))


class ColumnFolder:
    """A folder of columns."""

    def __init__(self, path: Path) -> None:
        self.path = make_folder(path)
        self._numbers = itertools.count()

    def writer(self, kind: pa.DataType) -> ColumnWriter:
        """The writer of a new column."""
        return ColumnWriter(self.path / f"{next(self._numbers)}.arrow", kind)

    def store(self, column: pa.ChunkedArray | pa.Array) -> StoredColumn:
        """A column as a file."""
        writer = self.writer(column.type)
        for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            writer.add(chunk)
        return writer.close()


class StoredTable:
    """Columns of a `ColumnFolder`. A table does not change: its methods give other tables, which share columns.

    >>> import tempfile
    >>> folder = ColumnFolder(Path(tempfile.mkdtemp()))
    >>> stored = StoredTable.of(pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]}), folder)
    >>> stored.filter(pa.array([True, False, True])).column("b").to_pylist(), stored.slice(1, 2).column("a").to_pylist()
    (['x', 'z'], [2, 3])
    """

    def __init__(self, folder: ColumnFolder, columns: Mapping[str, StoredColumn], rows: int) -> None:
        self._folder, self._columns = folder, dict(columns)
        self.num_rows = rows
        self.schema = pa.schema([(name, column.kind) for name, column in self._columns.items()])

    @classmethod
    def of(cls, table: pa.Table, folder: ColumnFolder) -> StoredTable:
        """A table in memory as files."""
        columns = {name: folder.store(table.column(name)) for name in table.column_names}
        return cls(folder, columns, table.num_rows)

    @property
    def column_names(self) -> list[str]:
        return list(self._columns)

    @property
    def num_columns(self) -> int:
        return len(self._columns)

    @property
    def nbytes(self) -> int:
        """Bytes of the files."""
        return sum(column.path.stat().st_size for column in self._columns.values())

    def column(self, column: str | int) -> pa.ChunkedArray:
        """All values of a column."""
        return self._columns[self._name(column)].values()

    def set_column(self, index: int, name: str, values: pa.ChunkedArray | pa.Array) -> StoredTable:
        """The table with other values in the column at ``index``, which is called ``name`` there."""
        columns = list(self._columns.items())
        columns[index] = (name, self._folder.store(values))
        return StoredTable(self._folder, dict(columns), self.num_rows)

    def append_column(self, name: str, values: pa.ChunkedArray | pa.Array) -> StoredTable:
        """The table with one more column."""
        return StoredTable(self._folder, {**self._columns, name: self._folder.store(values)}, self.num_rows)

    def filter(self, rows: pa.ChunkedArray | pa.Array) -> StoredTable:
        """The rows where a mask is true."""
        columns = {name: self._folder.store(column.values().filter(rows)) for name, column in self._columns.items()}
        return StoredTable(self._folder, columns, int(pc.sum(rows).as_py() or 0))

    def slice(self, start: int, length: int) -> pa.Table:
        """Rows from ``start``, in memory."""
        length = min(length, self.num_rows - start)
        return pa.table({name: column.slice(start, length) for name, column in self._columns.items()}, self.schema)

    def replace_schema_metadata(self, metadata: None = None) -> StoredTable:
        """The table itself: it has no metadata."""
        return self

    def _name(self, column: str | int) -> str:
        return column if isinstance(column, str) else self.column_names[column]
