"""A monitored service without gateways: counts of live rows are drawn, and a monitor judges them by a clock of ours."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.counts import ProfileCounts, WindowCounts
from mlflowkit.judging.shift.reference import EVIDENCE, ColumnReference, Reference
from mlflowkit.monitoring.monitor_loop import MonitorDeps, MonitorLoop
from mlflowkit.monitoring.monitor_settings import MonitorSection, MonitorSettings, RetrainSection, write_settings
from mlflowkit.monitoring.monitor_view import MonitorView, read_view
from mlflowkit.service_state import controller_lease
from mlflowkit.service_state.records import Desired, GatewaySettings, ServiceFiles
from mlflowkit.values import RoutingTable, Variant

START = 1_764_000_000.0
LENGTH = 60.0
CELLS = 10


def reference(columns: Sequence[str] = ("age", "pay"), *, outputs: bool = True) -> Reference:
    """Numbers in ten equal cells, a text column, and the score: what a bundle carries."""
    numbers = Cells("number", edges=tuple(float(edge) for edge in range(CELLS + 1)))
    even = (0, *(500,) * CELLS, 0, 0)
    importance = {name: 0.5 / 2**index for index, name in enumerate(columns)}
    items = {name: ColumnReference(numbers, even, importance=importance[name]) for name in columns}
    texts = Cells("text", values=("red", "green", "blue"))
    items["colour"] = ColumnReference(texts, (3000, 1500, 500, 0, 0, 0), importance=0.01)
    if outputs:
        items["output.score"] = ColumnReference(numbers, even)
    return Reference(items)


@dataclass
class Traffic:
    """Draws the counts of windows: ``shifts`` moves rows of a column's lowest cells to its highest ones."""

    reference: Reference
    rows: int = 2000
    seed: int = 7
    shifts: dict[str, float] = field(default_factory=dict)
    missing: dict[str, float] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def window(self, start: float, seconds: float = LENGTH, version: str = "v1") -> WindowCounts:
        columns = {}
        for name, column in self.reference.columns.items():
            weights = np.array(column.counts, dtype=float)
            weights /= weights.sum()
            moved = self.shifts.get(name, 0.0)
            if moved and column.cells.kind == "number":
                low, high = slice(1, 1 + CELLS // 2), slice(1 + CELLS // 2, 1 + CELLS)
                weights[low] -= moved / (CELLS // 2)
                weights[high] += moved / (CELLS // 2)
            gone = self.missing.get(name, 0.0)
            weights = np.append(weights[:-1] * (1 - gone), gone)
            columns[name] = tuple(int(count) for count in self._random.multinomial(self.rows, weights))
        total = ProfileCounts(self.rows, self.rows, self.rows, columns if self.rows else {})
        return WindowCounts(version, start, seconds, total, {}, self.rows, dict(self.refused))


@dataclass
class MonitorWorld:
    """A service ``loans`` in a state folder; ``panes`` are what its observers wrote."""

    state: Path
    section: MonitorSection = field(default_factory=lambda: MonitorSection(window="60s", grace="10s"))
    retrain: RetrainSection | None = None
    model_reference: Reference = field(default_factory=reference)
    version: str = "v1"
    panes: list[WindowCounts] = field(default_factory=list)
    now: float = START

    def __post_init__(self) -> None:
        self.files = ServiceFiles(self.state / "services" / "loans")
        self.traffic = Traffic(self.model_reference)
        self.files.write_desired(Desired(1, True, GatewaySettings("loans")))
        self.deploy(self.version)
        self.configure()
        lease = controller_lease.acquire(self.state)
        assert lease is not None
        self.lease = lease
        self.loop = self.restarted()

    def deploy(self, version: str) -> None:
        bundle = self.state / "objects" / version / "bundle"
        (bundle / EVIDENCE).parent.mkdir(parents=True, exist_ok=True)
        (bundle / EVIDENCE).write_text(json.dumps(self.model_reference.to_json()))
        table, epoch = self.files.table(), 1
        if table is not None:
            epoch = table.epoch + 1
        variant = Variant("champion", version, f"digest-{version}", str(bundle))
        self.files.write_table(RoutingTable("loans", epoch, (variant,)))
        self.version = version

    def configure(self, section: MonitorSection | None = None) -> None:
        self.section = section or self.section
        write_settings(self.files, MonitorSettings(self.section, self.retrain, "/recipe.yaml", (), "loans"))

    def restarted(self, **deps: object) -> MonitorLoop:
        """A monitor that knows only what is on disk."""

        def read(version: str, since: float, until: float) -> list[WindowCounts]:
            return [pane for pane in self.panes if pane.version == version and since <= pane.start < until]

        values = MonitorDeps(lambda files: read, clock=lambda: self.now, **deps)  # type: ignore[arg-type]
        self.loop = MonitorLoop(self.files, self.lease, values)
        return self.loop

    def pass_window(self, *, data: bool = True, tick: bool = True) -> None:
        """One window of traffic, and the monitor's look at it once it is closed."""
        if data:
            self.panes.append(self.traffic.window(self.now, self.section.window_seconds, self.version))
        self.now += self.section.window_seconds
        if tick:
            later, self.now = self.now, self.now + self.section.grace_seconds
            self.loop.tick()
            self.now = later

    def pass_windows(self, number: int, *, data: bool = True) -> list[str]:
        """Several windows; returns the monitor's word after each."""
        words = []
        for _ in range(number):
            self.pass_window(data=data)
            words.append(self.view.state)
        return words

    @property
    def view(self) -> MonitorView:
        view = read_view(self.files)
        assert view is not None
        return view

    @property
    def events(self) -> list[dict[str, object]]:
        """The events that were queued for webhooks, oldest first."""
        entries = [self.files.read_json(entry.key) for entry in self.files.list("webhooks/*.json")]
        return [json.loads(entry["body"]) for entry in sorted(entries, key=lambda entry: (entry["due"], entry["id"]))]


def with_refusals(window: WindowCounts, refused: dict[str, int]) -> WindowCounts:
    """A window in which requests were refused."""
    return replace(window, refused=refused)


def run_thread(loop: MonitorLoop) -> tuple[threading.Thread, threading.Event]:
    """The monitor in a thread, as the controller runs it."""
    ending = threading.Event()
    thread = threading.Thread(target=loop.run, args=(ending, threading.Event()), daemon=True)
    thread.start()
    return thread, ending
