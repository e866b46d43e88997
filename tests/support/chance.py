"""Limits for statistical tests: counts that sound code exceeds with a probability of at most CHANCE."""

from __future__ import annotations

from scipy.stats import binom

CHANCE = 1e-6
"""Probability that a statistical test fails although the code is sound."""


def most(trials: int, rate: float, *, tests: int = 1) -> int:
    """Return the largest plausible number of hits in ``trials`` of probability ``rate``; ``tests`` share CHANCE.

    >>> most(1200, 0.05) / 1200 < 0.085
    True
    """
    return int(binom.isf(CHANCE / tests, trials, rate))


def least(trials: int, rate: float, *, tests: int = 1) -> int:
    """Return the smallest plausible number of hits in ``trials`` of probability ``rate``.

    >>> least(200, 0.95)
    170
    """
    return trials - most(trials, 1 - rate, tests=tests)
