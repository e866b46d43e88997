"""A service that is monitored: the monitor's record, the reference in its bundle, and the profiles of its windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.counts import Counts, ProfileCounts, WindowCounts
from mlflowkit.judging.shift.reference import EVIDENCE, ColumnReference, Reference
from mlflowkit.monitoring.monitor_view import VIEW
from mlflowkit.service_state.records import write_json
from mlflowkit.serving.observer.panes import Pane, PaneRange, write_pane
from mlflowkit.values import Json, Variant
from tests.support.rollout_world import RolloutWorld

EXAMPLE = Path(__file__).parents[1] / "data" / "monitor_view.json"
CELLS = {
    "int_rate": Cells("number", edges=(5.5, 9.0, 12.5, 14.1, 28.0)),
    "emp_length": Cells("text", values=("car", "house"), others=("boat",)),
}
REFERENCE: dict[str, Counts] = {"int_rate": (0, 2500, 2500, 2500, 2500, 0, 0), "emp_length": (6000, 3000, 1000, 0, 0)}
LIVE: dict[str, Counts] = {"int_rate": (0, 200, 300, 400, 1010, 90, 0), "emp_length": (900, 800, 100, 200, 0)}


def example() -> dict[str, Any]:
    """The record of a service that drifts, as the monitor writes it."""
    value: dict[str, Any] = json.loads(EXAMPLE.read_text())
    return value


def monitor(state: Path, service: str = "lending", view: Json | None = None) -> RolloutWorld:
    """A service of a state folder, with its record, and LIVE rows in its last window against REFERENCE."""
    value = example() if view is None else view
    value = {**value, "service": service}
    bundle = state / "bundles" / service
    world = RolloutWorld(state, service, champion=Variant("champion", value["version"], "a" * 64, str(bundle)))
    columns = {name: ColumnReference(CELLS[name], counts, importance=0.4) for name, counts in REFERENCE.items()}
    write_json(bundle / EVIDENCE, Reference(columns).to_json())
    world.files.write_json(VIEW, value)
    if value.get("windows"):
        last = value["windows"][-1]
        rows = ProfileCounts(requests=2000, rows=2000, squares=2000, columns=LIVE)
        counts = WindowCounts(value["version"], last["start"], last["seconds"], rows)
        pane = Pane(service, counts, (PaneRange("test-writer", 0, 0),))
        write_pane(world.files.folder / "profiles" / value["version"], pane, durable=False)
    return world
