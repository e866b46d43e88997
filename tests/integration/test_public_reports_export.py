"""Faults that users of other tools reported, from training to the graph: each ends right, or refused by name."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlflowkit.system import telemetry

MLKIT = (sys.executable, "-c", "from mlflowkit.cli import main; main()")
OWN_CACHE = Path(".cache/mlflowkit")
"""The one folder below the home folder that mlflowkit itself writes."""

RECIPE = """\
name: case
task: {task}
seed: 3
data:
  source: {{kind: csv, path: data.csv}}
  target: y
  split: {{kind: {split}, validation: 0.2, test: 0.2}}
model: {model}
optimize: {{candidates: [onnx]}}
gates: []
"""


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Case:
    """A folder with data.csv and recipe.yaml."""

    folder: Path

    def recipe(self, model: str, task: str = "classification") -> None:
        split = "stratified" if task == "classification" else "random"
        (self.folder / "recipe.yaml").write_text(RECIPE.format(task=task, split=split, model=model))

    def data(self, header: str, rows: list[str]) -> None:
        (self.folder / "data.csv").write_text("\n".join([header, *rows]) + "\n")

    def mlkit(self, *arguments: str, env: Mapping[str, str | None] | None = None) -> Answer:
        environment = {**os.environ, **(env or {})}
        ended = subprocess.run(
            [*MLKIT, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=280,
            env={name: value for name, value in environment.items() if value is not None},
        )  # fmt: skip
        return Answer(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    folder = tmp_path / "case"
    folder.mkdir()
    return Case(folder)


@pytest.mark.parametrize("home", ["fresh", "not writable"])
def test_no_dependency_writes_to_the_home_folder(case: Case, tmp_path: Path, home: str) -> None:
    generator = random.Random(1)
    case.data("a,y", [f"{a:.3f},{2 * a:.3f}" for a in (generator.gauss(0, 1) for _ in range(60))])
    case.recipe("{kind: sklearn, module: 'sklearn.linear_model:Ridge'}", task="regression")
    folder = tmp_path / "home" if home == "fresh" else Path("/proc/nowhere")
    unset = dict.fromkeys(telemetry.SETTINGS)  # as in a user's shell; the tests set them
    answer = case.mlkit("run", "recipe.yaml", "--until", "optimize", env={"HOME": str(folder), **unset})
    assert answer.code == 0, answer.err
    assert "\x1b[" not in answer.err, "a library's raw coloured warning"
    assert "onnxruntime" not in answer.err, "a library's warning"
    if home == "fresh":
        files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
        assert [file for file in files if not file.is_relative_to(OWN_CACHE)] == []


def test_importing_mlflowkit_switches_telemetry_off_and_keeps_what_the_user_set() -> None:
    code = "import mlflowkit, os; print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['DO_NOT_TRACK'])"
    environment = {name: value for name, value in os.environ.items() if name not in telemetry.SETTINGS}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={**environment, "DO_NOT_TRACK": "0"})  # fmt: skip
    assert ended.stdout.split() == ["1", "0"]
