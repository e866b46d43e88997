"""Views of the page's sections: (record, evidence) -> template values, or None if the stage was not reached. Pure.

Text and numbers are formatted here; the templates only place them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflowkit.report import formatting
from mlflowkit.report.run import data_views, gate_views, latency_views, model_views
from mlflowkit.report.run.data_views import View
from mlflowkit.report.run.gate_views import verdicts_of
from mlflowkit.report.run.run_files import RunEvidence
from mlflowkit.values import STAGES, Outcome, RunRecord

STATUS_TONES: Mapping[str, str] = {"done": "ok", "failed": "bad", "gate-failed": "bad"}
"""Tones of a run's status; other statuses warn."""
HEADLINES = 3
"""Maximum metrics at the top of the page."""


@dataclass(frozen=True, slots=True)
class PageSection:
    """One section. If ``view`` is empty, ``absent`` is the reason."""

    id: str
    title: str
    absent: str = ""
    view: View = field(default_factory=dict)


def sections(record: RunRecord, evidence: RunEvidence) -> list[PageSection]:
    """Return all sections in the page's order, including those not reached."""
    page = []
    for id, title, stage, make_view in _SECTIONS:
        view = make_view(record, evidence)
        page.append(PageSection(id, title, absence(record, stage) if view is None else "", view or {}))
    return page


def absence(record: RunRecord, stage: str) -> str:
    """Return why there is nothing to show for a stage."""
    if stage == "deploy" and not record.recipe.get("serve"):
        return "Not part of this run: the recipe has no serve section, so the run ends at the bundle."
    step = next((step for step in record.steps if step.stage == stage), None)
    if step is None:
        last = max((step.stage for step in record.steps), key=STAGES.index, default="")
        return f"Not reached: the run was asked to go no further than {last}." if last else "Not reached."
    if step.status == "running":
        return f"Not reached: {stage} had not finished when this page was written."
    if step.status in ("failed", "interrupted"):
        return f"Not reached: {stage} {'failed' if step.status == 'failed' else 'was interrupted'}."
    stopped = next((other for other in record.steps if other.status in ("failed", "interrupted", "running")), None)
    if step.status == "done":
        return f"Nothing to show: {stage} published nothing of this kind."
    if stopped is None:
        return f"Not reached: the run ended ({record.status}) before {stage}."
    return f"Not reached: the run stopped at {stopped.stage}."


def overview(record: RunRecord, evidence: RunEvidence) -> View:
    """Return the head of the page: status, error, headline numbers."""
    error = record.error or next((step.error for step in record.steps if step.error), "")
    duration = None if record.finished is None else record.finished - record.started
    tiles = [*_metric_tiles(record, evidence), *_latency_tile(evidence), *_outcome_tiles(record, evidence)]
    return {"tone": STATUS_TONES.get(record.status, "warn"), "seconds": duration, "error": error, "tiles": tiles}


def _metric_tiles(record: RunRecord, evidence: RunEvidence) -> list[View]:
    metrics = (evidence.evaluation or {}).get("metrics", {})
    gated = [verdict.metric for verdict in verdicts_of(record) if verdict.metric in metrics]
    names = [name for name in dict.fromkeys([*gated, *metrics]) if not name.startswith("latency_")][:HEADLINES]
    tiles: list[View] = []
    for name in names:
        value, low, high = (formatting.number(metrics[name].get(key)) for key in ("value", "low", "high"))
        tiles.append({"name": name, "value": value, "small": f"{low} to {high}"})
    return tiles


def _latency_tile(evidence: RunEvidence) -> list[View]:
    picked = next((row for row in evidence.candidates or [] if row.get("picked")), None)
    if picked is None:
        return []
    small = f"{picked['name']}, batch {picked['batch']}"
    return [{"name": "latency p99", "value": formatting.micros(picked.get("p99_us")), "small": small}]


def _outcome_tiles(record: RunRecord, evidence: RunEvidence) -> list[View]:
    tiles: list[View] = []
    verdicts = verdicts_of(record)
    if verdicts:
        passed = sum(verdict.outcome is Outcome.PASSED for verdict in verdicts)
        others = [str(verdict.outcome) for verdict in verdicts if verdict.outcome is not Outcome.PASSED]
        small = ", ".join(f"{others.count(name)} {name}" for name in dict.fromkeys(others)) or "all of them"
        tiles.append({"name": "gates passed", "value": f"{passed} of {len(verdicts)}", "small": small})
    if evidence.manifest is not None:
        blessed = "not blessed" if evidence.blessing is None else "blessed" if verdicts else "blessed by no gate"
        tiles.append({"name": "bundle", "value": evidence.manifest["version"], "small": blessed})
    return tiles


