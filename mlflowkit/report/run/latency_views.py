"""What the page shows of the candidates: which was picked and why, their front, and their latency by percentile."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mlflowkit.report import charts, formatting
from mlflowkit.report.run import pareto_views
from mlflowkit.report.run.data_views import View
from mlflowkit.report.run.run_files import Evidence
from mlflowkit.values import RunRecord

HEADROOM = 4.0
"""Height of the latency chart, in slowest 99th percentiles."""
PERCENTILE_TITLE = "Latency by percentile"
MOST_LINES = 6
"""Candidates in the chart of percentiles; of more, those on the front."""
TONES: Mapping[str, str] = {"ok": "ok", "rejected": "bad", "failed": "bad"}
"""Tone of a candidate's status; the others are neither good nor bad."""
PERCENTILES = ((0.0, "0"), (0.5, "50"), (0.9, "90"), (0.95, "95"), (0.99, "99"), (0.999, "99.9"))


def latency(record: RunRecord, evidence: Evidence) -> View | None:
    """The candidates, which was picked and why, and their latency by percentile."""
    if evidence.candidates is None:
        return None
    section = record.recipe.get("optimize") or {}
    objective = str(section.get("objective", "latency_p99"))
    measured = [one for one in evidence.candidates if one.get("interval")]
    bounds = [charts.Bound(one["interval"][0], objective_value(one, section), one["interval"][1]) for one in measured]
    domain = charts.forest_domain(bounds)
    drawn = {
        one["name"]: charts.forest_row(bound, domain, f"{one['name']}: {interval_words(one)}")
        for one, bound in zip(measured, bounds, strict=True)
    }
    rows = [candidate(number, one, drawn.get(one["name"], "")) for number, one in enumerate(evidence.candidates, 1)]
    picked = next((one for one in evidence.candidates if one.get("picked")), None)
    return {
        "objective": objective.replace("_", " "),
        "picked": picked["name"] if picked else "",
        "why": why(picked, evidence.candidates) if picked else "",
        "rows": rows,
        "axis": charts.forest_axis(domain) if measured else "",
        "figures": [
            one
            for one in (
                pareto_views.front(evidence.candidates, timed_by(objective), section.get("max_metric_drop", 0.005)),
                _percentiles_of(evidence),
            )
            if one
        ],
        "costs": pareto_views.costs(evidence.candidates),
    }


def why(picked: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]) -> str:
    """Why a candidate was picked, in words."""
    if picked.get("reason"):
        return str(picked["reason"])
    if sum(one["status"] == "ok" for one in candidates) == 1:
        return "no other candidate may serve"
    before = [one["name"] for one in candidates[: candidates.index(picked)] if one["status"] in ("ok", "dominated")]
    if before:
        return f"the recipe prefers {', '.join(before)}, and it was shown to be better; no later one was"
    return "it comes first in the recipe, and no other was shown to be better"


def timed_by(objective: str) -> str:
    """The quantile of latency that is shown for an objective; of one that is none of latency, the 99th percentile.

    >>> timed_by("latency_p50"), timed_by("size")
    ('latency_p50', 'latency_p99')
    """
    return objective if objective.startswith("latency_") else "latency_p99"


def objective_value(one: Mapping[str, Any], section: Mapping[str, Any]) -> float:
    """The candidate's figure for the objective, in microseconds."""
    quantile = timed_by(str(section.get("objective", "latency_p99")))
    return float(one[f"{quantile.removeprefix('latency_')}_us"])


def interval_words(one: Mapping[str, Any]) -> str:
    """The interval of the objective, in words."""
    return f"{formatting.micros(one['interval'][0])} to {formatting.micros(one['interval'][1])}"


