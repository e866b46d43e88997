"""Names, types and labels of the metrics of rollouts: dashboards and alerts are written against them."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from mlflowkit.rollout.admin import rollout_metrics
from mlflowkit.rollout.admin.snapshot import EventCounter, ServiceMonitor
from tests.support.golden import Golden
from tests.support.rollout_world import RolloutWorld


def test_metrics_have_the_names_and_labels_that_others_rely_on(tmp_path: Path, golden: Golden) -> None:
    RolloutWorld(tmp_path).controlled().begin().run(120)
    counter = EventCounter()
    counter.ended["lending", "canary", "promoted"] += 1
    counter.delivered["lending", "ok"] += 1
    page = rollout_metrics.render_metrics(ServiceMonitor(tmp_path).views(), counter).decode()
    lines = []
    for family in text_string_to_metric_families(page):
        labels = sorted({name for sample in family.samples for name in sample.labels})
        lines.append(f"{family.name} {family.type} {{{', '.join(labels)}}}: {family.documentation}")
    golden("admin_metrics.txt", "\n".join(lines) + "\n")
