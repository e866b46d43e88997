"""What the page shows of the model: gates, training curves, quality, slices, champion, latency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlflowkit.report import charts, format
from mlflowkit.report.evidence import Evidence
from mlflowkit.values import Outcome, RunRecord, Verdict

View = Mapping[str, Any]

TONES: Mapping[Outcome, str] = {
    Outcome.PASSED: "ok",
    Outcome.FAILED: "bad",
    Outcome.INCONCLUSIVE: "warn",
    Outcome.ERROR: "bad",
}
MOST_CLASSES = 20
"""A larger confusion matrix is shown as its largest confusions."""
SLICE_METRICS = 2
"""Metrics drawn for each slice."""
PERCENTILES = ((0.0, "0"), (0.5, "50"), (0.9, "90"), (0.95, "95"), (0.99, "99"), (0.999, "99.9"))


def figure(title: str, layers: Sequence[charts.Layer], note: str = "", **axes: Any) -> View:
    """A plot with its title, legend and a line under it."""
    return {"title": title, "svg": charts.plot(layers, **axes), "legend": charts.legend(layers), "note": note}


def gates(record: RunRecord, evidence: Evidence) -> View | None:
    """Verdicts by family (one metric, one axis), each with its interval drawn against its threshold."""
    reached = evidence.evaluation is not None or any(step.stage == "evaluate" and step.result for step in record.steps)
    if not reached:
        return None
    verdicts = [verdict for step in record.steps if step.result for verdict in step.result.verdicts]
    families: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        measured = verdict.measurement
        key = (measured.name or verdict.metric, measured.unit) if measured else (verdict.metric, "")
        families.setdefault(key, []).append(verdict)
    return {"families": [family(f"{name} ({unit})" if unit else name, group) for (name, unit), group in families.items()]}


def family(title: str, verdicts: Sequence[Verdict]) -> View:
    """The rows of one axis."""
    bounds = [bound_of(verdict) for verdict in verdicts]
    domain = charts.forest_domain([bound for bound in bounds if bound is not None])
    rows = []
    for verdict, bound in zip(verdicts, bounds, strict=True):
        measured = verdict.measurement
        label = f"{verdict.gate} {verdict.slice}: {verdict.outcome}. {verdict.message}"
        rows.append(
            {
                "gate": verdict.gate,
                "slice": verdict.slice,
                "outcome": str(verdict.outcome),
                "tone": TONES[verdict.outcome],
                "blocking": verdict.blocking,
                "message": verdict.message,
                "svg": "" if bound is None else charts.forest_row(bound, domain, label),
                "method": "" if measured is None else method_words(measured.confidence, measured.method, measured.samples),
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


def method_words(confidence: float, method: str, samples: int) -> str:
    """How an interval was made.

    >>> method_words(0.95, "DeLong", 1479)
    '95 % interval, DeLong, n = 1,479'
    """
    parts = [f"{format.number(100 * confidence)} % interval", method, f"n = {format.number(samples)}"]
    return ", ".join(part for part in parts if part)


def training(record: RunRecord, evidence: Evidence) -> View | None:
    """Curves of loss, metrics and learning rate, and what was fitted."""
    if evidence.curves is None and evidence.trained is None:
        return None
    step = next((step for step in record.steps if step.stage == "train" and step.result is not None), None)
    summary = dict(step.result.summary) if step is not None and step.result is not None else {}
    curves = evidence.curves or {}
    epochs = curves.get("epoch") or []
    figures = curve_figures(curves, epochs, summary.get("best_epoch")) if len(epochs) > 1 else []
    model = record.recipe.get("model") or {}
    facts = [("Model", str(model.get("module", format.NONE)))]
    facts += [("Arguments", str(model["args"]))] if model.get("args") else []
    facts += [(name.replace("_", " ").capitalize(), words(value)) for name, value in summary.items() if words(value)]
    names = [name for name in curves if name != "epoch"]
    rows = [[format.number(epoch), *(format.number(curves[name][i]) for name in names)] for i, epoch in enumerate(epochs)]
    return {"facts": facts, "figures": figures, "names": names, "rows": rows if len(epochs) > 1 else []}


def words(value: Any) -> str:
    """A scalar of a summary in words; "" for anything else.

    >>> words(4321), words("cpu"), words(None), words({"a": 1})
    ('4,321', 'cpu', '', '')
    """
    return format.number(value) if isinstance(value, (str, int, float)) else ""


def curve_figures(curves: Mapping[str, Sequence[float]], epochs: Sequence[float], best: Any) -> list[View]:
    """One figure for the losses together, one for each other curve."""
    groups: dict[str, list[str]] = {}
    for name in curves:
        if name != "epoch":
            groups.setdefault(name.removeprefix("train_").removeprefix("val_"), []).append(name)
    figures = []
    for group, names in groups.items():
        lines: list[charts.Layer] = [
            charts.Line(name.replace("_", " "), epochs, curves[name], style=index) for index, name in enumerate(sorted(names))
        ]
        values = [value for name in names for value in curves[name] if value is not None]
        rules = [charts.Rule("kept", best, style=2)] if isinstance(best, int) and epochs[0] <= best <= epochs[-1] else []
        label = f"{group} by epoch, from {format.number(values[0])} to {format.number(values[-1])}"
        title = {"lr": "Learning rate"}.get(group, group.replace("_", " ").capitalize())
        note = "The green line marks the epoch that was kept." if rules else ""
        axes = {"label": label, "x_label": "epoch", "y_label": group.replace("_", " ")}
        span = (float(epochs[0]), float(epochs[-1]))
        figures.append(
            figure(title, [*rules, *lines], note, x_domain=span, y_domain=charts.padded(values), x_ticks=whole(span), **axes)
        )
    return figures


def whole(span: charts.Domain) -> list[charts.Tick]:
    """Ticks at whole numbers.

    >>> whole((1, 3))
    [(1.0, '1'), (2.0, '2'), (3.0, '3')]
    """
    return [(at, text) for at, text in charts.ticks(*span, 6) if float(at).is_integer()]


def quality(record: RunRecord, evidence: Evidence) -> View | None:
    """Metrics with intervals, confusion or residuals, ROC, precision-recall, calibration."""
    found = evidence.evaluation
    if found is None:
        return None
    figures = [
        one
        for one in (roc(found), precision_recall(found), calibration(found), *residuals(found))
        if one is not None
    ]
    bins = (found.get("calibration") or {}).get("bins") or []
    return {
        "rows": format.number(found["rows"]),
        "metrics": [{"name": name, "interval": format.interval(one), **one} for name, one in found["metrics"].items()],
        "confusion": confusion(found.get("confusion")),
        "figures": figures,
        "bins": [{key: format.number(value) for key, value in one.items()} for one in bins],
    }


def confusion(found: Mapping[str, Any] | None) -> View | None:
    """The matrix with its shares by row, or the largest confusions of a large one."""
    if not found:
        return None
    labels, counts = [str(label) for label in found["labels"]], found["counts"]
    if len(labels) > MOST_CLASSES:
        wrong = [
            (count, labels[i], labels[j]) for i, row in enumerate(counts) for j, count in enumerate(row) if i != j and count
        ]
        largest = sorted(wrong, key=lambda one: -one[0])[:MOST_CLASSES]
        return {"large": True, "rows": [{"actual": a, "predicted": p, "count": format.number(n)} for n, a, p in largest]}
    rows = []
    for label, row in zip(labels, counts, strict=True):
        total = sum(row) or 1
        cells = [{"count": format.number(n), "share": format.share(n / total), "tint": round(55 * n / total)} for n in row]
        rows.append({"label": label, "cells": cells})
    return {"large": False, "labels": labels, "rows": rows}


def diagonal(high: float = 1.0, low: float = 0.0) -> charts.Line:
    """The line of equality."""
    return charts.Line("", [low, high], [low, high], style=3, dashed=True)


def roc(found: Mapping[str, Any]) -> View | None:
    """The ROC curve of a binary task."""
    curve = found.get("roc")
    if not curve:
        return None
    area = found["metrics"].get("roc_auc")
    label = f"ROC curve: area {format.interval(area)}"
    line = charts.Line("", curve["fpr"], curve["tpr"])
    note = f"Area {format.interval(area)}. The dashed line is chance." if area else "The dashed line is chance."
    axes = {"label": label, "x_label": "false positive rate", "y_label": "true positive rate"}
    return figure("ROC", [diagonal(), line], note, x_domain=(0, 1), y_domain=(0, 1), **axes)


def precision_recall(found: Mapping[str, Any]) -> View | None:
    """The precision-recall curve, with the share of positives as the line of chance."""
    curve = found.get("pr")
    if not curve:
        return None
    area = found["metrics"].get("average_precision")
    layers: list[charts.Layer] = [charts.Line("", curve["recall"], curve["precision"])]
    note = f"Average precision {format.interval(area)}." if area else ""
    matrix = (found.get("confusion") or {}).get("counts")
    if matrix and len(matrix) == 2:
        positives = sum(matrix[1]) / max(1, sum(map(sum, matrix)))
        layers.insert(0, charts.Line("", [0.0, 1.0], [positives, positives], style=3, dashed=True))
        note += f" The dashed line is the share of positives, {format.share(positives)}."
    label = f"Precision-recall curve: average precision {format.interval(area)}"
    axes = {"label": label, "x_label": "recall", "y_label": "precision"}
    return figure("Precision and recall", layers, note.strip(), x_domain=(0, 1), y_domain=(0, 1), **axes)


def calibration(found: Mapping[str, Any]) -> View | None:
    """Observed share against predicted probability by bin, with intervals."""
    curve = found.get("calibration")
    bins = [one for one in (curve or {}).get("bins", ()) if one.get("count")]
    if not curve or not bins:
        return None
    top = min(1.0, 1.08 * max(max(one["predicted"], one["observed_high"]) for one in bins))
    titles = [
        f"predicted {format.number(one['predicted'])}, observed {format.number(one['observed'])} "
        f"[{format.number(one['observed_low'])}, {format.number(one['observed_high'])}], {format.number(one['count'])} rows"
        for one in bins
    ]
    dots = charts.Dots(
        "",
        [one["predicted"] for one in bins],
        [one["observed"] for one in bins],
        [one["observed_low"] for one in bins],
        [one["observed_high"] for one in bins],
        titles,
    )
    error = format.number(curve.get("ece"))
    label = f"Calibration in {len(bins)} bins: expected calibration error {error}"
    note = f"Expected calibration error {error}. On the dashed line, probabilities mean what they say."
    axes = {"label": label, "x_label": "predicted probability", "y_label": "observed share"}
    return figure("Calibration", [diagonal(top), dots], note, x_domain=(0, top), y_domain=(0, top), **axes)


def residuals(found: Mapping[str, Any]) -> list[View]:
    """Actual against predicted, and the histogram of what is left."""
    pairs = found.get("residuals")
    if not pairs or not pairs["predicted"]:
        return []
    predicted, actual = pairs["predicted"], pairs["actual"]
    span = charts.padded([*predicted, *actual], 0.04)
    cloud = charts.Cloud("", predicted, actual)
    shown = f"{format.number(len(actual))} rows. On the dashed line, the prediction is right."
    left = [a - p for a, p in zip(actual, predicted, strict=True)]
    edges, counts = histogram(left)
    bias = sum(left) / len(left)
    bars = charts.Bars("", edges, counts)
    return [
        figure(
            "Actual against predicted", [diagonal(span[1], span[0]), cloud], shown, label=f"Scatter of {shown}",
            x_label="predicted", y_label="actual", x_domain=span, y_domain=span,
        ),
        figure(
            "Residuals", [bars, charts.Rule("zero", 0.0)], f"Actual minus predicted; their mean is {format.number(bias, 3)}.",
            label=f"Histogram of residuals, mean {format.number(bias, 3)}", x_label="actual − predicted", y_label="rows",
            x_domain=(edges[0], edges[-1]), y_domain=(0.0, 1.05 * max(counts)),
        ),
    ]  # fmt: skip


def histogram(values: Sequence[float], bins: int = 32) -> tuple[list[float], list[float]]:
    """Equal bins over the extent of the values: (edges, counts).

    >>> histogram([0.0, 1.0, 1.0, 2.0], bins=2)
    ([0.0, 1.0, 2.0], [1.0, 3.0])
    """
    low, high = min(values), max(values)
    width = (high - low) / bins or 1.0
    counts = [0.0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / width))] += 1
    return [low + index * width for index in range(bins + 1)], counts


def slices(record: RunRecord, evidence: Evidence) -> View | None:
    """Each slice's metrics with intervals drawn around the figure for all rows."""
    found = evidence.evaluation
    if found is None or not found.get("slices"):
        return None
    gated = [v.metric for step in record.steps if step.result for v in step.result.verdicts if v.slice]
    present = list(dict.fromkeys(name for one in found["slices"] for name in one["metrics"]))
    names = [*dict.fromkeys(name for name in gated if name in present), *(name for name in present if name not in gated)]
    return {"tables": [slice_table(name, found) for name in names[:SLICE_METRICS]]}


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
            "rows": format.number(one["rows"]),
            "interval": format.interval(measured),
            "svg": charts.forest_row(bound, domain, f"{name} of {one['column']} = {one['value']}: {format.interval(measured)}"),
        }
        for one, measured, bound in bounds
    ]
    return {"metric": name, "overall": format.number(overall), "rows": rows, "axis": charts.forest_axis(domain)}


