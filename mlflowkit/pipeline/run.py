"""Executes a plan: every step once, with concurrent runs and after interruptions too."""

from __future__ import annotations

import contextlib
import secrets
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from mlflowkit.errors import (
    EngineError,
    GateFailedError,
    GateInconclusiveError,
    InterruptedRunError,
    MlkitError,
    StoreError,
    WorldError,
)
from mlflowkit.judging.gates import is_blocking
from mlflowkit.pipeline import RUNS, client_changes
from mlflowkit.pipeline.gate_hints import gate_hint
from mlflowkit.pipeline.lineage.checkout import read_checkout
from mlflowkit.pipeline.lineage.uncommitted import run_inputs, uncommitted_inputs
from mlflowkit.pipeline.outbox.delivery_schedule import owed_deliveries
from mlflowkit.pipeline.outbox.run_deliveries import DeliveryRound, earlier_problems
from mlflowkit.pipeline.plan import ChampionState, ExecutionPlan, build_plan
from mlflowkit.pipeline.requirements import is_tracked, require_installed
from mlflowkit.pipeline.run_recorder import RunRecorder
from mlflowkit.pipeline.step_executor import ACTIVITIES, Stage, StepExecutor
from mlflowkit.pipeline.storage.permissions import close_state
from mlflowkit.pipeline.storage.step_lease import this_owner
from mlflowkit.pipeline.storage.store import storage_lock
from mlflowkit.ports import Journal, RunPorts, RunProgress, RunTarget
from mlflowkit.recipe.schema import LoadedRecipe
from mlflowkit.system import failpoint
from mlflowkit.system.digests import digest_json
from mlflowkit.system.files import FULL, disk_error, replace_file
from mlflowkit.system.text import limited, shell_word
from mlflowkit.values import STAGES, TRACKING_TARGET, Event, Lineage, Outcome, RunRecord, RunStatus, Step, StepRecord

Reporter = Callable[[RunRecord, Mapping[str, Path]], str]


def execute(
    loaded: LoadedRecipe,
    state: Path,
    ports: RunPorts,
    progress: RunProgress,
    *,
    until: str | None = None,
    force: Sequence[str] = (),
    stages: Mapping[str, Stage] | None = None,
    reporter: Reporter | None = None,
    champion: ChampionState | None = None,
) -> RunRecord:
    """Run a recipe and return its record; `raise_for` turns a blocking gate into an exception.

    When nothing is stale, the record is that of the earlier run with its steps marked as reused. ``reporter`` renders
    the report page from the record and the published folder of each stage. Gates compare with ``champion``, by default
    the recipe's own in the journal. Raises a stage's exception, and InterruptedRunError on SIGINT or SIGTERM; finished
    steps are kept and the next run resumes after them.
    Raises EngineError before any step when a library that a step needs is not installed.
    """
    if warning := close_state(state):
        progress(Event("state", "warning", warning))
    store = ports.objects
    with ports.open_journal() as journal, contextlib.ExitStack() as planning:
        targets = ports.run_targets(loaded.recipe, loaded.folder)  # what is wrong with one is known before it costs
        planning.enter_context(storage_lock(state))  # until the run's record protects what it reuses
        journal.sweep()
        store.sweep(journal.live_fingerprints, journal.finished_fingerprints)
        plan = build_plan(
            loaded,
            journal,
            store,
            until=until,
            force=force,
            services=lambda: ports.platform.status(),
            champion=champion,
        )
        earlier = _earlier_run(loaded, journal, plan)
        if earlier is not None:
            return _deliver_earlier(earlier, journal, ports, targets)
        require_installed(loaded.recipe, [step.stage for step in plan.steps if step.action == "run"])
        recorder = RunRecorder(_new_record(loaded, plan), journal, store, progress)
        executor = StepExecutor(loaded, state, plan, ports, stages or {}, frozenset(force), recorder)
        failpoint.hit("run.planned")
        return _RunSession(loaded, state, ports, targets, plan, recorder, executor, planning.close).run(reporter)


def raise_for(record: RunRecord, options: Sequence[str] = ()) -> None:
    """Raise GateFailedError, GateInconclusiveError or WorldError if the run ended that way.

    ``options`` are those of the command that made the run, for the commands of the hint.
    """
    if record.status in ("gate-failed", "inconclusive"):
        results = (step.result for step in record.steps if step.stage == "evaluate" and step.result)
        verdicts = [verdict for result in results for verdict in result.verdicts if is_blocking(verdict)]
        lines = [f"{verdict.outcome}: {verdict.gate}: {verdict.message}" for verdict in verdicts]
        hint = gate_hint(record, verdicts, options)
        hint = hint or (f"the report has the intervals: {record.report}" if record.report else "mlkit show last")
        kind = GateFailedError if record.status == "gate-failed" else GateInconclusiveError
        raise kind("not blessed: " + "; ".join(lines), hint=hint)
    if record.error:
        raise WorldError(record.error, hint="the results are safe; run the same command again to retry this")


