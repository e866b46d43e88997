"""The library: ``import mlflowkit as mk``, then ``mk.load``, ``mk.plan``, ``mk.run`` or ``mk.benchmark``.

The command line stands on it.

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

from mlflowkit.errors import MlkitError
from mlflowkit.values import Event, Json, Step

if TYPE_CHECKING:
    from mlflowkit.bench.result import Result, Row, Settings
    from mlflowkit.bench.suite import Bench
    from mlflowkit.bench.target import Choice, Entry
    from mlflowkit.pipeline.bench_targets import Asking
    from mlflowkit.pipeline.noop_cache import Beginning
    from mlflowkit.ports import Progress
    from mlflowkit.recipe.schema import LoadedRecipe
    from mlflowkit.values import RunRecord, ServiceStatus


@dataclass(frozen=True)
class Recipe:
    """A recipe that was composed and found without fault; ``loaded.recipe`` is the checked model."""

    loaded: LoadedRecipe = field(repr=False)
    beginning: Beginning = field(repr=False)

    @property
    def name(self) -> str:
        return self.loaded.recipe.name

    @property
    def path(self) -> Path:
        return self.loaded.path

    @property
    def values(self) -> Mapping[str, Json]:
        """The recipe whole, defaults filled in, as plain JSON."""
        return self.loaded.composed

    def __repr__(self) -> str:
        return f"Recipe({self.name!r}, {str(self.path)!r})"

    def _repr_html_(self) -> str:
        from mlflowkit.pipeline.fingerprint import flatten

        rows = [(key, str(value)) for key, value in flatten(self.values).items() if value is not None]
        return f"<h4>{escape(self.name)}</h4>{_table(('key', 'value'), rows)}"


@dataclass(frozen=True)
class Plan(Sequence[Step]):
    """What a run would do now: steps in order, each with its action and reason."""

    name: str
    steps: tuple[Step, ...]

    @property
    def stale(self) -> tuple[str, ...]:
        """The stages that a run would run."""
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
        found: Mapping[str, float] = self.answer["metrics"]
        return found

    @property
    def verdicts(self) -> Sequence[Mapping[str, Json]]:
        found: Sequence[Mapping[str, Json]] = self.answer["verdicts"]
        return found

    @property
    def trained(self) -> bool:
        """Whether this run fitted a model, rather than finding one that it could reuse."""
        return any(step["stage"] == "train" and step["action"] == "run" for step in self.answer["steps"])

    @property
    def bundle(self) -> Path | None:
        return Path(self.answer["bundle"]) if self.answer["bundle"] else None

    @property
    def endpoint(self) -> str | None:
        """Where the service answers."""
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
        found = [(name, "undefined" if value is None else f"{value:.5g}") for name, value in self.metrics.items()]
        places = [(name, str(self.answer[name])) for name in ("bundle", "endpoint", "report") if self.answer[name]]
        return (
            f"<h4>{escape(str(self.answer['name']))}: run {escape(self.run)} {escape(self.status)}</h4>"
            + _table((*keys, "time"), steps)
            + (_table(("verdict", "gate", "message"), gates) if gates else "")
            + (_table(("metric", "value"), found) if found else "")
            + (_table(("where", ""), places) if places else "")
        )


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Compose and check a recipe. Raises RecipeError with all its faults."""
    from mlflowkit.pipeline.noop_cache import begin
    from mlflowkit.recipe.check import load as load_recipe

    beginning = begin(_absolute(path))
    return Recipe(load_recipe(path if isinstance(path, str) else Path(path), tuple(overrides)), beginning)


def plan(
    recipe: Recipe | str | os.PathLike[str],
    *,
    until: str | None = None,
    force: Sequence[str] = (),
    state: str | os.PathLike[str] | None = None,
) -> Plan:
    """What `run` would do now, and why. Changes nothing."""
    from mlflowkit.pipeline.plan import make_plan

    found = recipe if isinstance(recipe, Recipe) else load(recipe)
    folder = _state(state, found.path)
    steps = make_plan(found.loaded, folder, until=until, force=force, services=_services(folder))
    return Plan(found.name, steps)


