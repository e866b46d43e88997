"""Faults that users of other tools reported, from training to the graph: each ends right, or refused by name."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlflowkit.errors import UserCodeError
from mlflowkit.system import telemetry
from mlflowkit.values import StageResult
from tests.support.export_world import ExportWorld, write_data

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


NETS = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, features, outputs):
        super().__init__()
        self.a, self.b = nn.Linear(features, outputs), nn.Linear(features, outputs)

    def forward(self, x):
        {body}
"""
BODIES = {
    "a branch on values": (
        "return self.a(x) if x.mean() > 0 else self.b(x)",
        r"turns values of a tensor into Python's.*nets.py line 11: return self.a\(x\) if x.mean\(\) > 0",
        "torch.where",
    ),
    "a branch on values in a helper": (
        "return self.a(x) * float(x.abs().max())",
        r"turns values of a tensor into Python's.*nets.py line 11",
        "torch.where",
    ),
    "values through NumPy": (
        "return self.a(x) + torch.from_numpy(x.detach().numpy()).mean()",
        "depends on values|nets.py line 11",
        "torch.where",
    ),
    "rows as a number": (
        "return self.a(x.reshape(int(x.shape[0]), -1))",
        r"3 rows are baked into the graph: forward of Net turns .*x.shape\[0\].*nets.py line 11",
        "x.flatten",
    ),
    "a loop over rows": (
        "return torch.stack([self.a(row) for row in x])",
        "3 rows are baked into the graph.*nets.py line 11",
        "no loop",
    ),
    "dropout in evaluation": (
        "return nn.functional.dropout(self.a(x), 0.5)",
        r"Net answers at random: asked twice for the same \d+ rows .* \d+ of \d+ labels differ",
        "training=self.training",
    ),
    "the mean of the batch": (
        "return self.a(x - x.mean(dim=0))",
        r"answer for a row depends on the rows that it is asked with: row \d+",
        "its own columns",
    ),
}


@pytest.mark.parametrize("body", BODIES)
def test_a_module_that_no_graph_can_hold_is_refused_by_its_line(body: str, tmp_path: Path) -> None:
    forward, message, hint = BODIES[body]
    world = torch_world(tmp_path, forward)
    with pytest.raises(UserCodeError, match=message) as caught:
        train_and_export(world)
    assert hint in caught.value.hint


SOUND = {
    "a check of the width": "assert x.shape[1] == 5 and x.shape[0] > 0; return self.a(x)",
    "a check that is not traced": "assert torch.jit.is_tracing() or not x.isnan().any(); return self.a(x)",
    "torch.where": "return torch.where(x.sum(1, keepdim=True) > 0, self.a(x), self.b(x))",
    "float32 tensors in forward": "return self.a(x) + torch.zeros(1, dtype=torch.float32)",
    "a state of the batch's size": "return self.a(x) + torch.zeros(x.shape[0], 1)",
}


@pytest.mark.parametrize("body", SOUND)
def test_a_module_that_a_graph_can_hold_is_exported(body: str, tmp_path: Path) -> None:
    world = torch_world(tmp_path, SOUND[body])
    assert train_and_export(world).metrics["parity_max_abs_difference"] < 1e-5


def train_and_export(world: ExportWorld) -> StageResult:
    world.train({"kind": "torch", "module": "nets:Net"})
    return world.export()


def torch_world(folder: Path, forward: str) -> ExportWorld:
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(generator.normal(size=(400, 5)), columns=list("abcde"))
    frame["y"] = (frame["a"] + generator.normal(0, 0.5, 400) > 0).astype(int)
    world = write_data(folder, frame, "y", "classification")
    (folder / "nets.py").write_text(NETS.format(body=forward))
    return world


def test_a_branch_on_values_ends_the_run_with_the_line(case: Case) -> None:
    generator = random.Random(2)
    rows = [[generator.gauss(0, 1) for _ in range(5)] for _ in range(300)]
    case.data("a,b,c,d,e,y", [",".join(f"{cell:.4f}" for cell in row) + f",{int(row[0] > 0)}" for row in rows])
    case.recipe("{kind: torch, module: 'nets:Net'}")
    (case.folder / "nets.py").write_text(NETS.format(body=BODIES["a branch on values"][0]))
    answer = case.mlkit("run", "recipe.yaml", "--until", "export", "--json", "train.epochs=2")
    assert answer.code == 3
    assert "nets.py line 11" in json.loads(answer.out)["error"]["message"]
