"""Scoring of files for `mlkit predict`: model, output, progress, and what was ignored."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit.cli.app import emit_json, note
from mlflowkit.errors import UsageError, closest_match
from mlflowkit.system.text import printable_line

if TYPE_CHECKING:
    import pyarrow as pa

    from mlflowkit.bundle import Bundle
    from mlflowkit.scoring.predictors import Predictor
    from mlflowkit.scoring.reading import RowFile
    from mlflowkit.scoring.score import ScoringSummary


ALIASES = ("champion", "challenger")


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """The options of `mlkit predict` that concern files."""

    file: Path | None
    rows: str | None
    out: Path | None
    keep: Sequence[str] | None
    prefix: str
    fill: bool
    separator: str | None
    json: bool


def resolve_bundle(state: Path, model: str) -> Bundle:
    """The bundle that ``--model`` names: its folder, or RECIPE, RECIPE@champion or RECIPE@challenger of a state folder.

    Raises UsageError for an unknown name, BundleError for a bundle that does not verify.
    """
    from mlflowkit.bundle import MANIFEST, open_bundle
    from mlflowkit.wiring import Wiring

    if (Path(model).expanduser() / MANIFEST).is_file() or (os.sep in model and Path(model).expanduser().is_dir()):
        return open_bundle(Path(model).expanduser())
    name, _, alias = model.partition("@")
    wiring = Wiring(state)
    with wiring.open_journal(create=False) as journal:
        versions = {kind: journal.alias(name, kind) for kind in ALIASES}
        names = sorted({run.name for run in journal.runs()})
    chosen = next((kind for kind in ((alias,) if alias else ALIASES) if versions.get(kind) is not None), None)
    record = None if chosen is None else versions[chosen]
    if record is None:
        raise _unknown_model(state, model, name, [kind for kind in ALIASES if versions[kind] is not None], names)
    if not alias and chosen != "champion":
        note(f"{name} has no champion yet: its {chosen}, the version that was blessed last, predicts")
    return open_bundle(wiring.objects.path(record.digest) / "bundle")


def _unknown_model(state: Path, model: str, name: str, aliases: Sequence[str], names: Sequence[str]) -> UsageError:
    if aliases:
        return UsageError(
            f"--model {model}: {name} has {' and '.join(aliases)} only", hint=f"--model {name}@{aliases[0]}"
        )
    if name in names:
        return UsageError(f"--model {model}: no version of {name} was blessed yet", hint="mlkit show last")
    close = closest_match(name, names) or next(iter(names), "")
    problem = f"--model {model}: neither the folder of a bundle nor a model of {state}"
    return UsageError(problem, hint=f"--model {close}" if close else "mlkit run RECIPE makes a bundle")


def score_with_bundle(state: Path, model: str, request: ScoringRequest) -> None:
    """Predict the rows of a file or of ``--rows`` with a bundle's graph in this process."""
    from mlflowkit.scoring.predictors import GraphPredictor
    from mlflowkit.serving.inference.variants import complete_categories
    from mlflowkit.wiring import Wiring

    bundle = resolve_bundle(state, model)
    if bundle.blessing is None:
        note(f"warning: bundle {bundle.manifest.version} is not blessed: its gates did not pass")
    predictor = GraphPredictor(bundle, Wiring(state).runtime)
    _score(predictor, complete_categories(bundle.path), request, {"bundle": str(bundle.path)})


def score_with_service(url: str, send: Callable[[str, str, Any], tuple[int, Any]], request: ScoringRequest) -> None:
    """Predict the rows of a file through a service."""
    from mlflowkit.scoring.predictors import ServicePredictor

    _score(ServicePredictor(url, send), None, request, {"endpoint": url})


