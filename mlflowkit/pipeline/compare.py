"""Two runs, side by side: recipe, data, code, metrics with their intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mlflowkit.pipeline.codec import strict
from mlflowkit.pipeline.fingerprint import flatten
from mlflowkit.pipeline.journal import Journal
from mlflowkit.pipeline.store import Store
from mlflowkit.values import Json, Measurement, RunRecord

KINDS: Mapping[str, str] = {"code": "code", "content": "data", "library": "library", "machine": "machine"}
"""Kinds of ingredients that are compared by name, and what they are called."""


def compare(a: RunRecord, b: RunRecord, journal: Journal, store: Store) -> dict[str, Json]:
    """What differs between two runs; every list is empty where they agree.

    ``recipe``: keys with their values in a and b · ``data``: versions, rows · ``code``: git commits, files beside the
    recipe, libraries · ``metrics``: measurements of the same name in a and b with their difference.
    """
    value = {
        "a": _head(a),
        "b": _head(b),
        "recipe": differences(flatten(a.recipe), flatten(b.recipe)),
        "data": {
            "changed": a.lineage.data_version != b.lineage.data_version,
            "a": a.lineage.data_version,
            "b": b.lineage.data_version,
        },
        "code": {
            "a": {"git_commit": a.lineage.git_commit, "git_dirty": a.lineage.git_dirty},
            "b": {"git_commit": b.lineage.git_commit, "git_dirty": b.lineage.git_dirty},
            "changed": differences(_ingredients(a, journal), _ingredients(b, journal)),
        },
        "metrics": _metrics(measurements(a, store), measurements(b, store)),
        "bundle": {"changed": a.bundle != b.bundle, "a": a.bundle, "b": b.bundle},
    }
    return {key: strict(item) for key, item in value.items()}


def differences(a: Mapping[str, Json], b: Mapping[str, Json]) -> list[dict[str, Json]]:
    """Keys whose values differ, sorted; a key that one side has not is null there.

    >>> differences({"train.epochs": 3, "seed": 7}, {"train.epochs": 4, "seed": 7})
    [{'key': 'train.epochs', 'a': 3, 'b': 4}]
    """
    keys = sorted(key for key in set(a) | set(b) if a.get(key) != b.get(key) or (key in a) != (key in b))
    return [{"key": key, "a": a.get(key), "b": b.get(key)} for key in keys]


def measurements(run: RunRecord, store: Store) -> dict[str, Measurement]:
    """The evaluation's measurements of a run, by name; empty when it did not get that far."""
    digest = next((step.digest for step in run.steps if step.stage == "evaluate"), "")
    path = store.path(digest) / "evaluation.json" if digest else Path()
    if not digest or not path.exists():
        return {}
    found: Mapping[str, Json] = json.loads(path.read_bytes())["metrics"]
    return {name: Measurement(**value) for name, value in found.items()}


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
    found: dict[str, str] = {}
    for step in run.steps:
        result = journal.result(step.fingerprint)
        for name, value in (result.ingredients if result is not None else {}).items():
            kind, _, rest = name.partition(":")
            if kind in KINDS:
                found[f"{KINDS[kind]}: {rest}" if rest else KINDS[kind]] = value
    return found


def _head(run: RunRecord) -> dict[str, Json]:
    return {"run": run.run, "name": run.name, "status": run.status, "started": run.started}
