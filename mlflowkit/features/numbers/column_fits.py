"""Fits one column on its training rows: fill, centre, scale and curve of a number, frequencies of categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd

from mlflowkit.errors import UsageError
from mlflowkit.features.numbers.number_curves import NumberCurve, apply_curve, fit_rank


class ColumnNames(Protocol):
    """Names of the feature columns; see `mlflowkit.features.preprocess.Features`."""

    @property
    def numeric(self) -> tuple[str, ...]: ...
    @property
    def categorical(self) -> tuple[str, ...]: ...
    @property
    def offsets(self) -> tuple[float, ...]: ...


@dataclass(frozen=True, slots=True)
class FittedNumber:
    """``fill``, ``center`` and ``scale`` of a column, and its curve."""

    parameters: tuple[float, float, float]
    curve: NumberCurve | None = None


def own_settings(section: Any, names: ColumnNames) -> dict[int, Any]:
    """The stages.train.NumberSettings of numeric columns that have some, by index.

    Raises UsageError for a column that is not numeric, and for the logarithm of numbers that float32 does not hold.
    """
    own = getattr(section, "numeric", {})
    for name, setting in own.items():
        if name not in names.numeric:
            hint = f"write data.columns: {{{name}: numeric}}, or remove preprocess.numeric.{name}"
            raise UsageError(f"preprocess.numeric.{name}: {name!r} is no column of numbers", hint=hint)
        if setting.scale == "log" and names.offsets and names.offsets[names.numeric.index(name)]:
            message = (
                f"preprocess.numeric.{name}: float32 does not hold {name!r}, which is centred before the logarithm"
            )
            raise UsageError(message, hint=f"preprocess.numeric.{name}.scale=quantile")
    return {names.numeric.index(name): setting for name, setting in own.items()}


def fit_number(column: int, values: np.ndarray, section: Any, own: Any) -> FittedNumber:
    """Fit a column by the settings of all columns, and its ``own`` where there are some. A missing value is NaN.

    A constant column is only centred; a column without values becomes 0.
    """
    present = values[~np.isnan(values)].astype(np.float64)
    if not present.size:
        return FittedNumber((0.0, 0.0, 1.0))
    fill = _fill(present, (own and own.impute) or section.impute)
    scale = (own and own.scale) or section.scale
    filled = np.append(present, np.full(len(values) - len(present), fill))
    if scale == "quantile":
        return FittedNumber((fill, 0.0, 1.0), fit_rank(column, filled, own.knots))
    if scale == "log":
        curve = NumberCurve(column, "log")
        center, spread = _spread(apply_curve(filled, curve), "standard")
        return FittedNumber((fill, center, spread), curve)
    return FittedNumber((fill, *_spread(filled, scale)))


def _fill(present: np.ndarray, impute: str) -> float:
    """What stands for a missing number, in float32."""
    if impute == "most_frequent":
        uniques, counts = np.unique(present, return_counts=True)
        return float(np.float32(uniques[counts.argmax()]))
    return float(np.float32(np.median(present) if impute == "median" else np.mean(present)))


def _spread(values: np.ndarray, scale: str) -> tuple[float, float]:
    """What is subtracted from numbers, and what they are divided by then."""
    if scale == "none":
        return 0.0, 1.0
    if scale == "minmax":
        return float(values.min()), _divisor(float(np.ptp(values)))
    if scale == "robust":
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        return middle, _divisor(high - low)
    return float(values.mean()), _divisor(float(values.std()) if np.ptp(values) else 0.0)


def _divisor(spread: float) -> float:
    """The spread clamped to float32's range; 1 for a column that is constant in float32."""
    limits = np.finfo(np.float32)
    return min(spread, float(limits.max)) if spread >= float(limits.tiny) else 1.0


def category_limits(section: Any, names: ColumnNames, columns: int) -> list[int]:
    """How many categories each categorical column may have. Raises UsageError for a column that is not categorical."""
    own = getattr(section, "categorical", {})
    for name in own:
        if name not in names.categorical:
            hint = f"write data.columns: {{{name}: categorical}}, or remove preprocess.categorical.{name}"
            raise UsageError(f"preprocess.categorical.{name}: {name!r} is no column of categories", hint=hint)
    limits = [section.max_categories] * columns
    for name, setting in own.items():
        limits[names.categorical.index(name)] = setting.limit or section.max_categories
    return limits


def fit_frequencies(
    texts: np.ndarray, categories: Sequence[Sequence[str]], section: Any, names: ColumnNames
) -> tuple[tuple[float, ...], ...]:
    """The numbers of the categorical columns that are encoded by frequency, () for others; () if there is none.

    A category's number is its share of the training rows, 0 for a value that is not kept, scaled as numbers are.
    """
    own: Mapping[str, Any] = getattr(section, "categorical", {})
    chosen = {names.categorical.index(name) for name, setting in own.items() if setting.encode == "frequency"}
    if not chosen:
        return ()
    return tuple(
        _frequencies(texts[:, index], kept, section.scale) if index in chosen else ()
        for index, kept in enumerate(categories)
    )


def _frequencies(values: np.ndarray, kept: Sequence[str], scale: str) -> tuple[float, ...]:
    codes = pd.Index(tuple(kept), dtype=object).get_indexer(pd.Index(values, dtype=object))
    counts = np.bincount(codes + 1, minlength=len(kept) + 1)
    shares = np.append(counts[1:], 0) / len(values)
    center, spread = _spread(shares[codes], scale)
    scaled = (shares.astype(np.float32) - np.float32(center)) / np.float32(spread)
    return tuple(scaled.tolist())
