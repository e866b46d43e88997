"""Gates on fairness through the evaluate stage and the page of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlflowkit.values import Outcome
from tests.integration.test_evaluate_and_package import GOOD, EvaluationWorld, classifier, judged, loans

FAIR = {"metric": "selection_rate", "fair": {"column": "term", "max_difference": 0.2}}


def with_terms(rows: int, terms: dict[str | float, float], seed: int = 0) -> pd.DataFrame:
    table = loans(rows, seed=seed)
    draws = np.random.default_rng(seed).choice(len(terms), size=rows, p=list(terms.values()))
    return table.assign(term=[list(terms)[draw] for draw in draws])


def world_of(folder: Path, table: pd.DataFrame, seen: pd.DataFrame) -> EvaluationWorld:
    world = EvaluationWorld(folder, table, "status", ("good", "bad"), seen)
    world.optimized(lambda path: classifier(path, GOOD, world.classes))
    return world


def test_groups_of_a_column_that_the_model_does_not_take_are_compared(tmp_path: Path) -> None:
    seen = with_terms(600, {"36": 0.5, "60": 0.5})
    world = world_of(tmp_path, with_terms(3000, {"36": 0.6, "60": 0.4}), seen)
    result, out = judged(world, FAIR)
    (verdict,) = result.verdicts
    assert (verdict.slice, verdict.outcome) == ("term=36 and 60", Outcome.PASSED)
    assert result.summary["not_judged"] == []
    (rates,) = json.loads((out / "evaluation.json").read_text())["fairness"]
    assert [group["group"] for group in rates["groups"]] == ["36", "60"]
    shares = [group["rates"]["selection_rate"] for group in rates["groups"]]
    assert abs(shares[0]["value"] - shares[1]["value"]) == pytest.approx(verdict.measurement.value)  # type: ignore[union-attr]
    assert sum(share["trials"] for share in shares) == 3000


def test_a_planted_gap_fails_and_blocks(tmp_path: Path) -> None:
    table = with_terms(3000, {"36": 0.6, "60": 0.4})
    table.loc[table["term"] == "60", "debt"] += 1.5
    result, _ = judged(world_of(tmp_path, table, table.head(10)), FAIR)
    assert [verdict.outcome for verdict in result.verdicts] == [Outcome.FAILED]
    assert result.summary["blessed"] is False


def test_what_is_not_compared_is_told(tmp_path: Path) -> None:
    """A group that only the training rows have, missing values, and a group of few rows."""
    seen = with_terms(600, {"36": 0.5, "60": 0.4, "84": 0.1})
    table = with_terms(3000, {"36": 0.6, "60": 0.395, float("nan"): 0.005})
    result, _ = judged(world_of(tmp_path, table, seen), FAIR)
    outcomes = {verdict.slice: verdict.outcome for verdict in result.verdicts}
    assert outcomes == {"term=36 and 60": Outcome.PASSED, "term=84": Outcome.INCONCLUSIVE}
    missing = int(table["term"].isna().sum())
    note = f"not compared: term=(missing) ({missing} test rows, {missing / 3000:.2%}, fewer than min_rows: 30)"
    assert note in result.verdicts[0].message
    assert result.summary["not_judged"] == [note]


def test_a_column_that_the_table_lacks_is_an_error(tmp_path: Path) -> None:
    world = world_of(tmp_path, loans(200), loans(20))
    result, out = judged(world, {"metric": "recall", "fair": {"column": "sex", "min_ratio": 0.8}})
    assert [verdict.outcome for verdict in result.verdicts] == [Outcome.ERROR]
    assert "data.columns: {sex: ignore} keeps it" in result.verdicts[0].message
    assert json.loads((out / "evaluation.json").read_text())["fairness"] == []


def test_an_installed_metric_is_not_looked_for(tmp_path: Path) -> None:
    """selection_rate is no metric of rows: nothing reports it beside the gates."""
    result, out = judged(world_of(tmp_path, loans(500), loans(20)), FAIR)
    assert "selection_rate" not in json.loads((out / "evaluation.json").read_text())["metrics"]
    assert "selection_rate" not in result.metrics
