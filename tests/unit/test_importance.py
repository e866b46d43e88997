"""Permutation importance: columns that decide come first, and a column that decides nothing has none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from mlflowkit.judging.metrics import LabelledPredictions
from mlflowkit.stages.evaluation.importance import MIN_ROWS, permutation_importance

ROWS = 600


def table() -> pd.DataFrame:
    rng = np.random.default_rng(4)
    frame = pd.DataFrame(
        {name: rng.normal(size=ROWS) for name in ("strong", "weak", "noise")}, index=range(7, ROWS + 7)
    )
    frame["target"] = frame["strong"] * 3 + frame["weak"] + rng.normal(size=ROWS) * 0.01
    return frame


def regression(rows: pd.DataFrame) -> LabelledPredictions:
    """A model that knows the target up to a little noise, and does not look at the column of that name."""
    return LabelledPredictions("regression", rows["target"].to_numpy(), (rows["strong"] * 3 + rows["weak"]).to_numpy())


def binary(rows: pd.DataFrame) -> LabelledPredictions:
    share = 1 / (1 + np.exp(-(rows["strong"] * 3 + rows["weak"]).to_numpy()))
    actual = (rows["target"].to_numpy() > 0).astype(np.int64)
    return LabelledPredictions(
        "classification", actual, (share > 0.5).astype(np.int64), np.stack([1 - share, share], 1)
    )


Predict = Callable[[pd.DataFrame], LabelledPredictions]


@pytest.mark.parametrize(
    ("task", "predict", "metric"), [("regression", regression, "r2"), ("classification", binary, "roc_auc")]
)
def test_columns_are_ranked_by_what_the_model_loses(task: str, predict: Predict, metric: str) -> None:
    measured = permutation_importance(predict, table(), ["noise", "weak", "strong"], task, rows=ROWS, seed=1)
    assert measured.metric == metric
    assert [item.column for item in measured.columns] == ["strong", "weak", "noise"]
    strong, weak, noise = measured.columns
    assert (noise.fall, noise.least, noise.largest) == (0, 0, 0)
    assert strong.least > weak.largest > 0
    assert measured.value == pytest.approx(1, abs=1e-3)


def test_r2_falls_as_theory_says() -> None:
    """A shuffled column of a linear model costs twice its variance (Fisher, Rudin, Dominici, 2019)."""
    frame = table()
    measured = permutation_importance(regression, frame, ["strong"], "regression", rows=ROWS, seed=1)
    expected = 2 * 9 * frame["strong"].var() / frame["target"].var()
    assert measured.columns[0].fall == pytest.approx(expected, rel=0.1)


def test_the_same_seed_gives_the_same_numbers_and_the_table_is_left_as_it_was() -> None:
    frame = table()
    first = permutation_importance(regression, frame, ["strong", "weak"], "regression", rows=200, seed=9)
    assert first == permutation_importance(regression, frame, ["strong", "weak"], "regression", rows=200, seed=9)
    assert first.rows == 200
    pd.testing.assert_frame_equal(frame, table())


@pytest.mark.parametrize("rows", [5, MIN_ROWS - 1])
def test_few_rows_show_nothing_and_say_so(rows: int) -> None:
    measured = permutation_importance(regression, table(), ["strong"], "regression", rows=rows, seed=1)
    assert measured.columns == ()
    assert "fewer than" in measured.reason


def test_one_class_shows_nothing_and_says_so() -> None:
    frame = table()
    frame["target"] = 1.0
    measured = permutation_importance(binary, frame, ["strong"], "classification", rows=ROWS, seed=1)
    assert measured.columns == ()
    assert measured.reason
