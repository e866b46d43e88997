"""A monitor is killed at each of its writes: no row is counted twice, nobody is told twice, and nothing is left out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.monitoring.monitor_settings import Alerts, AlertWebhook, MonitorSection
from mlflowkit.monitoring.monitor_view import read_view
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system.failpoint import MONITOR_POINTS, VARIABLE
from tests.support.monitor_world import MonitorWorld

ROOT = Path(__file__).parents[2]
SECTION = MonitorSection(window="60s", grace="10s", alerts=Alerts(webhooks=[AlertWebhook(url="http://127.0.0.1:9/x")]))
KILLS = [f"{point}:{number}" for point in MONITOR_POINTS[:2] for number in (1, 9, 18, 27)]
KILLS += [f"{point}:{number}" for point in MONITOR_POINTS[2:] for number in (1, 2)]


def prepared(folder: Path) -> Path:
    """A service with 30 windows of traffic: an episode that begins and ends."""
    world = MonitorWorld(folder, SECTION)
    for number in range(30):
        world.traffic.shifts = {"age": 0.3} if 12 <= number < 20 else {}
        world.pass_window(tick=False)
    (folder / "panes.json").write_text(json.dumps([pane.to_json() for pane in world.panes]))
    world.lease.release()
    return folder


def monitored(folder: Path, point: str = "") -> int:
    environment = {**os.environ, VARIABLE: point}
    command = [sys.executable, "-m", "tests.support.monitor_process", str(folder)]
    return subprocess.run(command, env=environment, cwd=ROOT, timeout=200).returncode


def outcome(folder: Path) -> dict[str, Any]:
    files = ServiceFiles(folder / "services" / "loans")
    view = read_view(files)
    assert view is not None
    bodies = [json.loads(files.read_json(entry.key)["body"]) for entry in files.list("webhooks/*.json")]
    return {
        "rows": view.rows_total,
        "windows": [(window.start, window.rows, window.state) for window in view.windows],
        "events": sorted((body["time"], body["event"], body["episode"]) for body in bodies),
        "decisions": [decision.text for decision in view.decisions],
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = prepared(tmp_path_factory.mktemp("whole"))
    assert monitored(folder) == 0
    result = outcome(folder)
    assert [event for _, event, _ in result["events"]] == ["alert.firing", "alert.resolved"]
    assert result["rows"] == 30 * 2000
    return result


@pytest.mark.parametrize("point", KILLS)
def test_a_monitor_that_is_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, point: str, whole: dict[str, Any]
) -> None:
    folder = prepared(tmp_path)
    assert monitored(folder, point) == -signal.SIGKILL
    assert monitored(folder) == 0
    assert outcome(folder) == whole


def test_a_monitor_that_is_killed_again_and_again_tells_each_thing_once(tmp_path: Path, whole: dict[str, Any]) -> None:
    folder = prepared(tmp_path)
    for number in (3, 2, 4, 5, 1, 6):
        monitored(folder, f"monitor.saved:{number}")
    assert monitored(folder) == 0
    result = outcome(folder)
    assert (result["rows"], len(result["events"])) == (whole["rows"], len(whole["events"]))


def test_a_full_disk_is_told_and_what_was_decided_is_done_later(tmp_path: Path, whole: dict[str, Any]) -> None:
    folder = prepared(tmp_path)
    assert monitored(folder, "enospc:monitor.decided:15") != 0
    assert monitored(folder) == 0
    result = outcome(folder)
    assert (result["rows"], result["events"]) == (whole["rows"], whole["events"])
