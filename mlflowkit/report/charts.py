"""Charts as inline SVG: layered plots, forest rows (an interval against its threshold), sparklines. Pure.

Hand-written because matplotlib costs 0.9 s at import and 40 ms and 16 kB a figure on the path of every run; these
cost under a millisecond and 1 to 4 kB, take their colours from the page's CSS variables (light, dark and print) and
scale with the screen. Text is escaped here, and the page includes the SVG unescaped. Positions are rounded to 0.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT = 440.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 60.0, 20.0, 24.0, 38.0
SERIES = 4
"""Number of series colours in the style sheet."""
USUAL_MARK, LARGEST_MARK = 4.5, 9.0
"""Radius of a mark, and of the largest mark if areas vary."""
MAX_POINTS = 500
"""Maximum points drawn of a line, about the pixels of the chart."""

LARGEST, SMALLEST = 1e290, 1e-290
"""Limits of drawable values and of nonzero spans."""

Domain = tuple[float, float]
Tick = tuple[float, str]


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps ``low..high`` linearly to ``start..end``.

    >>> Scale(0, 10, 100, 200)(2.5)
    125.0
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        part = 0.5 if span == 0 else (value - self.low) / span
        return self.start + part * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[Tick]:
    """Return about ``count`` round ticks in ``low..high`` (Heckbert, "Nice numbers for graph labels", 1990).

    >>> ticks(0, 1)
    [(0.0, '0'), (0.2, '0.2'), (0.4, '0.4'), (0.6, '0.6'), (0.8, '0.8'), (1.0, '1')]
    >>> [label for _, label in ticks(0, 23000, 3)]
    ['0', '10k', '20k']
    """
    if not high > low:
        return [(low, _tick_label(low, 1.0))]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(_clean(index * step), _tick_label(index * step, step)) for index in range(first, last + 1)]


def _clean(value: float) -> float:
    return float(f"{value:.12g}")


def _tick_label(value: float, step: float) -> str:
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if step >= factor / 10 and abs(value) >= factor:
            return f"{_clean(value / factor):g}{suffix}"
    return f"{_clean(value):.6g}"


def padded(values: Iterable[float], share: float = 0.08) -> Domain:
    """Return the extent of the drawable values, widened by a share on both sides; (0, 1) if there are none.

    >>> padded([1.0, 3.0], 0.5)
    (0.0, 4.0)
    """
    drawable = [value for value in values if _drawable(value)]
    if not drawable:
        return 0.0, 1.0
    low, high = min(drawable), max(drawable)
    size = max(abs(low), abs(high))
    pad = (high - low) * share if high - low > 1e-9 * size else size * share
    pad = pad if pad > SMALLEST else 1.0
    return low - pad, high + pad


def _thinned(count: int) -> list[int]:
    """Return at most about MAX_POINTS evenly spaced indices, including the last."""
    return [*range(0, count - 1, max(1, math.ceil(count / MAX_POINTS))), count - 1] if count else []


def _drawable(value: float) -> bool:
    return math.isfinite(value) and abs(value) < LARGEST


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points; gaps where a value is not finite."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0
    dashed: bool = False
    stepped: bool = False
    """Whether a value holds until the next point."""

    def draw(self, across: Scale, up: Scale) -> str:
        path, pen = [], "M"
        for index in _thinned(len(self.x)):
            x, y = self.x[index], self.y[index]
            if not (_drawable(x) and _drawable(y)):
                pen = "M"
                continue
            if self.stepped and pen == "L":
                path.append(f"H{_at(across(x))}V{_at(up(y))}")
            else:
                path.append(f"{pen}{_at(across(x))} {_at(up(y))}")
            pen = "L"
        name = "line dashed" if self.dashed else "line"
        return f'<path class="{name} s{self.style % SERIES}" d="{"".join(path)}"/>'


@dataclass(frozen=True, slots=True)
class Dots:
    """Points, each with a vertical interval when ``low`` and ``high`` are given and a tooltip from ``titles``."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    titles: Sequence[str] = ()
    style: int = 0

    def draw(self, across: Scale, up: Scale) -> str:
        parts = []
        for index, (x, y) in enumerate(zip(self.x, self.y, strict=True)):
            bar = ""
            if self.low:
                ends = f"{_at(up(self.low[index]))}V{_at(up(self.high[index]))}"
                bar = f'<path class="whisker" d="M{_at(across(x))} {ends}"/>'
            title = f"<title>{escape(self.titles[index])}</title>" if self.titles else ""
            parts.append(f'<g>{title}{bar}<circle cx="{_at(across(x))}" cy="{_at(up(y))}" r="4"/></g>')
        return f'<g class="dots s{self.style % SERIES}">{"".join(parts)}</g>'


