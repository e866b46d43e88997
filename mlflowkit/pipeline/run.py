"""Carry a plan out: each step once, whoever else runs, wherever a run was cut.

A step is done under a lease: fill a workspace, publish it to the store, enter the result in the journal. What is cut
in between leaves nothing that the next run could mistake for a result.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import secrets
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from mlflowkit.judging.gates import bars
from mlflowkit.pipeline.journal import Alias, Finish, Journal, Result, candidate_alias
from mlflowkit.pipeline.lineage import checkout
from mlflowkit.pipeline.plan import Plan, bundle_identity, deploy_problem, make
from mlflowkit.pipeline.step_lease import Heartbeat, Held, Lease, Watch, this_owner
from mlflowkit.pipeline.store import Store
from mlflowkit.ports import Ports, Progress, StageContext
from mlflowkit.recipe.schema import LoadedRecipe, stage_specs
from mlflowkit.system import failpoint
from mlflowkit.system.digests import digest_json
from mlflowkit.system.files import FULL, disk_error, replace_file
from mlflowkit.values import (
    STAGE_INPUTS,
    STAGES,
    Event,
    EventKind,
    Lineage,
    Outcome,
    RunRecord,
    RunStatus,
    StageResult,
    Step,
    StepRecord,
    Verdict,
)

Stage = Callable[..., StageResult]
Reporter = Callable[[RunRecord, Mapping[str, Path]], str]

DOING: Mapping[str, str] = {
    "data": "reading data",
    "validate": "checking data",
    "train": "training",
    "export": "exporting",
    "optimize": "measuring candidates",
    "evaluate": "evaluating",
    "package": "packaging",
    "deploy": "deploying",
}
POLL_SECONDS = 0.2

_active: set[tuple[str, int]] = set()
"""Leases (fingerprint, fence) that threads of this process hold now."""


def execute(
    loaded: LoadedRecipe,
    state: Path,
    ports: Ports,
    progress: Progress,
    *,
    until: str | None = None,
    force: Sequence[str] = (),
    stages: Mapping[str, Stage] | None = None,
    reporter: Reporter | None = None,
) -> RunRecord:
    """Run a recipe and return what the journal has of it; `raise_for` turns a gate's refusal into its error.

    When there is nothing to do, the record is that of the run which did it, its steps marked as reused. ``reporter``
    renders the report page from the record and the published folder of each stage. Raises InterruptedRunError on
    SIGINT and SIGTERM, and what a stage raises; either way finished steps are kept and the next run goes on there.
    """
    journal, store = Journal(state), Store(state)
    try:
        journal.sweep()
        store.sweep(journal.live, journal.finished)
        plan = make(loaded, journal, store, until=until, force=force, services=lambda: ports.platform.status())
        known = _known_run(loaded, journal, plan)
        if known is not None:
            return _tell_tracker_of_earlier(journal, store, ports, known)
        run = _Run(loaded, state, journal, store, ports, progress, plan, frozenset(force), stages or _Stages())
        return run.carry_out(reporter)
    finally:
        journal.close()


def raise_for(record: RunRecord) -> None:
    """Raise GateFailedError, GateInconclusiveError or WorldError when a run ended in one; else return."""
    if record.status in ("gate-failed", "inconclusive"):
        lines = [f"{verdict.outcome}: {verdict.gate}: {verdict.message}" for verdict in blocking(record)]
        hint = f"the report has the intervals: {record.report}" if record.report else "mlkit show last"
        kind = GateFailedError if record.status == "gate-failed" else GateInconclusiveError
        raise kind("not blessed: " + "; ".join(lines), hint=hint)
    if record.error:
        raise WorldError(record.error, hint="the results are safe; run the same command again to retry this")


def verdicts(record: RunRecord) -> tuple[Verdict, ...]:
    """What the gates said in a run."""
    return next((step.result.verdicts for step in record.steps if step.stage == "evaluate" and step.result), ())


def blocking(record: RunRecord) -> tuple[Verdict, ...]:
    """The verdicts that keep a run's bundle from being blessed."""
    return tuple(verdict for verdict in verdicts(record) if bars(verdict))


