"""A measurement as one self-contained HTML page: what was fastest, how sure that is, and on which machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlflowkit import __version__
from mlflowkit.bench.load.pattern import Load
from mlflowkit.report import charts, formatting
from mlflowkit.report.run import latency_views
from mlflowkit.report.run.pareto_views import bytes_words
from mlflowkit.report.run.run_page import css, environment

Document = Mapping[str, Any]
View = dict[str, Any]

VERDICTS: Mapping[str, str] = {"faster": "ok", "slower": "bad", "alike": "off", "undecided": "warn"}
OUTCOMES: Mapping[str, str] = {"PASSED": "ok", "FAILED": "bad", "INCONCLUSIVE": "warn"}
"""Tones of badges."""
MOST_LINES = latency_views.MOST_LINES
"""Entries in one chart; the table has all of them."""
MOST_ROUNDS = 400
"""Points of a line over time; of more blocks, neighbours are drawn as one."""


def render(document: Document) -> str:
    """The page of a results file (`bench.result_file.document`), as HTML text. The same document gives the same text.

    Everything that comes from data is escaped, and the page's own Content-Security-Policy forbids scripts and requests.
    """
    batches = list(dict.fromkeys(row["batch"] for row in document["candidates"]))
    return (
        environment()
        .get_template("bench.html")
        .render(
            title=", ".join(dict.fromkeys(one["name"] for one in document["subjects"])),
            made=document["made"],
            quantile=document["quantile"],
            tiles=tiles(document),
            subjects=document["subjects"],
            baseline=_baseline(document.get("baseline")),
            comparisons=_comparisons(document["comparisons"]),
            batches=[batch_view(document, batch) for batch in batches],
            absent=[row for row in document["candidates"] if row["status"] != "ok"],
            parts=parts(document["candidates"]),
            opened=opened(document["candidates"]),
            notes=notes(document),
            machine=machine(document),
            css=css(),
            version=__version__,
        )
    )


# ------------------------------------------------------------------------------------------------------------- verdicts


def tiles(document: Document) -> list[tuple[str, str, str]]:
    """(what, value, more): the page in a few words."""
    measured = [row for row in document["candidates"] if row["interval"]]
    settings = document["settings"]
    load = Load(settings["load"]["callers"], settings["load"]["rate"])
    found = []
    if measured:
        best = min(measured, key=lambda row: (row["batch"], row["quantile_us"]))
        where = f"{best['name']}, batch {best['batch']}"
        found.append((f"lowest {document['quantile']}", formatting.micros(best["quantile_us"]), where))
        most = max(measured, key=lambda row: float(row["throughput"]))
        rows = f"{formatting.number(most['throughput'], 3)} rows/s"
        found.append(("highest throughput", rows, f"{most['name']}, batch {most['batch']}"))
    total = len(document["candidates"])
    found.append(("measured", f"{len(measured)} of {total}", f"{settings['starts']} starts each"))
    found.append(("load", load.words, "open loop" if load.rate is not None else "each waits for its answer"))
    return found


def _comparisons(comparisons: Sequence[Mapping[str, Any]]) -> View | None:
    if not comparisons:
        return None
    bounds = [charts.Bound(one["low"], one["ratio"], one["high"], reference=1.0) for one in comparisons]
    domain = charts.forest_domain(bounds)
    rows = [
        {
            "name": one["name"],
            "batch": one["batch"],
            "verdict": one["verdict"],
            "tone": VERDICTS[one["verdict"]],
            "ratio": f"{one['ratio']:.3g} [{one['low']:.3g}, {one['high']:.3g}]",
            "svg": charts.forest_row(bound, domain, one["words"]),
        }
        for one, bound in zip(comparisons, bounds, strict=True)
    ]
    first = comparisons[0]
    return {"against": first["against"], "rows": rows, "axis": charts.forest_axis(domain), "sure": first["confidence"]}


def _baseline(told: Mapping[str, Any] | None) -> View | None:
    """The verdicts against a baseline: each with its interval, and the slowdown that may be."""
    if told is None:
        return None
    limit = 1 + told["fail_above"]
    bounds = {
        index: charts.Bound(one["low"], (one["low"] * one["high"]) ** 0.5, one["high"], limit, "max", one["outcome"])
        for index, one in enumerate(told["changes"])
        if one["low"] is not None
    }
    domain = charts.forest_domain(list(bounds.values()))
    rows = [
        {
            "name": one["name"],
            "batch": one["batch"],
            "outcome": one["outcome"],
            "tone": OUTCOMES[one["outcome"]],
            "words": one["words"],
            "svg": charts.forest_row(bounds[index], domain, one["words"]) if index in bounds else "",
        }
        for index, one in enumerate(told["changes"])
    ]
    return {
        "outcome": told["outcome"], "tone": OUTCOMES[told["outcome"]], "limit": f"{limit:.4g}", "rows": rows,
        "axis": charts.forest_axis(domain) if bounds else "", "new": told["new"], "notes": told["notes"],
        "quantile": told["quantile"],
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------- what was timed


def batch_view(document: Document, batch: int) -> View:
    """One batch size: a table with intervals, latency by percentile, its distribution, and its course over time."""
    rows = [row for row in document["candidates"] if row["batch"] == batch and row["interval"]]
    bounds = [charts.Bound(row["interval"][0], row["quantile_us"], row["interval"][1]) for row in rows]
    domain = charts.forest_domain(bounds)
    label = f"{document['quantile']} of"
    drawn = [
        charts.forest_row(bound, domain, f"{label} {row['name']}: {_interval(row)}")
        for row, bound in zip(rows, bounds, strict=True)
    ]
    starts = {one["name"]: one["starts"] for one in document["measured"] if one["batch"] == batch}
    pooled = {name: [us for start in each for us in start["samples_us"]] for name, each in starts.items()}
    shown = dict(list(pooled.items())[:MOST_LINES])
    more = len(pooled) - len(shown)
    note = f" {more} more were measured: the table has them." if more > 0 else ""
    figures = (
        latency_views.percentiles(shown, note=note, title=f"Latency by percentile, batch {batch}"),
        distribution(shown, batch),
        over_time({name: starts[name] for name in shown}, batch),
        by_start({name: starts[name] for name in shown}, document["quantile"], batch),
    )
    return {
        "batch": batch,
        "rows": [row_view(row, svg) for row, svg in zip(rows, drawn, strict=True)],
        "axis": charts.forest_axis(domain) if rows else "",
        "figures": [one for one in figures if one],
    }


def row_view(row: Mapping[str, Any], svg: str) -> View:
    """One line of the table of a batch size."""
    return {
        "name": row["name"],
        "runtime": row["runtime"],
        "p50": formatting.micros(row["p50_us"]),
        "p95": formatting.micros(row["p95_us"]),
        "p99": formatting.micros(row["p99_us"]),
        "interval": _interval(row),
        "svg": svg,
        "throughput": formatting.number(row["throughput"], 3),
        "size": bytes_words(row["size_bytes"]),
        "memory": bytes_words(row["memory_bytes"]),
        "cold": formatting.NONE if row["cold_start_ms"] is None else formatting.micros(1000 * row["cold_start_ms"]),
        "samples": formatting.number(row["samples"]),
    }


def _interval(row: Mapping[str, Any]) -> str:
    return f"{formatting.micros(row['interval'][0])} to {formatting.micros(row['interval'][1])}"


def distribution(taken: Mapping[str, Sequence[float]], batch: int) -> View | None:
    """The share of requests that were answered within a time, up to the slowest p99 (the empirical distribution)."""
    samples = {name: sorted(values) for name, values in taken.items() if values}
    if not samples:
        return None
    end = 1.05 * max(latency_views.at_percentile(ordered, 2.0) for ordered in samples.values())
    start = min(ordered[0] for ordered in samples.values())
    lines = []
    for style, (name, ordered) in enumerate(samples.items()):
        places = [latency_views.at_percentile(ordered, latency_views.tail(1 / (1 - i / 200))) for i in range(199)]
        shares = [i / 2 for i in range(199)]
        kept = [(x, y) for x, y in zip(places, shares, strict=True) if x <= end]
        lines.append(
            charts.Line(name, [x for x, _ in kept], [y for _, y in kept], style, dashed=style >= charts.SERIES)
        )
    return charts.figure(
        f"Requests answered within a time, batch {batch}",
        lines,
        "The steeper, the steadier; a step is a group of requests that are alike.",
        label=f"Share of requests answered within a time, of {', '.join(samples)}",
        x_label="µs",
        y_label="% of requests",
        x_domain=(start - 0.04 * (end - start), end),
        y_domain=(0.0, 100.0),
    )


def over_time(starts: Mapping[str, Sequence[Mapping[str, Any]]], batch: int) -> View | None:
    """The median of each block in the order of measuring: a drift, a throttled clock and a slow start can be seen."""
    courses = {name: [block_medians(start) for start in each] for name, each in starts.items()}
    lines = [
        charts.Line(name, *course(each), style, dashed=style >= charts.SERIES)
        for style, (name, each) in enumerate(courses.items())
    ]
    if not lines:
        return None
    top = max(value for each in courses.values() for medians in each for value in medians)
    anew = (
        " Lines break where all processes were started anew." if any(len(each) > 1 for each in starts.values()) else ""
    )
    return charts.figure(
        f"Median of each block over time, batch {batch}",
        lines,
        f"Blocks of all were measured in turns: what lifts every line at once is the machine, not a candidate.{anew}",
        label=f"Median of each block in the order of measuring, of {', '.join(starts)}",
        x_label="round",
        y_label="µs",
        x_domain=(0.0, max(line.x[-1] for line in lines) + 1),
        y_domain=(0.0, 1.08 * top),
    )


def course(starts: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """(round, median) of blocks, with a gap after each start; of very many blocks, neighbours are one point.

    >>> course([[5.0, 6.0], [7.0]])
    ([1.0, 2.0, 2.5, 3.0], [5.0, 6.0, nan, 7.0])
    """
    stride = -(-sum(map(len, starts)) // MOST_ROUNDS)
    places: list[float] = []
    values: list[float] = []
    before = 0
    for medians in starts:
        if before:
            places.append(before + 0.5)
            values.append(math.nan)
        for index in range(0, len(medians), stride):
            places.append(float(before + index + 1))
            values.append(_median(medians[index : index + stride]))
        before += len(medians)
    return places, values


def by_start(starts: Mapping[str, Sequence[Mapping[str, Any]]], quantile: str, batch: int) -> View | None:
    """The quantile of each start of each process: how far two processes of one graph lie apart."""
    share = float(quantile.removeprefix("p")) / 100
    dots = []
    for style, (name, each) in enumerate(starts.items()):
        values = [
            latency_views.at_percentile(sorted(start["samples_us"]), latency_views.tail(1 / (1 - share)))
            for start in each
        ]
        places = [
            number + 1 + (style - (len(starts) - 1) / 2) * 0.6 / max(1, len(starts)) for number in range(len(each))
        ]
        titles = [f"{name}, start {number + 1}: {formatting.micros(value)}" for number, value in enumerate(values)]
        dots.append(charts.Dots(name, places, values, titles=titles, style=style))
    count = max((len(each) for each in starts.values()), default=0)
    if count < 2:
        return None
    return charts.figure(
        f"{quantile} of each start, batch {batch}",
        dots,
        "Two processes of one graph differ for as long as they live; intervals rest on the starts where there are "
        "three or more.",
        label=f"{quantile} of each start of {', '.join(starts)}",
        x_label="start",
        y_label="µs",
        x_domain=(0.5, count + 0.5),
        y_domain=(0.0, 1.1 * max(max(layer.y) for layer in dots)),
        x_ticks=[(float(number), str(number)) for number in range(1, count + 1)] if count <= 12 else None,
    )


def block_medians(start: Mapping[str, Any]) -> list[float]:
    """Median of each block of one start, in microseconds.

    >>> block_medians({"samples_us": [1.0, 2.0, 3.0, 9.0, 9.0, 9.0], "block": 3})
    [2.0, 9.0]
    """
    samples, size = start["samples_us"], start["block"]
    return [_median(samples[begin : begin + size]) for begin in range(0, len(samples), size)]


def _median(values: Sequence[float]) -> float:
    return float(sorted(values)[len(values) // 2])


# ------------------------------------------------------------------------------------------------------- what is beside


def parts(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str, str]]:
    """(entry, part, p50, p95, p99) of what requests' time was made of, where a runtime told it."""
    return [
        (f"{row['name']}, batch {row['batch']}", name.replace("_", " "), *(
            formatting.micros(part[f"{quantile}_us"]) for quantile in ("p50", "p95", "p99")
        ))
        for row in rows
        for name, part in (row["parts"] or {}).items()
    ]  # fmt: skip


