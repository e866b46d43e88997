"""Selects the candidate to serve, in the recipe's order of preference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlflowkit.bench.analysis import CONFIDENCE, MIN_GAIN
from mlflowkit.errors import UsageError
from mlflowkit.optimization.objective import NOUNS, Bounds, CandidateFigures, ratio


@dataclass(frozen=True, slots=True)
class CandidateChoice:
    """The candidate to serve, and why each of the others was not chosen."""

    name: str
    reasons: Mapping[str, str]


def choose(
    figures: Mapping[str, CandidateFigures], objective: str, *, confidence: float = CONFIDENCE
) -> CandidateChoice:
    """Choose the best candidate by the objective.

    A later candidate displaces an earlier one only where the whole interval of the ratio of their objectives lies below
    ``1 - MIN_GAIN``, at a confidence that holds for all comparisons together (Bonferroni): of equal candidates a later
    one is taken with probability ``(1 - confidence) / 2`` at most. Raises UsageError without candidates.

    >>> import numpy as np
    >>> blocks = np.random.default_rng(0).gamma(9, 10, size=(40, 50))
    >>> alike = {"onnx": CandidateFigures(blocks, 100), "onnx-int8": CandidateFigures(blocks * 0.99, 30)}
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
        loser, winner = (chosen, name) if bounds[1] < 1 - MIN_GAIN else (name, chosen)
        reasons[loser] = describe_comparison(name, chosen, objective, bounds, displaced=loser == chosen)
        chosen = winner
    return CandidateChoice(chosen, reasons)


def describe_comparison(later: str, earlier: str, objective: str, bounds: Bounds, *, displaced: bool) -> str:
    """Why one of two candidates was not chosen."""
    span = f"{bounds[0]:.2f}" if bounds[0] == bounds[1] else f"{bounds[0]:.2f} to {bounds[1]:.2f}"
    comparison = f"{NOUNS.get(objective, objective)} of {later} is {span} times that of {earlier}"
    better, worse = ("faster", "slower") if objective.startswith("latency") else ("better", "worse")
    if displaced:
        return f"{comparison}: {later} is {better}"
    if bounds[0] > 1:
        return f"{comparison}: it is {worse}"
    return f"{comparison}: not significantly {better} by {MIN_GAIN:.0%}, and {earlier} comes first in the recipe"
