"""A monitor's view in, a retraining out: alarms, importance, live counts, and the word that the view shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.counts import ProfileCounts, WindowCounts
from mlflowkit.judging.shift.reference import EVIDENCE, ColumnReference, Reference
from mlflowkit.monitoring.monitor_settings import MonitorSection, MonitorSettings, PerformanceRollback, RetrainSection
from mlflowkit.monitoring.monitor_view import (
    AlertView,
    ColumnView,
    MonitorView,
    PerformanceView,
    WindowView,
)
from mlflowkit.monitoring.retrain import data_nearness, retrain_inputs
from mlflowkit.monitoring.retrain.data_nearness import ComparedColumn, compare_training_rows
from mlflowkit.monitoring.retrain.service_retrain import RetrainOutcome, ServiceRetrain
from mlflowkit.service_state.records import ServiceFiles, write_json
from mlflowkit.values import Outcome, Variant
from tests.support import retrain_drill as drill
from tests.support.waiting import wait_for

CHAMPION = Variant("champion", "v1", "digest-v1", "/bundles/1")
WINDOWS = (WindowView(0.0, 60.0, 900, 0, 900, "DRIFTING"),)
ALERT = AlertView("a1", "drift", "amount", "warning", 5.0, "firing", "amount 0.4 > 0.1")
COLUMN = ColumnView(
    "amount", "distribution", "", "FAILED", 0.4, 0.3, 0.5, 0.1, 1.2, 900, 450.0, importance=0.5, since=5.0
)
VIEW = MonitorView("fraud", "v1", "DRIFTING", 5.0, WINDOWS, (COLUMN,), alerts=(ALERT,))


def view(**changes: object) -> MonitorView:
    return replace(VIEW, **changes)  # type: ignore[arg-type]


def test_alerts_become_alarms_with_the_importance_of_their_columns() -> None:
    situation = retrain_inputs.situation_of(VIEW, CHAMPION)
    (alarm,) = situation.alarms
    assert (alarm.column, alarm.kind, alarm.since, alarm.importance) == ("amount", "distribution", 5.0, 0.5)
    assert situation.effects == {"amount": 2.0}
    assert situation.window == 0.0
    kinds = [replace(ALERT, kind=kind) for kind in ("predictions", "no_data", "blind", "profile_loss", "performance")]
    assert retrain_inputs.situation_of(view(alerts=tuple(kinds)), CHAMPION).alarms == ()
    over = view(alerts=(replace(ALERT, state="resolved"),))
    assert retrain_inputs.situation_of(over, CHAMPION).alarms == ()
    silenced = view(alerts=(replace(ALERT, state="silenced"),))
    assert len(retrain_inputs.situation_of(silenced, CHAMPION).alarms) == 1


def test_a_view_of_another_version_says_nothing() -> None:
    situation = retrain_inputs.situation_of(view(version="v0"), CHAMPION)
    assert (situation.window, situation.alarms) == (None, ())


def test_performance_keeps_the_beginning_of_its_alert() -> None:
    finding = PerformanceView("recall", "realised", 0.5, 0.4, 0.55, 0.6, "FAILED", message="0.5 < 0.6", start=50.0)
    alert = replace(ALERT, kind="performance", column="", since=20.0)
    situation = retrain_inputs.situation_of(view(alerts=(alert,), performance=(finding,)), CHAMPION)
    (performance,) = situation.performance
    assert performance.acts
    assert performance.since == 20.0
    estimate = replace(finding, kind="estimated", trust="BIASED")
    assert not retrain_inputs.situation_of(view(performance=(estimate,)), CHAMPION).performance[0].acts
    odd = replace(finding, verdict="?", trust="?")
    assert not retrain_inputs.situation_of(view(performance=(odd,)), CHAMPION).performance[0].acts


@pytest.mark.parametrize(
    ("states", "alerts", "healthy"),
    [
        (("HEALTHY", "HEALTHY"), (), 2),
        (("DRIFTING", "HEALTHY"), (), 1),
        (("HEALTHY", "SUSPECT"), (), 0),
        (("HEALTHY", "HEALTHY"), (ALERT,), 0),
        ((), (), 0),
    ],
)
def test_healthy_windows_are_counted_from_the_newest(
    states: tuple[str, ...], alerts: tuple[AlertView, ...], healthy: int
) -> None:
    windows = tuple(replace(WINDOWS[0], start=60.0 * number, state=state) for number, state in enumerate(states))
    assert retrain_inputs.healthy_windows(view(windows=windows, alerts=alerts)) == healthy


# ------------------------------------------------------------------------------------------------------------ nearness

OLD, NEW, LIVE = (0, 800, 150, 50, 0, 0), (0, 100, 300, 600, 0, 0), (0, 100, 280, 620, 0, 0)


def compared(**changes: object) -> ComparedColumn:
    return replace(ComparedColumn(OLD, NEW, LIVE, True, 0.5), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("ordered", [True, False])
def test_new_rows_that_are_nearer_help(ordered: bool) -> None:
    nearness = compare_training_rows({"amount": compared(ordered=ordered)}, ["amount"])
    assert nearness.outcome is Outcome.PASSED
    assert "amount 0.7 -> 0.02 from live (nearer" in nearness.message


def test_the_same_rows_do_not_help_and_a_hint_is_given() -> None:
    nearness = compare_training_rows({"amount": compared(fresh=OLD)}, ["amount"], hint="amount x100?")
    assert nearness.outcome is not Outcome.PASSED
    assert nearness.message.endswith("upstream fault? amount x100?")
    farther = compare_training_rows({"amount": compared(champion=NEW, fresh=OLD)}, ["amount"])
    assert farther.outcome is Outcome.FAILED


def test_few_effective_rows_show_nothing() -> None:
    near = compared(champion=(0, 80, 15, 5, 0, 0), fresh=(0, 79, 15, 6, 0, 0))
    assert compare_training_rows({"amount": near}, ["amount"]).outcome is not Outcome.PASSED
    clustered = compared(rows_per_cluster=500.0)
    assert compare_training_rows({"amount": clustered}, ["amount"]).outcome is not Outcome.PASSED
    assert compare_training_rows({"amount": compared(live=(0,) * 6)}, ["amount"]).outcome is Outcome.INCONCLUSIVE


def test_another_column_must_not_move_away() -> None:
    broken = ComparedColumn(LIVE, (0, 0, 0, 0, 0, 1000), LIVE, True, 0.1)  # all missing
    nearness = compare_training_rows({"amount": compared(), "hour": broken}, ["amount"])
    assert nearness.outcome is Outcome.FAILED
    assert "farther from what is live: hour" in nearness.message
    assert compare_training_rows({"hour": broken}, []).outcome is Outcome.FAILED
    assert compare_training_rows({"amount": compared()}, []).outcome is Outcome.PASSED


def test_columns_weigh_by_importance() -> None:
    worse = ComparedColumn(LIVE, tuple(round(0.9 * a + 0.1 * b) for a, b in zip(LIVE, OLD, strict=True)), LIVE, True)
    both = {"amount": compared(importance=0.9), "hour": replace(worse, importance=0.1)}
    assert compare_training_rows(both, ["amount", "hour"], margin=0.5).outcome is Outcome.PASSED
    swapped = {"amount": compared(importance=0.01), "hour": replace(worse, importance=0.99)}
    assert compare_training_rows(swapped, ["amount", "hour"], margin=0.5).outcome is not Outcome.PASSED


@pytest.mark.parametrize("factor", [*data_nearness.FACTORS])
def test_each_confusion_of_units_is_asked_about(factor: float) -> None:
    trained = (3.0, 8.0, 21.0)
    larger = tuple(value * factor * 1.1 for value in trained)
    assert "x" in data_nearness.unit_hint("amount", trained, larger)
    assert data_nearness.unit_hint("amount", larger, trained).startswith("amount /")
    assert data_nearness.unit_hint("amount", trained, (0.0, 8.0, 21.0)) == ""


# --------------------------------------------------------------------------------------------------------- the service


class Bundle:
    """A service whose champion has a reference, and whose look counted the new rows that a test says."""

    def __init__(self, state: Path, section: RetrainSection | None = None) -> None:
        self.files: ServiceFiles = drill.set_up(state)
        table = self.files.table()
        assert table is not None
        column = ColumnReference(Cells("number", edges=(0.0, 1.0, 2.0, 3.0)), OLD, importance=0.5)
        (Path(table.champion.bundle) / "evidence").mkdir()
        write_json(Path(table.champion.bundle) / EVIDENCE, Reference({"amount": column}).to_json())
        section = section or RetrainSection(cooldown="0s", helps=True)
        self.settings = MonitorSettings(
            MonitorSection(window="60s"), section, "/recipes/fraud.yaml", ("seed=1",), "fraud"
        )
        self.launcher = drill.ForkLauncher()
        self.restart()

    def restart(self) -> None:
        self.retrain = ServiceRetrain(self.files, self.settings, launcher=self.launcher)

    def close_window(self, start: float, counted: tuple[int, ...] = LIVE) -> RetrainOutcome:
        """Tick until nothing is under way."""
        windows = (replace(WINDOWS[0], start=start),)
        live = WindowCounts("v1", start, 60.0, ProfileCounts(900, 900, 900, {"amount": counted}), answered=900)
        outcomes: list[RetrainOutcome] = []

        def settled() -> bool:
            outcomes.append(self.retrain.tick(view(windows=windows), live))
            return outcomes[-1].view.state not in ("checking", "running")

        wait_for(settled, what="the end of a window's attempts")
        return outcomes[-1]


def test_an_alarm_leads_to_one_run_of_the_recipe(tmp_path: Path) -> None:
    """The look has no table to count in this drill, so the comparison is left to the tests of nearness."""
    world = Bundle(tmp_path, RetrainSection(cooldown="0s", helps=False))
    outcome = world.close_window(0.0)
    assert drill.trained(tmp_path)[0][2] == "v2"
    assert outcome.view.runs[0]["outcome"] == "promoted"
    world.restart()
    world.close_window(60.0)
    assert len(drill.trained(tmp_path)) == 1


def test_new_data_that_cannot_be_compared_are_not_trained_on(tmp_path: Path) -> None:
    world = Bundle(tmp_path)
    outcome = world.close_window(0.0)
    assert outcome.view.state == "wanted"
    assert "cannot be compared" in outcome.view.reason
    assert not drill.trained(tmp_path)


def test_without_a_section_nothing_is_retrained(tmp_path: Path) -> None:
    files = drill.set_up(tmp_path)
    settings = MonitorSettings(MonitorSection(window="60s"), None, "/recipes/fraud.yaml", (), "fraud")
    outcome = ServiceRetrain(files, settings).tick(VIEW)
    assert outcome.view.state == "off"
    assert outcome.view.budget_left is None


def test_a_probation_is_part_of_the_view(tmp_path: Path) -> None:
    files = drill.set_up(tmp_path)
    monitor = MonitorSection(window="60s", rollback=PerformanceRollback())
    settings = MonitorSettings(monitor, None, "", (), "fraud")
    assert ServiceRetrain(files, settings).tick(VIEW).view.state == "off"
