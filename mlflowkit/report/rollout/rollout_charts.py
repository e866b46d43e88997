"""Charts of a rollout: traffic, evidence against its boundary, estimates, latencies, predictions. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

from mlflowkit.judging.online.metric_results import displayable_bounds, possible_bounds
from mlflowkit.report import charts, formatting
from mlflowkit.report.run import latency_views
from mlflowkit.rollout.admin.view_models import FindingView, Histogram, PointView, RolloutView

CHAMPION, CANDIDATE, NOT_WORSE, WORSE = 0, 1, 2, 3
"""Series colours; the style sheet gives the last two the tones of their verdicts."""
CEILING = 1.2
"""Height of an evidence chart in boundaries; larger values are drawn at its edge."""
ENDLESS = 1e200
"""Stands for an infinite end of an interval; clipped at the chart's edge."""
MAX_CLASSES = 8
"""Classes with their own bar; rarer ones share finding."""


def traffic_bar(shares: Sequence[tuple[str, float, int]]) -> str:
    """The traffic shares (name, share, colour) as one stacked bar that scales to any width."""
    parts, left = [], 0.0
    for name, share, style in shares:
        if share > 0:
            parts.append(
                f'<rect class="s{style}" x="{_percent(left)}" y="0" width="{_percent(share)}" height="22">'
                f"<title>{escape(name)}: {formatting.share(share)}</title></rect>"
            )
            left += share
    text = ", ".join(f"{name} {formatting.share(share)}" for name, share, _ in shares if share > 0) or "none"
    label = f'role="img" aria-label="{escape(f"Traffic: {text}")}"'
    return f'<svg class="traffic" height="22" {label}>{"".join(parts)}</svg>'


def balance(name: str, evidence_worse: float | None, evidence_not_worse: float | None) -> str:
    """A bar with the evidence that a metric is worse than allowed (left) and that it is not (right); edges decide."""
    left, right = (min(1.0, max(0.0, value or 0.0)) for value in (evidence_worse, evidence_not_worse))
    rolls_back, passes = formatting.share(left), formatting.share(right)
    label = f"{name}: {rolls_back} of the evidence that rolls back, {passes} of what passes"
    return (
        f'<svg class="balance" height="26" role="img" aria-label="{escape(label)}">'
        '<rect class="room" x="2%" y="8" width="96%" height="10"/>'
        f'<rect class="harm" x="{_percent(0.5 - 0.48 * left)}" y="8" width="{_percent(0.48 * left)}" height="10"/>'
        f'<rect class="proof" x="50%" y="8" width="{_percent(0.48 * right)}" height="10"/>'
        '<line class="middle" x1="50%" x2="50%" y1="4" y2="22"/>'
        '<line class="edge bad" x1="2%" x2="2%" y1="2" y2="24"/>'
        '<line class="edge ok" x1="98%" x2="98%" y1="2" y2="24"/>'
        "</svg>"
    )


def weights(rollout: RolloutView) -> dict[str, str]:
    """The shares of candidate and champion over time."""
    x, label = clock([time for time, _ in rollout.weights], rollout.begun)
    shares = [100 * weight for _, weight in rollout.weights]
    text = ", ".join(f"{share:g} %" for share in shares)
    champion = f"champion, version {rollout.champion_version}"
    candidate = f"candidate, version {rollout.candidate_version}"
    return charts.figure(
        "Share of the traffic",
        [
            charts.Line(champion, x, [100 - share for share in shares], CHAMPION, stepped=True),
            charts.Line(candidate, x, shares, CANDIDATE, stepped=True),
        ],
        "A candidate in a step of weight 0 gets mirrored requests only." if 0 in shares[1:-1] else "",
        label=f"Share of the traffic of the candidate over time: {text}",
        x_label=label,
        y_label="% of the traffic",
        x_domain=_x_domain(x),
        y_domain=(0.0, 104.0),
    )


