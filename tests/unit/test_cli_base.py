"""The command line around the commands: help, usage errors, JSON, exit codes, init, validate, schema, explain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from mlflowkit.cli import app as cli
from mlflowkit.errors import DataError, GateInconclusiveError


@pytest.fixture
def mlkit(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command line in this process; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main(list(arguments))
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Register a command named trial, for one test."""
    monkeypatch.setattr(cli.app, "registered_commands", list(cli.app.registered_commands))

    def register(function: Any) -> None:
        cli.app.command("trial")(function)

    return register


def test_help_lists_every_command(mlkit: Any) -> None:
    code, out, _ = mlkit("--help")
    assert code == 0
    assert all(f"\n  {name} " in out for name in cli.COMMANDS)
    assert mlkit() == (0, out, "")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(mlkit: Any, name: str) -> None:
    code, out, _ = mlkit(name, "--help")
    assert code == 0
    assert out.startswith(f"Usage: mlkit {name} ")
    assert len(out.splitlines()) > 3


def test_version(mlkit: Any) -> None:
    code, out, _ = mlkit("--version")
    assert code == 0
    assert out.startswith("mlkit 0.")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["valdate"], "validate"),
        (["validate"], "RECIPE"),
        (["validate", "r.yaml", "--nope"], "--nope"),
        (["--nope"], "--nope"),
    ],
)
def test_a_wrong_command_line_is_two_lines_and_code_2(mlkit: Any, arguments: list[str], word: str) -> None:
    code, out, err = mlkit(*arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[0].startswith("error: ")
    assert err.splitlines()[1].startswith("hint: ")
    assert word in err


def test_a_wrong_command_line_with_json_is_json(mlkit: Any) -> None:
    code, out, err = mlkit("validate", "--json")
    assert (code, err) == (2, "")
    assert json.loads(out)["error"] | {"message": "", "hint": ""} == {
        "code": 2,
        "kind": "usage",
        "message": "",
        "hint": "",
    }


def test_errors_end_with_their_code_and_hint(mlkit: Any, trial: Any) -> None:
    @trial
    def fails(json: cli.JsonOption = False) -> None:
        raise DataError("no rows", hint="look at loans.csv")

    assert mlkit("trial") == (3, "", "error: no rows\nhint: look at loans.csv\n")
    code, out, err = mlkit("trial", "--json")
    assert (code, err) == (3, "")
    assert json.loads(out) == {"error": {"code": 3, "kind": "data", "message": "no rows", "hint": "look at loans.csv"}}


def test_a_command_returns_its_code(mlkit: Any, trial: Any) -> None:
    @trial
    def inconclusive() -> int:
        return GateInconclusiveError.exit_code

    assert mlkit("trial") == (4, "", "")


@pytest.mark.parametrize("raised", [KeyboardInterrupt, typer.Abort])
def test_an_interruption_is_130_and_says_how_to_go_on(mlkit: Any, trial: Any, raised: type[BaseException]) -> None:
    @trial
    def interrupted() -> None:
        raise raised

    code, out, err = mlkit("trial")
    assert (code, out) == (130, "")
    assert "run the same command again" in err


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (["run", "r.yaml"], "run the same command again to resume"),
        (["simulate", "r.yaml"], "nothing was saved: run the same command again"),
        (["replay", "r.yaml"], "nothing was saved: run the same command again"),
        (["rollout", "promote"], "mlkit rollout status"),
    ],
)
def test_an_interruption_says_what_is_true_of_the_command(
    mlkit: Any, monkeypatch: pytest.MonkeyPatch, command: list[str], hint: str
) -> None:
    def interrupted(**given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    code, _, err = mlkit(*command)
    assert (code, hint in err, "resume" in err) == (130, True, command[0] == "run")


def test_a_bug_shows_its_traceback_and_keeps_stdout_json(mlkit: Any, trial: Any) -> None:
    @trial
    def broken(json: cli.JsonOption = False) -> None:
        raise ZeroDivisionError("oops")

    code, out, err = mlkit("trial", "--json")
    assert code == 3
    assert "ZeroDivisionError: oops" in json.loads(out)["error"]["message"]
    assert "Traceback" in err


# ------------------------------------------------------------------------------------------------- the recipe's own


def test_init_writes_a_recipe_that_is_fine_and_says_what_next(mlkit: Any) -> None:
    code, out, _ = mlkit("init", "trial")
    assert code == 0
    assert sorted(path.name for path in Path("trial").iterdir()) == ["datasets.py", "recipe.schema.json", "recipe.yaml"]
    assert out.splitlines()[-1] == "next: mlkit run trial/recipe.yaml"
    assert Path("trial/recipe.yaml").read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    assert mlkit("validate", "trial/recipe.yaml")[0] == 0


def test_init_overwrites_nothing_unless_forced(mlkit: Any) -> None:
    Path("datasets.py").write_text("mine\n")
    code, out, err = mlkit("init")
    assert (code, out) == (2, "")
    assert "datasets.py exists already" in err
    assert "--force" in err
    assert [path.name for path in Path().iterdir()] == ["datasets.py"]
    assert mlkit("init", "--force")[0] == 0
    assert "mine" not in Path("datasets.py").read_text()


def test_init_into_a_file_is_refused(mlkit: Any) -> None:
    Path("file").write_text("")
    code, _, err = mlkit("init", "file")
    assert code == 2
    assert "not a directory" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_init_where_one_may_not_write(mlkit: Any) -> None:
    Path("closed").mkdir(mode=0o500)
    assert mlkit("init", "closed")[0] == 2


def test_validate_prints_faults_like_a_compiler(mlkit: Any) -> None:
    mlkit("init")
    recipe = Path("recipe.yaml")
    recipe.write_text(recipe.read_text().replace("epochs: 30", "epochs: fast"))
    line = recipe.read_text().splitlines().index("  epochs: fast") + 1
    code, out, err = mlkit("validate", "recipe.yaml", "seeed=1")
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines[:4] == [
        f"recipe.yaml:{line}:11: error: train.epochs: expected an integer >= 1, found 'fast'",
        f"{line:5d} |   epochs: fast",
        "      |           ^^^^",
        "      = the default is 20",
    ]
    assert "<override>:1:1: error: seeed: unknown key" in lines[4]
    assert lines[5] == "    1 | seeed=1"


def test_validate_json_has_the_agreed_shape(mlkit: Any) -> None:
    mlkit("init")
    recipe = Path("recipe.yaml")
    assert json.loads(mlkit("validate", "recipe.yaml", "--json")[1])["ok"] is True
    recipe.write_text(recipe.read_text().replace("epochs: 30", "epochs: 0"))
    code, out, err = mlkit("validate", "recipe.yaml", "--json")
    document = json.loads(out)
    assert (code, err, document["ok"]) == (2, "", False)
    assert [sorted(fault) for fault in document["errors"]] == [
        sorted(["file", "line", "column", "key", "found", "message", "hint"])
    ]
    assert document["errors"][0]["key"] == "train.epochs"


def test_validate_a_sweep(mlkit: Any) -> None:
    mlkit("init")
    code, out, _ = mlkit("validate", "recipe.yaml", "seed=1,2", "train.epochs=1,2,3", "--multirun")
    assert code == 0
    assert "6 jobs" in out
    code, _, err = mlkit("validate", "recipe.yaml", "seed=1,x", "--multirun")
    assert code == 2
    assert err.startswith("<override>:1:6: error: seed:")


def test_validate_a_missing_recipe(mlkit: Any) -> None:
    code, _, err = mlkit("validate", "recipe.yaml")
    assert code == 2
    assert err.startswith("recipe.yaml:1:1: error: there is no such file")


def test_schema_to_stdout_and_to_a_file(mlkit: Any) -> None:
    code, out, _ = mlkit("schema")
    assert code == 0
    assert mlkit("schema", "--output", "sub/schema.json")[:2] == (0, "")
    assert json.loads(Path("sub/schema.json").read_text()) == json.loads(out)


def test_explain_says_what_set_a_value(mlkit: Any) -> None:
    mlkit("init")
    code, out, _ = mlkit("explain", "recipe.yaml", "train.epochs", "train.epochs=3")
    assert code == 0
    assert out.splitlines()[0] == "train.epochs = 3"
    assert "override 1: train.epochs=3" in out
    assert "recipe.yaml:" in out
    document = json.loads(mlkit("explain", "recipe.yaml", "train.epochs", "train.epochs=3", "--json")[1])
    assert document["set_by"] == {
        "value": 3,
        "source": "override",
        "file": "<override>",
        "line": 1,
        "column": 14,
        "override": "train.epochs=3",
    }
    assert [setting["source"] for setting in document["shadows"]] == ["file", "default"]


def test_explain_an_unknown_key(mlkit: Any) -> None:
    mlkit("init")
    code, _, err = mlkit("explain", "recipe.yaml", "train.epoch")
    assert code == 2
    assert "train.epochs" in err


def test_the_installed_command_loads_no_vendor_to_validate(tmp_path: Path) -> None:
    """In a fresh process: what `mlkit validate` imports is pydantic and yaml, no rich, no Hydra, no vendor."""
    script = (
        "import sys\n"
        "from mlflowkit.cli import main\n"
        "try: main()\n"
        "except SystemExit as done: code = done.code\n"
        "heavy = {'torch', 'ray', 'pandas', 'numpy', 'sklearn', 'mlflow', 'onnx', 'onnxruntime', 'whylogs',\n"
        "         'pandera', 'matplotlib', 'hydra', 'omegaconf', 'rich', 'scipy', 'pyarrow'}\n"
        "print(code, sorted(heavy & set(sys.modules)))\n"
    )
    subprocess.run([sys.executable, "-c", script, "init", str(tmp_path)], check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-c", script, "validate", str(tmp_path / "recipe.yaml")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "0 []"