@dataclass(frozen=True, slots=True)
class Scatter:
    """Points with intervals in both directions, a label, a tooltip and an area.

    An interval is (low, high) or None, and is cut at the edge of the plot. Without ``radii``, marks are equal.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    across: Sequence[Domain | None] = ()
    up: Sequence[Domain | None] = ()
    words: Sequence[str] = ()
    titles: Sequence[str] = ()
    radii: Sequence[float] = ()
    style: int = 0
    tone: str = ""
    """"hollow" for points without a chance, "ringed" for the selected one, else ""."""

    def draw(self, across: Scale, up: Scale) -> str:
        parts = []
        for index, (x, y) in enumerate(zip(self.x, self.y, strict=True)):
            if not (_drawable(x) and _drawable(y)):
                continue
            at, height = across(x), up(y)
            radius = self.radii[index] if self.radii else USUAL_MARK
            title = f"<title>{escape(self.titles[index])}</title>" if self.titles else ""
            wide, tall = _ends(self.across, index, across), _ends(self.up, index, up)
            bars = "" if wide is None else f'<path class="whisker" d="M{wide[0]} {_at(height)}H{wide[1]}"/>'
            bars += "" if tall is None else f'<path class="whisker" d="M{_at(at)} {tall[0]}V{tall[1]}"/>'
            ring = f'<circle class="ring" cx="{_at(at)}" cy="{_at(height)}" r="{_at(radius + 3.5)}"/>'
            dot = f'<circle cx="{_at(at)}" cy="{_at(height)}" r="{_at(radius)}"/>'
            word = self._word(index, at, height, radius, across)
            parts.append(f"<g>{title}{bars}{ring if self.tone == 'ringed' else ''}{dot}{word}</g>")
        kind = f"scatter {self.tone} s{self.style % SERIES}".replace("  ", " ")
        return f'<g class="{escape(kind)}">{"".join(parts)}</g>'

    def _word(self, index: int, at: float, height: float, radius: float, across: Scale) -> str:
        if not self.words or not self.words[index]:
            return ""
        far = at > across.end - 30
        place, anchor = (at - radius - 4, "end") if far else (at + radius + 4, "start")
        where = f'x="{_at(place)}" y="{_at(height - radius - 1)}" text-anchor="{anchor}"'
        return f"<text {where}>{escape(self.words[index])}</text>"


def _ends(intervals: Sequence[Domain | None], index: int, scale: Scale) -> tuple[str, str] | None:
    """Return the ends of a whisker, cut at the plot's edge; None without an interval."""
    pair = intervals[index] if intervals else None
    if pair is None or not (_drawable(pair[0]) and _drawable(pair[1])):
        return None
    low, high = (_at(scale(min(max(end, scale.low), scale.high))) for end in pair)
    return low, high


