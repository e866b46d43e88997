"""Template data of evidence on the admin page: metrics, shadow comparisons, incidents, webhook deliveries. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflowkit.report import charts, formatting
from mlflowkit.report.rollout import rollout_charts
from mlflowkit.report.run.data_views import View
from mlflowkit.rollout.admin.view_models import (
    ComparisonView,
    ExampleView,
    FindingView,
    IncidentView,
    ServiceView,
    ShareView,
)
from mlflowkit.rollout.state import AUTHORS
from mlflowkit.system.text import format_count, truncate

OUTCOMES = {"PASSED": "ok", "FAILED": "bad", "INCONCLUSIVE": "warn", "ERROR": "bad"}
RATES = ("error_rate", "agreement", "accuracy")
"""Metrics that are shares, shown in percent."""
MAX_EXAMPLES = 20
"""Listed disagreements."""
MAX_COLUMNS = 30
"""Input columns of a disagreement."""
MAX_CELL = 48
"""Characters of a value."""
MAX_DELIVERIES = 20
"""Listed webhook deliveries."""
MAX_SLICES = 40
"""Listed slices, lowest agreement first."""


def evidence(view: ServiceView) -> View | None:
    """The verdict and the history of each metric."""
    rollout = view.rollout
    if rollout is None or not rollout.findings:
        return None
    rows = [finding_row(finding) for finding in rollout.findings]
    figures = []
    for finding in rollout.findings:
        points = rollout.history.get(finding.name, ())
        if len(points) > 1:
            figures.append({**rollout_charts.boundary(finding, points, rollout.begun), "kind": "boundary"})
            figures.append(rollout_charts.estimate(finding, points, rollout.begun, *scale_of(finding)))
    return {"rows": rows, "figures": figures, "level": formatting.share(rollout.level)}


def finding_row(finding: FindingView) -> View:
    """One metric: verdict, evidence towards both boundaries, estimate."""
    factor, unit = scale_of(finding)
    return {
        "name": finding.name,
        "role": finding.role,
        "outcome": finding.outcome,
        "tone": OUTCOMES[finding.outcome],
        "svg": rollout_charts.balance(finding.name, finding.harm, finding.proof),
        "harm": formatting.share(_clamp(finding.harm)),
        "proof": formatting.share(_clamp(finding.proof)),
        "interval": rollout_charts.interval_text(finding, factor, unit),
        "threshold": threshold(finding),
        "samples": f"{finding.champion:,} · {finding.challenger:,}",
        "message": finding.message if finding.value is None or finding.slice else "",
        "method": finding.method,
    }


def _clamp(value: float | None) -> float | None:
    return None if value is None else min(1.0, max(0.0, value))


def scale_of(finding: FindingView) -> tuple[float, str]:
    """The display factor and display unit of a metric's numbers."""
    if finding.metric in RATES:
        return 100.0, "points" if finding.change else "%"
    return 1.0, "times" if finding.unit == "x" else finding.unit


def threshold(finding: FindingView) -> str:
    if finding.threshold is None:
        return ""
    factor, unit = scale_of(finding)
    word = "at least" if finding.direction == "min" else "at most"
    sign = "+" if finding.change and finding.unit != "x" and finding.threshold > 0 else ""
    return f"{word} {sign}{formatting.number(finding.threshold * factor)} {unit}".strip()


def shadow(view: ServiceView) -> View | None:
    """The agreement of each shadow with the champion."""
    names = [*view.agreement, *(name for name in view.comparisons if name not in view.agreement)]
    return {"shadows": [shadow_agreement(name, view) for name in names]} if names else None


def shadow_agreement(name: str, view: ServiceView) -> View:
    """The agreement of one shadow, overall and by slice, with examples of disagreement."""
    shares = view.agreement.get(name, ())
    listed = shares[: MAX_SLICES + 1]
    overall = next((share for share in shares if not share.slice), None)
    middle = None if overall is None else overall.value
    bounds = [charts.Bound(share.low, share.value, share.high, reference=middle) for share in listed]
    domain = charts.forest_domain(bounds)
    rows = [
        {
            "slice": share.slice or "all rows",
            "rows": f"{share.rows:,}",
            "interval": share_text(share),
            "svg": charts.forest_row(bound, domain, f"{share.slice or 'all rows'}: {share_text(share)}"),
        }
        for share, bound in zip(listed, bounds, strict=True)
    ]
    return {
        "name": name,
        "overall": share_text(overall) if overall else "",
        "rows": rows,
        "more": len(shares) - len(listed),
        "axis": charts.forest_axis(domain) if rows else "",
        "compared": compared(view.comparisons.get(name)),
    }


def share_text(share: ShareView) -> str:
    """A share with its interval, in percent.

    >>> share_text(ShareView("", 10, 0.9, 0.6, 0.98))
    '90 % [60 %, 98 %] of 10 rows'
    """
    low, value, high = (formatting.share(number) for number in (share.low, share.value, share.high))
    return f"{value} [{low}, {high}] of {format_count(share.rows, 'row')}"


