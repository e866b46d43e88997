"""Which trials run under a process: of other children (a cluster, a tracking server) nothing is said."""

from __future__ import annotations

import contextlib

import psutil

from mlflowkit.adapters.trials.process import ENTRY


def running(parent: int | None = None) -> list[int]:
    """Process ids of trials that run somewhere under ``parent``, without one under this process."""
    found = []
    for one in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if ENTRY in one.cmdline():
                found.append(one.pid)
    return found
