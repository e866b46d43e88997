"""The calibrator of a binary classifier: from its score to the probability of the positive class, with its uncertainty.

Fitted on rows that the model was not fitted to. ``evidence/calibrator.json`` of a bundle holds its curve, curves fitted
to bootstrap samples of the same rows, and how far estimates by it were from the realised metrics of held-out rows.
Isotonic regression (Zadrozny & Elkan, KDD 2002) from 1,000 rows on, below Platt's logistic curve (Platt, 1999).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mlflowkit.judging.performance.score_table import (
    SCORE_METRICS,
    Array,
    coarsened,
    metric_value,
    metric_values,
    sampling_variance,
    table_of_rows,
)
from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.values import Json

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1
EVIDENCE = "evidence/calibrator.json"
KNOTS, BOOTSTRAPS, FOLDS, GROUPS = 50, 200, 5, 400
MIN_ISOTONIC_ROWS = 1000
MIN_POSITIVES = 10
"""Rows of each class below which no calibrator is fitted."""
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class HeldOutBias:
    """A metric estimated and realised on the same held-out rows; ``error`` is the standard error of the difference."""

    estimated: float
    realised: float
    error: float

    @property
    def bias(self) -> float:
        """What estimates are too high by; subtracted from them."""
        return self.estimated - self.realised


@dataclass(frozen=True, slots=True)
class Calibrator:
    """Curves over ``knots`` (ascending scores), straight in between on the log-odds scale of the score.

    curve      probability of the positive class at each knot
    bootstrap  the same, of fits to bootstrap samples of the rows
    held_out   by metric
    weights    rows at each knot by predicted class
    cells      the reference's cells of ``output.score``, with the mean score (``centres``) and the share of rows that
               are labelled positive in each but (missing); None where there is no such reference
    """

    kind: str
    rows: int
    positives: int
    knots: tuple[float, ...]
    curve: tuple[float, ...]
    bootstrap: tuple[tuple[float, ...], ...]
    held_out: Mapping[str, HeldOutBias] = field(default_factory=dict)
    cells: Cells | None = None
    centres: tuple[float, ...] = ()
    labelled: tuple[float, ...] = ()
    weights: tuple[tuple[float, float], ...] = ()

    def probabilities(self, scores: Array, *, bootstrap: bool = True) -> Array:
        """The curve's probabilities at scores [K], and those of each bootstrap curve: [1 + B, K]."""
        at, knots = _log_odds(scores), _log_odds(np.array(self.knots))
        return np.stack([np.interp(at, knots, curve) for curve in (self.curve, *(self.bootstrap if bootstrap else ()))])

    def to_json(self) -> Json:
        """The content of ``evidence/calibrator.json``: the same bytes for the same rows."""
        return {
            "format": FORMAT,
            "task": "classification",
            "kind": self.kind,
            "rows": self.rows,
            "positives": self.positives,
            "knots": list(self.knots),
            "curve": list(self.curve),
            "bootstrap": [list(curve) for curve in self.bootstrap],
            "held_out": {
                name: {"estimated": bias.estimated, "realised": bias.realised, "error": bias.error, "bias": bias.bias}
                for name, bias in self.held_out.items()
            },
            "cells": None if self.cells is None else self.cells.to_json(),
            "centres": list(self.centres),
            "labelled": list(self.labelled),
            "weights": [list(pair) for pair in self.weights],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Calibrator:
        """The calibrator that `to_json` returned. Raises KeyError, TypeError or ValueError for anything else."""
        if value["format"] != FORMAT or value["task"] != "classification":
            raise ValueError(f"format {value['format']!r} of a calibrator for {value['task']!r} is not known")
        knots, curve = (_finite(value[name]) for name in ("knots", "curve"))
        bootstrap = tuple(_finite(line) for line in value["bootstrap"])
        if (
            not knots
            or sorted(set(knots)) != list(knots)
            or any(len(line) != len(knots) for line in (curve, *bootstrap))
        ):
            raise ValueError("the knots of a calibrator must ascend, and each curve must have a value for each")
        held_out = {
            str(name): HeldOutBias(*_finite([bias["estimated"], bias["realised"], bias["error"]]))
            for name, bias in value["held_out"].items()
        }
        cells = None if value["cells"] is None else Cells.from_json(value["cells"])
        centres, labelled = _finite(value["centres"]), _finite(value["labelled"])
        if cells is not None and not len(centres) == len(labelled) == len(cells.names) - 1:
            raise ValueError("the centres and the cells of a calibrator do not fit")
        counts = int(value["rows"]), int(value["positives"])
        weights = tuple((float(first), float(second)) for first, second in value["weights"])
        if len(weights) != len(knots):
            raise ValueError("the rows and the knots of a calibrator do not fit")
        return cls(str(value["kind"]), *counts, knots, curve, bootstrap, held_out, cells, centres, labelled, weights)


def fit_calibrator(
    scores: Array,
    predicted: NDArray[np.int64],
    actual: NDArray[np.int64],
    cells: Cells | None = None,
    codes: NDArray[np.int64] | None = None,
    times: NDArray[np.int64] | None = None,
) -> Calibrator | None:
    """A calibrator of rows that the model was not fitted to; ``predicted`` and ``actual`` are 0 or 1.

    ``codes`` are the rows' cells of ``cells``. ``times``, the rows' places in time, make the held-out parts consecutive
    ones, so that their bias is also that of a changing time.

    None with fewer than `MIN_POSITIVES` rows of either class. Deterministic.
    """
    positives = int(actual.sum())
    if min(positives, len(actual) - positives) < MIN_POSITIVES or len(np.unique(scores)) < 2:
        return None
    kind = "isotonic" if len(actual) >= MIN_ISOTONIC_ROWS else "platt"
    knots, curve, bootstrap = _curves(scores, actual, kind, BOOTSTRAPS)
    held_out = _held_out(scores, predicted, actual, kind, _folds(len(actual), times))
    known = cells is not None and codes is not None and cells.edges
    centres, labelled = _centres(scores, predicted, cells, codes) if known else ((), ())  # type: ignore[arg-type]
    cells = cells if known else None
    numbers = len(actual), positives
    nearest = np.abs(_log_odds(scores)[:, None] - _log_odds(np.array(knots))[None]).argmin(axis=1)
    rows = [np.bincount(nearest[predicted == label], minlength=len(knots)).tolist() for label in (0, 1)]
    weights = tuple((float(first), float(second)) for first, second in zip(*rows, strict=True))
    return Calibrator(kind, *numbers, knots, curve, bootstrap, held_out, cells, centres, labelled, weights)


def _log_odds(scores: Array) -> Array:
    clipped = np.clip(scores, 1e-7, 1 - 1e-7)
    odds: Array = np.log(clipped / (1 - clipped))
    return odds


def _curves(
    scores: Array, actual: NDArray[np.int64], kind: str, bootstraps: int
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Knots, the curve, and the curves of bootstrap samples: rows in at most `GROUPS` groups of alike scores."""
    groups = _groups(scores, GROUPS)
    sizes = np.bincount(groups).astype(float)
    means = np.bincount(groups, weights=scores) / sizes
    positive = np.bincount(groups, weights=actual)
    counts = np.stack([sizes - positive, positive])
    knots = _groups(means, KNOTS, sizes)
    places = np.bincount(knots, weights=means * sizes) / np.bincount(knots, weights=sizes)
    random = np.random.default_rng(0)
    resampled = random.multinomial(len(actual), (counts / counts.sum()).ravel(), size=bootstraps)
    lines = []
    for sample in (counts, *resampled.reshape(bootstraps, *counts.shape).astype(float)):
        fitted = _fit(means, sample, kind)
        line = np.bincount(knots, weights=fitted * sizes) / np.bincount(knots, weights=sizes)
        lines.append(tuple(float(f"{number:.4g}") for number in np.clip(line, 0.0, 1.0)))
    return tuple(float(f"{place:.9g}") for place in places), lines[0], tuple(lines[1:])


def _groups(values: Array, number: int, weights: Array | None = None) -> NDArray[np.int64]:
    """The group of each value: ``number`` or fewer groups of consecutive distinct values, of about the same weight."""
    unique, codes = np.unique(values, return_inverse=True)
    sizes = np.bincount(codes, weights=weights, minlength=len(unique)).astype(float)
    middle = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    steps = np.floor(middle * number).astype(np.int64)
    dense: NDArray[np.int64] = np.unique(steps, return_inverse=True)[1][codes].astype(np.int64)
    return dense


def _fit(scores: Array, counts: Array, kind: str) -> Array:
    """The fitted probability of each group; ``counts`` [2, groups] of the two classes."""
    sizes = counts.sum(0)
    if kind == "isotonic":
        from scipy.optimize import isotonic_regression

        used = sizes > 0
        steps = isotonic_regression(counts[1, used] / sizes[used], weights=sizes[used]).x
        fitted: Array = np.interp(scores, scores[used], steps)
        return fitted
    return _fit_platt(_log_odds(scores), counts)


def _fit_platt(at: Array, counts: Array) -> Array:
    """Platt's curve 1 / (1 + exp(-(a + b x))) by Newton's method, with his targets, which keep it finite."""
    negatives, positives = counts.sum(1)
    high, low = (positives + 1) / (positives + 2), 1 / (negatives + 2)
    sizes, target = counts.sum(0), counts[1] * high + counts[0] * low
    design = np.stack([np.ones_like(at), at], axis=1)
    weights = np.array([math.log((positives + 1) / (negatives + 1)), 0.0])
    for _ in range(50):
        probability = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        slope = sizes * probability * (1 - probability)
        hessian = design.T @ (design * slope[:, None]) + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, design.T @ (target - sizes * probability) - 1e-6 * weights)
        weights = weights + step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
        if float(np.abs(step).max()) < 1e-9:
            break
    fitted: Array = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
    return fitted


def _folds(rows: int, times: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The held-out part of each row: `FOLDS` random ones, or consecutive ones in time."""
    order = np.random.default_rng(1).permutation(rows) if times is None else np.argsort(times, kind="stable")
    folds = np.empty(rows, dtype=np.int64)
    folds[order] = np.arange(rows) * FOLDS // rows
    return folds


def _held_out(
    scores: Array, predicted: NDArray[np.int64], actual: NDArray[np.int64], kind: str, folds: NDArray[np.int64]
) -> dict[str, HeldOutBias]:
    """Estimates of each fold's rows by a curve of the other folds, and the realised metrics, averaged over folds."""
    parts: dict[str, list[tuple[float, float]]] = {name: [] for name in SCORE_METRICS}
    for fold in range(FOLDS):
        rows, others = folds == fold, folds != fold
        if not 0 < actual[others].sum() < others.sum() or not 0 < actual[rows].sum() < rows.sum():
            continue
        knots, curve, _ = _curves(scores[others], actual[others], kind, 0)
        table = table_of_rows(scores[rows], predicted[rows], actual[rows])
        probabilities = np.interp(_log_odds(table.scores), _log_odds(np.array(knots)), np.array(curve))
        expected = expected_counts(table.counts.sum(2), probabilities)
        for name in SCORE_METRICS:
            parts[name].append((float(metric_values(name, table.scores, expected)), metric_value(name, table)))
    whole = coarsened(table_of_rows(scores, predicted, actual))
    result = {}
    for name, pairs in parts.items():
        finite = [pair for pair in pairs if all(map(math.isfinite, pair))]
        if finite:
            estimated, realised = (round(float(np.mean(column)), _DIGITS) for column in zip(*finite, strict=True))
            variance = sampling_variance(name, whole, whole.rows)
            if math.isfinite(variance):
                between = float(np.std([first - second for first, second in finite])) / math.sqrt(len(finite))
                result[name] = HeldOutBias(estimated, realised, round(max(math.sqrt(variance), between), _DIGITS))
    return result


def expected_counts(rows: Array, probabilities: Array) -> Array:
    """Expected rows by class: ``rows`` [K, predicted] and ``probabilities`` [..., K] to [..., K, predicted, actual]."""
    chance = probabilities[..., None]
    counts: Array = np.stack([rows * (1 - chance), rows * chance], axis=-1)
    return counts


def _centres(
    scores: Array, predicted: NDArray[np.int64], cells: Cells, codes: NDArray[np.int64]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean score of each cell but (missing), and the share of its rows that are labelled positive.

    A cell without rows takes the middle of its edges, and the label of the nearest cell.
    """
    names = len(cells.names) - 1
    ends = np.clip([0.0, *(cells.edges if len(cells.edges) > 1 else cells.edges * 2), 1.0], 0.0, 1.0)
    middles = [(low + high) / 2 for low, high in pairwise(ends)]
    sizes = np.bincount(codes, minlength=names)[:names]
    sums = np.bincount(codes, weights=scores, minlength=names)[:names]
    labels = np.bincount(codes, weights=predicted, minlength=names)[:names]
    used = np.flatnonzero(sizes)
    nearest = [int(used[np.abs(used - cell).argmin()]) for cell in range(names)]
    centres = [sums[cell] / sizes[cell] if sizes[cell] else middles[cell] for cell in range(names)]
    labelled = [labels[near] / sizes[near] for near in nearest]
    return tuple(float(f"{x:.9g}") for x in np.clip(centres, 0, 1)), tuple(round(float(x), _DIGITS) for x in labelled)


def _finite(values: Sequence[Json]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not all(map(math.isfinite, numbers)):
        raise ValueError("NaN or infinity in a calibrator")
    return numbers
