"""A recipe in a git repository that is exported for SageMaker, and its `deliver.py`."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.support.fake_aws import FakeAws
from tests.support.warm_commands import warm_command

REGISTRY = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
IMAGE = f"{REGISTRY}/cells@sha256:{'7' * 64}"
RECIPE = f"""\
name: cells
task: classification
data:
  source: {{kind: python, function: "cells:table"}}
  target: kind
  positive: rare
  drop: [id]
  split: {{kind: stratified}}
model: {{kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}}
gates:
  - {{metric: roc_auc, min: 0.6}}
serve:
  service: cells
  rollout:
    strategy: canary
    steps: [50]
    bake_seconds: 600
    metrics: [{{metric: error_rate, max: 0.01, role: guardrail}}]
delivery:
  registry: {{image: {REGISTRY}/cells, credentials: {{oidc: aws}}}}
  environments: {{staging: {{promote: automatic}}, production: {{after: staging}}}}
  checks: {{smoke_rows: 200, lint: false, format: false}}
  sagemaker:
    region: eu-central-1
    role: arn:aws:iam::123456789012:role/mlkit
    bucket: acme-models
    image: {REGISTRY}/cells-steps@sha256:{"5" * 64}
  targets: [sagemaker]
"""
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


def mlkit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*warm_command("mlflowkit.cli"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400, check=False)


def make_sagemaker_project(folder: Path) -> Path:
    """The repository, with the generated files committed; returns the folder of these."""
    folder.mkdir()
    for name, text in (
        ("cells.yaml", RECIPE),
        ("cells.py", CODE),
        ("requirements.txt", ""),
        (".gitignore", ".mlkit\n"),
    ):
        (folder / name).write_text(text)
    git(folder, "init", "-q", "-b", "main")
    done = mlkit(folder, "export", "cells.yaml")
    assert done.returncode == 0, done.stderr
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return folder / "deploy" / "sagemaker" / "cells"


def load_deliver(folder: Path) -> Any:
    """The generated `deliver.py` as a module."""
    specification = importlib.util.spec_from_file_location("sagemaker_deliver", folder / "deliver.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class DeliveryCommands:
    """The commands of `deliver.py` against a fake of AWS."""

    def __init__(self, folder: Path, aws: FakeAws, capsys: Any) -> None:
        self.module, self.aws, self._capsys = load_deliver(folder), aws, capsys

    def __call__(self, *words: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, what was printed, and the error."""
        code = self.module.main(list(words), self.aws.client)
        out, error = self._capsys.readouterr()
        return code, json.loads(out) if out else {}, error
