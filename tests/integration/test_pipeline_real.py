"""The recipe that `mlkit init` writes, run for real through the command line: again, cut, changed, compared."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mlflowkit as mk
from mlflowkit.ci.pipeline_trigger import trigger, trigger_key
from mlflowkit.cli.app import main
from mlflowkit.cli.fast_path import nothing_to_do
from mlflowkit.pipeline.storage.journal import SqliteJournal
from tests.support.waiting import wait_for
from tests.support.warm_commands import warm_command

MLKIT = (sys.executable, "-c", "from mlflowkit.cli import main; main()")
VENDORS = ("torch", "ray", "pandas", "numpy", "sklearn", "onnx", "onnxruntime", "mlflow", "matplotlib", "whylogs")
SOURCE = "datasets.py"
"""The module of the recipe's source, beside it."""
CommandRunner = Callable[..., tuple[int, Any]]


def lay_out(folder: Path) -> Path:
    """What `mlkit init` writes, with enough epochs to be caught in the act."""
    folder.mkdir(exist_ok=True)
    with pytest.raises(SystemExit) as done:
        main(["init", str(folder)])
    assert not done.value.code
    recipe = folder / "recipe.yaml"
    text = recipe.read_text().replace("epochs: 30", "epochs: 80")
    recipe.write_text(re.sub(r"early_stopping: .*", "early_stopping: null", text))
    return recipe


