"""What the admin server calls for the monitor's page of a service: reads its records and draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mlflowkit.errors import ServiceError
from mlflowkit.monitoring.monitor_view import MonitorView, read_view
from mlflowkit.report.monitor import live_cells, monitor_page
from mlflowkit.report.monitor.live_cells import CellCounts
from mlflowkit.report.monitor.monitor_sections import Selection
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.serving.observer.panes import read_windows

NOT_MONITORED = (
    "This service is not monitored, or no window has been closed yet. A recipe with a section monitor: has its service "
    "monitored from its next run on."
)


def render_page(files: ServiceFiles, query: Mapping[str, str]) -> str:
    """The live page of a service, with the cell that the query of its address selects."""
    try:
        view = read_view(files)
    except ServiceError as error:
        return monitor_page.render_missing(files.service, f"{error.message} ({error.hint})")
    if view is None:
        return monitor_page.render_missing(files.service, NOT_MONITORED)
    selection = monitor_page.complete_selection(view, parse_selection(query))
    return monitor_page.render_monitor(view, selection, read_counts(files, view, selection))


def render_file(files: ServiceFiles) -> str:
    """The page as one file. Raises ServiceError where the service is not monitored."""
    view = read_view(files)
    if view is None:
        raise ServiceError(f"service {files.service}: {NOT_MONITORED}", hint="mlkit status lists the services")
    return monitor_page.render_alone(view, lambda selection: read_counts(files, view, selection))


def parse_selection(query: Mapping[str, str]) -> Selection:
    """The selection of a query; a window that is no number is left out.

    >>> parse_selection({"column": "age", "window": "soon"})
    Selection(column='age', segment='', window=None)
    """
    try:
        window: float | None = float(query["window"])
    except (KeyError, ValueError):
        window = None
    window = None if window is None or not math.isfinite(window) else window
    return Selection(query.get("column", ""), query.get("segment", ""), window)


def read_counts(files: ServiceFiles, view: MonitorView, selection: Selection) -> CellCounts | None:
    """The counts of the selected cell; None without one."""
    window = next((window for window in view.windows if window.start == selection.window), None)
    if window is None or not any(column.column == selection.column for column in view.columns):
        return None
    until = window.start + window.seconds
    return live_cells.read_cell_counts(
        files, view.version, selection.column, selection.segment, window.start, until, read_windows
    )
