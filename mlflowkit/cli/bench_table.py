"""What `mlkit bench` prints for people: a table of what was measured, comparisons, verdicts, and what was not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflowkit.cli.app import echo, note

NONE = "-"


def show(value: Mapping[str, Any]) -> None:
    """Print the JSON of a measurement (`bench.result.Result.to_json`, with ``baseline`` where there is one) as text."""
    for one in value["subjects"]:
        for words in one["notes"]:
            note(f"{one['name']}: {words}")
    lines = _lines(value)
    if len(lines) > 1:
        table(lines)
    for one in value["comparisons"]:
        echo(f"{one['verdict']}: {one['words']} (batch {one['batch']}, {one['confidence']:.1%} sure)")
    _show_rest(value)
    if value.get("baseline"):
        _show_regression(value["baseline"])


def _lines(value: Mapping[str, Any]) -> list[Sequence[str]]:
    from mlflowkit.report.formatting import micros, number

    quantile = value["quantile"]
    extra = [] if quantile in ("p50", "p95", "p99") else [quantile]
    head = ("name", "runtime", "batch", "p50", "p95", "p99", *extra, f"{quantile} interval", "rows/s", "memory", "cold")
    lines: list[Sequence[str]] = [head]
    for row in value["candidates"]:
        if row["interval"] is None:
            continue
        more = [micros(row["quantile_us"])] if extra else []
        low, high = row["interval"]
        lines.append((
            row["name"], row["runtime"], str(row["batch"]), micros(row["p50_us"]), micros(row["p95_us"]),
            micros(row["p99_us"]), *more, f"{micros(low)} to {micros(high)}", number(row["throughput"], 3),
            _bytes(row["memory_bytes"]), NONE if row["cold_start_ms"] is None else f"{row['cold_start_ms']:.0f} ms",
        ))  # fmt: skip
    return lines


def _show_rest(value: Mapping[str, Any]) -> None:
    """How requests came, what was not run, and what must be known to believe the figures."""
    from mlflowkit.bench.load.pattern import Load

    asked = value["settings"]["load"]
    load = Load(asked["callers"], asked["rate"])
    if load != Load():
        counted = "each waits for its answer" if load.rate is None else "latency counts from the intended arrival"
        echo(f"load: {load.words}; {counted}")
    for row in value["candidates"]:
        where = f"{row['name']} on {row['runtime']}, batch {row['batch']}"
        if row["interval"] is None:
            again = f"; python {row['script']} does it again" if row["script"] else ""
            echo(f"not run: {where}: {row['status']}: {row['reason']}{again}")
        if row["parts"]:
            echo(f"parts: {where}: {_parts(row['parts'])}")
        for words in row["notes"]:
            echo(f"note: {row['name']}, batch {row['batch']}: {words}")
    for words in value["notes"]:
        echo(f"note: {words}")


def _parts(parts: Mapping[str, Mapping[str, float]]) -> str:
    """Of what the time was made, at the median."""
    from mlflowkit.report.formatting import micros

    return ", ".join(f"{name.replace('_', ' ')} {micros(part['p50_us'])}" for name, part in parts.items())


def _show_regression(told: Mapping[str, Any]) -> None:
    for words in told["notes"]:
        echo(f"note: against the baseline: {words}")
    for name in told["new"]:
        echo(f"new: {name} is not in the baseline")
    for change in told["changes"]:
        echo(f"{change['outcome']}: {change['words']}")
    allowed = f"it may be slower by {100 * told['fail_above']:.3g} %"
    echo(f"{told['outcome']} against the baseline: {allowed}; intervals at {told['confidence']:.2%}")


def _bytes(count: float | None) -> str:
    from mlflowkit.report.run.pareto_views import bytes_words

    return NONE if count is None else bytes_words(count)


def table(lines: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their cells; the first two to the left, the rest to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        echo("  ".join(cells).rstrip())
