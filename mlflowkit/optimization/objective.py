"""What a candidate is measured by: the ratio of two in an objective, with its interval; smaller is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mlflowkit.bench import analysis

if TYPE_CHECKING:
    import numpy as np

Objective = Literal["latency_p50", "latency_p95", "latency_p99", "throughput", "size", "memory", "cost"]
Bounds = tuple[float, float]

NOUNS: Mapping[str, str] = {"throughput": "time a row", "size": "size", "memory": "peak memory", "cost": "cost"}
"""What is compared where it is no quantile of latency."""
FINE_US = 1e-3
"""Where a ratio of nothing to nothing is asked: a thousandth of a microsecond, a thousandth of a byte."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What was found out about one candidate. ``microseconds`` is float64 [blocks, requests of a block]."""

    microseconds: np.ndarray
    size_bytes: int | None = None
    memory_bytes: int | None = None


def quantile_of(objective: str) -> str:
    """The quantile of latency that an objective goes by; of one that goes by none, the 99th percentile.

    >>> quantile_of("latency_p50"), quantile_of("size")
    ('latency_p50', 'latency_p99')
    """
    return objective if objective in analysis.QUANTILES else "latency_p99"


def timed(objective: str) -> bool:
    """Whether an objective is made of times."""
    return objective in analysis.QUANTILES or objective in ("throughput", "cost")


def ratio(objective: str, later: Figures, earlier: Figures, *, confidence: float) -> Bounds:
    """Interval of the later candidate's objective over the earlier one's, paired by block; below 1 it is better.

    Cost and throughput go by the mean time of a request (a machine's hour has its price, whatever is asked of it);
    size and memory were measured once, and their interval has no width.
    """
    if objective in analysis.QUANTILES:
        q = analysis.QUANTILES[objective]
        return analysis.ratio_interval(later.microseconds, earlier.microseconds, q, confidence=confidence)
    if objective in ("throughput", "cost"):
        return analysis.mean_ratio_interval(later.microseconds, earlier.microseconds, confidence=confidence)
    one = later.size_bytes if objective == "size" else later.memory_bytes
    other = earlier.size_bytes if objective == "size" else earlier.memory_bytes
    if one is None or other is None:
        return (float("-inf"), float("inf"))
    value = max(one, FINE_US) / max(other, FINE_US)
    return value, value


def cost_of_a_million(microseconds: np.ndarray, batch: int, cost_per_hour: float) -> float:
    """What a million rows cost, asked one request after another.

    >>> import numpy as np
    >>> round(cost_of_a_million(np.full((4, 50), 3600.0), 1, 2.0), 6)
    2.0
    """
    return float(microseconds.mean()) / batch * cost_per_hour / 3600.0
