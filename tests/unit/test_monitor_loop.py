"""The monitor's loop over counts that are drawn: what it says, whom it tells, and what a fault does to it."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.errors import ServiceError
from mlflowkit.judging.shift.reference import EVIDENCE, Reference
from mlflowkit.monitoring import alert_commands, monitor_state
from mlflowkit.monitoring.monitor_loop import RetrainStep, retrain_hook
from mlflowkit.monitoring.monitor_settings import (
    Alerts,
    AlertWebhook,
    MonitorSection,
    MonitorSettings,
    RetrainSection,
    read_settings,
    write_settings,
)
from mlflowkit.monitoring.monitor_view import MonitorView, RetrainView
from mlflowkit.rollout.commands import read_reply
from mlflowkit.rollout.webhooks import WebhookSender
from mlflowkit.service_state.controller_lease import LeaseLostError, acquire
from tests.support.monitor_world import LENGTH, START, MonitorWorld, reference

HOOK = AlertWebhook(url="http://127.0.0.1:9/hook", secret_env="HOOK_KEY")
SECTION = MonitorSection(window="60s", grace="10s", alerts=Alerts(webhooks=[HOOK]))


@pytest.fixture
def world(tmp_path: Path) -> MonitorWorld:
    return MonitorWorld(tmp_path, SECTION)


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def test_learning_healthy_and_a_planted_shift_with_its_numbers(world: MonitorWorld) -> None:
    assert world.pass_windows(14) == ["LEARNING"] * 7 + ["HEALTHY"] * 7
    planted = world.now
    world.traffic.shifts = {"age": 0.25}
    words = world.pass_windows(6)
    assert words[-1] == "DRIFTING"
    assert words.index("DRIFTING") >= 2  # no single window decides
    view = world.view
    assert [(alert.column, alert.kind, alert.severity) for alert in view.alerts] == [("age", "drift", "critical")]
    assert planted <= view.alerts[0].since <= planted + 2 * LENGTH
    [age] = [column for column in view.columns if column.key == ("age", "distribution", "")]
    assert age.low is not None
    assert age.verdict == "FAILED"
    assert age.low > 0.1
    assert "age" in view.message
    assert "alert raised for 1 receiver" in view.message
    assert [event["event"] for event in world.events] == ["alert.firing"]
    assert str(world.events[0]["text"]).startswith("[CRITICAL] loans: age")
    assert finite(view.to_json())
    world.traffic.shifts = {}
    assert world.pass_windows(12)[-1] == "HEALTHY"
    assert [event["event"] for event in world.events] == ["alert.firing", "alert.resolved"]
    sentences = [decision.text for decision in world.view.decisions]
    assert [text.partition(":")[0] for text in sentences if text.isupper() or text.split(":")[0].isupper()][:2] == [
        "LEARNING", "HEALTHY",
    ]  # fmt: skip


def test_a_monitor_that_is_restarted_after_each_window_says_the_same(tmp_path: Path) -> None:
    runs = []
    for name, restarts in (("whole", False), ("restarted", True)):
        world = MonitorWorld(tmp_path / name, SECTION)
        words = []
        for number in range(24):
            world.traffic.shifts = {"pay": 0.3} if number >= 14 else {}
            world.pass_window()
            words.append(world.view.state)
            if restarts:
                world.restarted()
        view = replace(world.view, updated=0.0)
        runs.append((words, view.windows, [(item.key, item.evidence) for item in view.columns], len(world.events)))
    assert runs[0] == runs[1]
    assert runs[0][3] == 1


def test_rows_are_counted_once_and_lost_ones_are_told(world: MonitorWorld) -> None:
    world.pass_windows(3)
    world.panes.append(replace(world.traffic.window(world.now, version="v1"), answered=2100))
    world.pass_window(data=False)
    for _ in range(3):
        world.restarted().tick()
    view = world.view
    assert (view.rows_total, view.lost_total) == (8000, 100)
    assert [(window.rows, window.lost, window.answered) for window in view.windows][-1] == (2000, 100, 2100)


def test_traffic_that_stops_is_no_data_and_resolves_nothing(world: MonitorWorld) -> None:
    world.pass_windows(14)
    world.traffic.shifts = {"age": 0.3}
    world.pass_windows(6)
    words = world.pass_windows(14, data=False)
    assert words[-1] == "NO_DATA"
    assert [alert.kind for alert in world.view.alerts if alert.state == "firing"] == ["drift", "no_data"]
    assert "alert.resolved" not in [event["event"] for event in world.events]


def test_a_column_that_is_renamed_upstream_is_an_alert_within_two_windows(world: MonitorWorld) -> None:
    world.pass_windows(10)
    world.traffic.rows, world.traffic.refused = 0, {"missing column age": 300}
    words = world.pass_windows(2)
    assert words[-1] == "DRIFTING"
    assert "HEALTHY" not in words
    [alert] = [alert for alert in world.view.alerts if alert.kind == "schema"]
    assert (alert.column, alert.severity) == ("age", "critical")


def test_missing_values_inhibit_the_drift_of_their_column(world: MonitorWorld) -> None:
    world.pass_windows(14)
    world.traffic.missing, world.traffic.shifts = {"age": 0.4}, {"age": 0.3}
    world.pass_windows(8)
    alerts = {(alert.kind, alert.column): alert for alert in world.view.alerts}
    assert alerts["missing", "age"].inhibited_by == ""
    assert alerts["drift", "age"].inhibited_by == alerts["missing", "age"].id


def test_a_bundle_of_an_earlier_release_is_learning_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = MonitorWorld(tmp_path, SECTION, model_reference=Reference())
    assert set(world.pass_windows(9)) == {"LEARNING"}
    assert "no monitoring reference" in world.view.message
    (tmp_path / "objects" / "v1" / "bundle" / EVIDENCE).write_text("{")
    world.restarted()
    assert world.pass_windows(1) == ["LEARNING"]


def test_columns_that_only_one_side_has_are_named_and_the_others_judged(tmp_path: Path) -> None:
    world = MonitorWorld(tmp_path, SECTION)
    world.traffic.reference = Reference(
        {name: column for name, column in reference(("age", "extra")).columns.items() if name != "colour"}
    )
    words = world.pass_windows(10)
    assert words[-1] == "HEALTHY"
    messages = {column.column: column.message for column in world.view.columns}
    assert messages["extra"] == "extra has no reference: it is not judged"
    assert "was not counted" in messages["pay"]
    assert messages["age"].startswith("age: ")


def test_a_new_champion_begins_at_learning_and_the_former_one_goes_on_where_it_was(world: MonitorWorld) -> None:
    world.pass_windows(10)
    world.deploy("v2")
    assert world.pass_windows(3) == ["LEARNING"] * 3
    assert world.view.version == "v2"
    assert world.view.rows_total == 6000
    world.deploy("v1")
    world.restarted()
    words = world.pass_windows(2)
    assert world.view.version == "v1"
    assert "LEARNING" not in words
    assert world.view.rows_total == 10 * 2000 + 2 * 2000


def test_a_rollout_of_a_challenger_is_not_in_the_champions_windows(world: MonitorWorld) -> None:
    world.pass_windows(3)
    world.panes.append(world.traffic.window(world.now, version="v2"))
    world.pass_window()
    assert world.view.rows_total == 8000


def test_acknowledgements_come_as_records_and_are_answered(world: MonitorWorld) -> None:
    world.pass_windows(14)
    world.traffic.shifts = {"age": 0.3}
    world.pass_windows(6)
    alert = world.view.alerts[0]
    command = alert_commands.submit(world.files, "ack", alert.id, 3600.0)
    wrong = alert_commands.submit(world.files, "silence", "nothing", 3600.0)
    world.files.write_bytes("monitor/commands/damaged.json", b"{")
    world.loop.tick()
    reply = read_reply(world.files, command.id)
    refused = read_reply(world.files, wrong.id)
    assert reply is not None
    assert refused is not None
    assert (reply.ok, refused.ok) == (True, False)
    assert world.view.alerts[0].state == "acked"
    assert alert_commands.pending(world.files) == ()
    assert world.files.list("monitor/commands/*.json") == ()
    assert world.restarted() is world.loop
    world.loop.tick()
    assert world.view.alerts[0].state == "acked"  # durable


def test_a_shorter_window_begins_where_the_longer_one_ended(world: MonitorWorld) -> None:
    world.pass_windows(9)
    world.configure(MonitorSection(window="30s", grace="10s"))
    words = world.pass_windows(2)
    assert words == ["LEARNING", "LEARNING"]
    assert world.view.rows_total == 11 * 2000
    world.configure(MonitorSection(window="30s", grace="10s", margin=0.3))
    assert world.pass_windows(6)[-1] == "HEALTHY"  # a margin changes nothing that is learned


def test_a_service_without_settings_is_left_alone(world: MonitorWorld) -> None:
    world.pass_windows(2)
    before = world.view
    write_settings(world.files, None)
    world.pass_window()
    assert world.view == before


def test_damaged_state_begins_anew_and_says_so(world: MonitorWorld, caplog: pytest.LogCaptureFixture) -> None:
    world.pass_windows(8)
    for content in (b"{", b"[]", b'{"format": 99}', b'{"format": 1}'):
        world.files.write_bytes(f"{monitor_state.STATES}/v1.json", content)
        caplog.clear()
        world.restarted()
        assert world.pass_windows(1) == ["HEALTHY"]  # by the panes that are there
        assert world.view.rows_total == sum(pane.total.rows for pane in world.panes)
        assert "begins anew" in caplog.text


def test_a_fault_is_told_once_and_the_loop_goes_on(world: MonitorWorld, caplog: pytest.LogCaptureFixture) -> None:
    import threading

    world.pass_windows(2)
    lost = threading.Event()

    def broken(version: str, since: float, until: float) -> list[Any]:
        raise ServiceError("profiles cannot be read: No space left on device")

    world.loop.deps = replace(world.loop.deps, read=lambda files: broken)
    world.now += 5 * LENGTH
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            world.loop._tick_logged(lost)
    assert caplog.text.count("No space left") == 1
    assert "No space left" in world.view.fault
    assert not lost.is_set()
    world.restarted()
    assert world.view.state
    world.loop._tick_logged(lost)
    assert world.view.fault == ""


def test_a_monitor_that_lost_its_lease_writes_nothing(world: MonitorWorld) -> None:
    world.pass_windows(2)
    world.files.state.joinpath("controller.json").unlink()
    other = acquire(world.state)
    assert other is not None
    world.files.state.joinpath("controller.json").write_text(
        json.dumps({**json.loads(world.files.state.joinpath("controller.json").read_text()), "fence": 9})
    )
    before = world.view
    with pytest.raises(LeaseLostError):
        world.pass_window()
    assert world.view == before


def test_retraining_is_asked_with_the_counts_of_the_alarm_and_its_sentences_are_kept(tmp_path: Path) -> None:
    calls: list[tuple[MonitorView, Any]] = []

    def hook(view: MonitorView, live: Any) -> RetrainStep:
        calls.append((view, live))
        running = view.state in ("DRIFTING", "RETRAINING")
        sentences = ("a retraining begins",) if running and len(calls) == 20 else ()
        return RetrainStep(RetrainView("running" if running else "idle", "drift of age"), sentences)

    world = MonitorWorld(tmp_path, SECTION, RetrainSection())
    world.restarted(retrain=lambda files, settings, lease: hook)
    world.pass_windows(14)
    world.traffic.shifts = {"age": 0.3}
    world.pass_windows(8)
    assert world.view.state == "RETRAINING"
    assert world.view.retrain.reason == "drift of age"
    assert "a retraining begins" in [decision.text for decision in world.view.decisions]
    live = calls[-1][1]
    assert live.total.rows % 2000 == 0
    assert live.total.rows > 2000
    assert live.segments == {}


def test_a_person_is_asked_once_an_episode(tmp_path: Path) -> None:
    world = MonitorWorld(tmp_path, SECTION, RetrainSection())
    step = RetrainStep(RetrainView("asking", "failed twice", "episode-1"), (), "the run failed 2 times")
    world.restarted(retrain=lambda files, settings, lease: lambda view, live: step)
    world.pass_windows(4)
    world.restarted(retrain=lambda files, settings, lease: lambda view, live: step)
    world.pass_windows(4)
    assert [event["message"] for event in world.events] == [
        "a person has to look at retraining: the run failed 2 times"
    ]


def test_a_clock_that_is_set_back_is_told_and_nothing_is_counted_twice(world: MonitorWorld) -> None:
    world.pass_windows(8)
    rows = world.view.rows_total
    world.now -= 20 * LENGTH
    world.loop.tick()
    assert "the clock was set back" in world.view.fault
    assert world.view.rows_total == rows
    world.now = START + 8 * LENGTH
    world.pass_windows(1)
    assert world.view.rows_total == rows + 2000
    assert world.view.fault == ""


def test_a_hook_that_changed_is_not_sent_an_event_of_before(
    world: MonitorWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_KEY", "secret")
    world.pass_windows(14)
    world.traffic.shifts = {"age": 0.3}
    world.pass_windows(6)
    other = HOOK.model_copy(update={"url": "http://127.0.0.1:10/other"})
    world.configure(SECTION.model_copy(update={"alerts": Alerts(webhooks=[other])}))
    with WebhookSender(world.state, lambda: world.now) as sender:
        sender.deliver()
    [result] = world.files.read_json("webhooks.json")
    assert "other ones than when this event was queued" in result["error"]
    assert "secret" not in json.dumps(result)


def skew_notes(world: MonitorWorld) -> list[str]:
    return [line.text for line in world.view.decisions if "training rows" in line.text]


def test_skew_against_the_training_rows_is_noted_once_with_its_interval(world: MonitorWorld) -> None:
    world.traffic.shifts = {"age": 0.3}  # from the first window on: the live baseline has it, too
    assert world.pass_windows(10)[-1] == "HEALTHY"
    [text] = skew_notes(world)
    assert text.startswith("skew: live rows are shown to be beyond the margin from the training rows: age 0.")
    low, high = (float(part) for part in text.partition("(")[2].partition(")")[0].split(" to "))
    assert 0.1 < low < 0.3 < high


def test_few_rows_show_no_skew_however_far_their_own_distance_is(world: MonitorWorld) -> None:
    world.configure(SECTION.model_copy(update={"min_rows": 30}))
    world.traffic.rows = 40
    world.pass_windows(10)
    assert max(item.training or 0.0 for item in world.view.columns) > 0.1  # by chance: beyond the margin as it stands
    [text] = skew_notes(world)
    assert not text.startswith("skew")
    assert "undecided" in text


def test_a_copied_folder_retrains_nothing_and_says_why(world: MonitorWorld, tmp_path: Path) -> None:
    section = SECTION.model_copy(update={"min_rows": 30})
    write_settings(world.files, MonitorSettings(section, RetrainSection(), "/recipe.yaml", (), "loans"))
    settings = read_settings(world.files)
    assert settings is not None
    world.pass_window()
    for folder, foreign in ((settings.folder, False), ("/elsewhere/.mlkit:7", True), ("", True)):
        hook = retrain_hook(lambda name: "", world.files, replace(settings, folder=folder), world.lease)
        assert hook is not None
        view = hook(world.view, None).view
        assert ("was copied or moved here" in view.reason, view.state == "off") == (foreign, foreign)
