"""Latency and error budgets by multiwindow, multi-burn-rate alerts (Google, The Site Reliability Workbook, chapter 5).

An objective of 99 % leaves a budget of 1 % of the requests of, say, 30 days. The burn rate is the share of bad requests
over that 1 %: at 1 the budget lasts exactly 30 days. An alert needs a high rate over a long window, so that it matters,
and over a short one, so that it still goes on. For latency, bad is slower than the bound, and the quantile of a window
is read from the merged bins of all gateways, never averaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mlflowkit.judging.online.evidence import LATENCY_GROWTH, bin_seconds
from mlflowkit.judging.stats import wilson
from mlflowkit.values import Outcome

PAIRS = ((300.0, 3600.0, 0.02), (1800.0, 21_600.0, 0.05))
"""(short window, long window, share of the budget that is burnt in the long one), in seconds."""
BUDGET_SECONDS = 30 * 86_400.0
MIN_REQUESTS = 20
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Requests that ended in [start, start + seconds): how many, how many failed, and latency by bin of the others."""

    start: float
    seconds: float
    requests: int = 0
    errors: int = 0
    latency: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BurnRate:
    """The worst pair of windows: ``rate`` of the long one with its lower bound, against ``factor``.

    ``share`` is the bad requests' share in the long window, ``bad`` of ``requests``.
    """

    outcome: Outcome
    rate: float
    low: float
    short_rate: float
    factor: float
    short: float
    long: float
    bad: int
    requests: int


def merge_latency(parts: Iterable[RequestCounts]) -> dict[int, int]:
    """The sum of histograms."""
    total: dict[int, int] = {}
    for part in parts:
        for index, count in part.latency.items():
            total[index] = total.get(index, 0) + count
    return total


def quantile_seconds(latency: Mapping[int, int], quantile: float) -> float | None:
    """A quantile of merged bins: the upper edge of its bin, so at most 2 % too high; None without requests.

    >>> round(quantile_seconds({340: 98, 400: 2}, 0.99), 5), quantile_seconds({}, 0.5)
    (0.00281, None)
    """
    total = sum(latency.values())
    if not total:
        return None
    rank, seen = math.ceil(quantile * total - 1e-9), 0
    for index in sorted(latency):
        seen += latency[index]
        if seen >= rank:
            return bin_seconds(index) * LATENCY_GROWTH
    return None


def slower_than(latency: Mapping[int, int], seconds: float) -> int:
    """How many answers were surely slower: those in bins that lie above."""
    return sum(count for index, count in latency.items() if bin_seconds(index) >= seconds * (1 - 1e-9))


def burn_rate(
    history: Sequence[RequestCounts],
    now: float,
    allowed: float,
    *,
    slow: float | None = None,
    budget_seconds: float = BUDGET_SECONDS,
) -> BurnRate:
    """Judge errors, or with ``slow`` (seconds) answers slower than that, against the ``allowed`` share.

    FAILED where a pair of windows burns faster than its factor: surely in the long window (its lower confidence
    bound), and in the short one. PASSED where neither does, surely; else, or without requests, INCONCLUSIVE.
    """
    pairs = [_judge_pair(history, now, allowed, slow, budget_seconds, *pair) for pair in PAIRS]
    failed = [pair for pair in pairs if pair.outcome is Outcome.FAILED]
    if failed:
        return failed[0]  # the most urgent
    undecided = [pair for pair in pairs if pair.outcome is Outcome.INCONCLUSIVE]
    return max(undecided or pairs, key=lambda pair: pair.rate / pair.factor)


def _judge_pair(
    history: Sequence[RequestCounts],
    now: float,
    allowed: float,
    slow: float | None,
    budget_seconds: float,
    short: float,
    long: float,
    burnt: float,
) -> BurnRate:
    factor = max(burnt * budget_seconds / long, 1.0)
    recent, bad_recent = _bad(history, now - short, slow)
    requests, bad = _bad(history, now - long, slow)
    if requests < MIN_REQUESTS:
        return BurnRate(Outcome.INCONCLUSIVE, 0.0, 0.0, 0.0, factor, short, long, bad, requests)
    low, high = (bound / allowed for bound in wilson(bad, requests, CONFIDENCE))
    rate = bad / requests / allowed
    short_rate = bad_recent / recent / allowed if recent else 0.0
    outcome = Outcome.INCONCLUSIVE
    limit = min(factor, 1 / allowed * 0.999)
    if low > limit and short_rate > limit:
        outcome = Outcome.FAILED
    elif high <= limit or (recent >= MIN_REQUESTS and short_rate <= limit):
        outcome = Outcome.PASSED
    return BurnRate(outcome, rate, low, short_rate, factor, short, long, bad, requests)


def _bad(history: Sequence[RequestCounts], since: float, slow: float | None) -> tuple[int, int]:
    """(requests, bad ones) after a time; of a part that began before, in proportion."""
    requests = bad = 0.0
    for part in history:
        share = min(max((part.start + part.seconds - since) / part.seconds, 0.0), 1.0)
        if share:
            requests += share * (part.requests if slow is None else sum(part.latency.values()))
            bad += share * (part.errors if slow is None else slower_than(part.latency, slow))
    return round(requests), min(round(bad), round(requests))
