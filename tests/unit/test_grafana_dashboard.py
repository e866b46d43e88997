"""The Grafana dashboard: every expression is PromQL of metrics that exist, and the panels lie beside one another."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from mlflowkit.monitoring.export.alert_rules import RuleTarget, rule_groups
from mlflowkit.monitoring.export.grafana import dashboard, expressions
from mlflowkit.monitoring.export.monitor_metrics import COUNTERS, GAUGES
from mlflowkit.rollout.admin import rollout_metrics
from mlflowkit.rollout.admin.snapshot import EventCounter
from mlflowkit.serving.inference.gateway_metrics import Telemetry

METRIC = re.compile(r"\bmlkit_\w+")


def _sample_names(page: bytes) -> set[str]:
    """Names of samples by the families of a page: those of counters and histograms have suffixes."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
    return {
        f"{family.name}{suffix}"
        for family in text_string_to_metric_families(page.decode())
        for suffix in suffixes.get(family.type, ("",))
    }


def _known() -> set[str]:
    gateway = Telemetry("lending", "r")
    gateway.record_request("infer", 200, 0.01)
    pages = (gateway.render(0), rollout_metrics.render_metrics([], EventCounter()))
    return {*GAUGES, *(f"{name}_total" for name in COUNTERS)}.union(*map(_sample_names, pages))


def test_every_metric_of_dashboard_and_rules_exists() -> None:
    rules = rule_groups([RuleTarget("lending", 60.0, 20.0, 0.01)])["groups"][0]["rules"]
    texts = [*expressions(dashboard()), *(rule["expr"] for rule in rules)]
    used = set(itertools.chain.from_iterable(METRIC.findall(text) for text in texts))
    assert used - _known() == set()
    assert set(GAUGES) - used <= {"mlkit_window_refused_requests", "mlkit_retrain_state"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")
def test_every_expression_is_parsed(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": text.replace("$service", "lending").replace("$__rate_interval", "5m")}
        for number, text in enumerate(expressions(dashboard()))
    ]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_panels_fill_the_grid_and_overlap_nowhere() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 12
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        area = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not area & cells
        assert max(x for x, _ in area) < 24
        cells |= area
        assert panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
