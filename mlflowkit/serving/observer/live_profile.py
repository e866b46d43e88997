"""Counts and profiles answered rows by version and window, and writes them as panes (see `panes`).

Rows are gathered for GATHER_SECONDS and counted in bulk, because counting costs per call and column more than per row;
each gathering is a pane, so that no more than those rows are at risk when the observer is killed. Once a window is
over, its panes are merged into one. A row is in the window of its own time, which the gateway took when it counted the
row as answered, whatever the clocks do meanwhile. The profiler is a guest: where it fails, the counts are written
without its bytes. The columns that it is given are the inputs and the answers: ``output.label``, ``output.prediction``,
``output.probability.<class>``.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute

from mlflowkit.errors import StoreError, UsageError
from mlflowkit.judging.shift.counts import ProfileCounts, WindowCounts
from mlflowkit.serving.observer.pane_compaction import PaneFolder
from mlflowkit.serving.observer.pane_counts import CountedRows, CountingPlan, count_rows
from mlflowkit.serving.observer.panes import Pane, PaneRange, write_pane
from mlflowkit.system import failpoint
from mlflowkit.system.log_once import LogOnce

if TYPE_CHECKING:
    import pandas as pd

    from mlflowkit.ports import MergingProfiler

GATHER_ROWS = 20_000
GATHER_SECONDS = 10.0
"""Longest time that rows wait to be written; a fifth of a window where that is shorter."""
CLOSE_SECONDS = 30.0
"""Time after the end of a window, or a window where that is shorter, until its panes are merged."""
MAX_PROFILE_BYTES = 16 << 20
"""A profile that is larger is not written."""
NO_PLAN = CountingPlan()
_log = logging.getLogger("mlflowkit.observer")
_Key = tuple[str, float, float]
"""Version, start and seconds of a window."""


@dataclass(slots=True)
class _Gathered:
    """Rows that wait to be counted, all of one window; ``requests`` numbers the requests over all tables."""

    since: float
    tables: list[pa.Table] = field(default_factory=list)
    request: list[np.ndarray] = field(default_factory=list)
    rows: int = 0
    requests: int = 0


class LiveProfiles:
    """Writes one observer's panes. Used by one thread; the profiler is imported when the first rows are profiled.

    ``profiler`` is the ``module:class`` of a MergingProfiler, "" for none. ``days`` is how long its bytes are kept,
    ``count_days`` how long the counts are. ``clock`` is the wall clock, ``elapsed`` a monotonic one.
    """

    def __init__(
        self,
        folder: Path,
        replica: str,
        profiler: str,
        *,
        days: float,
        count_days: float = 62.0,
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self.writer = f"{replica}-{time.time_ns() // 1_000_000:x}{os.urandom(2).hex()}"
        self.days, self.count_days = days, count_days
        self.profiled = self.dropped = 0
        self._folder = folder
        self._profiler_name = profiler
        self._profiler: MergingProfiler | None = None
        self._clock, self._elapsed = clock, elapsed
        self._gathered: dict[_Key, _Gathered] = {}
        self._written: dict[_Key, list[str]] = {}
        self._sequence = 0
        self._panes = PaneFolder(folder)
        self._plans: dict[str, CountingPlan] = {}
        self._errors = LogOnce(_log)

    def add(
        self,
        rows: pa.Table,
        version: str,
        request: np.ndarray,
        times: np.ndarray,
        seconds: float,
        plan: CountingPlan = NO_PLAN,
    ) -> None:
        """Add rows in the prediction log's format that ``version`` answered.

        ``request`` is the index of each row's request, ``times`` has each request's time, and ``seconds`` is the length
        of the windows in which the gateway counted them.
        """
        self._plans[version] = plan
        starts = times // seconds * seconds  # as `answered_ledger.window_start`
        for start in np.unique(starts):
            inside = starts == start
            if inside.all():
                self._gather((version, float(start), seconds), rows, request)
            else:
                mask = inside[request]
                self._gather((version, float(start), seconds), rows.filter(pa.array(mask)), request[mask])

    def tick(self) -> None:
        """Write rows that have waited long enough, merge the panes of finished windows, remove old files."""
        self._flush(lambda key, waited: waited >= min(GATHER_SECONDS, key[2] / 5))
        now = self._clock()
        for key in [key for key in self._written if key[1] + key[2] + min(CLOSE_SECONDS, key[2]) <= now]:
            if key not in self._gathered:
                self._close_window(key)
        self._attempt(lambda: self._panes.tidy(now, self._elapsed(), self.days, self.count_days), "old profiles")

    def close(self) -> None:
        """Write what waits. A profiler that is not imported yet is left out: its import takes longer than is left."""
        if self._profiler is None:
            self._profiler_name = ""
        self._flush(lambda key, waited: True)

    def _gather(self, key: _Key, rows: pa.Table, request: np.ndarray) -> None:
        gathered = self._gathered.get(key)
        if gathered is None:
            gathered = self._gathered[key] = _Gathered(self._elapsed())
        gathered.tables.append(rows)
        gathered.request.append(request + gathered.requests)
        gathered.rows += rows.num_rows
        gathered.requests += int(request.max(initial=-1)) + 1
        if gathered.rows >= GATHER_ROWS:
            self._write(key, self._gathered.pop(key))

    def _flush(self, due: Callable[[_Key, float], bool]) -> None:
        now = self._elapsed()
        for key, gathered in list(self._gathered.items()):
            if due(key, now - gathered.since):
                del self._gathered[key]
                self._write(key, gathered)

    def _write(self, key: _Key, gathered: _Gathered) -> None:
        """Count rows and write them as a pane; rows that the disk refuses are counted as dropped."""
        version, start, seconds = key
        self._sequence += 1
        table = pa.concat_tables(gathered.tables, promote_options="default")
        counted = self._count(version, table, np.concatenate(gathered.request))
        profile = self._profile(version, gathered.tables)
        counts = WindowCounts(version, start, seconds, counted.total, counted.segments)
        ranges = (PaneRange(self.writer, self._sequence, self._sequence),)
        pane = Pane(self._folder.parent.name, counts, ranges, profile, gathered.rows if profile else 0)
        failpoint.hit("pane.counted")
        try:
            path = write_pane(self._folder / version, pane, durable=False)
        except StoreError as error:
            self.dropped += gathered.rows
            reason = getattr(error.__cause__, "strerror", None) or error.message
            home = self._folder / version
            self._errors.error(f"profiles cannot be written under {home}, rows are lost: {reason}", key=version)
            return
        failpoint.hit("pane.written")
        self._errors.clear(version)
        self.profiled += gathered.rows
        self._written.setdefault(key, []).append(path.name)

    def _count(self, version: str, table: pa.Table, request: np.ndarray) -> CountedRows:
        """Count rows; what cannot be counted by column is counted as rows and requests."""
        plan = self._plans.get(version, NO_PLAN)
        try:
            counted = count_rows(plan, table, request)
        except Exception as error:  # noqa: BLE001 - a column may hold anything, and must not cost the rows
            self._errors.error(f"columns of version {version} are not counted: {error!r}", key=f"{version} counts")
            sizes = np.bincount(request).astype(np.int64)
            squares = int(np.square(sizes).sum())
            return CountedRows(ProfileCounts(int(np.count_nonzero(sizes)), table.num_rows, squares))
        for column, problem in counted.problems.items():
            self._errors.error(
                f"column {column} of version {version} is not counted: {problem}", key=f"{version} {column}"
            )
        return counted

    def _profile(self, version: str, tables: Sequence[pa.Table]) -> bytes:
        """The profiler's bytes of the rows; empty where it fails, or there is none."""
        if not self._profiler_name:
            return b""
        try:
            profile = self._load_profiler().profile(_to_frame(tables))
        except Exception as error:  # noqa: BLE001 - a profiler may raise anything, and must not cost the counts
            message = f"live profile of version {version}: {error!r}; its rows are counted by cells only"
            self._errors.error(message, key=f"{version} profiler")
            return b""
        if len(profile) > MAX_PROFILE_BYTES:
            message = (
                f"live profile of version {version}: {len(profile):,} bytes, at most {MAX_PROFILE_BYTES:,} are kept"
            )
            self._errors.error(f"{message}; its rows are counted by cells only", key=f"{version} profiler")
            return b""
        self._errors.clear(f"{version} profiler")
        return profile

    def _close_window(self, key: _Key) -> None:
        """Merge the panes that were written of a window into one; where that fails, they stay as they are."""
        names = self._written.pop(key)
        version, start, seconds = key
        if len(names) > 1:
            merge = self._merge_profiles if self._profiler_name else None
            self._attempt(lambda: self._panes.merge(version, names, start, seconds, merge), f"panes of {version}")

    def _merge_profiles(self, profiles: Sequence[bytes]) -> bytes:
        return self._load_profiler().merge(profiles)

    def _attempt(self, work: Callable[[], object], subject: str) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - what cannot be tidied up stays, and is read all the same
            self._errors.error(f"{subject}: {error!r}", key=subject)
        else:
            self._errors.clear(subject)

    def _load_profiler(self) -> MergingProfiler:
        if self._profiler is None:
            module, separator, name = self._profiler_name.partition(":")
            if not separator:
                raise UsageError(f"{self._profiler_name!r} names no profiler", hint="module:class")
            self._profiler = getattr(importlib.import_module(module), name)()
        return self._profiler


def _to_frame(tables: Sequence[pa.Table]) -> pd.DataFrame:
    """Convert logged rows to the profiler's columns: inputs under their own names, a missing text as None."""
    table = pa.concat_tables(tables, promote_options="default")
    columns: dict[str, pa.ChunkedArray] = {}
    for name in table.column_names:
        kind, _, column = name.partition(".")
        if kind == "input":
            values = table[name]
            if pa.types.is_string(values.type):
                values = compute.if_else(compute.equal(values, ""), None, values)
            columns[column] = values
        elif kind in ("label", "prediction", "probability"):
            columns[f"output.{name}"] = table[name]
    frame: pd.DataFrame = pa.table(columns).to_pandas()
    return frame
