"""Parity is judged on numbers alone: what counts as apart, where the worst is, and what rows are asked."""

from __future__ import annotations

import numpy as np
import pytest

from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.graphs.parity import UNSEEN, compare, describe, with_gaps


def classes(*probabilities: float, labels: list[str] | None = None) -> dict[str, np.ndarray]:
    scores = np.array([[1 - p, p] for p in probabilities])
    named = labels or [["no", "yes"][int(p > 0.5)] for p in probabilities]
    return {"label": np.array(named, dtype=object), "probabilities": scores}


def test_equal_answers_hold() -> None:
    parity = compare(classes(0.1, 0.9), classes(0.1, 0.9), 1e-9)
    assert parity.holds
    assert parity.max_abs_difference == 0


def test_the_worst_row_is_named_with_its_values() -> None:
    parity = compare(classes(0.1, 0.9, 0.7), classes(0.1, 0.4, 0.7), 1e-3)
    assert not parity.holds
    assert (parity.worst_row, parity.label_mismatches) == (1, 1)
    assert sorted([parity.expected, parity.found]) == pytest.approx([0.1, 0.6])


def test_a_label_mismatch_alone_fails() -> None:
    parity = compare(classes(0.1, 0.9), classes(0.1, 0.9, labels=["no", "no"]), 1e-3)
    assert (parity.holds, parity.label_mismatches, parity.worst_row) == (False, 1, 1)


def test_a_tie_that_rounding_broke_is_no_mismatch() -> None:
    expected = classes(0.5 + 1e-7, labels=["yes"])
    assert compare(expected, classes(0.5 - 1e-7, labels=["no"]), 1e-4).holds


def test_a_regression_is_measured_in_standard_deviations() -> None:
    expected, exported = {"prediction": np.array([100.0, 200.0])}, {"prediction": np.array([100.0, 201.0])}
    assert compare(expected, exported, 0.01, scale=1000.0).holds
    assert not compare(expected, exported, 0.01, scale=10.0).holds


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_fails(broken: float) -> None:
    good, bad = {"prediction": np.array([1.0, 2.0])}, {"prediction": np.array([1.0, broken])}
    assert not compare(good, bad, 1.0).holds
    assert not compare(bad, good, 1.0).holds
    assert compare(bad, bad, 1.0).holds, "both sides overflow alike"


def test_answers_of_another_shape_fail() -> None:
    assert not compare({"prediction": np.zeros(3)}, {"prediction": np.zeros((3, 1))}, 1.0).holds


def test_gaps_touch_every_row_that_they_are_made_of() -> None:
    generator = np.random.default_rng(0)
    real = {
        "numeric": generator.normal(size=(40, 3)).astype(np.float32),
        "categorical": np.full((40, 2), "a", dtype=object),
    }
    inputs = with_gaps(real, seed=3)
    rows = {name: len(matrix) for name, matrix in inputs.items()}
    assert rows == {"numeric": 61, "categorical": 61}
    for name, matrix in real.items():
        assert (inputs[name][:40] == matrix).all()
        assert inputs[name].dtype == matrix.dtype
    blanked, unseen = slice(40, 50), slice(50, 60)
    assert np.isnan(inputs["numeric"][blanked]).any(axis=1).all()
    assert (inputs["categorical"][blanked] == "").any(axis=1).all()
    assert (inputs["categorical"][unseen] == UNSEEN).any(axis=1).all()
    assert np.isnan(inputs["numeric"][-1]).all()
    assert (inputs["categorical"][-1] == "").all()


def test_gaps_are_the_same_for_the_same_seed_and_leave_the_rows_alone() -> None:
    real = {"categorical": np.full((9, 2), "a", dtype=object)}
    first, second, other = (with_gaps(real, seed)["categorical"].tolist() for seed in (1, 1, 2))
    assert first == second != other
    assert (real["categorical"] == "a").all()


def test_the_description_names_the_columns_and_says_where_the_row_came_from() -> None:
    signature = Signature(
        task="regression",
        inputs=(
            TensorSpec(name="numeric", datatype="FP32", shape=(-1, 1), columns=("age",)),
            TensorSpec(name="categorical", datatype="BYTES", shape=(-1, 1), columns=("town",)),
        ),
        outputs=(TensorSpec(name="prediction", datatype="FP32", shape=(-1,)),),
    )
    inputs = {"numeric": np.array([[1], [2]], np.float32), "categorical": np.array([["Ulm"], [""]], dtype=object)}
    parity = compare({"prediction": np.array([1.0, 2.0])}, {"prediction": np.array([1.0, 5.0])}, 0.1, real_rows=1)
    text = describe(parity, inputs, signature)
    assert "row 1 (a validation row with cells blanked" in text
    assert "5.0 instead of 2.0 for age=2.0, town=''" in text
