"""Views of the candidates: the pick and its reason, the Pareto front, and latency by percentile."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mlflowkit.report import charts, formatting
from mlflowkit.report.run import pareto_views
from mlflowkit.report.run.data_views import View
from mlflowkit.report.run.run_files import RunEvidence
from mlflowkit.values import RunRecord

HEADROOM = 4.0
"""Height of the latency chart, as a multiple of the slowest p99."""
MAX_LINES = 6
"""Maximum candidates in the chart of percentiles; of more, those on the front."""
POINTS = 160
"""Points of a line by percentile."""
TONES: Mapping[str, str] = {"ok": "ok", "rejected": "bad", "failed": "bad"}
"""Tones of a candidate's status; other statuses are neutral."""
PERCENTILES = ((0.0, "0"), (0.5, "50"), (0.9, "90"), (0.95, "95"), (0.99, "99"), (0.999, "99.9"))


def latency(record: RunRecord, evidence: RunEvidence) -> View | None:
    """Return the candidates, the pick and its reason, and latency by percentile."""
    if evidence.candidates is None:
        return None
    candidates = evidence.candidates
    section = record.recipe.get("optimize") or {}
    objective = str(section.get("objective", "latency_p99"))
    key = f"{timed_by(objective).removeprefix('latency_')}_us"
    measured = [row for row in candidates if row.get("interval")]
    bounds = [charts.Bound(row["interval"][0], float(row[key]), row["interval"][1]) for row in measured]
    domain = charts.forest_domain(bounds)
    svgs = {
        row["name"]: charts.forest_row(bound, domain, f"{row['name']}: {format_interval(row)}")
        for row, bound in zip(measured, bounds, strict=True)
    }
    picked = next((row for row in candidates if row.get("picked")), None)
    front = pareto_views.front(candidates, timed_by(objective), section.get("max_metric_drop", 0.005))
    return {
        "objective": objective.replace("_", " "),
        "picked": picked["name"] if picked else "",
        "why": why(picked, candidates) if picked else "",
        "rows": candidates,
        "tones": TONES,
        "svgs": svgs,
        "axis": charts.forest_axis(domain) if measured else "",
        "figures": [figure for figure in (front, _candidate_percentiles(evidence)) if figure],
        "has_costs": any("passes" in row for row in candidates),  # not in a candidates.json of an early release
    }


def why(picked: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]) -> str:
    """Return why a candidate was picked."""
    if picked.get("reason"):
        return str(picked["reason"])
    if sum(row["status"] == "ok" for row in candidates) == 1:
        return "no other candidate may serve"
    before = [row["name"] for row in candidates[: candidates.index(picked)] if row["status"] in ("ok", "dominated")]
    if before:
        return f"the recipe prefers {', '.join(before)}, and it was shown to be better; no later one was"
    return "it comes first in the recipe, and no other was shown to be better"


def timed_by(objective: str) -> str:
    """Return the latency quantile of an objective; p99 for other objectives.

    >>> timed_by("latency_p50"), timed_by("size")
    ('latency_p50', 'latency_p99')
    """
    return objective if objective.startswith("latency_") else "latency_p99"


def format_interval(row: Mapping[str, Any]) -> str:
    """Format the interval of the objective."""
    return f"{formatting.micros(row['interval'][0])} to {formatting.micros(row['interval'][1])}"


def _candidate_percentiles(evidence: RunEvidence) -> View | None:
    """Chart the percentiles of the candidates; of many, only those on the front."""
    rows = evidence.candidates or ()
    latencies = evidence.latency or {}
    samples = {name: latency["samples_us"] for name, latency in latencies.items() if latency.get("samples_us")}
    if len(samples) > MAX_LINES:
        best = {row["name"] for row in rows if row.get("front") or row.get("picked")}
        names = [name for name in samples if name in best][:MAX_LINES] or list(samples)[:MAX_LINES]
        samples = {name: samples[name] for name in names}
    left_out = len(latencies) - len(samples)
    note = f" {left_out} more were measured." if left_out > 0 else ""
    picked = {row["name"] for row in rows if row.get("picked")}
    return percentiles(samples, "Latency by percentile", picked, note)


def percentiles(
    samples: Mapping[str, Sequence[float]], title: str, picked: Collection[str] = (), note: str = ""
) -> View | None:
    """Chart latency by percentile with a logarithmic tail (HdrHistogram; Tene, "How NOT to measure latency").

    ``samples`` are microseconds by name. Lines are cut at ``HEADROOM`` times the slowest p99, so that one outlier does
    not flatten the rest; the slowest replies are in the caption.
    """
    by_name = {name: sorted(values) for name, values in samples.items() if len(values)}
    if not by_name:
        return None
    end = max(rarest(len(ordered)) for ordered in by_name.values())
    top = HEADROOM * max(at_percentile(ordered, 2.0) for ordered in by_name.values())
    layers, slowest = [], []
    for index, (name, ordered) in enumerate(by_name.items()):
        legend = f"{name} (picked)" if name in picked else name
        positions = [rarest(len(ordered)) * index / (POINTS - 1) for index in range(POINTS)]
        latencies = (at_percentile(ordered, position) for position in positions)
        visible = [latency if latency <= top else math.nan for latency in latencies]
        dashed = name not in picked if picked else index >= charts.SERIES
        layers.append(charts.Line(legend, positions, visible, style=index, dashed=dashed))
        slowest.append(f"{formatting.micros(ordered[-1])} ({name})")
    marks = [(tail(1 / (1 - share)), f"p{text}") for share, text in PERCENTILES]
    return charts.figure(
        title,
        layers,
        f"Each step to the right is ten times rarer. The slowest reply took {', '.join(slowest)}.{note}",
        label=f"{title} of {', '.join(by_name)}",
        x_label="percentile",
        y_label="µs",
        x_domain=(0.0, end),
        y_domain=(0.0, min(top, 1.08 * max(value for line in layers for value in line.y if value <= top))),
        x_ticks=[mark for mark in marks if mark[0] <= end + 0.01],
    )


def tail(rarity: float) -> float:
    """Return the position on the percentile axis: log10 of the rarity of a slower reply.

    >>> tail(100.0)
    2.0
    """
    return math.log10(rarity)


def rarest(count: int) -> float:
    """Return the last position on the percentile axis that ``count`` samples support, at most p99.9."""
    return min(3.0, tail(count + 0.5))


def at_percentile(ordered: Sequence[float], position: float) -> float:
    """Return the latency at a position on the percentile axis.

    >>> at_percentile([1.0, 2.0, 3.0, 40.0], tail(2.0))
    3.0
    """
    return float(ordered[min(len(ordered) - 1, int((1 - 10**-position) * len(ordered)))])
