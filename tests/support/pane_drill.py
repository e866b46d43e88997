"""A ledger and an observer's profiles on injected clocks, and what a reader makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.reference import ColumnReference, Reference
from mlflowkit.serving.inference.answer_records import Record
from mlflowkit.serving.observer.answered_ledger import AnsweredLedger
from mlflowkit.serving.observer.live_profile import LiveProfiles
from mlflowkit.serving.observer.pane_counts import counting_plan
from mlflowkit.serving.observer.panes import PaneReading, read_panes
from mlflowkit.serving.observer.prediction_log import log_rows
from tests.support.observing import SIGNATURE, answered, record

REFERENCE = Reference(
    {
        "age": ColumnReference(Cells("number", edges=(0.0, 1.0, 10.0)), (0, 1, 1, 0, 0)),
        "income": ColumnReference(Cells("number", edges=(100.0, 200.0)), (0, 2, 0, 0)),
        "term": ColumnReference(Cells("text", values=("36 months", "60 months")), (1, 2, 0, 0, 0)),
        "output.label": ColumnReference(Cells("text", values=("bad", "good")), (1, 1, 0, 0, 0)),
        "output.score": ColumnReference(Cells("number", edges=(0.0, 0.5, 1.0)), (0, 1, 1, 0, 0)),
        "gone": ColumnReference(Cells("number", edges=(0.0, 1.0)), (0, 2, 0, 0)),
    }
)
WHYLOGS = "mlflowkit.adapters.whylogs:WhylogsProfiler"
PLAN = counting_plan(SIGNATURE, REFERENCE, ("term",))


@dataclass
class PaneDrill:
    """One service's gateway ledger and observer, without processes. ``now`` is the time, the wall clock ``clock_step``
    seconds off it."""

    folder: Path
    profiler: str = ""
    now: float = 1_000_000.0
    clock_step: float = 0.0
    seconds: float = 300.0
    days: float = 7.0
    answered: int = 0
    observers: list[LiveProfiles] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = self.folder / "services" / "lending" / "profiles"
        self.ledger = AnsweredLedger(self.folder, "r1", pane_seconds=self.seconds)
        self.restart()

    def restart(self) -> LiveProfiles:
        """Another observer; what the last one gathered and did not write is gone."""
        self.observers.append(
            LiveProfiles(
                self.folder,
                "r1",
                self.profiler,
                days=self.days,
                clock=lambda: self.now + self.clock_step,
                elapsed=lambda: self.now,
            )
        )
        return self.observers[-1]

    @property
    def live(self) -> LiveProfiles:
        return self.observers[-1]

    def answer(self, *records: Record, to: LiveProfiles | None = None) -> None:
        """Answer requests: count them, and hand their rows to the observer as one flush of the gateway would."""
        for item in records:
            self.ledger.count(item)
            self.answered += item.rows
        for batch in answered(*records):
            rows = log_rows(batch, SIGNATURE)
            header = batch.header
            if not header.pane_seconds:
                continue
            (to or self.live).add(rows, header.version, batch.request, batch.times, header.pane_seconds, PLAN)

    def ask(self, count: int, term: str = "36 months") -> None:
        """Answer ``count`` requests of one row now."""
        self.answer(*(record(f"{self.now}-{number}", [0.7], term, time=self.now) for number in range(count)))

    def read(self, version: str = "v1", since: float = 0.0, until: float = float("inf")) -> PaneReading:
        return read_panes(self.folder, version, since, until)

    def files(self, version: str = "v1") -> list[str]:
        return sorted(path.name for path in (self.folder / version).glob("*.pane"))


def totals(reading: PaneReading) -> tuple[int, int, int]:
    """Rows in panes, rows lost, rows answered."""
    windows = reading.windows
    return (
        sum(window.total.rows for window in windows),
        sum(window.lost for window in windows),
        sum(window.answered for window in windows),
    )


def numbers(values: Iterable[float], term: str | Sequence[str] = "36 months", **changes: object) -> Record:
    """A record whose first column has these values."""
    array = np.array(list(values), np.float32)
    item = record("n", np.full(len(array), 0.7), **changes)  # type: ignore[arg-type]
    item.inputs = {
        "numeric": np.column_stack([array, np.full(len(array), np.nan, np.float32)]),
        "categorical": np.array([term] * len(array) if isinstance(term, str) else term, object).reshape(-1, 1),
    }
    return item