def champion(record: RunRecord, evidence: Evidence) -> View | None:
    """Paired differences to the model that served when this one was judged."""
    found = evidence.evaluation
    if found is None:
        return None
    against = found.get("champion")
    if not against:
        return {"version": "", "rows": []}
    rows = []
    for name, one in against["metrics"].items():
        gap = one["difference"]
        bound = shown(gap, 0.0)
        label = f"{name}: candidate minus champion {format.interval(gap)}"
        rows.append(
            {
                "metric": name,
                "champion": format.number(plain(one["champion"])),
                "candidate": format.number(plain(one["candidate"])),
                "difference": format.interval(gap),
                "svg": charts.forest_row(bound, charts.forest_domain([bound]), label),
            }
        )
    return {"version": format.short(against["version"]), "count": format.number(against["rows"]), "rows": rows}


def shown(measured: Mapping[str, Any], reference: float | None) -> charts.Bound:
    """A measurement (as JSON, where what is not a number is null) drawn beside a reference, with no threshold."""
    low, value, high = (math.nan if measured.get(key) is None else measured[key] for key in ("low", "value", "high"))
    return charts.Bound(low, value, high, reference=reference)


def plain(value: Any) -> Any:
    """The number of a measurement, or the number itself."""
    return value.get("value") if isinstance(value, Mapping) else value


