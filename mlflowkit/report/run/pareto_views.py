"""What the page shows of the search: latency against the metric, the Pareto front, and what each candidate costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlflowkit.judging.metrics import LOWER_IS_BETTER
from mlflowkit.report import charts, formatting
from mlflowkit.report.run.data_views import View

COSTS = ("passes", "engine", "size_bytes", "memory_bytes", "build_seconds", "cold_start_ms")
"""Keys of a candidate that the table of costs shows. An older candidates.json has none of them."""
ALIKE = 1.1
"""Files that differ by less than this factor are drawn as marks of one size."""
CLOSE = (0.06, 0.07)
"""Marks nearer than these parts of the plot's width and height share what is written beside them."""

Row = Mapping[str, Any]


def costs(candidates: Sequence[Row]) -> list[View]:
    """A line for each candidate: what it is made of and what it costs; none where the evidence does not say."""
    if not any(key in one for one in candidates for key in COSTS):
        return []
    return [
        {
            "mark": number,
            "name": one["name"],
            "picked": bool(one.get("picked")),
            "front": bool(one.get("front")),
            "passes": ", ".join(map(_words, one.get("passes") or ())) or "none (float)",
            "engine": _words(one.get("engine") or {"runtime": one.get("runtime") or formatting.NONE}),
            "size": bytes_words(one.get("size_bytes")),
            "memory": bytes_words(one.get("memory_bytes")),
            "build": formatting.seconds(one.get("build_seconds")),
            "cold": formatting.micros(None if one.get("cold_start_ms") is None else 1000 * one["cold_start_ms"]),
            "script": one.get("script") or "",
        }
        for number, one in enumerate(candidates, 1)
    ]


def front(candidates: Sequence[Row], latency: str, max_drop: float | None) -> View | None:
    """Latency against metric as a figure: every candidate that has both, the front as a staircase.

    ``latency`` is latency_p50, latency_p95 or latency_p99; ``max_drop`` the loss of the metric that the recipe bears.
    None where fewer than two candidates have a latency and a metric.
    """
    points = [point for number, one in enumerate(candidates, 1) if (point := _point(number, one, latency))]
    if len(points) < 2 or len({point.metric for point in points}) != 1:
        return None
    metric, reference = points[0].metric, _reference(candidates)
    lower = metric in LOWER_IS_BETTER
    points = [_with_interval(point, reference, lower) for point in points]
    layers: list[charts.Layer] = []
    stairs = staircase([(point.x, point.y) for point in points if point.on_front], lower=lower)
    x_domain, y_domain = _domains(points)
    if stairs:
        layers.append(_line(stairs, x_domain))
    if reference is not None and max_drop is not None:
        bound = reference + max_drop if lower else reference - max_drop
        if y_domain[0] <= bound <= y_domain[1]:
            layers.append(charts.Level("largest loss that the recipe bears", bound, "bad"))
    layers += _marks(points, _words_of(points, x_domain, y_domain))
    best = "down" if lower else "up"
    return charts.figure(
        f"{latency.replace('_', ' ')} against {metric}",
        layers,
        f"Better is to the left and {best}. Marks are numbered as in the tables; whiskers are the intervals of latency "
        f"and of the metric's loss against the float graph{_sizes_words(points)}. On the front is what no other "
        "candidate surely beats in everything that the recipe asks; the line joins the best of it.",
        label=f"{latency.replace('_', ' ')} against {metric} of {len(points)} candidates",
        x_label=f"{latency.replace('_', ' ')}, µs",
        y_label=metric,
        x_domain=x_domain,
        y_domain=y_domain,
    )


def staircase(points: Sequence[tuple[float, float]], *, lower: bool = False) -> list[tuple[float, float]]:
    """Of (cost, worth) the points that no other is as cheap and as worthy as, by rising cost.

    ``lower`` says that less worth is better, as of an error.

    >>> staircase([(3, 0.9), (1, 0.8), (2, 0.7), (4, 0.9)])
    [(1, 0.8), (3, 0.9)]
    >>> staircase([(1, 5.0), (2, 4.0)], lower=True)
    [(1, 5.0), (2, 4.0)]
    """
    kept: list[tuple[float, float]] = []
    for cost, worth in sorted(points, key=lambda point: (point[0], point[1] if lower else -point[1])):
        if not kept or (worth < kept[-1][1] if lower else worth > kept[-1][1]):
            kept.append((cost, worth))
    return kept


def bytes_words(count: float | None) -> str:
    """A size in bytes, in the unit that suits it.

    >>> bytes_words(512), bytes_words(20_480), bytes_words(91_000_000), bytes_words(None)
    ('512 B', '20 KiB', '86.8 MiB', '–')
    """
    if count is None:
        return formatting.NONE
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


@dataclass(frozen=True, slots=True)
class _Point:
    """A candidate in the plane: microseconds across, the metric up."""

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


def _point(mark: int, one: Row, objective: str) -> _Point | None:
    metric, latency = one.get("metric"), one.get(f"{objective.removeprefix('latency_')}_us")
    if not metric or latency is None or not one.get("interval"):
        return None
    low, high = one["interval"]
    return _Point(
        mark=mark, name=one["name"], status=one["status"], metric=metric["name"], x=latency, y=metric["value"],
        across=(low, high), drop=one.get("metric_drop"), up=None, size=one.get("size_bytes"),
        on_front=bool(one.get("front")), picked=bool(one.get("picked")),
    )  # fmt: skip


