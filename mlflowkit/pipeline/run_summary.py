"""What a run says of itself: the JSON of ``mlkit run --json`` and ``mlkit show --json``. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from mlflowkit.pipeline import OBJECTS
from mlflowkit.pipeline.codec import strict
from mlflowkit.values import Json, RunRecord, StepRecord, Verdict


def answer(record: RunRecord, state: Path) -> dict[str, Json]:
    """A run as plain JSON.

    ``bundle`` is the bundle's folder and ``blessing`` what binds it (null without one); ``curl`` is a request that
    its service answers. ``rollout`` says where the rollout that the run began was then (null when it began none), and
    ``experiment`` names it.
    """
    steps = {step.stage: step for step in record.steps}
    package = steps.get("package")
    bundle = state / OBJECTS / package.digest / "bundle" if package is not None and package.digest else None
    deployed = _summary(steps.get("deploy"))
    found = steps["evaluate"].result if "evaluate" in steps else None
    serve = record.recipe.get("serve") or {}
    value = {
        "run": record.run,
        "name": record.name,
        "recipe": record.recipe_path,
        "overrides": list(record.overrides),
        "status": record.status,
        "seconds": None if record.finished is None else round(record.finished - record.started, 3),
        "started": record.started,
        "steps": [_step(step) for step in record.steps],
        "bundle": None if bundle is None else str(bundle),
        "version": record.bundle[:12] or None,
        "identity": record.bundle or None,
        "blessing": _blessing(bundle),
        "verdicts": [_verdict(verdict) for verdict in (found.verdicts if found is not None else ())],
        "metrics": metrics(record),
        "service": serve.get("service") if record.endpoint else None,
        "endpoint": record.endpoint or None,
        "curl": deployed.get("curl"),
        "rollout": deployed.get("rollout"),
        "experiment": deployed.get("experiment"),
        "report": record.report or None,
        "lineage": asdict(record.lineage),
        "error": {"message": record.error} if record.error else None,
    }
    return {key: strict(item) for key, item in value.items() if not (key == "error" and item is None)}


def metrics(record: RunRecord) -> dict[str, float]:
    """The metrics of a run's evaluation."""
    return next((dict(s.result.metrics) for s in record.steps if s.stage == "evaluate" and s.result), {})


def idle(value: Mapping[str, Json]) -> bool:
    """Whether an answer is of a run that had nothing to do."""
    return all(step["action"] == "reuse" for step in value["steps"] if step["status"] == "done")


def _step(step: StepRecord) -> dict[str, Json]:
    shown = {name: getattr(step, name) for name in ("stage", "action", "status", "reason", "fingerprint", "digest")}
    return {**shown, "seconds": round(step.seconds, 3), **({"error": step.error} if step.error else {})}


def _verdict(verdict: Verdict) -> dict[str, Json]:
    return {**asdict(verdict), "verdict": str(verdict.outcome)}


def _summary(step: StepRecord | None) -> Mapping[str, Json]:
    return step.result.summary if step is not None and step.result is not None else {}


def _blessing(bundle: Path | None) -> Json:
    path = None if bundle is None else bundle / "blessing.json"
    return json.loads(path.read_bytes()) if path is not None and path.exists() else None
