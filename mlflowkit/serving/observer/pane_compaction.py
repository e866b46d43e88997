"""Merges panes of finished windows, and removes old ones.

A window's own panes are merged once it is over. Panes that are older than the log are merged to hours, and later to
days, over all writers, without the profiler's bytes: counts add up exactly, only the place of a row within the hour is
lost. All of it may be killed at any point and repeated: the merged file is on the disk before its sources are removed,
and holds their numbers, so that a reader counts each number once whatever is left over.

Several observers share the folder: one at a time merges, under a lock.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mlflowkit.serving.observer.answered_ledger import last_window_end, ledger_files
from mlflowkit.serving.observer.panes import (
    MAX_SECONDS,
    OLD_SUFFIX,
    SUFFIX,
    Pane,
    PaneName,
    choose_panes,
    list_panes,
    load_pane,
    merge_panes,
    parse_name,
    write_pane,
)
from mlflowkit.system import failpoint
from mlflowkit.system.files import make_folder, private_opener
from mlflowkit.system.log_once import LogOnce

HOUR, DAY = 3600, MAX_SECONDS
DAY_AFTER_DAYS = 35.0
"""Age at which hours are merged to days: five weeks, so that hours of the last weeks can be told apart."""
TIDY_SECONDS = 60.0
MAX_GROUPS = 16
"""Groups that one tidying merges, so that rows do not wait long for it."""
TEMPORARY_SECONDS = 3600.0
"""Age at which a hidden file is one of a dead writer."""
LOCK = ".merging"
_errors = LogOnce(logging.getLogger("mlflowkit.observer"))
MergeProfiles = Callable[[Sequence[bytes]], bytes]


class PaneFolder:
    """The folder of a service's panes, of all versions and writers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tidied = float("-inf")
        self._began: tuple[float, float] | None = None

    def merge(
        self, version: str, names: Sequence[str], start: float, seconds: float, merge_profiles: MergeProfiles | None
    ) -> None:
        """Merge panes of a version into one of the window [start, start + seconds), and remove them.

        Panes that cannot be read stay. Does nothing while another process merges. Raises StoreError or OSError where
        the disk refuses the merged pane; nothing is removed then. A profiler that fails costs its bytes only.
        """
        home = self._folder / version
        with self._lock() as locked:
            if not locked:
                return
            panes = {name: pane for name in names if (pane := _load(home, name)) is not None}
            chosen, conflicting = choose_panes(panes)
            windows = {(pane.counts.start, pane.counts.seconds) for pane in panes.values()}
            if not panes or (len(panes) == 1 and windows == {(start, seconds)}):
                return
            merged = merge_panes([panes[name] for name in chosen], start, seconds)
            if merge_profiles is not None:
                merged = _with_profiles(merged, [panes[name] for name in chosen], merge_profiles)
            failpoint.hit("pane.merging")
            target = write_pane(home, merged, durable=True)
            failpoint.hit("pane.merged")
            for name in set(panes) - set(conflicting) - {target.name}:
                (home / name).unlink(missing_ok=True)
                failpoint.hit("pane.removed")

    def tidy(self, now: float, elapsed: float, days: float, count_days: float) -> None:
        """Merge panes older than ``days`` to hours and days, and remove files older than ``count_days``.

        At most once in TIDY_SECONDS of ``elapsed``; ``now`` is in seconds since the epoch. Links are not followed. A
        clock that is set forward makes no file older: time passes as ``elapsed`` does from the first call on.
        """
        if elapsed - self._tidied < TIDY_SECONDS or self._folder.is_symlink():
            return
        self._tidied = elapsed
        self._began = self._began or (now, elapsed)
        now = min(now, self._began[0] + elapsed - self._began[1])
        groups = 0
        for home in self._versions():
            self._sweep(home, now, days, count_days)
            for start, seconds, names in merge_groups(list_panes(home), now, days):
                if groups >= MAX_GROUPS:
                    self._tidied = float("-inf")  # the rest is next
                    return
                groups += 1
                self.merge(home.name, names, start, seconds, None)
        for path in ledger_files(self._folder):
            # a day's pane may hold windows of a ledger: it goes a day later than they do
            newest = max(last_window_end(path), path.stat().st_mtime)
            if newest < now - (count_days + 1) * DAY:
                path.unlink(missing_ok=True)

    def _versions(self) -> list[Path]:
        """The folders of versions, of those that do not run any more, too."""
        try:
            with os.scandir(self._folder) as entries:
                return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _sweep(self, home: Path, now: float, days: float, count_days: float) -> None:
        """Remove panes whose counts are too old, profiles of earlier releases, and temporary files of dead writers."""
        with os.scandir(home) as entries:
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        for name in names:
            pane = parse_name(name)
            start = name.partition(".")[0]
            if pane is not None:
                old = pane.end < now - count_days * DAY
            elif name.endswith(OLD_SUFFIX) and start.isdigit():
                old = int(start) < now - days * DAY
            elif name.startswith(".") and SUFFIX in name:
                old = (home / name).stat().st_mtime < now - TEMPORARY_SECONDS
            else:
                continue
            if old:
                (home / name).unlink(missing_ok=True)
        if not names:
            home.rmdir()

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        """Hold the lock of the folder; False when another process does."""
        make_folder(self._folder)
        with open(self._folder / LOCK, "wb", opener=private_opener) as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


def merge_groups(panes: Sequence[PaneName], now: float, days: float) -> list[tuple[float, float, list[str]]]:
    """The panes to be merged: (start, seconds, names) of each hour or day that is old enough and not one pane yet.

    >>> hour = [PaneName(7200 + 300 * number, 300, f"p{number}") for number in range(3)]
    >>> merge_groups(hour, now=7200 + 3600 + 86400, days=1.0)
    [(7200, 3600, ['p0', 'p1', 'p2'])]
    >>> merge_groups(hour, now=7200 + 3600 + 86399, days=1.0)
    []
    """
    groups: dict[tuple[float, float], list[PaneName]] = {}
    for pane in panes:
        for seconds, age in ((DAY, max(days, DAY_AFTER_DAYS)), (HOUR, days)):
            start = pane.start // seconds * seconds
            if pane.end <= start + seconds <= now - age * DAY:
                groups.setdefault((start, seconds), []).append(pane)
                break
    return [
        (*window, [pane.name for pane in group])
        for window, group in sorted(groups.items())
        if len(group) > 1 or group[0].seconds < window[1]
    ]


def _load(home: Path, name: str) -> Pane | None:
    try:
        return load_pane(home, name)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def _with_profiles(merged: Pane, panes: Sequence[Pane], merge_profiles: MergeProfiles) -> Pane:
    """A merged pane with the merged profiles of its parts; where the profiler fails, without, which is logged."""
    profiles = [pane.profile for pane in panes if pane.profile]
    if not profiles:
        return merged
    try:
        return replace(merged, profile=merge_profiles(profiles), profiled=sum(pane.profiled for pane in panes))
    except Exception as error:  # noqa: BLE001 - a profiler may raise anything; counts are worth more
        _errors.error(f"profiles of {len(profiles)} panes are not merged: {error!r}; their rows stay counted by cells")
        return merged
