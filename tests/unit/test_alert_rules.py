"""The alerting rules pass `promtool`, and each fires when it should, not when it should not, and over silence."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlflowkit.monitoring.export.alert_rules import RuleTarget, alertmanager_config, rule_groups

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")
TARGET = RuleTarget("lending", window_seconds=60.0, p99_ms=20.0, error_rate=0.01)
S = 'service="lending",version="v1"'
HEALTHY = {f'mlkit_monitor_state{{{S},state="HEALTHY"}}': "1"}
EVIDENCE = f'mlkit_drift_evidence{{{S},column="age",kind="%s",segment=""}}'
REQUESTS = 'mlkit_requests_total{service="lending",replica="r",door="infer",code="%s"}'
BUCKET = 'mlkit_request_seconds_bucket{service="lending",replica="r",door="infer",le="0.025"}'
COUNT = 'mlkit_request_seconds_count{service="lending",replica="r",door="infer"}'
PHASE = 'mlkit_rollout_phase{service="lending",strategy="canary",phase="running"}'
LABELLED = 'mlkit_labelled_share{service="lending",age="mature"}'
ROWS = 'mlkit_window_%s_rows{service="lending"}'
AGE = 'mlkit_window_age_seconds{service="lending"}'


LONG = 7 * 60
"""Minutes of a phase that is longer than any rule waits."""


@dataclass(frozen=True)
class Case:
    """Samples a minute of a state in which an alert fires and of one in which it does not, after HEALTHY's.

    A sample is a number, or a number and its growth a minute. ``labels`` selects the alert; ``silent`` tells whether it
    outlives the end of all samples.
    """

    alert: str
    bad: Mapping[str, str]
    good: Mapping[str, str]
    labels: str = ""
    silent: bool = True
    minutes: int = 45
    """Length of a phase: longer than the rule waits."""


def _burn(budget: str, burn: str) -> Case:
    labels = f',budget="{budget}",burn="{burn}"'
    # 14.4 * 0.01 of requests spend the budget fast, 6 * 0.01 slowly.
    bad, good = (20, 10) if burn == "fast" else (8, 5)
    if budget == "latency":
        slow, fine = ({BUCKET: f"0+{100 - share}", COUNT: "0+100", REQUESTS % 200: "0+100"} for share in (bad, good))
    else:
        slow, fine = ({REQUESTS % 500: f"0+{share}", REQUESTS % 200: f"0+{100 - share}"} for share in (bad, good))
    return Case("MlkitLatencyBurn", slow, fine, labels, minutes=LONG if burn == "slow" else 45)


CASES = {
    "drift": Case("MlkitDriftSustained", {EVIDENCE % "distribution": "1.1"}, {EVIDENCE % "distribution": "0.99"}),
    "new values": Case("MlkitDriftSustained", {EVIDENCE % "new": "1"}, {EVIDENCE % "missing": "2"}),
    "nulls": Case("MlkitNullsUp", {EVIDENCE % "missing": "1"}, {EVIDENCE % "distribution": "2"}),
    "performance": Case(
        "MlkitPerformanceDrop",
        {f'mlkit_performance_failed{{{S},metric="recall",kind="realised"}}': "1"},
        {f'mlkit_performance_failed{{{S},metric="recall",kind="realised"}}': "0"},
    ),
    "estimate": Case(
        "MlkitEstimatedDrop",
        {f'mlkit_performance_failed{{{S},metric="recall",kind="estimated"}}': "1"},
        {f'mlkit_performance_failed{{{S},metric="recall",kind="realised"}}': "1"},
    ),
    "loss": Case(
        "MlkitProfileLoss",
        {ROWS % "lost": "11", ROWS % "answered": "10000"},
        {ROWS % "lost": "10", ROWS % "answered": "10000"},
    ),
    "schema": Case(
        "MlkitSchemaRefusals",
        {REQUESTS % 400: "0+10", REQUESTS % 200: "0+90"},
        {REQUESTS % 400: "0+4", REQUESTS % 200: "0+96"},
    ),
    "schema, told by the monitor": Case(
        "MlkitSchemaRefusals",
        {'mlkit_alerts{service="lending",kind="schema",severity="page",state="firing"}': "1"},
        {'mlkit_alerts{service="lending",kind="schema",severity="page",state="resolved"}': "1"},
    ),
    "stale": Case("MlkitMonitorStale", {AGE: "181"}, {AGE: "179"}, silent=True),
    "no data": Case(
        "MlkitNoData",
        {f'mlkit_monitor_state{{{S},state="HEALTHY"}}': "0", f'mlkit_monitor_state{{{S},state="NO_DATA"}}': "1"},
        {f'mlkit_monitor_state{{{S},state="NO_DATA"}}': "0"},
    ),
    "no labels": Case("MlkitLabelsLate", {LABELLED: "0"}, {LABELLED: "0.1"}),
    "rollout": Case("MlkitRolloutRunning", {PHASE: "1"}, {PHASE: "0"}, silent=False),
    "stuck": Case(
        "MlkitRetrainStuck",
        {f'mlkit_monitor_state{{{S},state="HEALTHY"}}': "0", f'mlkit_monitor_state{{{S},state="RETRAINING"}}': "1"},
        {f'mlkit_monitor_state{{{S},state="RETRAINING"}}': "0"},
        labels=',reason="running"',
        minutes=LONG,
    ),
    "retraining that asks": Case(
        "MlkitRetrainStuck",
        {'mlkit_retrain_state{service="lending",state="asking"}': "1"},
        {'mlkit_retrain_state{service="lending",state="idle"}': "1"},
        ',reason="asking"',
    ),
    "budget": Case(
        "MlkitBudgetSpent",
        {'mlkit_retrain_budget_left{service="lending"}': "0"},
        {'mlkit_retrain_budget_left{service="lending"}': "1"},
    ),
    **{f"{budget}, {burn}": _burn(budget, burn) for budget in ("latency", "errors") for burn in ("fast", "slow")},
}


def _marked(case: Case) -> Any:
    return pytest.param(case, marks=[pytest.mark.slow] if case.minutes == LONG else [])


def _values(sample: str, minutes: int) -> str:
    start, _, growth = sample.partition("+")
    return f"{start}+{growth or 0}x{minutes - 1}"


def _series(minutes: int, *phases: Mapping[str, str]) -> list[dict[str, str]]:
    """Phases of so many minutes each, one after another; a series that a phase does not have is stale in it."""
    names = sorted({name for phase in phases for name in phase})
    series = []
    for name in names:
        parts = [_values(phase[name], minutes) if name in phase else f"stale _x{minutes - 1}" for phase in phases]
        series.append({"series": name, "values": " ".join(parts)})
    return series


def _promtool(folder: Path, tests: list[dict[str, object]], target: RuleTarget = TARGET) -> None:
    rules = folder / "rules.yml"
    rules.write_text(yaml.safe_dump(rule_groups([target]), sort_keys=False))
    document = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (folder / "tests.yml").write_text(yaml.safe_dump(document, sort_keys=False))
    for command in (("check", "rules", "rules.yml"), ("test", "rules", "tests.yml")):
        done = subprocess.run(["promtool", *command], cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def _alerts(case: Case, minutes: int, number: int) -> dict[str, object]:
    """That so many alerts of the case fire at a minute."""
    selector = f'ALERTS{{alertname="{case.alert}",alertstate="firing"{case.labels}}}'
    return {
        "expr": f"count({selector}) or vector(0)",
        "eval_time": f"{minutes}m",
        "exp_samples": [{"labels": "{}", "value": number}],
    }


@needs_promtool
@pytest.mark.parametrize("case", [_marked(case) for case in CASES.values()], ids=CASES)
def test_rule_fires_and_does_not_fire(tmp_path: Path, case: Case) -> None:
    tests = [
        {
            "interval": "1m",
            "input_series": _series(case.minutes, {**HEALTHY, **phase}),
            "promql_expr_test": [_alerts(case, case.minutes - 5, number)],
        }
        for phase, number in ((case.bad, 1), (case.good, 0))
    ]
    _promtool(tmp_path, tests)


@needs_promtool
@pytest.mark.parametrize("case", [_marked(case) for case in CASES.values() if case.silent])
def test_silence_resolves_nothing_and_new_data_do(tmp_path: Path, case: Case) -> None:
    minutes = case.minutes
    test = {
        "interval": "1m",
        "input_series": _series(minutes, {**HEALTHY, **case.bad}, {}, {**HEALTHY, **case.good}),
        "promql_expr_test": [
            _alerts(case, minutes - 5, 1),
            *(_alerts(case, minutes + later, 1) for later in (1, 2, 6, 30, minutes - 1)),
            _alerts(case, 3 * minutes - 5, 0),
        ],
    }
    _promtool(tmp_path, [test])


@needs_promtool
@pytest.mark.parametrize("state", ["NO_DATA", "BLIND"])
def test_shift_is_not_resolved_by_traffic_that_stopped(tmp_path: Path, state: str) -> None:
    drift = CASES["drift"]
    silent = {
        f'mlkit_monitor_state{{{S},state="HEALTHY"}}': "0",
        f'mlkit_monitor_state{{{S},state="{state}"}}': "1",
        **drift.good,
    }
    back = {**HEALTHY, f'mlkit_monitor_state{{{S},state="{state}"}}': "0", **drift.good}
    test = {
        "interval": "1m",
        "input_series": _series(45, {**HEALTHY, **drift.bad}, silent, back),
        "promql_expr_test": [_alerts(drift, 89, 1), _alerts(drift, 134, 0)],
    }
    _promtool(tmp_path, [test])


@needs_promtool
def test_alert_of_a_version_ends_when_another_serves(tmp_path: Path) -> None:
    drift = CASES["drift"]
    other = {name.replace("v1", "v2"): value for name, value in {**HEALTHY, **drift.good}.items()}
    test = {
        "interval": "1m",
        "input_series": _series(45, {**HEALTHY, **drift.bad}, other),
        "promql_expr_test": [_alerts(drift, 40, 1), _alerts(drift, 55, 0)],
    }
    _promtool(tmp_path, [test])


@needs_promtool
def test_shift_in_many_segments_and_aspects_is_one_alert_a_column(tmp_path: Path) -> None:
    drift = CASES["drift"]
    series = {EVIDENCE % kind: "2" for kind in ("distribution", "new", "range")}
    series |= {name.replace('segment=""', 'segment="(any)"'): "3" for name in series}
    series |= {name.replace("age", "income"): "3" for name in series}
    tests = [{
        "interval": "1m",
        "input_series": _series(45, {**HEALTHY, **series}),
        "promql_expr_test": [_alerts(drift, 30, 2)],
    }]  # fmt: skip
    _promtool(tmp_path, tests)


@needs_promtool
def test_rules_of_a_service_with_any_name_and_without_goals_are_accepted(tmp_path: Path) -> None:
    target = RuleTarget.from_settings('a"b\\', {"monitor": {"window": "10s"}})
    _promtool(tmp_path, [], target)
    names = [rule["alert"] for rule in rule_groups([target])["groups"][0]["rules"]]
    assert "MlkitLatencyBurn" not in names
    assert len(names) == 13


def test_rules_that_share_a_name_have_labels_that_tell_them_apart() -> None:
    rules = rule_groups([TARGET])["groups"][0]["rules"]
    keys = [(rule["alert"], tuple(sorted(rule["labels"].keys() - {"severity"}))) for rule in rules]
    for name, labels in keys:
        assert labels or [other for other, _ in keys].count(name) == 1, name


def test_alertmanager_accepts_the_configuration(tmp_path: Path) -> None:
    if shutil.which("amtool") is None:
        pytest.skip("no amtool: apt-get install prometheus-alertmanager")
    path = tmp_path / "alertmanager.yml"
    path.write_text(yaml.safe_dump(alertmanager_config("http://127.0.0.1:9/hook")))
    subprocess.run(["amtool", "check-config", path], check=True, capture_output=True, timeout=60)
