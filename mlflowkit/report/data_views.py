"""What the page shows of the table: splits, columns with their distributions, class balance, checks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlflowkit.report import charts, format
from mlflowkit.report.evidence import Evidence
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
    return {
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
    return [{"part": part, "rows": format.number(count), "share": format.share(count / total)} for part, count in rows.items()]


def balance(record: RunRecord, evidence: Evidence) -> View | None:
    """How many rows each class has: of the whole table where the data stage counted, else of the test part."""
    step = next((step for step in record.steps if step.stage == "data" and step.result is not None), None)
    counted = step.result.summary.get("class_counts") if step is not None and step.result is not None else None
    of = "table"
    if not isinstance(counted, Mapping):
        confusion = (evidence.evaluation or {}).get("confusion")
        if not confusion:
            return None
        of = "test part"
        counted = {str(name): sum(row) for name, row in zip(confusion["labels"], confusion["counts"], strict=True)}
    total = sum(counted.values()) or 1
    rows = [
        {"name": str(name), "rows": format.number(count), "share": format.share(count / total), "part": count / total}
        for name, count in counted.items()
    ]
    return {"of": of, "rows": rows}


def column(feature: Mapping[str, str], profile: Mapping[str, Any] | None) -> View:
    """One line of the table of columns."""
    row = {"name": feature["name"], "kind": feature["kind"], "missing": format.NONE, "values": format.NONE, "spark": ""}
    if profile is None:
        return row
    missing, present = profile.get("missing") or 0, profile.get("count") or 0
    total = max(present, missing) if profile.get("count_includes_missing", True) else present + missing
    row["missing"] = "none" if not missing else f"{format.number(missing)} ({format.share(missing / max(1, total))})"
    described = numeric(feature["name"], profile) if feature["kind"] == "numeric" else categorical(feature["name"], profile)
    return {**row, **described}


def numeric(name: str, profile: Mapping[str, Any]) -> View:
    """Mean, spread and quantiles in words, and a histogram."""
    quantiles = profile.get("quantiles") or {}
    words = f"{format.number(profile.get('mean'))} ± {format.number(profile.get('stddev'), 3)}"
    low, high = format.number(profile.get("min")), format.number(profile.get("max"))
    range_words = f"{low} … {format.number(quantiles.get('0.5'))} … {high}"
    histogram = profile.get("histogram")
    if not histogram or not histogram.get("counts"):
        return {"values": words, "range": range_words}
    edges, counts = histogram["edges"], histogram["counts"]
    widths = [right - left for left, right in zip(edges, edges[1:], strict=False)]
    label = f"Distribution of {name}: from {low} to {high}, median {format.number(quantiles.get('0.5'))}"
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
    top = ", ".join(f"{value or '(empty)'} {format.share(min(1.0, count / total))}" for value, count in shown[:3])
    label = f"Most frequent values of {name}: {top}"
    return {
        "values": f"{format.number(round(unique))} value{'' if round(unique) == 1 else 's'}",
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
        "failures": [
            f"row {format.number(case.get('row'))}: {case.get('value')}" for case in failures[:MOST_FAILURES]
        ],
        "more": max(0, len(failures) - MOST_FAILURES),
    }


def curl(endpoint: str, evidence: Evidence) -> str:
    """A request with one typical row: the median of each numeric column, the commonest value of each other."""
    profiled = (evidence.reference or {}).get("columns", {})
    features = (evidence.table or {}).get("features", ())
    row = {one["name"]: typical(one["kind"], profiled.get(one["name"]) or {}) for one in features}
    body = json.dumps({"rows": [row]}, ensure_ascii=False).replace("'", "'\\''")
    return f"curl -s {endpoint.rstrip('/')}/predict -H 'content-type: application/json' -d '{body}'"


def typical(kind: str, profile: Mapping[str, Any]) -> Any:
    """The median of a numeric column, the commonest value of a categorical one, None of an unknown one."""
    if kind == "numeric":
        return (profile.get("quantiles") or {}).get("0.5")
    frequent = profile.get("frequent") or ()
    return frequent[0][0] if frequent else None
