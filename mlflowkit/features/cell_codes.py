"""The cell of each value of a column, where `features.cell_counts` only counts them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mlflowkit.judging.shift.column_cells import Cells


def cell_codes(cells: Cells, values: np.ndarray) -> np.ndarray:
    """The index in `Cells.names` of each value, int64 [n]; ``values`` as for `cell_counts.count_cells`.

    >>> cell_codes(Cells("number", edges=(0.0, 1.0, 1.0)), np.array([-1.0, 0.0, 1.0, 2.0, np.nan])).tolist()
    [0, 1, 2, 3, 4]
    >>> cell_codes(Cells("text", values=("a",), others=("b",)), np.array(["a", "b", "c", ""], object)).tolist()
    [0, 1, 2, 3]
    """
    return _number_codes(cells, values) if cells.kind == "number" else _text_codes(cells, values)


def _number_codes(cells: Cells, values: np.ndarray) -> np.ndarray:
    edges = np.array(cells.edges, dtype=np.float64)
    inner = max(len(edges) - 1, min(len(edges), 1))
    numbers = values.astype(np.float64, copy=False)
    index = np.searchsorted(edges, numbers, "right")
    if len(edges):
        index = np.where(index > inner, np.where(numbers == edges[-1], inner, inner + 1), index)
    return np.where(np.isnan(numbers), inner + 2, index).astype(np.int64)


def _text_codes(cells: Cells, values: np.ndarray) -> np.ndarray:
    listed = len(cells.values)
    positions = dict.fromkeys(cells.others, listed) | {text: code for code, text in enumerate(cells.values)}
    unlisted = listed + 1 if cells.complete else listed
    codes, texts = pd.factorize(values)
    target = np.array([listed + 2 if text == "" else positions.get(text, unlisted) for text in texts], dtype=np.int64)
    coded: np.ndarray = target[codes]
    return coded
