"""Profiles of live traffic: one per version and WINDOW_SECONDS, mergeable with each other and with the reference.

::

    <service>/profiles/<version>/<start of the window, seconds since the epoch>.<replica>.profile

Rows are gathered and profiled in bulk, because a profiler's cost is per call and column more than per row. The columns
are those of the reference profile and the answers: ``output.label``, ``output.prediction``,
``output.probability.<class>``.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as compute

from mlflowkit.errors import StoreError, UsageError
from mlflowkit.system.files import replace_file
from mlflowkit.system.log_once import LogOnce

if TYPE_CHECKING:
    import pandas as pd

    from mlflowkit.ports import MergingProfiler

WINDOW_SECONDS = 300
GATHER_ROWS = 20_000
GATHER_SECONDS = 10.0
SUFFIX = ".profile"
_log = logging.getLogger("mlflowkit.observer")


@dataclass(slots=True)
class _Window:
    pending: list[pa.Table] = field(default_factory=list)
    rows: int = 0
    since: float = 0.0
    profile: bytes = b""


class LiveProfiles:
    """Writes one replica's profiles. Used by one thread; the profiler is imported when the first rows are profiled.

    ``profiler`` is the ``module:class`` of a MergingProfiler; profiles older than ``days`` are removed.
    """

    def __init__(self, folder: Path, replica: str, profiler: str, *, days: float) -> None:
        self.folder = folder
        self.days = days
        self.profiled = self.dropped = 0
        self._replica = replica
        self._profiler_name = profiler
        self._profiler: MergingProfiler | None = None
        self._windows: dict[tuple[str, int], _Window] = {}
        self._errors = LogOnce(_log)

    def add(self, rows: pa.Table, version: str, time_answered: float) -> None:
        """Add rows in the prediction log's format that ``version`` answered at about ``time_answered``."""
        number = int(time_answered // WINDOW_SECONDS)
        window = self._windows.setdefault((version, number), _Window())
        if not window.pending:
            window.since = time.monotonic()
        window.pending.append(rows)
        window.rows += rows.num_rows
        if window.rows >= GATHER_ROWS:
            self._update_profile(version, number, window)

    def tick(self) -> None:
        """Profile rows that have waited GATHER_SECONDS, forget finished windows and remove old files."""
        self._flush(time.monotonic() - GATHER_SECONDS)

    def close(self) -> None:
        self._flush(float("inf"))

    def _flush(self, before: float) -> None:
        current = int(time.time() // WINDOW_SECONDS)
        for (version, number), window in list(self._windows.items()):
            if window.pending and window.since <= before:
                self._update_profile(version, number, window)
            elif not window.pending and number < current - 1:
                del self._windows[version, number]
                self._remove_old_files(version)

    def _update_profile(self, version: str, number: int, window: _Window) -> None:
        """Merge pending rows into the window's profile and write it; rows that fail are counted as dropped."""
        rows, window.rows = window.rows, 0
        tables, window.pending = window.pending, []
        try:
            profiler = self._load_profiler()
            profile = profiler.profile(_to_frame(tables))
            window.profile = profiler.merge([window.profile, profile]) if window.profile else profile
            path = self.folder / version / f"{number * WINDOW_SECONDS}.{self._replica}{SUFFIX}"
            replace_file(path, window.profile, durable=False)
        except Exception as error:  # noqa: BLE001 - a profiler may raise anything, and must not end the observer
            self.dropped += rows
            self._errors.error(f"live profile of version {version}: {error!r}", key=version)
            if not isinstance(error, StoreError):
                window.profile = b""
        else:
            self.profiled += rows

    def _load_profiler(self) -> MergingProfiler:
        if self._profiler is None:
            module, separator, name = self._profiler_name.partition(":")
            if not separator:
                raise UsageError(f"{self._profiler_name!r} names no profiler", hint="module:class")
            self._profiler = getattr(importlib.import_module(module), name)()
        return self._profiler

    def _remove_old_files(self, version: str) -> None:
        oldest = time.time() - self.days * 86_400
        folder = self.folder / version
        for path in () if folder.is_symlink() or self.folder.is_symlink() else folder.glob(f"*{SUFFIX}"):
            if int(path.name.partition(".")[0]) < oldest:
                path.unlink(missing_ok=True)


def _to_frame(tables: list[pa.Table]) -> pd.DataFrame:
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


def read_profiles(folder: Path, version: str, since: float, until: float) -> Mapping[int, list[bytes]]:
    """Read the profiles of a version, by the start of their window, one per replica, for windows in [since, until)."""
    profiles: dict[int, list[bytes]] = {}
    for path in sorted((folder / version).glob(f"*{SUFFIX}")):
        start = int(path.name.partition(".")[0])
        if since <= start < until:
            profiles.setdefault(start, []).append(path.read_bytes())
    return profiles
