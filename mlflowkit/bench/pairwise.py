"""Comparison of two candidates of one run: the ratio of a quantile, its interval, and a verdict. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlflowkit.bench.analysis import CONFIDENCE, started_ratio_interval

Verdict = Literal["faster", "slower", "alike", "undecided"]

ALIKE = 0.05
"""Two candidates are alike if the interval of their ratio lies within this distance of 1."""
_VERDICT_PHRASES: Mapping[Verdict, str] = {
    "faster": "is surely lower than",
    "slower": "is surely higher than",
    "alike": "differs little from",
    "undecided": "cannot be told from",
}


@dataclass(frozen=True, slots=True)
class PairwiseComparison:
    """``ratio`` is the quantile of ``name`` over that of ``against``, measured in turns; below 1 is faster.

    It is the centre of the interval of the paired starts, not the ratio of the two quantiles in the rows.
    """

    name: str
    against: str
    batch: int
    quantile: str
    ratio: float
    low: float
    high: float
    confidence: float
    verdict: Verdict
    words: str


def compare_all(
    starts: Mapping[str, Sequence[np.ndarray]], q: float, *, batch: int, label: str, families: int = 1
) -> tuple[PairwiseComparison, ...]:
    """Compare each candidate with the first, from the blocks of each start; start i of all ran in turns.

    The intervals hold simultaneously, with those of the other ``families`` (batch sizes) (Bonferroni).

    >>> base = np.random.default_rng(0).gamma(900, 0.1, size=(5, 8, 50))
    >>> comparisons = compare_all({"a": base, "b": base / 2, "c": base * 1.01}, 0.5, batch=1, label="p50")
    >>> [(comparison.name, comparison.verdict) for comparison in comparisons]
    [('b', 'faster'), ('c', 'alike')]
    >>> comparisons[0].words
    'p50 of b is surely lower than that of a: 0.5 of it'
    """
    if len(starts) < 2:
        return ()
    first, *others = starts
    confidence = 1 - (1 - CONFIDENCE) / (families * len(others))
    comparisons = []
    for name in others:
        low, high = started_ratio_interval(starts[name], starts[first], q, confidence=confidence)
        verdict = judge(low, high)
        span = " to ".join(dict.fromkeys((f"{low:.3g}", f"{high:.3g}")))
        message = f"{label} of {name} {_VERDICT_PHRASES[verdict]} that of {first}: {span} of it"
        ratio = math.sqrt(low * high)
        comparisons.append(
            PairwiseComparison(name, first, batch, label, ratio, low, high, confidence, verdict, message)
        )
    return tuple(comparisons)


def judge(low: float, high: float) -> Verdict:
    """Return the verdict for the interval of a ratio; a certain difference within `ALIKE` is alike.

    >>> judge(0.7, 0.8), judge(1.1, 1.3), judge(0.98, 1.01), judge(0.8, 1.2), judge(0.9, 0.99)
    ('faster', 'slower', 'alike', 'undecided', 'faster')
    """
    if low >= 1 - ALIKE and high <= 1 + ALIKE:
        return "alike"
    if high < 1:
        return "faster"
    return "slower" if low > 1 else "undecided"
