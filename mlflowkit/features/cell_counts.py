"""Counts of a column's values by the cells of a reference."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.counts import Counts


def count_cells(cells: Cells, values: np.ndarray) -> Counts:
    """Counts in the order of `Cells.names`; ``values`` are numbers (a missing one is NaN) or texts (a missing one "").

    >>> count_cells(Cells("number", edges=(0.0, 1.0, 1.0)), np.array([-1.0, 0.0, 1.0, 1.0, 2.0, np.nan]))
    (1, 1, 2, 1, 1)
    >>> count_cells(Cells("text", values=("a",), others=("b",)), np.array(["a", "b", "c", ""], object))
    (1, 1, 1, 1)
    """
    return _count_numbers(cells, values) if cells.kind == "number" else _count_texts(cells, values)


def _count_numbers(cells: Cells, values: np.ndarray) -> Counts:
    edges, inner = np.array(cells.edges), max(len(cells.edges) - 1, min(len(cells.edges), 1))
    present = values[~np.isnan(values)].astype(np.float64, copy=False)
    index = np.searchsorted(edges, present, "right")
    if len(edges):
        index = np.where(index > inner, np.where(present == edges[-1], inner, inner + 1), index)
    counts = np.bincount(index, minlength=inner + 2)
    return (*counts.tolist(), len(values) - len(present))


def _count_texts(cells: Cells, values: np.ndarray) -> Counts:
    listed, other = len(cells.values), len(cells.values)
    positions = dict.fromkeys(cells.others, other) | {text: code for code, text in enumerate(cells.values)}
    unlisted = other + 1 if cells.complete else other
    codes, texts = pd.factorize(values)
    target = np.array([listed + 2 if text == "" else positions.get(text, unlisted) for text in texts], dtype=np.int64)
    counts = np.bincount(target, np.bincount(codes, minlength=len(texts)), minlength=listed + 3)
    return tuple(map(int, counts))