def compared(comparison: ComparisonView | None) -> View | None:
    """The comparison of a shadow beside its agreement, and recorded disagreements."""
    if comparison is None:
        return None
    slower = "–" if comparison.latency is None else f"{1000 * comparison.latency:+.3g} ms on average"
    facts = [
        ("Version", comparison.version),
        ("Rows that disagree", f"{comparison.disagreements:,} of {comparison.rows:,} compared"),
        ("Mean difference of scores", formatting.number(comparison.difference)),
        ("Rank correlation of scores", formatting.number(comparison.rank)),
        ("Slower than the request", slower),
    ]
    sample = comparison.examples[:MAX_EXAMPLES]
    drawn = f"{len(sample)} of {comparison.disagreements:,}, drawn at random, newest first"
    return {"facts": facts, "examples": disagreements(sample, f"{drawn}; sliced columns come first.")}


def disagreements(examples: Sequence[ExampleView], caption: str) -> View | None:
    """Rows on which a shadow and the champion disagree: both answers and the inputs."""
    if not examples:
        return None
    sliced = {text.partition("=")[0]: None for example in examples for text in example.slices}
    columns = [column for column in sliced if any(column in example.inputs for example in examples)]
    columns += [column for column in examples[0].inputs if column not in sliced]
    return {
        "caption": caption,
        "left_out": max(0, len(columns) - MAX_COLUMNS),
        "columns": columns[:MAX_COLUMNS],
        "rows": [
            {
                "time": formatting.moment(example.time),
                "id": example.id,
                "row": example.row,
                "champion": answer(example.champion),
                "shadow": answer(example.shadow),
                "difference": formatting.NONE if example.difference is None else f"{example.difference:+.4f}",
                "inputs": [cell(example.inputs.get(column)) for column in columns[:MAX_COLUMNS]],
            }
            for example in examples
        ],
    }


def answer(outputs: Mapping[str, Any]) -> str:
    """A model's answer for a row as short text.

    >>> answer({"label": "good", "probabilities": [0.2, 0.8]}), answer({"prediction": 3.25})
    ('good, 80 %', '3.25')
    """
    if "label" in outputs:
        numbers = [value for value in outputs.get("probabilities") or () if isinstance(value, int | float)]
        return f"{cell(outputs['label'])}, {formatting.share(max(numbers))}" if numbers else cell(outputs["label"])
    return ", ".join(cell(value) for value in outputs.values())


def cell(value: Any) -> str:
    """A value shortened for a table cell.

    >>> cell(0.1234567), cell("x" * 100)[-1], cell(None)
    ('0.123457', '…', '–')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = formatting.NONE if value is None else str(value)
        return truncate(text, MAX_CELL)
    return f"{value:.6g}"


def incidents(view: ServiceView) -> View | None:
    """The rollouts that were rolled back or aborted, each with its evidence."""
    if not view.incidents:
        return None
    incidents = [incident_view(incident) for incident in view.incidents]
    return {"incidents": incidents, "more": view.incident_count - len(incidents)}


def incident_view(incident: IncidentView) -> View:
    requests = [(name, counts["requests"], counts["errors"]) for name, counts in incident.counts.items()]
    counted = [f"{name} {total:,} requests, {failed:,} failed" for name, total, failed in requests]
    steps = ", ".join(formatting.share(weight) for weight in incident.steps)
    lasted = f"{formatting.seconds(incident.time - incident.began)}, to step {incident.step} of {len(incident.steps)}"
    facts = [
        ("Experiment", incident.experiment),
        ("Decided by", AUTHORS.get(incident.by, "the policy")),
        ("Lasted", f"{lasted} ({steps})"),
        ("Strategy", incident.strategy),
        ("Versions", f"{incident.candidate_version} against champion {incident.champion_version}"),
        ("Counted", "; ".join(counted) or formatting.NONE),
        *((name.replace("_", " ").capitalize(), value) for name, value in incident.lineage.items()),
    ]
    return {
        "id": incident.id,
        "time": formatting.moment(incident.time),
        "version": incident.candidate_version,
        "ending": "rolled back" if incident.ending == "rolled_back" else "aborted",
        "tone": "bad" if incident.ending == "rolled_back" else "off",
        "reason": incident.reason,
        "facts": facts,
        "rows": [finding_row(finding) for finding in incident.findings],
        "examples": disagreements(incident.examples[:MAX_EXAMPLES], "Disagreements recorded until the end."),
    }


def webhooks(view: ServiceView) -> View | None:
    """The results of the last webhook deliveries."""
    if not view.webhooks and not view.waiting_webhooks:
        return None
    rows = [
        {
            "time": formatting.moment(delivery.get("time")),
            "event": delivery.get("event", ""),
            "url": delivery.get("url", ""),
            "ok": bool(delivery.get("ok")),
            "status": delivery.get("error") or f"HTTP {delivery.get('status')}",
            "attempts": delivery.get("attempts", ""),
        }
        for delivery in view.webhooks[:MAX_DELIVERIES]
    ]
    return {"rows": rows, "waiting": view.waiting_webhooks}
