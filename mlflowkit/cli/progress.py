"""Progress of a run on stderr: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlflowkit.ports import RunProgress
from mlflowkit.system.text import printable_line
from mlflowkit.values import Event

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

QUIET_SECONDS = 2.0
"""Minimum interval between plain lines of one stage."""
PREFIXES = {"started": "running: ", "warning": "warning: ", "reused": "reused, ", "failed": "failed: "}


@contextmanager
def run_progress() -> Iterator[RunProgress]:
    """Yield live bars if stderr is a terminal, else plain lines."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    bars = Live()
    with bars.bars:
        yield bars


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect the output of this process and its children to stderr, so that stdout has the result only."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


class Lines:
    """One line an event without control characters; frequent events are thinned out."""

    def __init__(self) -> None:
        self._stages: list[str] = []
        self._last: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        if event.kind == "planned":
            self._stages.append(event.stage)
            return
        if event.kind == "progress" and not self._due(event):
            return
        step = f"[{self._stages.index(event.stage) + 1}/{len(self._stages)}] " if event.stage in self._stages else ""
        sys.stderr.write(f"{step}{event.stage:<9} {describe(event)}\n")
        sys.stderr.flush()

    def _due(self, event: Event) -> bool:
        now = time.monotonic()
        if event.fraction is not None and now - self._last.get(event.stage, -QUIET_SECONDS) < QUIET_SECONDS:
            return False
        self._last[event.stage] = now
        return True


class Live:
    """A bar for each stage, redrawn in place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.table import Column

        self.bars: Bars = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.fields[stage]}", table_column=Column(min_width=8, no_wrap=True)),
            BarColumn(bar_width=12),
            TimeElapsedColumn(table_column=Column(min_width=7, no_wrap=True)),
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            console=Console(stderr=True),
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        if event.kind == "planned":
            self._tasks[event.stage] = self.bars.add_task("", start=False, total=1.0, stage=event.stage)
            return
        task = self._tasks.get(event.stage)
        if task is None or event.kind == "warning":
            self.bars.console.print(describe(event), markup=False)
            return
        if event.kind in ("started", "reused"):
            self.bars.start_task(task)
        ended = event.kind in ("done", "reused")
        completed = 1.0 if ended else event.fraction
        self.bars.update(task, completed=completed, description=describe(event), refresh=event.kind != "progress")


def describe(event: Event) -> str:
    """Format an event.

    >>> describe(Event("train", "done", seconds=3.21, metrics={"val_loss": 0.5}))
    'done in 3.2 s  val_loss 0.5'
    """
    text = f"done in {event.seconds:.1f} s" if event.kind == "done" else PREFIXES.get(event.kind, "") + event.message
    if event.kind == "progress" and event.fraction is not None:
        text = f"{text} ({event.fraction:.0%})"
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in list(event.metrics.items())[:4])
    return printable_line(f"{text}  {metrics}" if metrics and event.kind != "reused" else text)
