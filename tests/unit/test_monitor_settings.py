"""The recipe sections monitor and retrain: what they accept, where a fault is shown, and what they leave alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from mlflowkit.errors import ServiceError
from mlflowkit.monitoring import monitor_settings
from mlflowkit.monitoring.monitor_settings import MonitorSection, MonitorSettings, RetrainSection, seconds_of
from mlflowkit.monitoring.monitor_view import MonitorView, read_view
from mlflowkit.pipeline.plan import monitor_problem
from mlflowkit.recipe.check import examine, load
from mlflowkit.recipe.schema import stage_specs
from mlflowkit.service_state.records import GatewaySettings, ServiceFiles

DATA = Path(__file__).parents[1] / "data"
BASE = """\
name: loans
task: classification
data:
  source: {kind: csv, path: loans.csv}
  target: bad
  positive: 1
  columns: {rate: numeric, when: time}
  drop: [id]
  split: {kind: stratified, validation: 0.15, test: 0.15}
model: {kind: torch, module: "mlflowkit.models:TabularMLP"}
serve: {service: loans}
"""
FULL = """\
monitor:
  window: 1d
  grace: 5m
  min_rows: 300
  baseline: {kind: live, windows: 14}
  level: 0.05
  margin: 0.1
  sustained: 3
  columns:
    age: {margin: 0.2, missing: 0.05}
    grade: {new_values: 0.02}
    rate: ignore
  importance: permutation
  segments: [grade, term]
  predictions: {margin: 0.05}
  outliers: {kind: isolation_forest, max_share: 0.01}
  performance:
    estimated: {metric: roc_auc, max_drop: 0.03}
    realised: {metric: recall, min: 0.6, mature: 21d, min_labels: 300}
  latency: {p99_ms: 20, error_rate: 0.01, budget: 30d}
  rollback: {probation: 7d, on: [performance]}
  alerts: {alertmanager: http://127.0.0.1:9093, webhooks: [{url: "https://example.com/hook", secret_env: HOOK_KEY}]}
  export: {evidently: 1d, whylabs: {dataset: model-3, key_env: WHYLABS_API_KEY}}
retrain:
  on: [performance, drift]
  importance: 0.1
  data: changed
  helps: true
  budget: {runs: 2, per: 7d}
  cooldown: 24h
  rearm: 2
  failures: 2
  overrides: ["+rollout=canary"]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "loans.csv").write_text("id,rate,bad,grade,term,age,when\n1,2,0,A,36,40,2024-01-31\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE + FULL)
    return path


def test_every_key_of_the_two_sections_is_accepted(recipe: Path) -> None:
    loaded = load(recipe).recipe
    assert loaded.monitor is not None
    assert loaded.retrain is not None
    assert loaded.monitor.window_seconds == 86_400
    assert loaded.monitor.pane_seconds == 300
    assert loaded.monitor.limits("rate") is None
    assert loaded.retrain.on == ["performance", "drift"]


def test_a_composed_recipe_reads_on_as_text_too(recipe: Path) -> None:
    (recipe.parent / "conf" / "watch").mkdir(parents=True)
    (recipe.parent / "conf" / "watch" / "drift.yaml").write_text("# @package _global_\nretrain: {on: [drift]}\n")
    loaded = load(recipe, ["+watch=drift", "retrain.rearm=5"]).recipe
    assert loaded.retrain is not None
    assert (loaded.retrain.on, loaded.retrain.rearm) == (["drift"], 5)


# (what is replaced, by what, the text at which the fault is, a word of its message or hint)
CASES = [
    ("window: 1d", "window: 300", "300", "write 300s"),
    ("window: 1d", "window: 3 days", "3 days", "write 3d"),
    ("window: 1d", "window: 7m", "7m", "write 5m"),
    ("window: 1d", "window: 4s", "4s", "write 5s"),
    ("window: 1d", "window: 8d", "8d", "write 7d"),
    ("window: 1d", "window: 5.5s", "5.5s", "whole seconds"),
    ("window: 1d", "windw: 1d", "windw", "did you mean window"),
    ("grace: 5m", "grace: -5m", "-5m", "a duration such as"),
    ("margin: 0.1\n", "margin: 10\n", "10\n", "a number >= 0 and < 1"),
    ("kind: live, windows: 14", "kind: season, period: 36h", "36h", "whole number of windows"),
    ("kind: live, windows: 14", "kind: seasons", "seasons", "did you mean season"),
    ("    age: {margin: 0.2, missing: 0.05}", "    agee: {margin: 0.2}", "agee", "did you mean 'age'"),
    ("    rate: ignore", "    bad: ignore", "bad: ig", "is the target"),
    ("    rate: ignore", "    id: ignore", "id: ig", "no feature"),
    ("    rate: ignore", "    rate: ignored", "ignored", "did you mean ignore"),
    ("segments: [grade, term]", "segments: [grade, grade]", "grade]", "listed twice"),
    ("segments: [grade, term]", "segments: [rate]", "rate]", "segments are of categories"),
    ("segments: [grade, term]", "segments: [when]", "when]", "no feature"),
    ("segments: [grade, term]", "segments: [stat]", "stat]", "no column"),
    ("{metric: recall, min", "{metric: rmse, min", "rmse, min", "classification has no 'rmse'"),
    ("{metric: recall, min", "{metric: recal, min", "recal, min", "did you mean recall"),
    ("{metric: recall, min: 0.6", "{metric: brier, min: 0.6", "min: 0.6, mature", "write max:"),
    ("{metric: recall, min: 0.6", "{metric: recall, min: 60", "60, mature", "between 0 and 1"),
    ("{metric: recall, min: 0.6", "{metric: recall", "{metric: recall", "needs a bound: min"),
    ("mature: 21d", "mature: 0d", "0d", "longer than nothing"),
    ("{metric: roc_auc, max_drop", "{metric: macro_f1, max_drop", "macro_f1", "there are roc_auc"),
    ("{p99_ms: 20, error_rate: 0.01, budget: 30d}", "{budget: 30d}", "latency", "needs a limit"),
    ('{url: "https://example.com/hook"', "{url: example.com", "example.com", "http:// or https://"),
    ('{url: "https://example.com/hook", secret', "{secret", "{secret", "needs a URL"),
    ('{url: "https://example.com/hook"', '{url: "https://x", url_env: X', "url_env", "given twice"),
    ("http://127.0.0.1:9093", "127.0.0.1:9093", "127.0.0.1:9093", "http:// or https://"),
    ("on: [performance, drift]", "on: [performance, drfit]", "drfit", "did you mean drift"),
    ("on: [performance, drift]", "on: [drift, drift]", "drift]", "listed twice"),
    ("serve: {service: loans}", "serve: {service: loans, log: {profile: false}}", "false", "is off"),
    ("serve: {service: loans}\n", "", "monitor:", "no serve section"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "place", "word"), CASES)
def test_a_fault_is_shown_at_its_place(recipe: Path, old: str, new: str, place: str, word: str) -> None:
    text = recipe.read_text()
    assert old in text
    recipe.write_text(changed := text.replace(old, new, 1))
    faults = examine(recipe).faults
    assert [fault for fault in faults if word in f"{fault.message} {fault.hint}"], faults
    fault = next(fault for fault in faults if word in f"{fault.message} {fault.hint}")
    at = sum(len(line) + 1 for line in changed.split("\n")[: fault.line - 1]) + fault.column - 1
    assert changed[at:].lstrip("\"'").startswith(place), changed[at : at + 30]


def test_sections_without_the_ones_that_they_need(recipe: Path) -> None:
    retrain = FULL[FULL.index("retrain:") :]
    recipe.write_text(BASE + retrain)
    assert "no monitor section" in examine(recipe).faults[0].message
    recipe.write_text(f"{BASE}monitor: {{}}\nretrain: {{on: [performance]}}\n")
    assert "monitor.performance measures none" in examine(recipe).faults[0].message
    recipe.write_text(f"{BASE}monitor: {{rollback: {{}}}}\n")
    assert "decided by labels" in examine(recipe).faults[0].message


def test_only_the_deploy_stage_depends_on_them(recipe: Path) -> None:
    """Nothing is trained when they change. Segments and outliers are counted in the reference when it is packaged."""
    with_both = stage_specs(load(recipe).recipe)
    other = stage_specs(load(recipe, ["monitor.window=1h", "monitor.margin=0.2", "retrain.rearm=9"]).recipe)
    assert [name for name in with_both if with_both[name] != other[name]] == ["deploy"]
    recipe.write_text(BASE)
    without = stage_specs(load(recipe).recipe)
    assert [name for name in with_both if with_both[name] != without[name]] == ["package", "deploy"]


def test_settings_reach_the_service_and_are_removed_again(tmp_path: Path) -> None:
    files = ServiceFiles(tmp_path / "services" / "loans")
    settings = MonitorSettings(MonitorSection(window="10s", columns={"id": "ignore"}), RetrainSection(), "/r.yaml")
    assert monitor_settings.read_settings(files) is None
    assert monitor_settings.are_current(files, None)
    monitor_settings.write_settings(files, settings)
    before = files.list("monitor/*.json")
    assert monitor_settings.read_settings(files) == settings
    monitor_settings.write_settings(files, settings)
    assert files.list("monitor/*.json") == before  # the same settings are not written again
    other = MonitorSettings(MonitorSection(window="20s"), None, "/r.yaml")
    assert not monitor_settings.are_current(files, other)
    monitor_settings.write_settings(files, None)
    assert monitor_settings.read_settings(files) is None


def test_a_plan_deploys_sections_that_the_service_does_not_go_by(recipe: Path, tmp_path: Path) -> None:
    """Also where everything else is reused, and where the sections were removed."""
    state, loaded = tmp_path / "state", load(recipe)
    values = loaded.recipe
    files = ServiceFiles(state / "services" / "loans")
    assert "monitored by other settings" in monitor_problem(state, loaded)
    settings = monitor_settings.deployed_settings("loans", values.monitor, values.retrain, loaded.path, ())
    monitor_settings.write_settings(files, settings)
    assert monitor_problem(state, loaded) == ""
    assert monitor_problem(state, load(recipe, ["monitor.margin=0.2"])) != ""
    assert monitor_problem(state, load(recipe, ["retrain.rearm=5"])) != ""
    recipe.write_text(BASE)
    assert monitor_problem(state, load(recipe)) != ""


@pytest.mark.parametrize("content", [b"[]", b"{}", b"{", b'{"monitor": {"window": "x"}}', b'{"monitor": null}'])
def test_damaged_settings_are_named_and_replaced(tmp_path: Path, content: bytes) -> None:
    files = ServiceFiles(tmp_path / "services" / "loans")
    files.write_bytes(monitor_settings.SETTINGS, content)
    with pytest.raises(ServiceError, match=r"monitor/settings\.json"):
        monitor_settings.read_settings(files)
    settings = MonitorSettings(MonitorSection())
    assert not monitor_settings.are_current(files, settings)
    monitor_settings.write_settings(files, settings)
    assert monitor_settings.read_settings(files) == settings


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "-5m", "5y", "1e3s", "infd"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        seconds_of(text)
    with pytest.raises(ValidationError):
        MonitorSection(grace=text)


def test_panes_are_as_long_as_short_windows() -> None:
    assert [MonitorSection(window=window).pane_seconds for window in ("5s", "5m", "1h", "7d")] == [5, 300, 300, 300]


def test_gateway_settings_of_an_older_state_are_read(tmp_path: Path) -> None:
    settings = GatewaySettings("loans", segments=["grade"])  # type: ignore[arg-type]  # as JSON has it
    assert (settings.segments, GatewaySettings("loans").pane_seconds) == (("grade",), 300.0)


def test_the_example_of_a_view_is_what_the_record_holds(tmp_path: Path) -> None:
    value = json.loads((DATA / "monitor_view.json").read_text())
    view = MonitorView.from_json(value)
    assert view.to_json() == value
    files = ServiceFiles(tmp_path / "services" / "lending")
    files.write_json("monitor/view.json", {**value, "later": 1, "alerts": [{**value["alerts"][0], "later": 2}]})
    read = read_view(files)
    assert read is not None
    assert read.columns == view.columns
    assert all(window.rows + window.lost == window.answered for window in view.windows)
    files.write_bytes("monitor/view.json", b'{"service": 3}')
    with pytest.raises(ServiceError, match=r"view\.json is damaged"):
        read_view(files)
