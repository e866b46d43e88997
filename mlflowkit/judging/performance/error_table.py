"""Direct loss estimation of a regression: a table of expected absolute error by cells of its columns.

DLE (NannyML's documentation, "How it works: estimation of performance") fits a second model to the error of the first.
Here that model is additive over the cells that the monitor counts: the expected error of a row is the sum of one number
for each column's cell. Its mean over a window then depends on the window's counts alone, no row is needed, and it
follows exactly from figures that a person can read. What an interaction of columns does to the error it does not see;
the back-test does. Fitted by ridge regression on rows that the model was not fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlflowkit.judging.performance.estimated import CONFIDENCE, PerformanceEstimate
from mlflowkit.judging.performance.score_table import Array, interval
from mlflowkit.judging.shift.counts import Counts
from mlflowkit.values import Json

FORMAT = 1
ERROR_METRIC = "absolute_error"
BOOTSTRAPS, FOLDS = 100, 5
MIN_ROWS = 100
MAX_COLUMNS = 8
"""Columns of the table: those that explain most of the error."""
_RIDGE = 10.0
"""Rows' worth of shrinkage of each cell to the mean."""


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """Expected absolute error: ``level`` plus the ``effects`` of a row's cells, by column as in `ProfileCounts`.

    bootstrap    level and effects of fits to bootstrap samples, flat, in the order of the columns
    deviation    standard deviation of the absolute error about the table, as a multiple of the expected error
    estimated, realised, error   mean absolute error of held-out rows, and the standard error of the difference
    """

    rows: int
    level: float
    effects: Mapping[str, tuple[float, ...]]
    bootstrap: tuple[tuple[float, ...], ...]
    deviation: float
    estimated: float
    realised: float
    error: float

    @property
    def bias(self) -> float:
        """What estimates are too high by; subtracted from them."""
        return self.estimated - self.realised

    def to_json(self) -> Json:
        """The content of ``evidence/calibrator.json`` of a regression."""
        return {
            "format": FORMAT,
            "task": "regression",
            "kind": "additive table",
            "rows": self.rows,
            "level": self.level,
            "effects": {name: list(values) for name, values in self.effects.items()},
            "bootstrap": [list(line) for line in self.bootstrap],
            "deviation": self.deviation,
            "held_out": {
                ERROR_METRIC: {
                    "estimated": self.estimated, "realised": self.realised, "error": self.error, "bias": self.bias
                }
            },
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> ErrorTable:
        """The table that `to_json` returned. Raises KeyError, TypeError or ValueError for anything else."""
        if value["format"] != FORMAT or value["task"] != "regression":
            raise ValueError(f"format {value['format']!r} of an error table for {value['task']!r} is not known")
        effects = {str(name): tuple(map(float, values)) for name, values in value["effects"].items()}
        bootstrap = tuple(tuple(map(float, line)) for line in value["bootstrap"])
        size = 1 + sum(map(len, effects.values()))
        held_out = value["held_out"][ERROR_METRIC]
        numbers = [float(held_out[name]) for name in ("estimated", "realised", "error")]
        table = cls(int(value["rows"]), float(value["level"]), effects, bootstrap, float(value["deviation"]), *numbers)
        every = [table.level, table.deviation, *numbers, *(x for line in (*effects.values(), *bootstrap) for x in line)]
        if any(len(line) != size for line in bootstrap) or not all(map(math.isfinite, every)):
            raise ValueError("the numbers of an error table do not fit")
        return table


def fit_error_table(
    codes: Mapping[str, NDArray[np.int64]], sizes: Mapping[str, int], errors: Array
) -> ErrorTable | None:
    """A table of absolute errors [n] by the cell codes [n] of each column; ``sizes`` is the number of its cells.

    None for fewer than `MIN_ROWS` rows, or errors that do not vary. Deterministic.
    """
    rows = len(errors)
    if rows < MIN_ROWS or not np.isfinite(errors).all() or not float(errors.std()) > 0:
        return None
    names = _strongest(codes, sizes, errors)
    design = _design([codes[name] for name in names], [sizes[name] for name in names])
    folds = np.random.default_rng(1).permutation(rows) % FOLDS
    held_out = np.empty(rows)
    for fold in range(FOLDS):
        inside = folds == fold
        held_out[inside] = design[inside] @ _ridge(design[~inside], errors[~inside], np.ones(int((~inside).sum())))
    weights = _ridge(design, errors, np.ones(rows))
    random = np.random.default_rng(0)
    lines = [
        _ridge(design, errors, random.multinomial(rows, np.full(rows, 1 / rows)).astype(float))
        for _ in range(BOOTSTRAPS)
    ]
    ends = np.cumsum([1, *(sizes[name] for name in names)])
    flat = [_round(weights), *map(_round, lines)]
    effects = {name: flat[0][start:end] for name, start, end in zip(names, ends[:-1], ends[1:], strict=True)}
    residuals = errors - held_out
    deviation = float(residuals.std()) / float(errors.mean())
    figures = (deviation, float(held_out.mean()), float(errors.mean()), float(residuals.std()) / math.sqrt(rows))
    return ErrorTable(rows, flat[0][0], effects, tuple(flat[1:]), *(float(f"{x:.6g}") for x in figures))


def _round(weights: Array) -> tuple[float, ...]:
    return tuple(float(f"{x:.5g}") for x in weights)


def _strongest(codes: Mapping[str, NDArray[np.int64]], sizes: Mapping[str, int], errors: Array) -> list[str]:
    """The columns whose cells explain most of the error, at most `MAX_COLUMNS`, by the shrunken variance of means."""
    gains = {}
    for name, code in codes.items():
        counts = np.bincount(code, minlength=sizes[name])
        means = np.bincount(code, weights=errors - errors.mean(), minlength=sizes[name]) / (counts + _RIDGE)
        spread = float(errors.var()) * np.count_nonzero(counts)
        gains[name] = float((counts * means**2).sum()) - spread
    order = sorted(gains, key=lambda name: (-gains[name], name))
    return [name for name in order if gains[name] > 0][:MAX_COLUMNS] or order[:1]


def _design(codes: list[NDArray[np.int64]], sizes: list[int]) -> Array:
    columns = [np.ones((len(codes[0]), 1)), *(np.eye(size)[code] for code, size in zip(codes, sizes, strict=True))]
    return np.concatenate(columns, axis=1)


def _ridge(design: Array, errors: Array, weights: Array) -> Array:
    weighted = design * weights[:, None]
    penalty = np.full(design.shape[1], _RIDGE)
    penalty[0] = 1e-9
    solved: Array = np.asarray(np.linalg.solve(weighted.T @ design + np.diag(penalty), weighted.T @ errors), float)
    return solved


def estimate_error(
    table: ErrorTable, counts: Mapping[str, Counts], effective: float, confidence: float = CONFIDENCE
) -> PerformanceEstimate | None:
    """The mean absolute error to be expected of a window, by its counts of each column; None without rows.

    Raises ValueError where a column of the table was not counted, or in other cells.
    """
    shares = [np.ones(1)]
    rows = 0.0
    for name, effects in table.effects.items():
        if len(counts.get(name, ())) != len(effects):
            raise ValueError(f"column {name} of the error table was not counted in its cells")
        rows = float(sum(counts[name]))
        if not rows:
            return None
        shares.append(np.array(counts[name], dtype=float) / rows)
    if effective <= 0:
        return None
    mean = np.concatenate(shares)
    flat = np.array([table.level, *(x for effects in table.effects.values() for x in effects)])
    value = max(float(mean @ flat) - table.bias, 0.0)
    spread = float((np.array(table.bootstrap) @ mean).std()) if table.bootstrap else 0.0
    sampling = table.deviation * value / math.sqrt(effective)
    systematic = math.hypot(spread, table.error)
    low, high = interval(ERROR_METRIC, value, math.hypot(sampling, systematic), confidence)
    return PerformanceEstimate(ERROR_METRIC, value, low, high, sampling, systematic, rows, effective, spread)
