"""Rules for gates on fairness: one limit, a rate that the task has, and nothing that belongs to other gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlflowkit.errors import closest_match
from mlflowkit.judging.fairness import ONLY_FAIR, RATES
from mlflowkit.recipe.rule import Problem, RecipeView, Rule
from mlflowkit.recipe.yaml_tree import KeyPath

OTHERS = ("min", "max", "against", "margin", "slice", "machine")
"""Keys of a gate that a gate on fairness does not have."""
LIMITS = ("max_difference", "min_ratio")
CRITERIA: Mapping[str, str] = {
    "demographic_parity": "selection_rate",
    "statistical_parity": "selection_rate",
    "disparate_impact": "selection_rate",
    "equal_opportunity": "recall",
    "true_positive_rate": "recall",
    "predictive_equality": "false_positive_rate",
    "predictive_parity": "precision",
}
"""The rate that a criterion of the literature compares."""


def _fairness(view: RecipeView) -> Iterator[Problem]:
    for index, gate in enumerate(view.items("gates")):
        if not isinstance(gate, dict):
            continue
        path: KeyPath = ("gates", index)
        if gate.get("fair") is not None:
            yield from _metric(view, path, gate)
            yield from _form(view, path, gate)
        elif gate.get("metric") in ONLY_FAIR:
            message = f"{gate['metric']} is compared between groups, and the gate has no fair"
            yield Problem(
                path, message, "add fair: {column: COLUMN, max_difference: 0.1}, with the column of the groups"
            )


def _metric(view: RecipeView, path: KeyPath, gate: Mapping[str, Any]) -> Iterator[Problem]:
    """A metric that is no rate of groups, and a task without any."""
    metric = gate.get("metric")
    if view.regression:
        message = "a regression answers no class: its groups have no rates to compare"
        yield Problem((*path, "fair"), message, "judge its values one by one: slice: {column: COLUMN} with max")
    elif isinstance(metric, str) and metric not in RATES:
        close = CRITERIA.get(metric) or closest_match(metric, tuple(RATES))
        message = f"{metric!r} is not compared between groups; {', '.join(RATES)} are"
        yield Problem((*path, "metric"), message, f"did you mean {close}?" if close else "write recall")


def _form(view: RecipeView, path: KeyPath, gate: Mapping[str, Any]) -> Iterator[Problem]:
    fair = view.mapping(*path, "fair")
    limits = [name for name in LIMITS if fair.get(name) is not None]
    if fair and len(limits) != 1:
        message = "fair needs max_difference or min_ratio" if not limits else "fair has max_difference and min_ratio"
        hint = "add max_difference: 0.1 to it" if not limits else "make two gates of it"
        yield Problem((*path, "fair"), message, hint)
    for name in OTHERS:
        if gate.get(name) is not None:
            message = f"a gate on fairness has no {name}: its limit is fair.max_difference or fair.min_ratio"
            yield Problem((*path, name), message, f"drop {name}, or make two gates of it")
    names = [str(name) for name in view.items(*path, "fair", "groups")]
    for at, name in enumerate(names):
        if name in names[:at]:
            yield Problem((*path, "fair", "groups", at), f"{name!r} is listed twice", "remove one")
    earlier = [other for other in range(int(path[1])) if view.get("gates", other) == gate]
    if earlier:
        yield Problem(path, f"the same gate as gates.{earlier[0]}", "remove one of them")


RULES: tuple[Rule, ...] = (_fairness,)
