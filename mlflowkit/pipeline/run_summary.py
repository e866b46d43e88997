"""The summary of a run: the JSON of ``mlkit run --json`` and ``mlkit show --json``. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from mlflowkit.judging.coverage import recipe_warnings
from mlflowkit.pipeline import OBJECTS, RUNS
from mlflowkit.pipeline.outbox.delivery_schedule import next_attempt
from mlflowkit.pipeline.storage.codec import strict
from mlflowkit.system.text import format_count
from mlflowkit.values import Json, RunDelivery, RunRecord, StepRecord


def summarize(record: RunRecord, state: Path) -> dict[str, Json]:
    """A run as plain JSON.

    ``bundle`` is the bundle's folder, ``blessing`` the content of its blessing (or null), ``curl`` a request to its
    service; ``metrics`` are of the test rows, ``validation`` of the validation rows; ``warnings`` say what neither its
    gates nor its rollout judge; ``deliveries`` are those to other systems; ``rollout`` is the state and ``experiment``
    the id of the rollout that the run started (or null).
    """
    steps = {step.stage: step for step in record.steps}
    package = steps.get("package")
    bundle = state / OBJECTS / package.digest / "bundle" if package is not None and package.digest else None
    blessing = None if bundle is None else bundle / "blessing.json"
    deploy = steps["deploy"].result if "deploy" in steps else None
    deployed = {} if deploy is None else deploy.summary
    evaluation = steps["evaluate"].result if "evaluate" in steps else None
    verdicts = () if evaluation is None else evaluation.verdicts
    serve = record.recipe.get("serve") or {}
    summary = {
        "run": record.run,
        "name": record.name,
        "recipe": record.recipe_path,
        "overrides": list(record.overrides),
        "status": record.status,
        "seconds": None if record.finished is None else round(record.finished - record.started, 3),
        "started": record.started,
        "steps": [_step(step, state / RUNS / record.run) for step in record.steps],
        "bundle": None if bundle is None else str(bundle),
        "version": record.bundle[:12] or None,
        "identity": record.bundle or None,
        "blessing": json.loads(blessing.read_bytes()) if blessing is not None and blessing.exists() else None,
        "verdicts": [{**asdict(verdict), "verdict": str(verdict.outcome)} for verdict in verdicts],
        "metrics": {} if evaluation is None else dict(evaluation.metrics),
        "validation": _validation_metrics(steps.get("train")),
        "decision": _decision(steps.get("export")),
        "importance": None if evaluation is None else evaluation.summary.get("importance"),
        "service": serve.get("service") if record.endpoint else None,
        "endpoint": record.endpoint or None,
        "curl": deployed.get("curl"),
        "rollout": deployed.get("rollout"),
        "experiment": deployed.get("experiment"),
        "report": _report(record, state) or None,
        "lineage": asdict(record.lineage),
        "warnings": list(recipe_warnings(record.recipe)),
        "deliveries": [delivery_json(delivery) for delivery in record.deliveries],
        "error": {"message": record.error} if record.error else None,
    }
    return {key: strict(item) for key, item in summary.items() if not (key == "error" and item is None)}


def delivery_json(delivery: RunDelivery) -> dict[str, Json]:
    """A delivery as plain JSON; ``next`` is when a run tries it again, null where none does."""
    value = {name: item for name, item in asdict(delivery).items() if name != "tried"}
    waits = delivery.status == "pending" and delivery.attempts > 0
    return {**value, "tried": delivery.tried or None, "next": next_attempt(delivery) if waits else None}


def delivery_line(delivery: Mapping[str, Json]) -> str:
    """A delivery of `delivery_json` for people."""
    if delivery["status"] == "delivered":
        return f"{delivery['target']}: delivered {delivery['receipt']}".rstrip()
    state = "not tried yet" if delivery["status"] == "pending" else "given up"
    if delivery["attempts"]:
        tries = format_count(delivery["attempts"], "attempt")
        state = f"{'pending' if delivery['status'] == 'pending' else 'failed'} after {tries}: {delivery['error']}"
    return f"{delivery['target']}: {state}"


def _report(record: RunRecord, state: Path) -> str:
    """The report of this state folder, also after it was copied or moved; "" when the run has none."""
    own = state / RUNS / record.run / "report.html"
    return str(own) if record.report and own.is_file() else record.report


def nothing_ran(summary: Mapping[str, Json]) -> bool:
    """Whether every step of a run was reused."""
    return all(step["action"] == "reuse" for step in summary["steps"] if step["status"] == "done")


def _validation_metrics(train: StepRecord | None) -> dict[str, float]:
    """The metrics of the kept epoch on the validation rows; {} for a model that was not trained here."""
    metrics = {} if train is None or train.result is None else train.result.metrics
    return {name: value for name, value in metrics.items() if name.startswith("val_")}


def _decision(export: StepRecord | None) -> Json:
    """The decision threshold that the export stage chose, or null."""
    return None if export is None or export.result is None else export.result.summary.get("decision")


def kept_folder(step: StepRecord, run_folder: Path) -> Path | None:
    """The folder with what a step that failed judged by, such as ``checks.json`` of validate; None where it kept none.

    ``run_folder`` is that of the run, below RUNS.
    """
    folder = run_folder / step.stage
    return folder if step.status == "failed" and folder.is_dir() else None


def _step(step: StepRecord, run_folder: Path) -> dict[str, Json]:
    shown = {name: getattr(step, name) for name in ("stage", "action", "status", "reason", "fingerprint", "digest")}
    shown["remeasure"] = step.result is not None and step.result.remeasure
    findings = None if step.result is None else step.result.summary.get("findings")
    extra = {"findings": findings} if findings else {}
    kept = kept_folder(step, run_folder)
    extra |= {} if kept is None else {"kept": str(kept)}
    return {**shown, "seconds": round(step.seconds, 3), **extra, **({"error": step.error} if step.error else {})}
