"""Interrupted, crowded, crashed, out of room, damaged: each is told plainly, and the next run goes on."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.errors import EngineError, GateFailedError, GateInconclusiveError, StoreError, WorldError
from mlflowkit.pipeline import JOURNAL
from mlflowkit.pipeline.run import raise_for
from mlflowkit.pipeline.storage import step_lease as leases
from mlflowkit.pipeline.storage.journal import SqliteJournal
from mlflowkit.pipeline.storage.step_lease import this_owner
from mlflowkit.values import Event, HeldLease, Outcome, Owner, Published, StageResult, StepLease, StepResult
from tests.support import ROOT
from tests.support.pipeline_world import PipelineWorld, lay_out
from tests.support.waiting import wait_for

WORLD = [sys.executable, "-m", "tests.support.pipeline_world"]
ELSEWHERE = Owner("another-machine", 1, "0")


@pytest.fixture
def world(tmp_path: Path) -> PipelineWorld:
    lay_out(tmp_path)
    return PipelineWorld(tmp_path)


def wait_until_training(folder: Path, seconds: float = 30.0) -> None:
    """Until the first checkpoint is there."""
    wait_for(lambda: list(folder.glob(".mlkit/scratch/*/epoch-0")), seconds, "the first checkpoint")


def start(folder: Path) -> subprocess.Popen[str]:
    """A run in another process, whose training waits after its first epoch."""
    command = [*WORLD, str(folder), "--hold"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_resumes_at_its_checkpoint(world: PipelineWorld, number: signal.Signals) -> None:
    first = start(world.folder)
    wait_until_training(world.folder)
    first.send_signal(number)
    world.let_go()
    out, err = first.communicate(timeout=30)
    assert first.returncode == 130, err
    assert json.loads(out)["error"]["hint"] == "run the same command again to resume"
    journal = SqliteJournal(world.folder / ".mlkit")
    cut = journal.run("last")
    assert cut.status == "interrupted"
    assert {step.stage: step.status for step in cut.steps}["train"] == "interrupted"
    record = world.run()
    assert record.status == "done"
    assert world.calls().count("data") == 1
    assert int((world.folder / "resumed").read_text()) >= 1


def test_second_run_waits_and_says_for_whom(world: PipelineWorld) -> None:
    first = start(world.folder)
    wait_until_training(world.folder)

    class Heard(list[Event]):
        def append(self, event: Event) -> None:
            super().append(event)
            if event.message.startswith("waiting for run"):
                world.let_go()

    events = Heard()
    record = world.run(events=events)
    out, err = first.communicate(timeout=30)
    assert first.returncode == 0, err
    one = json.loads(out)
    assert f"waiting for run {one['run']}, which is training" in [event.message for event in events]
    assert world.calls().count("train") == 1
    assert [step.digest for step in record.steps] == [step["digest"] for step in one["steps"]]


def test_killed_owner_is_taken_over_at_once(world: PipelineWorld) -> None:
    first = start(world.folder)
    wait_until_training(world.folder)
    first.kill()
    first.communicate()
    began = time.monotonic()
    assert world.run().status == "done"
    assert time.monotonic() - began < leases.EXPIRY_SECONDS


# ------------------------------------------------------------------------------------------------------------- leases


def test_owner_elsewhere_is_borne_while_its_heartbeat_moves() -> None:
    now = [0.0]
    watch = leases.LeaseWatcher(clock=lambda: now[0])
    for beat in range(5):
        now[0] += leases.EXPIRY_SECONDS * 0.9
        assert not watch.is_dead(HeldLease(ELSEWHERE, "run", "train", heartbeat=beat, fence=1))
    now[0] += leases.EXPIRY_SECONDS * 1.1
    assert watch.is_dead(HeldLease(ELSEWHERE, "run", "train", heartbeat=4, fence=1))


def test_owner_elsewhere_is_taken_over_when_its_heartbeat_stands_still(
    world: PipelineWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 0.3)
    journal = SqliteJournal(world.folder / ".mlkit")
    fingerprint = world.run(until="data").steps[0].fingerprint
    assert isinstance(journal.take_lease(fingerprint, ELSEWHERE, "theirs", "data"), StepLease)
    events: list[Event] = []
    assert world.run(until="data", force=["data"], events=events).status == "done"
    assert "waiting for run theirs, which is reading data" in [event.message for event in events]


def test_stale_fence_cannot_publish(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    old = journal.take_lease("f" * 64, ELSEWHERE, "theirs", "train")
    assert isinstance(old, StepLease)
    held = journal.take_lease("f" * 64, this_owner(), "mine", "train")
    assert isinstance(held, HeldLease)
    new = journal.take_lease("f" * 64, this_owner(), "mine", "train", over=held)
    assert isinstance(new, StepLease)
    assert new.fence == old.fence + 1
    with pytest.raises(StoreError, match="another run took over"):
        journal.publish(_result("theirs"), old)
    assert journal.result("f" * 64) is None
    journal.publish(_result("mine"), new)
    published = journal.result("f" * 64)
    assert published is not None
    assert published.run == "mine"


def test_fence_grows_over_releases(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    fences = []
    for _ in range(3):
        taken = journal.take_lease("a" * 64, this_owner(), "run", "data")
        assert isinstance(taken, StepLease)
        fences.append(taken.fence)
        journal.release_lease(taken)
    assert fences == [1, 2, 3]


def test_beat_that_moved_meanwhile_keeps_the_lease(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    lease = journal.take_lease("b" * 64, ELSEWHERE, "theirs", "train")
    assert isinstance(lease, StepLease)
    seen = journal.held_lease("b" * 64)
    journal.renew_lease(lease)
    assert isinstance(journal.take_lease("b" * 64, this_owner(), "mine", "train", over=seen), HeldLease)


def _result(run: str) -> StepResult:
    return StepResult("f" * 64, "train", "tiny", Published("d" * 64, {}), StageResult(), {}, {}, run)


# ----------------------------------------------------------------------------------------------------------- failures


def test_stage_that_raises_is_told_with_its_traceback(world: PipelineWorld) -> None:
    def broken(spec: Any, context: Any) -> StageResult:
        (context.out / "half").write_text("half written")
        raise ValueError("bad shape (3, 4)")

    world.stages["export"] = broken
    with pytest.raises(EngineError, match=r"export raised ValueError: bad shape") as caught:
        world.run()
    trace = Path(caught.value.hint.split()[1])
    assert "in broken" in trace.read_text()
    record = SqliteJournal(world.folder / ".mlkit").run("last")
    assert record.status == "failed"
    assert {step.stage: step.status for step in record.steps}["export"] == "failed"
    assert not list((world.folder / ".mlkit" / "tmp").glob("*"))
    assert PipelineWorld(world.folder).run().status == "done"
    assert world.calls().count("train") == 1


@pytest.mark.parametrize(
    ("outcome", "status", "error"),
    [
        (Outcome.FAILED, "gate-failed", GateFailedError),
        (Outcome.ERROR, "gate-failed", GateFailedError),
        (Outcome.INCONCLUSIVE, "inconclusive", GateInconclusiveError),
    ],
)
def test_blocking_verdict_stops_the_run_each_time(
    tmp_path: Path, outcome: Outcome, status: str, error: type[Exception]
) -> None:
    lay_out(tmp_path)
    world = PipelineWorld(tmp_path, outcome=outcome)
    for attempt in range(2):
        record = world.run(reporter=lambda record, folders: record.status)
        assert record.status == status
        assert {step.stage: step.status for step in record.steps}["package"] == "pending"
        assert Path(record.report).read_text() == status
        with pytest.raises(error, match="accuracy"):
            raise_for(record)
        assert len(SqliteJournal(tmp_path / ".mlkit").runs()) == 1, attempt
    assert "package" not in world.calls()
    assert not (tmp_path / "service").exists()


def test_tracker_that_is_down_costs_no_result_and_is_told_later(world: PipelineWorld) -> None:
    world.tracker_fails = True
    record = world.run()
    assert record.status == "done"
    with pytest.raises(WorldError, match="no answer from http://tracker"):
        raise_for(record)
    world.tracker_fails = False
    again = world.run()
    raise_for(again)
    assert again.run == record.run
    assert world.noted("recorded") == [record.run]
    assert world.noted("registered") == ["tiny@challenger", "tiny@champion"]


def test_report_that_fails_costs_no_result(world: PipelineWorld) -> None:
    def broken(record: Any, folders: Any) -> str:
        raise KeyError("roc")

    record = world.run(reporter=broken)
    assert record.status == "done"
    with pytest.raises(WorldError, match="report could not be written"):
        raise_for(record)


def test_stage_may_publish_plain_files_only(world: PipelineWorld) -> None:
    def linking(spec: Any, context: Any) -> StageResult:
        (context.out / "link").symlink_to("/etc/hostname")
        return StageResult()

    world.stages["validate"] = linking
    with pytest.raises(StoreError, match="plain files only"):
        world.run()


# ------------------------------------------------------------------------------------------------------------ storage


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB; only root may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a file system needs root; failpoints try the same in test_pipeline_kills")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_disk_that_is_full(small_disk: Path) -> None:
    lay_out(small_disk)
    world = PipelineWorld(small_disk)

    def heavy(spec: Any, context: Any) -> StageResult:
        world.called("export", context)
        (context.out / "model.onnx").write_bytes(os.urandom(3 << 20))
        return StageResult()

    world.stages["export"] = heavy
    with pytest.raises(StoreError, match="the disk is full") as caught:
        world.run()
    assert "run the same command again" in caught.value.hint
    assert not list((small_disk / ".mlkit" / "tmp").glob("*"))
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert world.run().status == "done"
    assert world.calls().count("train") == 1


def test_journal_on_a_full_disk_is_told(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    with journal.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    with pytest.raises(StoreError, match="the disk is full"):
        journal.save_file_digests({f"/file-{number}": ("stat", "d" * 64) for number in range(2000)})


def test_journal_that_is_no_database(world: PipelineWorld) -> None:
    state = world.folder / ".mlkit"
    state.mkdir()
    (state / JOURNAL).write_bytes(b"this is not a database, whatever it is called" * 100)
    with pytest.raises(StoreError, match="damaged") as caught:
        world.run()
    assert f"mv {state / JOURNAL}* " in caught.value.hint


def test_journal_of_a_newer_version_is_left_alone(world: PipelineWorld) -> None:
    world.run()
    path = world.folder / ".mlkit" / JOURNAL
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'version'")
    with pytest.raises(StoreError, match="newer mlflowkit") as caught:
        world.run()
    assert "upgrade" in caught.value.hint


def test_altered_result_is_made_anew(world: PipelineWorld) -> None:
    first = world.run()
    digest = next(step.digest for step in first.steps if step.stage == "train")
    (world.folder / ".mlkit" / "objects" / digest / "weights" / "model").unlink()
    again = world.run()
    steps = {step.stage: step for step in again.steps}
    assert steps["train"].reason == "its published folder is missing or was altered"
    assert steps["train"].digest == digest
    assert steps["evaluate"].action == "reuse"


def test_published_files_are_read_only(world: PipelineWorld) -> None:
    world.run()
    files = [path for path in (world.folder / ".mlkit" / "objects").rglob("*") if path.is_file()]
    assert files
    assert {path.stat().st_mode & 0o222 for path in files} == {0}


def test_a_run_that_failed_is_mirrored_at_once(world: PipelineWorld) -> None:
    def broken(spec: Any, context: Any) -> StageResult:
        raise ValueError("bad shape")

    whole = world.stages["export"]
    world.stages["export"] = broken
    with pytest.raises(EngineError):
        world.run()
    failed = SqliteJournal(world.folder / ".mlkit").run("last")
    assert world.noted("recorded") == [failed.run]
    world.stages["export"] = whole
    done = world.run()
    assert world.noted("recorded") == [failed.run, done.run]


def test_a_run_that_was_killed_is_mirrored_by_the_next(world: PipelineWorld) -> None:
    environment = {**os.environ, "MLKIT_FAILPOINT": "stage.returned@train"}
    command = [*WORLD, str(world.folder)]
    assert subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=False).returncode == -9
    killed = SqliteJournal(world.folder / ".mlkit").run("last")
    done = world.run()
    assert sorted(world.noted("recorded")) == sorted([killed.run, done.run])


def test_a_tracker_that_fails_does_not_hide_why_the_run_failed(world: PipelineWorld) -> None:
    def broken(spec: Any, context: Any) -> StageResult:
        raise ValueError("bad shape")

    world.tracker_fails = True
    world.stages["export"] = broken
    with pytest.raises(EngineError, match="bad shape"):
        world.run()
