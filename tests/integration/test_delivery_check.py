"""What `mlkit export` would refuse is told by `mlkit validate` and `mlkit ci check` before."""

from __future__ import annotations

import json
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from mlflowkit.ci.code_checks import run_checks
from mlflowkit.ci.recipe_export import export_recipe
from mlflowkit.errors import RecipeError, UsageError
from tests.support.export_project import make_project
from tests.support.warm_commands import warm_command

CHECKS = "checks: {format: false, lint: false, smoke_rows: 0}"


def _validate(recipe: Path, *options: str) -> tuple[int, dict[str, list[dict[str, object]]]]:
    command = [*warm_command("mlflowkit.cli"), "validate", recipe.name, "--json", *options]
    done = subprocess.run(command, cwd=recipe.parent, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, json.loads(done.stdout)


def test_targets_that_the_recipe_names_are_asked(tmp_path: Path) -> None:
    recipe = make_project(
        tmp_path / "project", f"{CHECKS}\ntargets: [gitlab]\ntriggers: [{{on: schedule, cron: 5 4 * * 1}}]"
    )
    code, answer = _validate(recipe)
    faults = {fault["key"]: fault for fault in answer["errors"]}
    assert code == 2
    fault = faults["delivery.triggers.0.on"]
    line = next(n for n, text in enumerate(recipe.read_text().splitlines(), 1) if "triggers" in text)
    assert (fault["file"], fault["line"]) == ("recipe.yaml", line)
    assert str(fault["message"]).startswith("target gitlab: ")
    report = run_checks(recipe, tmp_path / "out")
    assert {item.name: item.outcome for item in report.results}["validate"] == "failed"
    assert "gitlab" in ET.parse(tmp_path / "out" / "checks.xml").getroot()[0][0][0].attrib["message"]


def test_without_names_those_are_asked_whose_files_were_generated(tmp_path: Path) -> None:
    recipe = make_project(tmp_path, CHECKS)
    export_recipe(recipe, ["github"])
    recipe.write_text(recipe.read_text() + "  runner: {gpus: 1}\n")
    code, answer = _validate(recipe)
    assert (code, [fault["key"] for fault in answer["errors"]]) == (2, ["delivery.runner.gpus"])
    (tmp_path / ".mlkit-export.lock").unlink()
    assert _validate(recipe)[0] == 0, "nothing was generated, and nothing is named"


def test_an_overridden_recipe_is_asked_as_it_is_overridden(tmp_path: Path) -> None:
    recipe = make_project(tmp_path, f"{CHECKS}\ntargets: [github]")
    assert _validate(recipe)[0] == 0
    code, answer = _validate(recipe, "+delivery.runner.gpus=1")
    assert (code, answer["errors"][0]["file"]) == (2, "<override>")


def test_outside_of_a_repository_it_is_told_that_nobody_was_asked(tmp_path: Path) -> None:
    recipe = make_project(tmp_path, f"{CHECKS}\ntargets: [github]")
    (tmp_path / ".git").rename(tmp_path / "git")
    code, answer = _validate(recipe)
    assert code == 0
    assert "not in a git repository" in str(answer["warnings"])


@pytest.mark.parametrize(
    ("lock", "fault", "warning"),
    [
        (None, "there is no file requirements.txt", ""),
        ("a==1 \\\n  --hash=sha256:00\nb==2\n", "has hashes, and none for b", ""),
        ("# all\n-i https://x\na==1 \\\n  --hash=sha256:00\n", "", ""),
        ("a==1\nb==2\n", "", "names 2 packages without a hash"),
    ],
)
def test_the_lock_is_there_and_is_one_that_pip_takes(
    tmp_path: Path, lock: str | None, fault: str, warning: str
) -> None:
    recipe = make_project(tmp_path, f"{CHECKS}\ntargets: [github]\nrequirements: requirements.txt")
    file = tmp_path / "requirements.txt"
    file.unlink() if lock is None else file.write_text(lock)
    code, answer = _validate(recipe)
    assert code == (2 if fault else 0)
    assert [item["key"] for item in answer["errors"]] == (["delivery.requirements"] if fault else [])
    assert fault in str(answer["errors"])
    assert warning in str(answer.get("warnings"))
    if fault:
        with pytest.raises(RecipeError, match=r"requirements"):
            export_recipe(recipe, write=False)


def test_outputs_in_the_checkout_are_refused_before_they_make_it_dirty(tmp_path: Path) -> None:
    recipe = make_project(tmp_path, CHECKS)
    with pytest.raises(UsageError, match="lies in the checkout") as error:
        run_checks(recipe, tmp_path / "out")
    assert error.value.hint.startswith("--out ")
    assert not (tmp_path / "out").exists()
    (tmp_path / ".gitignore").write_text("/out/\n")
    assert run_checks(recipe, tmp_path / "out").exit_code == 0
