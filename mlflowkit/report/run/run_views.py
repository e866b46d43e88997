"""What each section of the page shows, as plain values: (record, evidence) -> mapping, or None when not reached.

Pure. Words and numbers are formatted here; the templates only place them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflowkit.report import formatting
from mlflowkit.report.run import data_views, gate_views, latency_views, model_views
from mlflowkit.report.run.data_views import View
from mlflowkit.report.run.gate_views import verdicts_of
from mlflowkit.report.run.run_files import Evidence
from mlflowkit.values import STAGES, Outcome, RunRecord

STATUS_TONES: Mapping[str, str] = {
    "done": "ok",
    "running": "warn",
    "failed": "bad",
    "gate-failed": "bad",
    "inconclusive": "warn",
    "interrupted": "warn",
}
HEADLINES = 3
"""Metrics shown at the top of the page."""


@dataclass(frozen=True, slots=True)
class Section:
    """One section. ``absent`` says why there is nothing to show; then ``view`` is empty."""

    id: str
    title: str
    absent: str = ""
    view: View = field(default_factory=dict)


def sections(record: RunRecord, evidence: Evidence) -> list[Section]:
    """Every section in the page's order; those that the run did not reach say so."""
    return [_section(record, evidence, *entry) for entry in _SECTIONS]


def _section(
    record: RunRecord, evidence: Evidence, id: str, title: str, stage: str, view: Callable[..., View | None]
) -> Section:
    shown = view(record, evidence)
    if shown is None:
        return Section(id, title, absent=absence(record, stage))
    return Section(id, title, view=shown)


def absence(record: RunRecord, stage: str) -> str:
    """Why there is nothing of a stage, in words."""
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


def overview(record: RunRecord, evidence: Evidence) -> View:
    """The head of the page: status, what went wrong, the numbers that people look for first."""
    error = record.error or next((step.error for step in record.steps if step.error), "")
    took = None if record.finished is None else record.finished - record.started
    return {
        "status": record.status,
        "tone": STATUS_TONES.get(record.status, "warn"),
        "started": formatting.moment(record.started),
        "took": formatting.seconds(took),
        "error": error,
        "tiles": [*_metric_tiles(record, evidence), *_latency_tile(evidence), *_outcome_tiles(record, evidence)],
    }


def _metric_tiles(record: RunRecord, evidence: Evidence) -> list[View]:
    metrics = (evidence.evaluation or {}).get("metrics", {})
    gated = [verdict.metric for verdict in verdicts_of(record) if verdict.metric in metrics]
    names = [name for name in dict.fromkeys([*gated, *metrics]) if not name.startswith("latency_")][:HEADLINES]
    return [
        {
            "name": name,
            "value": formatting.number(metrics[name].get("value")),
            "small": f"{formatting.number(metrics[name].get('low'))} to {formatting.number(metrics[name].get('high'))}",
        }
        for name in names
    ]


def _latency_tile(evidence: Evidence) -> list[View]:
    picked = next((one for one in evidence.candidates or [] if one.get("picked")), None)
    if picked is None:
        return []
    small = f"{picked['name']}, batch {picked['batch']}"
    return [{"name": "latency p99", "value": formatting.micros(picked.get("p99_us")), "small": small}]


def _outcome_tiles(record: RunRecord, evidence: Evidence) -> list[View]:
    tiles: list[View] = []
    verdicts = verdicts_of(record)
    if verdicts:
        passed = sum(verdict.outcome is Outcome.PASSED for verdict in verdicts)
        others = [str(verdict.outcome) for verdict in verdicts if verdict.outcome is not Outcome.PASSED]
        small = ", ".join(f"{others.count(name)} {name}" for name in dict.fromkeys(others)) or "all of them"
        tiles.append({"name": "gates passed", "value": f"{passed} of {len(verdicts)}", "small": small})
    if evidence.manifest is not None:
        blessed = "blessed" if evidence.blessing is not None else "not blessed"
        tiles.append({"name": "bundle", "value": evidence.manifest["version"], "small": blessed})
    return tiles


