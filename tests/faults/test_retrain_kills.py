"""A retraining is made once: over controllers and processes that die at any point, two at a time, and clock steps."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mlflowkit.monitoring.retrain import episodes
from mlflowkit.monitoring.retrain.retrain_driver import PERSON_REQUEST
from mlflowkit.monitoring.retrain.steady_clock import Moment, this_moment
from mlflowkit.rollout import commands
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system.failpoint import RETRAIN_POINTS
from tests.support import retrain_drill as drill
from tests.support.rollout_drill import entries
from tests.support.waiting import wait_for

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["mlflowkit.monitoring.retrain.retrain_driver", "tests.support.retrain_drill"])
OF_THE_CONTROLLER, OF_THE_PROCESS = RETRAIN_POINTS[:4], RETRAIN_POINTS[4:]


def run(state: Path, *arguments: str) -> int | None:
    """Control in a process of its own; its exit code."""
    process = _context.Process(target=drill.control, args=(state, *arguments))
    process.start()
    process.join(120)
    return process.exitcode


def check(files: ServiceFiles, ending: str = "promoted") -> None:
    """The drift was answered by one episode, and one version came of it."""
    episode = drill.only_episode(files)
    assert episode.ending == ending, episode
    assert [version for *_, version in drill.trained(files.state)] == ["v2"]
    table = files.table()
    assert table is not None
    assert table.champion.digest == "digest-v2"


@pytest.mark.parametrize("point", OF_THE_CONTROLLER)
def test_a_controller_that_is_killed_anywhere_trains_once(tmp_path: Path, point: str) -> None:
    killed = 0
    for number in itertools.count(1):
        state = tmp_path / f"{number}"
        files = drill.set_up(state)
        code = run(state, f"{point}:{number}")
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
        assert run(state) == 0
        check(files)
    assert killed >= 2


@pytest.mark.parametrize("point", OF_THE_PROCESS)
@pytest.mark.parametrize("task", ["look", "train"])
def test_a_process_that_is_lost_is_noticed_and_replaced(tmp_path: Path, point: str, task: str) -> None:
    files = drill.set_up(tmp_path)
    assert run(tmp_path, "", point, f"{task}-1") == 0
    deployed_untold = (task, point) == ("train", "retrain.worked")
    check(files, "superseded" if deployed_untold else "promoted")
    episode = drill.only_episode(files)
    if task == "train":
        statuses = [attempt.status for attempt in episode.runs]
        assert statuses == (["lost"] if deployed_untold else ["done"] if point == "retrain.ended" else ["lost", "done"])
    else:
        assert len(entries(tmp_path / "looks.jsonl")) == (4 if point == "retrain.worked" else 2)


def test_two_controllers_at_once_train_once(tmp_path: Path) -> None:
    """Neither waits for the other: only the claims keep their processes apart."""
    files = drill.set_up(tmp_path)
    both = [drill.Drill(files), drill.Drill(files)]
    for one in both:
        one.window += drill.DAY

    def over() -> bool:
        for one in both:
            one.driver.tick(one.situation((drill.DRIFT,), 0))
        return all(one.driver.episode is None for one in both) and bool(drill.trained(tmp_path))

    wait_for(over, what="the end of both")
    check(files)


def test_many_processes_for_one_attempt_do_the_work_once(tmp_path: Path) -> None:
    files = drill.set_up(tmp_path)
    launcher = drill.ForkLauncher()
    one = drill.Drill(files, launcher)
    one.window += drill.DAY
    original = launcher.start

    def several(files: ServiceFiles, id: str, attempt: str) -> None:
        for _ in range(5):
            original(files, id, attempt)

    launcher.start = several  # type: ignore[method-assign]
    wait_for(lambda: one.driver.tick(one.situation((drill.DRIFT,), 0)).episode == "", what="the end of the episode")
    for pids in launcher.children.values():
        for pid in pids:
            if pid not in launcher.codes:
                os.waitpid(pid, 0)
    check(files)


def test_failed_runs_are_repeated_until_a_person_is_needed(tmp_path: Path) -> None:
    files = drill.set_up(tmp_path)
    (tmp_path / "runs.json").write_text('{"code": 3}')
    world = drill.Drill(files)
    states = [world.close_window().state for _ in range(4)]
    assert states[-1] == "asking"
    assert len(drill.trained(tmp_path)) == drill.TERMS.failures
    again = drill.Drill(files)  # another controller knows it, too
    again.window = world.window
    assert again.close_window().state == "asking"
    assert len(drill.trained(tmp_path)) == drill.TERMS.failures


@pytest.mark.parametrize("code", [1, 4])
def test_a_gate_that_does_not_pass_ends_it_until_the_data_change(tmp_path: Path, code: int) -> None:
    files = drill.set_up(tmp_path)
    (tmp_path / "runs.json").write_text(f'{{"code": {code}}}')
    world = drill.Drill(files)
    reports = [world.close_window() for _ in range(5)]
    assert [attempt.outcome for attempt in drill.only_episode(files).runs] == ["rejected"]
    assert len(drill.trained(tmp_path)) == 1
    assert reports[-1].state == "wanted"
    (tmp_path / "data.txt").write_text("v3")
    (tmp_path / "runs.json").write_text("{}")
    world.close_window()
    assert [version for *_, version in drill.trained(tmp_path)] == ["v2", "v3"]
    assert drill.only_episode(files).ending == "promoted"


def test_unchanged_data_are_looked_at_in_each_window_and_not_trained_on(tmp_path: Path) -> None:
    files = drill.set_up(tmp_path, data="v1")
    world = drill.Drill(files)
    reports = [world.close_window() for _ in range(4)]
    assert [report.state for report in reports] == ["waiting"] * 4
    world.window += drill.DAY
    again = world.driver.tick(world.situation((drill.DRIFT,), 0))  # looks once more
    assert (again.state, again.decision.kind) == ("waiting", "waiting for data")
    world.close_window()
    assert len(entries(tmp_path / "looks.jsonl")) in (5, 6)
    assert sum(len(report.sentences) for report in reports) <= 2
    assert not drill.trained(tmp_path)
    (tmp_path / "data.txt").write_text("v2")
    world.close_window()
    check(files)


def test_a_look_that_takes_longer_than_a_window_is_decided_by_all_the_same(tmp_path: Path) -> None:
    """Each tick closes a window, as where windows are of seconds: a look ends in a later one than it began in."""
    files = drill.set_up(tmp_path)
    world = drill.Drill(files)

    def closes() -> bool:
        world.window += drill.DAY
        report = world.driver.tick(world.situation((drill.DRIFT,), 0))
        time.sleep(0.2)  # the look ends meanwhile
        return report.episode == "" and bool(drill.trained(tmp_path))

    wait_for(closes, what="the end of the episode")
    check(files)


def test_an_alarm_that_ends_closes_its_episode(tmp_path: Path) -> None:
    files = drill.set_up(tmp_path, data="v1")
    world = drill.Drill(files)
    world.close_window()
    world.close_window((), healthy=1)
    assert drill.only_episode(files).open
    world.close_window((), healthy=2)
    assert drill.only_episode(files).ending == "resolved"
    assert not drill.trained(tmp_path)


def test_budget_and_cooldown_hold_over_restarts_and_clock_steps(tmp_path: Path) -> None:
    files = drill.set_up(tmp_path)
    terms = replace(drill.TERMS, cooldown=3600.0, budget_runs=2)
    start, passed, step = this_moment(), [0.0], [0.0]

    def clock() -> Moment:
        return Moment(start.wall + passed[0] + step[0], start.uptime + passed[0], start.boot)

    def train(data: str, since: float) -> str:
        (tmp_path / "data.txt").write_text(data)
        world = drill.Drill(files, terms=terms, clock=clock)
        world.window += since
        return world.close_window((replace(drill.DRIFT, since=since),), lasting=True).state

    def versions() -> list[str]:
        return [version for *_, version in drill.trained(tmp_path)]

    train("v2", 1.0)
    assert versions() == ["v2"]
    for step[0] in (0.0, 9 * drill.DAY, -9 * drill.DAY):  # the wall clock is moved, a minute passes
        passed[0] += 60.0
        assert train("v3", 2.0) == "wanted"
    assert versions() == ["v2"]
    passed[0] += 3600.0
    train("v3", 2.0)
    assert versions() == ["v2", "v3"]
    for step[0] in (0.0, 30 * drill.DAY, -30 * drill.DAY):
        passed[0] += 2 * 3600.0
        assert train("v4", 3.0) == "wanted"
    assert versions() == ["v2", "v3"]
    passed[0] += terms.budget_seconds
    train("v4", 3.0)
    assert versions() == ["v2", "v3", "v4"]


def test_a_damaged_episode_stops_no_other(tmp_path: Path) -> None:
    files = drill.set_up(tmp_path)
    files.write_bytes("monitor/episodes/damaged.json", b'{"format": 1, "id": 7}')
    files.write_bytes("monitor/episodes/cut.json", b'{"format"')
    drill.Drill(files).close_window()
    episode = next(episode for episode in episodes.read_episodes(files))
    assert episode.ending == "promoted"


def ask(files: ServiceFiles, id: str = "ask-1") -> None:
    files.write_json(PERSON_REQUEST, {"id": id, "time": 12_345.0})


def test_a_person_gets_a_run_without_an_alarm_and_past_the_cooldown(tmp_path: Path) -> None:
    files = drill.set_up(tmp_path)
    world = drill.Drill(files, terms=replace(drill.TERMS, cooldown=3600.0))
    world.close_window(())
    assert not drill.trained(tmp_path)
    for number in range(2):  # the request is read twice by a controller that is killed before it removes it
        ask(files)
        world.close_window(())
        assert len(drill.trained(tmp_path)) == 1, number
    reply = commands.read_reply(files, "ask-1")
    assert reply is not None
    assert reply.ok
    assert episodes.read_episodes(files)[0].by == "person"


def test_a_person_is_told_why_there_is_no_run(tmp_path: Path) -> None:
    files = drill.set_up(tmp_path, data="v1")
    world = drill.Drill(files)
    ask(files)
    world.close_window(())
    world.close_window(())
    episode = drill.only_episode(files)
    assert (episode.ending, episode.decision) == ("answered", "waiting for data")
    assert not drill.trained(tmp_path)


def test_a_persons_run_that_fails_is_not_repeated_for_ever(tmp_path: Path) -> None:
    files = drill.set_up(tmp_path)
    (tmp_path / "runs.json").write_text('{"code": 3}')
    world = drill.Drill(files)
    ask(files)
    for _ in range(4):
        world.close_window(())
    assert len(drill.trained(tmp_path)) == drill.TERMS.failures
    assert drill.only_episode(files).ending == "answered"


def test_a_controller_that_lags_behind_overwrites_nothing(tmp_path: Path) -> None:
    """It read the episode before another one had answered the drift, and takes what that one wrote."""
    files = drill.set_up(tmp_path)
    first = drill.Drill(files)
    first.window += drill.DAY
    first.driver.tick(first.situation((drill.DRIFT,), 0))
    late = drill.Drill(files)
    late.window = first.window
    assert late.driver.episode is not None
    wait_for(lambda: first.driver.tick(first.situation((drill.DRIFT,), 0)).episode == "", what="the end of the episode")
    wait_for(lambda: late.driver.tick(late.situation((drill.DRIFT,), 0)).episode == "", what="its end for the other")
    check(files)


def test_a_champion_that_changes_while_a_situation_is_looked_at_opens_nothing_again(tmp_path: Path) -> None:
    """The run's version becomes champion after the situation was read, and before what it came to."""
    files = drill.set_up(tmp_path)
    one = drill.Drill(files)
    one.window += drill.DAY
    stale = one.situation((drill.DRIFT,), 0)
    wait_for(lambda: one.driver.tick(stale).episode == "" and drill.trained(tmp_path), what="the end of the episode")
    check(files)
    assert drill.only_episode(files).looks == 1
