"""The aliases that a rollout's end moves, in the journal and in the tracker."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from mlflowkit.errors import MlkitError
from mlflowkit.ports import StatePorts, Tracker
from mlflowkit.service_state import version_history
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.values import TRACKING_TARGET, RunDelivery, candidate_alias

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
            journal.owe([RunDelivery(champion.run, TRACKING_TARGET, champion.run)], again=True)
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
