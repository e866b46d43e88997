"""A document of results as text: for a terminal, for a results file, for docs/figures.md. Pure, but for `main`.

python -m benchmarks.gpu_latency.tables      # puts benchmarks/results/gpu_latency.json into docs/figures.md
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from benchmarks.gpu_latency.models import MODELS
from benchmarks.gpu_latency.summary import AT, on_gpu, quickest, servable
from mlflowkit.system.files import replace_file

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
        parts += [_grid((HEAD, list(map(_cells, rows)))), "not measured:", *_reasons(rows)]
    if found := document.get("best"):
        parts += ["best of each that can be served:", _grid(best_table(found))]
        parts += [f"on a GPU at batch {AT}:", *_claim_lines(document)]
    if engines := document.get("engines"):
        parts += ["engines built ahead of time:", _grid(engines_table(engines))]
    if served := document.get("serving"):
        parts += ["through a service:", _grid(served_table(served))]
    return "\n".join(parts)


Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Names of columns, and lines of cells; a line may be shorter."""


def best_table(found: Sequence[Row]) -> Table:
    """What `summary.best` said."""
    return BEST_HEAD, list(map(_best_cells, found))


def claims_table(claims: Sequence[Row]) -> Table:
    """What `summary.on_gpu` said."""
    return CLAIM_HEAD, list(map(_claim_cells, claims))


def engines_table(rows: Sequence[Row]) -> Table:
    """What `ahead.rows` said."""
    return ENGINE_HEAD, list(map(_engine_cells, rows))


def served_table(rows: Sequence[Row]) -> Table:
    """What `serving.rows` said."""
    return SERVED_HEAD, list(map(_served_cells, rows))


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
CLAIM_HEAD = ("model", "best", "of the measured peak", "p50 over torch.compile's", "p50 over plain ORT CUDA's")
ENGINE_HEAD = ("model", "precision", "target", "status", "build s", "MB", "why")
SERVED_HEAD = ("model", "candidate", "server", "connections", "requests/s", "p50 us", "p99 us", "why")


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
    share = found["peak_reason"] if found["peak_share"] is None else f"{found['peak_share']:.0%}"
    ratios = [
        ratio_words(one) for one in found["ratios"].values() if one["ratio"] is not None and one["shown"] != "itself"
    ]
    figures = [f"{found['p50_us']:,.0f}", f"{found['throughput']:,.0f}"]
    return [found["model"], str(found["batch"]), found["name"], *figures, share, ", ".join(ratios)]


def _claim_lines(document: Mapping[str, Any]) -> list[str]:
    claims = on_gpu(document)
    if not claims:
        return [f"  not run: no group of batch {AT}"]
    if not any(claim["best"] for claim in claims):
        return [f"  not run: {reason}" for reason in dict.fromkeys(claim["reason"] for claim in claims)]
    return [_grid(claims_table(claims))]


def _engine_cells(row: Row) -> list[str]:
    size = number(row["size_bytes"] and row["size_bytes"] / 2**20)
    figures = [number(row["build_seconds"]), size, row["reason"][:100]]
    return [row["model"], row["precision"], row["target"], row["status"], *figures]


def _served_cells(row: Row) -> list[str]:
    if row["status"] != "ok":
        return [row["model"], row["candidate"], row["server"], *[""] * 4, f"{row['status']}: {row['reason']}"]
    figures = [
        f"{row[key][0]:,.0f} [{row[key][1]:,.0f}, {row[key][2]:,.0f}]" for key in ("per_second", "p50_us", "p99_us")
    ]
    return [row["model"], row["candidate"], row["server"], str(row["connections"]), *figures]


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


def _grid(table: Table) -> str:
    head, cells = table
    lines = [[*line, *[""] * (len(head) - len(line))] for line in (head, *filter(None, cells))]
    widths = [max(len(line[index]) for line in lines) for index in range(len(head))]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in lines
    )


def readme(document: Mapping[str, Any]) -> str:
    """Markdown: the quickest candidate of each model and batch size, what is claimed of a GPU, what was not run."""
    batches = sorted({row["batch"] for row in document["rows"]})
    head = ["p50 / p95 / p99 ms", *(f"batch {batch}" for batch in batches)]
    parts = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, model in MODELS.items():
        rows = [row for row in document["rows"] if row["model"] == name]
        words = (_best_words([row for row in rows if row["batch"] == batch]) for batch in batches)
        parts.append(f"| {' | '.join([model.what, *words])} |")
    parts += ["", *_claims(document), *_built_words(document), *_served_words(document)]
    return "\n".join([*parts, "", "Not run on this machine:", "", *_lacking(document["rows"]), *_unserved(document)])


def _best_words(rows: Sequence[Row]) -> str:
    """The best that can be served; "-" for a quantile that its requests were too few for."""
    found = quickest(servable(rows))
    if found is not None:
        figures = [
            milliseconds(found[key]) if key == "p50_us" or found["intervals"][key] else "-"
            for key in ("p50_us", "p95_us", "p99_us")
        ]
        return f"{found['name']}: {' / '.join(figures)}"
    skipped = next((row["reason"] for row in rows if row["status"] == "skipped"), "not measured")
    return skipped.partition(";")[0]


