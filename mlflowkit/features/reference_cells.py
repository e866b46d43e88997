"""Cells of a column from the values of a reference, and its counts in them: the parts of `judging.shift.reference`.

Numbers come in the type that the graph takes (float32, or float64 where it takes FP64), so that the edges of the cells
are values that the graph can see: a float64 column whose float32 form is counted in float64 cells would differ from
itself. Texts come as `features.tensors.categorical_matrix` makes them. Equal values give equal cells, in any order of
the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mlflowkit.features.cell_counts import count_cells
from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.counts import Counts
from mlflowkit.judging.shift.reference import ColumnReference

NUMBER_CELLS = 20
"""Cells of a number: a distance that lies within one of them is missed by at most a twentieth."""
TAIL_SHARES = (0.98, 0.99, 0.995, 0.998, 0.999)
"""Further edges of a score, as shares of the rows below: a rare class is in the tail."""
EDGE_ROWS = 1_000_000
"""Rows of which edges are computed; of more, evenly spaced ones are taken. Counts are always of all rows."""
TEXT_CELLS = 50
"""Values of a text with a cell each, the most frequent."""
MAX_OTHERS = 1_000
"""Further values that are kept, so that new ones can be told from them."""
MAX_TEXT = 200
"""Characters of a text; a longer one has no cell and is kept in no list."""
TIME_PARTS = 20
"""Consecutive parts of rows in time order."""
MIN_PART_ROWS = 50
"""Rows of such a part, at least."""


def cells_of(values: np.ndarray, *, tail: bool = False) -> Cells:
    """The cells of a column: of numbers (a float array) or of texts (an object array of str).

    ``tail`` adds the edges of `TAIL_SHARES`.
    """
    return number_cells(values, tail=tail) if values.dtype.kind == "f" else text_cells(values)


def number_cells(values: np.ndarray, *, tail: bool = False) -> Cells:
    """Cells whose edges are values of the column: a cell for each of a few distinct values, else quantiles.

    A value that holds a cell's share of the rows has a cell of its own. A column without a finite value has no edges.

    >>> number_cells(np.array([0.0, 1.0, 1.0, np.nan])).names
    ('(below)', '[0, 1)', '1', '(above)', '(missing)')
    >>> len(number_cells(np.arange(1000.0)).edges)
    21
    """
    finite = values[np.isfinite(values)] + values.dtype.type(0)  # no negative zero
    if not len(finite):
        return Cells("number")
    distinct, counts = np.unique(_thinned(finite), return_counts=True)
    least, greatest = finite.min(), finite.max()
    distinct, counts = _with_ends(distinct, counts, least, greatest)
    last = len(distinct) - 1
    if last < NUMBER_CELLS:
        starts = set(range(last + 1))
    else:
        ends = np.cumsum(counts)
        shares = [index / NUMBER_CELLS for index in range(NUMBER_CELLS)] + list(TAIL_SHARES if tail else ())
        starts = {0, *np.searchsorted(ends, np.array(shares) * ends[-1], "right").tolist()}
        frequent = np.flatnonzero(counts * NUMBER_CELLS >= ends[-1]).tolist()
        starts |= {*frequent, *(index + 1 for index in frequent if index < last)}
    edges = [*distinct[sorted(starts)], *([distinct[last]] if last else [])]
    return Cells("number", edges=tuple(map(float, edges)))


def text_cells(values: np.ndarray) -> Cells:
    """Cells of the most frequent texts, and the list of the others.

    >>> cells = text_cells(np.array(["b", "a", "b", ""], object))
    >>> cells.values, cells.complete
    (('b', 'a'), True)
    """
    codes, texts = pd.factorize(values[values != ""])
    counts = np.bincount(codes, minlength=len(texts))
    ranked = [text for _, text in sorted(zip((-counts).tolist(), texts.tolist(), strict=True))]
    short = [text for text in ranked if len(text) <= MAX_TEXT]
    kept, others = short[:TEXT_CELLS], short[TEXT_CELLS:]
    complete = len(short) == len(ranked) and len(others) <= MAX_OTHERS
    return Cells("text", values=tuple(kept), others=tuple(others) if complete else (), complete=complete)


def column_reference(
    values: np.ndarray,
    *,
    parts: Sequence[np.ndarray] = (),
    importance: float | None = None,
    tail: bool = False,
    cells: Cells | None = None,
) -> ColumnReference:
    """The reference of a column; ``parts`` are the row numbers of consecutive parts in time. Without ``cells``, they
    are computed."""
    cells = cells_of(values, tail=tail) if cells is None else cells
    counted = tuple(count_cells(cells, values[rows]) for rows in parts)
    return ColumnReference(cells, count_cells(cells, values), counted, importance)


def segment_counts(cells: Cells, values: np.ndarray, segments: Mapping[str, np.ndarray]) -> dict[str, Counts]:
    """Counts of a column by segment; ``segments`` maps ``column=value`` to the numbers of its rows."""
    return {name: count_cells(cells, values[rows]) for name, rows in segments.items()}


def time_parts_of(times: np.ndarray) -> list[np.ndarray]:
    """Row numbers of at most `TIME_PARTS` consecutive parts of equal size, in time order.

    >>> [len(part) for part in time_parts_of(np.arange(120)[::-1])]
    [60, 60]
    """
    number = min(TIME_PARTS, len(times) // MIN_PART_ROWS)
    return list(np.array_split(np.argsort(times, kind="stable"), number)) if number > 1 else []


def _thinned(values: np.ndarray) -> np.ndarray:
    return values[:: -(-len(values) // EDGE_ROWS)] if len(values) > EDGE_ROWS else values


def _with_ends(
    distinct: np.ndarray, counts: np.ndarray, least: np.floating, greatest: np.floating
) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of a sample, with the least and the greatest of all."""
    if least < distinct[0]:
        distinct, counts = np.append(least, distinct), np.append(1, counts)
    if greatest > distinct[-1]:
        distinct, counts = np.append(distinct, greatest), np.append(counts, 1)
    return distinct, counts