def _reference(candidates: Sequence[Row]) -> float | None:
    """The float graph's metric: what the drop of any candidate is held against."""
    for one in candidates:
        metric, drop = one.get("metric"), one.get("metric_drop")
        if metric and drop and drop.get("value") is not None:
            sign = -1 if metric["name"] in LOWER_IS_BETTER else 1
            return float(metric["value"] + sign * drop["value"])
    return None


def _with_interval(point: _Point, reference: float | None, lower: bool) -> _Point:
    """The point with the metric's interval: the reference less (or, of an error, plus) the loss."""
    drop = point.drop
    if reference is None or not drop or drop.get("low") is None or drop.get("high") is None:
        return point
    ends = [reference + drop[key] if lower else reference - drop[key] for key in ("low", "high")]
    return replace(point, up=(min(ends), max(ends)))


def _domains(points: Sequence[_Point]) -> tuple[charts.Domain, charts.Domain]:
    """What the axes span: all points, and intervals as far as they do not dwarf the distances between points."""
    across = charts.padded(_near([point.x for point in points], [point.across for point in points]), 0.1)
    up = charts.padded(_near([point.y for point in points], [point.up for point in points if point.up]), 0.12)
    return (max(0.0, across[0]), across[1]), up


def _near(values: Sequence[float], intervals: Sequence[tuple[float, float]]) -> list[float]:
    """The values, and the ends of intervals that are no farther from them than they are from one another."""
    reach = max(max(values) - min(values), 1e-12) if len(set(values)) > 1 else math.inf
    ends = [end for interval in intervals for end in interval]
    return [*values, *(end for end in ends if min(values) - reach <= end <= max(values) + reach)]


def _words_of(points: Sequence[_Point], across: charts.Domain, up: charts.Domain) -> Mapping[int, str]:
    """What is written beside each mark: its number; of marks that lie together, all their numbers beside the last."""
    wide, tall = CLOSE[0] * (across[1] - across[0]), CLOSE[1] * (up[1] - up[0])
    together: list[list[_Point]] = []
    for point in sorted(points, key=lambda one: one.x):
        near = [each for each in together if any(abs(one.x - point.x) < wide and abs(one.y - point.y) < tall
                                                 for one in each)]  # fmt: skip
        together = [each for each in together if each not in near]
        together.append([*(one for each in near for one in each), point])
    return {each[-1].mark: runs(sorted(point.mark for point in each)) for each in together}


def runs(numbers: Sequence[int]) -> str:
    """Rising numbers in words, those that follow one another as a range.

    >>> runs([1, 2, 4, 9, 10, 11])
    '1, 2, 4, 9–11'
    """
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    parts = [f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in found]
    return ", ".join(parts)


def _line(stairs: Sequence[tuple[float, float]], x_domain: charts.Domain) -> charts.Line:
    """The front as a staircase: what is the best that can be had at so much latency or less."""
    cells = [*stairs, (x_domain[1], stairs[-1][1])]
    return charts.Line("Pareto front", [x for x, _ in cells], [y for _, y in cells], style=0, stepped=True)


def _marks(points: Sequence[_Point], words: Mapping[int, str]) -> list[charts.Layer]:
    """The points in groups, each with its look and its name in the legend; ``words`` go beside marks, by number."""
    largest = max((point.size or 0.0 for point in points), default=0.0)
    sized = _sized(points)
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
            [words.get(point.mark, "") for point in group],
            [_title(point) for point in group],
            [_radius(point, largest) for point in group] if sized else (),
            style=style,
            tone=tone,
        )
        for (name, style, tone), group in groups.items()
    ]


def _group(point: _Point) -> tuple[str, int, str]:
    """Name in the legend, colour and tone."""
    if point.picked:
        return "picked", 0, "ringed"
    if point.status != "ok":
        return point.status, {"rejected": 1, "baseline": 3}.get(point.status, 2), "hollow"
    return ("on the front", 0, "") if point.on_front else ("behind the front", 2, "hollow")


def _title(point: _Point) -> str:
    ends = f"{formatting.micros(point.across[0])} to {formatting.micros(point.across[1])}"
    size = f", {bytes_words(point.size)}" if point.size is not None else ""
    figure = f"{point.metric} {formatting.number(point.y)}"
    return f"{point.mark}. {point.name}: {formatting.micros(point.x)} ({ends}), {figure}{size}"


def _sized(points: Sequence[_Point]) -> bool:
    sizes = [point.size for point in points if point.size]
    return len(sizes) == len(points) and max(sizes) > ALIKE * min(sizes)


def _radius(point: _Point, largest: float) -> float:
    """Area in proportion to size, and never too small to be seen."""
    return max(2.5, charts.LARGEST_MARK * math.sqrt((point.size or 0.0) / largest))


def _sizes_words(points: Sequence[_Point]) -> str:
    return "; the area of a mark is the graph's size" if _sized(points) else ""


def _words(section: Row) -> str:
    """A pass or an engine in words: its kind, and what it was told.

    >>> _words({"kind": "int8", "per_channel": True, "rows": 512})
    'int8 (per channel, rows 512)'
    """
    name = str(section.get("kind") or section.get("runtime") or formatting.NONE)
    said = [_setting(key, value) for key, value in section.items() if key not in ("kind", "runtime")]
    inside = ", ".join(filter(None, said))
    return f"{name} ({inside})" if inside else name


def _setting(key: str, value: Any) -> str:
    if value is None or value is False or (key, value) == ("graph_level", "all"):
        return ""
    if key == "threads":
        return f"{value} thread{'s' * (value != 1)}"
    return key.replace("_", " ") if value is True else f"{key.replace('_', ' ')} {value}"
