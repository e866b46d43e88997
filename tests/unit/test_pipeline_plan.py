"""What a changed ingredient re-runs, and what the plan says of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlflowkit import usercode
from mlflowkit.errors import DataError, UsageError
from mlflowkit.pipeline.fingerprint import SEEDED, fingerprint, stage_ports
from mlflowkit.pipeline.plan import PriorResults, StepDecision, decide, plan_steps
from mlflowkit.pipeline.storage.journal import SqliteJournal
from mlflowkit.system.own_modules import adapter_modules
from mlflowkit.values import STAGES, Published, StageResult, Step, StepResult
from tests.support.pipeline_world import PipelineWorld, lay_out, load

PACKAGE = Path(usercode.__file__).parent
AFTER_DATA = list(STAGES)
AFTER_TRAIN = ["train", "export", "optimize", "evaluate", "package", "deploy"]
CUT_OFF = {
    "data.checks[0].column added": ["validate", "package"],
    "gates[0].min 0.5 -> 0.6": ["evaluate", "package"],
    "data.split.kind": ["data"],
}
"""Stages that run by the reason of the first, where one of this world's stages gives the same content as before."""


@pytest.fixture
def world(tmp_path: Path) -> PipelineWorld:
    lay_out(tmp_path)
    return PipelineWorld(tmp_path)


def planned(world: PipelineWorld, changes: dict[str, Any] | None = None, **options: Any) -> dict[str, Step]:
    steps = plan_steps(load(world.folder, changes), world, services=world.status, **options)
    return {step.stage: step for step in steps}


