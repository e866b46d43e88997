"""Counts the values of a column in its `Cells`: of the reference rows, of live rows, of any table.

Numbers are compared in the type of the edges: where these are float32 numbers, as those of a graph's inputs are, values
are rounded to float32 first, so that a float64 table and the float32 rows of a graph give the same counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.counts import Counts
from mlflowkit.system.text import category_text

FEW_VALUES = 16
"""Values for each bound, up to which a look-up by value costs less than a comparison of all values."""


class CellCounter:
    """The cells of one column, prepared for counting: edges as an array, texts in a hash table.

    >>> counter = CellCounter(Cells("number", edges=(0.0, 1.0, 5.0)))
    >>> counter.codes(np.array([-np.inf, 0.0, 1.0, 5.0, 5.1, np.nan])).tolist()
    [0, 1, 2, 2, 3, 4]
    """

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self.size = len(cells.names)
        self._bounds = np.empty(0)
        self._codes: Mapping[str, int] = {}
        if cells.kind == "number":
            self._bounds = _bounds(cells.edges)
            return
        other, new, missing = range(len(cells.values), self.size)
        self._unknown = new if cells.complete else other
        self._codes = {
            **dict.fromkeys(cells.others, other),
            **{value: code for code, value in enumerate(cells.values)},
            "": missing,
        }

    def codes(self, values: Any) -> np.ndarray:
        """The index of each value's cell, an integer array. Raises ValueError or TypeError for values that are neither
        numbers nor texts, or for texts in a column of numbers.

        ``values`` is a NumPy array of numbers, booleans, texts or objects, or an Arrow array; None and NaN are missing.
        """
        return self._number_codes(values) if self.cells.kind == "number" else self._text_codes(values)

    def count(self, values: Any) -> Counts:
        """The number of values in each cell; they sum to the number of values. Raises as `codes` does."""
        if self.cells.kind == "number":
            return self._count_numbers(values)
        if not _is_arrow(values):
            return tuple(np.bincount(self.codes(values), minlength=self.size).tolist())
        pairs = values.value_counts()
        counts = [0] * self.size
        for text, number in zip(pairs.field(0).to_pylist(), pairs.field(1).to_pylist(), strict=True):
            counts[self._codes.get(category_text(text), self._unknown)] += number
        return tuple(counts)

    def _count_numbers(self, values: Any) -> Counts:
        """Counts from the number of values at or above each bound, a few vector instructions a value; few values are
        looked up one by one."""
        numbers = self._typed(values)
        if len(numbers) < FEW_VALUES * len(self._bounds):
            return tuple(np.bincount(self._codes_of(numbers), minlength=self.size).tolist())
        missing = int(np.count_nonzero(numbers != numbers))
        above = [int(np.count_nonzero(numbers >= bound)) for bound in self._bounds]
        starting = [len(numbers) - missing, *above]
        return (*(low - high for low, high in zip(starting, [*above, 0], strict=True)), missing)

    def _number_codes(self, values: Any) -> np.ndarray:
        return self._codes_of(self._typed(values))

    def _codes_of(self, numbers: np.ndarray) -> np.ndarray:
        codes = np.searchsorted(self._bounds, numbers, side="right")
        absent = np.isnan(numbers)
        if absent.any():
            codes[absent] = self.size - 1
        return codes

    def _typed(self, values: Any) -> np.ndarray:
        """The numbers in the type of the bounds; beyond float32 is infinite, and lies above or below all edges."""
        with np.errstate(over="ignore"):
            typed: np.ndarray = _numbers(values).astype(self._bounds.dtype, copy=False)
            return typed

    def _text_codes(self, values: Any) -> np.ndarray:
        if not _is_arrow(values):
            return self._object_codes(values)
        import pyarrow as pa

        array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
        indices = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
        distinct = map(category_text, encoded.dictionary.to_pylist())
        codes: np.ndarray = self._codes_of_texts([*distinct, ""])[indices]
        return codes

    def _object_codes(self, values: np.ndarray) -> np.ndarray:
        texts = values.tolist()
        if values.dtype.kind not in "OU" or not set(map(type, texts)) <= {str}:
            texts = list(map(category_text, texts))
        return self._codes_of_texts(texts)

    def _codes_of_texts(self, texts: list[str]) -> np.ndarray:
        get, unknown = self._codes.get, self._unknown
        return np.fromiter([get(text, unknown) for text in texts], np.intp, len(texts))


def count_cells(cells: Cells, values: Any) -> Counts:
    """The number of values in each cell; see `CellCounter`, which is for many arrays of one column.

    >>> count_cells(Cells("text", values=("red",), others=("blue",)), np.array(["red", "", "green", None], object))
    (1, 0, 1, 2)
    """
    return CellCounter(cells).count(values)


def _bounds(edges: tuple[float, ...]) -> np.ndarray:
    """The edges, the last one moved up by the smallest step: the last cell has its upper edge, too.

    A single edge is a cell of its own, from the edge to the next number. Without edges, all numbers are above.
    """
    if not edges:
        return np.array([-np.inf], np.float32)
    exact = np.array(edges, np.float64)
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
        bounds = rounded if np.array_equal(rounded, exact) else exact
        last = np.nextafter(bounds[-1:], np.array(np.inf, bounds.dtype))
    return np.concatenate([bounds if len(bounds) == 1 else bounds[:-1], last])


def _is_arrow(values: Any) -> bool:
    return hasattr(values, "value_counts") and hasattr(values, "type")


def _numbers(values: Any) -> np.ndarray:
    """A float array of a column of numbers, NaN where a value is absent."""
    if _is_arrow(values):
        import pyarrow as pa

        if pa.types.is_boolean(values.type):
            values = values.cast(pa.uint8())
        array = values.to_numpy() if isinstance(values, pa.ChunkedArray) else values.to_numpy(zero_copy_only=False)
    else:
        array = values
    if array.dtype.kind == "O":
        if any(isinstance(value, str) for value in array):
            raise ValueError("a column of numbers holds texts")
        return np.array([float(value) if category_text(value) else math.nan for value in array], np.float64)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"a column of {array.dtype} has no cells of numbers")
    numbers: np.ndarray = array if array.dtype.kind == "f" else array.astype(np.float64)
    return numbers
