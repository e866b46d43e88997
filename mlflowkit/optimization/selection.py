"""The candidate to take, of those that may serve, in the recipe's order of preference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlflowkit.bench.analysis import CONFIDENCE, MIN_GAIN
from mlflowkit.errors import UsageError
from mlflowkit.optimization.objective import NOUNS, Bounds, Figures, ratio


@dataclass(frozen=True, slots=True)
class Choice:
    """The candidate to serve, and in words why each of the others was not chosen."""

    name: str
    reasons: Mapping[str, str]


def choose(figures: Mapping[str, Figures], objective: str, *, confidence: float = CONFIDENCE) -> Choice:
    """The candidate that is best by the objective, and in words why each of the others was not chosen.

    A later candidate displaces an earlier one only where the whole interval of the ratio of their objectives lies below
    ``1 - MIN_GAIN``, at a confidence that holds for all comparisons together (Bonferroni): of candidates that are in
    truth alike, a later one is taken with probability ``(1 - confidence) / 2`` at most. Raises UsageError for none.

    >>> import numpy as np
    >>> blocks = np.random.default_rng(0).gamma(9, 10, size=(40, 50))
    >>> alike = {"onnx": Figures(blocks, 100), "onnx-int8": Figures(blocks * 0.99, 30)}
    >>> choose(alike, "latency_p50").name, choose(alike, "size").name
    ('onnx', 'onnx-int8')
    """
    if not figures:
        raise UsageError("there is no candidate to choose from", hint="add onnx to optimize.candidates")
    names = list(figures)
    share = (1 - confidence) / max(1, len(names) - 1)
    chosen, reasons = names[0], {}
    for name in names[1:]:
        bounds = ratio(objective, figures[name], figures[chosen], confidence=1 - share)
        beaten, winner = (chosen, name) if bounds[1] < 1 - MIN_GAIN else (name, chosen)
        reasons[beaten] = words(name, chosen, objective, bounds, displaced=beaten == chosen)
        chosen = winner
    return Choice(chosen, reasons)


def words(later: str, earlier: str, objective: str, bounds: Bounds, *, displaced: bool) -> str:
    """Why one of two candidates was not taken."""
    quick = objective.startswith("latency")
    span = f"{bounds[0]:.2f}" if bounds[0] == bounds[1] else f"{bounds[0]:.2f} to {bounds[1]:.2f}"
    said = f"{NOUNS.get(objective, objective)} of {later} is {span} times that of {earlier}"
    better, worse = ("faster", "slower") if quick else ("better", "worse")
    if displaced:
        return f"{said}: {later} is {better}"
    if bounds[0] > 1:
        return f"{said}: it is {worse}"
    return f"{said}: not surely {better} by {MIN_GAIN:.0%}, and {earlier} comes first in the recipe"
