"""What the admin page shows of each metric: its verdict, its evidence towards both boundaries, its course. Pure."""

from __future__ import annotations

from mlflowkit.report import formatting
from mlflowkit.report.rollout import rollout_charts
from mlflowkit.report.run.data_views import View
from mlflowkit.rollout.admin.view_models import FindingView, ServiceView

OUTCOMES = {"PASSED": "ok", "FAILED": "bad", "INCONCLUSIVE": "warn", "ERROR": "bad"}
RATES = ("error_rate", "agreement", "accuracy")
"""Metrics that are shares of one: told in percent."""


def evidence(view: ServiceView) -> View | None:
    """What each metric says, and how it came to say it."""
    found = view.rollout
    if found is None or not found.findings:
        return None
    rows = [finding_row(one) for one in found.findings]
    figures = []
    for one in found.findings:
        points = found.history.get(one.name, ())
        if len(points) > 1:
            figures.append({**rollout_charts.boundary(one, points, found.begun), "kind": "boundary"})
            figures.append(rollout_charts.estimate(one, points, found.begun, *scale_of(one)))
    return {"rows": rows, "figures": figures, "level": formatting.share(found.level)}


def finding_row(one: FindingView) -> View:
    """One metric: its verdict, its evidence towards both boundaries, and the estimate."""
    factor, unit = scale_of(one)
    return {
        "name": one.name,
        "role": one.role,
        "outcome": one.outcome,
        "tone": OUTCOMES[one.outcome],
        "svg": rollout_charts.balance(one.name, one.harm, one.proof),
        "harm": formatting.share(capped(one.harm)),
        "proof": formatting.share(capped(one.proof)),
        "interval": rollout_charts.interval_words(one, factor, unit),
        "threshold": threshold(one),
        "samples": f"{one.champion:,} · {one.challenger:,}",
        "message": one.message if one.value is None or one.slice else "",
        "method": one.method,
    }


def capped(value: float | None) -> float | None:
    return None if value is None else min(1.0, max(0.0, value))


def scale_of(one: FindingView) -> tuple[float, str]:
    """What the numbers of a metric are multiplied by to be shown, and in what unit they are then."""
    if one.metric in RATES:
        return 100.0, "points" if one.change else "%"
    return 1.0, "times" if one.unit == "x" else one.unit


def threshold(one: FindingView) -> str:
    """The bound that a metric is held against, in words."""
    if one.threshold is None:
        return ""
    factor, unit = scale_of(one)
    word = "at least" if one.direction == "min" else "at most"
    sign = "+" if one.change and one.unit != "x" and one.threshold > 0 else ""
    return f"{word} {sign}{formatting.number(one.threshold * factor)} {unit}".strip()