def _claims(document: Mapping[str, Any]) -> list[str]:
    """Of a GPU; one line where there is none."""
    claims = on_gpu(document)
    if not any(claim["best"] for claim in claims):
        reasons = dict.fromkeys(claim["reason"] for claim in claims) or [f"no group of batch {AT} was measured"]
        return [
            f"Share of a GPU's peak, and ratios to torch.compile and plain ORT CUDA: not run, {'; '.join(reasons)}."
        ]
    head = f"| at batch {AT} | best | of the GPU's measured peak | p50 over torch.compile's | over plain ORT CUDA's |"
    return [head, "|---|---|---|---|---|", *(f"| {' | '.join(_claim_cells(claim))} |" for claim in claims)]


def _claim_cells(claim: Mapping[str, Any]) -> list[str]:
    share = claim["reason"] if claim["peak_share"] is None else f"{claim['peak_share']:.0%}"
    against = [ratio_words(claim["against"][rival]) for rival in ("torch-compile", "ort-cuda")] if claim["best"] else []
    return [claim["model"], claim["best"] or "none", share, *(against or ["", ""])]


def ratio_words(one: Mapping[str, Any]) -> str:
    """A ratio of `summary.best`, with its interval and what it shows; the reason where there is none.

    >>> ratio_words({"name": "torch fp32", "ratio": 0.5, "interval": [0.4, 0.6], "shown": "faster", "reason": ""})
    '0.50x [0.40, 0.60] torch fp32: faster'
    """
    if one["ratio"] is None:
        return f"{one['shown']}: {one['reason']}"
    ends = f" [{one['interval'][0]:.2f}, {one['interval'][1]:.2f}]" if one["interval"] else ""
    return f"{one['ratio']:.2f}x{ends} {one['name']}: {one['shown']}"


def _built_words(document: Mapping[str, Any]) -> list[str]:
    rows = document.get("engines", [])
    built = [row for row in rows if row["status"] == "built"]
    if not built:
        return []
    seconds = [row["build_seconds"] for row in built]
    where = f"{min(seconds):.2g} to {max(seconds):.2g} s each"
    targets = {row["target"]: None for row in built}
    said = (
        f"TensorRT for RTX engines built ahead of time: {len(built)} for {len(targets)} compute capabilities, {where}"
    )
    failed = (
        f"; {len(rows) - len(built)} could not be, each with its reason in the results"
        if len(built) < len(rows)
        else ""
    )
    return [f"{said}{failed}."]


def _served_words(document: Mapping[str, Any]) -> list[str]:
    said = []
    for row in document.get("serving", []):
        if row["status"] == "ok":
            rate, p50, p99 = row["per_second"][0], milliseconds(row["p50_us"][0]), milliseconds(row["p99_us"][0])
            said.append(f"{row['server']} {rate:,.0f}/s at {row['connections']} (p50 {p50}, p99 {p99} ms)")
    return ["", f"Lending, one row a request, by connections: {'; '.join(said)}."] if said else []


def _lacking(rows: Sequence[Row]) -> list[str]:
    """Candidates without figures, by reason: runtimes that lack, candidates left out, groups that take too long."""
    measured = {(row["model"], row["batch"]) for row in rows if row["status"] == "ok"}
    stopped: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["status"] != "ok":
            reason = re.sub(r"^a request [^;]*", "a request takes too long", row["reason"])
            stopped.setdefault(reason, {})[_who(row, measured)] = None
    return [f"- {_several(list(names))}: {reason}" for reason, names in stopped.items()] or ["- nothing lacks"]


def _unserved(document: Mapping[str, Any]) -> list[str]:
    rows = [row for row in document.get("serving", []) if row["status"] != "ok"]
    return [f"- through a service, {row['candidate']}: {row['reason']}" for row in rows]


def _who(row: Row, measured: Set[tuple[str, int]]) -> str:
    if row["status"] == "unavailable":
        return str(row["runtime"])
    if row["status"] == "skipped" and not row["reason"].startswith("a request"):
        return str(row["name"])
    group = f"{row['model']} x{row['batch']}"
    return f"{row['name']} of {group}" if (row["model"], row["batch"]) in measured else group


def _several(names: Sequence[str], most: int = 6) -> str:
    """The first names, and how many more.

    >>> _several(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def milliseconds(microseconds: float) -> str:
    """Three digits.

    >>> milliseconds(17.84), milliseconds(123456.0)
    ('0.0178', '123')
    """
    return number(microseconds / 1000)


def main() -> int:
    """Replace what stands between the marks in docs/figures.md; 1 where there are none."""
    document = json.loads((ROOT / "benchmarks" / "results" / "gpu_latency.json").read_bytes())
    path = ROOT / "docs" / "figures.md"
    before, mark, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        print(f"{path} has no {BEGIN} ... {END}", file=sys.stderr)
        return 1
    replace_file(path, f"{before}{BEGIN}\n\n{readme(document)}\n\n{END}{after}".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
