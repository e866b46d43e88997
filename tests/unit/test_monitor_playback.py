"""The monitor played over windows: simulated lives, recorded panes, and what the commands print of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlflowkit.cli import app as cli
from mlflowkit.errors import UsageError
from mlflowkit.judging.shift.counts import ProfileCounts, WindowCounts
from mlflowkit.judging.shift.reference import EVIDENCE
from mlflowkit.monitoring.monitor_settings import MonitorSection, RetrainSection
from mlflowkit.monitoring.playback import monitor_simulation, recorded_windows
from mlflowkit.monitoring.playback.monitor_playback import play_monitor
from mlflowkit.monitoring.playback.synthetic_windows import (
    SHIFTED,
    SyntheticVersion,
    synthetic_reference,
    synthetic_windows,
)
from mlflowkit.service_state.records import ServiceFiles, write_json
from mlflowkit.serving.observer.panes import Pane, PaneRange, write_pane
from mlflowkit.values import RoutingTable, Variant
from tests.support.chance import most

SECTION = MonitorSection(window="1h", baseline={"kind": "live", "windows": 7})
RETRAIN = RetrainSection()
TRAFFIC = SyntheticVersion(2000, 3600.0, columns=4, windows=20)
RECIPE = """
name: fraud
task: classification
data:
  source: {kind: csv, path: rows.csv}
  target: y
  split: {kind: random}
model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}
serve: {service: fraud, port: 0}
"""


def lives(name: str, runs: int, section: MonitorSection = SECTION) -> monitor_simulation.MonitorSummary:
    scenarios = dict(monitor_simulation.scenarios_of(section, TRAFFIC))
    traffic = scenarios[name]
    played = list(monitor_simulation.simulate_monitor(section, RETRAIN, traffic, runs, 1, lambda number: None))
    return monitor_simulation.summarise_monitor(name, traffic.distance, played)


@pytest.mark.simulation
def test_clean_lives_alarm_rarely_and_ask_for_nothing() -> None:
    summary = lives("clean", 20)
    assert summary.false_alarms <= most(20, 0.05)
    assert summary.asked == 0
    assert summary.delay is None


@pytest.mark.simulation
def test_a_lasting_shift_is_found_soon_with_its_exposure() -> None:
    summary = lives("shift of 0.3", 5)
    assert (summary.alarmed, summary.asked) == (5, 5)
    assert summary.delay is not None
    assert SECTION.sustained <= summary.delay <= 6
    assert summary.exposure == summary.delay * TRAFFIC.rows
    assert "found in 5 of 5" in summary.sentence


def test_distances_follow_the_margin() -> None:
    names = [name for name, _ in monitor_simulation.scenarios_of(replace_margin(0.2), TRAFFIC)]
    assert names == ["clean", "shift of 0.3", "shift of 0.4", "shift of 0.5"]


def replace_margin(margin: float) -> MonitorSection:
    return SECTION.model_copy(update={"margin": margin})


def test_a_replay_says_when_a_retraining_is_asked_for_and_why() -> None:
    traffic = replace(TRAFFIC, distance=0.4, onset=10, windows=18)
    windows = synthetic_windows(traffic, 3)
    champion = Variant("champion", "1", "d1", "")
    played = list(play_monitor("fraud", champion, SECTION, RETRAIN, synthetic_reference(4, 3), windows))
    assert not any(window.asks for window in played[:10])
    asking = [window for window in played if window.asks]
    assert asking
    assert asking[0].decision is not None
    assert SHIFTED in asking[0].decision.cause
    alarmed = next(window for window in played if window.new)
    assert alarmed.start <= asking[0].start
    assert played[-1].state == "DRIFTING"


class Recorded:
    """A service's folder with panes of one version, written as observers do."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "services" / "fraud"
        files = ServiceFiles(self.folder)
        bundle = state / "bundles" / "1"
        (bundle / "evidence").mkdir(parents=True)
        write_json(bundle / EVIDENCE, synthetic_reference(4, 3).to_json())
        files.write_table(RoutingTable("fraud", 1, (Variant("champion", "1", "d1", str(bundle)),)))
        traffic = replace(TRAFFIC, seconds=1800.0, rows=1000, distance=0.4, onset=20, windows=36)
        for number, window in enumerate(synthetic_windows(traffic, 3)):
            if number != 5:  # an hour of which half is absent
                pane = Pane("fraud", replace(window, answered=0), (PaneRange("r1", number, number),))
                write_pane(self.folder / "profiles" / "1", pane, durable=False)


def test_panes_become_the_windows_of_the_recipe(tmp_path: Path) -> None:
    files = ServiceFiles(Recorded(tmp_path).folder)
    (variant,) = recorded_windows.recorded_versions(files)
    windows = recorded_windows.recorded_windows(files, variant.version, SECTION)
    assert [window.seconds for window in windows] == [3600.0] * 18
    assert [window.total.rows for window in windows] == [2000, 2000, 1000, *[2000] * 15]
    with pytest.raises(UsageError, match="shorter than the counts"):
        recorded_windows.recorded_windows(files, "1", MonitorSection(window="60s"))
    assert recorded_windows.recorded_windows(files, "0", SECTION) == ()


def mlkit(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.csv").write_text("x,y\n1,0\n2,1\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    code, _, err = mlkit(capsys, "simulate", str(recipe), "--monitor")
    assert (code, "has no monitor" in err) == (2, True)
    recipe.write_text(RECIPE + "monitor: {window: 1h, baseline: {kind: live, windows: 7}}\nretrain: {}\n")
    folder = Recorded(tmp_path / ".mlkit").folder
    code, out, _ = mlkit(capsys, "replay", str(recipe), "--log", str(folder), "--monitor")
    assert code == 0
    assert "version 1: 18 windows" in out
    assert "asks for a retraining: drift of column 1 (50%)" in out
    code, out, _ = mlkit(capsys, "replay", str(recipe), "--log", str(folder), "--monitor", "--json")
    windows = json.loads(out)["monitor"]["versions"][0]["windows"]
    assert len(windows) == 18
    assert windows[-1]["asks"]
    arguments = ("--rollouts", "1", "--columns", "2", "--windows", "4", "--rate", "0.3", "--json")
    code, out, _ = mlkit(capsys, "simulate", str(recipe), "--monitor", *arguments)
    value = json.loads(out)
    assert code == 0
    assert next(scenario["name"] for scenario in value["scenarios"]) == "clean"
    assert value["traffic"]["rows"] == 1080


def test_an_empty_window_has_no_decision_of_its_own() -> None:
    empty = WindowCounts("1", 0.0, 3600.0, ProfileCounts())
    champion = Variant("champion", "1", "d1", "")
    (played,) = play_monitor("fraud", champion, SECTION, None, synthetic_reference(2), [empty])
    assert (played.rows, played.decision, played.asks) == (0, None, False)
