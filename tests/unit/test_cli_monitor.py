"""mlkit monitor: what it prints, by which code it ends, and how alerts are acknowledged."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

import mlflowkit
from mlflowkit.cli.app import main
from mlflowkit.monitoring.monitor_settings import write_settings
from tests.support.monitor_world import MonitorWorld, run_thread


@pytest.fixture
def world(tmp_path: Path) -> MonitorWorld:
    world = MonitorWorld(tmp_path)
    world.pass_windows(12)
    return refreshed(world)


def refreshed(world: MonitorWorld, **changes: Any) -> MonitorWorld:
    """The record as of now, as a monitor that is at work keeps it."""
    world.files.write_json("monitor/view.json", {**world.view.to_json(), "updated": time.time(), **changes})
    return world


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["monitor", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_a_healthy_service(world: MonitorWorld, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--state", world.state)
    assert code == 0
    assert out.startswith("loans  HEALTHY  version v1\n")
    assert "rows  24,000 in profiles and 0 lost" in out
    code, out, _ = run(capsys, "loans", "--json", "--state", world.state)
    document = json.loads(out)
    assert code == 0
    assert {
        "service",
        "version",
        "state",
        "windows",
        "since",
        "columns",
        "performance",
        "alerts",
        "retrain",
        "blind",
    } <= (document.keys())
    assert {"column", "verdict", "distance", "evidence", "n", "n_eff", "missing", "new", "importance"} <= (
        document["columns"][0].keys()
    )
    assert document["retrain"].keys() >= {"state", "reason", "budget_left"}


def test_the_code_of_each_word(world: MonitorWorld, capsys: pytest.CaptureFixture[str]) -> None:
    codes = {"HEALTHY": 0, "DRIFTING": 1, "RETRAINING": 1, "LEARNING": 4, "SUSPECT": 4, "NO_DATA": 4, "BLIND": 4}
    for word, expected in codes.items():
        refreshed(world, state=word)
        assert run(capsys, "--once", "--state", world.state)[0] == expected, word


def test_a_monitor_that_is_not_running_is_not_healthy(world: MonitorWorld, capsys: pytest.CaptureFixture[str]) -> None:
    refreshed(world, updated=time.time() - 1000)
    code, out, _ = run(capsys, "--state", world.state)
    assert code == 4
    assert "the controller is not running" in out


def test_explain_shows_a_column_window_by_window(world: MonitorWorld, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "explain", "loans", "age", "--state", world.state)
    assert code == 0
    assert out.count("(margin 0.1)") == 12
    assert "importance  50 %" in out
    code, _, err = run(capsys, "explain", "loans", "aeg", "--state", world.state)
    assert code == 2
    assert "mlkit monitor explain loans age" in err


def test_services_that_are_not_monitored(world: MonitorWorld, capsys: pytest.CaptureFixture[str]) -> None:
    write_settings(world.files, None)
    code, out, _ = run(capsys, "--state", world.state)
    assert (code, "is monitored; monitor:" in out) == (4, True)
    code, _, err = run(capsys, "loans", "--state", world.state)
    assert (code, "loans is not monitored" in err) == (2, True)
    assert mlflowkit.monitor("nothing", state=world.state) is None


def test_a_new_version_is_not_the_one_that_was_looked_at(
    world: MonitorWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.deploy("v2")
    code, out, _ = run(capsys, "--state", world.state)
    assert (code, "not looked at this version yet" in out) == (4, True)


def test_ack_is_carried_out_by_the_monitor(world: MonitorWorld, capsys: pytest.CaptureFixture[str]) -> None:
    world.traffic.shifts = {"age": 0.3}
    world.pass_windows(8)
    [alert] = [alert for alert in world.view.alerts if alert.column == "age" and alert.kind == "drift"]
    thread, ending = run_thread(world.loop)
    try:
        code, out, err = run(capsys, "ack", alert.id, "--for", "2d", "--json", "--state", world.state)
        assert code == 0, err
        assert json.loads(out)["message"].startswith("1 alert acknowledged: age, until ")
        code, _, err = run(capsys, "silence", "nothing", "--state", world.state)
        assert (code, "no alert 'nothing' is firing" in err) == (2, True)
    finally:
        ending.set()
        thread.join(30)
    assert world.view.alerts[0].state == "acked"
    code, _, err = run(capsys, "ack", alert.id, "--for", "2 days", "--state", world.state)
    assert (code, "--for 2d" in err) == (2, True)


def test_nobody_answers(
    world: MonitorWorld, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflowkit.cli.commands.monitor.REPLY_SECONDS", 0.1)
    code, _, err = run(capsys, "ack", "x", "--service", "loans", "--state", world.state)
    assert (code, "nothing was changed" in err) == (3, True)
    assert world.files.list("monitor/commands/*.json") == ()