def run(
    recipe: Recipe | str | os.PathLike[str],
    *,
    until: str | None = None,
    force: Sequence[str] = (),
    state: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Run:
    """Run what is stale of a recipe and reuse the rest.

    A gate that blocks is the run's status, not an exception: `Run.raise_for_status` makes it one. Raises what a stage
    raises (a MlkitError) and InterruptedRunError.
    """
    if isinstance(recipe, Recipe):
        return _carry_out(recipe, _state(state, recipe.path), until, force, progress)
    folder = _state(state, _absolute(recipe))
    known = None if force else nothing_to_do(recipe, (), folder, until)
    return known or _carry_out(load(recipe), folder, until, force, progress)


def nothing_to_do(
    path: str | os.PathLike[str], overrides: Sequence[str], state: Path, until: str | None = None
) -> Run | None:
    """The run that already did what this one would, when that shows without planning; else None."""
    from mlflowkit.pipeline.noop_cache import Question, look_up

    question = Question(_absolute(path), tuple(overrides), until or "", state)
    answer = look_up(question, _services(state))
    return None if answer is None else Run(answer)


def benchmark(
    target: str | os.PathLike[str],
    *others: str | os.PathLike[str],
    settings: Settings | None = None,
    choice: Choice | None = None,
    asking: Asking | None = None,
    state: str | os.PathLike[str] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Result:
    """Measure the latency of bundles, ONNX files or recipes' graphs, all in one run and in turns.

    The first target is the standard that the others are compared with. ``settings`` says how to measure, ``choice``
    which candidates and runtimes, ``asking`` what requests are made of. Raises UsageError for what cannot be measured
    at all; what fails or lacks on this machine is a row of the result.
    """
    with _benching((target, *others), choice, asking, state, progress) as (ready, found):
        return ready.measure(found, settings or _settings())


def glance(
    target: str | os.PathLike[str],
    *others: str | os.PathLike[str],
    settings: Settings | None = None,
    choice: Choice | None = None,
    asking: Asking | None = None,
    state: str | os.PathLike[str] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> list[tuple[Row, float | None]]:
    """What `benchmark` would measure and the seconds that each would take (None: it cannot be measured)."""
    with _benching((target, *others), choice, asking, state, progress) as (ready, found):
        return ready.glance(found, settings or _settings())


# ------------------------------------------------------------------------------------------------------------- inside


@contextmanager
def _benching(
    targets: Sequence[str | os.PathLike[str]], choice: Choice | None, asking: Asking | None,
    state: str | os.PathLike[str] | None, progress: Callable[[str, float], None] | None,
) -> Iterator[tuple[Bench, tuple[Entry, ...]]]:  # fmt: skip
    """Everything that is needed to measure, in a folder that goes afterwards; what reproduces a failure stays.

    Graphs that are made are kept in the state folder: the one that is given, else that of the recipe that is measured;
    without either they go too.
    """
    from mlflowkit.bench.suite import Bench
    from mlflowkit.bench.target import Choice, entries
    from mlflowkit.pipeline.bench_targets import Asking, refuse_unknown_sizes, subject
    from mlflowkit.wiring import Wiring

    chosen = Path(state).expanduser().resolve() if state else None
    subjects = [subject(Path(target).expanduser(), chosen, asking) for target in targets]
    refuse_unknown_sizes(subjects, asking or Asking())
    found = entries(subjects, choice or Choice())
    work = Path(tempfile.mkdtemp(prefix="mlkit-bench-"))
    recipe = next((one.path for one in subjects if one.kind == "recipe"), None)
    kept = chosen or (_state(None, recipe) if recipe is not None else work / "state")
    wiring = Wiring(kept)
    scripts = work / "scripts"
    try:
        yield Bench(wiring.trials, wiring.engines, work, scripts, progress or _unseen), found
    finally:
        for path in work.iterdir():
            if path != scripts:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not scripts.exists():
            work.rmdir()


def _settings() -> Settings:
    from mlflowkit.bench.result import Settings

    return Settings()


def _unseen(words: str, done: float) -> None:
    """Show nothing."""


def _carry_out(recipe: Recipe, state: Path, until: str | None, force: Sequence[str], progress: Progress | None) -> Run:
    from mlflowkit.pipeline.noop_cache import Question, write
    from mlflowkit.pipeline.run import execute, raise_for
    from mlflowkit.pipeline.run_summary import answer
    from mlflowkit.wiring import Wiring

    record = execute(
        recipe.loaded, state, Wiring(state), progress or _silent, until=until, force=force, reporter=_render
    )
    told = answer(record, state)
    try:
        raise_for(record)
    except MlkitError as error:
        return Run(told, error)
    question = Question(recipe.path, recipe.loaded.overrides, until or "", state)
    write(question, recipe.beginning, recipe.loaded, told)
    return Run(told)


def _services(state: Path) -> Callable[[], Sequence[ServiceStatus]]:
    def ask() -> Sequence[ServiceStatus]:
        from mlflowkit.wiring import Wiring

        return Wiring(state).platform.status()

    return ask


def _render(record: RunRecord, folders: Mapping[str, Path]) -> str:
    from mlflowkit.report.run.run_page import render

    return render(record, folders)


def _silent(event: Event) -> None:
    """Show nothing."""


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.realpath(Path(path).expanduser()))


def _state(state: str | os.PathLike[str] | None, recipe: Path) -> Path:
    chosen = state or os.environ.get("MLKIT_STATE")
    return Path(chosen).expanduser().resolve() if chosen else _absolute(recipe).parent / ".mlkit"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
