"""Whether a metric is worse than its bound: an e-process over blocks of rows, one block a cohort or window.

Evidence is bet as in `judging.online`: shares by likelihood ratios of a coin, other metrics by those of a normal mean,
both mixed over alternatives and over the moment of the change (`Wealth`). By Ville's inequality a metric within its
bound is called FAILED in one of an unlimited number of looks with probability at most ``level`` (asymptotically, for a
metric that is no share). After FAILED the opposite is tested, from then on: enough evidence that the metric keeps its
bound again resolves it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mlflowkit.judging.online.sequential import Share, Wealth, scale_odds
from mlflowkit.judging.performance.score_table import LOWER_IS_BETTER
from mlflowkit.values import Outcome

LEVEL = 0.05
MIN_BLOCKS = 7
"""Blocks before a metric can be FAILED: fewer say too little of how days differ by themselves."""
MIN_PAIRS = 4
_ODDS = (1.2, 1.35, 1.35, 2.0, 4.0)
"""Alternatives of a share, as ratios of odds; a ratio that stands twice has twice the stake: what is found soonest."""
_OFFSETS = (0.125, 0.25, 0.5, 1.0, 2.0)
"""Alternatives of a metric that is no share, in multiples of ``scale``."""


@dataclass(frozen=True, slots=True)
class PerformanceBlock:
    """A metric over rows of one period: its value and the variance of independent rows.

    ``share`` is (bad rows among rows) for a metric that is a share of good rows; such evidence is exact.
    """

    start: float
    seconds: float
    value: float
    variance: float
    rows: float
    share: Share | None = None


@dataclass(frozen=True, slots=True)
class HarmVerdict:
    """``evidence`` is that of the current question as a share of its threshold; ``since`` the block where it grew."""

    outcome: Outcome
    evidence: float
    since: float | None
    design_effect: float


def is_worse(metric: str, value: float, bound: float) -> bool:
    return value > bound if metric in LOWER_IS_BETTER else value < bound


def design_effect(blocks: Sequence[PerformanceBlock]) -> float:
    """How many times larger the variance between consecutive blocks is than that of independent rows; at least 1.

    From successive differences (von Neumann, Annals of Mathematical Statistics 1941) without the largest, so that one
    lasting change of the metric does not look like noise; corrected for what the largest of so many would be without
    any change. 1 for fewer than `MIN_PAIRS` of them, and where it is less than two standard errors (sqrt(3 / n), of
    n successive differences) above 1: its noise would cost evidence. Else a standard error is added.
    """
    pairs = [
        (second.value - first.value) ** 2 / (first.variance + second.variance)
        for first, second in pairwise(blocks)
        if first.variance + second.variance > 0
    ]
    number = len(pairs)
    if number < MIN_PAIRS:
        return 1.0
    # mean of the largest of n squared standard normals, by its limit distribution
    largest = 2 * math.log(number) - math.log(math.log(number)) - math.log(math.pi) + 2 * 0.5772
    effect = (math.fsum(pairs) - max(pairs)) / (number - largest)
    error = math.sqrt(3 / number)
    return effect * (1 + error) if effect > 1 + 2 * error else 1.0


def judge_blocks(
    metric: str,
    blocks: Sequence[PerformanceBlock],
    bound: float,
    *,
    slack: float = 0.0,
    scale: float = 0.08,
    level: float = LEVEL,
) -> HarmVerdict:
    """Test "the metric keeps its bound" on blocks in the order of time.

    ``slack`` is how far the blocks may all be off together: it counts against either claim. ``scale`` is the size of a
    change that is worth finding soon.
    """
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    effect = design_effect(blocks)
    barrier = math.log(1 / level)
    harm, proof, failed_since, best = Wealth(), Wealth(), None, 0.0
    grows_from: float | None = None
    for number, block in enumerate(blocks, 1):
        worse, not_worse = _bets(block, bound, sign, slack, scale, effect)
        if failed_since is None:
            harm = harm.bet(worse, block.rows / effect)
            grows_from = (grows_from if grows_from is not None else block.start) if harm.log > 0 else None
            if harm.log >= barrier and number >= MIN_BLOCKS:
                failed_since, proof = grows_from, Wealth()
                continue
            best = max(best, harm.log)
        proof = proof.bet(not_worse, block.rows / effect)
        if failed_since is not None and proof.log >= barrier:
            failed_since, grows_from, harm, best = None, None, Wealth(), 0.0
    if failed_since is not None:
        return HarmVerdict(Outcome.FAILED, max(harm.log / barrier, 1.0), failed_since, effect)
    passed = proof.log >= barrier and harm.log < barrier / 2
    outcome = Outcome.PASSED if passed else Outcome.INCONCLUSIVE
    evidence = max(harm.log, 0.0) / barrier
    return HarmVerdict(outcome, min(evidence, 1.0), grows_from, effect)


def _bets(
    block: PerformanceBlock, bound: float, sign: float, slack: float, scale: float, effect: float
) -> tuple[list[float], list[float]]:
    """Log e-values of a block against "within the bound", and against "at or beyond it"."""
    easy, hard = bound - sign * slack, bound + sign * slack
    if block.share is not None:
        share = block.share.scaled(1 / effect)
        return _coin(share, 1 - easy, 1.0), _coin(share, 1 - hard, -1.0)
    information = 1 / (block.variance * effect) if block.variance > 0 else 0.0
    steps = [factor * scale for factor in _OFFSETS]
    below, above = sign * (easy - block.value), sign * (block.value - hard)
    return (
        [information * (step * below - step * step / 2) for step in steps],
        [information * (step * above - step * step / 2) for step in steps],
    )


def _coin(share: Share, bound: float, direction: float) -> list[float]:
    bound = min(max(bound, 1e-9), 1 - 1e-9)
    rates = [scale_odds(bound, odds**direction) for odds in _ODDS]
    good = share.count - share.hits
    return [share.hits * math.log(rate / bound) + good * math.log((1 - rate) / (1 - bound)) for rate in rates]
