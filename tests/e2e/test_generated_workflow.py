"""A new project's generated workflow, executed by act."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.bundle import open_bundle
from tests.support.act_world import CANARIES, ActWorld

pytestmark = [pytest.mark.delivery, pytest.mark.heavy, pytest.mark.slow]
WORKFLOW = ".github/workflows/mlkit-tumours.yml"
PULL_REQUEST = {
    "pull_request": {
        "number": 7,
        "head": {"ref": "change", "sha": "0" * 40, "repo": {"full_name": "acme/tumours", "fork": False}},
        "base": {"ref": "main"},
    },
    "repository": {"full_name": "acme/tumours", "default_branch": "main"},
}


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Test", "-c", "user.email=test@example.com")
    return subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


def new_project(folder: Path) -> Path:
    """What `mlkit init --ci github` writes, committed, with a remote at GitHub."""
    command = [sys.executable, "-m", "mlflowkit.cli", "init", "--ci", "github", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "requirements.txt").write_text("")  # what the test's own environment has
    git(folder, "remote", "add", "origin", "https://github.com/acme/tumours.git")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "A model")
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return new_project(tmp_path / "project")


def test_the_checks_of_a_new_project_are_green_and_leave_the_checkout_clean(tmp_path: Path, project: Path) -> None:
    world = ActWorld(tmp_path / "act", project)
    done = world.run(WORKFLOW, "pull_request", job="check", payload=PULL_REQUEST)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    (suite, own) = ET.parse(world.artifacts / "mlkit-tumours-check" / "checks.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), own.get("tests")) == ("5", "0", "1")
    assert git(project, "status", "--porcelain") == ""


def test_a_failing_test_of_the_user_is_a_red_job(tmp_path: Path, project: Path) -> None:
    test = project / "tests" / "test_datasets.py"
    test.write_text(test.read_text().replace('"benign"', '"harmless"'))
    git(project, "commit", "-qam", "Break it")
    done = ActWorld(tmp_path / "act", project).run(WORKFLOW, "pull_request", job="check", payload=PULL_REQUEST)
    assert done.returncode != 0
    assert "failed   tests" in done.stdout


def _judged(world: ActWorld) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((world.artifacts / "mlkit-tumours" / "mlkit" / "report.json").read_bytes())
    return value


def test_a_new_project_is_judged_green_and_its_bundle_goes_on_without_a_secret(tmp_path: Path, project: Path) -> None:
    world = ActWorld(tmp_path / "act", project)
    variables = {name: value for name, value in CANARIES.items() if not name.startswith(("GITHUB_", "MLKIT_"))}
    done = world.run(WORKFLOW, "pull_request", job="judge", payload=PULL_REQUEST, env=variables, secrets=CANARIES)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    report = _judged(world)
    assert report["exit_code"] == 0
    bundle = open_bundle(world.artifacts / "mlkit-tumours" / "mlkit" / "bundle")
    assert bundle.manifest.identity == report["identity"]
    kept = [path.read_bytes() for path in world.artifacts.rglob("*") if path.is_file()]
    everything = b"".join([done.stdout.encode(), done.stderr.encode(), *kept])
    assert [name for name, value in CANARIES.items() if value.encode() in everything] == []
    assert git(project, "status", "--porcelain") == ""


def test_a_model_that_is_not_good_enough_is_a_red_job_with_a_report(tmp_path: Path, project: Path) -> None:
    recipe = project / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("{metric: roc_auc, min: 0.9}", "{metric: roc_auc, min: 0.9999999}"))
    git(project, "commit", "-qam", "Ask too much")
    world = ActWorld(tmp_path / "act", project)
    done = world.run(WORKFLOW, "pull_request", job="judge", payload=PULL_REQUEST)
    assert done.returncode != 0
    assert _judged(world)["exit_code"] in (1, 4)