def edit(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text((folder / name).read_text() + text)

    return change


def nothing(folder: Path) -> None:
    """Change no file."""


@pytest.mark.parametrize(
    ("change", "keys", "rerun", "stage", "reason"),
    [
        (nothing, {}, [], "train", "unchanged since run"),
        (nothing, {"seed": 8}, AFTER_DATA, "data", "seed 7 -> 8"),
        (edit("rows.csv", "20,0\n"), {}, AFTER_DATA, "data", "data.source: rows.csv changed"),
        (edit("helper.py", "# wider\n"), {}, AFTER_TRAIN, "train", "code: helper.py changed"),
        (edit("net.py", "# deeper\n"), {}, AFTER_TRAIN, "train", "code: net.py changed"),
        (nothing, {"train.epochs": 30}, AFTER_TRAIN, "train", "train.epochs 3 -> 30"),
        (nothing, {"model.args": {"hidden": [8]}}, AFTER_TRAIN, "train", "model.args.hidden[0] added"),
        (nothing, {"preprocess": {"scale": "none"}}, AFTER_TRAIN, "train", 'preprocess.scale "standard" -> "none"'),
        (
            nothing,
            {"data.checks": [{"kind": "nulls", "column": "x"}]},
            ["validate", "package", "deploy"],
            "validate",
            "data.checks[0].column added",
        ),
        (nothing, {"export.parity_rows": 5}, AFTER_TRAIN[1:], "export", "export.parity_rows 1000 -> 5"),
        (nothing, {"optimize": {"batch": 4}}, AFTER_TRAIN[2:], "optimize", "optimize.batch 1 -> 4"),
        (
            nothing,
            {"gates": [{"metric": "accuracy", "min": 0.6}]},
            ["evaluate", "package", "deploy"],
            "evaluate",
            "gates[0].min 0.5 -> 0.6",
        ),
        (nothing, {"serve.threads": 2}, ["deploy"], "deploy", "serve.threads 1 -> 2"),
        (nothing, {"data.split": {"kind": "group", "column": "x"}}, AFTER_DATA, "data", "data.split.kind"),
    ],
)
def test_change_reruns_what_depends_on_it(
    world: PipelineWorld,
    change: Callable[[Path], None],
    keys: dict[str, Any],
    rerun: list[str],
    stage: str,
    reason: str,
) -> None:
    world.run()
    change(world.folder)
    steps = planned(world, keys)
    assert [name for name, step in steps.items() if step.action == "run"] == rerun
    assert reason in steps[stage].reason
    before = len(world.calls())
    world.run(keys)
    assert world.calls()[before:] == CUT_OFF.get(reason, rerun)


def test_stale_input_is_named(world: PipelineWorld) -> None:
    world.run()
    steps = planned(world, {"train.epochs": 5})
    assert steps["export"].reason == "runs unless train gives the same content"
    assert steps["package"].reason == "runs unless export, optimize and evaluate give the same content"
    assert [step.conditional for step in steps.values()] == [False, False, False, True, True, True, True, True]
    steps = planned(world, {"train.epochs": 5, "export.parity_rows": 5})
    assert steps["export"].reason == "export.parity_rows 1000 -> 5, train is stale"
    assert not steps["export"].conditional


def test_first_run_and_forced_steps_say_so(world: PipelineWorld) -> None:
    assert {step.reason for step in planned(world).values()} == {"first run"}
    world.run()
    steps = planned(world, force=["export"])
    assert steps["export"].reason == "--force"
    assert steps["train"].action == "reuse"


def test_forced_step_that_comes_out_the_same_leaves_the_rest_reused(world: PipelineWorld) -> None:
    world.run()
    before = len(world.calls())
    record = world.run(force=["train"])
    assert world.calls()[before:] == ["train"]
    assert {step.stage for step in record.steps if step.action == "run"} == {"train"}


def test_forced_step_that_comes_out_otherwise_reruns_the_rest(world: PipelineWorld) -> None:
    world.run()
    plain = world.stages["train"]

    def restless(spec: Any, context: Any) -> StageResult:
        result = plain(spec, context)
        (context.out / "note").write_text("another")
        return result

    world.stages["train"] = restless
    before = len(world.calls())
    world.run(until="train", force=["train"])
    steps = planned(world)
    assert steps["train"].action == "reuse"
    assert steps["export"].reason == "train changed"
    world.run()
    assert world.calls()[before:] == AFTER_TRAIN


def test_seed_leaves_a_split_by_time_alone(world: PipelineWorld) -> None:
    split = {"data.split": {"kind": "time", "column": "x"}}
    world.run(split)
    steps = planned(world, {**split, "seed": 8})
    assert steps["data"].action == steps["validate"].action == "reuse"
    assert steps["train"].reason == "seed 7 -> 8"


def test_seed_draws_the_sample_that_a_drift_check_keeps(world: PipelineWorld) -> None:
    checked = {"data.split": {"kind": "time", "column": "x"}, "data.checks": [{"kind": "drift", "max": 0.1}]}
    world.run(checked)
    steps = planned(world, {**checked, "seed": 8})
    assert steps["data"].action == "reuse"
    assert steps["validate"].reason == "seed 7 -> 8"


def test_library_upgrade_is_named(world: PipelineWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run()
    installed = dict(usercode.installed())
    monkeypatch.setattr(usercode, "installed", lambda: {**installed, "onnxruntime": "99.0"})
    steps = planned(world)
    assert f"library onnxruntime {installed['onnxruntime']} -> 99.0" in steps["evaluate"].reason
    assert steps["train"].action == "reuse"


def called(world: PipelineWorld, *files: str) -> dict[str, Any]:
    """A source that is a function, with the files that it says it reads; whatever it says, rows.csv is read."""
    (world.folder / "rows.py").write_text("def table():\n    return None\n")
    return {"data.source": {"kind": "python", "function": "rows:table", "files": list(files)}}


@pytest.mark.parametrize(
    ("declared", "change", "reason"),
    [
        ("rows.csv", edit("rows.csv", "20,0\n"), "data.source: rows.csv changed"),
        ("*.csv", edit("rows.csv", "20,0\n"), "data.source: rows.csv changed"),
        ("*.csv", lambda folder: (folder / "more.csv").write_text("x,y\n"), "data.source: more.csv added"),
        ("tables", lambda folder: (folder / "tables/deep/a.bin").write_text("b"), "deep/a.bin changed (1 of 2 files)"),
        ("tables", lambda folder: (folder / "tables/deep/c.bin").write_text("c"), "deep/c.bin added (1 of 3 files)"),
        (
            "tables/**/*.bin",
            lambda folder: (folder / "tables/deep/a.bin").unlink(),
            "deep/a.bin removed (1 of 2 files)",
        ),
    ],
)
def test_files_that_a_function_says_it_reads_are_its_content(
    world: PipelineWorld, declared: str, change: Callable[[Path], None], reason: str
) -> None:
    (world.folder / "tables" / "deep").mkdir(parents=True)
    for name in ("a", "b"):
        (world.folder / "tables" / "deep" / f"{name}.bin").write_text(name)
    keys = called(world, declared)
    world.run(keys)
    assert {step.action for step in planned(world, keys).values()} == {"reuse"}
    change(world.folder)
    steps = planned(world, keys)
    assert reason in steps["data"].reason
    before = len(world.calls())
    world.run(keys)
    assert world.calls()[before] == "data"
    assert {step.action for step in planned(world, keys).values()} == {"reuse"}


def test_files_that_a_function_does_not_declare_are_not_looked_at(world: PipelineWorld) -> None:
    keys = called(world)
    world.run(keys)
    edit("rows.csv", "20,0\n")(world.folder)
    assert planned(world, keys)["data"].action == "reuse"


def test_a_declared_file_that_is_gone_is_named(world: PipelineWorld) -> None:
    keys = called(world, "rows.csv")
    (world.folder / "rows.csv").rename(world.folder / "row.csv")
    with pytest.raises(DataError, match=r"no file .*rows\.csv") as caught:
        planned(world, keys)
    assert "'row.csv'" in caught.value.hint


def test_touched_but_unchanged_data_is_reused(world: PipelineWorld) -> None:
    world.run()
    text = (world.folder / "rows.csv").read_text()
    (world.folder / "rows.csv").write_text(text)
    assert planned(world)["data"].action == "reuse"


def test_changed_row_is_seen_though_size_and_time_are_kept(world: PipelineWorld) -> None:
    import os

    world.run()
    path = world.folder / "rows.csv"
    stat = path.stat()
    path.write_text(path.read_text().replace("3,1", "3,0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert planned(world)["data"].reason == "data.source: rows.csv changed"


def test_service_that_is_down_or_serves_another_is_deployed_again(world: PipelineWorld) -> None:
    world.run()
    (world.folder / "service").write_text("another")
    assert planned(world)["deploy"].reason == "service tiny answers with another version"
    (world.folder / "service").unlink()
    steps = planned(world)
    assert steps["deploy"].reason == "service tiny is not running"
    assert {step.action for step in list(steps.values())[:-1]} == {"reuse"}


def test_return_to_an_earlier_recipe_is_judged_against_what_serves_now(world: PipelineWorld) -> None:
    first = world.run()
    second = world.run({"train.epochs": 4})
    assert first.bundle != second.bundle
    steps = planned(world)
    assert [name for name, step in steps.items() if step.action == "run"] == ["evaluate", "package", "deploy"]
    assert second.bundle[:12] in steps["evaluate"].reason
    assert world.run().bundle == first.bundle
    assert all(step.action == "reuse" for step in planned(world).values())


def test_plan_writes_nothing(world: PipelineWorld) -> None:
    planned(world)
    assert not (world.folder / ".mlkit").exists()


def test_missing_data_is_told(world: PipelineWorld) -> None:
    (world.folder / "rows.csv").rename(world.folder / "row.csv")
    with pytest.raises(DataError, match=r"rows\.csv") as caught:
        planned(world)
    assert "row.csv" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "keys", "hint"),
    [
        ({"until": "trian"}, {}, "did you mean train?"),
        ({"force": ["exprot"]}, {}, "did you mean export?"),
        ({"until": "deploy"}, {"serve": None}, "add serve"),
        ({"until": "data", "force": ["train"]}, {}, "--until train"),
    ],
)
def test_unknown_stage_has_a_hint(
    world: PipelineWorld, options: dict[str, Any], keys: dict[str, Any], hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        planned(world, keys, **options)
    assert hint in caught.value.hint


def test_decide_reuses_a_complete_result() -> None:
    marks = {"seed": "7", "input:data": "a"}
    result = StepResult(
        fingerprint("train", marks), "train", "n", Published("d", {}), StageResult(), marks, {"data": "a"}, "r"
    )
    prior = PriorResults(result, result)
    assert decide("train", marks, prior) == StepDecision("reuse", "unchanged since run r")
    same = "data was made anew with the same content"
    assert decide("train", marks, prior, remade=["data"]) == StepDecision("reuse", same)
    other = marks | {"input:data": "b"}
    assert decide("train", other, PriorResults(None, result)) == StepDecision("run", "data changed")
    assert decide("train", marks, PriorResults(result, result, intact=False)).action == "run"
    unknown = decide("train", marks, prior, awaits=["data"])
    assert unknown == StepDecision("run", "runs unless data gives the same content", conditional=True)
    lost = decide("train", marks, PriorResults(None, result, intact=False), awaits=["data"])
    assert lost == StepDecision("run", "its published folder is missing or was altered")
    timed = replace(result, result=StageResult(summary={"remeasure": True}))
    assert decide("train", marks, PriorResults(None, timed), awaits=["data"]).reason.endswith("inconclusive")


# ------------------------------------------------------------------------- declared dependencies against the sources


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "deploy"])
def test_ports_of_a_stage_are_ingredients(stage: str) -> None:
    search = ("optimization/exploration", "optimization/tournament") if stage == "optimize" else ()
    text = "".join((PACKAGE / f"{part}.py").read_text() for part in (f"stages/{stage}", *search))
    asked = set(re.findall(r"context\.ports\.(\w+)", text))
    asked = {"checker" if port == "file_checker" else port for port in asked}  # of the factories checker_KIND
    within = {"passes", "engines"} if "trials" in asked else set()  # the process of a trial asks for these
    assert asked | within == set(stage_ports(stage))


def test_every_adapter_that_a_stage_may_use_is_read_from_the_wiring() -> None:
    """A function that makes an adapter has the name by which the fingerprint asks for it."""
    outside = {"tracker", "platform", "device_clock", "engine_builder", "trial_child", "trial_once"}
    outside |= {"live_profiler", "profile_uploads", "sample_reports", "registry_huggingface", "write_back_target"}
    ports = {port for stage in STAGES for port in stage_ports(stage)}
    factories = {name: modules for name, modules in adapter_modules().items() if modules}
    assert {name.partition("_")[0] for name in factories.keys() - outside} == ports
    tree = ast.parse((PACKAGE / "wiring.py").read_text())
    imported = {
        node.module.removeprefix("mlflowkit.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mlflowkit.adapters")
    }
    assert imported == {module for modules in factories.values() for module in modules}


def test_seeded_stages_are_those_that_read_the_seed() -> None:
    sources = {stage: (PACKAGE / "stages" / f"{stage}.py").read_text() for stage in STAGES}
    reading = {stage for stage, text in sources.items() if "context.seed" in text}
    assert reading | {"train"} == set(SEEDED)


def test_journal_resolves_runs(world: PipelineWorld) -> None:
    journal = SqliteJournal(world.folder / ".mlkit")
    with pytest.raises(UsageError, match="there is no run yet"):
        journal.run("last")
    first, second = world.run(), world.run({"seed": 8})
    assert journal.run("last").run == second.run
    assert journal.run(first.run[:-1]).run == first.run
    with pytest.raises(UsageError, match="is the prefix of 2 runs"):
        journal.run(first.run[:6])
    with pytest.raises(UsageError) as caught:
        journal.run(first.run[:-4] + "zzzz")
    assert first.run in caught.value.hint
