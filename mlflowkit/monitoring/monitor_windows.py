"""From the panes of live counts to windows that are judged, each pane once. Pure but for `WindowSource`.

A window is [start, start + length) of event time (the gateway's clock); starts are multiples of the length. It is
*closed* once the clock is ``grace`` past its end, and read whole then. A closed window with too few effective rows is
joined with the next ones, up to seven; then there are no data. What comes later than that is counted, and not judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mlflowkit.judging.shift.counts import ProfileCounts, WindowCounts
from mlflowkit.judging.shift.shift_test import REFUSAL_REQUESTS
from mlflowkit.monitoring.monitor_policy import MAX_JOINED
from mlflowkit.monitoring.monitor_view import WindowView
from mlflowkit.values import Json

MAX_CLOSED = 20
"""Windows that one tick closes, so that a monitor that was away for long answers in between."""
RECOUNTED = 3
"""Closed windows whose rows are counted again, for those that came late."""

ReadWindows = Callable[[str, float, float], Sequence[WindowCounts]]
"""(version, since, until) -> the counts of panes that begin in [since, until); see serving.observer.panes."""
WindowKind = Literal["judged", "joined", "no_data"]


@dataclass(frozen=True, slots=True)
class WindowCursor:
    """Up to where a version's panes are counted.

    next      start of the next window to close; None before the version's first pane
    pending   closed windows that are joined with the next one for want of rows, as one; ``joined`` is their number
    """

    next: float | None = None
    pending: WindowCounts | None = None
    joined: int = 0

    def to_json(self) -> Json:
        """The cursor as JSON."""
        pending = None if self.pending is None else self.pending.to_json()
        return {"next": self.next, "pending": pending, "joined": self.joined}

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> WindowCursor:
        """The cursor that `to_json` returned. Raises KeyError, TypeError or ValueError for anything else.

        >>> cursor = WindowCursor(600.0, WindowCounts("v", 300.0, 300.0, answered=2), 1)
        >>> WindowCursor.from_json(cursor.to_json()) == cursor
        True
        """
        pending, start = value["pending"], value["next"]
        return cls(
            None if start is None else float(start),
            None if pending is None else WindowCounts.from_json(pending),
            int(value["joined"]),
        )


@dataclass(frozen=True, slots=True)
class ClosedWindow:
    """A closed window and what becomes of it: ``counts`` are its own, ``judged`` those of all joined windows."""

    counts: WindowCounts
    kind: WindowKind
    judged: WindowCounts


def window_start(time: float, length: float) -> float:
    """The start of the window that a time lies in.

    >>> window_start(1234.5, 300.0)
    1200.0
    """
    return math.floor(time / length) * length


def due_windows(cursor: WindowCursor, length: float, grace: float, now: float) -> tuple[float, ...]:
    """The starts of the windows that can be closed now, oldest first, at most MAX_CLOSED.

    >>> due_windows(WindowCursor(600.0), 300.0, 60.0, 1260.0), due_windows(WindowCursor(600.0), 300.0, 60.0, 1259.0)
    ((600.0, 900.0), (600.0,))
    """
    if cursor.next is None:
        return ()
    number = math.floor((now - grace - cursor.next) / length)
    return tuple(cursor.next + index * length for index in range(min(max(number, 0), MAX_CLOSED)))


def collect(version: str, start: float, length: float, panes: Sequence[WindowCounts]) -> WindowCounts:
    """The sum of panes that begin in a window."""
    counts = WindowCounts(version, start, length)
    for pane in panes:
        counts = counts + pane
    return replace(counts, start=start, seconds=length)


def close(cursor: WindowCursor, counts: WindowCounts, min_rows: float) -> tuple[WindowCursor, ClosedWindow]:
    """The cursor behind a closed window, and whether it is judged.

    A window whose requests were refused in number is judged whatever its rows: refusals are evidence.
    """
    joined = counts if cursor.pending is None else cursor.pending + counts
    number, following = cursor.joined + 1, counts.start + counts.seconds
    if joined.total.effective_rows >= min_rows:
        return WindowCursor(following), ClosedWindow(counts, "judged", joined)
    if sum(joined.refused.values()) >= REFUSAL_REQUESTS:
        rows = ProfileCounts(requests=joined.total.requests)  # too few to be judged, or to be a part of the baseline
        return WindowCursor(following), ClosedWindow(counts, "judged", replace(joined, total=rows, segments={}))
    if number >= MAX_JOINED:
        return WindowCursor(following), ClosedWindow(counts, "no_data", joined)
    return WindowCursor(following, joined, number), ClosedWindow(counts, "joined", joined)


def view_of(window: ClosedWindow, word: str) -> WindowView:
    """A closed window as the record shows it."""
    counts = window.counts
    return WindowView(
        counts.start, counts.seconds, counts.total.rows, max(0, counts.lost), max(counts.answered, counts.total.rows),
        word, round(counts.total.effective_rows, 2), sum(counts.refused.values()),
    )  # fmt: skip


def recount(windows: Sequence[WindowView], counted: Mapping[float, WindowCounts]) -> tuple[WindowView, ...]:
    """Windows with the rows that came after they were closed: no longer lost, and not judged."""
    return tuple(_recounted(window, counted.get(window.start)) for window in windows)


def _recounted(window: WindowView, counts: WindowCounts | None) -> WindowView:
    if counts is None or counts.total.rows <= window.rows:
        return window
    answered = max(counts.answered, counts.total.rows)
    return replace(window, rows=counts.total.rows, answered=answered, lost=answered - counts.total.rows)


@dataclass(frozen=True, slots=True)
class WindowSource:
    """Reads the windows of one version."""

    read: ReadWindows
    version: str
    length: float
    grace: float

    def begin(self, cursor: WindowCursor) -> WindowCursor:
        """The cursor at the first pane of the version, once there is one."""
        if cursor.next is not None:
            return cursor
        first = min((pane.start for pane in self.read(self.version, 0.0, math.inf)), default=None)
        return cursor if first is None else WindowCursor(window_start(first, self.length))

    def windows(self, cursor: WindowCursor, now: float) -> Iterator[WindowCounts]:
        """The windows that can be closed now, each with all its panes."""
        starts = due_windows(cursor, self.length, self.grace, now)
        if not starts:
            return
        panes: dict[float, list[WindowCounts]] = {start: [] for start in starts}
        for pane in self.read(self.version, starts[0], starts[-1] + self.length):
            panes[window_start(pane.start, self.length)].append(pane)
        for start in starts:
            yield collect(self.version, start, self.length, panes[start])

    def recounted(self, windows: Sequence[WindowView]) -> tuple[WindowView, ...]:
        """The newest closed windows with the rows that came late."""
        recent = windows[-RECOUNTED:]
        if not any(window.lost for window in recent):
            return tuple(windows)
        panes: dict[float, list[WindowCounts]] = {window.start: [] for window in recent}
        for pane in self.read(self.version, recent[0].start, recent[-1].start + recent[-1].seconds):
            panes.setdefault(window_start(pane.start, self.length), []).append(pane)
        counted = {start: collect(self.version, start, self.length, items) for start, items in panes.items()}
        return recount(windows, counted)
