"""What the page shows of judgement: gates, slices and the champion, each interval drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlflowkit.judging.metrics import LOWER_IS_BETTER
from mlflowkit.report import charts, formatting
from mlflowkit.report.run.data_views import View, summary_of
from mlflowkit.report.run.run_files import Evidence
from mlflowkit.values import Measurement, Outcome, RunRecord, Verdict

TONES: Mapping[Outcome, str] = {
    Outcome.PASSED: "ok",
    Outcome.FAILED: "bad",
    Outcome.INCONCLUSIVE: "warn",
    Outcome.ERROR: "bad",
}
SLICE_METRICS = 2
"""Metrics drawn for each slice."""


def gates(record: RunRecord, evidence: Evidence) -> View | None:
    """Verdicts by family (one metric, one axis), each with its interval drawn against its threshold."""
    reached = evidence.evaluation is not None or any(step.stage == "evaluate" and step.result for step in record.steps)
    if not reached:
        return None
    families: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts_of(record):
        unit = verdict.measurement.unit if verdict.measurement else ""
        families.setdefault((subject(verdict), unit), []).append(verdict)
    return {
        "families": [family(f"{name} ({unit})" if unit else name, group) for (name, unit), group in families.items()]
    }


def verdicts_of(record: RunRecord) -> tuple[Verdict, ...]:
    """What the gates said, over all steps."""
    return tuple(verdict for step in record.steps if step.result is not None for verdict in step.result.verdicts)


def subject(verdict: Verdict) -> str:
    """What a verdict's axis measures: the metric, or for a change threshold its difference to the champion's."""
    return f"{verdict.metric} minus champion" if verdict.change else verdict.metric


def family(title: str, verdicts: Sequence[Verdict]) -> View:
    """The rows of one axis."""
    bounds = [bound_of(verdict) for verdict in verdicts]
    domain = charts.forest_domain([bound for bound in bounds if bound is not None])
    rows = []
    for verdict, bound in zip(verdicts, bounds, strict=True):
        measured = verdict.measurement
        label = f"{verdict.gate}{', ' * bool(verdict.slice)}{verdict.slice}: {verdict.outcome}. {verdict.message}"
        rows.append(
            {
                "gate": verdict.gate,
                "slice": verdict.slice,
                "outcome": str(verdict.outcome),
                "tone": TONES[verdict.outcome],
                "blocking": verdict.blocking,
                "message": verdict.message,
                "svg": "" if bound is None else charts.forest_row(bound, domain, label),
                "method": "" if measured is None else method_words(measured),
            }
        )
    drawn = any(bound is not None for bound in bounds)
    return {"title": title, "rows": rows, "axis": charts.forest_axis(domain) if drawn else ""}


def bound_of(verdict: Verdict) -> charts.Bound | None:
    """What is drawn of a verdict; None for one without a measurement."""
    measured = verdict.measurement
    if measured is None:
        return None
    return charts.Bound(
        measured.low, measured.value, measured.high, verdict.threshold, verdict.direction, str(verdict.outcome)
    )


def method_words(measured: Measurement) -> str:
    """How an interval was made.

    >>> method_words(Measurement("roc_auc", 0.74, 0.69, 0.79, samples=1479, method="DeLong, logit"))
    '95 % interval: DeLong, logit'
    """
    interval = f"{formatting.number(100 * measured.confidence)} % interval"
    return f"{interval}: {measured.method}" if measured.method else interval


def slices(record: RunRecord, evidence: Evidence) -> View | None:
    """Each slice's metrics with intervals drawn around the figure for all rows."""
    found = evidence.evaluation
    if found is None:
        return None
    unjudged = list(summary_of(record, "evaluate").get("not_judged") or ())
    if not found.get("slices"):
        return {"tables": [], "unjudged": unjudged}
    gated = [verdict.metric for verdict in verdicts_of(record) if verdict.slice]
    present = list(dict.fromkeys(name for one in found["slices"] for name in one["metrics"]))
    names = [
        *dict.fromkeys(name for name in gated if name in present),
        *(name for name in present if name not in gated),
    ]
    return {"tables": [slice_table(name, found) for name in names[:SLICE_METRICS]], "unjudged": unjudged}


def slice_table(name: str, found: Mapping[str, Any]) -> View:
    """One metric over all slices."""
    overall = (found["metrics"].get(name) or {}).get("value")
    bounds = [
        (one, measured, shown(measured, overall)) for one in found["slices"] if (measured := one["metrics"].get(name))
    ]
    domain = charts.forest_domain([bound for *_, bound in bounds])
    rows = [
        {
            "slice": f"{one['column']} = {one['value']}",
            "rows": formatting.number(one["rows"]),
            "interval": formatting.interval(measured),
            "svg": charts.forest_row(
                bound, domain, f"{name} of {one['column']} = {one['value']}: {formatting.interval(measured)}"
            ),
        }
        for one, measured, bound in bounds
    ]
    return {"metric": name, "overall": formatting.number(overall), "rows": rows, "axis": charts.forest_axis(domain)}


def champion(record: RunRecord, evidence: Evidence) -> View | None:
    """Paired differences to the model that served when this one was judged."""
    found = evidence.evaluation
    if found is None:
        return None
    against = found.get("champion")
    if not against:
        return {"version": "", "rows": [], "fault": ""}
    rows = []
    for name, one in against["metrics"].items():
        gap = one["difference"]
        bound = shown(gap, 0.0)
        label = f"{name}: candidate minus champion {formatting.interval(gap)}"
        domain = charts.forest_domain([bound])
        rows.append(
            {
                "metric": name,
                "champion": formatting.number(plain(one["champion"])),
                "candidate": formatting.number(plain(one["candidate"])),
                "difference": formatting.interval(gap),
                "tells": told(name, bound),
                "svg": charts.forest_row(bound, domain, label) + charts.forest_axis(domain),
            }
        )
    return {
        "version": formatting.short(against["version"]),
        "count": formatting.number(against["rows"]),
        "left_out": against.get("left_out") or 0,
        "of": formatting.number(against["rows"] + (against.get("left_out") or 0)),
        "why": against.get("why") or "",
        "rows": rows,
        "fault": against.get("fault") or "",
    }


def told(metric: str, difference: charts.Bound) -> tuple[str, str]:
    """What an interval of candidate minus champion says of the candidate, and its tone on the page.

    >>> told("roc_auc", charts.Bound(0.01, 0.02, 0.03)), told("rmse", charts.Bound(0.01, 0.02, 0.03))
    (('better', 'ok'), ('worse', 'bad'))
    """
    if difference.low > 0 or difference.high < 0:
        better = (difference.high < 0) == (metric in LOWER_IS_BETTER)
        return ("better", "ok") if better else ("worse", "bad")
    return ("cannot be told apart", "off")


def shown(measured: Mapping[str, Any], reference: float | None) -> charts.Bound:
    """A measurement (as JSON, where what is not a number is null) drawn beside a reference, with no threshold."""
    low, value, high = (math.nan if measured.get(key) is None else measured[key] for key in ("low", "value", "high"))
    return charts.Bound(low, value, high, reference=reference)


def plain(value: Any) -> Any:
    """The number of a measurement, or the number itself."""
    return value.get("value") if isinstance(value, Mapping) else value
