"""Profiles of live traffic: one a version and WINDOW_SECONDS, mergeable with every other and with the reference.

::

    <service>/profiles/<version>/<beginning of the window, seconds since the epoch>.<replica>.profile

Rows are gathered and profiled many at a time, because a profiler's cost is by call and column more than by row. The
columns are those of the reference profile, by name, and what was answered: ``output.label``, ``output.prediction``,
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

from mlflowkit.errors import StoreError, UsageError
from mlflowkit.system.files import replace_file

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
    waiting: list[pa.Table] = field(default_factory=list)
    rows: int = 0
    since: float = 0.0
    profile: bytes = b""


class LiveProfiles:
    """Writes one replica's profiles. Used by one thread; the profiler is imported when the first rows are profiled.

    ``profiler`` is the ``module:class`` of a MergingProfiler.
    """

    def __init__(self, folder: Path, replica: str, profiler: str, *, days: float) -> None:
        self.folder = folder
        self.days = days
        self.profiled = self.dropped = 0
        self._replica = replica
        self._named = profiler
        self._profiler: MergingProfiler | None = None
        self._windows: dict[tuple[str, int], _Window] = {}
        self._complaint = ""

    def add(self, rows: pa.Table, version: str, when: float) -> None:
        """Take rows of the prediction log (with or without it) that ``version`` answered at about ``when``."""
        window = self._windows.setdefault((version, int(when // WINDOW_SECONDS)), _Window())
        if not window.waiting:
            window.since = time.monotonic()
        window.waiting.append(rows)
        window.rows += rows.num_rows
        if window.rows >= GATHER_ROWS:
            self._fold(version, int(when // WINDOW_SECONDS), window)

    def tick(self) -> None:
        """Profile what has waited long enough; forget windows that are over, remove files that are too old."""
        self._do(time.monotonic() - GATHER_SECONDS)

    def close(self) -> None:
        """Profile what is left."""
        self._do(float("inf"))

    def _do(self, before: float) -> None:
        present = int(time.time() // WINDOW_SECONDS)
        for (version, number), window in list(self._windows.items()):
            if window.waiting and window.since <= before:
                self._fold(version, number, window)
            elif not window.waiting and number < present - 1:
                del self._windows[version, number]
                self._sweep(version)

    def _fold(self, version: str, number: int, window: _Window) -> None:
        """Profile the rows that wait and write the window's profile; what cannot be profiled or kept is counted."""
        rows, window.rows = window.rows, 0
        tables, window.waiting = window.waiting, []
        try:
            found = self._load().profile(_frame(tables))
            window.profile = self._load().merge([window.profile, found]) if window.profile else found
            path = self.folder / version / f"{number * WINDOW_SECONDS}.{self._replica}{SUFFIX}"
            replace_file(path, window.profile, durable=False)
        except Exception as error:  # noqa: BLE001 - whatever a profiler raises must not end the observer: counted, told
            self.dropped += rows
            if str(error) != self._complaint:
                _log.error("live profile of version %s: %r", version, error)
            self._complaint = str(error)
            if not isinstance(error, StoreError):
                window.profile = b""
        else:
            self.profiled += rows

    def _load(self) -> MergingProfiler:
        if self._profiler is None:
            module, separator, name = self._named.partition(":")
            if not separator:
                raise UsageError(f"{self._named!r} names no profiler", hint="module:class")
            self._profiler = getattr(importlib.import_module(module), name)()
        return self._profiler

    def _sweep(self, version: str) -> None:
        oldest = time.time() - self.days * 86_400
        for path in (self.folder / version).glob(f"*{SUFFIX}"):
            if int(path.name.partition(".")[0]) < oldest:
                path.unlink(missing_ok=True)


def _frame(tables: list[pa.Table]) -> pd.DataFrame:
    """Logged rows as the profiler takes them: inputs under their own names, a missing text as None."""
    import pyarrow.compute as compute

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


def profiles(folder: Path, version: str, since: float, until: float) -> Mapping[int, list[bytes]]:
    """Profiles of a version by the beginning of their window, those of all replicas, of windows within [since, until).

    A Profiler's ``merge`` makes one of several.
    """
    found: dict[int, list[bytes]] = {}
    for path in sorted((folder / version).glob(f"*{SUFFIX}")):
        begin = int(path.name.partition(".")[0])
        if since <= begin < until:
            found.setdefault(begin, []).append(path.read_bytes())
    return found