def run(recipe: Path, *arguments: str, failpoint: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MLKIT_FAILPOINT": failpoint}
    command = [*warm_command("mlflowkit.cli"), "run", str(recipe), "--until", "package", "--json", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("whole") / "recipes")


@pytest.fixture(scope="module")
def whole(recipe: Path) -> dict[str, Any]:
    """What an uninterrupted run says of itself."""
    done = run(recipe)
    assert done.returncode == 0, done.stdout
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture
def run_command(recipe: Path, whole: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> CommandRunner:
    """Run a command here; its exit code and its JSON."""

    def command(*arguments: str) -> tuple[int, Any]:
        with pytest.raises(SystemExit) as done:
            main([*arguments, "--state", str(recipe.parent / ".mlkit"), "--json"])
        return int(done.value.code or 0), json.loads(capfd.readouterr().out)

    return command


def test_run_says_what_it_did(whole: dict[str, Any]) -> None:
    assert whole["status"] == "done"
    assert {step["action"] for step in whole["steps"]} == {"run"}
    assert all(step["seconds"] > 0 for step in whole["steps"])
    assert {verdict["verdict"] for verdict in whole["verdicts"]} == {"PASSED"}
    assert whole["blessing"]["identity"] == whole["identity"]
    assert (Path(whole["bundle"]) / "model.onnx").is_file()
    assert "<html" in Path(whole["report"]).read_text()[:200]


def test_second_run_trains_nothing_and_says_so(recipe: Path, whole: dict[str, Any]) -> None:
    done = run(recipe)
    again = json.loads(done.stdout)
    assert {step["action"] for step in again["steps"]} == {"reuse"}
    assert (again["run"], again["bundle"], again["report"]) == (whole["run"], whole["bundle"], whole["report"])
    command = [*MLKIT, "run", str(recipe), "--until", "package"]
    plain = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "nothing to do, all 7 steps are unchanged" in plain.stdout


def test_planned_run_with_nothing_to_do_imports_no_vendor(recipe: Path, whole: dict[str, Any]) -> None:
    code = (
        "import sys; from mlflowkit import api; "
        f"run = api.run(api.load({str(recipe)!r}), until='package'); "
        f"print(run.trained, [v for v in {VENDORS!r} if v in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False []"


def test_a_trigger_of_a_finished_run_answers_without_the_planner(recipe: Path, whole: dict[str, Any]) -> None:
    code = (
        "import sys; from mlflowkit.cli.fast_path import nothing_to_do; "
        f"code = nothing_to_do(['trigger', {str(recipe)!r}, '--because', 'data', '--json']); "
        f"print(code, [name for name in ({(*VENDORS, 'typer', 'pydantic', 'sqlalchemy')!r}) if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answer, _, rest = done.stdout.rpartition("}\n")
    assert rest.strip() == "0 []"
    planned = trigger(recipe, "data", recipe.parent / ".mlkit")
    assert json.loads(answer + "}") == planned.to_json()
    assert planned.action == "nothing-changed"
    assert nothing_to_do(["trigger", str(recipe), "--because", "data", "--dry-run"]) is None


def test_every_name_of_a_model_leads_to_its_origin(whole: dict[str, Any], run_command: CommandRunner) -> None:
    folder, registered = Path(whole["bundle"]), f"models:/{whole['name']}@challenger"
    wait_for(lambda: run_command("lineage", registered)[0] == 0, 120)  # recorded by a process of its own
    names = (whole["run"], "last", whole["identity"][:12], whole["name"], str(folder), str(folder.parent), registered)
    for name in names:
        code, origin = run_command("lineage", name)
        assert code == 0, origin
        assert (origin["reference"], origin["identity"], origin["run"]) == (name, whole["identity"], whole["run"])
        assert (origin["lineage"], origin["bundle"]) == (whole["lineage"], whole["bundle"])
        assert [item["message"] for item in origin["verdicts"]] == [item["message"] for item in whole["verdicts"]]
        assert (origin["blessing"], origin["differences"]) == (whole["blessing"], [])


@pytest.mark.slow
def test_run_killed_in_training_and_after_ends_in_the_same_bundle(tmp_path: Path, whole: dict[str, Any]) -> None:
    recipe = lay_out(tmp_path / "recipes")
    kill_in_training(recipe)
    assert run(recipe, failpoint="store.renamed@export").returncode == -signal.SIGKILL
    journal = SqliteJournal(recipe.parent / ".mlkit")
    trained = next(step for step in journal.run("last").steps if step.stage == "train")
    assert trained.result is not None
    assert trained.result.summary["resumed_from"] >= 1
    assert [record.status for record in journal.runs()] == ["interrupted", "interrupted"]
    done = run(recipe)
    assert done.returncode == 0, done.stdout
    last = json.loads(done.stdout)
    assert last["identity"] == whole["identity"]
    actions = {step["stage"]: step["action"] for step in last["steps"]}
    assert [actions[stage] for stage in ("data", "validate", "train", "export")] == ["reuse", "reuse", "reuse", "run"]
    same = {step["stage"]: step["digest"] for step in whole["steps"] if step["stage"] in ("data", "train", "export")}
    assert {step["stage"]: step["digest"] for step in last["steps"] if step["stage"] in same} == same


def kill_in_training(recipe: Path) -> None:
    """Start a run and kill it once there is a checkpoint."""
    command = [*MLKIT, "run", str(recipe), "--until", "package"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as cut:
        files = recipe.parent / ".mlkit" / "scratch"
        wait_for(lambda: list(files.glob("*/*.safetensors")) or cut.poll() is not None, what="a checkpoint", poll=0.002)
        assert cut.poll() is None
        cut.kill()


def test_plan_gives_the_reason(recipe: Path, run_command: CommandRunner) -> None:
    code, plan = run_command("plan", str(recipe), "train.epochs=81", "--until", "package")
    assert code == 0
    steps = {step["stage"]: step for step in plan["steps"]}
    assert steps["data"]["action"] == steps["validate"]["action"] == "reuse"
    assert steps["train"]["reason"] == "train.epochs 80 -> 81"
    assert steps["export"]["reason"] == "runs unless train gives the same content"
    assert steps["export"]["unless"] == ["train"]
    assert steps["train"]["unless"] == []


def test_a_copy_elsewhere_reuses_all_and_data_made_anew_retrains_nothing(
    recipe: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    place = tmp_path / "another" / "checkout"
    shutil.copytree(recipe.parent, place)
    copy = place / recipe.name
    assert {step.action for step in mk.plan(copy, until="package")} == {"reuse"}
    with (place / SOURCE).open("a") as stream:
        stream.write("# the same table\n")
    keys = {trigger_key(copy, mk.load(copy).loaded, place / state) for state in (".mlkit", "empty")}
    assert len(keys) == 1, "who has trained it asks for the same claim as who has not"
    plan = {step.stage: step.reason for step in mk.plan(copy, until="package")}
    assert plan["data"] == f"code: {SOURCE} changed"
    assert plan["train"] == "runs unless data gives the same content"
    done = run(copy, "--force", "validate", "--force", "export")
    assert done.returncode == 0, done.stdout
    answer = json.loads(done.stdout)
    steps = {step["stage"]: step for step in answer["steps"]}
    assert [stage for stage, step in steps.items() if step["action"] == "run"] == ["data", "validate", "export"]
    assert steps["train"]["reason"] == "data was made anew with the same content"
    assert steps["package"]["reason"] == "data, validate and export were made anew with the same content"
    assert answer["identity"] == whole["identity"]
    assert {step.action for step in mk.plan(copy, until="package")} == {"reuse"}


def test_runs_show_and_diff_agree(recipe: Path, whole: dict[str, Any], run_command: CommandRunner) -> None:
    code, other = run_command("run", str(recipe), "gates=[{metric: roc_auc, min: 0.5}]", "--until", "package")
    assert code == 0
    assert {step["stage"] for step in other["steps"] if step["action"] == "run"} == {"evaluate", "package"}
    _, listed = run_command("runs")
    assert {whole["run"], other["run"]} <= {run["run"] for run in listed["runs"]}
    _, shown = run_command("show", whole["run"])
    assert shown["metrics"] == whole["metrics"]
    _, compared = run_command("diff", whole["run"], other["run"])
    assert "gates[0].min" in [row["key"] for row in compared["recipe"]]
    assert not compared["data"]["changed"]
    auc = next(row for row in compared["metrics"] if row["name"] == "roc_auc")
    assert auc["difference"] == 0
    assert auc["a"]["low"] < auc["a"]["value"] < auc["a"]["high"]


@pytest.mark.parametrize(("least", "code", "status"), [(0.9999, 1, "gate-failed"), (0.97, 4, "inconclusive")])
def test_gates_set_the_exit_code(
    recipe: Path, run_command: CommandRunner, least: float, code: int, status: str
) -> None:
    gates = f"gates=[{{metric: accuracy, min: {least}}}]"
    exit_code, answer = run_command("run", str(recipe), gates, "--until", "package")
    assert (exit_code, answer["status"]) == (code, status)
    assert answer["error"]["code"] == code
    assert answer["bundle"] is None
    assert "accuracy" in answer["error"]["message"]
    assert Path(answer["report"]).is_file()


def test_failed_check_names_rows(recipe: Path, run_command: CommandRunner) -> None:
    checks = "data.checks=[{kind: range, column: mean radius, max: 20}]"
    code, answer = run_command("run", str(recipe), checks, "--until", "package")
    assert code == 3
    assert answer["error"]["kind"] == "data"
    assert "mean radius" in answer["error"]["message"]
    assert re.search(r"row \d+", answer["error"]["message"])


def test_sweep_runs_once_for_each_value(recipe: Path, run_command: CommandRunner) -> None:
    code, swept = run_command("run", str(recipe), "export.parity_rows=50,60", "--multirun", "--until", "export")
    assert code == 0
    assert all(set(run["validation"]) == {"val_loss", "val_roc_auc"} for run in swept["runs"])
    assert [run["overrides"] for run in swept["runs"]] == [["export.parity_rows=50"], ["export.parity_rows=60"]]
    assert [step["action"] for step in swept["runs"][1]["steps"]] == ["reuse", "reuse", "reuse", "run"]


def test_library_gives_what_the_command_line_gives(recipe: Path, whole: dict[str, Any]) -> None:
    run = mk.run(recipe, until="package")
    assert (run.run, run.status, run.trained) == (whole["run"], "done", False)
    assert run.metrics == whole["metrics"]
    assert run.bundle == Path(whole["bundle"])
    assert run.raise_for_status() is run
    plan = mk.plan(mk.load(recipe, ["train.epochs=3"]), until="package")
    assert plan.stale == ("train", "export", "optimize", "evaluate", "package")
    for shown in (run, plan, mk.load(recipe)):
        html = shown._repr_html_()
        assert html.count("<table>") == html.count("</table>") >= 1
    assert "train.epochs 80 -&gt; 3" in plan._repr_html_()
