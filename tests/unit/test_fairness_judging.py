"""Gates on fairness: what is compared, what each verdict says, and how often they are wrong, computed exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from mlflowkit.judging import stats
from mlflowkit.judging.fairness import RATES, GroupCount, exact_bounds, fair_metrics, group_difference, group_ratio
from mlflowkit.judging.gates import GateSpec
from mlflowkit.judging.metrics import LabelledPredictions
from mlflowkit.judging.stats import UndefinedMetricError
from mlflowkit.stages.evaluation import fairness_gates
from mlflowkit.stages.evaluation.fairness_gates import Fair, GroupEvidence
from mlflowkit.values import Outcome, Verdict

Confusion = tuple[int, int, int, int]
"""True positives, false negatives, true negatives, false positives."""

SELECTION = RATES["selection_rate"][0]
FOUR_GROUPS: Mapping[str, Confusion] = {
    "A": (120, 61, 497, 40),
    "B": (60, 18, 359, 9),
    "C": (45, 40, 201, 20),
    "D": (2, 1, 5, 1),
}
"""718, 446, 306 and 9 rows."""
FAIRLEARN = {
    ("selection_rate", "max"): 0.17862481315396112,
    ("selection_rate", "min"): 0.4641255605381166,
    ("recall", "max"): 0.23981900452488691,
    ("equalized_odds", "max"): 0.23981900452488691,
}
"""Of FOUR_GROUPS by fairlearn 0.15.0: demographic_parity_difference, demographic_parity_ratio,
equal_opportunity_difference and equalized_odds_difference."""


def evidence(groups: Mapping[str, Confusion], elsewhere: Mapping[str, int] | None = None) -> GroupEvidence:
    actual, predicted, rows = [], [], []
    start = 0
    for name, (hits, misses, rejections, alarms) in groups.items():
        size = hits + misses + rejections + alarms
        actual += [1] * (hits + misses) + [0] * (rejections + alarms)
        predicted += [1] * hits + [0] * misses + [0] * rejections + [1] * alarms
        if size:
            rows.append((name, np.arange(start, start + size)))
        start += size
    scores = np.stack([1 - np.array(predicted), np.array(predicted)], axis=1).astype(float)
    predictions = LabelledPredictions("classification", np.array(actual), np.array(predicted), scores)
    return GroupEvidence(predictions, rows, elsewhere or {})


def judged(metric: str, found: GroupEvidence, **fair: Any) -> tuple[Verdict, ...]:
    section = Fair(column="sex", **fair)
    base = GateSpec(metric, metric, 0.0, "max", members="comparisons")
    (spec,) = fairness_gates.specs(section, metric, base)
    return tuple(fairness_gates.verdicts(section, metric, spec, found))


def outcomes(verdicts: Sequence[Verdict]) -> dict[str, Outcome]:
    return {verdict.slice: verdict.outcome for verdict in verdicts}


@pytest.mark.parametrize(("metric", "direction"), FAIRLEARN)
def test_the_values_are_those_of_fairlearn(metric: str, direction: str) -> None:
    limit: dict[str, Any] = {"max_difference": 0.5} if direction == "max" else {"min_ratio": 0.5}
    verdicts = judged(metric, evidence(FOUR_GROUPS), min_rows=2, **limit)
    values = [verdict.measurement.value for verdict in verdicts if verdict.measurement is not None]
    assert len(values) == 6 * len(RATES[metric])
    extreme = max(values) if direction == "max" else min(values)
    assert extreme == pytest.approx(FAIRLEARN[metric, direction], abs=1e-12)


def test_a_pair_beyond_the_limit_fails_and_the_message_has_the_numbers() -> None:
    found = evidence({"M": (200, 50, 300, 50), "F": (60, 60, 350, 30)})
    (verdict,) = judged("selection_rate", found, max_difference=0.1)
    assert verdict.outcome is Outcome.FAILED
    assert verdict.gate == "selection_rate difference <= 0.1 by sex"
    assert verdict.slice == "sex=M and F"
    assert "1,100 rows (M 250 of 600, F 90 of 500)" in verdict.message
    assert "> max 0.1: FAILED" in verdict.message


def test_a_gate_passes_only_where_every_pair_does() -> None:
    alike = dict.fromkeys(("A", "B", "C"), (2000, 500, 2000, 500))
    assert set(outcomes(judged("equalized_odds", evidence(alike), max_difference=0.1)).values()) == {Outcome.PASSED}
    verdicts = judged("equalized_odds", evidence({**alike, "D": (10, 3, 20, 2)}), max_difference=0.1)
    assert len(verdicts) == 12
    undecided = {name for name, outcome in outcomes(verdicts).items() if outcome is Outcome.INCONCLUSIVE}
    assert undecided == {f"{rate}, sex={pair} and D" for rate in ("recall", "false_positive_rate") for pair in "ABC"}
    assert "corrected for 12 comparisons (Holm)" in verdicts[0].message


def test_a_ratio_is_judged_from_both_sides() -> None:
    for first, second in (("M", "F"), ("F", "M")):
        shares = {"M": (300, 0, 700, 0), "F": (150, 0, 850, 0)}
        verdicts = judged("selection_rate", evidence({name: shares[name] for name in (first, second)}), min_ratio=0.8)
        assert [verdict.outcome for verdict in verdicts] == [Outcome.FAILED]
    (verdict,) = judged("selection_rate", evidence({"M": (300, 0, 700, 0), "F": (300, 0, 700, 0)}), min_ratio=0.8)
    assert verdict.outcome is Outcome.PASSED
    assert verdict.measurement is not None
    assert verdict.measurement.high == 1.0


def test_a_small_group_is_named_with_its_share() -> None:
    verdicts = judged("selection_rate", evidence(FOUR_GROUPS), max_difference=0.3, min_rows=50)
    assert set(outcomes(verdicts).values()) == {Outcome.PASSED}
    assert len(verdicts) == 3
    assert verdicts[0].message.endswith("not compared: sex=D (9 test rows, 0.61%, fewer than min_rows: 50)")


def test_a_listed_group_without_enough_rows_decides_nothing() -> None:
    found = evidence(FOUR_GROUPS)
    verdicts = judged("selection_rate", found, max_difference=0.3, min_rows=50, groups=["A", "B", "D", "E"])
    assert outcomes(verdicts) == {
        "sex=A and B": Outcome.PASSED,
        "sex=D": Outcome.INCONCLUSIVE,
        "sex=E": Outcome.INCONCLUSIVE,
    }
    assert "sex=C (306 test rows, 20.69%, groups does not list it)" in verdicts[0].message
    assert "no row of the table has it" in verdicts[2].message


def test_a_group_that_only_other_parts_have_is_inconclusive() -> None:
    found = evidence({"A": (90, 10, 90, 10), "B": (90, 10, 90, 10)}, elsewhere={"A": 900, "B": 900, "X": 12})
    verdicts = judged("recall", found, max_difference=0.3)
    assert outcomes(verdicts)["sex=X"] is Outcome.INCONCLUSIVE
    assert "no test row: it has 12 rows in the other parts" in verdicts[-1].message


def test_one_group_is_compared_with_none() -> None:
    (verdict,) = judged("recall", evidence({"A": (90, 10, 90, 10), "B": (3, 1, 2, 1)}), max_difference=0.3)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "it takes two to compare" in verdict.message
    assert "sex=B (7 test rows" in verdict.message


def test_a_group_without_rows_that_count_is_inconclusive() -> None:
    found = evidence({"A": (90, 10, 90, 10), "B": (0, 0, 190, 10), "C": (90, 10, 90, 10)})
    verdicts = judged("recall", found, max_difference=0.3)
    assert outcomes(verdicts)["sex=A and B"] is Outcome.INCONCLUSIVE
    assert "no row of B is of the positive class" in next(v.message for v in verdicts if v.slice == "sex=A and B")
    assert "corrected for 3 comparisons" in next(v.message for v in verdicts if v.slice == "sex=A and C")


def test_two_rates_of_zero_have_no_ratio() -> None:
    with pytest.raises(UndefinedMetricError, match="there is no ratio"):
        group_ratio(SELECTION, GroupCount("A", 0, 90), GroupCount("B", 0, 80))
    none = group_ratio(SELECTION, GroupCount("A", 0, 90), GroupCount("B", 40, 80))
    assert none.value == 0
    low, high = none.bounds(0.95)
    assert low == 0
    assert 0 < high < 0.2


def test_too_many_groups_are_refused() -> None:
    many = {f"g{number:02d}": (20, 5, 20, 5) for number in range(fairness_gates.MAX_GROUPS + 1)}
    (verdict,) = judged("recall", evidence(many), max_difference=0.3)
    assert verdict.outcome is Outcome.ERROR
    assert "list those that matter in groups" in verdict.message


def test_a_task_without_rates_is_an_error() -> None:
    values = np.arange(10.0)
    regression = LabelledPredictions("regression", values, values)
    reason = fairness_gates.comparison_fault(Fair(column="sex", min_ratio=0.8), "recall", regression, ["sex"])
    assert "judge the values of a column with slice" in reason
    assert fair_metrics("classification") == tuple(RATES)


PAIRS = ((718, 446), (718, 9), (306, 9), (9, 9), (20, 100))


def chance_of_failed(limit: float, first: float, second: float, sizes: tuple[int, int], confidence: float) -> float:
    """The exact chance of FAILED for two true rates, with the bounds that `group_difference` and `group_ratio` have."""
    rows, others = sizes
    grids = [np.array([exact_bounds(hits, size, confidence) for hits in range(size + 1)]) for size in (rows, others)]
    chance = 0.0
    weights = [binom.pmf(np.arange(size + 1), size, rate) for size, rate in zip(sizes, (first, second), strict=True)]
    likely = [np.flatnonzero(weight > 1e-9) for weight in weights]
    for one in likely[0]:
        share, (low, high) = one / rows, grids[0][one]
        shares, lows, highs = likely[1] / others, grids[1][likely[1], 0], grids[1][likely[1], 1]
        under = share - shares - np.hypot(share - low, highs - shares)
        over = share - shares + np.hypot(high - share, shares - lows)
        failed = np.maximum(under, -over) > limit
        chance += float(weights[0][one] * weights[1][likely[1]][failed].sum())
    return chance


@pytest.mark.parametrize("sizes", PAIRS)
def test_failed_is_wrong_as_seldom_as_it_says_whatever_the_sizes(sizes: tuple[int, int]) -> None:
    """Computed, not simulated: every rate, groups apart by exactly the limit, and a family of six pairs."""
    confidence = 1 - 0.05 / 6
    for limit in (0.001, 0.05):
        for rate in (0.005, 0.05, 0.3, 0.9):
            for other in (rate + limit, rate - limit):
                if 0 <= other <= 1:
                    assert chance_of_failed(limit, rate, other, sizes, confidence) <= 1 - confidence


def test_the_bounds_computed_above_are_those_of_the_gate() -> None:
    for hits, others in ((0, 3), (120, 1), (700, 9)):
        first, second = GroupCount("A", hits, 718), GroupCount("B", others, 9)
        low, high = group_difference(SELECTION, first, second).bounds(0.99)
        (below, above), (under, over) = exact_bounds(hits, 718, 0.99), exact_bounds(others, 9, 0.99)
        gap = hits / 718 - others / 9
        signed = (
            gap - np.hypot(hits / 718 - below, over - others / 9),
            gap + np.hypot(above - hits / 718, others / 9 - under),
        )
        assert low == pytest.approx(max(signed[0], -signed[1], 0))
        assert high == pytest.approx(min(max(abs(signed[0]), abs(signed[1])), 1))


def test_wilsons_bounds_would_be_wrong_too_often() -> None:
    """Why the intervals are exact: one hit of nine rows would be told apart from a rate of 1 % in 718."""
    low, _ = stats.mover_difference(1 / 9, 7 / 718, stats.wilson(1, 9, 0.98), stats.wilson(7, 718, 0.98), 0.0)
    assert low > 0.001
    assert binom.sf(0, 9, 0.011) > 0.09
    difference = group_difference(SELECTION, GroupCount("A", 1, 9), GroupCount("B", 7, 718))
    assert difference.bounds(0.98)[0] == 0