def opened(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """(entry, offered, answered, waited p50, waited p99, stretches that fell behind) of an open loop."""
    return [
        (
            f"{row['name']}, batch {row['batch']}", f"{told['offered']:,.0f} /s", f"{told['achieved']:,.0f} /s",
            formatting.micros(told["queued_p50_us"]), formatting.micros(told["queued_p99_us"]),
            f"{told['saturated_stretches']} of {told['stretches']}",
        )
        for row in rows
        if (told := row["open"])
    ]  # fmt: skip


def notes(document: Document) -> list[str]:
    """What must be known to believe the figures."""
    own = [f"{one['name']}: {words}" for one in document["subjects"] for words in one["notes"]]
    rows = [f"{row['name']}, batch {row['batch']}: {words}" for row in document["candidates"] for words in row["notes"]]
    return [*document["notes"], *own, *rows]


def machine(document: Document) -> list[tuple[str, str]]:
    """The machine, and how it was used, as facts with their names; what it does not tell is left out."""
    told, settings = document["machine"], document["settings"]
    clocks = [told.get(key) for key in ("min_mhz", "max_mhz")]
    facts: list[tuple[str, Any]] = [
        ("processor", told.get("processor")),
        ("cores", f"{told.get('cores')}{', virtual' if told.get('virtual') else ''}"),
        ("measured on", f"core {_listed(settings['cores'])}" if settings["cores"] else "cores that the system chose"),
        ("governor", told.get("governor")),
        ("clock", f"{clocks[0]:,.0f} to {clocks[1]:,.0f} MHz" if all(clocks) else None),
        ("boost", told.get("boost")),
        ("two threads a core", told.get("smt")),
        ("memory", bytes_words(told["memory_bytes"]) if told.get("memory_bytes") else None),
        ("memory limit", bytes_words(told["memory_limit_bytes"]) if told.get("memory_limit_bytes") else None),
        ("processor limit", f"{told['cpu_limit']:g} cores" if told.get("cpu_limit") else None),
        (
            "GPUs",
            ", ".join(gpu["name"] for gpu in told.get("gpus") or ()) or f"none ({told.get('gpus_reason') or '–'})",
        ),
        ("system", f"{told.get('system')} {told.get('kernel')}"),
        ("Python", told.get("python")),
        *sorted((told.get("libraries") or {}).items()),
    ]
    shown = [(name, formatting.number(value)) for name, value in facts if value not in (None, "")]
    hidden = dict.fromkeys((told.get("unknown") or {}).values())
    return shown + [("not told", words) for words in hidden]


def _listed(cores: Sequence[int]) -> str:
    return ", ".join(map(str, cores))
