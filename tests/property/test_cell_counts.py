"""Counting in cells: every value is counted once, and only its place among the reference's values matters."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflowkit.features import cell_counts
from mlflowkit.features.cell_counts import CellCounter, count_cells
from mlflowkit.judging.shift.column_cells import Cells

FLOATS = st.floats(width=32)
EDGES = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=0, max_size=12, unique=True)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=6)


def cells_of(edges: list[float]) -> Cells:
    return Cells("number", edges=tuple(sorted(edges)))


def slow_code(edges: tuple[float, ...], value: float) -> int:
    """The cell of a number by the sentences of `Cells`."""
    inner = max(len(edges) - 1, min(len(edges), 1))
    if math.isnan(value):
        return inner + 2
    if not edges:
        return 0 if value == -math.inf else 1
    if value < edges[0] or value == -math.inf:
        return 0
    if value > edges[-1] or value == math.inf:
        return inner + 1
    return next((j + 1 for j in range(len(edges) - 2) if edges[j] <= value < edges[j + 1]), inner)


@given(EDGES, st.lists(FLOATS, max_size=40))
def test_numbers_are_counted_as_the_cells_say(edges: list[float], values: list[float]) -> None:
    cells = cells_of(edges)
    expected = [0] * len(cells.names)
    for value in values + edges:
        expected[slow_code(cells.edges, value)] += 1
    if not edges:  # nothing lies below no edges
        expected[0], expected[1] = 0, expected[0] + expected[1]
    for few in (0, cell_counts.FEW_VALUES):  # the ways for many values, and for few
        with patch.object(cell_counts, "FEW_VALUES", few):
            for array in (np.array(values + edges, np.float32), np.array(values + edges), pa.array(values + edges)):
                assert count_cells(cells, array) == tuple(expected)


@given(st.lists(FLOATS, min_size=1, max_size=40), st.lists(FLOATS, max_size=40), st.data())
def test_counts_do_not_change_under_an_increasing_map_of_both_sides(
    reference: list[float], live: list[float], data: st.DataObject
) -> None:
    edges = sorted({value for value in reference if math.isfinite(value)})[::2]
    values = sorted({value for value in [*edges, *live] if math.isfinite(value)})
    images = st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        min_size=len(values), max_size=len(values), unique=True,
    )  # fmt: skip
    image = sorted(data.draw(images))

    def mapped(value: float) -> float:
        return image[bisect_left(values, value)] if math.isfinite(value) else value

    before = count_cells(cells_of(edges), np.array(live, np.float32))
    after = count_cells(cells_of([mapped(edge) for edge in edges]), np.array([mapped(value) for value in live]))
    assert before == after


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=50, unique=True), st.integers(-30, 30))
def test_another_unit_gives_the_same_counts(values: list[float], exponent: int) -> None:
    ordered = sorted(values)
    live = np.array(ordered, np.float32)
    scaled = live.astype(np.float64) * 2.0**exponent
    cells, others = cells_of(ordered[::3]), cells_of([edge * 2.0**exponent for edge in ordered[::3]])
    assert count_cells(cells, live) == count_cells(others, scaled)


@given(
    st.lists(TEXTS, max_size=5, unique=True), st.lists(TEXTS, max_size=5, unique=True), st.lists(TEXTS), st.booleans()
)
def test_texts_are_counted_as_the_cells_say(
    kept: list[str], others: list[str], live: list[str], complete: bool
) -> None:
    cells = Cells("text", values=tuple(kept), others=tuple(others), complete=complete)
    other, new, missing = len(kept), len(kept) + 1, len(kept) + 2
    expected = [0] * len(cells.names)
    values: list[str | None] = [*live, *kept, *others, None, "never seen before"]
    for value in values:
        if not value:
            code = missing
        elif value in kept:
            code = kept.index(value)
        else:
            code = other if value in others or not complete else new
        expected[code] += 1
    texts = pa.array(values, pa.string())
    arrays: list[Any] = [np.array(values, object), texts, pa.chunked_array([texts]), texts.dictionary_encode()]
    for array in arrays:
        assert count_cells(cells, array) == tuple(expected)
        assert sum(count_cells(cells, array)) == len(values)


def test_a_float64_column_is_counted_as_the_graph_takes_it() -> None:
    values = np.array([5.31, 5.32, 6.03, 7.34])
    cells = cells_of([float(np.float32(value)) for value in values])
    assert count_cells(cells, values) == count_cells(cells, values.astype(np.float32)) == (0, 1, 1, 2, 0, 0)


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ([math.nan] * 3, (0, 0, 0, 0, 3)),
        ([1.0] * 3, (0, 0, 3, 0, 0)),
        ([math.inf] * 2, (0, 0, 0, 2, 0)),
        ([0.5, math.inf, -math.inf], (1, 1, 0, 1, 0)),
        ([1e308, -1e308, 1e-320], (1, 1, 0, 1, 0)),
        ([], (0, 0, 0, 0, 0)),
    ],
)
def test_odd_columns_of_numbers(values: list[float], counts: tuple[int, ...]) -> None:
    cells = Cells("number", edges=(0.0, 1.0, 5.0))
    assert count_cells(cells, np.array(values, np.float64)) == counts
    assert count_cells(cells, np.array([None if value != value else value for value in values], object)) == counts
    nulls = pa.array([None if value != value else value for value in values], pa.float64())
    assert count_cells(cells, nulls) == counts


def test_edges_of_float64_are_compared_as_such() -> None:
    cells = Cells("number", edges=(0.1, 0.1 + 1e-12, 1e308))
    assert count_cells(cells, np.array([0.1, 0.1 + 1e-12, 1e308, math.inf])) == (0, 1, 2, 1, 0)


def test_whole_numbers_and_booleans() -> None:
    cells = Cells("number", edges=(0.0, 1.0))
    for array in (np.array([0, 1, 2]), np.array([0, 1, 2], np.uint8), pa.array([0, 1, 2]), pa.array([0, 1, 2, None])):
        assert count_cells(cells, array)[:3] == (0, 2, 1)
    for array in (np.array([True, False]), pa.array([True, False, None])):
        assert count_cells(cells, array)[:3] == (0, 2, 0)
    labels = Cells("text", values=("0", "1"))
    for array in (np.array([0, 1, 2]), pa.array([0, 1, 2]), np.array([0.0, 1.0, 2.5])):
        assert count_cells(labels, array) == (1, 1, 0, 1, 0)


def test_a_hundred_thousand_values() -> None:
    texts = [f"user-{number}" for number in range(100_000)]
    counter = CellCounter(Cells("text", values=tuple(texts[:40]), others=tuple(texts[40:50_000])))
    for array in (np.array(texts, object), pa.array(texts)):
        assert counter.count(array) == (*[1] * 40, 49_960, 50_000, 0)
    numbers = np.random.default_rng(1).normal(size=100_000).astype(np.float32)
    edges = tuple(float(edge) for edge in np.unique(np.quantile(numbers, np.linspace(0, 1, 11)).astype(np.float32)))
    assert sum(count_cells(Cells("number", edges=edges), numbers)) == 100_000


def test_texts_in_a_column_of_numbers_are_refused() -> None:
    cells = Cells("number", edges=(0.0, 1.0))
    for array in (np.array(["1"], object), pa.array(["1"]), np.array(["1"])):
        with pytest.raises((TypeError, ValueError)):
            count_cells(cells, array)
