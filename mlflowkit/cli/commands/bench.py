"""mlkit bench: interleaved latency measurements of bundles, ONNX files and recipes' graphs."""

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

from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, note, print_table
from mlflowkit.errors import GateFailedError, GateInconclusiveError, UsageError, closest_match
from mlflowkit.system.text import printable_line

if TYPE_CHECKING:
    from mlflowkit.bench.result import BenchSettings
    from mlflowkit.bench.result_file import SavedResults
    from mlflowkit.bench.target import TargetChoice
    from mlflowkit.pipeline.bench_targets import InputSpec
    from mlflowkit.values import Outcome

EXIT_CODES: Mapping[str, int] = {"FAILED": GateFailedError.exit_code, "INCONCLUSIVE": GateInconclusiveError.exit_code}
"""Exit code for each verdict against a baseline."""
DEFAULT_SHARE = "5%"
"""Default slowdown allowed against a baseline."""
LIVE_SECONDS, QUIET_SECONDS = 0.2, 2.0
"""Minimum interval between progress lines: on a terminal, and elsewhere."""

TargetArgument = Annotated[
    Path,
    typer.Argument(
        metavar="BUNDLE|MODEL.onnx|RECIPE", help="What to measure: the baseline of the comparisons.", show_default=False
    ),
]
CompareOption = Annotated[
    list[Path] | None, typer.Option(metavar="OTHER", help="Measure this too, interleaved; repeatable.")
]
BatchOption = Annotated[str, typer.Option(metavar="N,...", help="Rows a request; several: 1,8,32.")]
SamplesOption = Annotated[int, typer.Option(min=100, max=10_000_000, help="Requests of each.")]
StartsOption = Annotated[
    int, typer.Option(min=1, max=1000, help="Process starts of each: two processes of one graph differ in speed.")
]
CandidateOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Measure this variant of the graph: onnx-int8, onnx-fp16, ...; all: "
        "those of the recipe."
    ),
]  # fmt: skip
RuntimeOption = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="ort-cpu, ort-cuda, tensorrt, ...; repeatable.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, max=1024, help="Threads inside an operator.")]
QuantileOption = Annotated[
    str, typer.Option(metavar="pNN", help="Quantile of intervals and verdicts: p50, p95, p99, p99.9.")
]
PinOption = Annotated[
    str | None,
    typer.Option(
        metavar="CORE,...",
        help="Pin all processes to these cores; none: no pinning "
        "[default: the last ones, as many as there are threads].",
    ),
]
InputsOption = Annotated[
    Path | None, typer.Option(metavar="FILE.npz", help="Rows of the requests, an array for each input.")
]
SizeOption = Annotated[
    list[str] | None, typer.Option(metavar="AXIS=N", help="Length of an open axis of an ONNX file: sequence=128.")
]
ZerosOption = Annotated[bool, typer.Option("--zeros", help="Generate rows of zeros instead of random numbers.")]
RateOption = Annotated[
    float | None,
    typer.Option(metavar="N", help="Open loop of N arrivals a second; latency counts from the intended arrival."),
]
ConcurrencyOption = Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Number of concurrent callers.")]
OutOption = Annotated[
    Path | None, typer.Option(metavar="FILE.json", help="Write the results with all samples, for use as a baseline.")
]
PageOption = Annotated[
    Path | None, typer.Option(metavar="FILE.html", help="Write the results as a self-contained page.")
]
BaselineOption = Annotated[
    Path | None, typer.Option(metavar="FILE.json", help="Compare the results with those of an earlier --out.")
]
FailAboveOption = Annotated[
    str | None,
    typer.Option(
        metavar="5%",
        help="Allowed slowdown against the baseline: exit 1 if it is surely larger, 4 if undecided [default: 5%].",
    ),
]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be measured, with estimated durations.")]


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
    seed: Annotated[int, typer.Option(min=0, help="Seed of generated rows and of arrivals.")] = 0,
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
    """Measure latency: warm-up until it is stationary, then short interleaved blocks.

    Each candidate runs in its own processes, with one caller by default. Candidates that this machine cannot run are
    listed with the reason. The others are compared with the first one.
    """
    from mlflowkit.bench.load.pattern import LoadPattern
    from mlflowkit.bench.result import BenchSettings
    from mlflowkit.bench.target import TargetChoice
    from mlflowkit.pipeline.bench_targets import InputSpec

    if rate is not None and not 0 < rate < float("inf"):
        raise UsageError(f"--rate {rate:g}: the rate must be positive", hint="--rate 200")
    load, batches, cores = LoadPattern(concurrency, rate), _parse_batches(batch), _parse_cores(pin)
    settings = BenchSettings(batches, samples, starts, _parse_quantile(quantile), cores, load, seed)
    choice = TargetChoice(tuple(candidate or ()), tuple(map(_parse_runtime, runtime or ())), threads)
    spec = InputSpec(inputs, "zeros" if zeros else "random", dict(map(_parse_size, size or ())), seed)
    request = _BenchRequest((target, *(compare or ())), settings, choice, spec, state)
    output = _Output(_writable(out), _writable(page), *_read_baseline(baseline, fail_above))
    _check_overwrites({"--out": output.out, "--page": output.page}, [*request.targets, *([inputs] if inputs else [])])
    if dry_run:
        return _estimate(request, json)
    return _measure(request, output, json)