def latency(record: RunRecord, evidence: Evidence) -> View | None:
    """The candidates, which was picked and why, and their latency by percentile."""
    if evidence.candidates is None:
        return None
    section = record.recipe.get("optimize") or {}
    measured = [one for one in evidence.candidates if one.get("interval")]
    bounds = [charts.Bound(one["interval"][0], objective_value(one, section), one["interval"][1]) for one in measured]
    domain = charts.forest_domain(bounds)
    drawn = {
        one["name"]: charts.forest_row(bound, domain, f"{one['name']}: {interval_words(one)}")
        for one, bound in zip(measured, bounds, strict=True)
    }
    rows = [candidate(one, drawn.get(one["name"], "")) for one in evidence.candidates]
    picked = next((one for one in evidence.candidates if one.get("picked")), None)
    return {
        "objective": str(section.get("objective", "latency_p99")).replace("_", " "),
        "picked": picked["name"] if picked else "",
        "why": (picked.get("reason") or "") if picked else "",
        "rows": rows,
        "axis": charts.forest_axis(domain) if measured else "",
        "figure": percentiles(evidence),
    }


def objective_value(one: Mapping[str, Any], section: Mapping[str, Any]) -> float:
    """The candidate's figure for the objective, in microseconds."""
    key = str(section.get("objective", "latency_p99")).removeprefix("latency_") + "_us"
    return float(one[key])


