"""mlkit bench: the latency of bundles, ONNX files and recipes' graphs, measured in turns in one run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, note
from mlflowkit.errors import UsageError, nearest

if TYPE_CHECKING:
    from mlflowkit.bench.rows import Result, Settings
    from mlflowkit.bench.subject import Choice
    from mlflowkit.pipeline.subjects import Asking

LIVE_SECONDS, QUIET_SECONDS = 0.2, 2.0
"""A line of progress comes at most this often: on a terminal, and elsewhere."""
NONE = "-"

TargetArgument = Annotated[
    Path,
    typer.Argument(metavar="BUNDLE|MODEL.onnx|RECIPE", help="What to measure: the standard.", show_default=False),
]
CompareOption = Annotated[
    list[Path] | None,
    typer.Option("--compare", metavar="OTHER", help="Measure this too, in turns; more than once for several."),
]
BatchOption = Annotated[str, typer.Option("--batch", metavar="N,...", help="Rows a request; several: 1,8,32.")]
SamplesOption = Annotated[int, typer.Option("--samples", min=50, max=10_000_000, help="Requests of each.")]
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
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of made-up rows.")] = 0,
    dry_run: DryOption = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Measure latency: warm-up until it is steady, then short blocks of everything in turns.

    Each thing is measured in a process of its own, one caller at a time. Whatever this machine lacks is listed as not
    run, with the reason. The first thing is what the others are compared with.
    """
    from mlflowkit.bench.rows import Settings
    from mlflowkit.bench.subject import Choice
    from mlflowkit.pipeline.subjects import Asking

    ask = _Ask(
        targets=(target, *(compare or ())),
        settings=Settings(_batches(batch), samples, starts, _quantile(quantile), _cores(pin)),
        choice=Choice(tuple(candidate or ()), tuple(map(_runtime, runtime or ())), threads),
        asking=Asking(inputs, "zeros" if zeros else "random", dict(map(_size, size or ())), seed),
        state=state,
    )
    if dry_run:
        return _glance(ask, json)
    result = _measure(ask)
    if json:
        emit_json(result.to_json())
    else:
        _print(result)
    return 0


@dataclass(frozen=True, slots=True)
class _Ask:
    """The command line, read."""

    targets: tuple[Path, ...]
    settings: Settings
    choice: Choice
    asking: Asking
    state: Path | None


def _measure(ask: _Ask) -> Result:
    from mlflowkit import library

    with _told() as progress:
        return library.benchmark(*ask.targets, **_arguments(ask), progress=progress)


def _arguments(ask: _Ask) -> dict[str, Any]:
    return {"settings": ask.settings, "choice": ask.choice, "asking": ask.asking, "state": ask.state}


# ----------------------------------------------------------------------------------------------------------- dry run


def _glance(ask: _Ask, as_json: bool) -> int:
    from mlflowkit import library
    from mlflowkit.report.wording import seconds

    with _told() as progress:
        found = library.glance(*ask.targets, **_arguments(ask), progress=progress)
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
    _table(lines)
    echo(f"{ask.settings.samples:,} requests of each, at {ask.settings.label}: about {seconds(total)}, and the loading")
    return 0


# ------------------------------------------------------------------------------------------------- what people read


def _print(result: Result) -> None:
    from mlflowkit.report.wording import micros, number

    value = result.to_json()
    for one in value["subjects"]:
        for words in one["notes"]:
            note(f"{one['name']}: {words}")
    quantile = value["quantile"]
    extra = [] if quantile in ("p50", "p95", "p99") else [quantile]
    lines: list[Sequence[str]] = [
        ("name", "runtime", "batch", "p50", "p95", "p99", *extra, f"{quantile} interval", "rows/s", "memory", "cold")
    ]
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
    if len(lines) > 1:
        _table(lines)
    for one in value["comparisons"]:
        echo(f"{one['verdict']}: {one['words']} (batch {one['batch']}, {one['confidence']:.1%} sure)")
    _print_rest(value)


def _print_rest(value: dict[str, Any]) -> None:
    """What was not run, and what must be known to believe the figures."""
    for row in value["candidates"]:
        if row["interval"] is None:
            where = f"{row['name']} on {row['runtime']}, batch {row['batch']}"
            again = f"; python {row['script']} does it again" if row["script"] else ""
            echo(f"not run: {where}: {row['status']}: {row['reason']}{again}")
        for words in row["notes"]:
            echo(f"note: {row['name']}, batch {row['batch']}: {words}")
    for words in value["notes"]:
        echo(f"note: {words}")


def _bytes(count: float | None) -> str:
    from mlflowkit.report.front_views import bytes_words

    return NONE if count is None else bytes_words(count)


def _table(lines: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their cells; the first two to the left, the rest to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        echo("  ".join(cells).rstrip())


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

    from mlflowkit.candidates import RuntimeName

    known = get_args(RuntimeName)
    if name in known:
        return name
    close = nearest(name, known)
    raise UsageError(
        f"no runtime {name!r}; there are {', '.join(known)}",
        hint=f"did you mean --runtime {close}?" if close else "--runtime ort-cpu",
    )


def _size(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if not name or not count.isdigit() or int(count) < 1:
        raise UsageError(f"--size {text!r} is not the length of an axis", hint="--size sequence=128")
    return name, int(count)


def _cores(text: str | None) -> tuple[int, ...] | None:
    if text is None or text == "none":
        return None if text is None else ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--pin {text!r} is no list of cores", hint="--pin 1, --pin 2,3 or --pin none") from error
