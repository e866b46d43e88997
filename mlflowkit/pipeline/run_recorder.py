"""The record of a run in progress, kept in the journal and reported as events."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mlflowkit.errors import StoreError
from mlflowkit.pipeline.outbox.delivery_schedule import owed_deliveries
from mlflowkit.pipeline.plan import bundle_identity
from mlflowkit.ports import Journal, ObjectStore, RunProgress
from mlflowkit.values import (
    STAGE_INPUTS,
    Event,
    EventKind,
    RunDelivery,
    RunEnd,
    RunRecord,
    RunStatus,
    Step,
    StepRecord,
    StepResult,
)


@dataclass
class RunRecorder:
    """The record and the step results of one run."""

    record: RunRecord
    journal: Journal
    store: ObjectStore
    progress: RunProgress
    results: dict[str, StepResult] = field(default_factory=dict)

    def emit(self, stage: str, kind: EventKind, message: str = "", **details: Any) -> None:
        """Report an event."""
        self.progress(Event(stage, kind, message, **details))

    def folder(self, stage: str) -> Path:
        """The published folder of a finished stage."""
        return self.store.path(self.results[stage].published.digest)

    def input_digests(self, stage: str) -> dict[str, str]:
        """Digests of the folders that a stage reads."""
        return {name: self.results[name].published.digest for name in STAGE_INPUTS[stage]}

    def record_step(
        self, step: Step, result: StepResult, action: Literal["run", "reuse"], reason: str, seconds: float
    ) -> None:
        """Record that a step is done, with its result."""
        self.results[step.stage] = result
        done = StepRecord(
            step.stage, action, reason, step.fingerprint, "done", seconds, result.published.digest, result.result
        )
        self.journal.finish_step(self.record.run, done)
        steps = tuple(done if record.stage == done.stage else record for record in self.record.steps)
        self.record = replace(self.record, steps=steps)

    def settle(self, step: Step) -> None:
        """Keep what was decided of a step after its inputs ran."""
        steps = tuple(
            replace(record, action=step.action, reason=step.reason, fingerprint=step.fingerprint)
            if record.stage == step.stage
            else record
            for record in self.record.steps
        )
        self.record = replace(self.record, steps=steps)

    def reuse(self, step: Step, result: StepResult, reason: str) -> None:
        """Record that a step's result is reused."""
        self.record_step(step, result, "reuse", reason, 0.0)
        self.emit(step.stage, "reused", reason, metrics=result.result.metrics)

    def update_record(self, stage: str) -> None:
        """Copy data version, bundle or endpoint from a finished stage to the run's record."""
        if stage == "data":
            version = str(json.loads((self.folder("data") / "table.json").read_bytes())["data_version"])
            self.record = replace(self.record, lineage=replace(self.record.lineage, data_version=version))
            self.journal.set_lineage(self.record.run, self.record.lineage)
        elif stage == "package":
            folder = self.folder("package")
            blessed = (folder / "bundle" / "blessing.json").exists()
            self.record = replace(self.record, bundle=bundle_identity(folder), blessed=blessed)
        elif stage == "deploy":
            self.record = replace(self.record, endpoint=str(self.results["deploy"].result.summary["endpoint"]))

    def fail(self, stage: str, status: Literal["failed", "interrupted"], message: str) -> None:
        """Record that the run stopped in ``stage`` ("" before the first). The next run can resume either way."""
        if stage:
            self.emit(stage, "failed", message)
        with contextlib.suppress(StoreError):  # a full disk: the next run detects that this process is dead
            for step in self.record.steps:
                if step.stage == stage and step.status != "done":
                    self.journal.finish_step(self.record.run, replace(step, status=status, error=message))
            end = self._final_state(status, message, owed_deliveries(self.record, ()))
            self.journal.finish_run(self.record.run, end)

    def finish(self, status: RunStatus, error: str, owed: tuple[RunDelivery, ...]) -> None:
        """Record the end of the run, and what it owes to other systems."""
        self.journal.finish_run(self.record.run, self._final_state(status, error, owed))

    def _final_state(self, status: RunStatus, error: str, owed: tuple[RunDelivery, ...]) -> RunEnd:
        record = self.record
        return RunEnd(status, record.bundle, record.blessed, record.endpoint, record.report, error, owed)
