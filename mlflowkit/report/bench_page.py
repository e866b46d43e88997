"""Bench results as one self-contained HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median_high
from typing import Any

from mlflowkit.bench.load.pattern import LoadPattern
from mlflowkit.report import charts, formatting
from mlflowkit.report.run import latency_views
from mlflowkit.report.run.run_page import render_template
from mlflowkit.system.text import format_numbers

Document = Mapping[str, Any]
View = dict[str, Any]

VERDICTS: Mapping[str, str] = {"faster": "ok", "slower": "bad", "alike": "off", "undecided": "warn"}
OUTCOMES: Mapping[str, str] = {"PASSED": "ok", "FAILED": "bad", "INCONCLUSIVE": "warn"}
"""Badge tones."""
MAX_ROUNDS = 400
"""Maximum points of a line over time; more blocks are merged with their neighbours."""


def render(document: Document) -> str:
    """Render a results document (`bench.result_file.document`) as HTML; deterministic.

    Data is escaped, and the page's Content-Security-Policy forbids scripts and requests.
    """
    candidates = document["candidates"]
    batches = list(dict.fromkeys(row["batch"] for row in candidates))
    return render_template(
        "bench.html",
        title=", ".join(dict.fromkeys(target["name"] for target in document["subjects"])),
        made=document["made"],
        quantile=document["quantile"],
        tiles=tiles(document),
        baseline=_baseline(document.get("baseline")),
        comparisons=_comparisons(document["comparisons"]),
        batches=[batch_view(document, batch) for batch in batches],
        absent=[row for row in candidates if row["status"] != "ok"],
        parts=[row for row in candidates if row["parts"]],
        open_loop=[row for row in candidates if row["open"]],
        notes=notes(document),
        machine=machine(document),
    )


def tiles(document: Document) -> list[tuple[str, str, str]]:
    """Return the headline (name, value, detail) tiles."""
    measured = [row for row in document["candidates"] if row["interval"]]
    settings = document["settings"]
    load = LoadPattern(settings["load"]["callers"], settings["load"]["rate"])
    headlines = []
    if measured:
        best = min(measured, key=lambda row: (row["batch"], row["quantile_us"]))
        where = f"{best['name']}, batch {best['batch']}"
        headlines.append((f"lowest {document['quantile']}", formatting.micros(best["quantile_us"]), where))
        most = max(measured, key=lambda row: float(row["throughput"]))
        rows = f"{formatting.number(most['throughput'], 3)} rows/s"
        headlines.append(("highest throughput", rows, f"{most['name']}, batch {most['batch']}"))
    total = len(document["candidates"])
    headlines.append(("measured", f"{len(measured)} of {total}", f"{settings['starts']} starts each"))
    headlines.append(("load", load.label, "open loop" if load.rate is not None else "each waits for its reply"))
    return headlines


def _comparisons(comparisons: Sequence[Mapping[str, Any]]) -> View | None:
    if not comparisons:
        return None
    bounds = [charts.Bound(pair["low"], pair["ratio"], pair["high"], reference=1.0) for pair in comparisons]
    domain = charts.forest_domain(bounds)
    rows = [
        {**pair, "tone": VERDICTS[pair["verdict"]], "svg": charts.forest_row(bound, domain, pair["words"])}
        for pair, bound in zip(comparisons, bounds, strict=True)
    ]
    return {"against": comparisons[0]["against"], "rows": rows, "axis": charts.forest_axis(domain)}


def _baseline(regression: Mapping[str, Any] | None) -> View | None:
    """Verdicts against a baseline: each with its interval and the allowed slowdown."""
    if regression is None:
        return None
    limit = 1 + regression["fail_above"]
    bounds: list[charts.Bound | None] = []
    for change in regression["changes"]:
        low, high, outcome = change["low"], change["high"], change["outcome"]
        bounds.append(None if low is None else charts.Bound(low, (low * high) ** 0.5, high, limit, "max", outcome))
    domain = charts.forest_domain([bound for bound in bounds if bound is not None])
    svgs = [
        "" if bound is None else charts.forest_row(bound, domain, change["words"])
        for change, bound in zip(regression["changes"], bounds, strict=True)
    ]
    rows = [
        {**change, "tone": OUTCOMES[change["outcome"]], "svg": svg}
        for change, svg in zip(regression["changes"], svgs, strict=True)
    ]
    axis = charts.forest_axis(domain) if any(bounds) else ""
    return {**regression, "tone": OUTCOMES[regression["outcome"]], "limit": f"{limit:.4g}", "rows": rows, "axis": axis}


def batch_view(document: Document, batch: int) -> View:
    """Return the view of one batch size: table with intervals, and charts."""
    rows = [row for row in document["candidates"] if row["batch"] == batch and row["interval"]]
    bounds = [charts.Bound(row["interval"][0], row["quantile_us"], row["interval"][1]) for row in rows]
    domain = charts.forest_domain(bounds)
    labels = [f"{document['quantile']} of {row['name']}: {latency_views.format_interval(row)}" for row in rows]
    svgs = [charts.forest_row(bound, domain, label) for bound, label in zip(bounds, labels, strict=True)]
    measured = {entry["name"]: entry["starts"] for entry in document["measured"] if entry["batch"] == batch}
    starts = dict(list(measured.items())[: latency_views.MAX_LINES])
    samples = {name: [us for start in entry for us in start["samples_us"]] for name, entry in starts.items()}
    more = len(measured) - len(starts)
    note = f" {more} more were measured: the table has them." if more > 0 else ""
    figures = (
        latency_views.percentiles(samples, f"Latency by percentile, batch {batch}", note=note),
        distribution(samples, batch),
        over_time(starts, batch),
        by_start(starts, document["quantile"], batch),
    )
    return {
        "batch": batch,
        "rows": [{**row, "svg": svg} for row, svg in zip(rows, svgs, strict=True)],
        "axis": charts.forest_axis(domain) if rows else "",
        "figures": [figure for figure in figures if figure],
    }


def distribution(samples: Mapping[str, Sequence[float]], batch: int) -> View | None:
    """Chart the empirical distribution of latencies, up to the slowest p99."""
    ordered = {name: sorted(values) for name, values in samples.items() if values}
    if not ordered:
        return None
    end = 1.05 * max(latency_views.at_percentile(values, 2.0) for values in ordered.values())
    start = min(values[0] for values in ordered.values())
    positions = [latency_views.tail(1 / (1 - i / 200)) for i in range(199)]
    lines = []
    for style, (name, values) in enumerate(ordered.items()):
        points = [(latency_views.at_percentile(values, position), i / 2) for i, position in enumerate(positions)]
        x, y = zip(*((latency, share) for latency, share in points if latency <= end), strict=True)
        lines.append(charts.Line(name, x, y, style, dashed=style >= charts.SERIES))
    return charts.figure(
        f"Requests answered within a time, batch {batch}",
        lines,
        "Steeper is steadier; a step is a group of requests of similar latency.",
        label=f"Share of requests answered within a time, of {', '.join(ordered)}",
        x_label="µs",
        y_label="% of requests",
        x_domain=(start - 0.04 * (end - start), end),
        y_domain=(0.0, 100.0),
    )


def over_time(starts: Mapping[str, Sequence[Mapping[str, Any]]], batch: int) -> View | None:
    """Chart the median of each block in the order of measurement, to show drift, throttling and slow starts."""
    medians = {name: [block_medians(start) for start in entry_starts] for name, entry_starts in starts.items()}
    lines = [
        charts.Line(name, *time_course(entry_medians), style, dashed=style >= charts.SERIES)
        for style, (name, entry_medians) in enumerate(medians.items())
    ]
    if not lines:
        return None
    top = max(value for entry in medians.values() for start in entry for value in start)
    restarted = any(len(entry_starts) > 1 for entry_starts in starts.values())
    gaps = " Lines break where all processes were restarted." if restarted else ""
    return charts.figure(
        f"Median of each block over time, batch {batch}",
        lines,
        f"Blocks are interleaved: what shifts all lines at once is the machine, not a candidate.{gaps}",
        label=f"Median of each block in the order of measurement, of {', '.join(starts)}",
        x_label="round",
        y_label="µs",
        x_domain=(0.0, max(line.x[-1] for line in lines) + 1),
        y_domain=(0.0, 1.08 * top),
    )


def time_course(starts: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Return (round, median) of blocks with a gap after each start; many blocks are merged with their neighbours.

    >>> time_course([[5.0, 6.0], [7.0]])
    ([1.0, 2.0, 2.5, 3.0], [5.0, 6.0, nan, 7.0])
    """
    stride = -(-sum(map(len, starts)) // MAX_ROUNDS)
    rounds: list[float] = []
    values: list[float] = []
    before = 0
    for medians in starts:
        if before:
            rounds.append(before + 0.5)
            values.append(math.nan)
        for index in range(0, len(medians), stride):
            rounds.append(float(before + index + 1))
            values.append(median_high(medians[index : index + stride]))
        before += len(medians)
    return rounds, values


def by_start(starts: Mapping[str, Sequence[Mapping[str, Any]]], quantile: str, batch: int) -> View | None:
    """Chart the quantile of each process start, to show how far processes of one graph differ."""
    count = max((len(entry_starts) for entry_starts in starts.values()), default=0)
    if count < 2:
        return None
    position = latency_views.tail(1 / (1 - float(quantile.removeprefix("p")) / 100))
    dots = []
    for style, (name, entry_starts) in enumerate(starts.items()):
        values = [latency_views.at_percentile(sorted(start["samples_us"]), position) for start in entry_starts]
        shift = (style - (len(starts) - 1) / 2) * 0.6 / len(starts)
        titles = [f"{name}, start {number}: {formatting.micros(value)}" for number, value in enumerate(values, 1)]
        x = [number + shift for number in range(1, len(values) + 1)]
        dots.append(charts.Dots(name, x, values, titles=titles, style=style))
    return charts.figure(
        f"{quantile} of each start, batch {batch}",
        dots,
        "Two processes of one graph differ for as long as they live; with three starts or more, intervals rest on the "
        "starts.",
        label=f"{quantile} of each start of {', '.join(starts)}",
        x_label="start",
        y_label="µs",
        x_domain=(0.5, count + 0.5),
        y_domain=(0.0, 1.1 * max(max(layer.y) for layer in dots)),
        x_ticks=[(float(number), str(number)) for number in range(1, count + 1)] if count <= 12 else None,
    )


def block_medians(start: Mapping[str, Any]) -> list[float]:
    """Return the median of each block of one start, in microseconds.

    >>> block_medians({"samples_us": [1.0, 2.0, 3.0, 9.0, 9.0, 9.0], "block": 3})
    [2.0, 9.0]
    """
    samples, size = start["samples_us"], start["block"]
    return [median_high(samples[begin : begin + size]) for begin in range(0, len(samples), size)]


def notes(document: Document) -> list[str]:
    """Return the caveats of the results."""
    targets = [f"{target['name']}: {text}" for target in document["subjects"] for text in target["notes"]]
    rows = [f"{row['name']}, batch {row['batch']}: {text}" for row in document["candidates"] for text in row["notes"]]
    return [*document["notes"], *targets, *rows]


def machine(document: Document) -> list[tuple[str, str]]:
    """Return the known facts of the machine and how it was used."""
    info, cores = document["machine"], document["settings"]["cores"]
    clocks = [info.get(key) for key in ("min_mhz", "max_mhz")]
    memory, limit = info.get("memory_bytes"), info.get("memory_limit_bytes")
    gpus = ", ".join(gpu["name"] for gpu in info.get("gpus") or ())
    facts: list[tuple[str, Any]] = [
        ("processor", info.get("processor")),
        ("cores", f"{info.get('cores')}{', virtual' if info.get('virtual') else ''}"),
        ("measured on", f"core {format_numbers(cores)}" if cores else "cores chosen by the system"),
        ("governor", info.get("governor")),
        ("clock", f"{clocks[0]:,.0f} to {clocks[1]:,.0f} MHz" if all(clocks) else None),
        ("boost", info.get("boost")),
        ("two threads a core", info.get("smt")),
        ("memory", formatting.format_bytes(memory) if memory else None),
        ("memory limit", formatting.format_bytes(limit) if limit else None),
        ("processor limit", f"{info['cpu_limit']:g} cores" if info.get("cpu_limit") else None),
        ("GPUs", gpus or f"none ({info.get('gpus_reason') or '–'})"),
        ("system", f"{info.get('system')} {info.get('kernel')}"),
        ("Python", info.get("python")),
        *sorted((info.get("libraries") or {}).items()),
    ]
    known = [(name, formatting.number(value)) for name, value in facts if value not in (None, "")]
    return known + [("unknown", reason) for reason in dict.fromkeys((info.get("unknown") or {}).values())]