def interval_words(one: Mapping[str, Any]) -> str:
    """The interval of the objective, in words."""
    return f"{format.micros(one['interval'][0])} to {format.micros(one['interval'][1])}"


def candidate(one: Mapping[str, Any], svg: str) -> View:
    """One line of the table of candidates."""
    metric = one.get("metric") or {}
    return {
        "name": one["name"],
        "runtime": one.get("runtime") or "",
        "batch": format.number(one.get("batch")),
        "status": one["status"],
        "tone": {"ok": "ok", "rejected": "bad"}.get(one["status"], "off"),
        "picked": bool(one.get("picked")),
        "p50": format.micros(one.get("p50_us")),
        "p95": format.micros(one.get("p95_us")),
        "p99": format.micros(one.get("p99_us")),
        "throughput": format.number(one.get("throughput"), 3),
        "metric": f"{metric['name']} {format.number(metric['value'])}" if metric else format.NONE,
        "drop": format.interval(one.get("metric_drop")),
        "reason": one.get("reason") or "",
        "svg": svg,
    }


def percentiles(evidence: Evidence) -> View | None:
    """Latency by percentile, the tail stretched (as HdrHistogram draws it; Gil Tene, "How NOT to measure latency")."""
    samples = {
        name: sorted(one["samples_us"]) for name, one in (evidence.latency or {}).items() if one.get("samples_us")
    }
    if not samples:
        return None
    picked = {one["name"] for one in evidence.candidates or () if one.get("picked")}
    layers = [
        charts.Line(f"{name} (picked)" if name in picked else name, *by_percentile(ordered), style=i, dashed=name not in picked)
        for i, (name, ordered) in enumerate(samples.items())
    ]
    longest = min(3.0, max(tail(0.5 + len(ordered)) for ordered in samples.values()))
    marks = [(tail(1 / (1 - share)), f"p{text}") for share, text in PERCENTILES if tail(1 / (1 - share)) <= longest + 0.01]
    shown = [value for line in layers for at, value in zip(line.x, line.y, strict=True) if at <= longest]
    note = "The axis stretches the tail: each decade to the right is ten times rarer."
    label = "Latency by percentile of " + ", ".join(samples)
    axes = {"label": label, "x_label": "percentile", "y_label": "µs"}
    return figure("Latency by percentile", layers, note, x_domain=(0.0, longest), y_domain=(0.0, 1.08 * max(shown)), x_ticks=marks, **axes)


def tail(rarity: float) -> float:
    """Place on the percentile axis: log10 of how rare a slower answer is.

    >>> tail(100.0)
    2.0
    """
    return math.log10(rarity)


def by_percentile(ordered: Sequence[float], points: int = 160) -> tuple[list[float], list[float]]:
    """(place, latency) evenly spaced on the percentile axis, to the 99.9th or what the samples allow."""
    end = min(3.0, tail(len(ordered) + 0.5))
    places = [end * index / (points - 1) for index in range(points)]
    last = len(ordered) - 1
    return places, [float(ordered[min(last, int((1 - 10**-place) * len(ordered)))]) for place in places]