def boundary(finding: FindingView, points: Sequence[PointView], begun: float) -> dict[str, str]:
    """Sequential evidence of a metric against its boundary."""
    x, label = progress(points, begun)
    worse = [math.nan if point.harm is None else min(point.harm, CEILING) for point in points]
    not_worse = [math.nan if point.proof is None else min(point.proof, CEILING) for point in points]
    harm, proof = formatting.share(finding.harm), formatting.share(finding.proof)
    last = f"{harm} of the evidence for worse, {proof} for not worse"
    return charts.figure(
        f"{finding.name}: evidence",
        [
            charts.Level("decides", 1.0, {"FAILED": "bad", "PASSED": "ok"}.get(finding.outcome, "")),
            charts.Line("worse than allowed", x, worse, WORSE),
            charts.Line("not worse than allowed", x, not_worse, NOT_WORSE),
        ],
        label=f"Sequential evidence of {finding.name} against its boundary at 1, now {last}",
        x_label=label,
        y_label="share of the evidence that decides",
        x_domain=_x_domain(x),
        y_domain=(0.0, CEILING),
    )


def estimate(
    finding: FindingView, points: Sequence[PointView], begun: float, factor: float, unit: str
) -> dict[str, str]:
    """The estimate of a metric with its confidence sequence and its limit."""
    x, label = progress(points, begun)
    ratio = finding.unit == "x"
    value = [math.nan if point.value is None else point.value * factor for point in points]
    low, high = [-ENDLESS] * len(points), [ENDLESS] * len(points)
    for index, point in enumerate(points):
        if point.value is not None:
            ends = _ends(finding, point.value, point.low, point.high)
            low[index] = -ENDLESS if ends[0] is None else ends[0] * factor
            high[index] = ENDLESS if ends[1] is None else ends[1] * factor
    limit = None if finding.threshold is None else finding.threshold * factor
    layers: list[charts.Layer] = [
        charts.Band("confidence sequence", x, low, high, CHAMPION),
        charts.Line("ratio" if ratio else "difference" if finding.change else "value", x, value, CHAMPION),
    ]
    if limit is not None:
        word = "at least" if finding.direction == "min" else "at most"
        layers.append(charts.Level(f"{word} {formatting.number(limit)}", limit))
    last = interval_text(finding, factor, unit)
    title = "candidate over champion" if ratio else "candidate minus champion" if finding.change else "candidate"
    return charts.figure(
        f"{finding.name}: {title}",
        layers,
        label=f"{finding.name}, {title}, with its confidence sequence: now {last}",
        x_label=label,
        y_label="times" if ratio else unit or finding.metric.replace("_", " "),
        x_domain=_x_domain(x),
        y_domain=_estimate_domain(value, low, high, limit, zero=finding.change and not ratio),
    )


def interval_text(finding: FindingView, factor: float, unit: str) -> str:
    """The estimate of a metric with its confidence sequence as text; uninformative ends are infinite."""
    if finding.value is None:
        return formatting.NONE
    value = formatting.number(finding.value * factor)
    ends = _ends(finding, finding.value, finding.low, finding.high)
    lowest = "0" if finding.unit == "x" else "-∞"
    low = lowest if ends[0] is None else formatting.number(ends[0] * factor)
    high = "∞" if ends[1] is None else formatting.number(ends[1] * factor)
    return f"{value} [{low}, {high}] {unit}".rstrip()


def _ends(
    finding: FindingView, value: float, low: float | None, high: float | None
) -> tuple[float | None, float | None]:
    """The ends of a confidence sequence, within what is possible; None for one that says nothing."""
    possible = possible_bounds(finding.metric, finding.change and finding.unit != "x", low, high)
    return displayable_bounds(value, *possible, finding.threshold, finding.unit)


def latency(histogram: Histogram) -> dict[str, str]:
    """Latencies of both variants on a logarithmic axis."""
    x = [math.log10(edge) for edge in histogram.edges]
    return charts.figure(
        "How long answers took",
        _outlines(x, histogram),
        "Requests of both variants over the same period, under the routing tables of this rollout.",
        label="Latency distribution of champion and candidate",
        x_label="milliseconds, logarithmic",
        y_label="% of the answers",
        x_domain=(x[0], x[-1]),
        y_domain=(0.0, _highest(histogram)),
        x_ticks=decades(histogram.edges[0], histogram.edges[-1]),
    )


def percentiles(histogram: Histogram) -> dict[str, str]:
    """Latencies of both variants by percentile with a stretched tail, as far as the sample sizes allow."""
    layers: list[charts.Layer] = []
    for name, counts, style in _variants(histogram):
        total = sum(counts)
        if total:
            end = latency_views.rarest(total)
            x, latencies, count_so_far = [0.0], [histogram.edges[0]], 0
            for count, edge in zip(counts, histogram.edges[1:], strict=True):
                count_so_far += count
                if count and x[-1] < end:
                    rest = total - count_so_far
                    x.append(min(end, latency_views.tail(total / rest)) if rest else end)
                    latencies.append(edge)
            layers.append(charts.Line(name, x, latencies, style))
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


