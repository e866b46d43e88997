"""Places where a run can be made to die, so that tests can show that the next run picks it up.

``MLKIT_FAILPOINT=[enospc:|edquot:|raise:|segv:|hang:]NAME[@STAGE][:NTH]`` makes the process SIGKILL itself (or fail
with a full disk, an exceeded quota, a RuntimeError or a read of address 0, or do nothing any longer) the NTH time that
it reaches the point NAME in STAGE; in a trial, STAGE is the candidate's name. Unset, a point costs one look at the
environment.
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
    "start-run",
    "take-lease",
    "begin-step",
    "publish",
    "finish-step",
    "release-lease",
    "set-lineage",
    "finish-run",
    "mark-tracked",
)
"""Every write of a run to the journal; each has a point before it and one after its commit."""

POINTS: tuple[str, ...] = (
    *(f"{transition}.{side}" for transition in TRANSITIONS for side in ("before", "after")),
    "stage.progress",
    "stage.returned",
    "store.synced",
    "store.renamed",
    "report.written",
    "receipt.written",
)
"""Every point of a run, for tests that try them all."""

ROLLOUT_POINTS: tuple[str, ...] = (
    "rollout.begun",
    "rollout.decided",
    "rollout.saved",
    "rollout.acting",
    "rollout.acted",
)
"""Points of a rollout controller: a request was taken; before and after a state is written; before and after an act."""

TRIAL_POINTS: tuple[str, ...] = (
    "trial.building",
    "trial.passing",
    "trial.loading",
    "trial.answering",
    "trial.measuring",
)
"""Points of a candidate's process; the passes run in a fork of it."""

_PATTERN = re.compile(
    r"(?:(enospc|edquot|raise|segv|hang):)?([a-z-]+(?:\.[a-z]+)?)(?:@([a-z](?:[a-z0-9-]*[a-z0-9])?))?(?::(\d+))?"
)
_seen: dict[str, int] = {}


def reach(name: str, stage: str = "") -> None:
    """Pass the point ``name``; does not return when ``MLKIT_FAILPOINT`` says so.

    >>> reach("store.renamed", "train")
    """
    text = os.environ.get(VARIABLE)
    if text:
        _act(text, name, stage)


def parse(text: str) -> Mapping[str, str]:
    """The parts of a failpoint's text; ValueError when there is no such point.

    >>> parse("enospc:store.synced@train:2")
    {'action': 'enospc', 'name': 'store.synced', 'stage': 'train', 'nth': '2'}
    """
    match = _PATTERN.fullmatch(text)
    known = (*POINTS, *ROLLOUT_POINTS, *TRIAL_POINTS)
    if match is None or match[2] not in known:
        raise ValueError(f"{VARIABLE}={text}: no such failpoint; there are {', '.join(known)}")
    return {"action": match[1] or "kill", "name": match[2], "stage": match[3] or "", "nth": match[4] or "1"}


def _act(text: str, name: str, stage: str) -> None:
    wanted = parse(text)
    if wanted["name"] != name or (wanted["stage"] and wanted["stage"] != stage):
        return
    _seen[text] = _seen.get(text, 0) + 1
    if _seen[text] != int(wanted["nth"]):
        return
    if wanted["action"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if wanted["action"] == "segv":
        ctypes.string_at(0)
    if wanted["action"] == "hang":
        signal.pause()
    if wanted["action"] == "raise":
        raise RuntimeError(f"failpoint {text}")
    code = errno.ENOSPC if wanted["action"] == "enospc" else errno.EDQUOT
    raise OSError(code, os.strerror(code))
