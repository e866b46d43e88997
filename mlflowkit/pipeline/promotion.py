"""Moves the name ``champion`` when a rollout ends: in the journal, then in the tracker, which mirrors it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from mlflowkit.errors import MlkitError
from mlflowkit.pipeline.journal import Journal, candidate_alias
from mlflowkit.pipeline.store import Store
from mlflowkit.ports import Tracker

_log = logging.getLogger("mlflowkit.rollout")


def promote(state: Path, tracker: Tracker, name: str, identity: str) -> bool:
    """Point ``champion`` of the recipe ``name`` at a version that was deployed before; may be done again.

    Returns whether the journal knows that version. A tracker that cannot be told is told by the next run.
    """
    with Journal(state) as journal:
        champion = journal.alias(name, "champion")
        if champion is None or champion.identity != identity:
            champion = journal.alias(name, candidate_alias(identity))
            if champion is None:
                _log.warning("the journal knows no version %s of %s: its champion stays", identity[:12], name)
                return False
            journal.put_alias(replace(champion, alias="champion", created=0.0))
        record = journal.run(champion.run)
        try:
            tracker.register(name, Store(state).path(champion.digest) / "bundle", record, "champion")
        except MlkitError as error:
            _log.warning("the tracker was not told that %s is %s's champion: %s", identity[:12], name, error.message)
            journal.mark_tracked(champion.run, tracked=False)
    return True