def steps(record: RunRecord, evidence: RunEvidence) -> View:
    """Return the steps with their reasons and a small timeline."""
    total = sum(step.seconds for step in record.steps) or 1.0
    rows, elapsed = [], 0.0
    for step in record.steps:
        tone = {"done": "ok", "failed": "bad", "pending": "off"}.get(step.status, "warn")
        took = None if step.status == "pending" or step.action == "reuse" else step.seconds
        start, width = round(100 * elapsed / total, 2), round(max(0.4, 100 * step.seconds / total), 2)
        rows.append({"step": step, "tone": tone, "took": took, "start": start, "width": width if step.seconds else 0})
        elapsed += step.seconds
    ran = [step for step in record.steps if step.action == "run" and step.status != "pending"]
    reused = sum(step.action == "reuse" for step in record.steps)
    return {"rows": rows, "ran": len(ran), "reused": reused, "total": sum(step.seconds for step in ran)}


def lineage(record: RunRecord, evidence: RunEvidence) -> View:
    """Return code, data, recipe and seed."""
    lineage = record.lineage
    changes = f": {lineage.git_changes}" if lineage.git_changes else ""
    tree = f"dirty: it had changes that are in no commit{changes}" if lineage.git_dirty else "clean"
    return {
        "facts": [
            ("Git commit", lineage.git_commit or "none: the recipe is outside a git checkout"),
            ("Git tree of the recipe's folder", lineage.git_tree or formatting.NONE),
            ("Working tree", tree if lineage.git_commit else formatting.NONE),
            ("Data version", lineage.data_version or formatting.NONE),
            *([("Data source", lineage.data_source)] if lineage.data_source else []),
            *([("Data commit", lineage.data_commit)] if lineage.data_commit else []),
            ("Recipe digest", lineage.recipe_digest or formatting.NONE),
            ("Seed", str(record.recipe.get("seed", formatting.NONE))),
            ("Run", record.run),
        ]
    }


def bundle(record: RunRecord, evidence: RunEvidence) -> View | None:
    """Return identity, blessing, signature and files of the bundle."""
    if evidence.manifest is None:
        return None
    signature = evidence.signature or {}
    ways = ("inputs", "outputs")
    return {
        "manifest": evidence.manifest,
        "blessing": evidence.blessing,
        "gated": bool(verdicts_of(record)),
        "graph_bytes": evidence.graph_bytes,
        "tensors": [{**tensor, "way": way} for way in ways for tensor in signature.get(way, ())],
        "classes": [str(name) for name in signature.get("classes", ())],
    }


def serving(record: RunRecord, evidence: RunEvidence) -> View | None:
    """Return the endpoint and an example request."""
    service = evidence.service
    if service is None:
        return None
    facts = [
        ("Service", service["service"]),
        ("Endpoint", record.endpoint or service.get("endpoint", "")),
        ("Version", service["version"]),
        ("Epoch of the routing table", str(service["epoch"])),
    ]
    return {"facts": facts, "curl": str(data_views.summary_of(record, "deploy").get("curl", ""))}


def recipe(record: RunRecord, evidence: RunEvidence) -> View:
    """Return the composed recipe as YAML, and its overrides."""
    import yaml

    text = yaml.safe_dump(_to_builtin(record.recipe), sort_keys=False, allow_unicode=True, width=100)
    return {"path": record.recipe_path, "overrides": list(record.overrides), "text": text}


def _to_builtin(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _to_builtin(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_builtin(item) for item in value]
    return value


_SECTIONS: tuple[tuple[str, str, str, Callable[..., View | None]], ...] = (
    ("steps", "What ran and why", "data", steps),
    ("gates", "Gates", "evaluate", gate_views.gates),
    ("data", "Data", "data", data_views.data),
    ("training", "Training", "train", model_views.training),
    ("quality", "Quality on the test rows", "evaluate", model_views.quality),
    ("slices", "Slices", "evaluate", gate_views.slices),
    ("champion", "Against the champion", "evaluate", gate_views.champion),
    ("latency", "Latency of the candidates", "optimize", latency_views.latency),
    ("bundle", "Bundle", "package", bundle),
    ("serving", "Service", "deploy", serving),
    ("lineage", "Lineage", "data", lineage),
    ("recipe", "Recipe", "data", recipe),
)
"""Identifier, title, required stage and view of each section, in the page's order."""