def _score(
    predictor: Predictor,
    categories: Mapping[str, frozenset[str]] | None,
    request: ScoringRequest,
    source: dict[str, str],
) -> None:
    from mlflowkit.scoring.score import ScoringOptions, score

    file = _open(request)
    if request.out is not None and file.path.resolve() == request.out.resolve():
        raise UsageError("--out is the file that is read", hint=f"--out {request.out.stem}-scored{request.out.suffix}")
    options = ScoringOptions(
        keep=request.keep if request.out is not None else (),
        prefix=request.prefix,
        fill=request.fill,
        categories=categories,
    )
    with _sink(request) as sink, _progress(file) as progress:
        summary = score(file, predictor, sink, options, progress)
    _report(summary)
    value = {**source, "model_version": predictor.version, "rows": summary.rows, "undefined": summary.undefined}
    if request.out is not None:
        value |= {"out": str(request.out), "ignored": list(summary.ignored), "unseen": summary.unseen}
        value |= {"no_dates": dict(summary.no_dates)} if summary.no_dates else {}
        value |= {"shortened": dict(summary.shortened)} if summary.shortened else {}
        if not request.json:
            note(f"{summary.rows:,} rows scored by version {predictor.version}: {request.out}")
    if request.json:
        emit_json({**value, "predictions": sink.rows} if isinstance(sink, _Collected) else value)


def _open(request: ScoringRequest) -> RowFile:
    from mlflowkit.scoring.reading import open_rows, rows_of_json

    if request.rows is not None:
        return rows_of_json(Path("--rows"), request.rows)
    if request.file is None or str(request.file) == "-":
        raise UsageError("name the file of rows to score", hint="--file rows.parquet (or .csv, .jsonl, .json)")
    return open_rows(request.file, separator=request.separator)


class _Collected:
    """Keeps predictions, for ``--json``."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def write(self, table: pa.Table) -> None:
        self.rows += table.to_pylist()


class _Printed:
    """Prints a line for each row."""

    def write(self, table: pa.Table) -> None:
        for row in table.to_pylist():
            line = "  ".join(_format_cell(name, value) for name, value in row.items())
            sys.stdout.write(printable_line(line) + "\n")


def _format_cell(name: str, value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if name.endswith("prediction") else f"{name.rpartition('probability_')[2]} {text}"


def _sink(request: ScoringRequest) -> AbstractContextManager[Any]:
    if request.out is not None:
        from mlflowkit.scoring.writing import open_writer

        return open_writer(request.out)
    return nullcontext(_Collected() if request.json else _Printed())


@contextmanager
def _progress(file: RowFile) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, else a line every ten seconds."""
    if not sys.stderr.isatty():
        from mlflowkit.scoring.reading import BATCH_ROWS

        yield lambda rows: note(f"scored {rows:,} rows") if rows % (64 * BATCH_ROWS) < BATCH_ROWS <= rows else None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(f"scoring {file.path.name}", total=file.total)
        yield lambda rows: bars.update(task, completed=rows, description=f"scoring {file.path.name}: {rows:,} rows")


def _report(summary: ScoringSummary) -> None:
    """Report columns and rows that were ignored, filled, unseen or undefined, on stderr."""
    from mlflowkit.system.text import format_list

    if summary.ignored:
        note(f"ignored, because the model does not take them: {format_list(summary.ignored, 12)}")
    if summary.filled:
        note(f"warning: missing in all rows, because the file lacks them: {format_list(summary.filled, 12)}")
    for name, count in summary.unseen.items():
        note(f"warning: {name}: {count:,} rows ({count / summary.rows:.1%}) have a category that training never saw")
    for name, count in summary.no_dates.items():
        note(f"warning: {name}: {count:,} rows ({count / summary.rows:.1%}) are no dates, and count as missing")
    for name, count in summary.shortened.items():
        note(f"warning: {name}: {count:,} rows ({count / summary.rows:.1%}) are longer texts than the model reads")
    if summary.undefined:
        note(f"warning: {summary.undefined:,} rows have no finite prediction; it is null")
