"""A monitor in a process of its own, to be killed: ``python -m tests.support.monitor_process STATE`` judges the windows
in STATE/panes.json up to the last, by a clock that runs through them, and ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mlflowkit.judging.shift.counts import WindowCounts
from mlflowkit.monitoring.monitor_loop import MonitorDeps, MonitorLoop
from mlflowkit.monitoring.monitor_settings import read_settings
from mlflowkit.service_state import controller_lease
from mlflowkit.service_state.records import ServiceFiles


def main(folder: str) -> None:
    state = Path(folder)
    panes = [WindowCounts.from_json(value) for value in json.loads((state / "panes.json").read_text())]
    files = ServiceFiles(state / "services" / "loans")
    settings = read_settings(files)
    assert settings is not None
    clock = [panes[0].start]

    def read(version: str, since: float, until: float) -> list[WindowCounts]:
        return [pane for pane in panes if pane.version == version and since <= pane.start < until]

    lease = controller_lease.acquire(state)
    assert lease is not None
    loop = MonitorLoop(files, lease, MonitorDeps(lambda files: read, clock=lambda: clock[0]))
    for pane in panes:
        clock[0] = pane.start + pane.seconds + settings.monitor.grace_seconds
        loop.tick()


if __name__ == "__main__":
    main(*sys.argv[1:])
