"""How often a gate on fairness is wrong, and what it finds, by simulation.

Chance that a test fails when all is well: 0 on unchanged code, as all seeds are fixed. More runs, sizes and rates, and
what fairlearn's point value would say: ``python -m benchmarks.fairness``.
"""

from __future__ import annotations

import pytest

from benchmarks.fairness import Case, share_of_outcomes
from mlflowkit.values import Outcome

pytestmark = pytest.mark.simulation

RUNS = 1000
SIZES = (718, 446, 306, 9)


CASES = [
    *((metric, SIZES, limit) for metric in ("selection_rate", "equalized_odds") for limit in (0.05, 0.005)),
    ("selection_rate", (1000, 30), 0.005),
    ("selection_rate", (40,) * 6, 0.005),
]


@pytest.mark.parametrize(("metric", "sizes", "limit"), CASES)
def test_no_disparity_seldom_fails(metric: str, sizes: tuple[int, ...], limit: float) -> None:
    case = Case(metric, sizes, (0.1,) * len(sizes), {"max_difference": limit})
    assert share_of_outcomes(case, RUNS, seed=1)[Outcome.FAILED] <= 0.05


@pytest.mark.parametrize("rate", [0.02, 0.4])
def test_no_disparity_is_seldom_below_four_fifths(rate: float) -> None:
    case = Case("selection_rate", SIZES, (rate,) * 4, {"min_ratio": 0.8})
    assert share_of_outcomes(case, RUNS, seed=1)[Outcome.FAILED] <= 0.05


@pytest.mark.parametrize("metric", ["selection_rate", "recall"])
def test_a_gap_of_a_fifth_is_found_in_1479_rows(metric: str) -> None:
    """Of the rows that count: a gap in recall is one of the rows of the positive class."""
    case = Case(metric, SIZES, (0.5, 0.5, 0.3, 0.3), {"max_difference": 0.05}, positive=1.0)
    assert share_of_outcomes(case, 300, seed=2)[Outcome.FAILED] >= 0.8
