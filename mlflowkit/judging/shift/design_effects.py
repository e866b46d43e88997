"""Design effects: how many independent rows the rows of a window are worth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Mask = NDArray[np.bool_]

EFFECT_LEVEL = 0.1
"""The chance that the upper bound of a column's design effect is too low.

Chosen by benchmarks/drift_rates.py: at 0.05, shifts of noisy columns stay unseen for longer; at 0.25, a clean month
with a design effect of 230 alarms in 3 % of runs.
"""


@dataclass(frozen=True, slots=True)
class Baselines:
    """Baselines of M streams: ``windows`` (M, W, K) counts, ``batches`` (M, W) design effects of their requests, and
    ``phase`` (M, W), the windows' places in the season; absent windows have no counts. ``same`` (M, W) marks those
    whose counts are the baseline of the current window. ``reference`` (M, K) replaces them where it is given.
    ``alike``: windows are taken to differ by no more than their requests do, so that no design effect is learned."""

    windows: Array
    batches: Array
    phase: Array
    same: Mask
    reference: Array | None = None
    alike: bool = False

    @property
    def counts(self) -> Array:
        """(M, K)."""
        return (self.windows * self.same[:, :, None]).sum(axis=1) if self.reference is None else self.reference


def effective_sizes(counts: Array, batches: Array, ordered: Mask, base: Baselines, sets: Mask) -> tuple[Array, Array]:
    """The design effect of the current window, and the effective rows of the baseline, each (M,)."""
    import numpy as np

    window_rows = base.windows.sum(axis=2)
    present = window_rows > 0
    rows = counts.sum(axis=1)
    learned = np.ones(len(rows)) if base.alike else learned_effects(base, sets, ordered)
    usual = window_rows.sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    larger = np.maximum(rows / np.maximum(usual, 1.0), 1.0) if not base.alike else 1.0
    effect = np.maximum(batches, np.where(np.isfinite(learned), learned * larger, np.maximum(rows, 1.0)))
    if base.reference is not None:
        total = base.reference.sum(axis=1)
        return effect, np.maximum(total / np.where(np.isfinite(learned), learned, np.maximum(total, 1.0)), 1e-9)
    same = window_rows * base.same
    own = (same / np.maximum(base.batches, 1.0)).sum(axis=1)
    total = same.sum(axis=1)
    return effect, np.maximum(np.minimum(own, total / learned), 1e-9)


def learned_effects(base: Baselines, sets: Mask, ordered: Mask) -> Array:
    """The design effect between windows of the share of each stream's set (M, K), at its upper confidence bound.

    The larger of the set's own and of the mean over all sets (ends of the order, or single cells). With d degrees of
    freedom, d phi' / phi is chi-squared with d where shares are normal.
    """
    import numpy as np
    from scipy.special import chdtri

    rows = base.windows.sum(axis=2)
    own = (base.windows * sets[:, None, :]).sum(axis=2)[:, :, None]
    family = np.where(ordered[:, None, None], np.cumsum(base.windows, axis=2), base.windows)
    freedom, effects = np.zeros(len(rows)), []
    for hits in (own, family):
        excess, expected, freedom = _between(hits, rows, base.phase)
        ratio = np.divide(excess, expected * np.maximum(freedom, 1), out=np.ones_like(excess), where=expected > 1e-12)
        effects.append(ratio)
    least = chdtri(np.maximum(freedom, 1), 1 - EFFECT_LEVEL)  # the argument is the upper tail
    upper: Array = np.where(
        freedom > 0, np.maximum(np.maximum(*effects) * np.maximum(freedom, 1) / least, 1.0), math.inf
    )
    return upper


def _between(hits: Array, rows: Array, phase: Array) -> tuple[Array, Array, Array]:
    """Sums over sets of the squared deviations of windows' shares in units of 1 / rows, and of p (1 - p); and the
    degrees of freedom. Deviations are from the mean of the windows of the same phase."""
    import numpy as np

    present = rows > 0
    excess, weight = np.zeros(len(rows)), np.zeros(len(rows))
    expected, freedom = np.zeros(len(rows)), np.zeros(len(rows))
    for place in np.unique(phase[present]) if present.any() else ():
        here = present & (phase == place)
        count = np.where(here, rows, 0.0)
        total = count.sum(axis=1)
        mean = (hits * here[:, :, None]).sum(axis=1) / np.maximum(total, 1e-300)[:, None]
        squares = np.divide(hits**2, count[:, :, None], out=np.zeros_like(hits), where=count[:, :, None] > 0)
        excess += (squares.sum(axis=1) - total[:, None] * mean**2).sum(axis=1)
        expected += total * (mean * (1 - mean)).sum(axis=1)
        weight += total
        freedom += np.maximum(here.sum(axis=1) - 1, 0)
    return np.maximum(excess, 0.0), expected / np.maximum(weight, 1e-300), freedom
