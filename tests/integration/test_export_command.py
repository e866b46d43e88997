"""mlkit export and mlkit init --ci, as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mlflowkit.delivery.regeneration.export_lock import LOCK
from mlflowkit.delivery.targets import BUILT_IN
from tests.support.export_project import make_project, tree
from tests.support.warm_commands import warm_command
from tests.unit.test_imports import VENDORS

MAIN = ".github/workflows/mlkit-lending.yml"
COMMENT = ".github/workflows/mlkit-lending-comment.yml"
MEASURED = """
import json, sys, time
from pathlib import Path
from mlflowkit.recipe import check
from mlflowkit.delivery.targets import BUILT_IN
recipe = Path(sys.argv[1])
check.load(recipe)
started = time.process_time()
from mlflowkit.ci.recipe_export import export_recipe
from mlflowkit.errors import RecipeError
for name in BUILT_IN:
    try:
        export_recipe(recipe, [name])
    except RecipeError:
        pass
seconds = time.process_time() - started
print(json.dumps([seconds, [name for name in json.loads(sys.argv[2]) if name in sys.modules]]))
"""


def _mlkit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*warm_command("mlflowkit.cli"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project").parent


def test_files_are_written_once_and_checked(project: Path) -> None:
    assert _mlkit(project, "export", "--check", "recipe.yaml").returncode == 1
    assert tree(project).keys() == {"recipe.yaml", "rows.csv", "requirements.txt"}
    done = _mlkit(project, "export", "recipe.yaml", "--json")
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)["files"]
    assert {item["path"]: item["action"] for item in files} == {MAIN: "new", COMMENT: "new"}
    assert _mlkit(project, "export", "github", "--check", "recipe.yaml").returncode == 0


def test_a_removed_trigger_removes_its_files(project: Path) -> None:
    _mlkit(project, "export", "recipe.yaml")
    recipe = project / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "  triggers: [{on: merge}]\n")
    checked = _mlkit(project, "export", "--check", "recipe.yaml")
    assert checked.returncode == 1
    assert "hint: mlkit export recipe.yaml" in checked.stderr
    assert "+  push" not in (diff := _mlkit(project, "export", "--diff", "recipe.yaml").stdout)
    assert "-  pull_request:" in diff
    assert _mlkit(project, "export", "recipe.yaml").returncode == 0
    assert not (project / COMMENT).exists()
    assert "pull_request:" not in (project / MAIN).read_text()


def test_a_conflict_is_exit_code_2_with_hints_that_work(project: Path) -> None:
    _mlkit(project, "export", "recipe.yaml")
    main, recipe = project / MAIN, project / "recipe.yaml"
    main.write_text(main.read_text().replace("timeout-minutes: 120", "timeout-minutes: 99"))
    recipe.write_text(recipe.read_text() + "  runner: {timeout: 3h}\n")
    before = tree(project)
    done = _mlkit(project, "export", "recipe.yaml")
    assert done.returncode == 2
    assert "-    timeout-minutes: 99" in done.stdout
    assert f"mlkit export recipe.yaml --theirs {MAIN}" in done.stderr
    assert tree(project) == before
    assert _mlkit(project, "export", "recipe.yaml", "--theirs", MAIN).returncode == 0
    assert "timeout-minutes: 180" in main.read_text()


def test_what_a_target_cannot_express_is_a_fault_of_the_recipe(project: Path) -> None:
    recipe = project / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "  secrets: {DB_URL: {vault: secret/db#url}}\n")
    done = _mlkit(project, "export", "recipe.yaml", "--json")
    assert done.returncode == 2
    (fault,) = json.loads(done.stdout)["error"]["errors"]
    assert (fault["line"], fault["key"]) == (8, "delivery.secrets.DB_URL.vault")
    assert "target github" in fault["message"]
    assert "env: NAME" in fault["hint"]
    assert not (project / LOCK).exists()


def test_out_writes_elsewhere(project: Path, tmp_path: Path) -> None:
    assert _mlkit(project, "export", "recipe.yaml", "--out", str(tmp_path / "elsewhere")).returncode == 0
    assert set(tree(tmp_path / "elsewhere")) == {MAIN, COMMENT, LOCK}
    assert not (project / ".github").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipe.yaml", "github"], "the last word is the recipe"),
        (["githb", "recipe.yaml"], "there is no delivery target 'githb'"),
        (["recipe.yaml", "--theirs", "README.md"], "README.md is not generated"),
    ],
)
def test_mistakes_of_the_command_line(project: Path, arguments: list[str], message: str) -> None:
    done = _mlkit(project, "export", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "hint: " in done.stderr


def test_exporting_every_target_is_quick_and_imports_no_vendor(project: Path) -> None:
    recipe = project / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "  environments: {staging: {}, production: {after: staging}}\n")
    arguments = [sys.executable, "-c", MEASURED, str(recipe), json.dumps([*VENDORS, "kfp", "boto3", "airflow"])]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    seconds, vendors = json.loads(done.stdout.splitlines()[-1])
    assert vendors == []
    assert seconds < 0.5 + 0.1 * len(BUILT_IN), "processor time, each target exported by itself"


def test_a_new_project_has_a_pipeline(tmp_path: Path) -> None:
    done = _mlkit(tmp_path, "init", "--ci", "github", "project")
    assert done.returncode == 0, done.stderr
    project = tmp_path / "project"
    assert {"recipe.yaml", "datasets.py", "requirements.txt", ".gitignore", "tests/test_datasets.py", LOCK} < set(
        tree(project)
    )
    assert _mlkit(project, "validate", "recipe.yaml").returncode == 0
    assert _mlkit(project, "export", "--check", "recipe.yaml").returncode == 0
    for command in (("format", "--check"), ("check",)):
        ruff = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=project, capture_output=True, check=False
        )
        assert ruff.returncode == 0, ruff.stdout
    ignored = subprocess.run(["git", "check-ignore", ".mlkit/x"], cwd=project, capture_output=True, check=False)
    assert ignored.returncode == 0


def test_a_project_in_a_folder_of_a_repository(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    rows = "".join(f"{n * 7 % 13},{n * 5 % 17},{'ab'[n * 3 % 7 % 2]}\n" for n in range(400))
    (tmp_path / "rows.csv").write_text(f"size,weight,kind\n{rows}")
    done = _mlkit(tmp_path, "init", "models/cells", "--ci", "github", "--csv", "rows.csv", "--target", "kind")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".github" / "workflows" / "mlkit-rows.yml").is_file()
    assert not (tmp_path / "models" / "cells" / ".git").exists()
    assert "-r models/cells/requirements.txt" in (tmp_path / ".github" / "workflows" / "mlkit-rows.yml").read_text()


def test_a_new_project_on_gitlab_has_the_file_that_gitlab_reads(tmp_path: Path) -> None:
    done = _mlkit(tmp_path, "init", "--ci", "gitlab", "project")
    assert done.returncode == 0, done.stderr
    project = tmp_path / "project"
    written = yaml.safe_load((project / ".gitlab-ci.yml").read_text())
    (included,) = [entry["local"] for entry in written["include"]]
    jobs = yaml.safe_load((project / included).read_text())
    assert not {"workflow", "stages", "default", "include"} & set(jobs), "an included file has jobs only"
    assert {rule["auto_cancel"]["on_new_commit"] for rule in written["workflow"]["rules"]} == {"interruptible", "none"}
    (project / ".gitlab-ci.yml").write_text("own: {script: [make]}\n")
    again = _mlkit(tmp_path, "init", "--ci", "gitlab", "project", "--force")
    assert f"add local: {included}" in again.stderr
    assert (project / ".gitlab-ci.yml").read_text() == "own: {script: [make]}\n"


def test_kept_edits_are_not_said_to_be_as_generated(project: Path) -> None:
    _mlkit(project, "export", "recipe.yaml")
    assert _mlkit(project, "export", "recipe.yaml").stderr == "every file is as it is generated\n"
    (project / MAIN).write_text((project / MAIN).read_text().replace("timeout-minutes: 120", "timeout-minutes: 7"))
    done = _mlkit(project, "export", "recipe.yaml")
    assert done.stderr == "every file is as it is generated, but for your edits in 1 file\n"


def test_an_unknown_system_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    done = _mlkit(tmp_path, "init", "--ci", "githb", "project")
    assert done.returncode == 2
    assert "mlkit init --ci github" in done.stderr
    assert not (tmp_path / "project").exists()