@dataclass(frozen=True, slots=True)
class _BenchRequest:
    """Parsed command line."""

    targets: tuple[Path, ...]
    settings: BenchSettings
    choice: TargetChoice
    spec: InputSpec
    state: Path | None

    def api_arguments(self) -> dict[str, Any]:
        return {"settings": self.settings, "choice": self.choice, "asking": self.spec, "state": self.state}


@dataclass(frozen=True, slots=True)
class _Output:
    """Files to write, and the baseline to compare with."""

    out: Path | None
    page: Path | None
    baseline: SavedResults | None
    fail_above: float


def _measure(request: _BenchRequest, output: _Output, as_json: bool) -> int:
    """Measure, then print and write the results; return the exit code."""
    from mlflowkit import api
    from mlflowkit.bench import result_file
    from mlflowkit.cli.bench_table import show
    from mlflowkit.errors import EngineError, StoreError

    with _stderr_progress() as progress, _interrupt_on_sigterm():
        result = api.benchmark(*request.targets, **request.api_arguments(), progress=progress)
    value = result.to_json()
    document = result_file.document(value, result.measured, datetime.now(UTC).isoformat(timespec="seconds"))
    verdict: Outcome | None = None
    if output.baseline is not None:
        from mlflowkit.bench.regression import compare

        regression = compare(output.baseline, result_file.parse(document), output.fail_above)
        verdict = regression.outcome
        value["baseline"] = document["baseline"] = regression.to_json()
    try:
        if output.out is not None:
            result_file.write(output.out, document)
        if output.page is not None:
            from mlflowkit.report.bench_page import render
            from mlflowkit.system.files import replace_file

            replace_file(output.page, render(document).encode(), shared=True)
    except StoreError:
        if not as_json:  # with --json, the error is the only document
            show(value)
        raise
    if as_json:
        emit_json(value)
    else:
        show(value)
    if verdict is None and not result.measured:
        note("nothing was measured")
        return EngineError.exit_code
    return EXIT_CODES.get(str(verdict), 0)


def _estimate(request: _BenchRequest, as_json: bool) -> int:
    from mlflowkit import api
    from mlflowkit.report.formatting import seconds

    with _stderr_progress() as progress, _interrupt_on_sigterm():
        estimates = api.estimate_benchmark(*request.targets, **request.api_arguments(), progress=progress)
    total = sum(duration for _, duration in estimates if duration is not None)
    if as_json:
        rows = [
            {"name": row.entry.name, "runtime": row.entry.candidate.engine.runtime, "batch": row.batch,
             "status": row.status, "reason": row.reason, "seconds": duration}
            for row, duration in estimates
        ]  # fmt: skip
        emit_json({"candidates": rows, "seconds": total})
        return 0
    lines = [("name", "runtime", "batch", "would take")]
    lines += [
        (row.entry.name, row.entry.candidate.engine.runtime, str(row.batch),
         f"{row.status}: {row.reason}" if duration is None else seconds(duration))
        for row, duration in estimates
    ]  # fmt: skip
    print_table(lines)
    settings = request.settings
    echo(f"{settings.samples:,} requests of each, at {settings.label}: about {seconds(total)}, plus loading")
    return 0


@contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """Handle SIGTERM (timeout(1), a cancelled job) like Ctrl-C, so that temporary folders are removed."""

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _stderr_progress() -> Iterator[Callable[[str, float], None]]:
    """Progress on stderr: one rewritten line on a terminal, occasional lines elsewhere."""
    live, last = sys.stderr.isatty(), 0.0

    def report(activity: str, done: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= (LIVE_SECONDS if live else QUIET_SECONDS):
            last = now
            line = f"{printable_line(activity)} ({done:.0%})"
            sys.stderr.write(f"\r\x1b[K{line}" if live else f"{line}\n")
            sys.stderr.flush()

    try:
        yield report
    finally:
        if live and last:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _parse_batches(text: str) -> tuple[int, ...]:
    """Parse distinct batch sizes. Raises UsageError.

    >>> _parse_batches("1,8,8,32")
    (1, 8, 32)
    """
    try:
        sizes = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise UsageError(f"--batch {text!r} is no list of whole numbers", hint="--batch 1,8,32") from error
    if min(sizes) < 1:
        raise UsageError(f"--batch {text!r}: a request has at least one row", hint="--batch 1,8,32")
    return sizes


def _parse_quantile(text: str) -> float:
    """Parse a quantile's usual name. Raises UsageError.

    >>> _parse_quantile("p99"), _parse_quantile("p99.9")
    (0.99, 0.999)
    """
    try:
        value = round(float(text.removeprefix("p")) / 100, 12)
    except ValueError:
        value = 0.0
    if not (text.startswith("p") and 0 < value < 1):
        raise UsageError(f"--quantile {text!r} is no quantile", hint="--quantile p50, p95, p99 or p99.9")
    return value


def _parse_runtime(name: str) -> Any:
    from typing import get_args

    from mlflowkit.graphs.candidates import RuntimeName

    runtimes = get_args(RuntimeName)
    if name in runtimes:
        return name
    close = closest_match(name, runtimes)
    raise UsageError(
        f"no runtime {name!r}; there are {', '.join(runtimes)}",
        hint=f"did you mean --runtime {close}?" if close else "--runtime ort-cpu",
    )


def _read_baseline(baseline: Path | None, fail_above: str | None) -> tuple[SavedResults | None, float]:
    """Return the baseline and the allowed slowdown. Raises UsageError."""
    if baseline is None:
        if fail_above is not None:
            raise UsageError("--fail-above needs a --baseline", hint="--baseline results.json")
        return None, 0.0
    from mlflowkit.bench.result_file import read

    return read(baseline), _parse_share(fail_above or DEFAULT_SHARE)


def _parse_share(text: str) -> float:
    """Parse a share. Raises UsageError.

    >>> _parse_share("5%"), _parse_share("0.05"), _parse_share("12.5 %")
    (0.05, 0.05, 0.125)
    """
    number = text.strip().removesuffix("%")
    try:
        value = round(float(number) / (1 if number == text.strip() else 100), 12)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"--fail-above {text!r} is no share", hint="--fail-above 5%")
    return value


def _writable(path: Path | None) -> Path | None:
    """Return the absolute path of a file that can be written, checked before measuring. Raises UsageError."""
    if path is None:
        return None
    path = Path(os.path.abspath(path.expanduser()))
    folder = next(parent for parent in path.parents if os.path.exists(parent))
    if os.path.isdir(path) or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"{path} cannot be written", hint="name a file in a writable folder")
    return path


def _check_overwrites(written: Mapping[str, Path | None], read: Sequence[Path]) -> None:
    """Check that no output replaces an input or another output. Raises UsageError."""
    used = {os.path.realpath(path.expanduser()): str(path) for path in read}
    for option, path in written.items():
        if path is None:
            continue
        real = os.path.realpath(path)
        if real in used:
            raise UsageError(f"{option} {path} would replace {used[real]}", hint="name another file")
        used[real] = f"the output of --out, {path}"


def _parse_size(text: str) -> tuple[str, int]:
    """Parse the name and length of an axis; the name may contain "=". Raises UsageError."""
    name, _, count = text.rpartition("=")
    if not name or not count.isdecimal() or int(count) < 1:
        raise UsageError(f"--size {text!r} is not the length of an axis", hint="--size sequence=128")
    return name, int(count)


def _parse_cores(text: str | None) -> tuple[int, ...] | None:
    if text is None or text == "none":
        return None if text is None else ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--pin {text!r} is no list of cores", hint="--pin 1, --pin 2,3 or --pin none") from error
