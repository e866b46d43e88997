"""Text output of `mlkit bench`: measurements, comparisons, verdicts, and what was not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflowkit.bench.load.pattern import LoadPattern
from mlflowkit.cli.app import echo, note, print_table
from mlflowkit.report.formatting import format_bytes, micros, number

NONE = "-"


def show(value: Mapping[str, Any]) -> None:
    """Print the JSON of a run (`bench.result.BenchResult.to_json`, with ``baseline`` if there is one) as text."""
    for target in value["subjects"]:
        for text in target["notes"]:
            note(f"{target['name']}: {text}")
    rows = _rows(value)
    if len(rows) > 1:
        print_table(rows)
    for pair in value["comparisons"]:
        echo(f"{pair['verdict']}: {pair['words']} (batch {pair['batch']}, {pair['confidence']:.1%} sure)")
    _show_notes(value)
    if value.get("baseline"):
        _show_regression(value["baseline"])


def _rows(value: Mapping[str, Any]) -> list[Sequence[str]]:
    quantile = value["quantile"]
    extra = [] if quantile in ("p50", "p95", "p99") else [quantile]
    head = ("name", "runtime", "batch", "p50", "p95", "p99", *extra, f"{quantile} interval", "rows/s", "memory", "cold")
    rows: list[Sequence[str]] = [head]
    for row in value["candidates"]:
        if row["interval"] is None:
            continue
        more = [micros(row["quantile_us"])] if extra else []
        low, high = row["interval"]
        rows.append((
            row["name"], row["runtime"], str(row["batch"]), micros(row["p50_us"]), micros(row["p95_us"]),
            micros(row["p99_us"]), *more, f"{micros(low)} to {micros(high)}", number(row["throughput"], 3),
            NONE if row["memory_bytes"] is None else format_bytes(row["memory_bytes"]),
            NONE if row["cold_start_ms"] is None else f"{row['cold_start_ms']:.0f} ms",
        ))  # fmt: skip
    return rows


def _show_notes(value: Mapping[str, Any]) -> None:
    """Print the load, what was not run, and the caveats of the results."""
    settings = value["settings"]["load"]
    load = LoadPattern(settings["callers"], settings["rate"])
    if load != LoadPattern():
        timing = "each waits for its reply" if load.rate is None else "latency counts from the intended arrival"
        echo(f"load: {load.label}; {timing}")
    for row in value["candidates"]:
        where = f"{row['name']} on {row['runtime']}, batch {row['batch']}"
        if row["interval"] is None:
            script = f"; python {row['script']} reproduces it" if row["script"] else ""
            echo(f"not run: {where}: {row['status']}: {row['reason']}{script}")
        if row["parts"]:
            medians = (f"{name.replace('_', ' ')} {micros(part['p50_us'])}" for name, part in row["parts"].items())
            echo(f"parts: {where}: {', '.join(medians)}")
        for text in row["notes"]:
            echo(f"note: {row['name']}, batch {row['batch']}: {text}")
    for text in value["notes"]:
        echo(f"note: {text}")


def _show_regression(baseline: Mapping[str, Any]) -> None:
    for text in baseline["notes"]:
        echo(f"note: against the baseline: {text}")
    for name in baseline["new"]:
        echo(f"new: {name} is not in the baseline")
    for change in baseline["changes"]:
        echo(f"{change['outcome']}: {change['words']}")
    allowed = f"it may be slower by {100 * baseline['fail_above']:.3g} %"
    echo(f"{baseline['outcome']} against the baseline: {allowed}; intervals at {baseline['confidence']:.2%}")
