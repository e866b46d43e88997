"""What the tracker is told: finished runs, and the aliases that a rollout's end moves."""

from __future__ import annotations

import fcntl
import logging
from dataclasses import replace
from pathlib import Path

from mlflowkit.errors import MlkitError, WorldError
from mlflowkit.ports import Journal, ObjectStore, StatePorts, Tracker
from mlflowkit.service_state import version_history
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system.files import private_opener, replace_file
from mlflowkit.values import candidate_alias

PROBLEM = "logs/tracker.txt"
"""Why the last deferred recording failed, in a state folder."""

_log = logging.getLogger("mlflowkit.rollout")


def promote(storage: StatePorts, tracker: Tracker, name: str, identity: str) -> bool:
    """Point the ``champion`` alias of the recipe ``name`` at a deployed version. Idempotent.

    Returns whether the journal has that version. If the tracker fails, the next run updates it.
    """
    with storage.open_journal() as journal:
        champion = journal.alias(name, "champion")
        if champion is None or champion.identity != identity:
            champion = journal.alias(name, candidate_alias(identity))
            if champion is None:
                _log.warning("the journal has no version %s of %s: its champion stays", identity[:12], name)
                return False
            journal.put_alias(replace(champion, alias="champion", created=0.0))
        record = journal.run(champion.run)
        try:
            tracker.register(name, storage.objects.path(champion.digest) / "bundle", record, "champion")
        except MlkitError as error:
            _log.warning("the tracker did not record %s as champion of %s: %s", identity[:12], name, error.message)
            journal.mark_tracked(champion.run, tracked=False)
    return True


def reject(tracker: Tracker, name: str, identity: str) -> None:
    """Take the ``challenger`` alias from a version that was rolled back or aborted; in the journal it stays the version
    that was blessed last. Idempotent; a tracker that fails is logged."""
    try:
        tracker.unalias(name, identity, "challenger")
    except MlkitError as error:
        _log.warning("the tracker keeps %s as challenger of %s: %s", identity[:12], name, error.message)


def is_rejected(state: Path, service: str, identity: str) -> bool:
    """Whether a service turned a version down, and has not forgotten it."""
    if not service:
        return False
    return identity in version_history.rejections(ServiceFiles(state / "services" / service))


def record_runs(journal: Journal, store: ObjectStore, tracker: Tracker) -> str:
    """Record the finished runs that the tracker lacks, oldest first. Returns what went wrong, or ""."""
    for record in journal.untracked():
        try:
            tracker.record(record)
            package = next((step.digest for step in record.steps if step.stage == "package" and step.digest), "")
            if package and record.blessed:
                champion = journal.alias(record.name, "champion")
                served = champion is not None and champion.identity == record.bundle
                service = str((record.recipe.get("serve") or {}).get("service") or "")
                if not served and is_rejected(journal.state, service, record.bundle):
                    reject(tracker, record.name, record.bundle)
                    journal.mark_tracked(record.run)
                    continue
                for alias in ("challenger", "champion") if served else ("challenger",):
                    tracker.register(record.name, store.path(package) / "bundle", record, alias)
        except WorldError as error:
            remedy = f" ({error.hint})" if error.hint else ""
            return f"the tracker did not record run {record.run}: {error.message}{remedy}"
        journal.mark_tracked(record.run)
    return ""


def record_deferred(state: Path, storage: StatePorts, tracker: Tracker) -> str:
    """`record_runs` in a process of its own: one at a time, with what went wrong kept for `deferred_problem`."""
    with open(state / "tracker.lock", "w", opener=private_opener) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with storage.open_journal() as journal:
            problem = record_runs(journal, storage.objects, tracker)
        path = state / PROBLEM
        if problem:
            _log.error("%s", problem)
            replace_file(path, problem.encode())
        else:
            path.unlink(missing_ok=True)
    return problem


def deferred_problem(state: Path) -> str:
    """Why the last deferred recording failed; "" if it did not."""
    try:
        return (state / PROBLEM).read_text(encoding="utf-8")
    except OSError:
        return ""
