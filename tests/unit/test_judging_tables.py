"""What a cell becomes does not depend on how pandas holds its column; training, judging and serving share it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.errors import DataError
from mlflowkit.features.tensors import categorical_matrix, class_codes, inputs_from_table, numeric_matrix
from mlflowkit.system.text import category_text

CELLS = st.one_of(st.none(), st.text(max_size=4), st.integers(-(10**9), 10**9), st.booleans())


@settings(max_examples=60, deadline=None)
@given(st.lists(CELLS, max_size=20))
def test_a_column_is_its_cells(cells: list[object]) -> None:
    column = pd.Series(cells, dtype=object)
    matrix = categorical_matrix(pd.DataFrame({"a": column}), ["a"])
    assert matrix[:, 0].tolist() == [category_text(cell) for cell in cells]
    assert all(type(cell) is str for cell in matrix.flat)


@pytest.mark.parametrize("dtype", ["int64", "float64", "Int64", "category", "object", "int8"])
def test_whole_numbers_read_alike_whatever_holds_them(dtype: str) -> None:
    table = pd.DataFrame({"a": pd.Series([3, 1, 3]).astype(dtype)})
    assert categorical_matrix(table, ["a"])[:, 0].tolist() == ["3", "1", "3"]
    gap = pd.DataFrame({"a": [3, 1, None]})
    assert categorical_matrix(gap, ["a"])[:, 0].tolist() == ["3", "1", ""]


def test_numbers_come_out_as_float32_with_nan_for_what_is_missing() -> None:
    table = pd.DataFrame(
        {
            "whole": pd.array([1, None], dtype="Int64"),
            "truth": pd.array([True, None], dtype="boolean"),
            "plain": [0.5, np.nan],
            "large": [1e300, -1.0],
            "none": [None, None],
        }
    )
    matrix = numeric_matrix(table, list(table.columns))
    assert matrix.dtype == np.float32
    assert np.array_equal(matrix[0], [1, 1, 0.5, np.inf, np.nan], equal_nan=True)
    assert np.array_equal(matrix[1], [np.nan, np.nan, np.nan, -1, np.nan], equal_nan=True)


@pytest.mark.parametrize("column", [["1", "x"], pd.to_datetime(["2020-01-01", "2020-01-02"])])
def test_what_is_no_number_is_a_data_error(column: object) -> None:
    with pytest.raises(DataError, match="'a' holds") as caught:
        numeric_matrix(pd.DataFrame({"a": column}), ["a"])
    assert "data.columns.a" in caught.value.hint


def test_inputs_follow_the_signature_and_leave_other_columns_alone() -> None:
    signature = Signature(
        task="regression",
        inputs=(
            TensorSpec(name="numeric", datatype="FP32", shape=(-1, 2), columns=("b", "a")),
            TensorSpec(name="categorical", datatype="BYTES", shape=(-1, 1), columns=("c",)),
        ),
        outputs=(),
    )
    table = pd.DataFrame({"a": [1.0], "c": ["x"], "b": [2.0], "target": ["?"]})
    inputs = inputs_from_table(signature, table)
    assert inputs["numeric"].tolist() == [[2.0, 1.0]]
    assert inputs["categorical"].tolist() == [["x"]]
    with pytest.raises(DataError, match="no column 'c'"):
        inputs_from_table(signature, table.drop(columns="c"))
    assert inputs_from_table(signature, table.head(0))["categorical"].shape == (0, 1)


def test_labels_become_codes_in_the_order_of_the_classes() -> None:
    assert class_codes(pd.Series(["yes", "no"]), ["yes", "no"]).tolist() == [0, 1]
    assert class_codes(pd.Series([True, False]), [0, 1]).tolist() == [1, 0]
    assert class_codes(pd.Series(["b", "a"], dtype="category"), ["a", "b"]).tolist() == [1, 0]
    assert class_codes(pd.Series([], dtype=object), ["a", "b"]).tolist() == []
    for odd in ("maybe", None):
        with pytest.raises(DataError, match="row 1 of column 'y'"):
            class_codes(pd.Series(["yes", odd], name="y"), ["yes", "no"])
