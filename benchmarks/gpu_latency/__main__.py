"""Latency of six models on every runtime, precision and batch size that this machine has, and what it lacks.

Each candidate runs in a process of its own; all candidates of a model and batch size are measured in turns. What this
machine lacks is a row with the status unavailable and the reason: nothing is run on another provider in its stead.

    python -m benchmarks.gpu_latency --quick
    python -m benchmarks.gpu_latency --models resnet50,minilm --batches 1,32 --precisions fp32,int8 --json
    python -m benchmarks.gpu_latency --parts latency,engines,serving --out benchmarks/results/gpu_latency.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_latency import ahead, page, serving, tables
from benchmarks.gpu_latency.children import once
from benchmarks.gpu_latency.measure import Suite, measured
from benchmarks.gpu_latency.models import MODELS
from benchmarks.gpu_latency.plan import BATCHES, PRECISIONS, RUNTIMES, Effort
from benchmarks.gpu_latency.summary import best
from mlflowkit import gpu
from mlflowkit.bench.environment import description
from mlflowkit.files import replace_file
from mlflowkit.machine import cores

PARTS = ("latency", "engines", "serving")
QUICK = Effort(seconds=1.0, longest=0.5, most=500, thorough=False)
"""A pass over everything in two minutes: single rows, engines of one precision for one GPU."""
Document = dict[str, Any]


def latency(options: argparse.Namespace) -> Document:
    """Rows of all models, what the machine did meanwhile, the peaks of its matrix products, and the best of each."""
    effort = QUICK if options.quick else Effort(options.seconds, options.longest)
    suite = Suite(options.batches, options.runtimes, options.precisions, options.threads, effort)
    job = {"do": "facts", "models": options.models, "precisions": options.precisions, "threads": options.threads}
    facts = once(job, seconds=300, threads=options.threads)
    peaks, operations = facts["peaks"], facts["operations"]
    tops = {name: found["operations_per_second"] for name, found in peaks.items() if found["operations_per_second"]}
    rows, summary, conditions = [], [], []
    for name in options.models:
        for group in measured(MODELS[name], suite):
            rows += group.rows
            conditions += group.conditions
            if found := best(group.rows, group.samples, operations.get(name), tops):
                summary.append(found)
    return {"rows": rows, "best": summary, "peaks": peaks, "conditions": conditions, "gpu": gpu.missing() or "present"}


def engines(options: argparse.Namespace) -> Document:
    """Engines built ahead of time."""
    known, lacking = ahead.targets()
    wanted = [target for target in known if not options.targets or target in options.targets]
    precisions = options.precisions
    if options.quick:
        wanted, precisions = wanted[-1:], precisions[:1]
    rows = [
        row for name in options.models for row in ahead.rows(MODELS[name], precisions, wanted, lacking, seconds=300)
    ]
    return {"engines": rows}


def through_gateway(options: argparse.Namespace) -> Document:
    """Requests through the gateway."""
    rounds, seconds = (1, 0.5) if options.quick else (3, 2.0)
    return {"serving": serving.rows((1, 16), rounds, seconds)}


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's options, checked; exits with 2 for one that is unknown."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_latency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", type=_some_of(MODELS), default=list(MODELS), help=", ".join(MODELS))
    parser.add_argument("--batches", type=_sizes, help="rows a request (1,8,32,128; quick: 1)")
    parser.add_argument("--runtimes", type=_some_of(RUNTIMES), default=list(RUNTIMES), help=", ".join(RUNTIMES))
    parser.add_argument("--precisions", type=_some_of(PRECISIONS), default=list(PRECISIONS), help=", ".join(PRECISIONS))
    parser.add_argument("--parts", type=_some_of(PARTS), default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument(
        "--targets", type=lambda text: text.split(","), help="compute capabilities to build engines for"
    )
    parser.add_argument("--threads", type=int, default=cores(), help="threads inside an operator (default: all cores)")
    parser.add_argument(
        "--seconds", type=float, default=Effort().seconds, help="of measuring for a model and batch size"
    )
    parser.add_argument("--longest", type=float, default=Effort().longest, help="seconds of a request that is measured")
    parser.add_argument("--quick", action="store_true", help="a pass in two minutes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, help="write JSON here; parts that are not run now are kept")
    parser.add_argument("--page", type=Path, help="write a page (HTML) here")
    options = parser.parse_args(arguments)
    options.batches = options.batches or ([1] if options.quick else list(BATCHES))
    return options


def _some_of(known: Mapping[str, Any] | Sequence[str]) -> Any:
    def names(text: str) -> list[str]:
        asked = [name for name in text.split(",") if name]
        unknown = [name for name in asked if name not in known]
        if unknown or not asked:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'} is not one of {', '.join(known)}")
        return asked

    return names


def _sizes(text: str) -> list[int]:
    sizes = sorted({int(size) for size in text.split(",")})
    if sizes[0] < 1:
        raise argparse.ArgumentTypeError(f"a batch has at least one row, not {sizes[0]}")
    return sizes


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts asked for, then print, write and draw what came of it."""
    options = options_of(arguments)
    document: Document = {"benchmark": "gpu_latency"}
    if options.out is not None and options.out.exists():
        document |= json.loads(options.out.read_bytes())
    document |= {"machine": description().to_json(), "threads": options.threads, "quick": options.quick}
    for part, work in (("latency", latency), ("engines", engines), ("serving", through_gateway)):
        if part in options.parts:
            print(part, file=sys.stderr, flush=True)
            document |= work(options)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(options.out, tables.lines(document).encode(), durable=False)
    if options.page is not None:
        replace_file(options.page, page.html(document).encode(), durable=False)
    print(tables.lines(document) if options.json else tables.text(document))


if __name__ == "__main__":
    main()