def _earlier_run(loaded: LoadedRecipe, journal: Journal, plan: ExecutionPlan) -> RunRecord | None:
    """The finished run with all results of this plan, up to a gate known to block; None when a step has to run."""
    evaluated = plan.results.get("evaluate")
    gated = evaluated is not None and any(is_blocking(verdict) for verdict in evaluated.result.verdicts)
    reached = [step for step in plan.steps if not gated or STAGES.index(step.stage) <= STAGES.index("evaluate")]
    if any(step.action == "run" for step in reached):
        return None
    record = journal.finished_run(loaded.recipe.name, [step.fingerprint for step in reached])
    if record is None:
        return None
    reasons = {step.stage: step.reason for step in reached}
    planned = {step.stage for step in plan.steps}
    steps = tuple(
        replace(step, action="reuse", reason=reasons[step.stage], seconds=0.0) if step.stage in reasons else step
        for step in record.steps
        if step.stage in planned
    )
    return replace(record, steps=steps)


def _new_record(loaded: LoadedRecipe, plan: ExecutionPlan) -> RunRecord:
    id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    steps = [StepRecord(step.stage, step.action, step.reason, step.fingerprint, "pending") for step in plan.steps]
    lineage = Lineage("", False, "", digest_json(loaded.composed))
    if (data := plan.snapshot) is not None:
        lineage = replace(lineage, data_source=data.uri, data_commit=data.version)
    return RunRecord(
        run=id, name=loaded.recipe.name, recipe_path=str(loaded.path), status="running", started=time.time(),
        finished=None, lineage=lineage, recipe=loaded.composed, overrides=loaded.overrides, steps=tuple(steps),
    )  # fmt: skip


