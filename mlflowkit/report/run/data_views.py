"""Views of the data: splits, columns with their distributions, class balance, checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from mlflowkit.report import charts, formatting
from mlflowkit.report.run.run_files import RunEvidence
from mlflowkit.system.text import format_count
from mlflowkit.values import RunRecord

View = Mapping[str, Any]

MAX_COLUMNS = 200
"""Maximum columns listed."""
MAX_VALUES = 8
"""Maximum bars of a categorical sparkline."""


def data(record: RunRecord, evidence: RunEvidence) -> View | None:
    """Return splits, class balance, columns and checks; None before the data stage."""
    table = evidence.table
    if table is None:
        return None
    profiled = (evidence.reference or {}).get("columns", {})
    features = table["features"]
    summary = summary_of(record, "data")
    return {
        "source": summary.get("source", ""),
        "split": summary.get("split", ""),
        "task": table["task"],
        "target": table["target"],
        "splits": table["rows"],
        "balance": balance(record, evidence),
        "columns": [column(feature, profiled.get(feature["name"])) for feature in features[:MAX_COLUMNS]],
        "count": len(features),
        "left_out": max(0, len(features) - MAX_COLUMNS),
        "profiled": evidence.reference is not None,
        "checks": evidence.checks,
        "findings": [*summary.get("findings", ()), *summary_of(record, "train").get("findings", ())],
        "missing_texts": [
            {"column": name, "texts": ", ".join(f"{text!r} {count:,}" for text, count in counts.items())}
            for name, counts in (summary.get("missing_texts") or {}).items()
        ],
    }


def summary_of(record: RunRecord, stage: str) -> Mapping[str, Any]:
    """Return the summary of a stage; empty if it was not reached."""
    step = next((step for step in record.steps if step.stage == stage), None)
    return step.result.summary if step is not None and step.result is not None else {}


def balance(record: RunRecord, evidence: RunEvidence) -> View | None:
    """Return rows of each class by part from the data stage, else of the test part from the confusion matrix."""
    counts = dict(summary_of(record, "data").get("classes") or {})
    confusion = (evidence.evaluation or {}).get("confusion")
    if not counts and confusion:
        labels = [str(label) for label in confusion["labels"]]
        counts = {"test": dict(zip(labels, map(sum, confusion["counts"]), strict=True))}
    names = list(dict.fromkeys(name for part in counts.values() for name in part))
    if not names:
        return None
    totals = {name: sum(part.get(name, 0) for part in counts.values()) for name in names}
    return {"parts": counts, "totals": totals, "all": sum(totals.values()) or 1, "largest": max(totals.values()) or 1}


def column(feature: Mapping[str, str], profile: Mapping[str, Any] | None) -> View:
    """Return one row of the table of columns."""
    unknown = dict.fromkeys(("missing", "values", "range"), formatting.NONE)
    row = {"name": feature["name"], "kind": feature["kind"], **unknown, "spark": ""}
    if profile is None:
        return row
    missing, share = profile.get("missing") or 0, (profile.get("missing") or 0) / max(1, profile.get("count") or 0)
    row["missing"] = f"{formatting.number(missing)} ({formatting.share(share)})" if missing else "none"
    describe = {"numeric": numeric, "date": dates}.get(feature["kind"], categorical)
    return {**row, **describe(feature["name"], profile)}


def numeric(name: str, profile: Mapping[str, Any]) -> View:
    """Return mean, spread, quantiles and a histogram."""
    quantiles = profile.get("quantiles") or {}
    values = f"{formatting.number(profile.get('mean'))} ± {formatting.number(profile.get('stddev'), 3)}"
    low, high = formatting.number(profile.get("min")), formatting.number(profile.get("max"))
    extent = f"{low} … {formatting.number(quantiles.get('0.5'))} … {high}"
    histogram = profile.get("histogram")
    if not histogram or not histogram.get("counts"):
        return {"values": values, "range": extent}
    edges, counts = histogram["edges"], histogram["counts"]
    widths = [right - left for left, right in pairwise(edges)]
    label = f"Distribution of {name}: from {low} to {high}, median {formatting.number(quantiles.get('0.5'))}"
    return {"values": values, "range": extent, "spark": charts.spark(densities(counts, widths), label, widths)}


def dates(name: str, profile: Mapping[str, Any]) -> View:
    """Return the range of days, and a histogram."""
    view = numeric(name, profile)
    quantiles = profile.get("quantiles") or {}
    days = [_day(profile.get("min")), _day(quantiles.get("0.5")), _day(profile.get("max"))]
    return {**view, "values": f"median {days[1]}", "range": " … ".join(days)}


def _day(seconds: float | None) -> str:
    """The day of seconds since 1970.

    >>> _day(86400.5), _day(None)
    ('1970-01-02', '–')
    """
    if seconds is None or seconds != seconds:
        return formatting.NONE
    return (datetime(1970, 1, 1) + timedelta(seconds=seconds)).date().isoformat()


def densities(counts: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Divide counts by widths, so that bars of unequal width keep their area; plain counts if a width is zero.

    >>> densities([4, 4], [1, 2])
    [4.0, 2.0]
    """
    if not widths or min(widths) <= 0:
        return [float(count) for count in counts]
    return [count / width for count, width in zip(counts, widths, strict=True)]


def categorical(name: str, profile: Mapping[str, Any]) -> View:
    """Return the most frequent values, as text and as bars."""
    frequent = [(str(value), count) for value, count in profile.get("frequent") or ()]
    if not frequent:
        return {}
    total = (profile.get("count") or 0) or sum(count for _, count in frequent)
    unique = profile.get("unique") or len(frequent)
    largest = frequent[:MAX_VALUES]
    top = ", ".join(f"{value or '(empty)'} {formatting.share(min(1.0, count / total))}" for value, count in largest[:3])
    label = f"Most frequent values of {name}: {top}"
    spark = charts.spark([float(count) for _, count in largest], label)
    return {"values": format_count(round(unique), "value"), "range": top, "spark": spark}
