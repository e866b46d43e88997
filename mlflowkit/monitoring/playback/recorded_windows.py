"""The windows that a service's folder holds: its panes, grouped into the windows of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlflowkit.errors import UsageError
from mlflowkit.judging.shift.counts import WindowCounts
from mlflowkit.judging.shift.reference import Reference
from mlflowkit.monitoring.monitor_settings import MonitorSection
from mlflowkit.monitoring.monitor_windows import collect, window_start
from mlflowkit.monitoring.retrain.attempt_work import read_reference
from mlflowkit.service_state import version_history
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.values import Variant

MAX_WINDOWS = 20_000
"""Windows of a replay; a shorter window than the panes were made for would give more, mostly empty ones."""


def recorded_versions(files: ServiceFiles) -> tuple[Variant, ...]:
    """The versions that the service's records name and that have profiles, in the order in which they were champion."""
    profiles = files.folder / "profiles"
    kept = {path.name for path in profiles.iterdir() if path.is_dir()} if profiles.is_dir() else set()
    table = files.table()
    variants = [record.variant for record in version_history.champions(files)]
    variants += [] if table is None else [table.champion]
    unique = {variant.version: variant for variant in variants}
    return tuple(variant for version, variant in unique.items() if version in kept)


def recorded_windows(files: ServiceFiles, version: str, section: MonitorSection) -> Sequence[WindowCounts]:
    """All windows of a version from its first pane to its last, also the empty ones between them.

    Raises UsageError for a window that is shorter than the panes, or that gives more than MAX_WINDOWS.
    """
    from mlflowkit.serving.observer.panes import read_windows

    panes = read_windows(files.folder / "profiles", version)
    if not panes:
        return ()
    length, longest = section.window_seconds, max(pane.seconds for pane in panes)
    if length < longest:
        raise UsageError(
            f"a window of {length:g} s is shorter than the counts in {files.folder}, which are of {longest:g} s",
            hint=f"monitor.window={longest:g}s, or longer",
        )
    groups: dict[float, list[WindowCounts]] = {}
    for pane in panes:
        groups.setdefault(window_start(pane.start, length), []).append(pane)
    number = round((max(groups) - min(groups)) / length) + 1
    if number > MAX_WINDOWS:
        raise UsageError(f"{number:,} windows of {length:g} s are too many", hint="monitor.window=1h, or longer")
    starts = [min(groups) + index * length for index in range(number)]
    return tuple(collect(version, start, length, groups.get(start, ())) for start in starts)


def reference_of(variant: Variant) -> Reference | None:
    """The monitoring reference of a version's bundle; None where the bundle is not here, or has none."""
    return read_reference(Path(variant.bundle))