# ------------------------------------------------------------------------------------------------------ nothing to do


def _known_run(loaded: LoadedRecipe, journal: Journal, plan: Plan) -> RunRecord | None:
    """The finished run that already did all that this plan would do; None when there is something to do."""
    visited = _visited(plan)
    if any(step.action == "run" for step in visited):
        return None
    found = journal.finished_run(loaded.recipe.name, [step.fingerprint for step in visited])
    if found is None:
        return None
    reasons = {step.stage: step.reason for step in visited}
    steps = tuple(
        replace(step, action="reuse", reason=reasons[step.stage], seconds=0.0) if step.stage in reasons else step
        for step in found.steps
        if step.stage in {planned.stage for planned in plan.steps}
    )
    return replace(found, steps=steps)


def _visited(plan: Plan) -> tuple[Step, ...]:
    """The steps that a run would come to: none after gates that are known to block."""
    evaluated = plan.results.get("evaluate")
    if evaluated is None or not any(bars(verdict) for verdict in evaluated.result.verdicts):
        return plan.steps
    return tuple(step for step in plan.steps if STAGES.index(step.stage) <= STAGES.index("evaluate"))


def _tell_tracker_of_earlier(journal: Journal, store: Store, ports: Ports, record: RunRecord) -> RunRecord:
    return replace(record, error=_tell_tracker(journal, store, ports) or "")


# ---------------------------------------------------------------------------------------------------------- one run


