"""A document of results as one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.gpu_latency import tables
from benchmarks.gpu_latency.models import MODELS
from benchmarks.gpu_latency.summary import AT, NEAR, on_gpu, quickest, servable

Row = Mapping[str, Any]
STYLE = """:root{color-scheme:light dark;--bg:#fff;--panel:#f3f5f8;--fg:#1c2430;--muted:#5b6675;--line:#d9dee6;
--bar:#2f6fb5;--best:#0c7566}
@media(prefers-color-scheme:dark){:root{--bg:#12161b;--panel:#1a2027;--fg:#e4e8ed;--muted:#9fabb9;--line:#36404c;
--bar:#6cabff;--best:#3fd0b6}}
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:0 auto;padding:2rem 1rem;
background:var(--bg);color:var(--fg)}h1{font-size:1.6rem;margin:0 0 .5rem}h2{font-size:1.2rem;margin:2.2rem 0 .3rem}
h3{font-size:1rem;margin:1.2rem 0 .2rem}p{margin:.4rem 0;max-width:75ch;overflow-wrap:anywhere}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem .25rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
thead th{color:var(--muted);font-weight:600;white-space:nowrap}tbody th{font-weight:500;white-space:nowrap}
.num{text-align:right;white-space:nowrap}.graph{width:26%;min-width:7rem;vertical-align:middle}
.words{min-width:14rem}.name{white-space:nowrap}.bar{height:.7rem;background:var(--bar);min-width:1px}
.best .bar{background:var(--best)}.best th{color:var(--best)}
.best th::after{content:" (best)";font-weight:400}.muted{color:var(--muted)}
summary{cursor:pointer;color:var(--muted)}pre{background:var(--panel);padding:1rem;overflow:auto;font-size:.85em}
ul{padding-left:1.2rem;margin:.4rem 0}li{overflow-wrap:anywhere;margin:.2rem 0}"""


def html(document: Mapping[str, Any]) -> str:
    """The best of each model, what is claimed of a GPU, a table with bars for each model and batch size, engines and
    serving, what was not run and why, and the machine."""
    machine, rows = document["machine"], document.get("rows", [])
    gpu = document.get("gpu", "")
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width,initial-scale=1'><title>Inference latency</title>",
        f"<style>{STYLE}</style><h1>Inference latency</h1>",
        f"<p>{escape(machine['processor'])}, {machine['cores']} cores, {document['threads']} threads inside an "
        f"operator. GPU: {escape(', '.join(one['name'] for one in machine.get('gpus') or ()) or gpu)}.</p>",
        "<p class='muted'>Candidates of a model and batch size were measured in turns, each in a process of its own. "
        "Bars show the median, on a scale of their own for each batch size. The best is the quickest that a gateway "
        f"can serve and whose answers differ from those in FP32 by {NEAR:.0%} at most.</p>",
        *_best(document.get("best", [])),
        *_claims(document),
        *(_model(name, [row for row in rows if row["model"] == name]) for name in MODELS),
        *_listed("Engines built ahead of time", tables.engines_table(document.get("engines", []))),
        *_listed("Through a service", tables.served_table(document.get("serving", []))),
        *_lacking(rows),
        f"<details><summary>The machine</summary><pre>{escape(json.dumps(machine, indent=1))}</pre></details></html>",
    ]
    return "\n".join(parts)


def _best(found: Sequence[Row]) -> list[str]:
    return _listed("The best of each that can be served", tables.best_table(found)) if found else []


def _claims(document: Mapping[str, Any]) -> list[str]:
    claims = on_gpu(document)
    if any(claim["best"] for claim in claims):
        return _listed(f"On the GPU at batch {AT}", tables.claims_table(claims))
    reasons = dict.fromkeys(claim["reason"] for claim in claims) or [f"no group of batch {AT} was measured"]
    said = f"Share of the GPU's measured peak, ratios to torch.compile and to plain ORT CUDA: {'; '.join(reasons)}."
    return [f"<h2>On a GPU at batch {AT}</h2><p class='muted'>Not run. {escape(said)}</p>"]


def _listed(title: str, table: tables.Table) -> list[str]:
    """A table under a title; nothing without lines. Cells that are numbers stand to the right."""
    head, lines = table
    if not lines:
        return []
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in line)}</tr>" for line in lines)
    names = "".join(f"<th{_side(index, lines)}>{escape(name)}" for index, name in enumerate(head))
    return [f"<h2>{escape(title)}</h2>", _table(f"<thead><tr>{names}</tr></thead><tbody>{body}</tbody>")]


def _side(index: int, lines: Sequence[Sequence[str]]) -> str:
    cells = [line[index] for line in lines if len(line) > index and line[index]]
    return " class='num'" if cells and all(map(_number, cells)) else ""


def _number(cell: str) -> bool:
    return cell.rstrip("%").replace(",", "").replace(".", "", 1).isdigit()


def _cell(cell: str) -> str:
    kind = " class='num'" if _number(cell) else " class='words'" if len(cell) > 40 else " class='name'"
    return f"<td{kind}>{escape(cell)}"


def _table(inside: str) -> str:
    return f"<div class='scroll'><table>{inside}</table></div>"


def _model(name: str, rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    batches = sorted({row["batch"] for row in rows})
    groups = (_group([row for row in rows if row["batch"] == batch]) for batch in batches)
    return f"<h2>{escape(MODELS[name].what)}</h2>{''.join(groups)}"


def _group(rows: Sequence[Row]) -> str:
    """One table: figures and bars of what was measured, and folded away what was not but might have been."""
    measured = [row for row in rows if row["status"] == "ok"]
    slowest, first = max((row["p50_us"] for row in measured), default=1.0), quickest(servable(measured))
    title = f"<h3>Batch {rows[0]['batch']}</h3>"
    head = "".join(f"<th class='num'>{name}" for name in ("p50 ms", "interval ms", "p95 ms", "p99 ms", "rows a second"))
    lines = "".join(_line(row, slowest, row is first) for row in measured)
    table = _table(f"<thead><tr><th>candidate{head}<th class='graph'></tr></thead><tbody>{lines}</tbody>")
    left = [row for row in rows if row["status"] in ("skipped", "failed")]
    return title + (table if measured else "<p class='muted'>Nothing was measured.</p>") + _folded(left)


def _line(row: Row, slowest: float, best: bool) -> str:
    ends = [tables.milliseconds(end) for end in row["interval"] or ()]
    quantiles = [tables.milliseconds(row[key]) for key in ("p50_us", "p95_us", "p99_us")]
    figures = [quantiles[0], " to ".join(ends), *quantiles[1:], f"{row['throughput']:,.0f}"]
    cells = "".join(f"<td class='num'>{figure}" for figure in figures)
    notes = escape("; ".join(row["notes"]), quote=True)
    bar = (
        f"<td class='graph'><div class='bar' title='{notes}' style='width:{100 * row['p50_us'] / slowest:.1f}%'></div>"
    )
    return f"<tr{' class=best' * best}><th>{escape(row['name'])}{cells}{bar}</tr>"


def _folded(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    failed = sum(row["status"] == "failed" for row in rows)
    count = f"{len(rows)} without figures" + (f", {failed} of them failed" if failed else "")
    items = _items(f"{row['name']}: {row['status']}: {row['reason']}" for row in rows)
    return f"<details{' open' * bool(failed)}><summary>{count}</summary>{items}</details>"


def _items(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}' for line in lines)}</ul>"


def _lacking(rows: Sequence[Row]) -> list[str]:
    """What this machine lacks, each reason once."""
    stopped: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["status"] == "unavailable":
            stopped.setdefault(row["reason"], {})[row["name"]] = None
    if not stopped:
        return []
    return [
        "<h2>Not on this machine</h2>",
        _items(f"{', '.join(names)}: {reason}" for reason, names in stopped.items()),
    ]
