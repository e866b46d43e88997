"""What a run owes to other systems is delivered once, whatever fails, and costs no result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.cli.app import main
from mlflowkit.errors import DeliveryRefusedError, ServiceError, UsageError, WorldError
from mlflowkit.pipeline.outbox import delivery_schedule, run_deliveries
from mlflowkit.pipeline.run import raise_for
from mlflowkit.pipeline.storage.journal import SqliteJournal
from mlflowkit.ports import FinishedRun
from mlflowkit.values import Event, RunDelivery, RunRecord
from tests.support.pipeline_world import PipelineWorld, lay_out

MLKIT = (sys.executable, "-c", "from mlflowkit.cli import main; main()")


@dataclass
class Shelf:
    """A target that keeps bundles by identity in a folder: what is there is not put again."""

    folder: Path
    name: str = "shelf a"
    problem: Callable[[], Exception | None] = lambda: None
    puts: list[str] = field(default_factory=list)
    closed: int = 0

    def key(self, run: RunRecord) -> str:
        return run.bundle if run.blessed else ""

    def deliver(self, run: FinishedRun) -> str:
        if (error := self.problem()) is not None:
            raise error
        manifest = run.folders["package"] / "bundle" / "manifest.json"
        place = self.folder / json.loads(manifest.read_text())["identity"]
        if not place.exists():
            place.write_text(run.record.run)
            self.puts.append(run.record.run)
        return str(place)

    def defer(self) -> bool:
        return False

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def world(tmp_path: Path) -> PipelineWorld:
    lay_out(tmp_path / "work")
    return PipelineWorld(tmp_path / "work")


@pytest.fixture
def shelf(world: PipelineWorld, tmp_path: Path) -> Shelf:
    (tmp_path / "shelf").mkdir()
    target = Shelf(tmp_path / "shelf")
    world.targets = (target,)
    return target


def deliveries(world: PipelineWorld, target: str = "shelf a") -> list[RunDelivery]:
    with SqliteJournal(world.folder / ".mlkit") as journal:
        return [item for item in journal.deliveries() if item.target == target]


def down() -> Exception:
    return ServiceError("no answer from the shelf", hint="is it up?")


def test_a_finished_run_is_delivered_with_its_bundle(world: PipelineWorld, shelf: Shelf) -> None:
    record = world.run()
    raise_for(record)
    assert shelf.puts == [record.run]
    (item,) = deliveries(world)
    assert (item.status, item.key, item.attempts) == ("delivered", record.bundle, 1)
    assert item.receipt == str(shelf.folder / record.bundle)
    assert {delivery.target for delivery in record.deliveries} == {"shelf a", "mlflow"}
    assert shelf.closed
    world.run()
    assert shelf.puts == [record.run]


def test_a_system_that_is_down_costs_no_model_and_the_next_run_delivers(world: PipelineWorld, shelf: Shelf) -> None:
    shelf.problem = down
    record = world.run()
    assert (record.status, record.blessed) == ("done", True)
    with pytest.raises(
        WorldError, match=r"not delivered to shelf a: no answer from the shelf \(is it up\?\)"
    ) as raised:
        raise_for(record)
    assert "run the same command again" in raised.value.hint
    assert deliveries(world, "mlflow")[0].status == "delivered", "another target is no worse for it"
    shelf.problem = lambda: None
    events: list[Event] = []
    again = world.run({"train.epochs": 4}, events=events)
    raise_for(again)
    assert shelf.puts == [record.run, again.run]
    assert any("earlier runs are not in shelf a yet" in event.message for event in events)


@pytest.mark.parametrize("raised", [KeyError("tags"), MemoryError(), ValueError("to https://me:hunter2@shelf/")])
def test_an_exception_that_is_none_of_ours_is_a_failed_attempt(
    world: PipelineWorld, shelf: Shelf, raised: Exception
) -> None:
    shelf.problem = lambda: raised
    record = world.run()
    assert (record.status, record.blessed) == ("done", True)
    (item,) = deliveries(world)
    assert (item.status, item.attempts) == ("pending", 1)
    assert item.error.startswith(f"{type(raised).__name__}: ")
    assert "hunter2" not in item.error
    assert deliveries(world, "mlflow")[0].status == "delivered"
    assert shelf.closed
    shelf.problem = lambda: None
    assert not world.run().error
    assert shelf.puts == [record.run]


def test_a_target_that_cannot_be_made_is_known_before_anything_runs(
    world: PipelineWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(recipe: Any, folder: Path) -> Any:
        raise UsageError("no such shelf")

    monkeypatch.setattr(world, "run_targets", refuse)
    with pytest.raises(UsageError, match="no such shelf"):
        world.run()
    assert world.calls() == []


class TwoRecipes(PipelineWorld):
    """Recipes by name, each with a target of the same name and other settings."""

    def __init__(self, folder: Path, shelves: dict[str, Shelf]) -> None:
        super().__init__(folder)
        self.shelves = shelves

    def run_targets(self, recipe: Any, folder: Path) -> Any:
        if recipe.name not in self.shelves:
            raise UsageError(f"no shelf for {recipe.name}")
        return (*super().run_targets(recipe, folder), self.shelves[recipe.name])


def test_a_run_of_another_recipe_is_delivered_as_its_own_recipe_says(world: PipelineWorld, tmp_path: Path) -> None:
    shelves = {name: Shelf(tmp_path / name) for name in ("tiny", "other")}
    for shelf in shelves.values():
        shelf.folder.mkdir()
    both = TwoRecipes(world.folder, shelves)
    shelves["tiny"].problem = down
    tiny = both.run()
    shelves["tiny"].problem = lambda: None
    other = both.run({"name": "other", "train.epochs": 4})
    assert (shelves["tiny"].puts, shelves["other"].puts) == ([tiny.run], [other.run])


def test_a_run_of_a_recipe_whose_target_is_gone_costs_no_other_run(world: PipelineWorld, tmp_path: Path) -> None:
    shelves = {name: Shelf(tmp_path, problem=down) for name in ("tiny", "other")}
    both = TwoRecipes(world.folder, shelves)
    both.run()
    del shelves["tiny"]
    other = both.run({"name": "other", "train.epochs": 4})
    assert other.status == "done"
    assert deliveries(both)[0].error == "no shelf for tiny"


def test_the_same_command_delivers_what_nothing_else_is_left_of(world: PipelineWorld, shelf: Shelf) -> None:
    shelf.problem = down
    world.run()
    assert "no answer" in world.run().error
    shelf.problem = lambda: None
    again = world.run()
    assert not again.error
    assert {step.action for step in again.steps} == {"reuse"}
    assert shelf.puts == [again.run]


def test_a_dead_system_is_tried_ever_more_rarely(
    world: PipelineWorld, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.problem = down
    for _ in range(6):
        last = world.run()
    assert deliveries(world)[0].attempts == 3
    assert not last.error, "what is not due is no failure of this run"
    assert [item.status for item in delivery_schedule.troubled(last.deliveries)] == ["pending"]
    monkeypatch.setattr(delivery_schedule, "WAITS", (0.0,))
    while deliveries(world)[0].status == "pending":
        last = world.run()
    assert "mlkit deliveries --retry" in last.error
    assert deliveries(world)[0].attempts == delivery_schedule.MAX_ATTEMPTS
    shelf.problem = lambda: None
    assert not world.run().error
    assert shelf.puts == [], "given up is given up"


def test_what_is_refused_is_tried_once_and_holds_nothing_up(world: PipelineWorld, shelf: Shelf) -> None:
    shelf.problem = lambda: DeliveryRefusedError("the shelf has another bundle there")
    first = world.run()
    assert "has another bundle there; it is not tried again by itself" in first.error
    shelf.problem = lambda: None
    second = world.run({"train.epochs": 4})
    assert shelf.puts == [second.run]
    assert [item.status for item in deliveries(world)] == ["failed", "delivered"]
    ports: Any = world
    with SqliteJournal(world.folder / ".mlkit") as journal:
        assert run_deliveries.retry_now(ports, journal) == ""
    assert shelf.puts == [second.run, first.run]


def test_after_one_failure_a_target_is_left_alone_in_that_pass(world: PipelineWorld, shelf: Shelf) -> None:
    shelf.problem = down
    world.run()
    world.run({"train.epochs": 4})
    assert [item.attempts for item in deliveries(world)] == [2, 0]


def test_a_target_that_the_recipe_names_later_gets_the_result_without_a_new_one(
    world: PipelineWorld, tmp_path: Path
) -> None:
    record = world.run()
    (tmp_path / "shelf").mkdir()
    shelf = Shelf(tmp_path / "shelf")
    world.targets = (shelf,)
    again = world.run()
    assert again.run == record.run
    assert shelf.puts == [record.run]
    assert len(world.calls()) == 8


def test_one_identity_is_delivered_once_and_an_unblessed_run_not_at_all(world: PipelineWorld, shelf: Shelf) -> None:
    world.run()
    world.run({"gates": [{"metric": "accuracy", "min": 0.4}]})
    assert len(deliveries(world)) == 1
    assert world.run(until="train", changes={"train.epochs": 9}).status == "done"
    assert len(deliveries(world)) == 1


def test_a_target_that_no_recipe_names_any_more_is_told(world: PipelineWorld, shelf: Shelf) -> None:
    shelf.problem = down
    world.run()
    world.targets = ()
    assert "names no shelf a" in world.run().error
    assert deliveries(world)[0].status == "failed"


def test_commands_show_retry_and_give_up(world: PipelineWorld, shelf: Shelf) -> None:
    shelf.problem = down
    record = world.run()
    state = str(world.folder / ".mlkit")

    def mlkit(*arguments: str, code: int = 0) -> str:
        command = [*MLKIT, *arguments, "--state", state]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert f"{record.run}  shelf a: pending after 1 attempt: no answer from the shelf" in mlkit("deliveries")
    assert "delivery   shelf a: pending after 1 attempt" in mlkit("show")
    assert "not delivered to shelf a: mlkit deliveries" in mlkit("runs")
    assert "undelivered  shelf a: 1 pending; mlkit deliveries" in mlkit("status")
    listed = json.loads(mlkit("deliveries", "last", "--all", "--json"))["deliveries"]
    assert {item["target"]: item["status"] for item in listed} == {"mlflow": "delivered", "shelf a": "pending"}
    assert json.loads(mlkit("status", "--json"))["deliveries"] == [
        {"target": "shelf a", "pending": 1, "failed": 0, "error": "no answer from the shelf (is it up?)"}
    ]
    assert "names no shelf a" in mlkit("deliveries", "--retry", code=3), "the command knows recipes only"
    assert "shelf a: failed after 1 attempt" in mlkit("deliveries", "--give-up")
    with SqliteJournal(world.folder / ".mlkit") as journal:
        journal.owe([replace(item, status="pending") for item in deliveries(world)], again=True)
    assert "shelf a: given up" in mlkit("deliveries", record.run, "--give-up")


def test_services_are_shown_whatever_became_of_the_journal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "journal.db").write_bytes(b"no database" * 100)
    for arguments in ([], ["--json"]):
        with pytest.raises(SystemExit, match="0"):
            main(["status", "--state", str(tmp_path), *arguments])
        printed = capsys.readouterr()
        assert "what is undelivered is unknown" in printed.err
        assert "damaged" in printed.err
    assert json.loads(printed.out) == {"services": [], "deliveries": None}
