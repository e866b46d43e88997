"""The monitor's page from its record: what stands on it in each state, what it leaves out and says so, its size."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.cli.app import main
from mlflowkit.errors import ServiceError
from mlflowkit.monitoring.monitor_settings import SETTINGS, MonitorSection, MonitorSettings
from mlflowkit.monitoring.monitor_view import VIEW, MonitorView
from mlflowkit.report.monitor import monitor_page, monitor_site
from mlflowkit.report.monitor.heat_map import HeatCell, heat_row
from mlflowkit.service_state.records import ServiceFiles
from tests.support.monitored import example, monitor
from tests.support.rollout_world import RolloutWorld

ATTACK = "</script><script>window.pwned=true</script><img src=x onerror='window.pwned=true'>"
LIMIT = 300_000


def text(page: str, section: str) -> str:
    """The text of one section."""
    match = re.search(rf'<section id="{section}".*?</section>', page, re.DOTALL)
    assert match is not None
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", match[0])))


def alone(value: dict[str, Any]) -> str:
    return monitor_page.render_alone(MonitorView.from_json(value), lambda _: None)


def many(columns: int, windows: int) -> dict[str, Any]:
    value = example()
    value["windows"] = [{**value["windows"][-1], "start": 86400.0 * index} for index in range(windows)]
    history = [[86400.0 * index, None if index % 7 == 3 else (index * 37 % 19) / 100, 0.1] for index in range(windows)]
    first = {**value["columns"][0], "segment": "", "history": history, "verdict": "PASSED"}
    value["columns"] = [{**first, "column": f"a_sensor_with_a_long_name_{index:03d}"} for index in range(columns)]
    return value


def test_page_says_the_state_since_when_and_why() -> None:
    page = alone(example())
    head = unescape(page[: page.index("<nav")])
    assert "drifting" in head
    assert "since 2025-12-11 16:00:00 UTC" in head
    assert example()["message"] in head
    assert "a1b2c3d4e5f6" in head


@pytest.mark.parametrize("state", ["LEARNING", "HEALTHY", "SUSPECT", "DRIFTING", "RETRAINING", "NO_DATA", "BLIND"])
def test_each_state_has_a_badge_and_a_meaning(state: str) -> None:
    page = alone({**example(), "state": state, "message": ""})
    badge = re.search(r'<h1>.*?<span class="badge (\w+)">(.*?)</span>', page, re.DOTALL)
    assert badge is not None
    assert badge[2] == state.lower().replace("_", " ")
    assert (badge[1] == "ok") == (state == "HEALTHY")
    sentence = re.search(r'<p class="sentence">(.*?)</p>', page)
    assert sentence is not None
    assert len(sentence[1]) > 30


def test_alerts_have_the_commands_that_answer_them() -> None:
    value = example()
    page = text(alone(value), "alerts")
    firing = [alert for alert in value["alerts"] if alert["state"] == "firing"]
    assert firing
    for alert in firing:
        assert alert["message"] in page
        assert f"mlkit monitor ack {alert['id']}" in page
        assert f"mlkit monitor silence {alert['id']} --for 2d" in page
    resolved = next(alert for alert in value["alerts"] if alert["state"] == "resolved")
    assert f"mlkit monitor ack {resolved['id']}" not in page


def test_alert_names_its_segment_or_how_its_metric_is_known() -> None:
    first = example()["alerts"][0]
    alerts = [
        {**first, "kind": "drift", "column": "age", "segment": "country=DE"},
        {**first, "id": "other", "kind": "performance", "column": "recall", "segment": "realised"},
    ]
    page = text(alone({**example(), "alerts": alerts}), "alerts")
    assert "drift: age, where country=DE" in page
    assert "performance: recall, realised" in page


def test_column_that_failed_comes_first_with_its_numbers() -> None:
    page = text(alone(example()), "drift")
    names = re.findall(r"(int_rate|annual_inc|output\.score)", page)
    assert names[0] == "int_rate"
    assert re.search(r"int_rate 0\.231 / 0\.1 FAILED", page)


def test_a_window_that_was_not_judged_is_hatched_and_never_a_colour() -> None:
    assert HeatCell(None, 0.1).level == 6
    drawn = heat_row({0.0: HeatCell(0.01, 0.1), 1.0: HeatCell(None, 0.1), 2.0: HeatCell(0.3, 0.1)}, [0.0, 1.0, 2.0])
    assert re.findall(r'class="h(\d)" d="([^"]*)"', drawn) == [("0", "M0 .5h1"), ("5", "M2 .5h1")]
    assert '<rect x="33.333%" width="33.333%"' in drawn


@pytest.mark.parametrize(
    ("share", "level"), [(0.0, 0), (0.25, 0), (0.26, 1), (0.5, 1), (1.0, 2), (1.01, 3), (1.6, 4), (2.1, 5)]
)
def test_colour_is_the_distance_as_a_share_of_the_margin(share: float, level: int) -> None:
    for margin in (0.02, 0.1, 3.0):
        assert HeatCell(share * margin, margin).level == level


def test_performance_shows_estimated_and_realised_with_the_share_that_is_labelled() -> None:
    page = text(alone(example()), "performance")
    assert "estimated" in page
    assert "TRUSTED" in page
    assert re.search(r"realised 62 % labelled", page)
    labels = re.findall(r'aria-label="(roc_auc, [^"]*)"', alone(example()))
    assert len(labels) == 2
    assert all("bound 0.6" in label for label in labels)


@pytest.mark.parametrize(
    ("metric", "kind", "left"),
    [("roc_auc", "realised", False), ("log_loss", "realised", True), ("latency_p99_ms", "latency", True),
     ("error_rate", "errors", True)],
)  # fmt: skip
def test_allowed_side_of_a_bound_is_that_of_its_metric(metric: str, kind: str, left: bool) -> None:
    row = {**example()["performance"][0], "metric": metric, "kind": kind, "value": 0.5, "low": 0.4, "high": 0.6}
    page = alone({**example(), "performance": [{**row, "bound": 0.55}]})
    allowed = re.search(r'<rect class="allowed" x="([\d.]+)%"', page[page.index('id="performance"') :])
    assert allowed is not None
    assert (float(allowed[1]) == 0.0) == left


def test_log_of_decisions_is_newest_first_and_what_cannot_be_seen_is_listed() -> None:
    value = example()
    page = alone(value)
    log = text(page, "decisions")
    places = [log.index(decision["text"]) for decision in sorted(value["decisions"], key=lambda one: -one["time"])]
    assert places == sorted(places)
    for blind in value["blind"]:
        assert blind["message"] in text(page, "blind")


def test_rows_that_were_lost_are_told_by_window() -> None:
    assert re.search(r"2,000 1,997 3 healthy", text(alone(example()), "windows"))


def test_record_with_nothing_in_it_says_so_in_each_section() -> None:
    page = alone({"service": "s", "version": "1", "state": "LEARNING", "since": 1.0})
    for section, words in {
        "alerts": "No alert was raised",
        "drift": "No window has been judged yet",
        "performance": "No metric",
        "retrain": "nothing asked",
        "decisions": "decided nothing",
        "blind": "twice its margin",
        "windows": "No window has been closed",
    }.items():
        assert words in text(page, section)


@pytest.mark.parametrize("columns", [200, 2000])
def test_page_of_many_columns_stays_small_and_says_what_it_left_out(columns: int) -> None:
    page = alone(many(columns, 90))
    assert len(page.encode()) < LIMIT
    assert ("1,800 more rows" in text(page, "drift")) == (columns == 2000)


def test_page_that_is_one_file_loads_nothing_and_runs_nothing() -> None:
    page = alone(example())
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert not re.search(r"<script|src=|@import|url\((?!#)", page)


def test_hostile_words_stay_words() -> None:
    def spoiled(value: Any) -> Any:
        if isinstance(value, str):
            known = ("FAILED", "PASSED", "INCONCLUSIVE", "firing", "acked", "silenced", "resolved", "distribution")
            return value if value in known else value + ATTACK
        if isinstance(value, list):
            return [spoiled(item) for item in value]
        return {key: spoiled(item) for key, item in value.items()} if isinstance(value, dict) else value

    page = alone(spoiled(example()))
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;img" in page


def test_selected_cell_shows_the_reference_and_the_rows_of_its_window(tmp_path: Path) -> None:
    world = monitor(tmp_path)
    start = example()["windows"][-1]["start"]
    page = monitor_site.render_page(world.files, {"column": "int_rate", "window": f"{start}"})
    detail = text(page, "detail")
    assert "10,000 rows of the reference, 2,000 live rows" in detail
    assert re.search(r"\[5\.5, 9\) 25 % 10 %", detail)
    assert re.search(r"\(above\) 0 % 4\.5 %", detail)
    text_column = text(monitor_site.render_page(world.files, {"column": "emp_length", "window": f"{start}"}), "detail")
    assert re.search(r"\(new\) 0 % 10 %", text_column)
    earlier = f"{example()['windows'][-2]['start']}"
    page = monitor_site.render_page(world.files, {"column": "int_rate", "window": earlier})
    assert "0 live rows" in text(page, "detail")


def test_without_a_choice_the_column_that_failed_is_shown(tmp_path: Path) -> None:
    page = monitor_site.render_page(monitor(tmp_path).files, {})
    assert "int_rate · window" in text(page, "detail")
    healthy = {**example(), "columns": [{**column, "verdict": "PASSED"} for column in example()["columns"]]}
    page = monitor_site.render_page(monitor(tmp_path, "other", healthy).files, {})
    assert "Choose a cell" in text(page, "detail")


@pytest.mark.parametrize(
    "query", [{"column": "none"}, {"column": "int_rate", "window": "soon"}, {"column": "int_rate", "window": "nan"},
              {"column": "int_rate", "window": "1e300"}, {"column": ATTACK, "segment": ATTACK}]
)  # fmt: skip
def test_odd_address_still_gets_the_page(tmp_path: Path, query: dict[str, str]) -> None:
    page = monitor_site.render_page(monitor(tmp_path).files, query)
    assert "Monitor of lending" in page
    assert "<img" not in page


def test_reference_that_is_missing_or_damaged_is_told_and_hides_nothing_else(tmp_path: Path) -> None:
    world = monitor(tmp_path)
    evidence = tmp_path / "bundles" / "lending" / "evidence" / "monitor.json"
    evidence.write_text("{")
    page = monitor_site.render_page(world.files, {"column": "int_rate"})
    assert "No histogram" in text(page, "detail")
    assert "mlkit monitor ack" in text(page, "alerts")
    evidence.unlink()
    page = monitor_site.render_page(world.files, {"column": "int_rate"})
    assert "has no column int_rate" in text(page, "detail")


@pytest.mark.parametrize("content", ["{", "[]", "7", '{"state": 1}'])
def test_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    world = monitor(tmp_path)
    (world.files.folder / VIEW).write_text(content)
    page = monitor_site.render_page(world.files, {})
    assert "view.json" in page
    assert "damaged" in page or "JSON" in page


def test_service_that_is_not_monitored_is_told_what_to_do(tmp_path: Path) -> None:
    files = RolloutWorld(tmp_path, "idle").files
    assert "monitor:" in monitor_site.render_page(files, {})
    with pytest.raises(ServiceError, match="is not monitored"):
        monitor_site.render_file(files)


def test_command_writes_the_page_of_one_service(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = MonitorSettings(MonitorSection())
    for service in ("lending", "other"):
        monitor(tmp_path, service).files.write_json(SETTINGS, settings.to_json())

    def command(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as done:
            main(["monitor", *arguments, "--state", str(tmp_path)])
        captured = capfd.readouterr()
        return int(done.value.code or 0), captured.out + captured.err

    page = tmp_path / "pages" / "monitor.html"
    code, printed = command("lending", "--out", str(page))
    assert code == 1, "something FAILED, and that is told as without a page"
    assert str(page) in printed
    assert "2,000 live rows" in text(page.read_text(), "detail")
    code, printed = command("--out", str(tmp_path / "none.html"))
    assert code == 2
    assert "lending" in printed
    assert "other" in printed
    assert not (tmp_path / "none.html").exists()


def test_page_that_is_one_file_has_the_histograms_of_what_failed(tmp_path: Path) -> None:
    files: ServiceFiles = monitor(tmp_path).files
    page = monitor_site.render_file(files)
    assert "10,000 rows of the reference, 2,000 live rows" in text(page, "detail")
    assert json.dumps(example())[:10] not in page
