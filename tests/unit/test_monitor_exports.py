"""mlkit monitor rules, dashboard and evidently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlflowkit.cli.app import main
from mlflowkit.monitoring.monitor_settings import MonitorSection, MonitorSettings, write_settings
from tests.support.rollout_world import RolloutWorld


def mlkit(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def monitored(state: Path, service: str, **section: Any) -> None:
    files = RolloutWorld(state, service).files
    write_settings(files, MonitorSettings(MonitorSection.model_validate(section)))


def test_rules_are_of_each_monitored_service_and_follow_its_recipe(tmp_path: Path, capsys: Any) -> None:
    monitored(tmp_path, "lending", window="1h", latency={"p99_ms": 20})
    monitored(tmp_path, "fraud", window="10s")
    RolloutWorld(tmp_path, "other")
    assert mlkit("monitor", "rules", "--state", tmp_path) == 0
    groups = yaml.safe_load(capsys.readouterr().out)["groups"]
    assert [group["name"] for group in groups] == ["mlkit-fraud", "mlkit-lending"]
    stale = [next(rule for rule in group["rules"] if rule["alert"] == "MlkitMonitorStale") for group in groups]
    assert [rule["for"] for rule in stale] == ["30s", "600s"]
    assert ['le="0.025"' in str(group) for group in groups] == [False, True]
    out, config = tmp_path / "rules.yml", tmp_path / "alertmanager.yml"
    webhook = "http://127.0.0.1:1/x"
    arguments = ("--out", out, "--alertmanager", config, "--webhook", webhook, "--state", tmp_path)
    assert mlkit("monitor", "rules", "fraud", *arguments) == 0
    assert [group["name"] for group in yaml.safe_load(out.read_text())["groups"]] == ["mlkit-fraud"]
    assert webhook in config.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rules", "other"), "service other in"),
        (("rules", "nobody"), "no service 'nobody'"),
        (("rules", "lending", "--alertmanager", "/tmp/x", "--webhook", "ftp://x"), "no URL of a webhook"),
        (("rules", "lending", "--out", "/proc/x/y"), "/proc"),
        (("evidently", "lending", "--since", "soon"), "--since"),
        (("evidently", "lending", "--out", "/nowhere/x.html"), "/nowhere is no folder"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, capsys: Any, arguments: tuple[str, ...], words: str) -> None:
    monitored(tmp_path, "lending")
    RolloutWorld(tmp_path, "other")
    assert mlkit("monitor", *arguments, "--state", tmp_path) == 2
    assert words in capsys.readouterr().err


def test_state_without_monitored_services_says_what_turns_it_on(tmp_path: Path, capsys: Any) -> None:
    RolloutWorld(tmp_path, "other")
    assert mlkit("monitor", "rules", "--state", tmp_path) == 2
    assert "section monitor turns it on" in capsys.readouterr().err


def test_dashboard_is_written(tmp_path: Path, capsys: Any) -> None:
    assert mlkit("monitor", "dashboard", "--out", tmp_path / "d.json") == 0
    assert json.loads((tmp_path / "d.json").read_text())["title"] == "mlflowkit monitoring"
    assert mlkit("monitor", "dashboard") == 0
    assert json.loads(capsys.readouterr().out)["uid"] == "mlflowkit-monitoring"


def test_report_of_a_service_without_rows_is_refused(tmp_path: Path, capsys: Any) -> None:
    monitored(tmp_path, "lending")
    assert mlkit("monitor", "evidently", "lending", "--out", tmp_path / "x.html", "--state", tmp_path, "--json") == 3
    assert "no rows before" in json.loads(capsys.readouterr().out)["error"]["message"]
