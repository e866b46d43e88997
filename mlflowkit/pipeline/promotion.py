"""Moves the ``champion`` alias when a rollout ends: in the journal, then in the tracker."""

from __future__ import annotations

import logging
from dataclasses import replace

from mlflowkit.errors import MlkitError
from mlflowkit.ports import StatePorts, Tracker
from mlflowkit.values import candidate_alias

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