@dataclass(frozen=True, slots=True)
class Cloud:
    """Many points as one path, to keep the page small."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0

    def draw(self, across: Scale, up: Scale) -> str:
        pairs = [(x, y) for x, y in zip(self.x, self.y, strict=True) if _drawable(x) and _drawable(y)]
        spots = {f"M{_at(across(x))} {_at(up(y))}h0": None for x, y in pairs}
        ink = min(0.8, max(0.3, 20 / math.sqrt(max(1, len(spots)))))
        return f'<path class="cloud s{self.style % SERIES}" opacity="{ink:.2f}" d="{"".join(spots)}"/>'


@dataclass(frozen=True, slots=True)
class Bars:
    """A histogram: ``len(edges) == len(heights) + 1``; bars stand on zero."""

    name: str
    edges: Sequence[float]
    heights: Sequence[float]
    style: int = 0

    def draw(self, across: Scale, up: Scale) -> str:
        floor = up(max(0.0, up.low))
        path = []
        for left, right, height in zip(self.edges, self.edges[1:], self.heights, strict=False):
            if height:
                path.append(f"M{_at(across(left))} {_at(floor)}V{_at(up(height))}H{_at(across(right))}V{_at(floor)}z")
        return f'<path class="bars s{self.style % SERIES}" d="{"".join(path)}"/>'


@dataclass(frozen=True, slots=True)
class Band:
    """Area between two lines, cut at the edge of the plot; empty where either line is missing."""

    name: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    style: int = 0

    def draw(self, across: Scale, up: Scale) -> str:
        runs: list[list[tuple[str, str, str]]] = [[]]
        for index in _thinned(len(self.x)):
            x, low, high = self.x[index], self.low[index], self.high[index]
            if not (_drawable(x) and _drawable(low) and _drawable(high)):
                runs.append([])
                continue
            bottom, top = (_at(up(min(max(end, up.low), up.high))) for end in (low, high))
            runs[-1].append((_at(across(x)), bottom, top))
        shapes = []
        for run in filter(None, runs):
            upper = "L".join(f"{x} {high}" for x, _, high in run)
            lower = "L".join(f"{x} {low}" for x, low, _ in reversed(run))
            shapes.append(f"M{upper}L{lower}z")
        return f'<path class="band s{self.style % SERIES}" d="{"".join(shapes)}"/>'


@dataclass(frozen=True, slots=True)
class Level:
    """A labelled horizontal line: a margin or a boundary."""

    name: str
    y: float
    tone: str = ""
    """"ok" or "bad" for a deciding boundary."""

    def draw(self, across: Scale, up: Scale) -> str:
        at, kind = up(self.y), f"level {self.tone}".strip()
        word = at - 4 if at > up.end + 14 else at + 13
        return (
            f'<path class="{escape(kind)}" d="M{_at(across.start)} {_at(at)}H{_at(across.end)}"/>'
            f'<text x="{_at(across.end)}" y="{_at(word)}" text-anchor="end">{escape(self.name)}</text>'
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """A labelled vertical line."""

    name: str
    x: float
    style: int = 1

    def draw(self, across: Scale, up: Scale) -> str:
        at = across(self.x)
        anchor, shift = ("end", -4) if at > (across.start + across.end) / 2 else ("start", 4)
        return (
            f'<path class="rule s{self.style % SERIES}" d="M{_at(at)} {_at(up.start)}V{_at(up.end)}"/>'
            f'<text x="{_at(at + shift)}" y="{_at(up.end + 10)}" text-anchor="{anchor}">{escape(self.name)}</text>'
        )


Layer = Line | Dots | Scatter | Cloud | Bars | Band | Level | Rule


def plot(
    layers: Sequence[Layer],
    *,
    label: str,
    x_label: str,
    y_label: str,
    x_domain: Domain,
    y_domain: Domain,
    x_ticks: Sequence[Tick] | None = None,
) -> str:
    """Draw layers, bottom first, over a pair of axes. ``label`` describes the chart for screen readers."""
    across = Scale(*x_domain, LEFT, WIDTH - RIGHT)
    up = Scale(*y_domain, HEIGHT - BOTTOM, TOP)
    parts = [_grid(across, up, ticks(*x_domain) if x_ticks is None else x_ticks)]
    parts += [layer.draw(across, up) for layer in layers]
    parts.append(f'<text class="axis" x="0" y="11">{escape(y_label)}</text>')
    parts.append(
        f'<text class="axis" x="{_at(WIDTH - RIGHT)}" y="{_at(HEIGHT - 4)}" text-anchor="end">{escape(x_label)}</text>'
    )
    box = f"0 0 {_at(WIDTH)} {_at(HEIGHT)}"
    return f'<svg class="plot" viewBox="{box}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _grid(across: Scale, up: Scale, x_ticks: Sequence[Tick]) -> str:
    parts = []
    for value, text in ticks(up.low, up.high):
        y = _at(up(value))
        parts.append(f'<path class="grid" d="M{_at(across.start)} {y}H{_at(across.end)}"/>')
        parts.append(f'<text x="{_at(across.start - 6)}" y="{y}" dy="4" text-anchor="end">{escape(text)}</text>')
    for value, text in x_ticks:
        x = _at(across(value))
        parts.append(f'<path class="grid" d="M{x} {_at(up.start)}v4"/>')
        parts.append(f'<text x="{x}" y="{_at(up.start + 16)}" text-anchor="middle">{escape(text)}</text>')
    parts.append(f'<path class="base" d="M{_at(across.start)} {_at(up.start)}H{_at(across.end)}"/>')
    return "".join(parts)


def legend(layers: Sequence[Layer]) -> str:
    """Return the named layers with colour keys as an HTML list."""
    items = []
    for layer in layers:
        if layer.name and not isinstance(layer, Rule | Level):
            dashed = isinstance(layer, Line) and layer.dashed
            kind = "dashed" if dashed else "filled" if isinstance(layer, Band) else "solid"
            if isinstance(layer, Scatter):
                kind = f"mark {layer.tone}".strip()
            items.append(f'<li><i class="key {kind} s{layer.style % SERIES}"></i>{escape(layer.name)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>' if len(items) > 1 else ""


def figure(title: str, layers: Sequence[Layer], note: str = "", **axes: Any) -> dict[str, str]:
    """Return a plot with title, legend and caption, for the page's ``figures``."""
    return {"title": title, "svg": plot(layers, **axes), "legend": legend(layers), "note": note}


