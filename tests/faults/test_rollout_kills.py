"""A controller that dies anywhere: the next one goes on, and what comes of it is what would have come of it anyway."""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.rollout import commands
from mlflowkit.rollout import state as states
from mlflowkit.rollout.state import RolloutState, SetTable
from mlflowkit.service_state import controller_lease, version_history
from mlflowkit.service_state.controller_lease import LeaseLostError
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system import failpoint
from mlflowkit.system.failpoint import ROLLOUT_POINTS
from mlflowkit.values import RoutingTable
from tests.support import rollout_drill as drill

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["mlflowkit.rollout.controller", "mlflowkit.judging.online.sequential", "scipy.special"]
)


def run(state: Path, error_rate: float, point: str = "") -> int | None:
    """Control in a process of its own; its exit code."""
    process = _context.Process(target=drill.control, args=(state, error_rate, point))
    process.start()
    process.join(60)
    return process.exitcode


def check(files: ServiceFiles, bad: bool) -> RolloutState:
    """Everything that must be true of the end, however often the controller died on the way."""
    state = drill.ended(files)
    assert state is not None
    published = drill.entries(files.folder / "published.jsonl")
    epochs = [table["epoch"] for table in published]
    fences = [table["fence"] for table in published]
    assert epochs == sorted(set(epochs))
    assert fences == sorted(fences)
    table = files.table()
    assert table is not None
    (only,) = table.variants
    assert (only.name, only.weight) == ("champion", 1.0)
    weights = [table["variants"][1]["weight"] for table in published if len(table["variants"]) > 1]
    assert weights == sorted(weights)
    incidents = list((files.folder / "incidents").glob("*.json"))
    events = sorted(json.loads(path.read_bytes())["event"] for path in (files.folder / "webhooks").glob("*.json"))
    if bad:
        assert (state.phase, only.digest) == ("rolled_back", "d1")
        assert len(incidents) == 1
        assert list(version_history.rejections(files)) == ["d2"]
        assert not (files.folder / "promoted.jsonl").exists()
        assert events == ["rolled_back", "started", "step"]
    else:
        assert (state.phase, only.digest) == ("promoted", "d2")
        assert incidents == []
        assert {entry[0] for entry in drill.entries(files.folder / "promoted.jsonl")} == {"d2"}
        assert [record.variant.digest for record in version_history.champions(files)] == ["d1", "d2"]
        assert events == ["promoted", "started", "step", "step"]
    assert not (files.folder / "request.json").exists()
    answer = commands.read_reply(files, "e1")
    assert answer is not None
    assert answer.ok
    return state


@pytest.mark.parametrize("bad", [False, True], ids=["good", "bad"])
@pytest.mark.parametrize("point", ROLLOUT_POINTS)
def test_killed_at_every_point_it_comes_to_the_same_end(tmp_path: Path, point: str, bad: bool) -> None:
    error_rate = 0.3 if bad else 0.0
    killed = 0
    for number in itertools.count(1):
        state = tmp_path / f"{number}"
        files = drill.set_up(state)
        code = run(state, error_rate, f"{point}:{number}")
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
        assert run(state, error_rate) == 0
        check(files, bad)
    assert killed >= (1 if point == "rollout.begun" else 4)


@pytest.mark.parametrize("point", ["rollout.decided", "rollout.acting", "rollout.acted"])
def test_a_disk_that_is_full_for_a_moment_costs_nothing(tmp_path: Path, point: str) -> None:
    files = drill.set_up(tmp_path)
    assert run(tmp_path, 0.3, f"enospc:{point}:3") == 0
    check(files, bad=True)


def test_a_controller_that_was_overtaken_changes_nothing_any_more(tmp_path: Path) -> None:
    files = drill.set_up(tmp_path)
    first = controller_lease.acquire(tmp_path)
    assert first is not None
    stopped = drill.controller(files, first)
    stopped.step()
    drill.answer_requests(files, 0.3)
    assert controller_lease.acquire(tmp_path) is None
    second = controller_lease.acquire(tmp_path, clock=lambda: time.time() + controller_lease.EXPIRY_SECONDS + 1)
    assert second is not None
    table, saved = files.table(), states.read(files)
    with pytest.raises(LeaseLostError):
        stopped.step()
    assert (files.table(), states.read(files)) == (table, saved)
    with pytest.raises(LeaseLostError):
        first.renew()
    running: Any = drill.controller(files, second)
    while drill.ended(files) is None:
        running.step()
        drill.answer_requests(files, 0.3)
    check(files, bad=True)


def test_what_cannot_be_undone_now_is_tried_again(tmp_path: Path) -> None:
    """A rollback whose table nobody takes (no gateway is up) stays decided until somebody does."""
    files = drill.set_up(tmp_path)
    held = controller_lease.acquire(tmp_path)
    assert held is not None
    service = drill.controller(files, held)
    service.step()
    drill.answer_requests(files, 0.3)
    works = service.deps.platform.publish
    refused = 0

    def down(table: Any) -> None:
        if len(table.variants) == 1:
            raise ServiceError("service lending is not up")
        works(table)

    object.__setattr__(service.deps, "platform", type("Down", (), {"publish": staticmethod(down)})())
    for _ in range(20):
        try:
            service.step()
            drill.answer_requests(files, 0.3)
        except MlkitError:
            refused += 1
    saved = states.read(files)
    assert saved is not None
    assert (saved.state.phase, refused > 3) == ("rolling_back", True)
    object.__setattr__(service.deps, "platform", drill.Platform(files))
    service.step()
    check(files, bad=True)


@pytest.mark.parametrize("phase", ["preparing", "running", "rolling_back", "promoting"])
def test_a_table_that_somebody_else_publishes_meanwhile_holds(
    tmp_path: Path, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the decision for a table and its publishing, a deploy publishes one: it is not overwritten."""
    files = drill.set_up(tmp_path)
    held = controller_lease.acquire(tmp_path)
    assert held is not None
    service = drill.controller(files, held)
    deployed = RoutingTable("lending", 0, (dataclasses.replace(drill.CHAMPION, version="3", digest="d3"),))

    def deploy(point: str) -> None:
        table = files.table()
        assert table is not None
        due = isinstance(next(iter(service.saved.todo), None), SetTable) if service.saved is not None else False
        if point == "rollout.acting" and due and service.saved is not None and service.saved.state.phase == phase:
            if table.champion.digest == "d3":
                return
            files.write_table(dataclasses.replace(deployed, epoch=table.epoch + 1))

    monkeypatch.setattr(failpoint, "hit", deploy)
    for _ in range(drill.ROUNDS):
        service.step()
        if drill.ended(files) is not None:
            break
        drill.answer_requests(files, 0.3 if phase == "rolling_back" else 0.0)
    state, table = drill.ended(files), files.table()
    assert state is not None
    assert table is not None
    assert (state.phase, table.champion.digest) == ("aborted", "d3")
    assert not (files.folder / "promoted.jsonl").exists()
    turned_down = phase == "rolling_back"
    assert list(version_history.rejections(files)) == (["d2"] if turned_down else [])
    assert len(list((files.folder / "incidents").glob("*.json"))) == turned_down
