"""A new project's generated DAG, run by Airflow on a worker with the project's checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlflowkit.bundle import open_bundle
from mlflowkit.pipeline.storage.journal import SqliteJournal
from tests.support.airflow_dags import AirflowWorld

pytestmark = [pytest.mark.delivery, pytest.mark.heavy, pytest.mark.slow]
DAG = "mlkit_tumours"


def _git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Test", "-c", "user.email=test@example.com")
    return subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


class Worker:
    """A project whose image is not built: the command that would is written down."""

    def __init__(self, folder: Path) -> None:
        self.project, self.shared = folder / "project", folder / "shared"
        (folder / "bin").mkdir()
        python = f"{sys.executable} -m mlflowkit.cli"
        wrapper = folder / "bin" / "mlkit"
        wrapper.write_text(
            f'#!/bin/sh\n[ "$1" != image ] || {{ echo "$MLKIT_REGISTRY_TOKEN $*" > {folder}/built; exit 0; }}\n'
            '[ "$2" != judge ] || export MLKIT_FAILPOINT="$KILLED_JUDGE"\n'
            f'exec {python} "$@"\n'
        )
        wrapper.chmod(0o755)
        self.built = folder / "built"
        subprocess.run([str(wrapper), "init", "--ci", "github", str(self.project)], check=True, capture_output=True)
        recipe = self.project / "recipe.yaml"
        options = f"  airflow: {{executor: bash, folder: {self.shared}}}\n"
        text = recipe.read_text().replace("{oidc: github}", "{env: TOKEN_OF_REGISTRY}") + options
        recipe.write_text(text)
        self.world = AirflowWorld(
            folder / "airflow",
            self.project / "dags",
            PATH=f"{folder / 'bin'}:{os.environ['PATH']}",
            TOKEN_OF_REGISTRY="t",
        )

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.built.parent / "bin" / "mlkit"), "export", "airflow", "recipe.yaml"]
        subprocess.run(command, cwd=self.project, check=True, capture_output=True)
        _git(self.project, "add", "-A")
        _git(self.project, "commit", "-qm", "A model")
        self.world.migrate()
        return self.world.run_dag(DAG, **environment)


def test_airflow_runs_the_dag_to_the_image(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    done = worker.run()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (out,) = (worker.shared / "out" / "tumours").iterdir()
    report = json.loads((out / "report.json").read_bytes())
    assert report["exit_code"] == 0
    assert open_bundle(out / "bundle").manifest.identity == report["identity"]
    assert worker.built.read_text() == f"t image build recipe.yaml --push --from {out}/report.json\n"
    assert _git(worker.project, "status", "--porcelain") == ""


def test_a_failed_gate_fails_the_run_and_builds_nothing(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    recipe = worker.project / "recipe.yaml"
    text = recipe.read_text()
    assert "{metric: roc_auc, min: 0.9}" in text
    recipe.write_text(text.replace("{metric: roc_auc, min: 0.9}", "{metric: roc_auc, min: 0.9999999}"))
    done = worker.run()
    assert done.returncode != 0
    (out,) = (worker.shared / "out" / "tumours").iterdir()
    assert json.loads((out / "report.json").read_bytes())["exit_code"] in (1, 4)
    assert not worker.built.exists()


def test_a_task_that_is_killed_and_run_again_trains_once(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    assert worker.run(KILLED_JUDGE="stage.returned@export").returncode != 0
    assert not worker.built.exists()
    assert worker.world.run_dag(DAG).returncode == 0
    assert worker.built.exists()
    with SqliteJournal(worker.shared / "state", create=False) as journal:
        records = journal.runs()
    actions = [step.action for record in records for step in record.steps if step.stage == "train"]
    assert (len(records), sorted(actions)) == (2, ["reuse", "run"])
