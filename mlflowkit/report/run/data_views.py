"""What the page shows of the table: splits, columns with their distributions, class balance, checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mlflowkit.report import charts, formatting
from mlflowkit.report.run.run_files import Evidence
from mlflowkit.values import RunRecord

View = Mapping[str, Any]

MOST_COLUMNS = 200
"""Columns listed; a page is read by people."""
MOST_FAILURES = 10
"""Failing rows shown of each check."""
MOST_VALUES = 8
"""Bars of a categorical sparkline."""


def data(record: RunRecord, evidence: Evidence) -> View | None:
    """Splits, class balance, columns and checks; None before the data stage."""
    table = evidence.table
    if table is None:
        return None
    profiled = (evidence.reference or {}).get("columns", {})
    features = table["features"]
    said = summary_of(record, "data")
    return {
        "source": said.get("source", ""),
        "split": said.get("split", ""),
        "task": table["task"],
        "target": table["target"],
        "splits": splits(table["rows"]),
        "balance": balance(record, evidence),
        "columns": [column(one, profiled.get(one["name"])) for one in features[:MOST_COLUMNS]],
        "count": len(features),
        "left_out": max(0, len(features) - MOST_COLUMNS),
        "profiled": evidence.reference is not None,
        "checks": None if evidence.checks is None else [check(one) for one in evidence.checks],
    }


def splits(rows: Mapping[str, int]) -> list[View]:
    """Rows and share of each part."""
    total = sum(rows.values()) or 1
    return [
        {"part": part, "rows": formatting.number(count), "share": formatting.share(count / total)}
        for part, count in rows.items()
    ]


def summary_of(record: RunRecord, stage: str) -> Mapping[str, Any]:
    """What a stage said of itself; empty when it was not reached."""
    step = next((step for step in record.steps if step.stage == stage), None)
    return step.result.summary if step is not None and step.result is not None else {}


def balance(record: RunRecord, evidence: Evidence) -> View | None:
    """Rows of each class by part as the data stage counted them, else of the test part from the confusion matrix."""
    counted = dict(summary_of(record, "data").get("classes") or {})
    confusion = (evidence.evaluation or {}).get("confusion")
    if not counted and confusion:
        labels = [str(label) for label in confusion["labels"]]
        counted = {"test": dict(zip(labels, map(sum, confusion["counts"]), strict=True))}
    if not counted:
        return None
    names = list(dict.fromkeys(name for part in counted.values() for name in part))
    totals = {name: sum(part.get(name, 0) for part in counted.values()) for name in names}
    rows_in_all, most = sum(totals.values()) or 1, max(totals.values()) or 1
    rows = [
        {
            "name": name,
            "counts": [formatting.number(part.get(name, 0)) for part in counted.values()],
            "share": formatting.share(totals[name] / rows_in_all),
            "width": round(100 * totals[name] / most, 1),
        }
        for name in names
    ]
    return {"parts": list(counted), "rows": rows}


def column(feature: Mapping[str, str], profile: Mapping[str, Any] | None) -> View:
    """One line of the table of columns."""
    unknown = dict.fromkeys(("missing", "values", "range"), formatting.NONE)
    row = {"name": feature["name"], "kind": feature["kind"], **unknown, "spark": ""}
    if profile is None:
        return row
    missing, rows = profile.get("missing") or 0, profile.get("count") or 0
    row["missing"] = (
        "none" if not missing else f"{formatting.number(missing)} ({formatting.share(missing / max(1, rows))})"
    )
    describe = numeric if feature["kind"] == "numeric" else categorical
    return {**row, **describe(feature["name"], profile)}


def numeric(name: str, profile: Mapping[str, Any]) -> View:
    """Mean, spread and quantiles in words, and a histogram."""
    quantiles = profile.get("quantiles") or {}
    words = f"{formatting.number(profile.get('mean'))} ± {formatting.number(profile.get('stddev'), 3)}"
    low, high = formatting.number(profile.get("min")), formatting.number(profile.get("max"))
    range_words = f"{low} … {formatting.number(quantiles.get('0.5'))} … {high}"
    histogram = profile.get("histogram")
    if not histogram or not histogram.get("counts"):
        return {"values": words, "range": range_words}
    edges, counts = histogram["edges"], histogram["counts"]
    widths = [right - left for left, right in pairwise(edges)]
    label = f"Distribution of {name}: from {low} to {high}, median {formatting.number(quantiles.get('0.5'))}"
    return {"values": words, "range": range_words, "spark": charts.spark(densities(counts, widths), label, widths)}


def densities(counts: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Counts over widths, so that bars of unequal width keep their area; plain counts where a width is zero.

    >>> densities([4, 4], [1, 2])
    [4.0, 2.0]
    """
    if not widths or min(widths) <= 0:
        return [float(count) for count in counts]
    return [count / width for count, width in zip(counts, widths, strict=True)]


def categorical(name: str, profile: Mapping[str, Any]) -> View:
    """The most frequent values, in words and as bars."""
    frequent = [(str(value), count) for value, count in profile.get("frequent") or ()]
    if not frequent:
        return {}
    total = (profile.get("count") or 0) or sum(count for _, count in frequent)
    unique = profile.get("unique") or len(frequent)
    shown = frequent[:MOST_VALUES]
    top = ", ".join(f"{value or '(empty)'} {formatting.share(min(1.0, count / total))}" for value, count in shown[:3])
    label = f"Most frequent values of {name}: {top}"
    return {
        "values": f"{formatting.number(round(unique))} value{'' if round(unique) == 1 else 's'}",
        "range": top,
        "spark": charts.spark([float(count) for _, count in shown], label),
    }


def check(one: Mapping[str, Any]) -> View:
    """One check, with its first failing rows."""
    failures = one.get("failures") or []
    return {
        "check": one["check"],
        "column": one.get("column") or "",
        "passed": one["passed"],
        "message": one.get("message") or "",
        "failures": [f"row {case.get('row')}: {case.get('value')}" for case in failures[:MOST_FAILURES]],
        "more": max(0, len(failures) - MOST_FAILURES),
    }
