"""`mlkit gc` removes what nothing needs, beside running runs, and may be killed at any point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflowkit.cli import app as cli
from mlflowkit.errors import StoreError
from mlflowkit.pipeline.storage.collector import Collector
from mlflowkit.pipeline.storage.garbage import (
    Folder,
    Inventory,
    Keeping,
    StoredAlias,
    StoredResult,
    StoredRun,
    plan_collection,
)
from mlflowkit.pipeline.storage.journal import SqliteJournal
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system import failpoint
from tests.support import ROOT
from tests.support.pipeline_world import PipelineWorld, lay_out
from tests.support.waiting import wait_for

NOW = Keeping(runs=1, since=float("inf"))
"""Keep the newest run of each recipe and nothing for its age."""
GC = """
import sys
from pathlib import Path
from mlflowkit.pipeline.storage.collector import Collector
from mlflowkit.pipeline.storage.garbage import Keeping
Collector(Path(sys.argv[1])).collect(Keeping(1, float("inf")))
"""


@pytest.fixture
def world(tmp_path: Path) -> PipelineWorld:
    """Three runs of different training, and a service that the last one deployed."""
    lay_out(tmp_path)
    world = PipelineWorld(tmp_path)
    for epochs in (3, 4, 5):
        world.run({"train.epochs": epochs}, reporter=lambda *_: "<html>")
    return world


def state_of(world: PipelineWorld) -> Path:
    return world.folder / ".mlkit"


def assert_consistent(state: Path) -> None:
    """Every row that names a folder has it whole, every folder has a row, every run its steps."""
    world = PipelineWorld(state.parent)
    with SqliteJournal(state) as journal:
        _, results, aliases = journal.stored()
        for result in results:
            stored = journal.result(result.fingerprint)
            assert stored is not None
            assert world.objects.intact(stored.published), result
        for alias in aliases:
            assert all((state / "objects" / digest).is_dir() for digest in alias.digests), alias
        for run in journal.runs():
            assert run.steps
            assert not run.report or Path(run.report).is_file()


def test_what_nothing_needs_goes_and_the_rest_is_whole(world: PipelineWorld) -> None:
    state = state_of(world)
    before = {path.name for path in (state / "objects").iterdir()}
    planned = Collector(state).plan(NOW)
    assert {path.name for path in (state / "objects").iterdir()} == before, "a plan changes nothing"
    collection = Collector(state).collect(NOW)
    assert collection == planned
    assert len(collection.names("run")) == 2
    after = {path.name for path in (state / "objects").iterdir()}
    assert before - after == set(collection.names("object")) != set()
    assert not list((state / "tmp").iterdir())
    assert_consistent(state)
    assert len(list((state / "runs").iterdir())) == 1
    again = world.run({"train.epochs": 5})
    assert {step.action for step in again.steps} == {"reuse"}, "what is kept is enough for the last recipe"
    assert world.run({"train.epochs": 3}).status == "done", "what went is made again"
    assert Collector(state).collect(replace(NOW, runs=9)).names("run") == ()


def test_nothing_recent_goes(world: PipelineWorld) -> None:
    assert Collector(state_of(world)).plan(Keeping(1, time.time() - 3600)).removed == ()


@pytest.mark.parametrize("form", ["path", "identity"])
def test_what_a_service_names_stays(world: PipelineWorld, form: str) -> None:
    """In whichever record: a table, a proposal, the history for rollbacks, a rollout."""
    state = state_of(world)
    with SqliteJournal(state) as journal:
        oldest = journal.runs()[-1]
    package = next(step for step in oldest.steps if step.stage == "package")
    assert package.result is not None
    named = state / "objects" / package.digest / "bundle" if form == "path" else package.result.summary["identity"]
    ServiceFiles(state / "services" / "tiny").write_bytes("champions.json", json.dumps([{"x": str(named)}]).encode())
    collection = Collector(state).collect(NOW)
    assert package.digest not in collection.names("object")
    assert (state / "objects" / package.digest).is_dir()
    assert_consistent(state)


@pytest.mark.parametrize("point", ["gc.decided", "gc.forgotten", "gc.renaming", "gc.renaming:3", "gc.renamed"])
def test_killed_anywhere_it_leaves_a_state_that_holds(world: PipelineWorld, point: str) -> None:
    state = state_of(world)
    environment = {**os.environ, failpoint.VARIABLE: point}
    killed = subprocess.run([sys.executable, "-c", GC, str(state)], env=environment, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert_consistent(state)
    assert {step.action for step in world.run({"train.epochs": 5}).steps} == {"reuse"}
    Collector(state).collect(NOW)
    assert_consistent(state)
    assert not list((state / "tmp").iterdir())
    with SqliteJournal(state) as journal:
        named = {result.digest for result in journal.stored()[1]}
    assert {path.name for path in (state / "objects").iterdir()} == named, "what the killed one left is gone"


def test_a_run_that_has_planned_keeps_what_it_reuses(world: PipelineWorld) -> None:
    """It is stopped between its plan and its record; collecting waits for it."""
    state = state_of(world)
    world.run({"train.epochs": 3, "gates": [{"metric": "accuracy", "min": 0.4}]})  # its first steps are reused by none
    command = [sys.executable, "-m", "tests.support.pipeline_world", str(world.folder)]
    environment = {**os.environ, failpoint.VARIABLE: "hang:run.planned"}
    run = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: blocked(state), 60, "the run to hold the storage lock")
    collector = subprocess.Popen([sys.executable, "-c", GC, str(state)])
    wait_for(lambda: waits_for_lock(collector.pid), 60, "the collector to wait for the lock")
    assert collector.poll() is None
    run.kill()
    run.communicate()
    assert collector.wait(60) == 0
    assert_consistent(state)


def blocked(state: Path) -> bool:
    import fcntl

    if not (state / "storage.lock").exists():
        return False
    with (state / "storage.lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def waits_for_lock(pid: int) -> bool:
    return any(f" {pid} " in line and "->" in line for line in Path("/proc/locks").read_text().splitlines())


def test_beside_a_training_run_nothing_of_it_goes(world: PipelineWorld) -> None:
    state = state_of(world)
    command = [sys.executable, "-m", "tests.support.pipeline_world", str(world.folder), "--hold"]
    (world.folder / "net.py").write_text("from helper import width\n\n\nclass Net:\n    hidden = 2 * width()\n")
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: list(state.glob("scratch/*/epoch-0")), 60, "the first checkpoint")
    collection = Collector(state).collect(replace(NOW, runs=0))
    assert collection.names("run")
    assert not collection.names("checkpoint")
    world.let_go()
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 0, out
    assert_consistent(state)


def test_the_command_tells_what_goes_and_why(world: PipelineWorld, capsys: pytest.CaptureFixture[str]) -> None:
    state = str(state_of(world))

    def gc(*arguments: str) -> str:
        with pytest.raises(SystemExit) as done:
            cli.main(["gc", "--state", state, "--keep-runs", "1", "--older-than", "0", *arguments])
        assert not done.value.code
        return capsys.readouterr().out

    told = json.loads(gc("--dry-run", "--json"))
    assert told["dry_run"] is True
    assert told["bytes"] == sum(item["bytes"] for item in told["removed"]) > 0
    assert all(item["reason"] for item in (*told["removed"], *told["kept"]))
    shown = gc("--dry-run")
    assert "would go" in shown
    assert "not among the newest 1 of tiny" in shown
    assert json.loads(gc("--json"))["removed"] == told["removed"]
    assert json.loads(gc("--json"))["removed"] == []


@pytest.mark.parametrize("text", ["", "d", "3", "-1d", "1y", "1 d d"])
def test_a_time_that_is_none_is_a_wrong_command(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["gc", "--state", str(tmp_path), f"--older-than={text}"])
    assert done.value.code == 2
    assert "--older-than 30d" in capsys.readouterr().err


def test_a_state_folder_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["gc", "--state", str(tmp_path / "none")])
    assert done.value.code == 2
    assert not (tmp_path / "none").exists()


def test_a_link_to_elsewhere_is_not_followed(world: PipelineWorld, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / ("a" * 64)).mkdir(parents=True)
    (state_of(world) / "objects" / ("b" * 64)).symlink_to(precious)
    (state_of(world) / "trials").symlink_to(precious)
    Collector(state_of(world)).collect(replace(NOW, runs=0))
    assert (precious / ("a" * 64)).is_dir()


# the decision, for any inventory

NAMES = st.sampled_from([f"{number:064x}" for number in range(8)])
SETS = st.frozensets(NAMES, max_size=4)
RUNS = st.builds(
    StoredRun, st.text("0123", min_size=1, max_size=3), st.sampled_from("ab"), st.floats(0, 100), st.booleans(),
    st.booleans(), SETS, SETS,
)  # fmt: skip
RESULTS = st.builds(StoredResult, NAMES, NAMES, SETS, NAMES)
ALIASES = st.builds(
    StoredAlias, st.sampled_from("ab"), st.sampled_from(["champion", "challenger", "candidate-1"]), NAMES,
    st.text("0123", min_size=1, max_size=3), SETS,
)  # fmt: skip
OBJECTS = st.frozensets(NAMES).map(lambda names: {name: Folder(name, 1, 0.0) for name in names})
INVENTORIES: Any = st.builds(
    Inventory,
    runs=st.lists(RUNS, max_size=6, unique_by=lambda run: run.run).map(tuple),
    results=st.lists(RESULTS, max_size=8, unique_by=lambda result: result.fingerprint).map(tuple),
    aliases=st.lists(ALIASES, max_size=4).map(tuple),
    mentioned=SETS,
    live=SETS,
    objects=OBJECTS,
)


@given(INVENTORIES, st.integers(0, 3), st.floats(0, 100))
def test_what_is_needed_never_goes(inventory: Inventory, keep: int, since: float) -> None:
    collection = plan_collection(inventory, Keeping(keep, since))
    gone, runs = set(collection.names("object")), set(collection.names("run"))
    assert not gone & inventory.mentioned
    for run in inventory.runs:
        if run.run not in runs:
            assert not gone & run.digests
        assert not (run.active and run.run in runs)
    for alias in inventory.aliases:
        if alias.alias in ("champion", "challenger"):
            assert not gone & alias.digests
    for result in inventory.results:
        assert (result.digest in gone) == (result.fingerprint in collection.results)
        assert not (result.fingerprint in inventory.live and result.digest in gone)
    kept = {item.name for item in collection.kept if item.kind == "object"}
    assert gone | kept == set(inventory.objects)
    assert not gone & kept


@pytest.mark.parametrize("name", ["tmp", "receipts"])
def test_a_folder_that_leads_out_of_the_state_is_not_emptied(name: str, tmp_path: Path) -> None:
    """A state folder may have been unpacked from anywhere."""
    state, elsewhere = tmp_path / ".mlkit", tmp_path / "elsewhere"
    with SqliteJournal(state):
        pass
    (elsewhere / "gc.photos").mkdir(parents=True)
    (elsewhere / "gc.photos" / "a").touch()
    (state / name).symlink_to(elsewhere)
    with pytest.raises(StoreError, match="outside the state folder"):
        Collector(state).collect(NOW)
    assert (elsewhere / "gc.photos" / "a").exists()