@dataclass
class _RunSession:
    """One run from start to end: visits the steps, then writes the report and updates the tracker."""

    loaded: LoadedRecipe
    state: Path
    ports: RunPorts
    targets: Sequence[RunTarget]
    """The systems to which the run is delivered."""
    plan: ExecutionPlan
    recorder: RunRecorder
    executor: StepExecutor
    recorded: Callable[[], None]
    """Called once the run is in the journal."""
    stage: str = ""
    """The stage in progress; "" before the first."""

    def run(self, reporter: Reporter | None) -> RunRecord:
        self._add_commit()
        with _sigterm_as_interrupt():
            try:
                self.recorder.journal.start_run(self.recorder.record, this_owner())
                self.recorded()
                self._announce()
                status = self._visit_steps()
            except KeyboardInterrupt as error:
                self.recorder.fail(self.stage, "interrupted", "interrupted")
                raise InterruptedRunError(
                    f"interrupted while {ACTIVITIES.get(self.stage, 'starting')}; finished steps are kept",
                    hint="run the same command again to resume",
                ) from error
            except Exception as error:
                problem = self._translate(error)
                self.recorder.fail(self.stage, "failed", problem.message)
                if self.stage:  # an interrupted run is delivered by the next one
                    with contextlib.suppress(MlkitError):  # of the same full disk: keep the first error
                        self._deliver()
                if problem is error:
                    raise
                raise problem from error
            return self._finish(status, reporter)

    def _add_commit(self) -> None:
        git = read_checkout(self.loaded.folder)
        if git.problem:
            self.recorder.emit("data", "warning", f"{git.problem}: no commit is recorded; {git.hint}")
        inputs = run_inputs(self.loaded, [step.ingredients for step in self.plan.steps])
        uncommitted = uncommitted_inputs(git, inputs)
        for kind, message in uncommitted.messages(git):
            self.recorder.emit("data", kind, message)
        record = self.recorder.record
        lineage = replace(
            record.lineage,
            git_commit=git.commit,
            git_tree=git.tree,
            git_dirty=bool(uncommitted.changes),
            git_changes=limited(uncommitted.changes),
        )
        self.recorder.record = replace(record, lineage=lineage)

    def _announce(self) -> None:
        """Report the plan and start in the background what its steps will need."""
        stale = {step.stage for step in self.plan.steps if step.action == "run"}
        for step in self.plan.steps:
            self.recorder.emit(
                step.stage, "planned", step.reason if step.conditional else f"{step.action}: {step.reason}"
            )
        if "deploy" in stale:
            serve = self.loaded.recipe.serve
            self.ports.platform.prewarm(None if serve is None else serve.beside(self.loaded.folder))
        if stale and is_tracked():
            if self._packages():
                self.ports.tracker.prewarm()
        elif stale:
            message = "not mirrored into MLflow, which is not installed: pip install 'mlflowkit[track]'"
            self.recorder.emit(self.plan.steps[0].stage, "progress", message)
        for problem in earlier_problems(self.recorder.journal) if stale else ():
            self.recorder.emit(self.plan.steps[0].stage, "warning", problem)

    def _visit_steps(self) -> RunStatus:
        for planned in self.plan.steps:
            self.stage = planned.stage
            step = self._settle(planned) if planned.awaits else planned
            if step.action == "run":
                self.executor.execute(step)
            elif not planned.awaits:
                self.recorder.reuse(step, self.plan.results[step.stage], step.reason)
            self.recorder.update_record(step.stage)
            if step.stage == "data" and self._deploys():
                client_changes.require_unbroken_clients(
                    self.loaded, self.recorder.results, self.recorder.store, lambda: self.ports.platform.status()
                )
            if step.stage == "evaluate":
                verdicts = self.recorder.results["evaluate"].result.verdicts
                outcomes = {verdict.outcome for verdict in verdicts if is_blocking(verdict)}
                if outcomes:
                    return "inconclusive" if outcomes == {Outcome.INCONCLUSIVE} else "gate-failed"
        return "done"

    def _settle(self, planned: Step) -> Step:
        """Decide a step by what its inputs published, now that they have; its result is reused if it has one."""
        recorder, planner = self.recorder, self.plan.planner
        ran = {step.stage for step in recorder.record.steps if (step.action, step.status) == ("run", "done")}
        with storage_lock(self.state):  # until the run's record protects what it reuses
            step = planner.settle(planned.stage, recorder.results, ran)
            recorder.settle(step)
            if step.action == "reuse":
                recorder.reuse(step, planner.results[step.stage], step.reason)
        return step

    def _packages(self) -> bool:
        """Whether the plan goes as far as a bundle. The tracker gets a shorter run with the next that does."""
        return any(step.stage == "package" for step in self.plan.steps)

    def _deploys(self) -> bool:
        """Whether the plan ends in a deployment that has yet to be made."""
        return any(step.stage == "deploy" and step.action == "run" for step in self.plan.steps)

    def _finish(self, status: RunStatus, reporter: Reporter | None) -> RunRecord:
        recorder = self.recorder
        recorder.record = replace(recorder.record, status=status, finished=time.time())
        report_problem = self._write_report(reporter) if reporter is not None else ""
        recorder.finish(status, report_problem, owed_deliveries(recorder.record, self.targets))
        problem = "; ".join(filter(None, (report_problem, self._deliver())))
        return replace(recorder.record, error=problem, deliveries=recorder.journal.run(recorder.record.run).deliveries)

    def _deliver(self) -> str:
        """Make the deliveries that are due. A run that goes as far as a bundle starts MLflow's process for them.

        Returns what went wrong, or "".
        """
        journal, with_tracker = self.recorder.journal, self._packages() and is_tracked()
        return DeliveryRound(
            self.ports,
            journal,
            self.targets,
            lambda name: with_tracker or name != TRACKING_TARGET,
            recipe=self.loaded.recipe.name,
        ).deliver()

    def _write_report(self, reporter: Reporter) -> str:
        """Write the report page. Returns what went wrong, or "": the results are safe without a report."""
        path = self._run_folder() / "report.html"
        record = replace(self.recorder.record, report=str(path))
        try:
            page = reporter(record, {name: self.recorder.folder(name) for name in self.recorder.results})
            replace_file(path, page.encode())
        except Exception as error:  # noqa: BLE001 - reported by raise_for, its traceback kept in a file
            return f"the report could not be written: {self._translate(error).message}"
        failpoint.hit("report.written")
        self.recorder.record = record
        return ""

    def _translate(self, error: Exception) -> MlkitError:
        """The MlkitError for an exception; an unexpected one has its traceback written to a file."""
        if isinstance(error, MlkitError):
            return error
        if isinstance(error, OSError) and error.errno in FULL:
            return disk_error(error, self.state)
        path = self._run_folder() / "error.txt"
        hint = f"cat {shell_word(path)} shows the traceback"
        try:
            replace_file(path, "".join(traceback.format_exception(error)).encode(errors="backslashreplace"))
        except StoreError as full:
            hint = full.message
        return EngineError(f"{self.stage} raised {type(error).__name__}: {error}", hint=hint)

    def _run_folder(self) -> Path:
        return self.state / RUNS / self.recorder.record.run


def _deliver_earlier(earlier: RunRecord, journal: Journal, ports: RunPorts, targets: Sequence[RunTarget]) -> RunRecord:
    """An earlier run with what its deliveries met now: also to targets that the recipe has named since."""
    known = {(item.target, item.key) for item in journal.deliveries()}
    owed = [item for item in owed_deliveries(earlier, targets) if (item.target, item.key) not in known]
    if owed:
        journal.owe(owed)
    tracked = is_tracked()  # without the library, the run said so when it began
    problem = DeliveryRound(
        ports, journal, targets, lambda name: tracked or name != TRACKING_TARGET, recipe=earlier.name
    ).deliver()
    return replace(earlier, error=problem, deliveries=journal.run(earlier.run).deliveries)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Make SIGTERM raise KeyboardInterrupt. Only in the main thread, where Python allows signal handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
