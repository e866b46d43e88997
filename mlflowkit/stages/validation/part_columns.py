"""The columns of the parts that the data stage wrote, each read where it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.stages.base import PARTS, Column

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as parquet

BATCH_ROWS = 65_536
"""Rows that are read at a time."""
BLOCK_CELLS = 1 << 23
"""Cells that are checked together: 64 MB of numbers."""


@dataclass(frozen=True)
class PartColumns:
    """The rows of train, then validation, then test, of the data stage's folder.

    Integers and booleans with missing values keep their type (Int64, boolean).
    """

    folder: Path
    parts: Sequence[str] = PARTS

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns, in the order of the source."""
        return tuple(self._files[0].schema_arrow.names)

    @cached_property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(file.metadata.num_rows for file in self._files)

    def series(self, name: str) -> pd.Series:
        """A column. Its index counts from 0."""
        import numpy as np
        import pandas as pd
        import pyarrow as pa

        pa.default_memory_pool().release_unused()  # it would keep what earlier columns took
        kind = self._files[0].schema_arrow.field(name).type
        if pa.types.is_floating(kind) or (pa.types.is_integer(kind) and not self._missing(name)):
            numbers = np.empty(self.rows, dtype=kind.to_pandas_dtype())
            start = 0
            for chunk in self._chunks(name):
                numbers[start : start + len(chunk)] = chunk.to_numpy(zero_copy_only=False)
                start += len(chunk)
            return pd.Series(numbers, name=name, copy=False)
        column = pa.chunked_array(self._chunks(name))
        nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
        dtype = nullable.get(kind) if column.null_count else None
        values: pd.Series = column.to_pandas(types_mapper=(lambda _: dtype) if dtype is not None else None)
        return values.rename(name)

    def items(self) -> Iterator[tuple[str, pd.Series]]:
        """Names and columns; the one before may be forgotten before the next is read."""
        for name in self.names:
            yield name, self.series(name)

    def frame(self, names: Iterable[str] | None = None, *, numbered: bool = True) -> pd.DataFrame:
        """Columns as a frame, by default all of them. Its index is the row in the source if ``numbered``."""
        import numpy as np
        import pandas as pd

        columns = {name: self.series(name) for name in (self.names if names is None else names)}
        frame = pd.DataFrame(columns, copy=False)
        if numbered:
            split = np.load(self.folder / "split.npy")
            frame.index = pd.Index(np.argsort(split, kind="stable")[: self.rows])
        return frame

    def memory(self) -> int:
        """Bytes of all columns in memory, estimated by the first rows."""
        first = self._files[0].read_row_group(0)
        return int(first.nbytes * self.rows / first.num_rows)

    def blocks(self) -> Iterator[list[str]]:
        """Names of columns that may be in memory together: all of a small table, one at a time of a large one."""
        size = max(1, BLOCK_CELLS // max(self.rows, 1))
        for start in range(0, len(self.names), size):
            yield list(self.names[start : start + size])

    @cached_property
    def _files(self) -> list[parquet.ParquetFile]:
        import pyarrow.parquet as parquet

        return [parquet.ParquetFile(self.folder / f"{part}.parquet") for part in self.parts]

    def _chunks(self, name: str) -> Iterator[pa.Array]:
        """The values of a column; texts as pandas holds them."""
        import pyarrow as pa

        for file in self._files:
            for batch in file.iter_batches(BATCH_ROWS, columns=[name]):
                chunk = batch.column(name)
                yield chunk.cast(pa.large_string()) if pa.types.is_string(chunk.type) else chunk

    def _missing(self, name: str) -> bool:
        """Whether a column may have missing values, by what its files say."""
        index = self.names.index(name)
        for file in self._files:
            for group in range(file.metadata.num_row_groups):
                statistics = file.metadata.row_group(group).column(index).statistics
                if statistics is None or statistics.null_count != 0:
                    return True
        return False


@dataclass(frozen=True, slots=True)
class FeatureColumns:
    """Features as a model sees them: numbers as float64, categories as text, missing values kept."""

    columns: PartColumns
    features: Sequence[Column]
    hide_texts: bool = False
    """Whether free texts, which may be what people wrote, are replaced by a mark: a profile goes with the bundle."""

    def items(self) -> Iterator[tuple[str, pd.Series]]:
        """Names and columns; the one before may be forgotten before the next is read."""
        for feature in self.features:
            yield feature.name, self._values(feature)

    def _values(self, feature: Column) -> pd.Series:
        column = as_feature(self.columns.series(feature.name), feature.kind)
        return column.where(column.isna(), "(text)") if self.hide_texts and feature.kind == "text" else column


def as_feature(column: pd.Series, kind: str) -> pd.Series:
    """A column as a model sees it. One that has that form already is not copied."""
    import numpy as np
    import pandas as pd

    from mlflowkit.features.tensors import categorical_matrix

    if kind == "numeric" and column.dtype != np.float64:
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
        return pd.Series(numbers, index=column.index, name=column.name, copy=False)
    if kind in ("categorical", "text") and not isinstance(column.dtype, pd.StringDtype):
        text = categorical_matrix(column.to_frame(), [str(column.name)])[:, 0]
        column = pd.Series(text, index=column.index, name=column.name, dtype="str")
    if kind in ("categorical", "text") and (empty := column == "").any():
        column = column.mask(empty)
    return column
