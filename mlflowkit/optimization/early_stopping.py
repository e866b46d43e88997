"""When to stop measuring a candidate: successive elimination of those that another is significantly better than.

A candidate is stopped when another is no worse in metric, size and memory and significantly faster. The test is
repeated while samples come in, against every other candidate, so each test gets a share of the error rate (Bonferroni
over looks and opponents): the best candidate is stopped with probability `ERROR` at most (simulated in
tests/property/test_early_stopping.py). After Even-Dar, Mannor, Mansour, "Action Elimination and Stopping Conditions for
the Multi-Armed Bandit", JMLR 2006, with the paired interval of the objective's ratio in place of Hoeffding's bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlflowkit.bench import analysis
from mlflowkit.optimization.objective import CandidateFigures, is_time_based, quantile_of, ratio
from mlflowkit.optimization.pareto import Point

ERROR = 0.05
"""Probability that the best candidate of a group is stopped, over all looks."""
FIRST_LOOK = 10
"""Blocks before the first look: the number of groups that a ratio's interval uses."""
GROWTH = 1.6
"""Growth of the number of blocks from look to look: some five looks in a hundred blocks."""


@dataclass(frozen=True, slots=True)
class StoppedCandidate:
    """Why a candidate is stopped: ``by`` is significantly faster and, where ``dominated``, worse in nothing."""

    name: str
    by: str
    reason: str
    dominated: bool = True


def looks(rounds: int) -> tuple[int, ...]:
    """The numbers of blocks at which to look, without the last, where nothing is left to save.

    >>> looks(100), looks(8)
    ((10, 16, 26, 41, 66), ())
    """
    blocks: list[int] = []
    next_look = float(FIRST_LOOK)
    while round(next_look) < rounds:
        blocks.append(round(next_look))
        next_look *= GROWTH
    return tuple(blocks)


def eliminate(
    figures: Mapping[str, CandidateFigures],
    others: Mapping[str, Point],
    objective: str,
    *,
    eligible: Sequence[str],
    spared: Sequence[str] = (),
    looks: int,
) -> list[StoppedCandidate]:
    """Candidates to stop after the blocks so far: dominated ones, and ones that cannot be picked.

    The latter are significantly slower than the fastest eligible candidate, by more than `analysis.MIN_GAIN`; they may
    still be on the Pareto front, for which the samples so far suffice. Where the objective is not based on times, only
    dominated candidates are stopped, by the 99th percentile.

    Args:
        figures: Of the candidates still measured, with equal numbers of blocks.
        others: The quantities that do not come with blocks (metric, size, memory).
        eligible: Candidates that may serve; each candidate is tested against the fastest that is no worse otherwise.
        spared: Candidates that are never stopped.
        looks: The number of looks in total.
    """
    import numpy as np

    chosen_by_time = is_time_based(objective)
    objective = objective if chosen_by_time else quantile_of(objective)
    confidence = 1 - 2 * ERROR / max(1, looks * (len(figures) - 1))
    means = {name: float(np.median(measured.microseconds, axis=1).mean()) for name, measured in figures.items()}
    stopped = []
    for name, mine in figures.items():
        rivals = sorted((rival for rival in eligible if rival != name and rival in figures), key=means.__getitem__)
        if name in spared or not rivals:
            continue
        after = f"stopped after {mine.microseconds.size:,} requests: {objective} is"
        better = next((rival for rival in rivals if no_worse(others[rival], others[name])), None)
        if better is not None:
            low, high = ratio(objective, mine, figures[better], confidence=confidence)
            if low > 1:
                reason = f"{after} {low:.2f} to {high:.2f} times that of {better}, which is no worse in the rest"
                stopped.append(StoppedCandidate(name, better, reason))
                continue
        low, high = ratio(objective, mine, figures[rivals[0]], confidence=confidence)
        if chosen_by_time and low > 1 / (1 - analysis.MIN_GAIN):
            reason = f"{after} {low:.2f} to {high:.2f} times that of {rivals[0]}: it cannot be picked"
            stopped.append(StoppedCandidate(name, rivals[0], reason, dominated=False))
    return stopped


def no_worse(point: Point, other: Point) -> bool:
    """Whether a point is at neither end of any interval worse than another."""
    return all(
        low <= other.bounds[name][0] and high <= other.bounds[name][1] for name, (low, high) in point.bounds.items()
    )
