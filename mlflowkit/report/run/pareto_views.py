"""Views of the search: latency against the metric, the Pareto front, and the costs of each candidate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from mlflowkit.judging.metrics import lower_is_better
from mlflowkit.report import charts, formatting
from mlflowkit.report.run.data_views import View
from mlflowkit.system.text import format_count

ALIKE = 1.1
"""Graphs whose sizes differ by less than this factor get marks of one size."""
CLOSE = (0.06, 0.07)
"""Marks nearer than these shares of the plot's width and height share a label."""

Row = Mapping[str, Any]


def front(candidates: Sequence[Row], latency: str, max_drop: float | None) -> View | None:
    """Chart latency against metric of every candidate with both, with the front as a staircase.

    ``latency`` is latency_p50, latency_p95 or latency_p99; ``max_drop`` the largest allowed loss of the metric. Returns
    None if fewer than two candidates have both.
    """
    points = [point for number, row in enumerate(candidates, 1) if (point := _point(number, row, latency))]
    if len(points) < 2 or len({point.metric for point in points}) != 1:
        return None
    metric, reference = points[0].metric, _reference(candidates)
    lower = lower_is_better(metric)
    points = [_with_interval(point, reference, lower) for point in points]
    layers: list[charts.Layer] = []
    stairs = staircase([(point.x, point.y) for point in points if point.on_front], lower=lower)
    x_domain, y_domain = _domains(points)
    if stairs:
        cells = [*stairs, (x_domain[1], stairs[-1][1])]
        x, y = [x for x, _ in cells], [y for _, y in cells]
        layers.append(charts.Line("Pareto front", x, y, style=0, stepped=True))
    if reference is not None and max_drop is not None:
        bound = reference + max_drop if lower else reference - max_drop
        if y_domain[0] <= bound <= y_domain[1]:
            layers.append(charts.Level("largest loss allowed by the recipe", bound, "bad"))
    layers += _marks(points, _labels(points, x_domain, y_domain))
    best = "down" if lower else "up"
    sizes = "; the area of a mark is the graph's size" if _has_sizes(points) else ""
    return charts.figure(
        f"{latency.replace('_', ' ')} against {metric}",
        layers,
        f"Better is to the left and {best}. Marks are numbered as in the tables; whiskers are the intervals of latency "
        f"and of the metric's loss against the float graph{sizes}. The front has the candidates that no other "
        "surely beats in all objectives; the line joins the best of them.",
        label=f"{latency.replace('_', ' ')} against {metric} of {len(points)} candidates",
        x_label=f"{latency.replace('_', ' ')}, µs",
        y_label=f"{metric}, validation rows",
        x_domain=x_domain,
        y_domain=y_domain,
    )


def staircase(points: Sequence[tuple[float, float]], *, lower: bool = False) -> list[tuple[float, float]]:
    """Return the non-dominated (cost, value) points by rising cost; ``lower``: a lower value is better.

    >>> staircase([(3, 0.9), (1, 0.8), (2, 0.7), (4, 0.9)])
    [(1, 0.8), (3, 0.9)]
    >>> staircase([(1, 5.0), (2, 4.0)], lower=True)
    [(1, 5.0), (2, 4.0)]
    """
    stairs: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], point[1] if lower else -point[1])):
        if not stairs or (value < stairs[-1][1] if lower else value > stairs[-1][1]):
            stairs.append((cost, value))
    return stairs


@dataclass(frozen=True, slots=True)
class _Point:
    """A candidate in the chart: microseconds by metric."""

    mark: int
    name: str
    status: str
    metric: str
    x: float
    y: float
    across: tuple[float, float]
    drop: Row | None
    up: tuple[float, float] | None
    size: float | None
    on_front: bool
    picked: bool


def _point(mark: int, row: Row, objective: str) -> _Point | None:
    metric, latency = row.get("metric"), row.get(f"{objective.removeprefix('latency_')}_us")
    if not metric or latency is None or not row.get("interval"):
        return None
    low, high = row["interval"]
    return _Point(
        mark=mark, name=row["name"], status=row["status"], metric=metric["name"], x=latency, y=metric["value"],
        across=(low, high), drop=row.get("metric_drop"), up=None, size=row.get("size_bytes"),
        on_front=bool(row.get("front")), picked=bool(row.get("picked")),
    )  # fmt: skip


def _reference(candidates: Sequence[Row]) -> float | None:
    """Return the float graph's metric, the reference of all drops."""
    for row in candidates:
        metric, drop = row.get("metric"), row.get("metric_drop")
        if metric and drop and drop.get("value") is not None:
            sign = -1 if lower_is_better(metric["name"]) else 1
            return float(metric["value"] + sign * drop["value"])
    return None


def _with_interval(point: _Point, reference: float | None, lower: bool) -> _Point:
    """Add the metric's interval: the reference minus the loss (plus for an error metric)."""
    drop = point.drop
    if reference is None or not drop or drop.get("low") is None or drop.get("high") is None:
        return point
    ends = [reference + drop[key] if lower else reference - drop[key] for key in ("low", "high")]
    return replace(point, up=(min(ends), max(ends)))


