"""A new project's generated Jenkinsfile: its scripts, run in order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mlflowkit.bundle import open_bundle
from tests.support.jenkins_scripts import jenkins_scripts
from tests.support.warm_commands import warm_command

pytestmark = [pytest.mark.heavy, pytest.mark.slow]


def _mlkit(*arguments: str) -> None:
    subprocess.run([*warm_command("mlflowkit.cli"), *arguments], check=True, capture_output=True)


def _git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Test", "-c", "user.email=test@example.com")
    return subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


def _stage(project: Path, stage: str) -> subprocess.CompletedProcess[str]:
    """Run a stage's script as Jenkins does: a file, by its first line, in the checkout."""
    script = project.parent / f"{stage}.sh"
    script.write_text(jenkins_scripts((project / "jenkins" / "mlkit-tumours" / "Jenkinsfile").read_text())[stage])
    script.chmod(0o755)
    path = f"{project.parent / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "WORKSPACE_TMP": str(project.parent / "project@tmp")}
    return subprocess.run([str(script)], cwd=project, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new project in a checkout, with what its pipeline installs and keeps from build to build beside it."""
    project = tmp_path_factory.mktemp("workspace") / "project"
    _mlkit("init", "--ci", "jenkins", str(project))
    (project / "requirements.txt").write_text("")  # the packages are those of the test's own environment
    _git(project, "add", "-A")
    _git(project, "commit", "-qm", "A model")
    done = _stage(project, "install")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return project


def test_a_new_project_is_checked_judged_and_told_by_the_scripts_in_order(tmp_path: Path, project: Path) -> None:
    for stage in ("check", "judge"):
        done = _stage(project, stage)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    out = project.parent / "project@tmp" / "mlkit" / "out"
    report = json.loads((out / "report.json").read_bytes())
    identity = open_bundle(out / "bundle").manifest.identity
    assert identity == report["identity"]
    assert ElementTree.parse(out / "checks.xml").getroot()[0].get("failures") == "0"
    assert "`tumours`" in _stage(project, "comment").stdout
    assert _git(project, "status", "--porcelain") == ""
    _mlkit(
        "ci", "judge", str(project / "recipe.yaml"), "--out", str(tmp_path / "local"), "--state", str(tmp_path / "s")
    )
    assert json.loads((tmp_path / "local" / "report.json").read_bytes())["identity"] == identity


def test_a_model_that_is_not_good_enough_ends_the_judges_script_with_its_verdict(project: Path) -> None:
    recipe = project / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("{metric: roc_auc, min: 0.9}", "{metric: roc_auc, min: 0.9999999}"))
    _git(project, "commit", "-qam", "Ask too much")
    judged = _stage(project, "judge").returncode
    assert judged in (1, 4)
    report = json.loads((project.parent / "project@tmp" / "mlkit" / "out" / "report.json").read_bytes())
    assert report["exit_code"] == judged