@dataclass(frozen=True, slots=True)
class Bound:
    """An interval around a value, with an optional threshold."""

    low: float
    value: float
    high: float
    threshold: float | None = None
    direction: str = "min"
    outcome: str = ""
    reference: float | None = None
    """A value drawn for comparison, such as that of all rows."""


def forest_domain(bounds: Sequence[Bound]) -> Domain:
    """Return the domain that shows all bounds with their thresholds."""
    edges = [edge for bound in bounds for edge in (bound.low, bound.value, bound.high)]
    marks = [mark for bound in bounds for mark in (bound.threshold, bound.reference) if mark is not None]
    return padded([*edges, *marks])


def forest_row(bound: Bound, domain: Domain, label: str) -> str:
    """Draw a row of a forest plot: interval, value, threshold, and the allowed side tinted; it scales with its cell."""
    scale = Scale(*domain, 0.0, 100.0)
    parts = []
    if bound.threshold is not None:
        at = scale(bound.threshold)
        start, width = (at, 100.0 - at) if bound.direction == "min" else (0.0, at)
        parts.append(f'<rect class="allowed" x="{_at(start)}%" y="0" width="{_at(width)}%" height="28"/>')
        parts.append(f'<line class="threshold" x1="{_at(at)}%" x2="{_at(at)}%" y1="0" y2="28"/>')
    if bound.reference is not None:
        at = scale(bound.reference)
        parts.append(f'<line class="reference" x1="{_at(at)}%" x2="{_at(at)}%" y1="0" y2="28"/>')
    if math.isfinite(bound.low) and math.isfinite(bound.high):
        low, high = _at(scale(bound.low)), _at(scale(bound.high))
        parts.append(f'<line class="interval" x1="{low}%" x2="{high}%" y1="14" y2="14"/>')
        parts += [f'<line class="interval" x1="{edge}%" x2="{edge}%" y1="9" y2="19"/>' for edge in (low, high)]
    if math.isfinite(bound.value):
        parts.append(f'<circle cx="{_at(scale(bound.value))}%" cy="14" r="5"/>')
    name = f"forest {bound.outcome.lower()}".strip()
    return f'<svg class="{escape(name)}" height="28" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def forest_axis(domain: Domain) -> str:
    """Draw the axis under the rows of a forest plot that share a domain."""
    scale = Scale(*domain, 0.0, 100.0)
    parts = ['<line class="base" x1="0" x2="100%" y1="0.5" y2="0.5"/>']
    for value, text in ticks(*domain, 4):
        at = scale(value)
        anchor = "start" if at < 4 else "end" if at > 96 else "middle"
        parts.append(f'<line class="base" x1="{_at(at)}%" x2="{_at(at)}%" y1="0" y2="5"/>')
        parts.append(f'<text x="{_at(at)}%" y="17" text-anchor="{anchor}">{escape(text)}</text>')
    return f'<svg class="forest-axis" height="20" aria-hidden="true">{"".join(parts)}</svg>'


def spark(heights: Sequence[float], label: str, widths: Sequence[float] = ()) -> str:
    """Draw a histogram of 120 by 28; ``widths`` are relative and equal by default."""
    parts = list(widths) if widths and sum(widths) > 0 else [1.0] * len(heights)
    tallest, total = max(heights, default=0.0) or 1.0, sum(parts) or 1.0
    path, left = [], 0.0
    for height, part in zip(heights, parts, strict=True):
        width = 120.0 * part / total
        if height > 0:
            top = 28.0 - max(1.0, 27.0 * height / tallest)
            path.append(f"M{_at(left)} 28V{_at(top)}h{_at(max(0.6, width - 0.8))}V28z")
        left += width
    name = f'class="spark" viewBox="0 0 120 28" role="img" aria-label="{escape(label)}"'
    return f'<svg {name}><path d="{"".join(path)}"/></svg>'


def _at(position: float) -> str:
    text = f"{position:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text
