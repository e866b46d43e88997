"""The charts of a rollout: traffic, evidence against its boundary, estimates, latencies and predictions. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

from mlflowkit.judging.online.findings import told_ends
from mlflowkit.report import charts, formatting
from mlflowkit.report.run import latency_views
from mlflowkit.rollout.admin.view_models import FindingView, Histogram, PointView, RolloutView

CHAMPION, CANDIDATE, PROOF, HARM = 0, 1, 2, 3
"""Series colours; the style sheet gives the last two the tones of their verdicts."""
CEILING = 1.2
"""Height of an evidence chart in boundaries; what goes beyond is drawn at its edge."""
ENDLESS = 1e200
"""Stands for the end of an interval that has none; it is cut off at the chart's edge."""
CLASSES = 8
"""Classes that are drawn; the rarer ones are one bar."""


def traffic_bar(shares: Sequence[tuple[str, float, int]]) -> str:
    """Who answers how much of the traffic: (name, share, colour) as one bar that fills its place at any width."""
    parts, left = [], 0.0
    for name, share, style in shares:
        if share > 0:
            parts.append(
                f'<rect class="s{style}" x="{_percent(left)}" y="0" width="{_percent(share)}" height="22">'
                f"<title>{escape(name)}: {formatting.share(share)}</title></rect>"
            )
            left += share
    words = ", ".join(f"{name} {formatting.share(share)}" for name, share, _ in shares if share > 0) or "nobody"
    label = f'role="img" aria-label="{escape(f"Traffic: {words}")}"'
    return f'<svg class="traffic" height="22" {label}>{"".join(parts)}</svg>'


def balance(name: str, harm: float | None, proof: float | None) -> str:
    """Evidence towards both boundaries: to the left that a metric is worse than allowed, to the right that it is not;
    the edges decide."""
    left, right = (min(1.0, max(0.0, value or 0.0)) for value in (harm, proof))
    words = (
        f"{name}: {formatting.share(left)} of the evidence that rolls back, {formatting.share(right)} of what passes"
    )
    return (
        f'<svg class="balance" height="26" role="img" aria-label="{escape(words)}">'
        '<rect class="room" x="2%" y="8" width="96%" height="10"/>'
        f'<rect class="harm" x="{_percent(0.5 - 0.48 * left)}" y="8" width="{_percent(0.48 * left)}" height="10"/>'
        f'<rect class="proof" x="50%" y="8" width="{_percent(0.48 * right)}" height="10"/>'
        '<line class="middle" x1="50%" x2="50%" y1="4" y2="22"/>'
        '<line class="edge bad" x1="2%" x2="2%" y1="2" y2="24"/>'
        '<line class="edge ok" x1="98%" x2="98%" y1="2" y2="24"/>'
        "</svg>"
    )


def weights(found: RolloutView) -> dict[str, str]:
    """The candidate's and the champion's share over time."""
    places, label, _ = clock([time for time, _ in found.weights], found.begun)
    shares = [100 * weight for _, weight in found.weights]
    words = ", ".join(f"{share:g} %" for share in shares)
    return charts.figure(
        "Share of the traffic",
        [
            charts.Line(
                f"champion, version {found.champion_version}", places, [100 - share for share in shares], CHAMPION,
                stepped=True,
            ),
            charts.Line(f"candidate, version {found.candidate_version}", places, shares, CANDIDATE, stepped=True),
        ],
        "A candidate in a step of weight 0 gets mirrored requests only." if 0 in shares[1:-1] else "",
        label=f"Share of the traffic that the candidate has over time: {words}",
        x_label=label,
        y_label="% of the traffic",
        x_domain=_stretch(places),
        y_domain=(0.0, 104.0),
    )  # fmt: skip


def boundary(one: FindingView, points: Sequence[PointView], begun: float) -> dict[str, str]:
    """Sequential evidence of a metric against its boundary."""
    places, label = progress(points, begun)
    harm, proof = ([_drawn(getattr(point, name)) for point in points] for name in ("harm", "proof"))
    last = (
        f"{formatting.share(one.harm)} of the evidence that it is worse, {formatting.share(one.proof)} that it is not"
    )
    return charts.figure(
        f"{one.name}: evidence",
        [
            charts.Level("decides", 1.0, "bad" if one.outcome == "FAILED" else "ok" if one.outcome == "PASSED" else ""),
            charts.Line("worse than allowed", places, harm, HARM),
            charts.Line("not worse than allowed", places, proof, PROOF),
        ],
        label=f"Sequential evidence of {one.name} against its boundary at 1, now {last}",
        x_label=label,
        y_label="share of the evidence that decides",
        x_domain=_stretch(places),
        y_domain=(0.0, CEILING),
    )


