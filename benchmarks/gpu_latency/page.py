"""A document of results as one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from benchmarks.gpu_latency import tables

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1c2430}
table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}th,td{padding:.25rem .6rem;text-align:left;
border-bottom:1px solid #d9dee6;font-variant-numeric:tabular-nums}th{background:#f3f5f8}
.bar{height:.7rem;background:#2f6fb5;min-width:1px}.none{color:#6b7686}pre{background:#f3f5f8;padding:1rem;overflow:auto}"""


def html(document: Mapping[str, Any]) -> str:
    """A section for each model with a bar for each candidate, what was not measured and why, and the machine."""
    machine = document["machine"]
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Inference latency</title>",
        f"<style>{STYLE}</style><h1>Inference latency</h1>",
        f"<p>{escape(machine['processor'])}, {machine['cores']} cores, {document['threads']} threads inside an "
        f"operator. GPU: {escape(document.get('gpu', ''))}. Candidates of a model and batch size were measured in "
        "turns; bars show the median, on a scale of their own for each batch size.</p>",
        *(_group(rows) for rows in _groups(document.get("rows", []))),
        "<h2>Everything</h2>",
        f"<pre>{escape(tables.text(document))}</pre>",
        f"<h2>The machine</h2><pre>{escape(json.dumps(machine, indent=1))}</pre></html>",
    ]
    return "\n".join(parts)


def _groups(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["model"], row["batch"]), []).append(row)
    return list(found.values())


def _group(rows: list[dict[str, Any]]) -> str:
    """One table: figures and bars of what was measured, one line for each that was not but might have been."""
    slowest = max((row["p50_us"] for row in rows if row["status"] == "ok"), default=1.0)
    lines = "".join(_line(row, slowest) for row in rows if row["status"] != "unavailable")
    lacking = ", ".join(row["name"] for row in rows if row["status"] == "unavailable")
    more = f"<p class='none'>Not on this machine: {escape(lacking)}</p>" if lacking else ""
    head = "<tr><th>candidate<th>p50 ms<th>interval ms<th>p99 ms<th>rows a second<th style='width:30%'></tr>"
    title = f"{rows[0]['model']}, batch {rows[0]['batch']}"
    return f"<h2>{escape(title)}</h2><table>{head}{lines}</table>{more}"


def _line(row: Mapping[str, Any], slowest: float) -> str:
    if row["status"] != "ok":
        why = escape(f"{row['status']}: {row['reason']}")
        return f"<tr><td>{escape(row['name'])}<td colspan='5' class='none'>{why}</tr>"
    ends = [tables.milliseconds(end) for end in row["interval"] or ()]
    figures = [tables.milliseconds(row["p50_us"]), " to ".join(ends), tables.milliseconds(row["p99_us"])]
    cells = "".join(f"<td>{figure}" for figure in [*figures, f"{row['throughput']:,.0f}"])
    notes = escape("; ".join(row["notes"]))
    bar = f"<td><div class='bar' title='{notes}' style='width:{100 * row['p50_us'] / slowest:.1f}%'></div>"
    return f"<tr><td>{escape(row['name'])}{cells}{bar}</tr>"
