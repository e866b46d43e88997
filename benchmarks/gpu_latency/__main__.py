"""Latency of six models on every runtime, precision and batch size that this machine has, and what it lacks.

Each candidate runs in a process of its own; all candidates of a model and batch size are measured in turns. What this
machine lacks is a row with the status unavailable and the reason: nothing is run on another provider in its stead.
With --out, each group is written when it was measured: Ctrl-C keeps what is done, and a run may add to an earlier one.

    python -m benchmarks.gpu_latency --quick
    python -m benchmarks.gpu_latency --models resnet50,minilm --batches 1,32 --precisions fp32,int8 --json
    python -m benchmarks.gpu_latency --parts latency,engines,serving --out benchmarks/results/gpu_latency.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.gpu_latency import ahead, page, results, serving, tables
from benchmarks.gpu_latency.children import ChildError, once
from benchmarks.gpu_latency.measure import Suite, measured
from benchmarks.gpu_latency.models import MODELS
from benchmarks.gpu_latency.plan import BATCHES, PRECISIONS, RUNTIMES, Effort
from benchmarks.gpu_latency.results import Document
from benchmarks.gpu_latency.summary import best, shared
from mlflowkit.bench.environment import machine_info
from mlflowkit.errors import MlkitError
from mlflowkit.graphs import cuda_device
from mlflowkit.system.files import replace_file
from mlflowkit.system.machine import cores

PARTS = ("latency", "engines", "serving")
QUICK = Effort(seconds=1.0, longest=0.5, most=500, thorough=False)
"""A pass over everything in under three minutes: single rows, engines of one precision for one GPU."""


def latency(options: argparse.Namespace, document: Document) -> None:
    """Rows of all models, what the machine did meanwhile, the peaks of its matrix products, and the best of each."""
    suite = Suite(options.batches, options.runtimes, options.precisions, options.threads, options.effort)
    facts = _facts(options)
    results.put_peaks(document, facts["peaks"])
    for name in options.models:
        for group in measured(MODELS[name], suite):
            found = best(group.rows, group.samples, facts["operations"].get(name))
            results.put(document, "rows", group.rows)
            results.put(document, "conditions", group.conditions)
            results.put(document, "best", [shared(found, document["peaks"])] if found else [])
            results.kept(options.out, document)


def _facts(options: argparse.Namespace) -> Document:
    """Peaks and counted operations; where the process that finds them fails, no peaks, for that reason."""
    job = {"do": "facts", "models": options.models, "precisions": options.precisions, "threads": options.threads}
    try:
        found: Document = once(job, seconds=300, threads=options.threads)
    except ChildError as error:
        none = {"device": "", "operations_per_second": None, "reason": str(error)}
        return {"peaks": dict.fromkeys(options.precisions, none), "operations": {}}
    return found


def engines(options: argparse.Namespace, document: Document) -> None:
    """Engines built ahead of time."""
    known, lacking = ahead.targets()
    wanted = options.targets or [one for one in ahead.TARGETS if one in known]
    precisions = options.precisions
    if options.quick:
        wanted, precisions = wanted[-1:], precisions[:1]
    for name in options.models:
        print(f"  {name}", file=sys.stderr, flush=True)
        results.put(document, "engines", list(ahead.rows(MODELS[name], precisions, wanted, lacking, seconds=300)))
        results.kept(options.out, document)


def through_gateway(options: argparse.Namespace, document: Document) -> None:
    """Requests through the gateway."""
    rounds, seconds = (1, 0.5) if options.quick else (3, 2.0)
    results.put(document, "serving", list(serving.rows(serving.CANDIDATES, (1, 16), rounds, seconds)))
    results.kept(options.out, document)


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
        "--targets",
        type=lambda text: text.split(","),
        help=f"compute capabilities to build engines for ({','.join(ahead.TARGETS)})",
    )
    parser.add_argument("--threads", type=int, default=cores(), help="threads inside an operator (default: all cores)")
    parser.add_argument(
        "--seconds", type=float, default=Effort().seconds, help="of measuring for a model and batch size"
    )
    parser.add_argument("--longest", type=float, default=Effort().longest, help="seconds of a request that is measured")
    parser.add_argument(
        "--aside",
        type=_sizes,
        default=list(Effort().aside),
        help="batch sizes of torch.compile and FP16 on a processor",
    )
    parser.add_argument("--quick", action="store_true", help="a pass in under three minutes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, help="write JSON here; what is not measured now is kept")
    parser.add_argument("--page", type=Path, help="write a page (HTML) here")
    options = parser.parse_args(arguments)
    options.batches = options.batches or ([1] if options.quick else list(BATCHES))
    options.effort = QUICK if options.quick else Effort(options.seconds, options.longest, aside=tuple(options.aside))
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


def asked(options: argparse.Namespace) -> set[results.Key]:
    """What the options will measure anew."""
    found: set[results.Key] = set()
    if "latency" in options.parts:
        found |= {("rows", model, batch) for model, batch in product(options.models, options.batches)}
    if "engines" in options.parts:
        found |= {("engines", model, None) for model in options.models}
    if "serving" in options.parts:
        found.add(("serving", serving.MODEL, None))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts asked for, then print, write and draw what came of it; 130 where it was interrupted."""
    options = options_of(arguments)
    machine = machine_info().to_json()
    settings = {"machine": machine, "threads": options.threads, "effort": asdict(options.effort)}
    try:
        document = results.opened(options.out, settings, asked(options))
    except MlkitError as error:
        print(f"{error}\n{error.hint}", file=sys.stderr)
        return error.exit_code
    document["gpu"] = cuda_device.missing() or "present"
    code = 0
    try:
        for part, work in WORKS.items():
            if part in options.parts:
                print(part, file=sys.stderr, flush=True)
                work(options, document)
    except KeyboardInterrupt:
        print(
            f"interrupted: what was measured before is kept{f' in {options.out}' * bool(options.out)}", file=sys.stderr
        )
        code = 130
    results.kept(options.out, document)
    if options.page is not None:
        replace_file(options.page, page.html(document).encode(), durable=False)
    print(tables.lines(document) if options.json else tables.text(document))
    return code


WORKS: Mapping[str, Callable[[argparse.Namespace, Document], None]] = {
    "latency": latency,
    "engines": engines,
    "serving": through_gateway,
}


if __name__ == "__main__":
    sys.exit(main())
