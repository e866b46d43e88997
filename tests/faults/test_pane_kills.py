"""Rows in panes and rows lost are the rows answered, exactly, when gateway and observer are killed under traffic."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflowkit.serving.observer.panes import list_panes
from mlflowkit.system.failpoint import PANE_POINTS
from tests.support.pane_kills import KillDrill, wait_long_for

pytestmark = pytest.mark.heavy
GATEWAY_POINTS = tuple(point for point in PANE_POINTS if point.startswith("ledger"))
OBSERVER_POINTS = tuple(point for point in PANE_POINTS if point.startswith("pane"))


@pytest.fixture
def drill(tmp_path: Path) -> Iterator[KillDrill]:
    with KillDrill(tmp_path) as made:
        yield made


def in_panes(drill: KillDrill) -> int:
    return sum(window.total.rows for window in drill.check().windows)


def await_all(drill: KillDrill) -> None:
    """Wait until every answered row is in a pane; an observer that is only starting may take its time."""
    wait_long_for(lambda: all(window.lost == 0 for window in drill.check().windows))


def test_nothing_is_lost_when_nothing_is_killed(drill: KillDrill) -> None:
    drill.start()
    assert drill.ask(50)
    drill.send_bad({"ago": 1.0})
    await_all(drill)
    drill.stop()
    reading = drill.check()
    assert sum(window.lost for window in reading.windows) == 0
    assert in_panes(drill) == drill.replied.total() == 101
    refused: dict[str, int] = {}
    for window in reading.windows:
        refused |= window.refused
    assert refused == {"unknown column ago": 1}
    assert all(
        window.segments.keys() <= {f"purpose={name}" for name in ("car", "home", "other")} for window in reading.windows
    )


@pytest.mark.parametrize("point", OBSERVER_POINTS)
def test_an_observer_killed_at_a_point(drill: KillDrill, point: str) -> None:
    drill.start(f"{point}:2")
    first = wait_long_for(lambda: drill.observer)
    while first.is_running() and first.status() != "zombie":
        assert drill.ask(5)
    drill.ask(20)
    drill.stop()
    drill.check()
    rows = in_panes(drill)
    drill.start()  # what was half merged is read, and merged, all the same
    before = drill.replied.total()
    drill.ask(1)
    wait_long_for(lambda: in_panes(drill) == rows + drill.replied.total() - before)
    drill.stop()
    assert in_panes(drill) == rows + drill.replied.total() - before


@pytest.mark.parametrize("point", GATEWAY_POINTS)
def test_a_gateway_killed_at_a_point(drill: KillDrill, point: str) -> None:
    drill.start(f"{point}:1" if point == "ledger.created" else f"{point}:40")
    assert not drill.ask(100)
    drill.kill_gateway()
    drill.check()
    drill.start()
    assert drill.ask(10)
    drill.stop()
    drill.check()


def test_both_killed_at_random_times(drill: KillDrill) -> None:
    """The times are random and the accounting is exact: it fails by no chance when all is well."""
    chance = random.Random(os.urandom(8))
    drill.start()
    for number in range(8):
        if number % 2:
            drill.ask_until_written()
        drill.ask(chance.randrange(40))
        time.sleep(chance.uniform(0, 0.3))
        if chance.random() < 0.6:
            drill.kill_observer()
            drill.ask(1)
        else:
            drill.kill_gateway()
            drill.check()
            drill.start()
    drill.stop()
    assert in_panes(drill) > 0


def test_an_observer_that_was_stopped_and_goes_on_counts_each_row_once(drill: KillDrill) -> None:
    drill.start()
    drill.ask(30)
    await_all(drill)
    observer = wait_long_for(lambda: drill.observer)
    observer.send_signal(signal.SIGSTOP)
    drill.ask(30)
    observer.send_signal(signal.SIGCONT)
    drill.ask(10)
    await_all(drill)
    drill.stop()


def test_panes_of_finished_windows_are_merged_while_rows_arrive(drill: KillDrill) -> None:
    drill.start()

    def merged() -> bool:
        drill.ask(5)
        return any(".merged." in item.name for item in list_panes(drill.profiles / drill.version))

    wait_long_for(merged)
    await_all(drill)
    drill.stop()
