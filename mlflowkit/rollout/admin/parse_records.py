"""Parse the JSON of findings, incidents and shadow comparisons into views. Pure.

Malformed records raise KeyError, TypeError or ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from mlflowkit.judging.online.evidence import Moments
from mlflowkit.rollout.admin.view_models import ComparisonView, ExampleView, FindingView, IncidentView
from mlflowkit.values import Json, Outcome


def finding_from_json(value: Mapping[str, Json], role: str) -> FindingView:
    """Parse a finding of an incident."""
    verdict, measured = value["verdict"], value["verdict"]["measurement"] or {}
    champion, challenger = value["samples"]
    return FindingView(
        name=str(value["name"]),
        metric=str(verdict["metric"]),
        role="guardrail" if role == "guardrail" else "objective",
        outcome=Outcome(verdict["outcome"]),
        message=str(verdict["message"]),
        harm=_number(value["harm"]),
        proof=_number(value["proof"]),
        value=_number(measured.get("value")),
        low=_number(measured.get("low")),
        high=_number(measured.get("high")),
        threshold=_number(verdict["threshold"]),
        direction="min" if verdict["direction"] == "min" else "max",
        change=bool(verdict["change"]),
        unit=str(measured.get("unit", "")),
        method=str(measured.get("method", "")),
        slice=str(verdict["slice"]),
        champion=int(champion),
        challenger=int(challenger),
    )


def incident_from_json(name: str, value: Json) -> IncidentView:
    """Parse an incident of `rollout.incidents`."""
    metrics, findings = value["plan"]["metrics"], value["findings"]
    same = len(metrics) == len(findings)
    metric_roles = [metric["role"] for metric in metrics] if same else ["objective"] * len(findings)
    return IncidentView(
        id=name,
        experiment=str(value["experiment"]),
        time=float(value["time"]),
        began=float(value["began"]),
        ending=str(value["ending"]),
        by=str(value["by"]),
        reason=str(value["reason"]),
        strategy=str(value["strategy"]),
        step=int(value["step"]),
        steps=tuple(float(weight) / 100 for weight in value["steps"]),
        champion_version=str(value["champion"]["version"]),
        candidate_version=str(value["candidate"]["version"]),
        candidate_digest=str(value["candidate"]["digest"]),
        findings=tuple(finding_from_json(*pair) for pair in zip(findings, metric_roles, strict=True)),
        counts={
            str(variant): {key: int(counts.get(key, 0)) for key in ("requests", "errors", "rows")}
            for variant, counts in value["counts"].items()
        },
        lineage={str(key): str(item) for key, item in (value["lineage"] or {}).items()},
        examples=tuple(map(example_from_json, value["disagreements"])),
    )


def comparison_from_json(value: Json) -> ComparisonView:
    """Parse a comparison of `serving.observer.shadow_comparison`."""
    means = {name: Moments(*value[name]).mean for name in ("difference", "rank", "latency")}
    rows = value["agreement"].get("", (0, 0.0, 0.0))[0]
    examples = sorted(map(example_from_json, value["examples"]), key=lambda example: -example.time)
    return ComparisonView(
        shadow=str(value["shadow"]),
        version=str(value["version"]),
        rows=int(rows),
        disagreements=int(value["disagreements"]),
        difference=finite_or_none(means["difference"]),
        rank=finite_or_none(means["rank"]),
        latency=finite_or_none(means["latency"]),
        examples=tuple(examples),
    )


def example_from_json(value: Json) -> ExampleView:
    return ExampleView(
        time=float(value["time"]),
        id=str(value["id"]),
        row=int(value["row"]),
        slices=tuple(map(str, value.get("slices", ()))),
        inputs=dict(value["inputs"]),
        champion=dict(value["champion"]),
        shadow=dict(value["shadow"]),
        difference=_number(value["difference"]),
    )


def _number(value: Json) -> float | None:
    """A JSON number; null stands for a number that is not finite."""
    return None if value is None else finite_or_none(float(value))


def finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
