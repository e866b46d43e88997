"""Failpoints: places where a test can make a run crash, to show that the next run recovers.

``MLKIT_FAILPOINT=[enospc:|edquot:|raise:|segv:|hang:]NAME[@STAGE][:NTH]`` makes the process SIGKILL itself (or fail
with a full disk, an exceeded quota, a RuntimeError or a read of address 0, or block forever) the NTH time that it
reaches the point NAME in STAGE; in a trial, STAGE is the candidate's name. When the variable is unset, a point costs
one lookup in the environment.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
from collections.abc import Mapping

VARIABLE = "MLKIT_FAILPOINT"

TRANSITIONS: tuple[str, ...] = (
    "start-run", "take-lease", "begin-step", "publish", "finish-step", "release-lease", "set-lineage", "finish-run",
    "save-delivery",
)  # fmt: skip
"""Writes of a run to the journal; each has a point before it and one after its commit."""

POINTS: tuple[str, ...] = (
    *(f"{transition}.{side}" for transition in TRANSITIONS for side in ("before", "after")),
    *("stage.progress", "stage.returned", "store.synced", "store.renamed", "report.written", "receipt.written"),
)
"""All points of a run."""

ROLLOUT_POINTS = ("rollout.begun", "rollout.decided", "rollout.saved", "rollout.acting", "rollout.acted")
"""Points of a rollout controller: a request taken; before and after a state is written; before and after an action."""

RETRAIN_POINTS = (
    "retrain.deciding", "retrain.decided", "retrain.starting", "retrain.started", "retrain.claimed", "retrain.working",
    "retrain.worked", "retrain.ended",
)  # fmt: skip
"""Points of retraining: before and after an episode is written, before and after a process is started; in that process,
after its claim, before and after `mlkit run`, and after its result is written."""

MONITOR_POINTS = ("monitor.decided", "monitor.saved", "monitor.acted", "monitor.cleared")
"""Points of a monitor: before and after a window's state is written, after its notifications are queued, and after
that is written."""

EXPORT_POINTS = ("whylabs.opened", "whylabs.put")
"""Points of an upload to WhyLabs: its address is recorded; its profile is put, and not recorded as such."""

TRIAL_POINTS = ("trial.building", "trial.passing", "trial.loading", "trial.answering", "trial.measuring")
"""Points of a trial's process; the passes run in a fork of it."""

STATE_POINTS = (
    "journal.copied", "journal.migrating", "gc.decided", "gc.forgotten", "gc.renaming", "gc.renamed", "run.planned",
)  # fmt: skip
"""Points of a journal's migration (its copy is made; a version's step is done, not committed), of collecting garbage,
and of a run between its plan and its record."""

PANE_POINTS = (
    "ledger.created", "ledger.counted", "pane.counted", "pane.written", "pane.merging", "pane.merged", "pane.removed",
)  # fmt: skip
"""Points of a gateway's ledger (a file is made; rows are counted, their record is not queued), and of an observer's
panes: before and after one is written, before and after several are merged, and after each that was merged is removed.
"""

WRITE_BACK_POINTS = ("writeback.branched", "writeback.uploaded", "writeback.committed", "writeback.merged")
"""Points of a write-back: its branch is there; after each object; after the commit and the merge, none recorded."""

_PATTERN = re.compile(
    r"(?:(enospc|edquot|raise|segv|hang):)?([a-z-]+(?:\.[a-z]+)?)(?:@([a-z](?:[a-z0-9-]*[a-z0-9])?))?(?::(\d+))?"
)
_hits: dict[str, int] = {}


def hit(name: str, stage: str = "") -> None:
    """Pass the point ``name``; fails as ``MLKIT_FAILPOINT`` says.

    >>> hit("store.renamed", "train")
    """
    text = os.environ.get(VARIABLE)
    if text:
        _fail(text, name, stage)


def parse(text: str) -> Mapping[str, str]:
    """Parse the value of ``MLKIT_FAILPOINT``. Raises ValueError when there is no such point.

    >>> parse("enospc:store.synced@train:2")
    {'action': 'enospc', 'name': 'store.synced', 'stage': 'train', 'nth': '2'}
    """
    match = _PATTERN.fullmatch(text)
    points = (
        *POINTS, *ROLLOUT_POINTS, *RETRAIN_POINTS, *MONITOR_POINTS, *TRIAL_POINTS, *STATE_POINTS, *PANE_POINTS,
        *EXPORT_POINTS, *WRITE_BACK_POINTS,
    )  # fmt: skip
    if match is None or match[2] not in points:
        raise ValueError(f"{VARIABLE}={text}: no such failpoint; there are {', '.join(points)}")
    return {"action": match[1] or "kill", "name": match[2], "stage": match[3] or "", "nth": match[4] or "1"}


def _fail(text: str, name: str, stage: str) -> None:
    spec = parse(text)
    if spec["name"] != name or (spec["stage"] and spec["stage"] != stage):
        return
    _hits[text] = _hits.get(text, 0) + 1
    if _hits[text] != int(spec["nth"]):
        return
    match spec["action"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segv":
            ctypes.string_at(0)
        case "hang":
            signal.pause()
        case "raise":
            raise RuntimeError(f"failpoint {text}")
    code = errno.ENOSPC if spec["action"] == "enospc" else errno.EDQUOT
    raise OSError(code, os.strerror(code))