def estimate(one: FindingView, points: Sequence[PointView], begun: float, factor: float, unit: str) -> dict[str, str]:
    """The estimate of a metric with its confidence sequence, and the line that it must not cross."""
    places, label = progress(points, begun)
    ratio = one.unit == "x"
    value = [math.nan if point.value is None else point.value * factor for point in points]
    ends = [
        (None, None) if point.value is None else told_ends(point.value, point.low, point.high, one.threshold, one.unit)
        for point in points
    ]
    low = [-ENDLESS if end is None else end * factor for end, _ in ends]
    high = [ENDLESS if end is None else end * factor for _, end in ends]
    limit = None if one.threshold is None else one.threshold * factor
    layers: list[charts.Layer] = [
        charts.Band("confidence sequence", places, low, high, CHAMPION),
        charts.Line("ratio" if ratio else "difference" if one.change else "value", places, value, CHAMPION),
    ]
    if limit is not None:
        layers.append(
            charts.Level(f"{'at least' if one.direction == 'min' else 'at most'} {formatting.number(limit)}", limit)
        )
    last = interval_words(one, factor, unit)
    title = "candidate over champion" if ratio else "candidate minus champion" if one.change else "candidate"
    return charts.figure(
        f"{one.name}: {title}",
        layers,
        label=f"{one.name}, {title}, with its confidence sequence: now {last}",
        x_label=label,
        y_label="times" if ratio else unit or one.metric.replace("_", " "),
        x_domain=_stretch(places),
        y_domain=_around(value, low, high, limit, zero=one.change and not ratio),
    )


def interval_words(one: FindingView, factor: float, unit: str) -> str:
    """The estimate of a metric with its confidence sequence, an end that has none worth telling as infinite."""
    if one.value is None:
        return formatting.NONE
    value = formatting.number(one.value * factor)
    ends = told_ends(one.value, one.low, one.high, one.threshold, one.unit)
    nothing = "0" if one.unit == "x" else "-∞"
    low = nothing if ends[0] is None else formatting.number(ends[0] * factor)
    high = "∞" if ends[1] is None else formatting.number(ends[1] * factor)
    return f"{value} [{low}, {high}] {unit}".rstrip()


def latency(found: Histogram) -> dict[str, str]:
    """Latencies of both arms on a logarithmic axis."""
    places = [math.log10(edge) for edge in found.edges]
    return charts.figure(
        "How long answers took",
        _arms(places, found),
        "Of requests under the routing tables of this rollout that both arms answered at the same time.",
        label="Latency distribution of champion and candidate",
        x_label="milliseconds, logarithmic",
        y_label="% of the answers",
        x_domain=(places[0], places[-1]),
        y_domain=(0.0, _highest(found)),
        x_ticks=decades(found.edges[0], found.edges[-1]),
    )


def percentiles(found: Histogram) -> dict[str, str]:
    """Latencies of both arms by percentile, the tail stretched, as far as each arm has answers to tell."""
    layers: list[charts.Layer] = []
    for name, counts, style in (("champion", found.champion, CHAMPION), ("candidate", found.challenger, CANDIDATE)):
        total = sum(counts)
        if total:
            end = latency_views.rarest(total)
            places, latencies, seen = [0.0], [found.edges[0]], 0
            for count, edge in zip(counts, found.edges[1:], strict=True):
                seen += count
                if count and places[-1] < end:
                    places.append(min(end, latency_views.tail(total / (total - seen)) if seen < total else end))
                    latencies.append(edge)
            layers.append(charts.Line(name, places, latencies, style))
    ends = [line.x[-1] for line in layers if isinstance(line, charts.Line)]
    highest = max(value for line in layers if isinstance(line, charts.Line) for value in line.y)
    return charts.figure(
        "Latency by percentile",
        layers,
        "Each step to the right is ten times rarer.",
        label="Latency by percentile of champion and candidate",
        x_label="percentile",
        y_label="milliseconds",
        x_domain=(0.0, max(ends)),
        y_domain=(0.0, 1.05 * highest),
        x_ticks=[
            (latency_views.tail(1 / (1 - share)), f"p{text}")
            for share, text in latency_views.PERCENTILES
            if latency_views.tail(1 / (1 - share)) <= max(ends) + 0.01
        ],
    )


def predictions(found: Histogram) -> dict[str, str]:
    """What both arms answered: scores, tenths of the reference distribution, or classes."""
    if found.names:
        return _classes(found)
    scores = found.edges[-1] <= 1.0
    return charts.figure(
        "Scores" if scores else "Predictions by tenth of the reference distribution",
        _arms(found.edges, found),
        label="Predictions of champion and candidate",
        x_label="score" if scores else "tenth",
        y_label="% of the rows",
        x_domain=(found.edges[0], found.edges[-1]),
        y_domain=(0.0, _highest(found)),
    )


