"""Objectives of candidates: the ratio of two candidates in an objective, with its interval; smaller is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mlflowkit.bench import analysis
from mlflowkit.optimization.pareto import Bounds as Bounds

if TYPE_CHECKING:
    import numpy as np

Objective = Literal["latency_p50", "latency_p95", "latency_p99", "throughput", "size", "memory", "cost"]

NOUNS: Mapping[str, str] = {"throughput": "time a row", "size": "size", "memory": "peak memory", "cost": "cost"}
"""The compared quantity of objectives that are no latency quantile."""
SMALLEST = 1e-3
"""Least size or memory in a ratio, in bytes, so that zero can be divided by."""


@dataclass(frozen=True, slots=True)
class CandidateFigures:
    """Measurements of one candidate. ``microseconds`` is float64 [blocks, requests of a block]."""

    microseconds: np.ndarray
    size_bytes: int | None = None
    memory_bytes: int | None = None


def quantile_of(objective: str) -> str:
    """The latency quantile of an objective; the 99th percentile for objectives without one.

    >>> quantile_of("latency_p50"), quantile_of("size")
    ('latency_p50', 'latency_p99')
    """
    return objective if objective in analysis.QUANTILES else "latency_p99"


def is_time_based(objective: str) -> bool:
    """Whether an objective is computed from request times."""
    return objective in analysis.QUANTILES or objective in ("throughput", "cost")


def ratio(objective: str, later: CandidateFigures, earlier: CandidateFigures, *, confidence: float) -> Bounds:
    """Interval of the later candidate's objective over the earlier one's, paired by block; below 1 it is better.

    Cost and throughput use the mean time of a request (a machine's hour has a fixed price); size and memory are
    measured once, and their interval has no width.
    """
    if objective in analysis.QUANTILES:
        quantile = analysis.QUANTILES[objective]
        return analysis.ratio_interval(later.microseconds, earlier.microseconds, quantile, confidence=confidence)
    if objective in ("throughput", "cost"):
        return analysis.mean_ratio_interval(later.microseconds, earlier.microseconds, confidence=confidence)
    ours, theirs = (figures.size_bytes if objective == "size" else figures.memory_bytes for figures in (later, earlier))
    if ours is None or theirs is None:
        return (float("-inf"), float("inf"))
    value = max(ours, SMALLEST) / max(theirs, SMALLEST)
    return value, value


def cost_of_a_million(microseconds: np.ndarray, batch: int, cost_per_hour: float) -> float:
    """Cost of a million rows in sequential requests.

    >>> import numpy as np
    >>> round(cost_of_a_million(np.full((4, 50), 3600.0), 1, 2.0), 6)
    2.0
    """
    return float(microseconds.mean()) / batch * cost_per_hour / 3600.0
