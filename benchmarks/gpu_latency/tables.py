"""A document of results as text: for a terminal, for a results file, for the README. Pure, but for `main`.

python -m benchmarks.gpu_latency.tables      # puts the table of benchmarks/results/gpu_latency.json into README.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_latency.models import MODELS
from benchmarks.gpu_latency.summary import quickest
from mlflowkit.files import replace_file

ROOT = Path(__file__).parent.parent.parent
BEGIN, END = "<!-- gpu_latency: python -m benchmarks.gpu_latency.tables -->", "<!-- /gpu_latency -->"
Row = Mapping[str, Any]


def lines(document: Mapping[str, Any]) -> str:
    """JSON with one line for each row of a list: a difference between two files shows the rows that changed."""
    parts = []
    for key, value in document.items():
        if isinstance(value, list) and value:
            inside = ",\n".join(f"  {json.dumps(row)}" for row in value)
            parts.append(f" {json.dumps(key)}: [\n{inside}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def text(document: Mapping[str, Any]) -> str:
    """Tables for a terminal; candidates that this machine lacks are listed once, with the reason."""
    parts = []
    if rows := document.get("rows"):
        parts += [_grid(HEAD, map(_cells, rows)), "not measured:", *_reasons(rows)]
    if found := document.get("best"):
        parts += ["best of each:", _grid(BEST_HEAD, map(_best_cells, found))]
    if engines := document.get("engines"):
        parts += ["engines built ahead of time:", _grid(ENGINE_HEAD, map(_engine_cells, engines))]
    if served := document.get("serving"):
        parts += ["through a service:", _grid(SERVED_HEAD, map(_served_cells, served))]
    return "\n".join(parts)


HEAD = (
    "model",
    "batch",
    "candidate",
    "p50 us",
    "p95",
    "p99",
    "p50 between",
    "rows/s",
    "cold ms",
    "build s",
    "MB",
    "diff",
)
BEST_HEAD = ("model", "batch", "best", "p50 us", "rows/s", "of peak", "p50 against others")
ENGINE_HEAD = ("model", "precision", "target", "status", "build s", "MB", "why")
SERVED_HEAD = ("model", "server", "connections", "requests/s", "p50 us", "p99 us")


def _cells(row: Row) -> list[str]:
    if row["status"] != "ok":
        return []
    return [
        row["model"],
        str(row["batch"]),
        row["name"],
        *(f"{row[key]:,.0f}" for key in ("p50_us", "p95_us", "p99_us")),
        interval(row["interval"]),
        f"{row['throughput']:,.0f}",
        number(row["cold_start_ms"]),
        number(row["build_seconds"]),
        number(row["memory_bytes"] and row["memory_bytes"] / 2**20),
        number(row["difference"]),
    ]


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Each reason once, with the candidates and models that it stopped."""
    stopped: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row["status"] != "ok":
            where = row["name"] if row["status"] == "unavailable" else f"{row['model']} {row['name']} x{row['batch']}"
            stopped.setdefault((row["status"], row["reason"]), {})[where] = None
    return [f"  {status}: {', '.join(names)}: {reason}" for (status, reason), names in stopped.items()] or ["  none"]


def _best_cells(found: Row) -> list[str]:
    ratios = [
        f"{one['ratio']:.2f}x {name}"
        + (f" [{one['interval'][0]:.2f}, {one['interval'][1]:.2f}]" if one["interval"] else "")
        for name, one in found["ratios"].items()
    ]
    share = "" if found["peak_share"] is None else f"{found['peak_share']:.0%}"
    figures = [f"{found['p50_us']:,.0f}", f"{found['throughput']:,.0f}"]
    return [found["model"], str(found["batch"]), found["name"], *figures, share, ", ".join(ratios)]


def _engine_cells(row: Row) -> list[str]:
    size = number(row["size_bytes"] and row["size_bytes"] / 2**20)
    figures = [number(row["build_seconds"]), size, row["reason"][:100]]
    return [row["model"], row["precision"], row["target"], row["status"], *figures]


def _served_cells(row: Row) -> list[str]:
    if row["status"] != "ok":
        return [row["model"], row["server"], row["status"], row["reason"]]
    figures = [
        f"{row[key][0]:,.0f} [{row[key][1]:,.0f}, {row[key][2]:,.0f}]" for key in ("per_second", "p50_us", "p99_us")
    ]
    return [row["model"], row["server"], str(row["connections"]), *figures]


def number(value: float | None) -> str:
    """Three digits; "" for none.

    >>> number(0.0123456), number(1234.5), number(None)
    ('0.0123', '1,234', '')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def interval(ends: Sequence[float] | None) -> str:
    """Both ends; "" for none."""
    return "" if ends is None else f"{ends[0]:,.0f} to {ends[1]:,.0f}"


def _grid(head: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    table = [head, *filter(None, cells)]
    table = [[*line, *[""] * (len(head) - len(line))] for line in table]
    widths = [max(len(line[index]) for line in table) for index in range(len(head))]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in table
    )


def readme(document: Mapping[str, Any], batches: Sequence[int] = (1, 32)) -> str:
    """Markdown: for each model the quickest candidate at two batch sizes, and what the float graph and torch take."""
    head = ["model", *(f"batch {batch}: best, p50 [interval]" for batch in batches), "float graph / torch", "of peak"]
    out = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, model in MODELS.items():
        rows = [row for row in document["rows"] if row["model"] == name]
        if rows:
            found = [[row for row in rows if row["batch"] == batch] for batch in batches]
            out.append(
                f"| {' | '.join([model.what, *map(_best_words, found), _others(found[0]), _shares(document, name)])} |"
            )
    return "\n".join(out)


def _best_words(rows: Sequence[Row]) -> str:
    found = quickest(rows)
    if found is not None:
        low, high = found["interval"] or (None, None)
        ends = f" [{milliseconds(low)}, {milliseconds(high)}]" if low is not None else ""
        return f"{found['name']}, {milliseconds(found['p50_us'])}{ends} ms"
    skipped = next((row["reason"] for row in rows if row["status"] == "skipped"), "not measured")
    return skipped.partition(";")[0]


def _others(rows: Sequence[Row]) -> str:
    figures = {row["name"]: milliseconds(row["p50_us"]) for row in rows if row["status"] == "ok"}
    said = [figures.get(name, "none") for name in ("ort-cpu fp32", "torch fp32")]
    return f"{' / '.join(said)} ms"


def _shares(document: Mapping[str, Any], name: str) -> str:
    shares = [
        found["peak_share"] for found in document.get("best", ()) if found["model"] == name and found["peak_share"]
    ]
    return f"{max(shares):.0%}" if shares else ""


def milliseconds(microseconds: float) -> str:
    """Three digits.

    >>> milliseconds(17.84), milliseconds(123456.0)
    ('0.0178', '123')
    """
    return number(microseconds / 1000)


def main() -> int:
    """Replace what stands between the marks in README.md; 1 where there are none."""
    document = json.loads((ROOT / "benchmarks" / "results" / "gpu_latency.json").read_bytes())
    path = ROOT / "README.md"
    before, mark, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        print(f"{path} has no {BEGIN} ... {END}", file=sys.stderr)
        return 1
    replace_file(path, f"{before}{BEGIN}\n{readme(document)}\n{END}{after}".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
