"""What a step is reused by: the content of its inputs and nothing that says where something lies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflowkit.errors import DataError
from mlflowkit.pipeline.change_reasons import describe_changes
from mlflowkit.pipeline.fingerprint import FileDigests, collect_ingredients, origins
from mlflowkit.pipeline.plan import PriorResults, decide, plan_steps
from mlflowkit.pipeline.storage import codec, journal_tables
from mlflowkit.pipeline.storage.journal import SqliteJournal
from mlflowkit.recipe.schema import LoadedRecipe
from mlflowkit.stages.sources import PythonSource, SourceContent, content_names
from mlflowkit.values import STAGES, Event, Published, StageResult, Step, StepResult
from tests.support.pipeline_world import PipelineWorld, lay_out, load

LATER = [stage for stage in STAGES if stage != "data"]
SAME = "data was made anew with the same content"


@pytest.fixture
def world(tmp_path: Path) -> PipelineWorld:
    lay_out(tmp_path)
    return of_folder(tmp_path)


def of_folder(folder: Path) -> PipelineWorld:
    """A world whose data stage reads its rows without blank lines."""
    world = PipelineWorld(folder)

    def data(spec: Any, context: Any) -> StageResult:
        world.called("data", context)
        rows = sorted(filter(None, (context.folder / spec.source.path).read_text().splitlines()))
        (context.out / "rows.csv").write_text("\n".join(rows))
        (context.out / "table.json").write_text(json.dumps({"data_version": str(len(rows))}))
        return StageResult()

    world.stages["data"] = data
    return world


def append(folder: Path, text: str) -> None:
    with (folder / "rows.csv").open("a") as stream:
        stream.write(text)


def planned(world: PipelineWorld, changes: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Step]:
    return {
        step.stage: step for step in plan_steps(load(world.folder, changes), world, services=world.status, **options)
    }


def test_data_made_again_with_the_same_content_retrains_nothing(world: PipelineWorld) -> None:
    first = world.run()
    append(world.folder, "\n\n")
    steps = planned(world)
    assert steps["data"].reason == "data.source: rows.csv changed"
    assert steps["train"].reason == "runs unless data gives the same content"
    assert {step.conditional for step in steps.values() if step.stage in LATER} == {True}
    events: list[Event] = []
    before = len(world.calls())
    record = world.run(events=events)
    assert world.calls()[before:] == ["data"]
    assert {step.stage: step.reason for step in record.steps}["train"] == SAME
    assert [step.action for step in record.steps] == ["run", *["reuse"] * len(LATER)]
    assert SAME in [event.message for event in events if (event.stage, event.kind) == ("train", "reused")]
    assert record.bundle == first.bundle
    assert {step.action for step in planned(world).values()} == {"reuse"}
    assert SqliteJournal(world.folder / ".mlkit").run(record.run).steps == record.steps


def test_what_is_trained_has_one_origin_before_and_after(world: PipelineWorld) -> None:
    before = {stage: step.origin for stage, step in planned(world).items()}
    world.run()
    assert {stage: step.origin for stage, step in planned(world).items()} == before
    assert {stage: step.origin for stage, step in planned(world, {"seed": 8}).items()}.items().isdisjoint(
        before.items()
    )


def test_data_made_again_with_another_content_retrains(world: PipelineWorld) -> None:
    world.run()
    append(world.folder, "20,0\n")
    before = len(world.calls())
    record = world.run()
    assert world.calls()[before:] == list(STAGES)
    assert {step.stage: step.reason for step in record.steps}["train"] == "data changed"


def test_files_that_differ_are_named(world: PipelineWorld) -> None:
    place = world.folder / "tables"
    place.mkdir()
    for name in "abcd":
        shutil.copy(world.folder / "rows.csv", place / f"{name}.csv")
    keys = {"data.source": {"kind": "csv", "path": "tables"}}
    before = ingredients_of(load(world.folder, keys))
    for name in "ac":
        (place / f"{name}.csv").write_text("x,y\n1,0\n")
    (place / "d.csv").unlink()
    after = ingredients_of(load(world.folder, keys))
    reason = "data.source: 3 of 4 files differ: a.csv, c.csv, d.csv (removed)"
    assert describe_changes("data", before["data"], after["data"]) == [reason]


def test_two_changes_at_once_are_both_told(world: PipelineWorld) -> None:
    world.run()
    append(world.folder, "\n")
    steps = planned(world, {"train.epochs": 4})
    assert steps["train"].reason == "train.epochs 3 -> 4, data is stale"
    assert not steps["train"].conditional
    before = len(world.calls())
    record = world.run({"train.epochs": 4})
    assert world.calls()[before:] == ["data", "train", "export", "optimize", "evaluate", "package", "deploy"]
    assert {step.stage: step.reason for step in record.steps}["train"] == "train.epochs 3 -> 4"


@pytest.mark.parametrize("error", [SystemExit(), DataError("no")], ids=["killed", "failed"])
def test_a_cut_step_is_recorded_by_the_fingerprint_of_its_checkpoints(
    world: PipelineWorld, error: BaseException
) -> None:
    world.run()
    append(world.folder, "20,0\n")

    def cut(spec: Any, context: Any) -> StageResult:
        (context.scratch / "epoch-0").write_text("0")
        raise error

    world.stages["train"] = cut
    with pytest.raises(type(error)):
        world.run()
    journal = SqliteJournal(world.folder / ".mlkit")
    (interrupted,) = (step.fingerprint for step in journal.run("last").steps if step.stage == "train")
    assert [path.name for path in (world.folder / ".mlkit" / "scratch").iterdir()] == [interrupted]


def test_results_that_name_inputs_by_their_fingerprints_are_reused_or_made_for_a_reason(world: PipelineWorld) -> None:
    world.run(until="export")
    journal = SqliteJournal(world.folder / ".mlkit")
    table = journal_tables.results
    with journal.engine.begin() as connection:
        for row in connection.execute(table.select()).all():
            ingredients = {
                name: f"fingerprint of {name}" if name.startswith("input:") else value
                for name, value in codec.loads(row.ingredients).items()
            }
            values = {"ingredients": codec.dumps(ingredients), "fingerprint": f"old {row.stage}"}
            connection.execute(table.update().where(table.c.fingerprint == row.fingerprint).values(values))
    assert {step.action for step in planned(world, until="export").values()} == {"reuse"}
    before = len(world.calls())
    append(world.folder, "\n")
    world.run(until="export")
    assert world.calls()[before:] == ["data"]
    append(world.folder, "20,0\n")
    record = world.run(until="export")
    assert [step.reason for step in record.steps][1:] == ["data changed", "data changed", "data and train changed"]


# ------------------------------------------------------------------------------------------------------------ places


def ingredients_of(loaded: LoadedRecipe) -> dict[str, dict[str, str]]:
    with SqliteJournal(loaded.folder / ".mlkit", create=False) as journal:
        return collect_ingredients(loaded, FileDigests(journal))


def beside(folder: Path) -> Mapping[str, Any]:
    return {"data.source": {"kind": "csv", "path": "rows.csv"}}


def above(folder: Path) -> Mapping[str, Any]:
    (folder.parent.parent / "data").mkdir()
    shutil.copy(folder / "rows.csv", folder.parent.parent / "data" / "rows.csv")
    return {"data.source": {"kind": "csv", "path": "../../data/rows.csv"}}


def absolute(folder: Path) -> Mapping[str, Any]:
    place = folder.parent / f"data of {folder.name}" / "month=1"
    place.mkdir(parents=True)
    shutil.copy(folder / "rows.csv", place / "rows.csv")
    return {"data.source": {"kind": "csv", "path": str(place.parent)}}


def matched(folder: Path) -> Mapping[str, Any]:
    place = folder.parent / f"data of {folder.name}" / "month=1"
    place.mkdir(parents=True)
    shutil.copy(folder / "rows.csv", place / "rows.csv")
    return {"data.source": {"kind": "csv", "path": f"{place.parent}/*/*.csv"}}


def called(folder: Path) -> Mapping[str, Any]:
    (folder / "rows.py").write_text("def table():\n    return None\n")
    files = [str(place / "rows.csv") for place in (folder, folder.parent / f"more of {folder.name}")]
    Path(files[1]).parent.mkdir()
    Path(files[1]).write_text("x\n")
    return {"data.source": {"kind": "python", "function": "rows:table", "files": files}}


def imported(folder: Path) -> Mapping[str, Any]:
    place = folder.parent / f"graphs of {folder.name}"
    place.mkdir()
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [other])
    onnx.save(helper.make_model(graph), place / "graph.onnx")
    return {"model": {"kind": "onnx", "path": str(place / "graph.onnx")}}


@pytest.mark.parametrize("lay", [beside, above, absolute, matched, called, imported])
def test_the_same_files_elsewhere_have_the_same_fingerprints(
    lay: Callable[[Path], Mapping[str, Any]], tmp_path: Path
) -> None:
    here, there = tmp_path / "a" / "b" / "checkout", tmp_path / "deep" / "er" / "c" / "another checkout"
    gathered = []
    for folder in (here, there):
        lay_out(folder)
        gathered.append(ingredients_of(load(folder, lay(folder))))
    assert gathered[0] == gathered[1]
    assert origins(gathered[0]) == origins(gathered[1])
    text = json.dumps(gathered[0])
    assert not [part for part in (str(tmp_path), "..", "checkout") if part in text]


@pytest.mark.parametrize(
    ("keys", "stage"),
    [
        ({"data.source": {"kind": "csv", "path": "rows.csv", "separator": ";"}}, "data"),
        ({"data.source": {"kind": "csv", "path": "rows.csv", "missing": ["NA"]}}, "data"),
        ({"data.source": {"kind": "parquet", "path": "rows.csv"}}, "data"),
    ],
)
def test_keys_that_say_how_files_are_read_count(keys: Mapping[str, Any], stage: str, tmp_path: Path) -> None:
    lay_out(tmp_path)
    plain, changed = ingredients_of(load(tmp_path)), ingredients_of(load(tmp_path, keys))
    assert plain[stage] != changed[stage]


def test_a_renamed_folder_that_is_a_column_counts(tmp_path: Path) -> None:
    lay_out(tmp_path)
    (tmp_path / "data" / "month=1").mkdir(parents=True)
    shutil.copy(tmp_path / "rows.csv", tmp_path / "data" / "month=1" / "rows.csv")
    keys = {"data.source": {"kind": "csv", "path": "data"}}
    before = ingredients_of(load(tmp_path, keys))["data"]
    (tmp_path / "data" / "month=1").rename(tmp_path / "data" / "month=2")
    assert ingredients_of(load(tmp_path, keys))["data"] != before


def test_a_state_that_is_copied_with_its_checkout_is_reused(world: PipelineWorld, tmp_path: Path) -> None:
    world.run()
    other = tmp_path / "somewhere" / "else"
    shutil.copytree(world.folder, other, ignore=shutil.ignore_patterns("somewhere"))
    moved = of_folder(other)
    assert {step.action for step in planned(moved, until="package").values()} == {"reuse"}
    before = len(moved.calls())
    moved.run(until="package")
    assert len(moved.calls()) == before


def test_files_of_several_folders_with_one_name_are_kept_apart(tmp_path: Path) -> None:
    files = [tmp_path / name / "rows.csv" for name in ("z", "a")]
    for file in files:
        file.parent.mkdir()
        file.write_text(file.parent.name)
    source = PythonSource(kind="python", function="rows:table", files=["z", "a"])
    assert content_names(source.resolve(tmp_path), tmp_path) == {"rows.csv": files[0], "rows.csv#2": files[1]}


def test_files_of_a_plugin_are_named_from_the_recipe_or_from_their_common_folder(tmp_path: Path) -> None:
    recipe = tmp_path / "checkout"
    outside = [tmp_path / "lake" / name / "rows.csv" for name in ("month=1", "month=2")]
    content = SourceContent((recipe / "more" / "rows.csv", *outside))
    assert list(content_names(content, recipe)) == ["more/rows.csv", "month=1/rows.csv", "month=2/rows.csv"]


# ----------------------------------------------------------------------------------------------------- pure decisions

VALUES = st.sampled_from("ab")
OWN = st.dictionaries(st.sampled_from(["seed", "spec:k", "code:a.py", "content:a.csv"]), VALUES, max_size=3)


@given(own=OWN, now=OWN, before=VALUES, after=VALUES)
def test_what_a_plan_leaves_open_is_decided_by_the_content_alone(
    own: dict[str, str], now: dict[str, str], before: str, after: str
) -> None:
    marks = {**own, "input:data": before}
    last = StepResult("f", "train", "n", Published("d", {}), StageResult(), marks, {"data": before}, "r")
    open_ = decide("train", {**now, "input:data": "of data"}, PriorResults(None, last), awaits=["data"])
    settled = {**now, "input:data": after}
    result = last if settled == marks else None
    decision = decide("train", settled, PriorResults(result, last), remade=["data"])
    assert open_.action == "run"
    assert open_.conditional == (own == now)
    assert (decision.action == "reuse") == (own == now and before == after)
    assert open_.conditional or decision.action == "run", "what surely runs is not reused in the end"
    assert ("data changed" in decision.reason) == (before != after)
    assert not decision.conditional