def _classes(found: Histogram) -> dict[str, str]:
    """Bars of both arms by class, the commonest first."""
    kept = found.names[:CLASSES]
    names = [*kept, "others"] if len(found.names) > CLASSES else list(kept)
    layers: list[charts.Layer] = []
    highest = 0.0
    for name, counts, style, shift in (
        ("champion", found.champion, CHAMPION, 0.12),
        ("candidate", found.challenger, CANDIDATE, 0.5),
    ):
        total = sum(counts) or 1
        heights = [100 * count / total for count in (*counts[:CLASSES], sum(counts[CLASSES:]))][: len(names)]
        edges = [edge for index in range(len(names)) for edge in (index + shift, index + shift + 0.38)]
        layers.append(charts.Bars(name, edges, [part for height in heights for part in (height, 0.0)][:-1], style))
        highest = max(highest, *heights)
    return charts.figure(
        "Classes",
        layers,
        label="Share of each class in the answers of champion and candidate",
        x_label="",
        y_label="% of the rows",
        x_domain=(0.0, float(len(names))),
        y_domain=(0.0, 1.08 * highest or 1.0),
        x_ticks=[(index + 0.5, name if len(name) < 12 else f"{name[:10]}…") for index, name in enumerate(names)],
    )


def _arms(edges: Sequence[float], found: Histogram) -> list[charts.Layer]:
    """Both arms as outlines of their histograms, in percent."""
    layers: list[charts.Layer] = []
    for name, counts, style in (
        ("champion", found.champion, CHAMPION),
        ("candidate", found.challenger, CANDIDATE),
    ):
        total = sum(counts)
        if total:
            x = [edge for pair in pairwise(edges) for edge in pair]
            y = [100 * count / total for count in counts for _ in range(2)]
            layers += [
                charts.Band("", x, [0.0] * len(x), y, style),
                charts.Line(f"{name}, {total:,}", x, y, style),
            ]
    return layers


def _highest(found: Histogram) -> float:
    """Height of a chart of both arms, in percent."""
    parts = [max(counts) / sum(counts) for counts in (found.champion, found.challenger) if sum(counts)]
    return 108 * max(parts, default=1.0)


def decades(low: float, high: float) -> list[charts.Tick]:
    """Ticks at 1, 2, 5 of each power of ten between two latencies in milliseconds, or at powers alone.

    >>> [label for _, label in decades(0.9, 12.0)]
    ['1', '2', '5', '10']
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high < 300 * low else (1,)
    found = [factor * 10.0**power for power in powers for factor in factors]
    return [(math.log10(edge), f"{edge:g}") for edge in found if low <= edge <= high]


def progress(points: Sequence[PointView], begun: float) -> tuple[list[float], str]:
    """Where looks lie across a chart: by requests of the candidate, or by time where those do not grow."""
    counts = [float(point.challenger) for point in points]
    if counts[-1] > counts[0] and all(one <= other for one, other in pairwise(counts)):
        return counts, "observations of the candidate"
    places, label, _ = clock([point.time for point in points], begun)
    return places, label


def clock(times: Sequence[float], begun: float) -> tuple[list[float], str, float]:
    """Times since the beginning in a unit that suits them, the axis' label, and the seconds of the unit."""
    longest = max(times, default=begun) - begun
    unit, seconds = next(
        (pair for pair in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)) if longest >= 2 * pair[1]),
        ("seconds", 1.0),
    )
    return [(time - begun) / seconds for time in times], f"{unit} since the rollout began", seconds


def _around(
    value: Sequence[float], low: Sequence[float], high: Sequence[float], limit: float | None, *, zero: bool
) -> charts.Domain:
    """What an estimate chart shows: all estimates, the limit, the latest interval, and early intervals only as far as
    they do not flatten the rest."""
    wanted = [number for number in (*value, low[-1], high[-1]) if abs(number) < ENDLESS]
    wanted += [0.0] if zero else []
    wanted += [] if limit is None else [limit]
    bottom, top = min(wanted, default=0.0), max(wanted, default=1.0)
    room = top - bottom or abs(top) or 1.0
    edges = [min(max(edge, bottom - room), top + room) for edge in (*low, *high)]
    bottom, top = charts.padded([*wanted, *edges])
    return max(bottom, 0.0) if min(wanted, default=0.0) >= 0 and not zero else bottom, top


def _stretch(places: Sequence[float]) -> charts.Domain:
    return (min(places), max(places)) if max(places) > min(places) else (min(places), min(places) + 1.0)


def _drawn(value: float | None) -> float:
    return math.nan if value is None else min(value, CEILING)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
