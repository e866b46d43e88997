"""Two candidates of one run against each other: the ratio of a quantile, its interval, and what that means. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mlflowkit.bench.analysis import CONFIDENCE, started_ratio_interval

if TYPE_CHECKING:
    import numpy as np

Verdict = Literal["faster", "slower", "alike", "undecided"]

ALIKE = 0.05
"""Two candidates whose ratio surely differs from one by no more than this share are alike."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """``ratio`` is the quantile of ``name`` over that of ``against``, measured in turns; below 1 is faster.

    It is the middle of its interval: that of the starts, each of which has its own, and not of the two quantiles that
    stand in the rows, which do not know what was measured beside what.
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
) -> tuple[Comparison, ...]:
    """Each of several candidates against the first: the blocks of each start of theirs, start i of all in turns.

    All intervals hold together, those of as many other ``families`` (batch sizes) as are compared too (Bonferroni).

    >>> import numpy as np
    >>> base = np.random.default_rng(0).gamma(900, 0.1, size=(5, 8, 50))
    >>> found = compare_all({"a": base, "b": base / 2, "c": base * 1.01}, 0.5, batch=1, label="p50")
    >>> [(one.name, one.verdict) for one in found]
    [('b', 'faster'), ('c', 'alike')]
    >>> found[0].words
    'p50 of b is surely lower than that of a: 0.5 of it'
    """
    names = list(starts)
    if len(names) < 2:
        return ()
    confidence = 1 - (1 - CONFIDENCE) / (families * (len(names) - 1))
    first, others = names[0], names[1:]
    return tuple(_compare(name, first, starts, q, batch, label, confidence) for name in others)


def _compare(
    name: str, first: str, starts: Mapping[str, Sequence[np.ndarray]], q: float, batch: int, label: str,
    confidence: float,
) -> Comparison:  # fmt: skip
    low, high = started_ratio_interval(starts[name], starts[first], q, confidence=confidence)
    verdict = judge(low, high)
    words = f"{label} of {name} {_MEANINGS[verdict]} that of {first}: {_span(low, high)} of it"
    return Comparison(name, first, batch, label, math.sqrt(low * high), low, high, confidence, verdict, words)


_MEANINGS: Mapping[Verdict, str] = {
    "faster": "is surely lower than",
    "slower": "is surely higher than",
    "alike": "differs little from",
    "undecided": "cannot be told from",
}


def judge(low: float, high: float) -> Verdict:
    """What the interval of a ratio means.

    A difference that is sure but at most `ALIKE` is called alike: machines differ by more.

    >>> judge(0.7, 0.8), judge(1.1, 1.3), judge(0.98, 1.01), judge(0.8, 1.2), judge(0.9, 0.99)
    ('faster', 'slower', 'alike', 'undecided', 'faster')
    """
    if low >= 1 - ALIKE and high <= 1 + ALIKE:
        return "alike"
    if high < 1:
        return "faster"
    return "slower" if low > 1 else "undecided"


def _span(low: float, high: float) -> str:
    """An interval of ratios in words: one number where both ends read alike."""
    ends = (f"{low:.3g}", f"{high:.3g}")
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
