"""From panes to windows: each row once, joined where there are few, late ones counted and not judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from mlflowkit.judging.shift.counts import ProfileCounts, WindowCounts
from mlflowkit.monitoring import monitor_windows
from mlflowkit.monitoring.monitor_policy import MAX_JOINED
from mlflowkit.monitoring.monitor_windows import WindowCursor, WindowSource, close, due_windows, view_of

LENGTH, GRACE = 300.0, 60.0


def pane(start: float, rows: int, answered: int | None = None, version: str = "v1", **refused: int) -> WindowCounts:
    total = ProfileCounts(rows, rows, rows, {"age": (0, rows, 0, 0)})
    return WindowCounts(version, start, 60.0, total, {}, rows if answered is None else answered, refused)


class Panes:
    def __init__(self, *panes: WindowCounts) -> None:
        self.panes = list(panes)

    def __call__(self, version: str, since: float, until: float) -> Sequence[WindowCounts]:
        return [item for item in self.panes if item.version == version and since <= item.start < until]


def source(panes: Panes) -> WindowSource:
    return WindowSource(panes, "v1", LENGTH, GRACE)


def test_nothing_is_closed_before_the_first_pane_and_its_window_is_whole() -> None:
    panes = Panes()
    assert source(panes).begin(WindowCursor()) == WindowCursor()
    panes.panes.append(pane(1260.0, 5))
    assert source(panes).begin(WindowCursor()) == WindowCursor(1200.0)
    assert source(panes).begin(WindowCursor(300.0)) == WindowCursor(300.0)


def test_each_pane_is_in_one_window_however_late_the_look() -> None:
    starts = [1200.0 + 60 * index for index in range(25)]
    panes = Panes(*(pane(start, 7) for start in starts), pane(1260.0, 1000, version="v2"))
    for step in (1.0, 59.0, 300.0, 4000.0):
        cursor, rows, now, windows = WindowCursor(1200.0), 0, 1200.0, []
        while now < 4000.0:
            now += step
            for counts in source(panes).windows(cursor, now):
                assert counts.start + LENGTH + GRACE <= now
                cursor, closed = close(cursor, counts, 1.0)
                rows += closed.counts.total.rows
                windows.append(counts.start)
        assert rows == 25 * 7
        assert windows == sorted(set(windows))


def test_a_monitor_that_was_away_closes_a_bounded_number_of_windows_at_a_time() -> None:
    due = due_windows(WindowCursor(0.0), LENGTH, GRACE, 1e9)
    assert len(due) == monitor_windows.MAX_CLOSED
    assert due[0] == 0.0


def test_a_clock_that_goes_back_closes_nothing_twice() -> None:
    assert due_windows(WindowCursor(6000.0), LENGTH, GRACE, 5000.0) == ()
    assert due_windows(WindowCursor(6000.0), LENGTH, GRACE, -1e9) == ()


def test_small_windows_are_joined_up_to_seven() -> None:
    cursor, kinds, judged = WindowCursor(0.0), [], []
    for number in range(2 * MAX_JOINED):
        cursor, closed = close(cursor, replace(pane(number * LENGTH, 10), seconds=LENGTH), 45.0)
        kinds.append(closed.kind)
        judged.append(closed.judged.total.rows)
    assert kinds == [*["joined"] * 4, "judged"] * 2 + ["joined"] * 4
    assert [rows for rows, kind in zip(judged, kinds, strict=True) if kind == "judged"] == [50, 50]
    assert cursor.joined == 4


def test_after_seven_windows_there_are_no_data() -> None:
    cursor, kinds = WindowCursor(0.0), []
    for number in range(2 * MAX_JOINED):
        cursor, closed = close(cursor, WindowCounts("v1", number * LENGTH, LENGTH), 45.0)
        kinds.append(closed.kind)
    assert kinds == [*["joined"] * 6, "no_data"] * 2
    assert cursor == WindowCursor(2 * MAX_JOINED * LENGTH)


def test_one_request_of_many_rows_is_no_window_of_many_rows() -> None:
    """65,536 rows of one request among 500 are worth little more than one."""
    batch = ProfileCounts(501, 65_536 + 500, 65_536**2 + 500, {})
    _, closed = close(WindowCursor(0.0), WindowCounts("v1", 0.0, LENGTH, batch, {}, 66_036), 45.0)
    assert closed.kind == "joined"
    assert closed.judged.total.effective_rows < 2


def test_refusals_are_judged_without_rows_and_rows_too_few_are_no_part_of_them() -> None:
    _, closed = close(WindowCursor(0.0), pane(0.0, 3, missing=40), 45.0)
    assert closed.kind == "judged"
    assert (closed.judged.total.rows, closed.judged.refused) == (0, {"missing": 40})
    assert closed.counts.total.rows == 3
    _, few = close(WindowCursor(0.0), pane(0.0, 3, missing=4), 45.0)
    assert few.kind == "joined"


def test_rows_and_lost_rows_are_the_answered_ones() -> None:
    panes = Panes(pane(0.0, 90, answered=100), pane(60.0, 50))
    [counts] = source(panes).windows(WindowCursor(0.0), LENGTH + GRACE)
    _, closed = close(WindowCursor(0.0), counts, 45.0)
    view = view_of(closed, "HEALTHY")
    assert (view.rows, view.lost, view.answered) == (140, 10, 150)


def test_rows_that_come_late_are_counted_and_no_longer_lost() -> None:
    panes = Panes(pane(0.0, 90, answered=100), pane(60.0, 50))
    cursor, views = WindowCursor(0.0), []
    for counts in source(panes).windows(cursor, 3 * LENGTH + GRACE):
        cursor, closed = close(cursor, counts, 45.0)
        views.append(view_of(closed, "HEALTHY"))
    panes.panes.append(pane(120.0, 10, answered=0))
    views = list(source(panes).recounted(views))
    assert [(view.rows, view.lost, view.answered) for view in views] == [(150, 0, 150), (0, 0, 0), (0, 0, 0)]
    assert source(panes).recounted(views) == tuple(views)


@pytest.mark.parametrize("value", [{}, {"next": 0}, {"next": "x", "pending": None, "joined": 0}])
def test_a_cursor_that_is_none_is_refused(value: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        WindowCursor.from_json(value)
    assert math.isfinite(monitor_windows.window_start(1e12, LENGTH))
