"""Curves that numbers pass before they are standardised: the logarithm, and the rank among the training rows.

The graph repeats them in double precision, and rounds to float32: the rank bit for bit; of the logarithm two libraries
may differ in the last bit of a double, which reaches the last bit of about one float32 number in 10**8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class NumberCurve:
    """The curve of the numeric column ``column`` (its index).

    log        sign(x) * log(1 + |x|)
    quantile   straight lines between ``knots`` (ascending, float32), where it has the ``levels`` 0 to 1; flat beyond
    """

    column: int
    kind: Literal["log", "quantile"]
    knots: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()


def fit_rank(column: int, values: np.ndarray, knots: int) -> NumberCurve:
    """The share of training values below, by at most ``knots`` straight lines.

    Knots are quantiles of the values in float32; a value that holds several of them has the middle of their levels.

    >>> curve = fit_rank(0, np.array([0.0, 0.0, 0.0, 10.0, 1000.0]), 5)
    >>> curve.knots, curve.levels
    ((0.0, 10.0, 1000.0), (0.25, 0.75, 1.0))
    >>> apply_curve(np.array([-1, 0, 5, 1e9], np.float32), curve).tolist()
    [0.25, 0.25, 0.5, 1.0]
    """
    levels = np.linspace(0, 1, knots)
    quantiles = np.quantile(values.astype(np.float64), levels).astype(np.float32)
    distinct, codes, counts = np.unique(quantiles, return_inverse=True, return_counts=True)
    heights = np.bincount(codes, weights=levels) / counts
    return NumberCurve(column, "quantile", tuple(distinct.tolist()), tuple(heights.astype(np.float32).tolist()))


def rank_pieces(curve: NumberCurve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, height and slope of the pieces of a rank, float64: of what is below the first knot and of what follows
    each. The first and the last are flat."""
    knots, levels = np.array(curve.knots), np.array(curve.levels)
    slopes = np.append(np.diff(levels) / np.diff(knots), 0.0)
    return np.append(knots[0], knots), np.append(levels[0], levels), np.append(0.0, slopes)


def apply_curve(values: np.ndarray, curve: NumberCurve) -> np.ndarray:
    """A column without missing values, float32 or float64 [rows], after its curve; of the same type."""
    wide = values.astype(np.float64)
    if curve.kind == "log":
        curved = np.sign(wide) * np.log(np.abs(wide) + 1.0)
    else:
        inside = np.clip(wide, curve.knots[0], curve.knots[-1])
        piece = np.searchsorted(np.array(curve.knots), inside, side="right")
        starts, heights, slopes = (part[piece] for part in rank_pieces(curve))
        curved = (inside - starts) * slopes + heights
    result: np.ndarray = curved.astype(values.dtype)
    return result


def apply_curves(matrix: np.ndarray, curves: Sequence[NumberCurve]) -> np.ndarray:
    """A matrix whose columns have passed their curves; the same one where there are none."""
    if not curves:
        return matrix
    curved: Any = matrix.copy()
    for curve in curves:
        curved[:, curve.column] = apply_curve(matrix[:, curve.column], curve)
    return np.asarray(curved)