def candidate(number: int, one: Mapping[str, Any], svg: str) -> View:
    """One line of the table of candidates; ``number`` is its mark in the figures."""
    metric = one.get("metric") or {}
    return {
        "mark": number,
        "name": one["name"],
        "runtime": one.get("runtime") or "",
        "batch": formatting.number(one.get("batch")),
        "status": one["status"],
        "tone": TONES.get(one["status"], "off"),
        "picked": bool(one.get("picked")),
        "p50": formatting.micros(one.get("p50_us")),
        "p95": formatting.micros(one.get("p95_us")),
        "p99": formatting.micros(one.get("p99_us")),
        "throughput": formatting.number(one.get("throughput"), 3),
        "metric": f"{metric['name']} {formatting.number(metric['value'])}" if metric else formatting.NONE,
        "drop": formatting.interval(one["metric_drop"]) if one.get("metric_drop") else "",
        "reason": one.get("reason") or "",
        "notes": list(one.get("notes") or ()),
        "svg": svg,
    }


def _percentiles_of(evidence: Evidence) -> View | None:
    """The percentiles of the candidates; of many, of those on the front alone."""
    rows = evidence.candidates or ()
    taken = {name: one["samples_us"] for name, one in (evidence.latency or {}).items() if one.get("samples_us")}
    if len(taken) > MOST_LINES:
        best = {one["name"] for one in rows if one.get("front") or one.get("picked")}
        kept = [name for name in taken if name in best][:MOST_LINES] or list(taken)[:MOST_LINES]
        taken = {name: taken[name] for name in kept}
    left_out = len(evidence.latency or {}) - len(taken)
    note = f" {left_out} more were measured." if left_out > 0 else ""
    return percentiles(taken, {one["name"] for one in rows if one.get("picked")}, note)


def percentiles(
    taken: Mapping[str, Sequence[float]], picked: Collection[str] = (), note: str = "", *, title: str = PERCENTILE_TITLE
) -> View | None:
    """Latency by percentile, the tail stretched (as HdrHistogram draws it; Gil Tene, "How NOT to measure latency").

    ``taken`` has samples in microseconds by name. A line ends where it leaves the chart, which is ``HEADROOM`` times as
    high as the slowest p99: one hiccup would flatten all the rest. The slowest answers are told in words.
    """
    samples = {name: sorted(values) for name, values in taken.items() if len(values)}
    if not samples:
        return None
    end = max(rarest(len(ordered)) for ordered in samples.values())
    top = HEADROOM * max(at_percentile(ordered, 2.0) for ordered in samples.values())
    layers, slowest = [], []
    for index, (name, ordered) in enumerate(samples.items()):
        called = f"{name} (picked)" if name in picked else name
        places, latencies = by_percentile(ordered)
        drawn = [latency if latency <= top else math.nan for latency in latencies]
        dashed = name not in picked if picked else index >= charts.SERIES
        layers.append(charts.Line(called, places, drawn, style=index, dashed=dashed))
        slowest.append(f"{formatting.micros(ordered[-1])} ({name})")
    marks = [(tail(1 / (1 - share)), f"p{text}") for share, text in PERCENTILES]
    return charts.figure(
        title,
        layers,
        f"Each step to the right is ten times rarer. The slowest answer took {', '.join(slowest)}.{note}",
        label=f"{title} of {', '.join(samples)}",
        x_label="percentile",
        y_label="µs",
        x_domain=(0.0, end),
        y_domain=(0.0, min(top, 1.08 * max(value for line in layers for value in line.y if value <= top))),
        x_ticks=[mark for mark in marks if mark[0] <= end + 0.01],
    )


def tail(rarity: float) -> float:
    """Place on the percentile axis: log10 of how rare a slower answer is.

    >>> tail(100.0)
    2.0
    """
    return math.log10(rarity)


def rarest(count: int) -> float:
    """The last place on the percentile axis that so many samples can tell, the 99.9th percentile at most."""
    return min(3.0, tail(count + 0.5))


def at_percentile(ordered: Sequence[float], place: float) -> float:
    """The latency at a place on the percentile axis.

    >>> at_percentile([1.0, 2.0, 3.0, 40.0], tail(2.0))
    3.0
    """
    return float(ordered[min(len(ordered) - 1, int((1 - 10**-place) * len(ordered)))])


def by_percentile(ordered: Sequence[float], points: int = 160) -> tuple[list[float], list[float]]:
    """(place, latency), evenly spaced on the percentile axis."""
    places = [rarest(len(ordered)) * index / (points - 1) for index in range(points)]
    return places, [at_percentile(ordered, place) for place in places]
