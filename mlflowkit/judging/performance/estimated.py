"""Performance without labels: of a classifier by its calibrated scores, of a regression by a model of its error.

**CBPE**, confidence-based performance estimation (NannyML's documentation, "How it works: estimation of performance";
https://github.com/NannyML/nannyml/blob/main/docs/how_it_works/performance_estimation.rst): a row whose calibrated
probability is p counts as p of a positive and 1 - p of a negative one, so a window of scores has an expected confusion
matrix, and each metric follows from it. It assumes that the outcome's distribution *given the row* is what it was:
inputs may shift, the concept may not.

Unlike the source, the held-out bias of the model's own estimates is subtracted, and the band has three parts: which
outcomes the window's rows will have (``sampling``, from effective rows), how well the curve is known (``calibration``,
from bootstrap fits) and how well the bias is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mlflowkit.judging.performance.calibrator import Calibrator, expected_counts
from mlflowkit.judging.performance.score_table import (
    Array,
    ScoreTable,
    coarsened,
    interval,
    metric_values,
    sampling_variance,
)
from mlflowkit.judging.shift.counts import Counts

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class PerformanceEstimate:
    """An estimated metric with its band at `CONFIDENCE`, for a realised metric of as many rows.

    ``sampling`` is the standard error that more rows would shrink, ``systematic`` the one that they would not, and
    ``drift_error`` that of the difference from the estimate on the reference rows, in which much of it cancels.
    """

    metric: str
    value: float
    low: float
    high: float
    sampling: float
    systematic: float
    rows: float
    effective: float
    drift_error: float = 0.0


def score_table_of(counts: Counts, calibrator: Calibrator) -> ScoreTable:
    """Rows by cell of ``output.score``, as the monitor counts them, as a table with predicted labels only.

    The rows stand in both columns of ``actual`` halved, as nothing is known of them. Raises ValueError where the counts
    are not of the calibrator's cells.
    """
    if len(counts) != len(calibrator.centres) + 1:
        raise ValueError("the calibrator of this version is for other cells of the score than were counted")
    rows, positive = np.array(counts[:-1], dtype=float), np.array(calibrator.labelled)
    by_label = np.stack([rows * (1 - positive), rows * positive], axis=1)
    return ScoreTable(np.array(calibrator.centres), np.stack([by_label / 2, by_label / 2], axis=2))


def estimate_score_metric(
    metric: str, table: ScoreTable, calibrator: Calibrator, effective: float, confidence: float = CONFIDENCE
) -> PerformanceEstimate | None:
    """The metric that is to be expected of a table's rows, whatever their labels; None where it is not determined.

    ``effective`` is the number of independent rows that the table is worth.
    """
    if table.rows <= 0 or effective <= 0 or metric not in calibrator.held_out:
        return None
    expected = expected_counts(table.counts.sum(2), calibrator.probabilities(table.scores))
    values = metric_values(metric, table.scores, expected)
    bias = calibrator.held_out[metric]
    value = float(values[0]) - bias.bias
    others = values[1:][np.isfinite(values[1:])]
    if not math.isfinite(value) or len(others) < len(values) / 2:
        return None
    variance = sampling_variance(metric, coarsened(ScoreTable(table.scores, expected[0]), 60), effective)
    systematic = math.hypot(float(others.std()), bias.error)
    if not math.isfinite(variance):
        return None
    value = max(value, 0.0) if metric == "log_loss" else min(max(value, 0.0), 1.0)
    low, high = interval(metric, value, math.sqrt(variance + systematic**2), confidence)
    errors = math.sqrt(variance), systematic
    drift_error = _drift_error(metric, values, calibrator)
    return PerformanceEstimate(metric, value, low, high, *errors, table.rows, effective, drift_error)


def expected_metric(metric: str, table: ScoreTable, calibrator: Calibrator) -> tuple[float, float] | None:
    """The estimate without its band, and the variance of what will be realised; None where it is not determined.

    The variance is that of the expected labels, not of those that came: the latter's would depend on the metric's
    realised value, and weights made of it would lean to one side.
    """
    if metric not in calibrator.held_out or table.rows <= 0:
        return None
    expected = expected_counts(table.counts.sum(2), calibrator.probabilities(table.scores, bootstrap=False)[0])
    value = float(metric_values(metric, table.scores, expected)) - calibrator.held_out[metric].bias
    variance = sampling_variance(metric, coarsened(ScoreTable(table.scores, expected), 60), table.rows)
    return (value, variance) if math.isfinite(value) and math.isfinite(variance) else None


def _drift_error(metric: str, values: Array, calibrator: Calibrator) -> float:
    """Standard deviation, over bootstrap curves, of the estimate minus that on the calibrator's own rows."""
    knots = np.array(calibrator.knots)
    expected = expected_counts(np.array(calibrator.weights), calibrator.probabilities(knots))
    differences = (values - metric_values(metric, knots, expected))[1:]
    return float(differences[np.isfinite(differences)].std())
