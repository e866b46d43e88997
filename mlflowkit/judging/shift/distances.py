"""Distances of counted samples, shares, and their confidence bounds: arrays of M streams and K cells."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Mask = NDArray[np.bool_]


def choose_sets(counts: Array, baseline: Array, ordered: Mask) -> tuple[Array, Mask]:
    """The distance of counts from the baseline, (M,), and the set that attains it, (M, K).

    Kolmogorov and Smirnov's distance over ends of the order where ``ordered``, else total variation.

    >>> import numpy as np
    >>> distance, sets = choose_sets(np.array([[70.0, 20, 10]]), np.array([[90.0, 10, 0]]), np.array([False]))
    >>> distance.round(9).tolist(), sets.tolist()
    ([0.2], [[False, True, True]])
    """
    import numpy as np

    difference = cell_shares(counts) - cell_shares(baseline)
    sums = np.cumsum(difference, axis=1)
    split = np.abs(sums).argmax(axis=1)
    furthest = np.take_along_axis(sums, split[:, None], axis=1)[:, 0]
    lower = np.arange(difference.shape[1])[None, :] <= split[:, None]
    ends = np.where((furthest > 0)[:, None], lower, ~lower)
    sets = np.where(ordered[:, None], ends, difference > 0)
    positive = np.where(difference > 0, difference, 0.0).sum(axis=1)
    return np.where(ordered, np.abs(furthest), positive), sets


def cell_shares(counts: Array) -> Array:
    import numpy as np

    shares: Array = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)
    return shares


def baseline_doubt(baseline: Array, rows: Array, share: Array, ordered: Mask, level: float, fixed: bool) -> Array:
    """How far the true share of a set may lie above the baseline's ``share`` (M,), at 1 - ``level``, for every set.

    A tenth of the level goes to Chernoff's bound over all sets, which is lower for small shares.
    """
    import numpy as np

    used = (baseline > 0).sum(axis=1)
    family = 1.0 if fixed else np.where(ordered, 2.0 * np.maximum(used - 1, 1), 2.0 ** np.minimum(used, 1000))
    logs = np.log(10 * family / level) if not fixed else np.full(len(rows), math.log(1 / level))
    chernoff = np.sqrt(2 * share * logs / rows) + 2 * logs / rows
    if fixed:
        return chernoff
    return np.minimum(chernoff, _uniform(baseline, rows, ordered, 0.9 * level))


def _uniform(counts: Array, rows: Array, ordered: Mask, level: float) -> Array:
    """A bound on the distance of a sample of ``rows`` effective rows from its own distribution."""
    import numpy as np

    shares = cell_shares(counts)
    massart = np.sqrt(math.log(2 / level) / (2 * rows))
    expected = 0.5 * np.sqrt(shares * (1 - shares) / rows[:, None]).sum(axis=1)
    return np.where(ordered, massart, expected + np.sqrt(math.log(1 / level) / (2 * rows)))


def distance_interval(
    counts: Array, rows: Array, baseline: Array, base_rows: Array, ordered: Mask, level: float
) -> tuple[Array, Array, Array]:
    """The distance with its interval at 1 - ``level``. A distance of samples is larger than the true one by up to the
    samples' own distances, and in expectation never smaller, as it is convex (Jensen): above, only McDiarmid's bound of
    its fluctuation is added."""
    import numpy as np

    value, _ = choose_sets(counts, baseline, ordered)
    some = np.maximum(rows, 1e-9)
    below = _uniform(counts, some, ordered, level / 4) + _uniform(baseline, base_rows, ordered, level / 4)
    above = np.sqrt(math.log(2 / level) / 2 * (1 / some + 1 / base_rows))
    return value, np.clip(value - below, 0.0, 1.0), np.clip(value + above, 0.0, 1.0)


def share_interval(hits: Array, rows: Array, effective: Array, level: float) -> tuple[Array, Array, Array]:
    """A share with the interval of Clopper and Pearson for ``effective`` rows."""
    import numpy as np
    from scipy.special import betaincinv

    value = hits / np.maximum(rows, 1e-300)
    some = np.maximum(effective, 1e-9)
    counted = value * some
    low = np.where(counted > 0, betaincinv(np.maximum(counted, 1e-12), some - counted + 1, level / 2), 0.0)
    high = betaincinv(counted + 1, np.maximum(some - counted, 1e-12), 1 - level / 2)
    return value, low, np.where(counted < some, high, 1.0)
