"""Metrics of monitoring: every gauge and counter, bounded, finite, escaped, without values of the data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlflowkit.monitoring.export.monitor_metrics import COUNTERS, GAUGES, MonitorMetrics, ViewEvents, render_views
from mlflowkit.monitoring.monitor_view import MonitorView
from mlflowkit.report.rollout.rollout_page import admin_listener
from mlflowkit.service_state.records import ServiceFiles
from tests.support.monitor_views import START, finding, view, window, write_view
from tests.support.rollout_world import RolloutWorld
from tests.support.waiting import wait_for

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(page: bytes) -> Samples:
    """Samples by name and sorted labels; two samples with the same labels are an error."""
    samples: Samples = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples
            assert math.isfinite(sample.value)
            samples[key] = sample.value
    return samples


def rendered(*views: dict[str, Any], now: float = START + 90.0) -> Samples:
    events = ViewEvents()
    for each in views:
        events.update(each)
    return parse(render_views({"lending": views[-1]}, {"lending": events}, now))


def value(samples: Samples, name: str, **labels: str) -> float | None:
    """The only sample that has these labels; None without one."""
    matching = [number for (key, pairs), number in samples.items() if key == name and set(labels.items()) <= set(pairs)]
    assert len(matching) < 2, matching
    return matching[0] if matching else None


def test_every_metric_has_a_sample() -> None:
    columns = [
        finding(verdict="FAILED", evidence=1.2),
        finding(aspect="missing", value=0.3, segment=""),
        finding(aspect="new", value=0.05),
        finding(aspect="range", value=0.02),
        finding(segment="country=DE", evidence=0.7),
    ]
    alert = {"id": "a", "kind": "drift", "column": "age", "severity": "warning", "state": "firing"}
    runs = [{"episode": "e1", "outcome": "promoted"}]
    samples = rendered(
        view(
            columns=columns,
            alerts=[alert],
            retrain={"state": "idle", "budget_left": 1, "runs": runs},
        )
    )
    names = {name for name, _ in samples}
    assert names == {*GAUGES, *(f"{name}_total" for name in COUNTERS)} - {"mlkit_monitor_rollback_total"}
    assert value(samples, "mlkit_monitor_state", state="HEALTHY") == 1
    assert value(samples, "mlkit_monitor_state", state="DRIFTING") == 0
    assert value(samples, "mlkit_drift_distance", kind="distribution", bound="margin") == 0.1
    assert value(samples, "mlkit_drift_evidence", kind="distribution", segment="") == 1.2
    assert value(samples, "mlkit_drift_evidence", kind="distribution", segment="(any)") == 0.7
    assert value(samples, "mlkit_drift_columns", verdict="FAILED") == 1
    assert value(samples, "mlkit_missing_share", column="age") == 0.3
    assert value(samples, "mlkit_outlier_share", column="age") == 0.02
    assert value(samples, "mlkit_performance", kind="estimated", bound="limit") == 0.69
    assert value(samples, "mlkit_performance_trusted", metric="roc_auc") == 1
    assert value(samples, "mlkit_labelled_share", age="mature") == 0.8
    assert value(samples, "mlkit_window_age_seconds") == 30
    assert value(samples, "mlkit_monitor_age_seconds") == 30
    assert value(samples, "mlkit_window_lost_rows") == 10
    assert value(samples, "mlkit_retrain_total", outcome="promoted") == 1


def test_no_value_of_the_data_is_a_label() -> None:
    samples = rendered(view(columns=[finding(segment="country=Wonderland"), finding(segment="country=Utopia")]))
    assert not any("land" in text or "Utopia" in text for _, pairs in samples for _, text in pairs)


def test_what_is_not_a_finite_number_is_left_out() -> None:
    odd = finding(value=math.nan, low=-math.inf, high=None, margin="0.1", evidence=True, missing=10**400)
    samples = rendered(view(columns=[odd], windows=[window(rows=math.nan)], updated=math.inf))
    assert value(samples, "mlkit_drift_distance") is None
    assert value(samples, "mlkit_drift_evidence") is None
    assert value(samples, "mlkit_missing_share") is None
    assert value(samples, "mlkit_window_rows") is None
    assert value(samples, "mlkit_window_lost_rows") == 10


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "caf\u00e9", "{x=1}", "(other)", "\ud800", "", "x" * 500])
def test_any_name_of_a_column_is_a_label(name: str) -> None:
    samples = rendered(view(columns=[finding(name), finding()]))
    expected = name.encode("utf-8", "replace").decode()
    column = expected if len(expected) <= 200 else expected[:199] + "…"
    assert value(samples, "mlkit_missing_share", column=column) == 0.01


def test_columns_beyond_two_hundred_are_the_worst_of_the_others() -> None:
    columns = [finding(f"c{number:03}", importance=number / 1000, evidence=0.1) for number in range(500)]
    columns[3] |= {"verdict": "FAILED", "evidence": 1.5}
    columns[4] |= {"evidence": 0.9}
    columns.append(finding("output.score", importance=None))
    segments = [finding(f"c{number:03}", segment=f"s={part}") for number in range(500) for part in range(50)]
    page = render_views({"lending": view(columns=columns + segments)}, {}, START)
    samples = parse(page)
    names = {dict(pairs)["column"] for _, pairs in samples if "column" in dict(pairs)}
    assert len(names) == 201
    assert {"c003", "c499", "output.score", "(other)"} <= names
    assert value(samples, "mlkit_drift_evidence", column="(other)", segment="") == 0.9
    assert value(samples, "mlkit_drift_columns", verdict="FAILED") == 1
    assert len(page) < 1_000_000


def test_counters_count_each_window_once_and_never_fall() -> None:
    first = view(windows=[window(0), window(1)])
    late = view(windows=[window(1, rows=1995, lost=5), window(2)])
    assert value(rendered(first), "mlkit_profile_rows_total") == 2 * 1990
    samples = rendered(first, first, late)
    assert value(samples, "mlkit_profile_rows_total") == 3 * 1990 + 5
    assert value(samples, "mlkit_profile_rows_lost_total") == 30


def test_window_of_two_versions_counts_for_each() -> None:
    samples = rendered(view(), view(version="20261202-bb22"))
    assert value(samples, "mlkit_profile_rows_total") == 2 * 1990


def test_age_without_a_window_is_that_of_the_state() -> None:
    samples = rendered(view(windows=[], state="LEARNING"), now=START + 500.0)
    assert value(samples, "mlkit_window_age_seconds") == 500
    assert value(samples, "mlkit_window_rows") is None


@pytest.mark.parametrize("content", [b"{", b"[1]", b'"x"', b"{}", b'{"columns": 3, "windows": [null], "retrain": []}'])
def test_damaged_view_leaves_a_page_that_parses(tmp_path: Path, content: bytes, caplog: Any) -> None:
    write_view(tmp_path, view(), "other")
    write_view(tmp_path, {})
    (tmp_path / "services" / "lending" / "monitor" / "view.json").write_bytes(content)
    metrics = MonitorMetrics(tmp_path, clock=lambda: START)
    for _ in range(2):
        samples = parse(metrics.render(["lending", "other", "absent"]))
    assert value(samples, "mlkit_monitor_state", service="other", state="HEALTHY") == 1
    assert value(samples, "mlkit_monitor_state", service="lending", state="HEALTHY") is None
    assert len(caplog.records) == (not content.startswith(b"{") or content == b"{")


def test_rollbacks_of_a_monitor_are_counted_once_by_their_cause(tmp_path: Path) -> None:
    write_view(tmp_path, view())
    files = ServiceFiles(tmp_path / "services" / "lending")
    for number, by in enumerate(("monitor", "person", "monitor")):
        files.write_json(f"incidents/2026-{number}.json", {"by": by, "cause": "performance" if by == "monitor" else ""})
    metrics = MonitorMetrics(tmp_path, clock=lambda: START)
    for _ in range(2):
        samples = parse(metrics.render(["lending"]))
    assert value(samples, "mlkit_monitor_rollback_total", cause="performance") == 2


def test_run_counts_once_it_has_ended() -> None:
    def shown(outcome: str) -> dict[str, Any]:
        return view(retrain={"state": "idle", "runs": [{"run": "r1", "episode": "e1", "outcome": outcome}]})

    samples = rendered(shown("running"), shown("promoted"), shown("promoted"))
    assert value(samples, "mlkit_retrain_total") == 1


def test_views_of_these_tests_are_records_of_the_monitor() -> None:
    written = MonitorView.from_json(view()).to_json()
    assert written.keys() >= view().keys()
    assert rendered(written).keys() >= rendered(view()).keys()


def test_admin_page_has_the_metrics_of_monitoring_after_those_of_rollouts(tmp_path: Path) -> None:
    files = RolloutWorld(tmp_path).files
    write_view(tmp_path, view())
    with admin_listener(tmp_path):
        wait_for(lambda: files.exists("admin.json"))
        with urlopen(f"{files.admin_url().rpartition('/services')[0]}/metrics") as response:
            samples = parse(response.read())
    assert value(samples, "mlkit_monitor_state", service="lending", state="HEALTHY") == 1
    assert value(samples, "mlkit_controller_lease") is not None
