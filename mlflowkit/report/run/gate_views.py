"""Views of the evaluation: gates, slices and the champion, with intervals drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlflowkit.judging.coverage import recipe_warnings
from mlflowkit.judging.metrics import lower_is_better
from mlflowkit.report import charts, formatting
from mlflowkit.report.run.data_views import View, summary_of
from mlflowkit.report.run.run_files import RunEvidence
from mlflowkit.values import Measurement, Outcome, RunRecord, Verdict

TONES: Mapping[Outcome, str] = {Outcome.PASSED: "ok", Outcome.INCONCLUSIVE: "warn"}
"""Tones of an outcome; others are bad."""
SLICE_METRICS = 2
"""Metrics drawn for each slice."""


def gates(record: RunRecord, evidence: RunEvidence) -> View | None:
    """Return verdicts by family (one metric, one axis), with intervals drawn against thresholds."""
    reached = evidence.evaluation is not None or any(step.stage == "evaluate" and step.result for step in record.steps)
    if not reached:
        return None
    families: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts_of(record):
        unit = verdict.measurement.unit if verdict.measurement else ""
        families.setdefault((subject(verdict), unit), []).append(verdict)
    return {
        "families": [family(f"{name} ({unit})" if unit else name, group) for (name, unit), group in families.items()],
        "warnings": recipe_warnings(record.recipe),
    }


def verdicts_of(record: RunRecord) -> tuple[Verdict, ...]:
    """Return the verdicts of all steps."""
    return tuple(verdict for step in record.steps if step.result is not None for verdict in step.result.verdicts)


def subject(verdict: Verdict) -> str:
    """Return the label of a verdict's axis: the metric, or for a change threshold its difference to the champion."""
    return f"{verdict.metric} minus champion" if verdict.change else verdict.metric


def family(title: str, verdicts: Sequence[Verdict]) -> View:
    """Return the rows of one axis."""
    bounds = [bound_of(verdict) for verdict in verdicts]
    domain = charts.forest_domain([bound for bound in bounds if bound is not None])
    rows = []
    for verdict, bound in zip(verdicts, bounds, strict=True):
        measured = verdict.measurement
        label = f"{verdict.gate}{', ' * bool(verdict.slice)}{verdict.slice}: {verdict.outcome}. {verdict.message}"
        svg = "" if bound is None else charts.forest_row(bound, domain, label)
        method = "" if measured is None else describe_method(measured)
        rows.append({"verdict": verdict, "tone": TONES.get(verdict.outcome, "bad"), "svg": svg, "method": method})
    drawn = any(bound is not None for bound in bounds)
    return {"title": title, "rows": rows, "axis": charts.forest_axis(domain) if drawn else ""}


def bound_of(verdict: Verdict) -> charts.Bound | None:
    """Return the drawn bound of a verdict; None without a measurement."""
    measured = verdict.measurement
    if measured is None:
        return None
    return charts.Bound(
        measured.low, measured.value, measured.high, verdict.threshold, verdict.direction, str(verdict.outcome)
    )


def describe_method(measured: Measurement) -> str:
    """Describe the method of an interval.

    >>> describe_method(Measurement("roc_auc", 0.74, 0.69, 0.79, samples=1479, method="DeLong, logit"))
    '95 % interval: DeLong, logit'
    """
    interval = f"{formatting.number(100 * measured.confidence)} % interval"
    return f"{interval}: {measured.method}" if measured.method else interval


def slices(record: RunRecord, evidence: RunEvidence) -> View | None:
    """Return each slice's metrics with intervals drawn around the value for all rows."""
    evaluation = evidence.evaluation
    if evaluation is None:
        return None
    unjudged = list(summary_of(record, "evaluate").get("not_judged") or ())
    if not evaluation.get("slices"):
        return {"tables": [], "unjudged": unjudged}
    gated = [verdict.metric for verdict in verdicts_of(record) if verdict.slice]
    present = list(dict.fromkeys(name for row in evaluation["slices"] for name in row["metrics"]))
    names = list(dict.fromkeys([*(name for name in gated if name in present), *present]))
    return {"tables": [slice_table(name, evaluation) for name in names[:SLICE_METRICS]], "unjudged": unjudged}


def slice_table(name: str, evaluation: Mapping[str, Any]) -> View:
    """Return one metric over all slices."""
    overall = (evaluation["metrics"].get(name) or {}).get("value")
    bounds = [
        (row, measured, reference_bound(measured, overall))
        for row in evaluation["slices"]
        if (measured := row["metrics"].get(name))
    ]
    domain = charts.forest_domain([bound for *_, bound in bounds])
    rows = []
    for row, measured, bound in bounds:
        label, interval = f"{row['column']} = {row['value']}", formatting.interval(measured)
        svg = charts.forest_row(bound, domain, f"{name} of {label}: {interval}")
        rows.append({"slice": label, "rows": row["rows"], "interval": interval, "svg": svg})
    return {"metric": name, "overall": overall, "rows": rows, "axis": charts.forest_axis(domain)}


def champion(record: RunRecord, evidence: RunEvidence) -> View | None:
    """Return paired differences to the champion at the time of the evaluation."""
    if evidence.evaluation is None:
        return None
    against = evidence.evaluation.get("champion")
    if not against:
        return {"version": "", "rows": [], "fault": ""}
    rows = []
    for name, row in against["metrics"].items():
        gap = row["difference"]
        bound = reference_bound(gap, 0.0)
        label = f"{name}: candidate minus champion {formatting.interval(gap)}"
        domain = charts.forest_domain([bound])
        rows.append(
            {
                "metric": name,
                "champion": value_of(row["champion"]),
                "candidate": value_of(row["candidate"]),
                "difference": gap,
                "tells": judge_difference(name, bound),
                "svg": charts.forest_row(bound, domain, label) + charts.forest_axis(domain),
            }
        )
    version, fault = formatting.short(against["version"]), against.get("fault") or ""
    return {"version": version, "against": against, "rows": rows, "fault": fault}


def judge_difference(metric: str, difference: charts.Bound) -> tuple[str, str]:
    """Return a verdict on the interval of candidate minus champion, and its tone on the page.

    >>> bound = charts.Bound(0.01, 0.02, 0.03)
    >>> judge_difference("roc_auc", bound), judge_difference("rmse", bound)
    (('better', 'ok'), ('worse', 'bad'))
    """
    if difference.low > 0 or difference.high < 0:
        better = (difference.high < 0) == lower_is_better(metric)
        return ("better", "ok") if better else ("worse", "bad")
    return ("cannot be told apart", "off")


def reference_bound(measured: Mapping[str, Any], reference: float | None) -> charts.Bound:
    """Return the bound of a measurement (JSON, with null for NaN) beside a reference, without a threshold."""
    low, value, high = (math.nan if measured.get(key) is None else measured[key] for key in ("low", "value", "high"))
    return charts.Bound(low, value, high, reference=reference)


def value_of(value: Any) -> Any:
    """Return the value of a measurement, or a plain number."""
    return value.get("value") if isinstance(value, Mapping) else value
