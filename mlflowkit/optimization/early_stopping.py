"""When to stop measuring a candidate: successive elimination of those that another one is better than in everything.

A candidate is stopped when another is no worse in metric, size and memory and surely faster. "Surely" is asked again
and again while samples come in, of every other candidate; so each asking has a share of the error rate (Bonferroni over
looks and opponents), and the best candidate is stopped with probability `ERROR` at most (shown by simulation in
tests/property/test_early_stopping.py). After Even-Dar, Mannor, Mansour, "Action Elimination and Stopping Conditions for
the Multi-Armed Bandit", JMLR 2006, with the paired interval of the objective's ratio in place of Hoeffding's bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflowkit.bench import analysis
from mlflowkit.optimization.objective import Figures, quantile_of, ratio, timed
from mlflowkit.optimization.pareto import Point

if TYPE_CHECKING:
    import numpy as np

ERROR = 0.05
"""Probability that the best candidate of a group is stopped, over all looks."""
FIRST_LOOK = 10
"""Blocks before the first look: as many as the interval of a ratio has groups."""
GROWTH = 1.6
"""Each look comes when the blocks have grown by this factor: some five looks in a hundred blocks."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why a candidate is measured no longer: ``by`` is surely faster and, where ``dominated``, worse in nothing."""

    name: str
    by: str
    reason: str
    dominated: bool = True


def looks(rounds: int) -> tuple[int, ...]:
    """The numbers of blocks at which to look, the last one excepted, since nothing is left to save then.

    >>> looks(100), looks(8)
    ((10, 16, 26, 41, 66), ())
    """
    found: list[int] = []
    at = float(FIRST_LOOK)
    while round(at) < rounds:
        found.append(round(at))
        at *= GROWTH
    return tuple(found)


def eliminate(
    figures: Mapping[str, Figures],
    others: Mapping[str, Point],
    objective: str,
    *,
    judges: Sequence[str],
    spared: Sequence[str] = (),
    asked: int,
) -> list[Stopped]:
    """Candidates to stop after the blocks so far: those that are dominated, and those that cannot be chosen.

    The latter are surely slower than the fastest judge by more than `analysis.MIN_GAIN`. They may be on the front for
    another quantity's sake, for which the samples so far are enough. Where the objective is not made of times, only the
    former are stopped, by the 99th percentile.

    ``figures`` are of those still measured (equal numbers of blocks), ``others`` has what does not come with blocks
    (metric, size, memory) as points, ``judges`` the candidates that may serve, ``spared`` those that are never stopped,
    ``asked`` the number of looks in all. A candidate is held against the fastest judge that is no worse otherwise.
    """
    chosen_by_time = timed(objective)
    objective = objective if chosen_by_time else quantile_of(objective)
    share = ERROR / max(1, asked * (len(figures) - 1))
    stopped = []
    means = {name: float(_medians(one).mean()) for name, one in figures.items()}
    for name, mine in figures.items():
        rivals = sorted((one for one in judges if one != name and one in figures), key=lambda one: means[one])
        if name in spared or not rivals:
            continue
        after = f"stopped after {mine.microseconds.size:,} requests: {objective} is"
        better = next((one for one in rivals if no_worse(others[one], others[name])), None)
        if better is not None:
            low, high = ratio(objective, mine, figures[better], confidence=1 - 2 * share)
            if low > 1:
                said = f"{after} {low:.2f} to {high:.2f} times that of {better}, which is no worse in the rest"
                stopped.append(Stopped(name, better, said))
                continue
        low, high = ratio(objective, mine, figures[rivals[0]], confidence=1 - 2 * share)
        if chosen_by_time and low > 1 / (1 - analysis.MIN_GAIN):
            said = f"{after} {low:.2f} to {high:.2f} times that of {rivals[0]}: it cannot be picked"
            stopped.append(Stopped(name, rivals[0], said, dominated=False))
    return stopped


def no_worse(one: Point, other: Point) -> bool:
    """Whether one candidate is at neither end of any interval worse than another."""
    return all(bounds[0] <= other.bounds[name][0] and bounds[1] <= other.bounds[name][1]
               for name, bounds in one.bounds.items())  # fmt: skip


def _medians(figures: Figures) -> np.ndarray:
    import numpy as np

    medians: np.ndarray = np.median(figures.microseconds, axis=1)
    return medians
