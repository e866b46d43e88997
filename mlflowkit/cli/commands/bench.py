"""mlkit bench: the latency of bundles, ONNX files and recipes' graphs, measured in turns in one run."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, note
from mlflowkit.errors import GateFailedError, GateInconclusiveError, UsageError, nearest

if TYPE_CHECKING:
    from mlflowkit.bench.result import Result, Settings
    from mlflowkit.bench.result_file import Results
    from mlflowkit.bench.target import Choice
    from mlflowkit.pipeline.bench_targets import Asking
    from mlflowkit.values import Outcome

CODES: Mapping[str, int] = {
    "FAILED": GateFailedError.exit_code,
    "INCONCLUSIVE": GateInconclusiveError.exit_code,
}
"""What the process says of a baseline's verdict."""
DEFAULT_SHARE = "5%"
"""How much slower than a baseline is borne."""
LIVE_SECONDS, QUIET_SECONDS = 0.2, 2.0
"""A line of progress comes at most this often: on a terminal, and elsewhere."""

TargetArgument = Annotated[
    Path,
    typer.Argument(metavar="BUNDLE|MODEL.onnx|RECIPE", help="What to measure: the standard.", show_default=False),
]
CompareOption = Annotated[
    list[Path] | None,
    typer.Option("--compare", metavar="OTHER", help="Measure this too, in turns; more than once for several."),
]
BatchOption = Annotated[str, typer.Option("--batch", metavar="N,...", help="Rows a request; several: 1,8,32.")]
SamplesOption = Annotated[int, typer.Option("--samples", min=100, max=10_000_000, help="Requests of each.")]
StartsOption = Annotated[
    int,
    typer.Option("--starts", min=1, max=1000, help="Times that each process is started anew: no two are as fast."),
]
CandidateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--candidate", metavar="NAME", help="onnx-int8, onnx-fp16, ...: measure this rewriting of the graph; all: "
        "what the recipe lists."
    ),
]  # fmt: skip
RuntimeOption = Annotated[
    list[str] | None,
    typer.Option("--runtime", metavar="NAME", help="ort-cpu, ort-cuda, tensorrt, ...; more than once for several."),
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="Threads inside an operator.")]
QuantileOption = Annotated[
    str, typer.Option("--quantile", metavar="pNN", help="What intervals and verdicts are of: p50, p95, p99, p99.9.")
]
PinOption = Annotated[
    str | None,
    typer.Option(
        "--pin",
        metavar="CORE,...",
        help="Keep everything on these cores; none lets the system choose "
        "[default: the last ones, as many as there are threads].",
    ),
]
InputsOption = Annotated[
    Path | None, typer.Option("--inputs", metavar="FILE.npz", help="Rows to ask, an array for each input.")
]
SizeOption = Annotated[
    list[str] | None,
    typer.Option("--size", metavar="AXIS=N", help="Length of an axis that an ONNX file leaves open: sequence=128."),
]
ZerosOption = Annotated[bool, typer.Option("--zeros", help="Make up rows of zeros instead of random numbers.")]
RateOption = Annotated[
    float | None,
    typer.Option(
        "--rate",
        metavar="N",
        help="Requests arrive N a second, whether or not the last one is answered; latency counts from the moment when "
        "each was to arrive.",
    ),
]
ConcurrencyOption = Annotated[
    int, typer.Option("--concurrency", metavar="N", min=1, max=1024, help="Callers that ask at once.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="FILE.json", help="Keep the results with their samples: a baseline.")
]
PageOption = Annotated[
    Path | None, typer.Option("--page", metavar="FILE.html", help="Draw the results: one page, complete in itself.")
]
BaselineOption = Annotated[
    Path | None,
    typer.Option("--baseline", metavar="FILE.json", help="Hold the results against those that --out kept earlier."),
]
FailAboveOption = Annotated[
    str | None,
    typer.Option(
        "--fail-above",
        metavar="5%",
        help="How much slower than the baseline may be: exit 1 if it is surely more, 4 if that cannot be told "
        "[default: 5%].",
    ),
]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be measured, and how long it takes.")]


@app.command()
def bench(
    target: TargetArgument,
    compare: CompareOption = None,
    candidate: CandidateOption = None,
    runtime: RuntimeOption = None,
    batch: BatchOption = "1",
    samples: SamplesOption = 2000,
    starts: StartsOption = 5,
    threads: ThreadsOption = None,
    quantile: QuantileOption = "p50",
    pin: PinOption = None,
    inputs: InputsOption = None,
    size: SizeOption = None,
    zeros: ZerosOption = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of made-up rows and of arrivals.")] = 0,
    rate: RateOption = None,
    concurrency: ConcurrencyOption = 1,
    out: OutOption = None,
    page: PageOption = None,
    baseline: BaselineOption = None,
    fail_above: FailAboveOption = None,
    dry_run: DryOption = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Measure latency: warm-up until it is steady, then short blocks of everything in turns.

    Each thing is measured in processes of its own, by one caller unless more are asked for. Whatever this machine lacks
    is listed as not run, with the reason. The first thing is what the others are compared with.
    """
    from mlflowkit.bench.load.pattern import Load
    from mlflowkit.bench.result import Settings
    from mlflowkit.bench.target import Choice
    from mlflowkit.pipeline.bench_targets import Asking

    load = Load(concurrency, _rate(rate))
    ask = _Ask(
        targets=(target, *(compare or ())),
        settings=Settings(_batches(batch), samples, starts, _quantile(quantile), _cores(pin), load, seed),
        choice=Choice(tuple(candidate or ()), tuple(map(_runtime, runtime or ())), threads),
        asking=Asking(inputs, "zeros" if zeros else "random", dict(map(_size, size or ())), seed),
        state=state,
    )
    told = _Telling(_writable(out), _writable(page), *_gate(baseline, fail_above))
    _keep_apart({"--out": told.out, "--page": told.page}, [*ask.targets, *([inputs] if inputs else [])])
    if dry_run:
        return _glance(ask, json)
    return _tell(_measure(ask), told, json)


@dataclass(frozen=True, slots=True)
class _Ask:
    """The command line, read."""

    targets: tuple[Path, ...]
    settings: Settings
    choice: Choice
    asking: Asking
    state: Path | None


@dataclass(frozen=True, slots=True)
class _Telling:
    """Where results go, and what they are held against."""

    out: Path | None
    page: Path | None
    baseline: Results | None
    fail_above: float


def _measure(ask: _Ask) -> Result:
    from mlflowkit import api

    with _told() as progress, _orderly():
        return api.benchmark(*ask.targets, **_arguments(ask), progress=progress)


def _arguments(ask: _Ask) -> dict[str, Any]:
    return {"settings": ask.settings, "choice": ask.choice, "asking": ask.asking, "state": ask.state}


def _tell(result: Result, told: _Telling, as_json: bool) -> int:
    """Show and keep the results; returns the exit code."""
    from mlflowkit.bench import result_file
    from mlflowkit.cli.bench_table import show
    from mlflowkit.errors import EngineError, StoreError

    shown = result.to_json()
    whole = result_file.document(shown, result.measured, datetime.now(UTC).isoformat(timespec="seconds"))
    verdict: Outcome | None = None
    if told.baseline is not None:
        from mlflowkit.bench.regression import compare

        regression = compare(told.baseline, result_file.parse(whole), told.fail_above)
        verdict = regression.outcome
        shown, whole = ({**one, "baseline": regression.to_json()} for one in (shown, whole))
    try:
        if told.out is not None:
            result_file.write(told.out, whole)
        if told.page is not None:
            from mlflowkit.report.bench_page import render
            from mlflowkit.system.files import replace_file

            replace_file(told.page, render(whole).encode())
    except StoreError:
        if not as_json:  # whose only document is the error
            show(shown)
        raise
    if as_json:
        emit_json(shown)
    else:
        show(shown)
    if verdict is None and not result.measured:
        note("nothing was measured")
        return EngineError.exit_code
    return CODES.get(str(verdict), 0)


# ----------------------------------------------------------------------------------------------------------- dry run


def _glance(ask: _Ask, as_json: bool) -> int:
    from mlflowkit import api
    from mlflowkit.cli.bench_table import table
    from mlflowkit.report.formatting import seconds

    with _told() as progress, _orderly():
        found = api.glance(*ask.targets, **_arguments(ask), progress=progress)
    total = sum(took for _, took in found if took is not None)
    if as_json:
        rows = [
            {"name": row.entry.name, "runtime": row.entry.candidate.engine.runtime, "batch": row.batch,
             "status": row.status, "reason": row.reason, "seconds": took}
            for row, took in found
        ]  # fmt: skip
        emit_json({"candidates": rows, "seconds": total})
        return 0
    lines = [("name", "runtime", "batch", "would take")]
    lines += [
        (row.entry.name, row.entry.candidate.engine.runtime, str(row.batch),
         f"{row.status}: {row.reason}" if took is None else seconds(took))
        for row, took in found
    ]  # fmt: skip
    table(lines)
    echo(f"{ask.settings.samples:,} requests of each, at {ask.settings.label}: about {seconds(total)}, and the loading")
    return 0


@contextmanager
def _orderly() -> Iterator[None]:
    """SIGTERM, as from timeout(1) or a cancelled job, interrupts like Ctrl-C: what lies in temporary folders goes."""

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _told() -> Iterator[Callable[[str, float], None]]:
    """Progress on stderr: one line that is rewritten on a terminal, a line now and then elsewhere."""
    live, last = sys.stderr.isatty(), 0.0

    def tell(words: str, done: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= (LIVE_SECONDS if live else QUIET_SECONDS):
            last = now
            sys.stderr.write(f"\r\x1b[K{words} ({done:.0%})" if live else f"{words} ({done:.0%})\n")
            sys.stderr.flush()

    try:
        yield tell
    finally:
        if live and last:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


# -------------------------------------------------------------------------------------------- reading the command line


def _batches(text: str) -> tuple[int, ...]:
    """Batch sizes, each once, in their order. Raises UsageError.

    >>> _batches("1,8,8,32")
    (1, 8, 32)
    """
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise UsageError(f"--batch {text!r} is no list of whole numbers", hint="--batch 1,8,32") from error
    if min(found) < 1:
        raise UsageError(f"--batch {text!r}: a request has at least one row", hint="--batch 1,8,32")
    return found


def _quantile(text: str) -> float:
    """A quantile by its usual name. Raises UsageError.

    >>> _quantile("p99"), _quantile("p99.9")
    (0.99, 0.999)
    """
    try:
        found = round(float(text.removeprefix("p")) / 100, 12)
    except ValueError:
        found = 0.0
    if not (text.startswith("p") and 0 < found < 1):
        raise UsageError(f"--quantile {text!r} is none", hint="--quantile p50, p95, p99 or p99.9")
    return found


def _runtime(name: str) -> Any:
    from typing import get_args

    from mlflowkit.graphs.candidates import RuntimeName

    known = get_args(RuntimeName)
    if name in known:
        return name
    close = nearest(name, known)
    raise UsageError(
        f"no runtime {name!r}; there are {', '.join(known)}",
        hint=f"did you mean --runtime {close}?" if close else "--runtime ort-cpu",
    )


def _rate(rate: float | None) -> float | None:
    if rate is not None and not 0 < rate < float("inf"):
        raise UsageError(f"--rate {rate:g}: requests arrive at more than none a second", hint="--rate 200")
    return rate


def _gate(baseline: Path | None, fail_above: str | None) -> tuple[Results | None, float]:
    """The results to be held against, and how much slower than they may be. Raises UsageError."""
    if baseline is None:
        if fail_above is not None:
            raise UsageError("--fail-above: of what? There is no --baseline", hint="--baseline results.json")
        return None, 0.0
    from mlflowkit.bench.result_file import read

    return read(baseline), _share(fail_above or DEFAULT_SHARE)


def _share(text: str) -> float:
    """A share of one. Raises UsageError.

    >>> _share("5%"), _share("0.05"), _share("12.5 %")
    (0.05, 0.05, 0.125)
    """
    number = text.strip().removesuffix("%")
    try:
        found = round(float(number) / (1 if number == text.strip() else 100), 12)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise UsageError(f"--fail-above {text!r} is no share", hint="--fail-above 5%")
    return found


def _writable(path: Path | None) -> Path | None:
    """The file to write; it is known before anything is measured whether that can be. Raises UsageError."""
    if path is None:
        return None
    path = Path(os.path.abspath(path.expanduser()))
    folder = next(parent for parent in path.parents if os.path.exists(parent))
    if os.path.isdir(path) or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"{path} cannot be written", hint="name a file in a folder of yours")
    return path


def _keep_apart(written: Mapping[str, Path | None], read: Sequence[Path]) -> None:
    """Nothing that is written may replace what is measured or what else is written. Raises UsageError."""
    taken = {os.path.realpath(path.expanduser()): str(path) for path in read}
    for option, path in written.items():
        if path is None:
            continue
        place = os.path.realpath(path)
        if place in taken:
            raise UsageError(f"{option} {path} would replace {taken[place]}", hint="name another file")
        taken[place] = f"what --out writes to {path}"


def _size(text: str) -> tuple[str, int]:
    """The name and the length of an axis; the name may hold a "=". Raises UsageError."""
    name, _, count = text.rpartition("=")
    if not name or not count.isdecimal() or int(count) < 1:
        raise UsageError(f"--size {text!r} is not the length of an axis", hint="--size sequence=128")
    return name, int(count)


def _cores(text: str | None) -> tuple[int, ...] | None:
    if text is None or text == "none":
        return None if text is None else ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--pin {text!r} is no list of cores", hint="--pin 1, --pin 2,3 or --pin none") from error
