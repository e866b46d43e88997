"""Panes of live traffic: rows in them and rows lost are the rows answered, whatever happens."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlflowkit.serving.observer import answered_ledger, live_profile, pane_compaction, panes
from mlflowkit.serving.observer.answered_ledger import AnsweredLedger, read_ledgers
from mlflowkit.serving.observer.panes import load_pane, read_profiles, read_windows
from tests.support.file_limit import failing_writes
from tests.support.observing import record
from tests.support.pane_drill import PLAN, WHYLOGS, PaneDrill, numbers, totals


@pytest.fixture
def drill(tmp_path: Path) -> PaneDrill:
    return PaneDrill(tmp_path)


def pass_time(drill: PaneDrill, seconds: float) -> None:
    drill.now += seconds
    drill.live.tick()


def test_features_and_outputs_are_counted_by_cells_and_segments(drill: PaneDrill) -> None:
    drill.answer(
        record("a", [0.2, 0.7, 0.9], time=drill.now),
        record("b", [0.4], "60 months", time=drill.now),
        record("c", [0.4], "12 months", time=drill.now),
    )
    drill.live.close()
    assert drill.read().problems == ()
    (window,) = drill.read().windows
    assert (window.start, window.seconds, window.answered, window.lost) == (999_900, 300, 5, 0)
    assert (window.total.requests, window.total.rows, window.total.squares) == (3, 5, 11)
    assert window.total.columns == {
        "age": (0, 3, 2, 0, 0),
        "income": (0, 0, 0, 5),
        "term": (3, 1, 0, 1, 0),
        "output.label": (3, 2, 0, 0, 0),
        "output.score": (0, 3, 2, 0, 0),
    }
    assert set(window.segments) == {"term=36 months", "term=60 months"}
    short, long = window.segments["term=36 months"], window.segments["term=60 months"]
    assert (short.requests, short.rows, short.squares, short.columns["age"]) == (1, 3, 9, (0, 1, 2, 0, 0))
    assert (long.requests, long.rows, long.squares, long.columns["output.label"]) == (1, 1, 1, (1, 0, 0, 0, 0))


def test_a_restart_within_a_window_loses_what_was_not_written_and_counts_it(drill: PaneDrill) -> None:
    drill.ask(100)
    pass_time(drill, 11)
    drill.ask(7)
    drill.restart()
    drill.ask(3)
    drill.live.close()
    assert totals(drill.read()) == (103, 7, 110)


def test_late_rows_are_in_the_window_of_their_time(drill: PaneDrill) -> None:
    begin = drill.now
    drill.ask(100)
    for _ in range(5):
        pass_time(drill, 300)
    drill.answer(*(record(f"late-{number}", [0.7], time=begin) for number in range(5)))
    drill.live.close()
    assert [(window.start, window.total.rows, window.lost) for window in drill.read().windows] == [(999_900, 105, 0)]


def test_a_batch_over_the_end_of_a_window_is_split_by_row(drill: PaneDrill) -> None:
    times = [1_000_199.9, 1_000_200.0, 1_000_199.8, 1_000_500.0]
    drill.answer(*(record(f"r{time}", [0.2, 0.7], time=time) for time in times))
    drill.live.close()
    windows = [(window.start, window.total.rows, window.total.requests) for window in drill.read().windows]
    assert windows == [(999_900, 4, 2), (1_000_200, 2, 1), (1_000_500, 2, 1)]


class Raising:
    """A profiler that fails from its second profile on."""

    calls = 0

    def profile(self, table: Any) -> bytes:
        type(self).calls += 1
        if self.calls > 1:
            raise ValueError("this profiler is broken")
        return b"profile"

    def merge(self, profiles: Any) -> bytes:
        raise ValueError("and cannot merge")


def test_a_profiler_that_raises_costs_its_bytes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live_profile, "Raising", Raising, raising=False)
    drill = PaneDrill(tmp_path, "mlflowkit.serving.observer.live_profile:Raising")
    for rows in (100, 7, 3):
        drill.ask(rows)
        pass_time(drill, 11)
    assert totals(drill.read()) == (110, 0, 110)
    assert drill.read().profiled == 100
    assert caplog.text.count("this profiler is broken") == 1
    pass_time(drill, 600)  # the panes are merged all the same
    assert len(drill.files()) == 1
    assert totals(drill.read()) == (110, 0, 110)


def test_a_profiler_that_is_not_there_costs_no_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    drill = PaneDrill(tmp_path, "mlflowkit.nothing:Here")
    for _ in range(2):
        drill.ask(2)
        pass_time(drill, 11)
    assert (drill.live.profiled, drill.live.dropped) == (4, 0)
    assert totals(drill.read()) == (4, 0, 4)
    assert caplog.text.count("No module named 'mlflowkit.nothing'") == 1


def test_the_end_does_not_wait_for_a_profiler(tmp_path: Path) -> None:
    drill = PaneDrill(tmp_path, WHYLOGS)
    drill.ask(2)
    drill.live.close()
    assert totals(drill.read()) == (2, 0, 2)
    assert drill.read().profiled == 0


def test_profiles_of_panes_merge_and_know_what_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("whylogs")
    from mlflowkit.adapters.whylogs import WhylogsProfiler

    drill = PaneDrill(tmp_path, WHYLOGS, now=600.0)
    for term, wait in (("36 months", 11.0), ("", 300.0), ("60 months", 11.0)):
        drill.answer(record("a", [0.2, 0.7], term, time=drill.now))
        pass_time(drill, wait)
    profiler = WhylogsProfiler()
    windows = read_profiles(drill.folder, "v1", 0, 1e12)
    assert sorted(windows) == [600, 900]
    assert drill.read().profiled == 6
    columns = profiler.summary(profiler.merge(windows[600]))["columns"]
    assert (columns["term"]["count"], columns["term"]["missing"]) == (4, 2)
    assert columns["term"]["frequent"] == [["36 months", 2]]
    assert (columns["age"]["max"], columns["income"]["missing"]) == (1.0, 4)
    assert columns["output.probability.good"]["mean"] == pytest.approx(0.45)
    pass_time(drill, 600)
    (merged,) = read_profiles(drill.folder, "v1", 0, 700)[600]
    assert profiler.summary(merged)["columns"]["term"]["count"] == 4


def test_old_profiles_are_still_read(drill: PaneDrill) -> None:
    (drill.folder / "v1").mkdir(parents=True)
    (drill.folder / "v1" / "600.r1.profile").write_bytes(b"old")
    assert read_profiles(drill.folder, "v1", 0, 1e9) == {600: [b"old"]}
    assert drill.read().problems == ()


def test_panes_of_a_finished_window_become_one_and_count_the_same(drill: PaneDrill) -> None:
    for _ in range(4):
        drill.ask(3)
        pass_time(drill, 20)
    before = drill.read().windows
    assert len(drill.files()) == 4
    pass_time(drill, 600)
    assert len(drill.files()) == 1
    assert drill.read().windows == before


def test_hours_and_days_add_up(tmp_path: Path) -> None:
    drill = PaneDrill(tmp_path, days=1.0)
    for _ in range(30):
        drill.ask(2)
        pass_time(drill, 300)
    drill.live.close()
    drill.restart().tick()  # two writers
    drill.ask(1)
    pass_time(drill, 20)
    total = drill.read().windows
    rows = sum(window.total.rows for window in total)
    columns = [sum(counts) for counts in zip(*(window.total.columns["age"] for window in total), strict=True)]
    for days, largest in ((2, 3600), (60, 86_400)):
        drill.now = 1_000_000.0 + days * 86_400
        for _ in range(10):
            pass_time(drill, 61)
        merged = drill.read()
        assert max(window.seconds for window in merged.windows) == largest
        assert totals(merged) == (rows, 0, rows)
        assert merged.problems == ()
        found = [sum(counts) for counts in zip(*(w.total.columns["age"] for w in merged.windows), strict=True)]
        assert found == columns
    assert len(drill.files()) <= 2
    drill.answer(record("late", [0.7], time=1_000_000.0))  # a row of a day that is merged already
    drill.live.close()
    assert totals(drill.read()) == (rows + 1, 0, rows + 1)


def test_a_reader_of_a_part_of_an_hour_counts_no_row_twice(tmp_path: Path) -> None:
    drill = PaneDrill(tmp_path, days=1.0, now=3_600_000.0)
    for _ in range(12):
        drill.ask(1)
        pass_time(drill, 300)
    leftovers = {name: (drill.folder / "v1" / name).read_bytes() for name in drill.files()}
    pass_time(drill, 3 * 86_400)
    assert len(drill.files()) == 1
    for name, content in leftovers.items():  # as after a kill before they were removed
        (drill.folder / "v1" / name).write_bytes(content)
    halves = [drill.read(since=since, until=since + 1800).windows for since in (3_600_000.0, 3_601_800.0)]
    assert sum(window.total.rows for half in halves for window in half) == 12
    assert drill.read().problems == ()


def test_copies_truncated_and_foreign_files_are_left_out_and_told(drill: PaneDrill, tmp_path: Path) -> None:
    for _ in range(3):
        drill.ask(5)
        pass_time(drill, 20)
    home = drill.folder / "v1"
    first, second, _ = drill.files()
    shutil.copy(home / first, home / first.replace(".1.pane", ".9.pane"))
    content = (home / second).read_bytes()
    (home / second).write_bytes(content[:-3])
    (home / "999900+300.x.1.pane").write_text("not a pane")
    strange = PaneDrill(tmp_path / "strange")
    strange.folder = tmp_path / "strange" / "services" / "loans" / "profiles"
    live = live_profile.LiveProfiles(strange.folder, "r9", "", days=7)
    strange.answer(record("a", [0.1], time=drill.now), to=live)
    live.close()
    (foreign,) = strange.files()
    shutil.copy(strange.folder / "v1" / foreign, home / foreign)
    reading = drill.read()
    assert totals(reading) == (10, 5, 15)
    told = "\n".join(reading.problems)
    for words in ("is a copy of", "its digest is another", "999900+300.x.1.pane was left out", "service loans"):
        assert words in told
    assert len(reading.problems) == 4


def test_a_folder_copied_to_another_version_holds_none_of_its_rows(drill: PaneDrill) -> None:
    drill.ask(5)
    drill.live.close()
    shutil.copytree(drill.folder / "v1", drill.folder / "v2")
    assert totals(drill.read("v2")) == (0, 0, 0)
    assert "is of version v1" in drill.read("v2").problems[0]


def test_problems_are_logged_once(drill: PaneDrill, caplog: pytest.LogCaptureFixture) -> None:
    (drill.folder / "v1").mkdir(parents=True)
    (drill.folder / "v1" / "0+300.once.1.pane").write_bytes(b"")
    for _ in range(3):
        assert read_windows(drill.folder, "v1", 0, 1e9) == []
    assert caplog.text.count("0+300.once.1.pane was left out") == 1


def test_rows_whose_ledger_is_gone_are_told(drill: PaneDrill) -> None:
    drill.ask(5)
    drill.live.close()
    (path,) = drill.folder.glob("*.ledger")
    path.rename(path.with_name(path.name.replace(".1.ledger", ".2.ledger")))
    reading = drill.read()
    assert totals(reading) == (5, 0, 5)
    assert ["is no ledger" in problem or "in no ledger" in problem for problem in reading.problems] == [True, True]


def test_a_window_of_which_every_row_was_lost_is_there(drill: PaneDrill) -> None:
    drill.ask(5)
    drill.restart()
    assert [(window.total.rows, window.answered) for window in drill.read().windows] == [(0, 5)]


@pytest.mark.parametrize("step", [1200.0, -1200.0])
def test_a_row_is_counted_once_in_the_window_of_its_time_when_the_clock_steps(drill: PaneDrill, step: float) -> None:
    drill.ask(4)
    drill.now += step
    drill.ask(6)
    drill.live.tick()
    drill.now -= step
    drill.ask(5)
    drill.live.close()
    stepped = (1_000_000.0 + step) // 300 * 300
    rows = {window.start: (window.total.rows, window.lost) for window in drill.read().windows}
    assert rows == {999_900.0: (9, 0), stepped: (6, 0)}


def test_two_replicas_minutes_apart_are_one_window(drill: PaneDrill) -> None:
    other = AnsweredLedger(drill.folder, "r2", pane_seconds=300)
    second = live_profile.LiveProfiles(drill.folder, "r2", "", days=7)
    drill.ask(3)
    mine, drill.ledger = drill.ledger, other
    drill.answer(record("b", [0.7], time=drill.now + 180), to=second)
    drill.ledger = mine
    drill.live.close()
    second.close()
    assert [(w.start, w.total.rows, w.lost) for w in drill.read().windows] == [(999_900, 4, 0)]


def test_another_length_of_windows_holds_for_the_rows_that_were_counted_so(drill: PaneDrill) -> None:
    drill.ask(3)
    drill.ledger.pane_seconds = 60.0
    drill.ask(2)
    drill.ledger.pane_seconds = 0.0
    drill.answer(record("off", [0.7], time=drill.now))
    drill.live.close()
    windows = drill.read().windows
    assert sum(window.total.rows for window in windows) == sum(window.answered for window in windows) == 5


def test_only_what_the_split_assigned_and_the_variant_answered_is_in_the_ledger(drill: PaneDrill) -> None:
    for changes in ({"how": "override"}, {"how": "version"}, {"variant": "candidate", "error": "late"}):
        drill.ledger.count(record("x", [0.7], time=drill.now, **changes))
    drill.ask(1)
    assert [(slot.rows, slot.requests) for slot in read_ledgers(drill.folder).slots] == [(1, 1)]


def test_a_full_ledger_is_followed_by_another(drill: PaneDrill, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = answered_ledger.SLOTS + 100
    for number in range(windows):
        drill.ledger.count(record("x", [0.7], time=drill.now + 300 * number))
    assert len(list(drill.folder.glob("*.ledger"))) == 2
    assert totals(drill.read()) == (0, windows, windows)


def test_a_ledger_that_the_disk_refuses_is_kept_in_memory_until_it_does_not(
    drill: PaneDrill, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", full)
        drill.ask(5)
        assert read_ledgers(drill.folder).slots == ()
        assert not list(drill.folder.glob(".*.ledger"))
    assert caplog.text.count("counted in memory only") == 1
    drill.ledger._retry_at = 0.0
    drill.now += 300
    drill.ask(2)
    assert [slot.rows for slot in read_ledgers(drill.folder).slots] == [5, 2]


def test_refusals_are_counted_by_reason_and_bounded(drill: PaneDrill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: drill.now)
    for _ in range(3):
        drill.ledger.refuse("v1", "missing column age", False)
    for number in range(100):
        drill.ledger.refuse("v1", f"unknown column {number}", True)
    drill.ledger.refuse("v1", "value of column income", False)
    (window,) = drill.read().windows
    assert window.refused["missing column age"] == 3
    assert window.refused["value of column income"] == 1
    assert window.refused["(other)"] == 100 - 24
    assert len(window.refused) == 27
    assert window.answered == 0


def test_long_and_odd_versions_have_their_own_slots(drill: PaneDrill) -> None:
    for version in ("v" * 240, "v" * 239, "é" * 80, ""):
        drill.ledger.count(record("x", [0.7], time=drill.now, version=version))
    for version in ("v" * 240, "v" * 239, "é" * 80):
        assert [window.answered for window in drill.read(version).windows] == [1]


@pytest.mark.parametrize(
    "values",
    [
        [math.nan] * 5, [1.0] * 5, [math.inf] * 5, [0.5, math.inf], [1e38, -1e38], list(range(100_000)),
        [0.5] * 65_536,
    ],
    ids=["null", "constant", "inf", "one-inf", "large", "distinct", "one-request"],
)  # fmt: skip
def test_odd_values_are_counted(tmp_path: Path, values: list[float]) -> None:
    drill = PaneDrill(tmp_path)
    drill.answer(numbers(values, time=drill.now))
    drill.live.close()
    (window,) = drill.read().windows
    assert sum(window.total.columns["age"]) == window.total.rows == len(values)
    assert window.total.squares == len(values) ** 2
    assert window.total.effective_rows == pytest.approx(1)
    json.dumps(window.to_json(), allow_nan=False)


def test_a_hundred_thousand_texts_and_an_empty_one(drill: PaneDrill) -> None:
    texts = [f"t{number}" for number in range(100_000)] + [""]
    drill.answer(numbers(np.zeros(len(texts)), texts, time=drill.now))
    drill.live.close()
    (window,) = drill.read().windows
    assert window.total.columns["term"] == (0, 0, 0, 100_000, 1)


def test_a_column_of_another_type_costs_its_own_counts(drill: PaneDrill, caplog: pytest.LogCaptureFixture) -> None:
    rows = pa.table({"input.age": ["old", "young"], "input.term": ["36 months", "60 months"]})
    for _ in range(2):
        times = np.array([drill.now])
        drill.live.add(rows, "v1", np.zeros(2, int), times, 300.0, PLAN)
        drill.live.close()
    assert caplog.text.count("column age of version v1 is not counted") == 1
    reading = drill.read()
    assert sum(window.total.rows for window in reading.windows) == 4
    assert all(set(window.total.columns) == {"term"} for window in reading.windows)


def test_a_full_disk_is_told_once_and_its_rows_are_lost(drill: PaneDrill, caplog: pytest.LogCaptureFixture) -> None:
    drill.ask(2)
    pass_time(drill, 20)
    with failing_writes(100):
        for _ in range(3):
            drill.ask(5)
            pass_time(drill, 20)
    drill.ask(1)
    drill.live.close()
    assert totals(drill.read()) == (3, 15, 18)
    assert (drill.live.profiled, drill.live.dropped) == (3, 15)
    assert caplog.text.count("are lost") == 1
    assert not list((drill.folder / "v1").glob(".*"))


def test_files_of_versions_that_do_not_run_are_removed_in_time(drill: PaneDrill) -> None:
    drill.ask(2)
    drill.answer(record("other", [0.7], version="v0", time=drill.now))
    drill.live.close()
    (drill.folder / "v0" / "600.r1.profile").write_bytes(b"old")
    (drill.folder / "v0" / "mine.txt").write_text("left alone")
    drill.now += 40 * 86_400
    drill.live.tick()
    assert not (drill.folder / "v0" / "600.r1.profile").exists()
    assert totals(drill.read("v0")) == (1, 0, 1)
    drill.now += 23 * 86_400
    drill.live.tick()
    drill.now += 100
    drill.live.tick()
    assert drill.files("v0") == []
    assert (drill.folder / "v0" / "mine.txt").exists()
    assert not (drill.folder / "v1").exists()


def test_a_clock_that_jumps_years_ahead_removes_nothing(drill: PaneDrill) -> None:
    drill.ask(5)
    pass_time(drill, 20)
    pass_time(drill, 400)
    drill.clock_step = 10 * 365 * 86_400
    for _ in range(4):
        pass_time(drill, 61)
    assert totals(drill.read()) == (5, 0, 5)


def test_a_linked_folder_is_left_alone(drill: PaneDrill, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "0+300.x.1.pane").write_text("precious")
    drill.folder.mkdir(parents=True)
    (drill.folder / "v9").symlink_to(outside)
    drill.live.tick()
    assert (outside / "0+300.x.1.pane").exists()


def test_a_pane_is_small(tmp_path: Path) -> None:
    drill = PaneDrill(tmp_path)
    drill.ask(100)
    drill.live.close()
    (name,) = drill.files()
    assert (drill.folder / "v1" / name).stat().st_size < 2000
    assert load_pane(drill.folder / "v1", name).profile == b""


def test_a_reader_beside_a_merge_counts_each_row_once(drill: PaneDrill, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(4):
        drill.ask(3)
        pass_time(drill, 20)
    load, merged = panes.load_pane, False

    def load_after_a_merge(folder: Path, name: str) -> panes.Pane:
        nonlocal merged
        if not merged:
            merged = True
            pass_time(drill, 600)
        return load(folder, name)

    monkeypatch.setattr(panes, "load_pane", load_after_a_merge)
    assert totals(drill.read()) == (12, 0, 12)
    assert drill.read().problems == ()
    assert len(drill.files()) == 1


def test_two_merges_at_once_lose_no_row(drill: PaneDrill) -> None:
    """One holds the lock of the folder; the other leaves the panes as they are, and both are read."""
    for _ in range(3):
        drill.ask(3)
        pass_time(drill, 20)
    with pane_compaction.PaneFolder(drill.folder)._lock() as locked:
        assert locked
        pass_time(drill, 600)
        assert len(drill.files()) == 3
    assert totals(drill.read()) == (9, 0, 9)


def test_panes_that_share_a_part_are_told_and_the_larger_one_counts(drill: PaneDrill) -> None:
    for _ in range(3):
        drill.ask(3)
        pass_time(drill, 20)
    home = drill.folder / "v1"
    first, second, third = (panes.load_pane(home, name) for name in drill.files())
    for pair in ((first, second), (second, third)):
        panes.write_pane(home, panes.merge_panes(pair, 999_900, 300), durable=False)
    reading = drill.read()
    assert totals(reading)[1:] == (0, 9)  # what the left-out pane shares is in the others, or by itself
    assert ["holds a part" in problem for problem in reading.problems] == [True]


def test_an_observer_that_was_stopped_for_twenty_minutes_counts_each_row_once(drill: PaneDrill) -> None:
    drill.ask(4)
    pass_time(drill, 1200)
    drill.ask(2)
    drill.answer(*(record(f"queued-{number}", [0.7], time=drill.now - 900) for number in range(3)))
    pass_time(drill, 1200)
    assert [(window.start, window.total.rows, window.lost) for window in drill.read().windows] == [
        (999_900, 4, 0),
        (1_000_200, 3, 0),
        (1_001_100, 2, 0),
    ]
