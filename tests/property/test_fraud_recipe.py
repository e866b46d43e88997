"""The generator of recipes/fraud.yaml against what it states: purity, rates, the truth of Bayes, delays, scenarios.

Bounds are at least 5 standard errors wide: each test fails by chance in fewer than 1 of 10^6 runs of other seeds.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflowkit import usercode
from mlflowkit.errors import UsageError

RECIPES = Path(__file__).parents[2] / "recipes"


@cache
def name(of: str) -> Any:
    return usercode.load(f"fraud:{of}", RECIPES)


def world(**arguments: Any) -> Any:
    return name("World")(**arguments)


@cache
def days(scenario: str = "none", *, size: float | None = None, count: int = 7, seed: int = 3) -> tuple[Any, ...]:
    """Whole weeks in which the scenario is active."""
    place = world(seed=seed, scenario=scenario, size=size, onset=0)
    return tuple(name("draw")(day, place) for day in range(count))


def column(drawn: tuple[Any, ...], feature: str) -> np.ndarray:
    return np.concatenate([day.table[feature].to_numpy() for day in drawn])


def probabilities(drawn: tuple[Any, ...]) -> np.ndarray:
    return np.concatenate([day.probability for day in drawn])


def outcomes(drawn: tuple[Any, ...]) -> np.ndarray:
    return np.concatenate([day.fraud for day in drawn])


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Kolmogorov and Smirnov's."""
    points = np.unique(np.concatenate([one, other]))
    parts = [np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (one, other)]
    return float(np.abs(parts[0] - parts[1]).max())


def test_day_depends_on_seed_day_and_scenario_alone() -> None:
    draw = name("draw")
    first = draw(40, world())
    draw(39, world(seed=8))
    again = draw(40, world())
    assert first.table.equals(again.table)
    assert np.array_equal(first.fraud, again.fraud)
    assert np.array_equal(first.delay, again.delay)
    assert not first.table.equals(draw(41, world()).table)
    assert not first.table["amount"].equals(draw(40, world(seed=8)).table["amount"])
    before = draw(40, world(scenario="inflation", onset=41))
    assert first.table.equals(before.table), "a scenario changed a day before its onset"


def test_day_has_the_rows_columns_and_times_that_are_promised() -> None:
    day = name("draw")(2, world())
    assert len(day.table) == name("ROWS") == 20_000
    assert list(day.table.columns) == ["time", "card", *name("FEATURES")]
    times = day.table["time"].to_numpy()
    assert (np.diff(times) >= 0).all()
    assert pd.Timestamp(int(times[0]), unit="s").date() == pd.Timestamp(int(times[-1]), unit="s").date()
    assert pd.Timestamp(int(times[0]), unit="s").day_name() == "Wednesday"
    assert set(day.table["merchant_class"]) == set(name("MERCHANTS"))
    assert len(set(day.table["country"])) == 30
    assert day.table["device_age_days"].isna().mean() == pytest.approx(0.08, abs=0.01)
    assert day.table.drop(columns="device_age_days").notna().all().all()


def test_outcomes_are_drawn_from_the_stated_probability() -> None:
    """Mean, and calibration in ten parts of equal expected fraud."""
    drawn = days()
    chance, fraud = probabilities(drawn), outcomes(drawn)
    assert chance.mean() == pytest.approx(name("RATE"), rel=0.05)
    parts = np.searchsorted(np.cumsum(np.sort(chance)) / chance.sum(), np.linspace(0, 1, 11)[1:-1])
    for part in np.split(np.argsort(chance), parts):
        error = np.sqrt((chance[part] * (1 - chance[part])).sum())
        assert abs(fraud[part].sum() - chance[part].sum()) < 5 * error


