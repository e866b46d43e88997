"""The short way to "nothing to do" is taken only when nothing moved that a plan would look at."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflowkit.pipeline import noop_cache
from mlflowkit.pipeline.noop_cache import NoopKey, look_up, snapshot_inputs, write
from mlflowkit.pipeline.run_summary import summarize
from tests.support.pipeline_world import PipelineWorld, lay_out, load


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PipelineWorld:
    """A world that ran once and left a receipt."""
    monkeypatch.setattr(noop_cache, "SETTLED_NS", 0)
    monkeypatch.setenv("LENDING_ROWS", "20")
    lay_out(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: tiny\nrows: ${oc.env:LENDING_ROWS}\n")
    world = PipelineWorld(tmp_path)
    assert keep(world)
    assert look_up(question(world), world.status) is not None
    return world


def question(world: PipelineWorld, *overrides: str) -> NoopKey:
    return NoopKey(world.folder / "recipe.yaml", overrides, "", world.folder / ".mlkit")


def keep(world: PipelineWorld) -> bool:
    beginning = snapshot_inputs(world.folder / "recipe.yaml")
    record = world.run()
    return write(question(world), beginning, load(world.folder), summarize(record, world.folder / ".mlkit"))


def object_of(world: PipelineWorld, stage: str) -> Path:
    summary = look_up(question(world), world.status)
    assert summary is not None
    digest = next(step["digest"] for step in summary["steps"] if step["stage"] == stage)
    return next(path for path in (world.folder / ".mlkit" / "objects" / digest).rglob("*") if path.is_file())


def append(name: str) -> Callable[[PipelineWorld], None]:
    def change(world: PipelineWorld) -> None:
        (world.folder / name).write_text((world.folder / name).read_text() + "\n")

    return change


def rewrite_row(world: PipelineWorld) -> None:
    """Same size, same time of change."""
    path = world.folder / "rows.csv"
    stat = path.stat()
    path.write_text(path.read_text().replace("3,1", "3,0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def damage_object(world: PipelineWorld) -> None:
    path = object_of(world, "train")
    path.chmod(0o644)
    path.write_text("tampered")


def stop_service(world: PipelineWorld) -> None:
    (world.folder / "service").unlink()


def serve_another(world: PipelineWorld) -> None:
    (world.folder / "service").write_text("another")


def promote_another(world: PipelineWorld) -> None:
    world.run({"train.epochs": 5})
    (world.folder / "service").write_text(first_identity(world))


def first_identity(world: PipelineWorld) -> str:
    with sqlite3.connect(world.folder / ".mlkit" / "journal.db") as connection:
        return str(connection.execute("SELECT bundle FROM runs ORDER BY started LIMIT 1").fetchone()[0])


def lose_journal(world: PipelineWorld) -> None:
    for path in (world.folder / ".mlkit").glob("journal.db*"):
        path.unlink()


def damage_receipt(world: PipelineWorld) -> None:
    path = question(world).path
    path.write_text(path.read_text()[:100])


def shadow_module(world: PipelineWorld) -> None:
    (world.folder / "numpy.py").write_text("")


@pytest.mark.parametrize(
    "change",
    [
        append("rows.csv"),
        append("recipe.yaml"),
        append("helper.py"),
        rewrite_row,
        damage_object,
        lambda world: shutil.rmtree(object_of(world, "export").parent),
        stop_service,
        serve_another,
        promote_another,
        lose_journal,
        damage_receipt,
        shadow_module,
        lambda world: os.environ.__setitem__("LENDING_ROWS", "30"),
    ],
)
def test_what_moved_is_left_to_the_planner(world: PipelineWorld, change: Callable[[PipelineWorld], None]) -> None:
    change(world)
    assert look_up(question(world), world.status) is None


@pytest.mark.parametrize("change", ["changed", "added"])
def test_files_that_a_function_says_it_reads_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(noop_cache, "SETTLED_NS", 0)
    lay_out(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: tiny\n")
    (tmp_path / "table.py").write_text("def rows():\n    return None\n")
    (tmp_path / "tables" / "deep").mkdir(parents=True)
    (tmp_path / "tables" / "deep" / "a.bin").write_text("a")
    world = PipelineWorld(tmp_path)
    keys = {"data.source": {"kind": "python", "function": "table:rows", "files": ["tables"]}}
    beginning = snapshot_inputs(tmp_path / "recipe.yaml")
    record = world.run(keys)
    assert write(question(world), beginning, load(tmp_path, keys), summarize(record, tmp_path / ".mlkit"))
    assert look_up(question(world), world.status) is not None
    name = "a.bin" if change == "changed" else "b.bin"
    (tmp_path / "tables" / "deep" / name).write_text("b")
    assert look_up(question(world), world.status) is None


def test_answer_is_that_of_the_run_with_its_steps_reused(world: PipelineWorld) -> None:
    summary = look_up(question(world), world.status)
    assert summary is not None
    assert {step["action"] for step in summary["steps"]} == {"reuse"}
    assert summary["status"] == "done"
    assert summary["endpoint"] == "http://127.0.0.1:1"


def test_other_questions_have_other_receipts(world: PipelineWorld) -> None:
    assert look_up(question(world, "seed=8"), world.status) is None
    until = NoopKey(world.folder / "recipe.yaml", (), "train", world.folder / ".mlkit")
    assert look_up(until, world.status) is None


def test_file_that_moves_during_the_run_leaves_no_receipt(tmp_path: Path) -> None:
    lay_out(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: tiny\n")
    world = PipelineWorld(tmp_path)
    plain = world.stages["train"]

    def editing(spec: object, context: object) -> object:
        append("rows.csv")(world)
        return plain(spec, context)  # type: ignore[arg-type]

    world.stages["train"] = editing  # type: ignore[assignment]
    assert not keep(world)
    assert look_up(question(world), world.status) is None


def test_the_short_way_imports_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import mlflowkit.cli.fast_path, mlflowkit.pipeline.noop_cache; "
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['mlflowkit']"
