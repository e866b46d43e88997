"""Rates of the groups of a column, and how far two groups are apart. Pure.

Every rate is a binomial proportion of a group (`RATES`), so that each has an exact interval (Clopper, Pearson,
Biometrika 26, 1934). Two groups are independent samples, and the interval of their comparison is recovered from both:

difference   MOVER (Zou, Donner, Statistics in Medicine 27, 2008), which with Wilson's intervals would be Newcombe's
             hybrid score (Statistics in Medicine 17, 1998, method 10 of independent proportions). Wilson's lower bound
             is wrong far too often for a small rate in few rows (``tests/unit/test_fairness_judging.py`` has the
             figures), and a small group is what a gate on fairness must not be fooled by.
ratio        MOVER-R (Donner, Zou, Statistical Methods in Medical Research 21, 2012; Newcombe, the same 25, 2016).

Neither has a sign here: the difference is the distance of the two rates, the ratio the smaller over the larger one. So
FAILED may come from either side, and is wrong with probability 1 - confidence at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from mlflowkit.judging import stats
from mlflowkit.judging.metrics import LabelledPredictions
from mlflowkit.judging.stats import Bounds, Estimate, UndefinedMetricError

if TYPE_CHECKING:
    import numpy as np

Hits = tuple["np.ndarray", "np.ndarray"]
"""Masks of the rows: those that count, and those of them that hit."""


def _selected(predictions: LabelledPredictions) -> Hits:
    import numpy as np

    return np.ones(predictions.rows, bool), predictions.predicted == 1


def _true_positive(predictions: LabelledPredictions) -> Hits:
    return predictions.actual == 1, predictions.predicted == 1


def _false_positive(predictions: LabelledPredictions) -> Hits:
    return predictions.actual == 0, predictions.predicted == 1


def _precise(predictions: LabelledPredictions) -> Hits:
    return predictions.predicted == 1, predictions.actual == 1


def _accurate(predictions: LabelledPredictions) -> Hits:
    import numpy as np

    return np.ones(predictions.rows, bool), predictions.actual == predictions.predicted


@dataclass(frozen=True, slots=True)
class GroupRate:
    """What is counted in each group: ``of`` describes the rows that count, for messages."""

    name: str
    masks: Callable[[LabelledPredictions], Hits]
    of: str


_SELECTED = GroupRate("selection_rate", _selected, "")
_RECALL = GroupRate("recall", _true_positive, "of the positive class")
_FALSE_POSITIVE = GroupRate("false_positive_rate", _false_positive, "of the negative class")
RATES: Mapping[str, tuple[GroupRate, ...]] = {
    "selection_rate": (_SELECTED,),
    "recall": (_RECALL,),
    "false_positive_rate": (_FALSE_POSITIVE,),
    "equalized_odds": (_RECALL, _FALSE_POSITIVE),
    "precision": (GroupRate("precision", _precise, "answered with the positive class"),),
    "accuracy": (GroupRate("accuracy", _accurate, ""),),
}
"""What is compared between groups, by metric: demographic parity, equal opportunity, predictive equality, equalized
odds (both), predictive parity, and accuracy."""
ONLY_FAIR = ("selection_rate", "false_positive_rate", "equalized_odds")
"""Metrics of `RATES` that have no meaning but between groups."""
ANY_CLASSES = ("accuracy",)
"""Metrics of `RATES` that a task of more than two classes has."""


def fair_metrics(task: str, classes: int | None = None) -> tuple[str, ...]:
    """The metrics that can be compared between groups; without ``classes``, for any number of them.

    >>> fair_metrics("classification", 3), fair_metrics("regression")
    (('accuracy',), ())
    """
    if task == "regression":
        return ()
    return tuple(RATES) if classes in (2, None) else ANY_CLASSES


@dataclass(frozen=True, slots=True)
class GroupCount:
    """A rate in one group: ``hits`` of ``trials`` rows."""

    group: str
    hits: int
    trials: int

    @property
    def share(self) -> float:
        return self.hits / self.trials

    def bounds(self, confidence: float) -> Bounds:
        """The exact interval of the rate."""
        return exact_bounds(self.hits, self.trials, confidence)


def count(rate: GroupRate, group: str, predictions: LabelledPredictions) -> GroupCount:
    """Count a rate in the rows of one group."""
    rows, hits = rate.masks(predictions)
    return GroupCount(group, int((rows & hits).sum()), int(rows.sum()))


@lru_cache(maxsize=4096)
def exact_bounds(hits: int, trials: int, confidence: float) -> Bounds:
    """Interval of a proportion that is never wrong more often than it says (Clopper, Pearson, Biometrika 26, 1934).

    >>> tuple(round(bound, 3) for bound in exact_bounds(1, 9, 0.95))
    (0.003, 0.482)
    """
    from scipy.special import betaincinv

    share = (1 - confidence) / 2
    low = float(betaincinv(hits, trials - hits + 1, share)) if hits else 0.0
    high = float(betaincinv(hits + 1, trials - hits, 1 - share)) if hits < trials else 1.0
    return low, high


def group_difference(rate: GroupRate, first: GroupCount, second: GroupCount) -> Estimate:
    """The distance of two groups' rates. Raises UndefinedMetricError where a group has no rows that count.

    >>> men, women = GroupCount("M", 120, 600), GroupCount("F", 60, 600)
    >>> distance = group_difference(RATES["selection_rate"][0], men, women)
    >>> round(distance.value, 3), tuple(round(bound, 3) for bound in distance.bounds(0.95))
    (0.1, (0.059, 0.141))
    """
    _require_rows(rate, first, second)

    def bounds(confidence: float) -> Bounds:
        intervals = first.bounds(confidence), second.bounds(confidence)
        low, high = stats.mover_difference(first.share, second.share, *intervals, 0.0)
        return max(low, -high, 0.0), min(max(abs(low), abs(high)), 1.0)

    return _estimate(f"{rate.name} difference", abs(first.share - second.share), (first, second), bounds, "MOVER")


def group_ratio(rate: GroupRate, first: GroupCount, second: GroupCount) -> Estimate:
    """The smaller of two groups' rates over the larger one. Raises UndefinedMetricError where a group has no rows that
    count, and where both rates are 0.

    >>> ratio = group_ratio(RATES["selection_rate"][0], GroupCount("M", 120, 600), GroupCount("F", 60, 600))
    >>> round(ratio.value, 3), tuple(round(bound, 3) for bound in ratio.bounds(0.95))
    (0.5, (0.369, 0.67))
    """
    _require_rows(rate, first, second)
    if not first.hits and not second.hits:
        message = f"{rate.name} is 0 in {first.group} ({first.trials:,} rows) and in {second.group} "
        raise UndefinedMetricError(f"{message}({second.trials:,} rows): there is no ratio")
    smaller, larger = sorted((first, second), key=lambda side: side.share)

    def bounds(confidence: float) -> Bounds:
        low = _least_ratio(smaller, larger, confidence)
        reverse = _least_ratio(larger, smaller, confidence)
        high = 1 / reverse if reverse else math.inf
        return min(low, 1 / high), min(high, 1.0)

    return _estimate(f"{rate.name} ratio", smaller.share / larger.share, (first, second), bounds, "MOVER-R")


def _least_ratio(over: GroupCount, under: GroupCount, confidence: float) -> float:
    """Lower bound of the ratio of two rates; the upper bound is one over that of the inverse ratio."""
    (low, _), (_, high) = over.bounds(confidence), under.bounds(confidence)
    product = over.share * under.share
    least = low * (2 * over.share - low)
    root = math.sqrt(max(product**2 - least * high * (2 * under.share - high), 0.0))
    return least / (product + root) if least > 0 else 0.0


def _require_rows(rate: GroupRate, *groups: GroupCount) -> None:
    empty = [side.group for side in groups if not side.trials]
    if empty:
        raise UndefinedMetricError(f"{rate.name} is undefined: no row of {' and '.join(empty)} is {rate.of}")


def _estimate(
    name: str, value: float, groups: tuple[GroupCount, GroupCount], bounds: Callable[[float], Bounds], method: str
) -> Estimate:
    sides = ", ".join(f"{side.group} {side.hits:,} of {side.trials:,}" for side in groups)
    rows = sum(side.trials for side in groups)
    method = f"Clopper-Pearson a group, {method}"
    return Estimate(name, value, rows, bounds, method, basis=f"{rows:,} rows ({sides})")
