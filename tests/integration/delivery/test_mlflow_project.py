"""The generated MLflow project, run by MLflow itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mlflowkit.bundle import open_bundle

pytestmark = [pytest.mark.heavy, pytest.mark.slow]
RUN = """
import json, sys
import mlflow.projects
from mlflow.exceptions import ExecutionException
project, entry, parameters = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
try:
    run = mlflow.projects.run(project, entry, parameters=parameters, env_manager="local")
    print(run.get_status())
except ExecutionException as error:
    sys.exit(f"ExecutionException: {error}")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlflow") / "project"
    command = [sys.executable, "-m", "mlflowkit.cli", "init", "--ci", "github", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    export = [sys.executable, "-m", "mlflowkit.cli", "export", "mlproject", "recipe.yaml"]
    subprocess.run(export, cwd=folder, check=True, capture_output=True)
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.com")
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    subprocess.run(["git", *identity, "commit", "-qm", "A model"], cwd=folder, check=True)
    return folder


def _run(project: Path, entry: str, **parameters: str) -> subprocess.CompletedProcess[str]:
    work = project.parent
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{work}/runs.db",
        "MLKIT_STATE": str(work / "state"),
    }
    command = [sys.executable, "-c", RUN, str(project), entry, json.dumps(parameters)]
    return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False, timeout=500)


def test_mlflow_checks_the_code_and_judges_the_model(tmp_path: Path, project: Path) -> None:
    out = tmp_path / "out of the checkout"  # MLflow quotes it
    done = _run(project, "main", out=str(out))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "FINISHED"
    report = json.loads((out / "report.json").read_bytes())
    assert report["exit_code"] == 0
    assert open_bundle(out / "bundle").manifest.identity == report["identity"]
    checked = _run(project, "check", out=str(out))
    assert checked.returncode == 0, checked.stdout[-2000:] + checked.stderr[-3000:]
    assert ElementTree.parse(out / "checks.xml").getroot()[0].get("failures") == "0"
    status = subprocess.run(["git", "status", "--porcelain"], cwd=project, capture_output=True, check=True)
    assert status.stdout == b""


def test_a_parameter_that_the_project_does_not_have_fails_the_run(tmp_path: Path, project: Path) -> None:
    done = _run(project, "main", out=str(tmp_path / "out"), epochs="3")
    assert done.returncode == 1
    assert "ExecutionException: Run (ID" in done.stderr
    assert "too many arguments" in done.stderr or "--epochs" in done.stderr


def test_the_output_folder_has_to_be_named(project: Path) -> None:
    done = _run(project, "main")
    assert "No value given for missing parameters: 'out'" in done.stderr
