"""Cells of a reference and its counts: what is told apart, exactness under units and types, and odd columns."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlflowkit.features.cell_counts import count_cells
from mlflowkit.features.reference_cells import (
    MAX_OTHERS,
    NUMBER_CELLS,
    TEXT_CELLS,
    cells_of,
    column_reference,
    number_cells,
    text_cells,
    time_parts_of,
)
from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.reference import ColumnReference, Reference

COLUMNS = arrays(np.float32, st.integers(0, 200), elements=st.floats(width=32))


@given(COLUMNS)
def test_every_row_is_in_one_cell_and_json_keeps_the_cells(values: np.ndarray) -> None:
    reference = column_reference(values)
    assert sum(reference.counts) == len(values)
    assert len(reference.counts) == len(reference.cells.names)
    document = json.loads(json.dumps(Reference({"x": reference}).to_json(), allow_nan=False))
    assert Reference.from_json(document) == Reference({"x": reference})


@given(COLUMNS)
def test_edges_are_values_of_the_reference_and_its_rows_are_within_them(values: np.ndarray) -> None:
    reference = column_reference(values)
    assert set(reference.cells.edges) <= set(map(float, values))
    below, *_, above, missing = reference.counts
    if reference.cells.edges:  # else nothing says what is below, and what above
        assert below == (values == -np.inf).sum()
        assert above == (values == np.inf).sum()
    assert missing == np.isnan(values).sum()


@given(COLUMNS, st.randoms())
def test_the_order_of_the_rows_does_not_matter(values: np.ndarray, random: object) -> None:
    shuffled = values.tolist()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert column_reference(np.array(shuffled, np.float32)) == column_reference(values)


@given(arrays(np.int16, st.integers(1, 300), elements=st.integers(-500, 500)), st.sampled_from([2.0, 4096.0, 2.0**-20]))
def test_another_unit_gives_the_same_counts(values: np.ndarray, unit: float) -> None:
    plain, scaled = (column_reference((values * factor).astype(np.float32)) for factor in (1.0, unit))
    assert plain.counts == scaled.counts


def test_a_flag_a_few_levels_and_a_frequent_value_have_cells_of_their_own() -> None:
    flag = np.repeat(np.array([0, 1], np.float32), [30, 70])
    assert column_reference(flag).counts == (0, 30, 70, 0, 0)
    levels = np.arange(NUMBER_CELLS, dtype=np.float32).repeat(3)
    assert column_reference(levels).counts == (0, *([3] * NUMBER_CELLS), 0, 0)
    zeros = np.append(np.zeros(900), np.linspace(1, 2, 1000)).astype(np.float32)
    reference = column_reference(zeros)
    assert reference.counts[1] == 900
    capped = np.append(np.linspace(1, 2, 1000, endpoint=False), np.full(500, 2.0)).astype(np.float32)
    assert column_reference(capped).counts[-3] == 500


def test_quantile_cells_hold_equal_shares() -> None:
    values = np.random.default_rng(3).lognormal(size=20_000).astype(np.float32)
    counts = column_reference(values).counts[1:-2]
    assert len(counts) == NUMBER_CELLS
    assert max(counts) - min(counts) <= 2


def test_a_score_has_edges_in_its_tail() -> None:
    scores = np.random.default_rng(3).beta(1, 200, size=20_000).astype(np.float32)
    tail = number_cells(scores, tail=True)
    assert set(number_cells(scores).edges) < set(tail.edges)
    assert np.mean(scores >= tail.edges[-2]) == pytest.approx(0.001, abs=1e-4)


def test_float32_is_counted_in_cells_of_float32() -> None:
    rates = np.round(np.random.default_rng(0).choice(np.linspace(5.31, 30.99, 72), 9857), 2)
    single = rates.astype(np.float32)
    reference = column_reference(single)
    assert count_cells(reference.cells, single.astype(np.float64)) == reference.counts
    wrong = np.array(count_cells(cells_of(rates), single)) - np.array(column_reference(rates).counts)
    assert np.abs(wrong).sum() > 0  # in cells of float64 the same rows differ from themselves


def test_texts_beyond_the_cells_are_others_and_new_ones_are_new() -> None:
    texts = np.array([f"v{number:04}" for number in range(TEXT_CELLS + 5)] * 2 + [""], object)
    reference = column_reference(texts)
    assert len(reference.cells.values) == TEXT_CELLS
    assert reference.counts == (*([2] * TEXT_CELLS), 10, 0, 1)
    assert count_cells(reference.cells, np.array(["v0054", "brand new", ""], object))[-3:] == (1, 1, 1)


def test_too_many_texts_say_that_new_ones_cannot_be_told() -> None:
    texts = np.array([f"v{number}" for number in range(MAX_OTHERS + TEXT_CELLS + 1)], object)
    cells = text_cells(texts)
    assert (cells.complete, cells.others) == (False, ())
    assert count_cells(cells, np.array(["brand new"], object))[-3:] == (1, 0, 0)


def test_long_texts_are_kept_nowhere() -> None:
    cells = text_cells(np.array(["a", "x" * 500], object))
    assert cells == Cells("text", values=("a",), complete=False)


@pytest.mark.parametrize("values", [[], [np.nan] * 3, [np.inf, -np.inf], [7.0], [7.0, 7.0], [1e308, -1e308]])
def test_odd_columns_have_cells(values: list[float]) -> None:
    reference = column_reference(np.array(values))
    assert sum(reference.counts) == len(values)
    assert sum(count_cells(reference.cells, np.array([0.0, np.nan, np.inf, 1e308]))) == 4


def test_parts_are_consecutive_in_time_and_add_up() -> None:
    times = np.random.default_rng(1).permutation(1000)
    values = times.astype(np.float32)
    parts = time_parts_of(times)
    assert all(times[before].max() < times[after].min() for before, after in pairwise(parts))
    reference = column_reference(values, parts=parts)
    assert isinstance(reference, ColumnReference)
    assert np.array(reference.parts).sum(axis=0).tolist() == list(reference.counts)
    assert time_parts_of(np.arange(60)) == []