@dataclass
class _Run:
    loaded: LoadedRecipe
    state: Path
    journal: Journal
    store: Store
    ports: Ports
    progress: Progress
    plan: Plan
    force: frozenset[str]
    stages: Mapping[str, Stage]
    results: dict[str, Result] = field(default_factory=dict)
    record: RunRecord = field(init=False)
    current: str = ""

    def __post_init__(self) -> None:
        self.record = self._new_record()

    def carry_out(self, reporter: Reporter | None) -> RunRecord:
        with _interruptible():
            try:
                self.journal.start_run(self.record, this_owner())
                self._announce()
                status = self._visit_all()
            except KeyboardInterrupt as error:
                self._fail("interrupted", "interrupted")
                raise InterruptedRunError(
                    f"interrupted while {DOING.get(self.current, 'starting')}; finished steps are kept",
                    hint="run the same command again to resume",
                ) from error
            except Exception as error:
                problem = self._translate(error)
                self._fail("failed", problem.message)
                if problem is error:
                    raise
                raise problem from error
            return self._finish(status, reporter)

    def _visit_all(self) -> RunStatus:
        for step in self.plan.steps:
            self.current = step.stage
            if step.action == "reuse":
                self._adopt(step, self.plan.results[step.stage], step.reason)
            else:
                self._work_under_lease(step)
            self._learn(step.stage)
            if step.stage == "evaluate":
                status = _judged(self.results["evaluate"].result.verdicts)
                if status != "done":
                    return status
        return "done"

    # ------------------------------------------------------------------------------------------------ one step

    def _work_under_lease(self, step: Step) -> None:
        lease = self._take_lease(step)
        _active.add((lease.fingerprint, lease.fence))
        try:
            with Heartbeat(lambda: self.journal.beat(lease)):
                ready = None if step.stage in self.force else self._made_meanwhile(step)
                if ready is not None:
                    self._adopt(step, ready, f"made by run {ready.run}")
                else:
                    self._work(step, lease)
        except BaseException:
            _active.discard((lease.fingerprint, lease.fence))
            with contextlib.suppress(StoreError):  # the first error is the one to tell; a lease nobody works on is free
                self.journal.release_lease(lease, step.stage)
            raise
        _active.discard((lease.fingerprint, lease.fence))
        self.journal.release_lease(lease, step.stage)

    def _take_lease(self, step: Step) -> Lease:
        owner, watch = this_owner(), Watch()
        over: Held | None = None
        told = ""
        while True:
            got = self.journal.take_lease(step.fingerprint, owner, self.record.run, step.stage, over=over)
            if isinstance(got, Lease):
                return got
            forgotten = got.owner == owner and (step.fingerprint, got.fence) not in _active
            over = got if forgotten or watch.dead(got) else None
            if over is None:
                if told != got.run:
                    told = got.run
                    self._tell(step.stage, "progress", f"waiting for run {got.run}, which is {DOING[got.stage]}")
                time.sleep(POLL_SECONDS)

    def _made_meanwhile(self, step: Step) -> Result | None:
        """The result of this step, when another run made it or its inputs came out as they were."""
        result = self.journal.result(step.fingerprint)
        if result is None or not self.store.intact(result.published) or dict(result.inputs) != self._inputs(step.stage):
            return None
        if step.stage == "deploy" and self._deploy_problem():
            return None
        return result

    def _work(self, step: Step, lease: Lease) -> None:
        self.journal.begin_step(self.record.run, step.stage)
        self._tell(step.stage, "started", step.reason)
        started = time.perf_counter()
        out = self.store.workspace(step.fingerprint, lease.fence)
        try:
            spec = stage_specs(self.loaded.recipe)[step.stage]
            outcome = self.stages[step.stage](spec, self._context(step, out))
            failpoint.reach("stage.returned", step.stage)
            published = self.store.publish(out, step.stage)
        finally:
            with contextlib.suppress(StoreError):  # swept by the next run
                self.store.discard(out)
        seconds = time.perf_counter() - started
        made = Result(
            step.fingerprint,
            step.stage,
            self.record.name,
            published,
            outcome,
            step.ingredients,
            self._inputs(step.stage),
            self.record.run,
            seconds,
            time.time(),
        )
        self.journal.publish(made, lease, self._alias(made))
        self.store.discard(self.store.scratches / step.fingerprint)
        self._enter(step, made, "run", step.reason, seconds)
        self._tell(step.stage, "done", seconds=seconds, metrics=outcome.metrics)

    def _adopt(self, step: Step, result: Result, reason: str) -> None:
        self._enter(step, result, "reuse", reason, 0.0)
        self._tell(step.stage, "reused", reason, metrics=result.result.metrics)

    def _enter(self, step: Step, result: Result, action: str, reason: str, seconds: float) -> None:
        self.results[step.stage] = result
        done = StepRecord(
            step.stage,
            "run" if action == "run" else "reuse",
            reason,
            step.fingerprint,
            "done",
            seconds,
            result.published.digest,
            result.result,
        )
        self.journal.finish_step(self.record.run, done)
        self._replace_step(done)

    def _context(self, step: Step, out: Path) -> StageContext:
        forced = step.stage in self.force
        last = None if forced else self.journal.latest(self.record.name, step.stage)
        judged = self.plan.champion.digest
        return StageContext(
            inputs={name: self._folder(name) for name in STAGE_INPUTS[step.stage]},
            out=out,
            scratch=self.store.scratch(step.fingerprint),
            folder=self.loaded.folder,
            seed=self.loaded.recipe.seed,
            lineage=self.record.lineage,
            run=self.record.run,
            ports=self.ports,
            progress=self._stage_progress,
            champion=self.store.path(judged) / "bundle" if judged else None,
            previous=self.store.path(last.published.digest) if last and self.store.intact(last.published) else None,
        )

    def _stage_progress(self, event: Event) -> None:
        failpoint.reach("stage.progress", event.stage)
        self.progress(event)

    # ------------------------------------------------------------------------------------- what a step teaches

    def _learn(self, stage: str) -> None:
        """Take up what a stage that is done says of the run as a whole."""
        if stage == "data":
            version = str(json.loads((self._folder("data") / "table.json").read_bytes())["data_version"])
            self.record = replace(self.record, lineage=replace(self.record.lineage, data_version=version))
            self.journal.set_lineage(self.record.run, self.record.lineage)
        elif stage == "package":
            folder = self._folder("package")
            blessed = (folder / "bundle" / "blessing.json").exists()
            self.record = replace(self.record, bundle=bundle_identity(folder), blessed=blessed)
        elif stage == "deploy":
            self.record = replace(self.record, endpoint=str(self.results["deploy"].result.summary["endpoint"]))

    def _alias(self, made: Result) -> Alias | None:
        """The alias that a result earns: a blessed bundle is the challenger, one that answers all the champion.

        One that is being rolled out has an alias of its own, which becomes the champion's at promotion.
        """
        if made.stage == "package":
            package, alias = made.published.digest, "challenger"
            if not (self.store.path(package) / "bundle" / "blessing.json").exists():
                return None
        elif made.stage == "deploy":
            package = self.results["package"].published.digest
            identity = bundle_identity(self.store.path(package))
            alias = candidate_alias(identity) if "rollout" in made.result.summary else "champion"
        else:
            return None
        return Alias(
            name=self.record.name,
            alias=alias,
            identity=bundle_identity(self.store.path(package)),
            digest=package,
            optimize=self._fingerprint("optimize"),
            judged_identity=self.plan.champion.identity,
            judged_digest=self.plan.champion.digest,
            run=self.record.run,
        )

    def _deploy_problem(self) -> str:
        serve = self.loaded.recipe.serve
        service = serve.service if serve is not None else ""
        identity = bundle_identity(self._folder("package"))
        return deploy_problem(self.journal, self.ports.platform.status, self.record.name, service, identity)

    # ------------------------------------------------------------------------------------------------ its ends

    def _finish(self, status: RunStatus, reporter: Reporter | None) -> RunRecord:
        self.record = replace(self.record, status=status, finished=time.time())
        problem = self._report(reporter) if reporter is not None else ""
        self.journal.finish_run(self.record.run, self._ending(status, problem, track=True))
        untold = _tell_tracker(self.journal, self.store, self.ports)
        self.record = replace(self.record, error="; ".join(filter(None, (problem, untold))))
        return self.record

    def _report(self, reporter: Reporter) -> str:
        """Write the report page; returns what went wrong, since a run whose results are safe is not lost for it."""
        path = self._run_folder() / "report.html"
        record = replace(self.record, report=str(path))
        try:
            page = reporter(record, {name: self._folder(name) for name in self.results})
            replace_file(path, page.encode())
        except Exception as error:  # noqa: BLE001 - told by raise_for, with its traceback kept
            return f"the report could not be written: {self._translate(error).message}"
        failpoint.reach("report.written")
        self.record = record
        return ""

    def _fail(self, status: RunStatus, message: str) -> None:
        """Enter how a run was cut; the state is already such that the next run goes on."""
        if self.current:
            self._tell(self.current, "failed", message)
        with contextlib.suppress(StoreError):  # a full disk: the next run sees that this process is gone
            for step in self.record.steps:
                if step.stage == self.current and step.status != "done":
                    cut = replace(step, status="interrupted" if status == "interrupted" else "failed", error=message)
                    self.journal.finish_step(self.record.run, cut)
            self.journal.finish_run(self.record.run, self._ending(status, message, track=False))

    def _ending(self, status: RunStatus, error: str, *, track: bool) -> Finish:
        record = self.record
        return Finish(status, record.bundle, record.blessed, record.endpoint, record.report, error, track)

    def _translate(self, error: Exception) -> MlkitError:
        """What an exception means to the person at the keyboard; a traceback that matters is kept in a file."""
        if isinstance(error, MlkitError):
            return error
        if isinstance(error, OSError) and error.errno in FULL:
            return disk_error(error, self.state)
        path = self._run_folder() / "error.txt"
        hint = f"the traceback is in {path}"
        try:
            replace_file(path, "".join(traceback.format_exception(error)).encode(errors="backslashreplace"))
        except StoreError as full:
            hint = full.message
        return EngineError(f"{self.current} raised {type(error).__name__}: {error}", hint=hint)

    # ------------------------------------------------------------------------------------------------ small things

    def _new_record(self) -> RunRecord:
        git = checkout(self.loaded.folder)
        if git.problem:
            self._tell("data", "progress", git.problem)
        lineage = Lineage(git.commit, git.dirty, "", digest_json(self.loaded.composed))
        steps = [StepRecord(s.stage, s.action, s.reason, s.fingerprint, "pending") for s in self.plan.steps]
        return RunRecord(
            run=new_id(),
            name=self.loaded.recipe.name,
            recipe_path=str(self.loaded.path),
            status="running",
            started=time.time(),
            finished=None,
            lineage=lineage,
            recipe=self.loaded.composed,
            overrides=self.loaded.overrides,
            steps=tuple(steps),
        )

    def _announce(self) -> None:
        doing = {step.stage for step in self.plan.steps if step.action == "run"}
        for step in self.plan.steps:
            self._tell(step.stage, "planned", f"{step.action}: {step.reason}")
        if "deploy" in doing:
            serve = self.loaded.recipe.serve
            self.ports.platform.prewarm(None if serve is None else serve.beside(self.loaded.folder))
        elif "train" in doing and self.loaded.recipe.train.workers > 0:
            self.ports.platform.prewarm()
        if doing:
            self.ports.tracker.prewarm()

    def _tell(
        self,
        stage: str,
        kind: EventKind,
        message: str = "",
        *,
        seconds: float = 0.0,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        self.progress(Event(stage, kind, message, seconds=seconds, metrics=metrics or {}))

    def _inputs(self, stage: str) -> dict[str, str]:
        return {name: self.results[name].published.digest for name in STAGE_INPUTS[stage]}

    def _folder(self, stage: str) -> Path:
        return self.store.path(self.results[stage].published.digest)

    def _fingerprint(self, stage: str) -> str:
        return next(step.fingerprint for step in self.plan.steps if step.stage == stage)

    def _run_folder(self) -> Path:
        return self.state / "runs" / self.record.run

    def _replace_step(self, done: StepRecord) -> None:
        steps = tuple(done if step.stage == done.stage else step for step in self.record.steps)
        self.record = replace(self.record, steps=steps)


class _Stages(Mapping[str, Stage]):
    """The stages of mlflowkit, each imported when it is run."""

    def __getitem__(self, stage: str) -> Stage:
        module = importlib.import_module(f"mlflowkit.stages.{stage}")
        run: Stage = module.run
        return run

    def __iter__(self) -> Iterator[str]:
        return iter(STAGES)

    def __len__(self) -> int:
        return len(STAGES)


def new_id() -> str:
    """An id that sorts by time and that a person can type the start of."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def _tell_tracker(journal: Journal, store: Store, ports: Ports) -> str:
    """Mirror every finished run that the tracker does not know yet; returns what went wrong, "" for nothing."""
    for record in journal.untracked():
        try:
            ports.tracker.record(record)
            package = next((step.digest for step in record.steps if step.stage == "package" and step.digest), "")
            if package and record.blessed:
                champion = journal.alias(record.name, "champion")
                served = champion is not None and champion.identity == record.bundle
                for alias in ("challenger", "champion") if served else ("challenger",):
                    ports.tracker.register(record.name, store.path(package) / "bundle", record, alias)
        except WorldError as error:
            remedy = f" ({error.hint})" if error.hint else ""
            return f"the tracker was not told of run {record.run}: {error.message}{remedy}"
        journal.mark_tracked(record.run)
    return ""


def _judged(found: Sequence[Verdict]) -> RunStatus:
    stopping = [verdict.outcome for verdict in found if bars(verdict)]
    if not stopping:
        return "done"
    return "inconclusive" if all(outcome == Outcome.INCONCLUSIVE for outcome in stopping) else "gate-failed"


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM interrupts like Ctrl-C. In another thread than the main one signals are the caller's business."""
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