def predictions(histogram: Histogram) -> dict[str, str]:
    """Predictions of both variants: scores, deciles of the reference distribution, or classes."""
    if histogram.names:
        return _classes(histogram)
    scores = histogram.edges[-1] <= 1.0
    return charts.figure(
        "Scores" if scores else "Predictions by decile of the reference distribution",
        _outlines(histogram.edges, histogram),
        label="Predictions of champion and candidate",
        x_label="score" if scores else "decile",
        y_label="% of the rows",
        x_domain=(histogram.edges[0], histogram.edges[-1]),
        y_domain=(0.0, _highest(histogram)),
    )


def _classes(histogram: Histogram) -> dict[str, str]:
    names = [*histogram.names[:MAX_CLASSES], *(["others"] if len(histogram.names) > MAX_CLASSES else [])]
    layers: list[charts.Layer] = []
    highest = 0.0
    for (name, counts, style), shift in zip(_variants(histogram), (0.12, 0.5), strict=True):
        total = sum(counts) or 1
        heights = [100 * count / total for count in (*counts[:MAX_CLASSES], sum(counts[MAX_CLASSES:]))][: len(names)]
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


def _variants(histogram: Histogram) -> tuple[tuple[str, Sequence[int], int], ...]:
    return (("champion", histogram.champion, CHAMPION), ("candidate", histogram.challenger, CANDIDATE))


def _outlines(edges: Sequence[float], histogram: Histogram) -> list[charts.Layer]:
    layers: list[charts.Layer] = []
    for name, counts, style in _variants(histogram):
        total = sum(counts)
        if total:
            x = [edge for pair in pairwise(edges) for edge in pair]
            y = [100 * count / total for count in counts for _ in range(2)]
            layers += [charts.Band("", x, [0.0] * len(x), y, style), charts.Line(f"{name}, {total:,}", x, y, style)]
    return layers


def _highest(histogram: Histogram) -> float:
    """Height of a chart of both variants, in percent."""
    parts = [max(counts) / sum(counts) for counts in (histogram.champion, histogram.challenger) if sum(counts)]
    return 108 * max(parts, default=1.0)


def decades(low: float, high: float) -> list[charts.Tick]:
    """Ticks at 1, 2, 5 of each power of ten between two latencies in milliseconds, or at powers alone.

    >>> [label for _, label in decades(0.9, 12.0)]
    ['1', '2', '5', '10']
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high < 300 * low else (1,)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [(math.log10(tick), f"{tick:g}") for tick in ticks if low <= tick <= high]


def progress(points: Sequence[PointView], begun: float) -> tuple[list[float], str]:
    """x positions of observations: requests of the candidate, or time if those do not increase."""
    counts = [float(point.challenger) for point in points]
    if counts[-1] > counts[0] and counts == sorted(counts):
        return counts, "observations of the candidate"
    return clock([point.time for point in points], begun)


def clock(times: Sequence[float], begun: float) -> tuple[list[float], str]:
    """Times since the beginning in a suitable unit, and the axis label."""
    longest = max(times, default=begun) - begun
    units = {"days": 86_400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
    unit = next((unit for unit, seconds in units.items() if longest >= 2 * seconds), "seconds")
    return [(time - begun) / units[unit] for time in times], f"{unit} since the rollout began"


def _estimate_domain(
    value: Sequence[float], low: Sequence[float], high: Sequence[float], limit: float | None, *, zero: bool
) -> charts.Domain:
    """The y range of an estimate chart: all estimates, the limit, the latest interval, and early intervals clipped so
    that they do not flatten the rest."""
    required = [number for number in (*value, low[-1], high[-1]) if abs(number) < ENDLESS]
    required += [0.0] if zero else []
    required += [] if limit is None else [limit]
    bottom, top = min(required, default=0.0), max(required, default=1.0)
    room = top - bottom or abs(top) or 1.0
    edges = [min(max(edge, bottom - room), top + room) for edge in (*low, *high)]
    bottom, top = charts.padded([*required, *edges])
    return max(bottom, 0.0) if min(required, default=0.0) >= 0 and not zero else bottom, top


def _x_domain(x: Sequence[float]) -> charts.Domain:
    return (min(x), max(x)) if max(x) > min(x) else (min(x), min(x) + 1.0)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
