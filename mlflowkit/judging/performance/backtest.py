"""What estimates of performance are worth: as labels mature, estimated minus realised on the same rows, by cohort.

The mean difference has a confidence sequence (valid at every look), widened by how much cohorts differ beyond chance.
TRUSTED: surely within the tolerance; BIASED: surely beyond it, with sign and size; UNKNOWN: neither yet. Only a TRUSTED
estimate may act.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlflowkit.judging.online.sequential import Stratum, mean_radius, pool

Trust = Literal["TRUSTED", "BIASED", "UNKNOWN"]
LEVEL = 0.05
MIN_COHORTS = 3
_SCALE = 0.09


@dataclass(frozen=True, slots=True)
class EstimateError:
    """Estimated minus realised metric of one cohort, and its variance."""

    start: float
    difference: float
    variance: float
    labels: int


@dataclass(frozen=True, slots=True)
class BackTest:
    """``bias`` is the mean of estimated minus realised, with its confidence sequence; None before any label."""

    trust: Trust
    bias: float | None
    low: float | None
    high: float | None
    tolerance: float
    labels: int
    cohorts: int

    @property
    def message(self) -> str:
        """One sentence with the numbers."""
        if self.bias is None or self.low is None or self.high is None:
            return "no estimate was held against labels yet"
        side = "too high" if self.bias > 0 else "too low"
        band = f"[{self.low:+.3f}, {self.high:+.3f}]"
        text = f"{abs(self.bias):.3f} {side} {band} over {self.labels:,} labels in {self.cohorts} cohorts"
        if self.trust == "TRUSTED":
            return f"estimates were within {self.tolerance:g} of what was realised: {text}"
        if self.trust == "BIASED":
            return f"estimates are {text}: more than {self.tolerance:g}, so they decide nothing"
        return f"estimates were {text}: not yet known to be within {self.tolerance:g}"


def judge_estimates(errors: Sequence[EstimateError], tolerance: float, level: float = LEVEL) -> BackTest:
    """The back-test of cohorts in the order of time.

    >>> errors = [EstimateError(day, 0.1, 0.0004, 300) for day in range(8)]
    >>> judge_estimates(errors, 0.02).message.partition(" over")[0]
    'estimates are 0.100 too high [+0.078, +0.122]'
    """
    used = [error for error in errors if error.variance > 0 and math.isfinite(error.difference)]
    labels = sum(error.labels for error in used)
    if not used:
        return BackTest("UNKNOWN", None, None, None, tolerance, 0, 0)
    strata = [Stratum(error.difference, error.variance) for error in used]
    mean, information = pool(strata)
    effect = _heterogeneity(used, mean)
    information /= effect
    deviation = math.sqrt(labels / information)
    radius = mean_radius(information, _SCALE * deviation, level)
    low, high = mean - radius, mean + radius
    trust: Trust = "UNKNOWN"
    if len(used) >= MIN_COHORTS:
        if low > tolerance or high < -tolerance:
            trust = "BIASED"
        elif -tolerance <= low and high <= tolerance:
            trust = "TRUSTED"
    return BackTest(trust, mean, low, high, tolerance, labels, len(used))


def _heterogeneity(errors: Sequence[EstimateError], mean: float) -> float:
    """Cochran's Q over its degrees of freedom, at least 1: cohorts that differ by more than chance count for less."""
    if len(errors) < 2:
        return 1.0
    return max(1.0, math.fsum((error.difference - mean) ** 2 / error.variance for error in errors) / (len(errors) - 1))
