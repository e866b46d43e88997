"""What the page shows of the model: training curves, metrics, confusion, ROC, calibration, residuals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlflowkit.report import charts, formatting
from mlflowkit.report.run.data_views import View, summary_of
from mlflowkit.report.run.run_files import Evidence
from mlflowkit.values import RunRecord

MOST_CLASSES = 20
"""A larger confusion matrix is shown as its largest confusions."""


def training(record: RunRecord, evidence: Evidence) -> View | None:
    """Curves of loss, metrics and learning rate, and what was fitted."""
    if evidence.curves is None and evidence.trained is None:
        return None
    summary = summary_of(record, "train")
    curves = evidence.curves or {}
    epochs = curves.get("epoch") or []
    figures = curve_figures(curves, epochs, summary.get("best_epoch")) if len(epochs) > 1 else []
    model = record.recipe.get("model") or {}
    facts = [("Model", str(model.get("module") or model.get("path") or formatting.NONE))]
    arguments = ", ".join(f"{name}={value}" for name, value in (model.get("args") or {}).items())
    facts += [("Arguments", arguments)] if arguments else []
    said = {name: words(value) for name, value in summary.items() if name != "model"}
    facts += [(name.replace("_", " ").capitalize(), value) for name, value in said.items() if value]
    names = [name for name in curves if name != "epoch"]
    rows = [
        [formatting.number(epoch), *(formatting.number(curves[name][i]) for name in names)]
        for i, epoch in enumerate(epochs)
    ]
    return {
        "facts": facts,
        "figures": figures,
        "parity": parity(evidence, brought=model.get("kind") == "onnx"),
        "names": names,
        "rows": rows if len(epochs) > 1 else [],
    }


def parity(evidence: Evidence, *, brought: bool = False) -> str:
    """How far the exported graph is from the Python model, or from the graph that was ``brought``, in words; "" when it
    was not exported."""
    found = evidence.parity
    if found is None:
        return ""
    apart = formatting.number(found["max_abs_difference"], 2)
    model = "graph that was brought" if brought else "Python model"
    words = f"The exported graph answers as the {model} does: on {formatting.number(found['rows'])} rows the scores"
    words += f" differ by {apart} at most (allowed {formatting.number(found['tolerance'])})"
    classified = (evidence.table or {}).get("task") == "classification"
    return (
        f"{words} and {formatting.number(found.get('label_mismatches'))} labels differ." if classified else f"{words}."
    )


def words(value: Any) -> str:
    """A scalar of a summary in words; "" for anything else.

    >>> words(4321), words("cpu"), words(None), words({"a": 1})
    ('4,321', 'cpu', '', '')
    """
    return formatting.number(value) if isinstance(value, (str, int, float)) else ""


def curve_figures(curves: Mapping[str, Sequence[float]], epochs: Sequence[float], best: Any) -> Sequence[View]:
    """One figure for the losses together, one for each other curve; the epoch that was kept is marked."""
    groups: dict[str, list[str]] = {}
    for name in sorted(curves):
        if name != "epoch":
            groups.setdefault(name.removeprefix("train_").removeprefix("val_"), []).append(name)
    order = sorted(groups, key=lambda group: {"loss": 0, "lr": 2}.get(group, 1))
    return [curve_figure(group, {name: curves[name] for name in groups[group]}, epochs, best) for group in order]


def curve_figure(group: str, curves: Mapping[str, Sequence[Any]], epochs: Sequence[float], best: Any) -> View:
    """Curves of one quantity; a null (what was not a number) is a gap."""
    numbers = {name: [math.nan if value is None else value for value in curve] for name, curve in curves.items()}
    lines = [charts.Line(name, epochs, curve, style=index) for index, (name, curve) in enumerate(numbers.items())]
    span = (float(epochs[0]), float(epochs[-1]))
    rules = [charts.Rule("kept", best, style=2)] if isinstance(best, int) and span[0] <= best <= span[1] else []
    ends = [
        f"{name} from {formatting.number(curve[0])} to {formatting.number(curve[-1])}"
        for name, curve in numbers.items()
    ]
    return charts.figure(
        {"lr": "Learning rate", "loss": "Loss"}.get(group, " and ".join(curves)),
        [*rules, *lines],
        "The green line marks the epoch that was kept." if rules else "",
        label=f"By epoch: {', '.join(ends)}",
        x_label="epoch",
        y_label="",
        x_domain=span,
        y_domain=charts.padded([value for curve in numbers.values() for value in curve]),
        x_ticks=whole(span),
    )


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
        one for one in (roc(found), precision_recall(found), calibration(found), *residuals(found)) if one is not None
    ]
    bins = (found.get("calibration") or {}).get("bins") or []
    return {
        "rows": formatting.number(found["rows"]),
        "fault": found.get("fault") or "",
        "undefined": sorted((found.get("undefined") or {}).items()),
        "metrics": [metric(name, one) for name, one in found["metrics"].items()],
        "confusion": confusion(found.get("confusion")),
        "figures": figures,
        "bins": [{key: formatting.number(value) for key, value in one.items()} for one in bins],
    }


def metric(name: str, measured: Mapping[str, Any]) -> View:
    """One line of the table of metrics."""
    samples, method = formatting.number(measured.get("samples")), measured.get("method") or ""
    return {"name": name, "interval": formatting.interval(measured), "samples": samples, "method": method}


def confusion(found: Mapping[str, Any] | None) -> View | None:
    """The matrix with its shares by row, or the largest confusions of a large one."""
    if not found:
        return None
    labels, counts = [str(label) for label in found["labels"]], found["counts"]
    if len(labels) > MOST_CLASSES:
        wrong = [
            (count, labels[i], labels[j])
            for i, row in enumerate(counts)
            for j, count in enumerate(row)
            if i != j and count
        ]
        largest = sorted(wrong, key=lambda one: -one[0])[:MOST_CLASSES]
        return {
            "large": True,
            "rows": [{"actual": a, "predicted": p, "count": formatting.number(n)} for n, a, p in largest],
        }
    rows = []
    for label, row in zip(labels, counts, strict=True):
        total = sum(row) or 1
        cells = [
            {"count": formatting.number(n), "share": formatting.share(n / total), "tint": round(55 * n / total)}
            for n in row
        ]
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
    label = f"ROC curve: area {formatting.interval(area)}"
    line = charts.Line("", curve["fpr"], curve["tpr"])
    note = f"Area {formatting.interval(area)}. The dashed line is chance." if area else "The dashed line is chance."
    axes = {"label": label, "x_label": "false positive rate", "y_label": "true positive rate"}
    return charts.figure("ROC", [diagonal(), line], note, x_domain=(0, 1), y_domain=(0, 1), **axes)


def precision_recall(found: Mapping[str, Any]) -> View | None:
    """The precision-recall curve, with the share of positives as the line of chance."""
    curve = found.get("pr")
    if not curve:
        return None
    area = found["metrics"].get("average_precision")
    layers: list[charts.Layer] = [charts.Line("", curve["recall"], curve["precision"])]
    note = f"Average precision {formatting.interval(area)}." if area else ""
    matrix = (found.get("confusion") or {}).get("counts")
    if matrix and len(matrix) == 2:
        positives = sum(matrix[1]) / max(1, sum(map(sum, matrix)))
        layers.insert(0, charts.Line("", [0.0, 1.0], [positives, positives], style=3, dashed=True))
        note += f" The dashed line is the share of positives, {formatting.share(positives)}."
    label = f"Precision-recall curve: average precision {formatting.interval(area)}"
    axes = {"label": label, "x_label": "recall", "y_label": "precision"}
    return charts.figure("Precision and recall", layers, note.strip(), x_domain=(0, 1), y_domain=(0, 1), **axes)


def calibration(found: Mapping[str, Any]) -> View | None:
    """Observed share against predicted probability by bin, with intervals."""
    curve = found.get("calibration")
    bins = [one for one in (curve or {}).get("bins", ()) if one.get("count")]
    if not curve or not bins:
        return None
    top = min(1.0, 1.08 * max(max(one["predicted"], one["observed_high"]) for one in bins))
    titles = [
        "predicted {predicted}, observed {observed} [{observed_low}, {observed_high}], {count} rows".format_map(
            {key: formatting.number(value) for key, value in one.items()}
        )
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
    error = formatting.number(curve.get("ece"))
    label = f"Calibration in {len(bins)} bins: expected calibration error {error}"
    note = f"Expected calibration error {error}. On the dashed line, probabilities mean what they say."
    axes = {"label": label, "x_label": "predicted probability", "y_label": "observed share"}
    return charts.figure("Calibration", [diagonal(top), dots], note, x_domain=(0, top), y_domain=(0, top), **axes)


def residuals(found: Mapping[str, Any]) -> list[View]:
    """Actual against predicted, and the histogram of what is left."""
    pairs = found.get("residuals")
    if not pairs or not pairs["predicted"]:
        return []
    predicted, actual = pairs["predicted"], pairs["actual"]
    span = charts.padded([*predicted, *actual], 0.04)
    cloud = charts.Cloud("", predicted, actual)
    note = f"{formatting.number(len(actual))} rows. On the dashed line, the prediction is right."
    left = [a - p for a, p in zip(actual, predicted, strict=True)]
    edges, counts = histogram(left)
    bias = sum(left) / len(left)
    bars = charts.Bars("", edges, counts)
    return [
        charts.figure(
            "Actual against predicted",
            [diagonal(span[1], span[0]), cloud],
            note,
            label=f"Scatter of {note}",
            x_label="predicted",
            y_label="actual",
            x_domain=span,
            y_domain=span,
        ),
        charts.figure(
            "Residuals",
            [bars, charts.Rule("zero", 0.0)],
            f"Actual minus predicted; their mean is {formatting.number(bias, 3)}.",
            label=f"Histogram of residuals, mean {formatting.number(bias, 3)}",
            x_label="actual − predicted",
            y_label="rows",
            x_domain=(edges[0], edges[-1]),
            y_domain=(0.0, 1.05 * max(counts)),
        ),
    ]


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
