"""The outlier model: the same scores as scikit-learn's, odd values, its file, and its counts of live rows."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pytest
from sklearn.ensemble import IsolationForest

from mlflowkit.bundle import Signature
from mlflowkit.features.outlier_forest import (
    CELLS,
    COLUMN,
    TREE_ROWS,
    TREES,
    OutlierForest,
    encode,
    expected_path,
    fit_forest,
)
from mlflowkit.features.reference_cells import column_reference
from mlflowkit.judging.shift.reference import ColumnReference, Reference
from mlflowkit.serving.observer.pane_counts import count_rows, counting_plan

SHARE = 0.01


def rows(number: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    income = rng.lognormal(10, 0.5, number).astype(np.float32)
    income[rng.random(number) < 0.1] = np.nan
    debt = (rng.normal(size=number) + np.nan_to_num(income) / 20_000).astype(np.float32)
    return {
        "income": income,
        "debt": debt,
        "state": rng.choice(["CA", "NY", ""], number, p=[0.6, 0.3, 0.1]).astype(object),
    }


@pytest.fixture(scope="module")
def forest() -> OutlierForest:
    train = rows(5000, 1)
    return fit_forest(train, {name: column_reference(values) for name, values in train.items()}, SHARE)


def test_scores_are_those_of_scikit_learn(forest: OutlierForest) -> None:
    train, live = rows(5000, 1), rows(500, 2)
    matrices = [encode(table, forest.columns, forest.fills, forest.texts) for table in (train, live)]
    model = IsolationForest(n_estimators=TREES, max_samples=TREE_ROWS, random_state=0).fit(matrices[0])
    expected = -model.score_samples(matrices[1])
    scores = 2 ** (-forest.path_lengths(live) / expected_path(TREE_ROWS))
    assert np.abs(scores - expected).max() < 1e-9


def test_the_share_of_outliers_is_that_of_new_rows_too_and_strange_rows_are_outliers(forest: OutlierForest) -> None:
    assert forest.outliers(rows(5000, 1)).mean() == pytest.approx(SHARE, abs=0.003)
    assert forest.outliers(rows(20_000, 2)).mean() == pytest.approx(SHARE, abs=0.007)
    strange = rows(200, 3)
    strange["income"] = strange["income"] * 0 + 1e7
    strange["debt"] = strange["debt"] * 0 - 40
    assert forest.outliers(strange).mean() > 0.9


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e308])
def test_odd_values_have_an_answer(forest: OutlierForest, value: float) -> None:
    odd: Mapping[str, np.ndarray] = {
        "income": np.full(7, value),
        "debt": np.full(7, value),
        "state": np.array([""] * 7, object),
    }
    assert np.isfinite(forest.path_lengths(odd)).all()
    assert np.isfinite(forest.path_lengths({"income": np.full(7, value)})).all()  # columns that are not there
    assert forest.path_lengths({}).tolist() == []


def test_a_forest_survives_json_and_a_damaged_one_is_refused(forest: OutlierForest) -> None:
    document = json.loads(json.dumps(forest.to_json(), allow_nan=False))
    again = OutlierForest.from_json(document)
    assert again.path_lengths(rows(100, 5)).tolist() == forest.path_lengths(rows(100, 5)).tolist()
    document["left"][0][0] = 10**6
    with pytest.raises(ValueError, match="points outside"):
        OutlierForest.from_json(document)
    document = json.loads(json.dumps(forest.to_json()))
    document["paths"] = document["paths"][1:]
    with pytest.raises(ValueError, match="do not fit"):
        OutlierForest.from_json(document)


def test_equal_rows_give_an_equal_forest(forest: OutlierForest) -> None:
    train = rows(5000, 1)
    again = fit_forest(train, {name: column_reference(values) for name, values in train.items()}, SHARE)
    assert json.dumps(again.to_json()) == json.dumps(forest.to_json())


def test_live_rows_are_counted_by_it(forest: OutlierForest) -> None:
    live = rows(3000, 7)
    live["debt"][:60] = -40.0
    live["income"][:60] = 1e7
    columns = {name: column_reference(values) for name, values in rows(5000, 1).items()}
    columns[COLUMN] = ColumnReference(CELLS, (990, 10, 0, 0, 0))
    signature = Signature(task="regression", inputs=(), outputs=())
    plan = counting_plan(signature, Reference(columns), (), forest)
    table = pa.table({f"input.{name}": pa.array(values) for name, values in live.items()})
    counted = count_rows(plan, table, np.arange(3000))
    expected = int(forest.outliers(live).sum())
    assert counted.total.columns[COLUMN] == (3000 - expected, expected, 0, 0, 0)
    assert expected >= 60
    assert counted.problems == {}
    without = count_rows(counting_plan(signature, Reference(columns), ()), table, np.arange(3000))
    assert COLUMN not in without.total.columns
