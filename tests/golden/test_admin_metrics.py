"""Names, types and labels of the metrics of rollouts: dashboards and alerts are written against them."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from mlflowkit.rollout.admin import rollout_metrics
from mlflowkit.rollout.admin.snapshot import Tally, Watch
from rollout_world import World

GOLDEN = Path(__file__).parent / "admin_metrics.txt"


def test_metrics_have_the_names_and_labels_that_others_rely_on(tmp_path: Path) -> None:
    World(tmp_path).controlled().begin().run(120)
    tally = Tally()
    tally.ended["lending", "canary", "promoted"] += 1
    tally.delivered["lending", "ok"] += 1
    page = rollout_metrics.page(Watch(tmp_path).views(), tally).decode()
    lines = []
    for family in text_string_to_metric_families(page):
        labels = sorted({name for sample in family.samples for name in sample.labels})
        lines.append(f"{family.name} {family.type} {{{', '.join(labels)}}}: {family.documentation}")
    assert "\n".join(lines) + "\n" == GOLDEN.read_text()
