"""A recipe's compiled Kubeflow pipeline, run: what it judges is what a run on this machine makes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.kfp_runner import KfpRun
from tests.support.warm_commands import warm_command

RECIPE = """\
name: cells
task: classification
data:
  source: {kind: python, function: "cells:table"}
  target: kind
  positive: rare
  drop: [id]
  split: {kind: stratified}
model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}
gates:
  - {metric: roc_auc, min: 0.6}
delivery:
  registry:
    image: ghcr.io/acme/cells
    credentials: {kubernetes: {name: registry, key: token}}
  checks: {smoke_rows: 200, lint: false, format: false}
  kubeflow: {image: "ghcr.io/acme/steps@sha256:IMAGE"}
  targets: [kubeflow]
""".replace("IMAGE", "5" * 64)
CODE = '''\
"""Cells."""

import numpy as np
import pandas as pd


def table() -> pd.DataFrame:
    """Four thousand rows, one in eighty rare."""
    generator = np.random.default_rng(0)
    kinds = np.where(np.arange(4000) % 80 == 0, "rare", "common")
    size = generator.normal(size=4000) + 3 * (kinds == "rare")
    return pd.DataFrame({"id": np.arange(4000), "size": size, "kind": kinds})
'''


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.com", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "cells.yaml").write_text(RECIPE)
    (folder / "cells.py").write_text(CODE)
    (folder / "requirements.txt").write_text("")
    (folder / ".gitignore").write_text(".mlkit\n")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return folder


def test_a_run_judges_the_version_that_this_machine_makes(project: Path, tmp_path: Path) -> None:
    exported = subprocess.run(
        [*warm_command("mlflowkit.cli"), "export", "cells.yaml"], cwd=project, capture_output=True, text=True
    )
    assert exported.returncode == 0, exported.stderr
    text = (project / "pipelines" / "mlkit-cells.yaml").read_text()

    binaries = tmp_path / "bin"
    binaries.mkdir()
    images = tmp_path / "images"  # an image is not built here: its base is not to be had without a network
    command = shlex.join(warm_command("mlflowkit.cli"))
    recorded = f'echo "$@" > {images}; echo {{}} > "$MLKIT_OUT/image.json"; exit 0'
    (binaries / "mlkit").write_text(f'#!/bin/sh\nif [ "$1" = image ]; then {recorded}; fi\nexec {command} "$@"\n')
    (binaries / "mlkit").chmod(0o755)
    run = KfpRun(
        text,
        tmp_path / "run",
        {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "MLKIT_STATE": str(tmp_path / "state")},
        {("registry", "token"): "registry-token"},
    )
    (tmp_path / "run").mkdir()
    run.run(repository=str(project))
    assert run.ran == ["check", "judge", "image"]

    out = tmp_path / "run" / "judge" / "artifacts" / "out"
    report = json.loads((out / "report.json").read_bytes())
    assert (report["exit_code"], report["git_dirty"]) == (0, False)
    assert report["git_commit"] == git(project, "rev-parse", "HEAD")
    assert (tmp_path / "run" / "image" / "artifacts" / "record").read_text() == "{}\n"
    read = tmp_path / "run" / "image" / "inputs" / "out" / "report.json"
    assert images.read_text().split() == ["image", "build", "cells.yaml", "--push", "--from", str(read)]

    local = [*warm_command("mlflowkit.cli"), "ci", "judge", "cells.yaml", "--out", str(tmp_path / "local")]
    done = subprocess.run(local, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "local" / "report.json").read_bytes())["identity"] == report["identity"]


@pytest.mark.parametrize(
    ("key", "value", "place", "message"),
    [
        ("kubernetes: {name: registry, key: token}", "env: TOKEN", "TOKEN", "cannot read a secret of env"),
        ("targets:", "policy: {signed: true}\n  targets:", "true", "no identity token to sign with"),
        ("targets:", "triggers: [{on: merge}]\n  targets:", "merge", "is told of no merge"),
        ("targets:", "triggers: [{on: schedule, cron: 1 2 * * *}]\n  targets:", "schedule", "recurring runs"),
        ("targets:", "environments: {prod: {promote: approval}}\n  targets:", "approval", "wait for a person"),
        ("targets:", "environments: {prod: {repo: 'git@x:y'}}\n  targets:", "'git@x:y'", "neither an SSH key"),
        ("targets:", "environments: {prod: {}}\n  targets:", '{image: "ghcr.io/acme/steps', "pushes to a repository"),
        ("targets:", "environments: {prod: {}}\n  targets:", '{image: "ghcr.io/acme/steps', "state folder"),
    ],
)
def test_what_kubeflow_cannot_express_has_a_place(
    project: Path, key: str, value: str, place: str, message: str
) -> None:
    recipe = RECIPE.replace(key, value)
    (project / "cells.yaml").write_text(recipe)
    before, _, _ = recipe.partition(place)
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    done = subprocess.run(
        [*warm_command("mlflowkit.cli"), "export", "cells.yaml"], cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 2
    [fault] = [text for text in done.stderr.splitlines() if message in text]
    assert f"cells.yaml:{line}:{column}:" in fault
