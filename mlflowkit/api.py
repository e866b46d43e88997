"""The Python API behind ``import mlflowkit as mk`` and the command line: load, plan, run, benchmark.

>>> import mlflowkit as mk
>>> mk.load("recipes/digits.yaml", ["train.epochs=1"]).name
'digits'
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, overload

from mlflowkit.errors import DataError, MlkitError, UsageError
from mlflowkit.system.text import shell_word
from mlflowkit.values import Json, Step

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from mlflowkit.bench.result import BenchResult, BenchRow, BenchSettings
    from mlflowkit.bench.suite import BenchSuite
    from mlflowkit.bench.target import BenchEntry, TargetChoice
    from mlflowkit.bundle import Bundle
    from mlflowkit.monitoring.monitor_view import MonitorView
    from mlflowkit.pipeline.bench_targets import InputSpec
    from mlflowkit.pipeline.noop_cache import InputsSnapshot
    from mlflowkit.pipeline.plan import ChampionState
    from mlflowkit.ports import RunProgress
    from mlflowkit.recipe.schema import LoadedRecipe
    from mlflowkit.scoring.table_drift import DriftReport
    from mlflowkit.values import ServiceStatus


@dataclass(frozen=True)
class Recipe:
    """A composed, valid recipe; ``loaded.recipe`` is the pydantic model."""

    loaded: LoadedRecipe = field(repr=False)
    snapshot: InputsSnapshot = field(repr=False)

    @property
    def name(self) -> str:
        return self.loaded.recipe.name

    @property
    def path(self) -> Path:
        return self.loaded.path

    @property
    def values(self) -> Mapping[str, Json]:
        """The recipe as plain JSON, with defaults."""
        return self.loaded.composed

    def __repr__(self) -> str:
        return f"Recipe({self.name!r}, {str(self.path)!r})"

    def _repr_html_(self) -> str:
        from mlflowkit.pipeline.fingerprint import flatten

        rows = [(key, str(value)) for key, value in flatten(self.values).items() if value is not None]
        return f"<h4>{escape(self.name)}</h4>{_table(('key', 'value'), rows)}"


@dataclass(frozen=True)
class Plan(Sequence[Step]):
    """The ordered steps of a run, each with its action and reason."""

    name: str
    steps: tuple[Step, ...]

    @property
    def stale(self) -> tuple[str, ...]:
        """The stages that would run, also those that are reused if an input comes out as before (``conditional``)."""
        return tuple(step.stage for step in self.steps if step.action == "run")

    def __len__(self) -> int:
        return len(self.steps)

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Step, ...]: ...
    def __getitem__(self, index: int | slice) -> Step | tuple[Step, ...]:
        return self.steps[index]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def _repr_html_(self) -> str:
        rows = [(step.stage, step.action, step.reason, step.fingerprint[:12]) for step in self.steps]
        return f"<h4>plan of {escape(self.name)}</h4>{_table(('stage', 'action', 'reason', 'fingerprint'), rows)}"


@dataclass(frozen=True)
class Run:
    """A finished run. ``answer`` is what ``mlkit run --json`` prints.

    ``status`` is done, gate-failed or inconclusive; ``error`` is the error that the command line would exit with.
    """

    answer: Mapping[str, Json] = field(repr=False)
    error: MlkitError | None = field(default=None, repr=False)

    @property
    def run(self) -> str:
        return str(self.answer["run"])

    @property
    def status(self) -> str:
        return str(self.answer["status"])

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics of the evaluation on the test rows."""
        metrics: Mapping[str, float] = self.answer["metrics"]
        return metrics

    @property
    def verdicts(self) -> Sequence[Mapping[str, Json]]:
        verdicts: Sequence[Mapping[str, Json]] = self.answer["verdicts"]
        return verdicts

    @property
    def trained(self) -> bool:
        """Whether this run trained a model (False when it reused one)."""
        return any(step["stage"] == "train" and step["action"] == "run" for step in self.answer["steps"])

    @property
    def bundle(self) -> Path | None:
        return Path(self.answer["bundle"]) if self.answer["bundle"] else None

    @property
    def endpoint(self) -> str | None:
        """URL of the service."""
        return str(self.answer["endpoint"]) if self.answer["endpoint"] else None

    @property
    def report(self) -> Path | None:
        return Path(self.answer["report"]) if self.answer["report"] else None

    def raise_for_status(self) -> Run:
        """Raise GateFailedError, GateInconclusiveError or WorldError if the run ended in one; else return it."""
        if self.error is not None:
            raise self.error
        return self

    def __repr__(self) -> str:
        return f"Run({self.run!r}, {self.status!r})"

    def _repr_html_(self) -> str:
        keys = ("stage", "status", "action", "reason")
        steps = [(*(step[key] for key in keys), f"{step['seconds']:.1f} s") for step in self.answer["steps"]]
        gates = [(v["verdict"], v["gate"], v["message"]) for v in self.verdicts]
        metrics = [(name, "undefined" if value is None else f"{value:.5g}") for name, value in self.metrics.items()]
        paths = [(name, str(self.answer[name])) for name in ("bundle", "endpoint", "report") if self.answer[name]]
        return (
            f"<h4>{escape(str(self.answer['name']))}: run {escape(self.run)} {escape(self.status)}</h4>"
            + _table((*keys, "time"), steps)
            + (_table(("verdict", "gate", "message"), gates) if gates else "")
            + (_table(("metric", "value"), metrics) if metrics else "")
            + (_table(("where", ""), paths) if paths else "")
        )


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Compose and check a recipe. Raises RecipeError with all its faults."""
    from mlflowkit.pipeline.noop_cache import snapshot_inputs
    from mlflowkit.recipe.check import load as load_recipe

    snapshot = snapshot_inputs(_absolute(path))
    return Recipe(load_recipe(path if isinstance(path, str) else Path(path), tuple(overrides)), snapshot)


def plan(
    recipe: Recipe | str | os.PathLike[str],
    *,
    until: str | None = None,
    force: Sequence[str] = (),
    state: str | os.PathLike[str] | None = None,
) -> Plan:
    """Plan what `run` would do now, and why. Changes nothing."""
    from mlflowkit.pipeline.plan import plan_steps
    from mlflowkit.wiring import Wiring

    recipe = recipe if isinstance(recipe, Recipe) else load(recipe)
    folder = _state(state, recipe.path)
    steps = plan_steps(recipe.loaded, Wiring(folder), until=until, force=force, services=_services(folder))
    return Plan(recipe.name, steps)


def run(
    recipe: Recipe | str | os.PathLike[str],
    *,
    until: str | None = None,
    force: Sequence[str] = (),
    state: str | os.PathLike[str] | None = None,
    progress: RunProgress | None = None,
    champion: str | os.PathLike[str] | None = None,
    in_pipeline: bool = False,
    first_version: bool = False,
) -> Run:
    """Run the stale stages of a recipe and reuse the others.

    A blocking gate sets the run's status; `Run.raise_for_status` raises it. Raises a stage's MlkitError and
    InterruptedRunError.

    Args:
        champion: The folder of a blessed bundle that gates compare with; the recipe's own champion by default.
        in_pipeline: Whether CI judges: without a champion such a gate is INCONCLUSIVE, not PASSED; a limit in
            milliseconds is judged only where the gate names the machine's class.
        first_version: With ``in_pipeline``, that there is no champion yet and such a gate passes.
    """
    if champion is not None or in_pipeline:
        loaded = recipe if isinstance(recipe, Recipe) else load(recipe)
        folder = _state(state, loaded.path)
        return _execute(loaded, folder, until, force, progress, _champion(folder, champion, in_pipeline, first_version))
    if isinstance(recipe, Recipe):
        return _execute(recipe, _state(state, recipe.path), until, force, progress)
    folder = _state(state, _absolute(recipe))
    unchanged = None if force else nothing_to_do(recipe, (), folder, until)
    return unchanged or _execute(load(recipe), folder, until, force, progress)


def nothing_to_do(
    path: str | os.PathLike[str], overrides: Sequence[str], state: Path, until: str | None = None
) -> Run | None:
    """The finished run with the same inputs, if the no-op cache has it (no planning needed); else None."""
    from mlflowkit.pipeline.noop_cache import NoopKey, look_up

    summary = look_up(NoopKey(_absolute(path), tuple(overrides), until or "", state), _services(state))
    return None if summary is None else Run(summary)


def monitor(service: str, *, state: str | os.PathLike[str] = ".mlkit") -> MonitorView | None:
    """What is seen in the traffic of a service: state, columns, alerts, decisions; None where nothing was looked at.

    Raises ServiceError when the record is damaged.
    """
    from mlflowkit.monitoring.monitor_view import read_view
    from mlflowkit.service_state.records import ServiceFiles

    return read_view(ServiceFiles(_absolute(state) / "services" / service))


def benchmark(
    target: str | os.PathLike[str],
    *others: str | os.PathLike[str],
    settings: BenchSettings | None = None,
    choice: TargetChoice | None = None,
    asking: InputSpec | None = None,
    state: str | os.PathLike[str] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> BenchResult:
    """Measure the latency of bundles, ONNX files or recipes' graphs, interleaved in one session.

    The first target is the baseline of the comparison. ``settings`` sets how to measure, ``choice`` selects candidates
    and runtimes, ``asking`` describes the requests. Raises UsageError for a target that cannot be measured; a
    candidate that fails or is unavailable on this machine is a row of the result.
    """
    from mlflowkit.bench.result import BenchSettings

    with _bench_suite((target, *others), choice, asking, state, progress) as (suite, candidates):
        return suite.measure(candidates, settings or BenchSettings())


def estimate_benchmark(
    target: str | os.PathLike[str],
    *others: str | os.PathLike[str],
    settings: BenchSettings | None = None,
    choice: TargetChoice | None = None,
    asking: InputSpec | None = None,
    state: str | os.PathLike[str] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> list[tuple[BenchRow, float | None]]:
    """The rows that `benchmark` would measure, with the estimated seconds of each (None: it cannot be measured)."""
    from mlflowkit.bench.result import BenchSettings

    with _bench_suite((target, *others), choice, asking, state, progress) as (suite, candidates):
        return suite.estimate(candidates, settings or BenchSettings())


@contextmanager
def _bench_suite(
    targets: Sequence[str | os.PathLike[str]], choice: TargetChoice | None, asking: InputSpec | None,
    state: str | os.PathLike[str] | None, progress: Callable[[str, float], None] | None,
) -> Iterator[tuple[BenchSuite, tuple[BenchEntry, ...]]]:  # fmt: skip
    """A suite and its entries, in a temporary folder that is removed afterwards except for reproduction scripts.

    Built graphs are cached in the state folder (``state``, else the measured recipe's), if there is one.
    """
    from mlflowkit.bench.suite import BenchSuite
    from mlflowkit.bench.target import TargetChoice, entries
    from mlflowkit.pipeline.bench_targets import InputSpec, check_sizes, resolve_target
    from mlflowkit.wiring import Wiring

    chosen = Path(state).expanduser().resolve() if state else None
    resolved = [resolve_target(Path(target).expanduser(), Wiring, chosen, asking) for target in targets]
    check_sizes(resolved, asking or InputSpec())
    candidates = entries(resolved, choice or TargetChoice())
    work = Path(tempfile.mkdtemp(prefix="mlkit-bench-"))
    recipe = next((target.path for target in resolved if target.kind == "recipe"), None)
    wiring = Wiring(chosen or (_state(None, recipe) if recipe is not None else work / "state"))
    scripts = work / "scripts"
    try:
        yield BenchSuite(wiring.trials, wiring.engines, work, scripts, progress or (lambda *_: None)), candidates
    finally:
        for path in work.iterdir():
            if path != scripts:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not scripts.exists():
            work.rmdir()


def drift(
    first: str | os.PathLike[str] | pa.Table | pd.DataFrame | Bundle,
    second: str | os.PathLike[str] | pa.Table | pd.DataFrame,
    *,
    by: Sequence[str] = (),
    unit: str | None = None,
    margin: float = 0.1,
) -> DriftReport:
    """Compare two tables column by column, or a table with what a model was trained on.

    A table is the path of a file (CSV, Parquet, JSON), a pandas DataFrame or an Arrow table; a model is its `Bundle`.

    Args:
        by: Columns by whose values the tables are compared too.
        unit: A column whose values are independent, where rows are not: the rows of one value are one observation.
        margin: A distance that is no harm.

    Returns:
        Findings by column, each PASSED (surely within the margin), FAILED (surely beyond) or INCONCLUSIVE, with
        intervals that hold for all columns together at 95 %; and the columns that could not be compared.

    Raises:
        UsageError: A column or file that is not there, or a bundle without a reference.
        DataError: A table that cannot be read or has no rows.
    """
    from mlflowkit.bundle import Bundle
    from mlflowkit.judging.shift.sample_shift import SampleShift
    from mlflowkit.scoring import table_drift

    settings = SampleShift(margin=margin)
    if isinstance(first, Bundle):
        table = Path(second).expanduser() if isinstance(second, str | os.PathLike) else _read_table(second)
        return table_drift.compare_with_bundle(first, table, by=by, unit=unit, settings=settings)
    names = [str(table) if isinstance(table, str | os.PathLike) else "" for table in (first, second)]
    names = [name or f"the {place} table" for name, place in zip(names, ("first", "second"), strict=True)]
    tables = _read_table(first), _read_table(second)
    return table_drift.compare_two(*tables, (names[0], names[1]), by=by, unit=unit, settings=settings)


def _read_table(table: str | os.PathLike[str] | pa.Table | pd.DataFrame) -> pa.Table:
    """A table in one piece: a file by the rules of ``data.source``, or a table in memory."""
    import pyarrow as pa

    from mlflowkit.scoring.reading import format_of, open_rows
    from mlflowkit.stages.sources import CsvSource, ParquetSource
    from mlflowkit.wiring import Wiring

    if isinstance(table, pa.Table):
        return table
    if not isinstance(table, str | os.PathLike):
        try:
            return pa.Table.from_pandas(table, preserve_index=False)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise DataError(f"the table cannot be read: {error}", hint="give each column one type") from error
    path = Path(table).expanduser()
    kind = format_of(path)
    if not path.is_file():
        raise UsageError(f"there is no file {path}", hint=f"ls {shell_word(path.parent)}")
    if kind in ("json", "jsonl"):
        return pa.concat_tables(open_rows(path).batches, promote_options="permissive")
    separator = "\t" if ".tsv" in path.suffixes else ","
    file = str(path.resolve())
    source = ParquetSource(kind="parquet", path=file) if kind == "parquet" else None
    read = (source or CsvSource(kind="csv", path=file, separator=separator)).read(
        path.parent, Wiring(path.parent).tables
    )
    return read if isinstance(read, pa.Table) else pa.Table.from_pandas(read, preserve_index=False)


def _execute(
    recipe: Recipe,
    state: Path,
    until: str | None,
    force: Sequence[str],
    progress: RunProgress | None,
    champion: ChampionState | None = None,
) -> Run:
    from mlflowkit.pipeline.noop_cache import NoopKey, write
    from mlflowkit.pipeline.run import execute, raise_for
    from mlflowkit.pipeline.run_summary import summarize
    from mlflowkit.report.run.run_page import render
    from mlflowkit.wiring import Wiring

    progress = progress or (lambda event: None)
    record = execute(
        recipe.loaded, state, Wiring(state), progress, until=until, force=force, reporter=render, champion=champion
    )
    summary = summarize(record, state)
    try:
        raise_for(record, _options(recipe, state, until))
    except MlkitError as error:
        return Run(summary, error)
    if champion is not None:
        return Run(summary)  # the no-op cache knows the journal's champion only
    key = NoopKey(recipe.path, recipe.loaded.overrides, until or "", state)
    write(key, recipe.snapshot, recipe.loaded, summary)
    return Run(summary)


def _champion(
    state: Path, bundle: str | os.PathLike[str] | None, in_pipeline: bool, first_version: bool
) -> ChampionState:
    from mlflowkit.pipeline.plan import ChampionState
    from mlflowkit.pipeline.storage.bundle_import import import_bundle
    from mlflowkit.wiring import Wiring

    if bundle is None:
        return ChampionState(in_pipeline=in_pipeline, first_version=first_version)
    identity, digest = import_bundle(state, Wiring(state).objects, _absolute(bundle))
    return ChampionState(identity, digest, in_pipeline)


def _options(recipe: Recipe, state: Path, until: str | None) -> list[str]:
    """The options of `mlkit run` that a run was asked with, without those that are the default."""
    chosen = [] if state == recipe.path.parent / ".mlkit" else ["--state", str(state)]
    return [*chosen, *(["--until", until] if until else [])]


def _services(state: Path) -> Callable[[], Sequence[ServiceStatus]]:
    def query() -> Sequence[ServiceStatus]:
        from mlflowkit.wiring import Wiring

        return Wiring(state).platform.status()

    return query


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.realpath(Path(path).expanduser()))


def _state(state: str | os.PathLike[str] | None, recipe: Path) -> Path:
    chosen = state or os.environ.get("MLKIT_STATE")
    return Path(chosen).expanduser().resolve() if chosen else _absolute(recipe).parent / ".mlkit"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
