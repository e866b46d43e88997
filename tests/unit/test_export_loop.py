"""The loop of exporters: a fault is told once, delays nobody else, and ends nothing."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

from mlflowkit.errors import ServiceError
from mlflowkit.monitoring.export.export_loop import ExportLoop
from mlflowkit.service_state.records import ServiceFiles
from tests.support.rollout_world import RolloutWorld
from tests.support.waiting import wait_for


class Recorder:
    """Counts its calls by service, and does what it is told first."""

    def __init__(self, name: str, act: Any = lambda service: None) -> None:
        self.name = name
        self.calls: Counter[str] = Counter()
        self._act = act

    def export(self, files: ServiceFiles, now: float) -> None:
        self.calls[files.service] += 1
        self._act(files.service)


def test_exporter_that_raises_is_told_once_and_delays_no_other(tmp_path: Path, caplog: Any) -> None:
    RolloutWorld(tmp_path, "one")
    RolloutWorld(tmp_path, "two")

    def refuse(service: str) -> None:
        if service == "one":
            raise ServiceError("nobody is there", hint="mlkit status")

    broken, bug, fine = Recorder("broken", refuse), Recorder("bug", lambda service: 1 / 0), Recorder("fine")
    with ExportLoop(tmp_path, [broken, bug, fine], poll_seconds=0.01):
        wait_for(lambda: broken.calls["one"] > 3 and broken.calls["two"] > 3 and bug.calls["two"] > 3)
        wait_for(lambda: fine.calls["one"] > 3)
    told = Counter(record.getMessage() for record in caplog.records)
    assert told == {
        "one: broken: nobody is there (mlkit status)": 1,
        "one: bug: ZeroDivisionError: division by zero": 1,
        "two: bug: ZeroDivisionError: division by zero": 1,
    }


def test_slow_exporter_delays_no_other(tmp_path: Path) -> None:
    RolloutWorld(tmp_path)
    release = threading.Event()
    slow, fine = Recorder("slow", lambda service: release.wait(30)), Recorder("fine")
    with ExportLoop(tmp_path, [slow, fine], poll_seconds=0.01):
        wait_for(lambda: slow.calls["lending"] == 1 and fine.calls["lending"] > 5)
        release.set()


def test_only_the_leader_sends(tmp_path: Path) -> None:
    RolloutWorld(tmp_path)
    leads = threading.Event()
    recorder = Recorder("fine")
    asked: list[bool] = []

    def is_leader() -> bool:
        asked.append(leads.is_set())
        return asked[-1]

    with ExportLoop(tmp_path, [recorder], leads=is_leader, poll_seconds=0.01):
        wait_for(lambda: len(asked) > 3)
        assert not recorder.calls
        leads.set()
        wait_for(lambda: recorder.calls["lending"])
