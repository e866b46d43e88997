"""Executes one step under a lease: fill a workspace, publish it to the store, record the result in the journal.

An interruption at any point leaves nothing that a later run could mistake for a result.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflowkit.errors import StoreError
from mlflowkit.pipeline import RUNS
from mlflowkit.pipeline.lineage.data_snapshot import fetcher
from mlflowkit.pipeline.lineage.model_reference import model_fetcher
from mlflowkit.pipeline.plan import ExecutionPlan, bundle_identity, deploy_problem, monitor_problem
from mlflowkit.pipeline.run_recorder import RunRecorder
from mlflowkit.pipeline.storage.step_lease import Heartbeat, LeaseWatcher, this_owner
from mlflowkit.pipeline.storage.store import storage_lock
from mlflowkit.ports import RunPorts, StageContext
from mlflowkit.recipe.schema import LoadedRecipe, stage_specs
from mlflowkit.system import failpoint
from mlflowkit.values import (
    STAGE_INPUTS,
    Alias,
    Event,
    HeldLease,
    Published,
    StageResult,
    Step,
    StepLease,
    StepResult,
    candidate_alias,
)

Stage = Callable[..., StageResult]

ACTIVITIES: Mapping[str, str] = {
    "data": "reading data", "validate": "checking data", "train": "training", "export": "exporting",
    "optimize": "measuring candidates", "evaluate": "evaluating", "package": "packaging", "deploy": "deploying",
}  # fmt: skip
POLL_SECONDS = 0.2

_active: set[tuple[str, int]] = set()
"""Leases (fingerprint, fence) that threads of this process hold now."""


@dataclass
class StepExecutor:
    """Executes the stale steps of a plan for one run."""

    loaded: LoadedRecipe
    state: Path
    plan: ExecutionPlan
    ports: RunPorts
    stages: Mapping[str, Stage]
    """Replacements of mlflowkit's own stages."""
    force: frozenset[str]
    recorder: RunRecorder

    def execute(self, step: Step) -> None:
        """Execute a step, or reuse its result when another run has published it meanwhile."""
        lease = self._take_lease(step)
        journal = self.recorder.journal
        _active.add((lease.fingerprint, lease.fence))
        try:
            with Heartbeat(lambda: journal.renew_lease(lease)):
                result = None if step.stage in self.force else self._concurrent_result(step)
                if result is not None:
                    self.recorder.reuse(step, result, f"made by run {result.run}")
                else:
                    self._run_stage(step, lease)
        except BaseException:
            _active.discard((lease.fingerprint, lease.fence))
            with contextlib.suppress(StoreError):  # keep the first error; the lease of a dead owner is free anyway
                journal.release_lease(lease, step.stage)
            raise
        _active.discard((lease.fingerprint, lease.fence))
        journal.release_lease(lease, step.stage)

    def _take_lease(self, step: Step) -> StepLease:
        """Wait for the step's lease: until its holder releases it or is dead."""
        owner, watcher = this_owner(), LeaseWatcher()
        abandoned: HeldLease | None = None
        waiting_for = ""
        while True:
            lease = self.recorder.journal.take_lease(
                step.fingerprint, owner, self.recorder.record.run, step.stage, over=abandoned
            )
            if isinstance(lease, StepLease):
                return lease
            leaked = lease.owner == owner and (step.fingerprint, lease.fence) not in _active
            abandoned = lease if leaked or watcher.is_dead(lease) else None
            if abandoned is None:
                if waiting_for != lease.run:
                    waiting_for = lease.run
                    message = f"waiting for run {lease.run}, which is {ACTIVITIES[lease.stage]}"
                    self.recorder.emit(step.stage, "progress", message)
                time.sleep(POLL_SECONDS)

    def _concurrent_result(self, step: Step) -> StepResult | None:
        """A valid result of this step from another run, or from before its inputs were made again unchanged."""
        recorder = self.recorder
        result = recorder.journal.result(step.fingerprint)
        if result is None or not recorder.store.intact(result.published):
            return None
        if dict(result.inputs) != recorder.input_digests(step.stage) or result.result.remeasure:
            return None
        return None if step.stage == "deploy" and self._deploy_problem() else result

    def _run_stage(self, step: Step, lease: StepLease) -> None:
        recorder, journal, store = self.recorder, self.recorder.journal, self.recorder.store
        run = recorder.record.run
        journal.begin_step(run, step.stage, step.fingerprint)
        recorder.emit(step.stage, "started", step.reason)
        started = time.perf_counter()
        out = store.workspace(step.fingerprint, lease.fence)
        try:
            spec = stage_specs(self.loaded.recipe)[step.stage]
            stage = self.stages.get(step.stage) or importlib.import_module(f"mlflowkit.stages.{step.stage}").run
            stage_result = stage(spec, self._context(step, out))
            failpoint.hit("stage.returned", step.stage)
            with storage_lock(self.state):  # until a row names the folder
                result = self._published(step, lease, store.publish(out, step.stage), stage_result, started)
        finally:
            with contextlib.suppress(StoreError):  # swept by the next run
                store.discard(out)
        store.discard_scratch(step.fingerprint)
        recorder.record_step(step, result, "run", step.reason, result.seconds)
        recorder.emit(step.stage, "done", seconds=result.seconds, metrics=stage_result.metrics)

    def _published(
        self, step: Step, lease: StepLease, published: Published, stage_result: StageResult, started: float
    ) -> StepResult:
        """Record the published result of a step in the journal."""
        recorder = self.recorder
        result = StepResult(
            step.fingerprint, step.stage, recorder.record.name, published, stage_result, step.ingredients,
            recorder.input_digests(step.stage), recorder.record.run, time.perf_counter() - started, time.time(),
        )  # fmt: skip
        recorder.journal.publish(result, lease, self._alias(result))
        return result

    def _context(self, step: Step, out: Path) -> StageContext:
        recorder, store = self.recorder, self.recorder.store
        record = recorder.record
        last = None if step.stage in self.force else recorder.journal.latest(record.name, step.stage)
        champion = self.plan.champion.digest
        return StageContext(
            inputs={name: store.verified(recorder.results[name].published) for name in STAGE_INPUTS[step.stage]},
            out=out,
            scratch=store.scratch(step.fingerprint),
            folder=self.loaded.folder,
            seed=self.loaded.recipe.seed,
            lineage=record.lineage,
            run=record.run,
            ports=self.ports,
            progress=self._stage_progress,
            champion=store.path(champion) / "bundle" if champion else None,
            champion_required=self.plan.champion.in_pipeline and not self.plan.champion.first_version,
            class_required=self.plan.champion.in_pipeline,
            previous=store.path(last.published.digest) if last and store.intact(last.published) else None,
            recipe=self.loaded.path,
            overrides=self.loaded.overrides,
            fetch=fetcher(self.loaded, self.state, self.plan.snapshot, self._stage_progress),
            failure=self.state / RUNS / record.run / step.stage,
            fetch_model=model_fetcher(self.loaded, self.ports, store.scratch(step.fingerprint)),
        )

    def _stage_progress(self, event: Event) -> None:
        failpoint.hit("stage.progress", event.stage)
        self.recorder.progress(event)

    def _alias(self, result: StepResult) -> Alias | None:
        """The alias for a result: challenger for a blessed bundle, champion for a deployed one.

        A version in rollout gets its own alias, which promotion turns into the champion's.
        """
        store = self.recorder.store
        if result.stage == "package":
            package, alias = result.published.digest, "challenger"
            if not (store.path(package) / "bundle" / "blessing.json").exists():
                return None
        elif result.stage == "deploy":
            package = self.recorder.results["package"].published.digest
            identity = bundle_identity(store.path(package))
            alias = candidate_alias(identity) if "rollout" in result.result.summary else "champion"
        else:
            return None
        return Alias(
            name=self.recorder.record.name,
            alias=alias,
            identity=bundle_identity(store.path(package)),
            digest=package,
            optimize=self.recorder.results["optimize"].fingerprint,
            judged_identity=self.plan.champion.identity,
            judged_digest=self.plan.champion.digest,
            run=self.recorder.record.run,
        )

    def _deploy_problem(self) -> str:
        serve = self.loaded.recipe.serve
        service = serve.service if serve is not None else ""
        identity = bundle_identity(self.recorder.folder("package"))
        journal, name = self.recorder.journal, self.recorder.record.name
        problem = deploy_problem(journal, self.ports.platform.status, name, service, identity)
        return problem or monitor_problem(journal.state, self.loaded)