def _domains(points: Sequence[_Point]) -> tuple[charts.Domain, charts.Domain]:
    """Return the axis domains: all points, and intervals that do not dwarf the distances between points."""
    across = charts.padded(_near([point.x for point in points], [point.across for point in points]), 0.1)
    up = charts.padded(_near([point.y for point in points], [point.up for point in points if point.up]), 0.12)
    return (max(0.0, across[0]), across[1]), up


def _near(values: Sequence[float], intervals: Sequence[tuple[float, float]]) -> list[float]:
    """Return the values, and interval ends no farther from them than their own range."""
    reach = max(max(values) - min(values), 1e-12) if len(set(values)) > 1 else math.inf
    ends = [end for interval in intervals for end in interval]
    return [*values, *(end for end in ends if min(values) - reach <= end <= max(values) + reach)]


def _labels(points: Sequence[_Point], across: charts.Domain, up: charts.Domain) -> Mapping[int, str]:
    """Return each mark's label: its number; the last of close marks has all their numbers."""
    wide, tall = CLOSE[0] * (across[1] - across[0]), CLOSE[1] * (up[1] - up[0])

    def is_near(a: _Point, b: _Point) -> bool:
        return abs(a.x - b.x) < wide and abs(a.y - b.y) < tall

    clusters: list[list[_Point]] = []
    for point in sorted(points, key=lambda point: point.x):
        near = [cluster for cluster in clusters if any(is_near(point, other) for other in cluster)]
        clusters = [cluster for cluster in clusters if cluster not in near] + [[*chain(*near), point]]
    return {cluster[-1].mark: runs(sorted(point.mark for point in cluster)) for cluster in clusters}


def runs(numbers: Sequence[int]) -> str:
    """Format ascending numbers, with consecutive ones as a range.

    >>> runs([1, 2, 4, 9, 10, 11])
    '1, 2, 4, 9–11'
    """
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in ranges)


def _marks(points: Sequence[_Point], labels: Mapping[int, str]) -> list[charts.Layer]:
    """Return the points in groups of one style and legend entry, labelled by mark."""
    largest = max((point.size or 0.0 for point in points), default=0.0)
    sized = _has_sizes(points)
    groups: dict[tuple[str, int, str], list[_Point]] = {}
    for point in sorted(points, key=lambda point: (point.picked, point.on_front)):
        groups.setdefault(_group(point), []).append(point)
    return [
        charts.Scatter(
            name,
            [point.x for point in group],
            [point.y for point in group],
            [point.across for point in group],
            [point.up for point in group],
            [labels.get(point.mark, "") for point in group],
            [_title(point) for point in group],
            [_radius((point.size or 0.0) / largest) for point in group] if sized else (),
            style=style,
            tone=tone,
        )
        for (name, style, tone), group in groups.items()
    ]


def _group(point: _Point) -> tuple[str, int, str]:
    """Return legend entry, colour and tone."""
    if point.picked:
        return "picked", 0, "ringed"
    if point.status != "ok":
        return point.status, {"rejected": 1, "baseline": 3}.get(point.status, 2), "hollow"
    return ("on the front", 0, "") if point.on_front else ("behind the front", 2, "hollow")


def _title(point: _Point) -> str:
    ends = f"{formatting.micros(point.across[0])} to {formatting.micros(point.across[1])}"
    size = f", {formatting.format_bytes(point.size)}" if point.size is not None else ""
    metric = f"{point.metric} {formatting.number(point.y)}"
    return f"{point.mark}. {point.name}: {formatting.micros(point.x)} ({ends}), {metric}{size}"


def _has_sizes(points: Sequence[_Point]) -> bool:
    sizes = [point.size for point in points if point.size]
    return len(sizes) == len(points) and max(sizes) > ALIKE * min(sizes)


def _radius(share: float) -> float:
    """Return a radius whose area is proportional to a share of the largest size, with a visible minimum."""
    return max(2.5, charts.LARGEST_MARK * math.sqrt(share))


def format_section(section: Row) -> str:
    """Format a pass or an engine: its kind and settings.

    >>> format_section({"kind": "int8", "per_channel": True, "rows": 512})
    'int8 (per channel, rows 512)'
    """
    name = str(section.get("kind") or section.get("runtime") or formatting.NONE)
    settings = [_setting(key, value) for key, value in section.items() if key not in ("kind", "runtime")]
    text = ", ".join(filter(None, settings))
    return f"{name} ({text})" if text else name


def _setting(key: str, value: Any) -> str:
    if value is None or value is False or (key, value) == ("graph_level", "all"):
        return ""
    if key == "threads":
        return format_count(value, "thread")
    return key.replace("_", " ") if value is True else f"{key.replace('_', ' ')} {value}"
