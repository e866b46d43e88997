"""The tracker as a target of deliveries: finished runs, and the aliases of their versions."""

from __future__ import annotations

from dataclasses import dataclass

from mlflowkit.pipeline.promotion import is_rejected, reject
from mlflowkit.ports import FinishedRun, StatePorts, Tracker
from mlflowkit.values import TRACKING_TARGET, RunRecord


@dataclass(frozen=True)
class TrackerTarget:
    """Records runs, registers blessed bundles and points ``challenger`` and ``champion`` at them. Idempotent."""

    tracker: Tracker
    storage: StatePorts

    @property
    def name(self) -> str:
        return TRACKING_TARGET

    def key(self, run: RunRecord) -> str:
        return run.run

    def deliver(self, run: FinishedRun) -> str:
        record = run.record
        self.tracker.record(record)
        if not record.blessed or "package" not in run.folders:
            return ""
        with self.storage.open_journal() as journal:
            champion = journal.alias(record.name, "champion")
            state = journal.state
        served = champion is not None and champion.identity == record.bundle
        service = str((record.recipe.get("serve") or {}).get("service") or "")
        if not served and is_rejected(state, service, record.bundle):
            reject(self.tracker, record.name, record.bundle)
            return ""
        version = ""
        for alias in ("challenger", "champion") if served else ("challenger",):
            version = self.tracker.register(record.name, run.folders["package"] / "bundle", record, alias)
        return f"{record.name} version {version}"

    def defer(self) -> bool:
        return self.tracker.defer()

    def close(self) -> None:
        self.tracker.close()
