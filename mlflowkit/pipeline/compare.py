"""Compare two runs: recipe, data, code, metrics with their intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mlflowkit.pipeline.fingerprint import flatten
from mlflowkit.pipeline.storage.codec import strict
from mlflowkit.ports import Journal, ObjectStore
from mlflowkit.values import Json, Measurement, RunRecord

KINDS: Mapping[str, str] = {"code": "code", "content": "data", "library": "library", "machine": "machine"}
"""Kinds of ingredients compared by name, with their labels."""


def compare(a: RunRecord, b: RunRecord, journal: Journal, store: ObjectStore) -> dict[str, Json]:
    """Differences between two runs; lists are empty where they agree.

    ``recipe``: keys with their values in a and b · ``data``: versions, rows · ``code``: git commits, files beside the
    recipe, libraries · ``metrics``: measurements of the same name in a and b with their difference.
    """
    runs = {"a": a, "b": b}
    head = ("run", "name", "status", "started")
    git = ("git_commit", "git_dirty", "git_tree")
    code = {side: {name: getattr(run.lineage, name) for name in git} for side, run in runs.items()}
    versions = {side: run.lineage.data_version for side, run in runs.items()}
    commits = {f"{side}_commit": run.lineage.data_commit for side, run in runs.items() if run.lineage.data_commit}
    value: dict[str, Json] = {
        **{side: {name: getattr(run, name) for name in head} for side, run in runs.items()},
        "recipe": differences(flatten(a.recipe), flatten(b.recipe)),
        "data": {"changed": versions["a"] != versions["b"], **versions, **commits},
        "code": {**code, "changed": differences(_ingredients(a, journal), _ingredients(b, journal))},
        "metrics": _metrics(measurements(a, store), measurements(b, store)),
        "bundle": {"changed": a.bundle != b.bundle, "a": a.bundle, "b": b.bundle},
    }
    return {key: strict(item) for key, item in value.items()}


def differences(a: Mapping[str, Json], b: Mapping[str, Json]) -> list[dict[str, Json]]:
    """Keys whose values differ, sorted; a key missing on one side is null there, as one that is set to null.

    >>> differences({"train.epochs": 3, "seed": 7}, {"train.epochs": 4, "seed": 7})
    [{'key': 'train.epochs', 'a': 3, 'b': 4}]
    >>> differences({}, {"serve.rollout.metrics.0.ratio": None})
    []
    """
    keys = sorted(key for key in set(a) | set(b) if a.get(key) != b.get(key))
    return [{"key": key, "a": a.get(key), "b": b.get(key)} for key in keys]


def measurements(run: RunRecord, store: ObjectStore) -> dict[str, Measurement]:
    """Measurements of a run's evaluation by name; empty when there was none."""
    digest = next((step.digest for step in run.steps if step.stage == "evaluate"), "")
    path = store.path(digest) / "evaluation.json" if digest else Path()
    if not digest or not path.exists():
        return {}
    return {name: Measurement(**value) for name, value in json.loads(path.read_bytes())["metrics"].items()}


def _metrics(a: Mapping[str, Measurement], b: Mapping[str, Measurement]) -> list[dict[str, Json]]:
    return [
        {
            "name": name,
            "a": _interval(a.get(name)),
            "b": _interval(b.get(name)),
            "difference": b[name].value - a[name].value if name in a and name in b else None,
        }
        for name in [*a, *(name for name in b if name not in a)]
    ]


def _interval(measured: Measurement | None) -> Json:
    if measured is None:
        return None
    return {name: getattr(measured, name) for name in ("value", "low", "high", "samples", "confidence", "unit")}


def _ingredients(run: RunRecord, journal: Journal) -> dict[str, str]:
    ingredients: dict[str, str] = {}
    for step in run.steps:
        result = journal.result(step.fingerprint)
        for name, value in (result.ingredients if result is not None else {}).items():
            kind, _, rest = name.partition(":")
            if kind in KINDS:
                ingredients[f"{KINDS[kind]}: {rest}" if rest else KINDS[kind]] = value
    return ingredients
