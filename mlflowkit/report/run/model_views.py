"""Views of the model: training curves, metrics, confusion, ROC, calibration, residuals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlflowkit.report import charts, formatting
from mlflowkit.report.run.data_views import View, summary_of
from mlflowkit.report.run.run_files import RunEvidence
from mlflowkit.values import RunRecord

MAX_COLUMNS = 30
"""Columns whose importance is drawn."""
MAX_CLASSES = 20
"""Size from which a confusion matrix is shown as its largest confusions."""


def training(record: RunRecord, evidence: RunEvidence) -> View | None:
    """Return curves of loss, metrics and learning rate, and facts of the training."""
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
    details = {name: format_scalar(value) for name, value in summary.items() if name != "model"}
    facts += [(name.replace("_", " ").capitalize(), value) for name, value in details.items() if value]
    names = [name for name in curves if name != "epoch"]
    rows = list(zip(epochs, *(curves[name] for name in names), strict=True)) if len(epochs) > 1 else []
    text = parity(evidence, imported=model.get("kind") in ("onnx", "bundle"))
    return {"facts": facts, "figures": figures, "parity": text, "names": names, "rows": rows}


def parity(evidence: RunEvidence, *, imported: bool = False) -> str:
    """Describe the difference of the exported graph to the Python or ``imported`` model; "" before the export."""
    parity = evidence.parity
    if parity is None:
        return ""
    difference = formatting.number(parity["max_abs_difference"], 2)
    model = "imported graph" if imported else "Python model"
    text = f"The exported graph agrees with the {model}: on {formatting.number(parity['rows'])} rows the scores"
    text += f" differ by {difference} at most (allowed {formatting.number(parity['tolerance'])})"
    classified = (evidence.table or {}).get("task") == "classification"
    labels = f" and {formatting.number(parity.get('label_mismatches'))} labels differ" if classified else ""
    return f"{text}{labels}."


def format_scalar(value: Any) -> str:
    """Format a scalar of a summary; "" for other types.

    >>> format_scalar(4321), format_scalar("cpu"), format_scalar(None), format_scalar({"a": 1})
    ('4,321', 'cpu', '', '')
    """
    return formatting.number(value) if isinstance(value, (str, int, float)) else ""


def curve_figures(curves: Mapping[str, Sequence[float]], epochs: Sequence[float], best: Any) -> Sequence[View]:
    """Return one chart for all losses and one for each other curve, with the selected epoch marked."""
    groups: dict[str, list[str]] = {}
    for name in sorted(curves):
        if name != "epoch":
            groups.setdefault(name.removeprefix("train_").removeprefix("val_"), []).append(name)
    order = sorted(groups, key=lambda group: {"loss": 0, "lr": 2}.get(group, 1))
    return [curve_figure(group, {name: curves[name] for name in groups[group]}, epochs, best) for group in order]


def curve_figure(group: str, curves: Mapping[str, Sequence[Any]], epochs: Sequence[float], best: Any) -> View:
    """Chart the curves of one quantity; null is a gap."""
    numbers = {name: [math.nan if value is None else value for value in curve] for name, curve in curves.items()}
    lines = [charts.Line(name, epochs, curve, style=index) for index, (name, curve) in enumerate(numbers.items())]
    span = (float(epochs[0]), float(epochs[-1]))
    rules = [charts.Rule("kept", best, style=2)] if isinstance(best, int) and span[0] <= best <= span[1] else []
    edges = {name: (formatting.number(curve[0]), formatting.number(curve[-1])) for name, curve in numbers.items()}
    ends = [f"{name} from {first} to {last}" for name, (first, last) in edges.items()]
    return charts.figure(
        {"lr": "Learning rate", "loss": "Loss"}.get(group, " and ".join(curves)),
        [*rules, *lines],
        "The green line marks the selected epoch." if rules else "",
        label=f"By epoch: {', '.join(ends)}",
        x_label="epoch",
        y_label="",
        x_domain=span,
        y_domain=charts.padded([value for curve in numbers.values() for value in curve]),
        x_ticks=[(at, text) for at, text in charts.ticks(*span, 6) if at.is_integer()],
    )


def quality(record: RunRecord, evidence: RunEvidence) -> View | None:
    """Return metrics with intervals, confusion or residuals, ROC, precision-recall, calibration."""
    evaluation = evidence.evaluation
    if evaluation is None:
        return None
    curves = (roc(evaluation), precision_recall(evaluation), calibration(evaluation))
    bins = (evaluation.get("calibration") or {}).get("bins") or []
    return {
        "rows": evaluation["rows"],
        "fault": evaluation.get("fault") or "",
        "undefined": sorted((evaluation.get("undefined") or {}).items()),
        "metrics": evaluation["metrics"],
        "confusion": confusion(evaluation.get("confusion")),
        "importance": importance(evaluation.get("importance")),
        "decision": decision(evidence.decision),
        "figures": [*(curve for curve in curves if curve is not None), *residuals(evaluation)],
        "bins": bins,
    }


def importance(table: Mapping[str, Any] | None) -> View | None:
    """Return the columns with the fall of the metric when their values are shuffled, the largest first."""
    if not table:
        return None
    columns = table["columns"][:MAX_COLUMNS]
    bounds = [charts.Bound(item["least"], item["fall"], item["largest"], reference=0.0) for item in columns]
    domain = charts.forest_domain(bounds) if bounds else (0.0, 1.0)
    rows = []
    for item, bound in zip(columns, bounds, strict=True):
        text = f"{formatting.number(item['fall'], 3)} ({formatting.number(item['least'], 3)} to "
        text += f"{formatting.number(item['largest'], 3)})"
        label = f"{item['column']}: {table['metric']} falls by {text}"
        rows.append({"column": item["column"], "text": text, "svg": charts.forest_row(bound, domain, label)})
    more = len(table["columns"]) - len(columns)
    return {**table, "rows_shown": rows, "more": more, "axis": charts.forest_axis(domain) if rows else ""}


def decision(chosen: Mapping[str, Any] | None) -> str:
    """Describe the decision threshold; "" without one."""
    if not chosen:
        return ""
    text = f"The positive class is answered from a probability of {formatting.number(chosen['threshold'], 4)} on "
    text += f"({chosen['rule']}), chosen on {formatting.number(chosen['rows'])} validation rows, where it answers "
    text += f"{formatting.share(chosen['rate'])} of the rows"
    if chosen["precision"] is None:
        return f"{text}."
    recall, precision = formatting.number(chosen["recall"], 3), formatting.number(chosen["precision"], 3)
    return f"{text}, with precision {precision} and recall {recall}. The metrics above are of the test rows."


def confusion(matrix: Mapping[str, Any] | None) -> View | None:
    """Return the labelled rows of the matrix, or the largest confusions (count, actual, predicted) of a large one."""
    if not matrix:
        return None
    labels, counts = [str(label) for label in matrix["labels"]], matrix["counts"]
    if len(labels) <= MAX_CLASSES:
        return {"large": False, "labels": labels, "rows": list(zip(labels, counts, strict=True))}
    cells = [(count, i, j) for i, row in enumerate(counts) for j, count in enumerate(row) if i != j and count]
    largest = sorted(cells, key=lambda cell: -cell[0])[:MAX_CLASSES]
    return {"large": True, "rows": [(count, labels[i], labels[j]) for count, i, j in largest]}


def diagonal(high: float = 1.0, low: float = 0.0) -> charts.Line:
    """Return the line of equality."""
    return charts.Line("", [low, high], [low, high], style=3, dashed=True)


def roc(evaluation: Mapping[str, Any]) -> View | None:
    """Chart the ROC curve of a binary task."""
    curve = evaluation.get("roc")
    if not curve:
        return None
    area = evaluation["metrics"].get("roc_auc")
    label = f"ROC curve: area {formatting.interval(area)}"
    line = charts.Line("", curve["fpr"], curve["tpr"])
    note = f"Area {formatting.interval(area)}. The dashed line is chance." if area else "The dashed line is chance."
    axes = {"label": label, "x_label": "false positive rate", "y_label": "true positive rate"}
    return charts.figure("ROC", [diagonal(), line], note, x_domain=(0, 1), y_domain=(0, 1), **axes)


def precision_recall(evaluation: Mapping[str, Any]) -> View | None:
    """Chart the precision-recall curve, with the share of positives as the baseline."""
    curve = evaluation.get("pr")
    if not curve:
        return None
    area = evaluation["metrics"].get("average_precision")
    layers: list[charts.Layer] = [charts.Line("", curve["recall"], curve["precision"])]
    note = f"Average precision {formatting.interval(area)}." if area else ""
    matrix = (evaluation.get("confusion") or {}).get("counts")
    if matrix and len(matrix) == 2:
        positives = sum(matrix[1]) / max(1, sum(map(sum, matrix)))
        layers.insert(0, charts.Line("", [0.0, 1.0], [positives, positives], style=3, dashed=True))
        note += f" The dashed line is the share of positives, {formatting.share(positives)}."
    label = f"Precision-recall curve: average precision {formatting.interval(area)}"
    axes = {"label": label, "x_label": "recall", "y_label": "precision"}
    return charts.figure("Precision and recall", layers, note.strip(), x_domain=(0, 1), y_domain=(0, 1), **axes)


def calibration(evaluation: Mapping[str, Any]) -> View | None:
    """Chart observed share against predicted probability by bin, with intervals."""
    curve = evaluation.get("calibration")
    bins = [row for row in (curve or {}).get("bins", ()) if row.get("count")]
    if not curve or not bins:
        return None
    top = min(1.0, 1.08 * max(max(row["predicted"], row["observed_high"]) for row in bins))
    title = "predicted {predicted}, observed {observed} [{observed_low}, {observed_high}], {count} rows"
    titles = [title.format_map({key: formatting.number(value) for key, value in row.items()}) for row in bins]
    keys = ("predicted", "observed", "observed_low", "observed_high")
    predicted, observed, low, high = ([row[key] for row in bins] for key in keys)
    dots = charts.Dots("", predicted, observed, low, high, titles)
    error = formatting.number(curve.get("ece"))
    label = f"Calibration in {len(bins)} bins: expected calibration error {error}"
    note = f"Expected calibration error {error}. The dashed line is perfect calibration."
    axes = {"label": label, "x_label": "predicted probability", "y_label": "observed share"}
    return charts.figure("Calibration", [diagonal(top), dots], note, x_domain=(0, top), y_domain=(0, top), **axes)


def residuals(evaluation: Mapping[str, Any]) -> list[View]:
    """Chart actual against predicted values, and the histogram of residuals."""
    pairs = evaluation.get("residuals")
    if not pairs or not pairs["predicted"]:
        return []
    predicted, actual = pairs["predicted"], pairs["actual"]
    span = charts.padded([*predicted, *actual], 0.04)
    cloud = charts.Cloud("", predicted, actual)
    note = f"{formatting.number(len(actual))} rows. The dashed line is a perfect prediction."
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
    """Return (edges, counts) of equal bins over the extent of the values.

    >>> histogram([0.0, 1.0, 1.0, 2.0], bins=2)
    ([0.0, 1.0, 2.0], [1.0, 3.0])
    """
    low, high = min(values), max(values)
    width = (high - low) / bins or 1.0
    counts = [0.0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / width))] += 1
    return [low + index * width for index in range(bins + 1)], counts
