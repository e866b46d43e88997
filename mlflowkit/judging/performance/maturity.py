"""The maturity curve of labels: the share of answered rows whose label came within an age."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlflowkit.judging.performance.realised import LabelledCohort

DELAY_GROWTH = 2.0
DELAY_BINS = 26
"""Delays from an answer to its label, in bins of powers of two from a second to a year."""


def delay_bin(seconds: float) -> int:
    """The bin of a delay; bin 0 holds less than a second.

    >>> delay_bin(0.2), delay_bin(1.0), delay_bin(86_400.0), delay_bin(1e12)
    (0, 1, 17, 25)
    """
    if not seconds >= 1.0:
        return 0
    return min(math.floor(math.log(seconds, DELAY_GROWTH) + 1e-9) + 1, DELAY_BINS - 1)


def bin_end(index: int) -> float:
    """The delay in seconds that a bin ends at."""
    return float(DELAY_GROWTH**index)


@dataclass(frozen=True, slots=True)
class LabelMaturity:
    """Of the rows of cohorts that are old enough: the share labelled at each age, [(age in seconds, share), ...].

    ``share`` is that of the mature cohorts. ``late`` says why labels count as late; "" when they do not.
    """

    curve: tuple[tuple[float, float], ...]
    share: float | None
    answered: int
    labels: int
    late: str = ""


def label_maturity(
    cohorts: Sequence[LabelledCohort], now: float, mature: float, expected: float = 0.5
) -> LabelMaturity:
    """The curve over all cohorts, each age from those that have reached it.

    Labels are late when mature cohorts have none, or less than ``expected`` of the share of mature cohorts before.
    """
    curve = []
    for index in range(DELAY_BINS):
        age = bin_end(index)
        reached = [cohort for cohort in cohorts if now - (cohort.start + cohort.seconds) >= age]
        answered = sum(cohort.answered for cohort in reached)
        if answered:
            within = sum(rows for cohort in reached for delay, rows in cohort.delays.items() if delay <= index)
            curve.append((age, min(within / answered, 1.0)))
    old = [cohort for cohort in cohorts if now - (cohort.start + cohort.seconds) >= mature and cohort.answered]
    answered, labels = sum(cohort.answered for cohort in old), sum(cohort.labels for cohort in old)
    share = min(labels / answered, 1.0) if answered else None
    return LabelMaturity(tuple(curve), share, answered, labels, _late(old, expected))


def _late(old: Sequence[LabelledCohort], expected: float) -> str:
    answered, labels = sum(cohort.answered for cohort in old), sum(cohort.labels for cohort in old)
    if not answered:
        return ""
    if not labels:
        return f"none of {answered:,} rows that are old enough has a label"
    newest, before = old[-1], old[:-1]
    usual = sum(cohort.labels for cohort in before) / max(sum(cohort.answered for cohort in before), 1)
    share = newest.labels / newest.answered
    error = 3 * math.sqrt(max(usual * (1 - usual), 1e-9) / newest.answered)
    if usual and share < expected * usual - error:
        return f"{share:.1%} of the newest mature rows have a label, {usual:.1%} of those before"
    return ""
