"""Realised performance: metrics of rows whose label came, by cohorts of the time of the ANSWER.

Labels of a day of answers come in over weeks, and those that come first differ from the others (a loan that fails does
so early). So a cohort is judged when it is mature: old enough that what will come has come (`maturity`), and when the
rows with a label are like those without (`selection`). Intervals count days, not rows: of held-out days of January and
February of `flights`, 29 % lie beyond three binomial standard deviations, where independent rows would be 0.3 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from mlflowkit.judging.online.evidence import Moments
from mlflowkit.judging.online.sequential import Share
from mlflowkit.judging.performance.harm import PerformanceBlock, design_effect
from mlflowkit.judging.performance.score_table import (
    CELLS,
    SCORE_METRICS,
    ScoreTable,
    cell_scores,
    coarsened,
    interval,
    metric_value,
    sampling_variance,
    trials,
)

K = TypeVar("K")

MOMENT_METRICS = ("accuracy", "log_loss", "brier", "absolute_error", "squared_error")
REALISED_METRICS = (*SCORE_METRICS, "absolute_error", "squared_error")
CONFIDENCE = 0.95
RECENT_BLOCKS = 3
"""Blocks that the shown value is of."""


@dataclass(frozen=True, slots=True)
class LabelledCohort:
    """The rows that one version answered in [start, start + seconds).

    answered  rows by score cell and predicted class (0 or 1); () of a task that is not binary
    labelled  rows by (score cell, predicted, actual) whose label came
    moments   by metric: exact sums over the labelled rows
    delays    labelled rows by delay: see `maturity`
    """

    start: float
    seconds: float
    answered: int
    answered_cells: Mapping[tuple[int, int], int] = field(default_factory=dict)
    labelled_cells: Mapping[tuple[int, int, int], int] = field(default_factory=dict)
    moments: Mapping[str, Moments] = field(default_factory=dict)
    delays: Mapping[int, int] = field(default_factory=dict)

    @property
    def labels(self) -> int:
        cells = sum(self.labelled_cells.values())
        return max([cells, *(moments.count for moments in self.moments.values())])

    def __add__(self, other: LabelledCohort) -> LabelledCohort:
        start = min(self.start, other.start)
        end = max(self.start + self.seconds, other.start + other.seconds)
        moments = dict(self.moments)
        for name, value in other.moments.items():
            moments[name] = moments.get(name, Moments()) + value
        return LabelledCohort(
            start,
            end - start,
            self.answered + other.answered,
            _sum(self.answered_cells, other.answered_cells),
            _sum(self.labelled_cells, other.labelled_cells),
            moments,
            _sum(self.delays, other.delays),
        )

    def table(self) -> ScoreTable:
        """The labelled rows by score cell."""
        counts = np.zeros((CELLS, 2, 2))
        for (cell, predicted, actual), rows in self.labelled_cells.items():
            counts[cell, predicted, actual] += rows
        return ScoreTable(cell_scores(), counts)


def _sum(left: Mapping[K, int], right: Mapping[K, int]) -> dict[K, int]:
    total = dict(left)
    for key, value in right.items():
        total[key] = total.get(key, 0) + value
    return total


@dataclass(frozen=True, slots=True)
class RealisedMetric:
    """A realised metric of the last blocks, with its interval by the design effect; ``blocks`` are all of them."""

    metric: str
    value: float
    low: float
    high: float
    rows: int
    design_effect: float
    blocks: tuple[PerformanceBlock, ...]


def join_cohorts(cohorts: Sequence[LabelledCohort], min_labels: int) -> list[LabelledCohort]:
    """Consecutive cohorts joined until each has ``min_labels`` labels; what is left at the end waits."""
    joined: list[LabelledCohort] = []
    waiting: LabelledCohort | None = None
    for cohort in cohorts:
        waiting = cohort if waiting is None else waiting + cohort
        if waiting.labels >= min_labels:
            joined.append(waiting)
            waiting = None
    return joined


def realised_performance(metric: str, cohorts: Sequence[LabelledCohort], min_labels: int) -> RealisedMetric | None:
    """A metric of mature cohorts in the order of time; None while there are too few labels or it is not determined."""
    joined = join_cohorts(cohorts, max(min_labels, 1))
    blocks = _blocks(metric, joined)
    if not blocks:
        return None
    effect = design_effect(blocks)
    recent = joined[-1]
    for cohort in joined[-RECENT_BLOCKS:-1]:
        recent = cohort + recent
    block = cohort_block(metric, recent)
    if block is None:
        return None
    low, high = interval(metric, block.value, math.sqrt(block.variance * effect), CONFIDENCE)
    return RealisedMetric(metric, block.value, low, high, recent.labels, effect, tuple(blocks))


def _blocks(metric: str, joined: Sequence[LabelledCohort]) -> list[PerformanceBlock]:
    """The blocks of cohorts, with the variance of all rows together.

    A cohort's own variance would depend on its value (few errors, little variance), and evidence weighted by it would
    lean to one side.
    """
    blocks = [block for cohort in joined if (block := cohort_block(metric, cohort, variance=False)) is not None]
    if not blocks:
        return []
    whole = joined[0]
    for cohort in joined[1:]:
        whole = whole + cohort
    total = cohort_block(metric, whole)
    if total is None:
        return []
    return [replace(block, variance=total.variance * total.rows / block.rows) for block in blocks]


def cohort_block(metric: str, cohort: LabelledCohort, *, variance: bool = True) -> PerformanceBlock | None:
    """A metric of one cohort's labelled rows; None where these do not determine it. Without ``variance`` it is 0."""
    if metric in MOMENT_METRICS and metric in cohort.moments:
        return _moment_block(metric, cohort, cohort.moments[metric])
    if metric not in SCORE_METRICS or not cohort.labelled_cells:
        return None
    table = cohort.table()
    value = metric_value(metric, table)
    if not math.isfinite(value):
        return None
    share = trials(metric, table)
    counted = None if share is None else Share(share[1], share[1] - share[0])
    spread = sampling_variance(metric, coarsened(table, 60), table.rows) if variance else 0.0
    rows = table.rows if share is None else share[1]
    return PerformanceBlock(cohort.start, cohort.seconds, value, spread, rows, counted)


def _moment_block(metric: str, cohort: LabelledCohort, moments: Moments) -> PerformanceBlock | None:
    if moments.count < 2:
        return None
    share = Share(moments.count, moments.count - moments.total) if metric == "accuracy" else None
    if share is not None:
        rate = (share.hits + 2) / (share.count + 4)
        variance = rate * (1 - rate) / share.count
    else:
        variance = max(moments.squares - moments.total * moments.mean, 0.0) / (moments.count - 1) / moments.count
    return PerformanceBlock(cohort.start, cohort.seconds, moments.mean, variance, float(moments.count), share)