def steps(record: RunRecord, evidence: Evidence) -> View:
    """What ran and why, with a small timeline."""
    total = sum(step.seconds for step in record.steps) or 1.0
    rows, elapsed = [], 0.0
    for step in record.steps:
        rows.append(
            {
                "stage": step.stage,
                "action": step.action,
                "status": step.status,
                "tone": {"done": "ok", "failed": "bad"}.get(step.status, "warn" if step.status != "pending" else "off"),
                "reason": step.reason,
                "seconds": formatting.NONE
                if step.status == "pending" or step.action == "reuse"
                else formatting.seconds(step.seconds),
                "start": round(100 * elapsed / total, 2),
                "width": round(max(0.4, 100 * step.seconds / total), 2) if step.seconds else 0,
                "fingerprint": formatting.short(step.fingerprint),
                "digest": formatting.short(step.digest),
            }
        )
        elapsed += step.seconds
    ran = [step for step in record.steps if step.action == "run" and step.status != "pending"]
    reused = sum(step.action == "reuse" for step in record.steps)
    return {"rows": rows, "ran": len(ran), "reused": reused, "total": formatting.seconds(sum(s.seconds for s in ran))}


def lineage(record: RunRecord, evidence: Evidence) -> View:
    """Code, data, recipe and seed."""
    from_git = record.lineage.git_commit
    return {
        "facts": [
            ("Git commit", from_git or "none: the recipe is outside a git checkout"),
            (
                "Working tree",
                ("dirty: it had changes that are in no commit" if record.lineage.git_dirty else "clean")
                if from_git
                else formatting.NONE,
            ),
            ("Data version", record.lineage.data_version or formatting.NONE),
            ("Recipe digest", record.lineage.recipe_digest or formatting.NONE),
            ("Seed", str(record.recipe.get("seed", formatting.NONE))),
            ("Run", record.run),
        ]
    }


def bundle(record: RunRecord, evidence: Evidence) -> View | None:
    """Identity, blessing, signature and files of the bundle."""
    manifest = evidence.manifest
    if manifest is None:
        return None
    blessing = evidence.blessing
    signature = evidence.signature or {}
    return {
        "blessed": blessing is not None,
        "blessed_at": formatting.moment(blessing["created"]) if blessing else "",
        "blessed_by": blessing["run"] if blessing else "",
        "facts": [
            ("Name", manifest["name"]),
            ("Version", manifest["version"]),
            ("Identity", manifest["identity"]),
            ("Evidence", manifest["evidence"]),
            ("Policy (digest of the gates)", manifest["policy"]),
            ("Graph", f"{formatting.number(evidence.graph_bytes)} bytes" if evidence.graph_bytes else formatting.NONE),
        ],
        "tensors": [
            {**tensor, "way": way, "shape": list(tensor["shape"])}
            for way in ("inputs", "outputs")
            for tensor in signature.get(way, ())
        ],
        "classes": [str(name) for name in signature.get("classes", ())],
        "files": sorted(manifest["files"].items()),
    }


def serving(record: RunRecord, evidence: Evidence) -> View | None:
    """The endpoint and the request that the deploy stage had answered."""
    service = evidence.service
    if service is None:
        return None
    endpoint = record.endpoint or service.get("endpoint", "")
    return {
        "facts": [
            ("Service", service["service"]),
            ("Endpoint", endpoint),
            ("Version", service["version"]),
            ("Epoch of the routing table", str(service["epoch"])),
        ],
        "curl": str(data_views.summary_of(record, "deploy").get("curl", "")),
    }


def recipe(record: RunRecord, evidence: Evidence) -> View:
    """The composed recipe, whole, as YAML, and the overrides it was asked with."""
    import yaml

    text = yaml.safe_dump(_plain(record.recipe), sort_keys=False, allow_unicode=True, width=100)
    return {"path": record.recipe_path, "overrides": list(record.overrides), "text": text}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
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
"""Identifier, title, stage that it rests on and view of each section, in the page's order."""