@pytest.mark.simulation
def test_truth_of_bayes_is_that_of_the_formula() -> None:
    """By scikit-learn on drawn outcomes, which know nothing of the formula; errors are from 14 parts of the rows."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    drawn = days(count=28, seed=5)
    scores = []
    for day in (drawn[index : index + 2] for index in range(0, 28, 2)):
        chance, fraud = probabilities(day), outcomes(day)
        reported = np.argsort(-chance)[: len(chance) // 100]
        recall = fraud[reported].sum() / fraud.sum()
        scores.append((roc_auc_score(fraud, chance), average_precision_score(fraud, chance), recall))
    means, errors = np.mean(scores, axis=0), np.std(scores, axis=0, ddof=1) / np.sqrt(len(scores))
    assert (np.abs(means - name("BAYES")) < 6 * errors).all(), (means, errors)
    assert errors.max() < 0.02


def test_probability_is_a_function_of_the_features_alone() -> None:
    day = name("draw")(1, world())
    assert np.array_equal(name("probability")(day.table[list(name("FEATURES"))]), day.probability)


def test_cards_are_few_that_are_used_much() -> None:
    cards = column(days(), "card")
    counts = np.sort(np.bincount(cards, minlength=name("CARDS")))[::-1]
    assert 0.5 < counts[: len(counts) // 10].sum() / counts.sum() < 0.75


def test_weekends_differ_and_weeks_do_not() -> None:
    drawn = days(count=14)
    amounts = [day.table["amount"].to_numpy() for day in drawn]
    weekend, week = np.concatenate(amounts[5:7]), np.concatenate(amounts[:5])
    assert 0.02 < distance(weekend, week) < 0.1
    assert distance(np.concatenate(amounts[:7]), np.concatenate(amounts[7:])) < 0.01


def test_outcomes_come_late_and_some_never() -> None:
    delay = np.concatenate([day.delay for day in days()])
    known = delay[np.isfinite(delay)]
    assert len(known) / len(delay) == pytest.approx(0.85, abs=0.005)
    assert np.median(known) == pytest.approx(14, rel=0.02)
    assert np.quantile(known, 0.95) == pytest.approx(45, rel=0.03)
    fraud = outcomes(days())
    assert abs(np.isfinite(delay[fraud]).mean() - 0.85) < 0.05, "who is never known depends on the outcome"


def test_table_of_the_recipe_is_what_is_known_by_then(tmp_path: Path) -> None:
    transactions = name("transactions")
    table = transactions(until=3, days=2, median_delay=1.0)
    assert table["time"].max() < name("EPOCH") + 3 * name("DAY_SECONDS")
    assert 0.1 < len(table) / 40_000 < 0.5
    later = transactions(until=6, days=5, median_delay=1.0)
    keys = ["time", "card", "amount", "distance_km"]
    assert len(table.merge(later, on=keys)) >= len(table), "what was known is known later"
    calendar = tmp_path / "calendar.json"
    calendar.write_text(json.dumps({"until": 3, "scenario": "ring", "onset": 0}))
    read = transactions(days=2, median_delay=1.0, calendar=str(calendar))
    assert read.equals(transactions(until=3, days=2, median_delay=1.0, scenario="ring", onset=0))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"until": "soon"}'])
def test_calendar_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    calendar = tmp_path / "calendar.json"
    calendar.write_text(content)
    with pytest.raises(UsageError, match="is no calendar"):
        name("transactions")(calendar=str(calendar))


def test_unknown_scenario_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="black_friday"):
        world(scenario="storm")


def test_inflation_multiplies_amounts_and_leaves_fraud_as_it_was() -> None:
    clean, inflated = days(), days("inflation")
    assert np.allclose(column(inflated, "amount"), np.round(column(clean, "amount") * 1.3, 2), atol=0.02)
    assert np.array_equal(outcomes(clean), outcomes(inflated))


def test_cents_multiply_amounts_by_a_hundred() -> None:
    assert np.allclose(column(days("cents"), "amount"), column(days(), "amount") * 100)


def test_new_merchant_class_has_its_share_from_the_onset_on() -> None:
    assert np.mean(column(days("new_merchant"), "merchant_class") == name("NEW_MERCHANT")) == pytest.approx(
        0.05, abs=0.003
    )


def test_nulls_have_their_share() -> None:
    missing = np.isnan(column(days("nulls"), "device_age_days").astype(float)).mean()
    assert missing == pytest.approx(1 - 0.92 * 0.6, abs=0.01)


def test_ring_changes_the_probability_and_no_transaction() -> None:
    clean, ring = days(), days("ring")
    for one, other in zip(clean, ring, strict=True):
        assert one.table.equals(other.table)
    assert probabilities(ring).mean() == pytest.approx((0.3 + 2 * 0.7) * name("RATE"), rel=0.1)
    assert probabilities(ring).max() < 1
    before, after = probabilities(clean), outcomes(ring)
    reported = np.argsort(-before)[: len(before) // 100]
    found = after[reported].sum() / after.sum()
    assert found < 0.5 * name("BAYES").recall_at_1_percent, "the old model still finds most of the fraud"
    best = np.argsort(-probabilities(ring))[: len(before) // 100]
    assert after[best].sum() / after.sum() > 0.5, "a new model could not find it either"


def test_black_friday_lasts_four_days() -> None:
    drawn = days("black_friday")
    assert all(not one.table.equals(other.table) for one, other in zip(drawn[:4], days()[:4], strict=True))
    assert all(one.table.equals(other.table) for one, other in zip(drawn[4:], days()[4:], strict=True))
    online = column(drawn[:4], "channel") == "online"
    assert online.mean() > 0.42
