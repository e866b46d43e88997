"""Faults that users of other tools reported, from training to the graph: each ends right, or refused by name."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from mlflowkit import bundle
from mlflowkit.adapters.arrow import parquet_files
from mlflowkit.errors import DataError, EngineError, UserCodeError
from mlflowkit.features.preprocess import load_sklearn
from mlflowkit.service_state.records import GatewaySettings
from mlflowkit.system import telemetry
from mlflowkit.values import RoutingTable, Variant
from tests.support.export_world import ExportWorld, write_data
from tests.support.gateways import InProcess
from tests.support.warm_commands import warm_command

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
        """Run a command; with ``env``, which changes its environment, from the start of Python on."""
        environment = {**os.environ, **(env or {})}
        words = MLKIT if env else warm_command("mlflowkit.cli")
        ended = subprocess.run(
            [*words, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=280,
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
        world.train({"kind": "torch", "module": "nets:Net"})
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
    world.train({"kind": "torch", "module": "nets:Net"})
    assert world.export().metrics["parity_max_abs_difference"] < 1e-5


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
    answer = case.mlkit("run", "recipe.yaml", "--until", "train", "--json", "train.epochs=2")
    assert answer.code == 3
    assert "nets.py line 11" in json.loads(answer.out)["error"]["message"]


SECONDS = 1_700_000_000
RIDGE = "{kind: sklearn, module: 'sklearn.linear_model:Ridge', args: {alpha: 0.001}}"


def epoch(case: Case, target_offset: int = 0, model: str = RIDGE) -> pd.DataFrame:
    """Seconds since 1970 over two minutes, of which the target is a copy."""
    generator = np.random.default_rng(0)
    passed = generator.integers(0, 120, 600)
    frame = pd.DataFrame({"ts": SECONDS + passed, "noise": generator.normal(0, 1, 600).round(3)})
    frame["y"] = (target_offset + passed).astype(float)
    frame.to_csv(case.folder / "data.csv", index=False)
    case.recipe(model, task="regression")
    return frame


@pytest.mark.parametrize("target_offset", [0, SECONDS])
def test_seconds_since_1970_keep_double_precision_to_the_answer(case: Case, target_offset: int) -> None:
    frame = epoch(case, target_offset)
    answer = case.mlkit("run", "recipe.yaml", "--until", "package", "--json")
    assert answer.code == 0, answer.err
    assert "'ts' is centred at 17000000" in answer.err
    assert ("'y' is centred at 17000000" in answer.err) == bool(target_offset)
    opened = bundle.open_bundle(Path(json.loads(answer.out)["bundle"]))
    assert [tensor.datatype for tensor in opened.signature.inputs] == ["FP64"]
    rows = frame.head(40)
    for url, post in served(opened):
        body = {"rows": rows[["ts", "noise"]].to_dict("records")}
        predictions = post(f"{url}/predict", body)["predictions"]
        np.testing.assert_allclose([row["prediction"] for row in predictions], rows["y"], atol=0.01)
        columns = [
            {"name": "ts", "datatype": "INT64", "shape": [40], "data": rows["ts"].tolist()},
            {"name": "noise", "datatype": "FP32", "shape": [40], "data": rows["noise"].tolist()},
        ]
        (output,) = post(f"{url}/v2/models/case/infer", {"inputs": columns})["outputs"]
        np.testing.assert_allclose(output["data"], rows["y"], atol=0.01)
    rows.to_csv(case.folder / "rows.csv", index=False)
    score = case.mlkit("predict", "--model", str(opened.path), "--file", "rows.csv", "--out", "scored.csv")
    assert score.code == 0, score.err
    np.testing.assert_allclose(pd.read_csv(case.folder / "scored.csv")["prediction"], rows["y"], atol=0.01)


def served(opened: bundle.Bundle) -> Iterator[tuple[str, Callable[[str, Any], Any]]]:
    """A gateway in this process that serves a bundle, once: its address, and a function that posts JSON to it."""
    gateway = InProcess(GatewaySettings("case", port=0))
    try:
        version = opened.manifest.version
        variant = Variant("champion", version, opened.manifest.identity, str(opened.path))
        gateway.swap(RoutingTable("case", 1, (variant,)))

        def post(url: str, body: Any) -> Any:
            reply = gateway.client.post(url, json=body)
            assert reply.status_code == 200, reply.text
            return reply.json()

        yield gateway.url, post
    finally:
        gateway.close()


def test_every_pass_takes_a_graph_in_double_precision(case: Case) -> None:
    epoch(case, SECONDS, "{kind: torch, args: {hidden: [8]}}")
    candidates = "optimize.candidates=[onnx,onnx-int8,onnx-fp16,onnx-int8-dynamic,onnx-weight-only-8,torch]"
    answer = case.mlkit("run", "recipe.yaml", "--until", "optimize", "--json", candidates, "train.epochs=2")
    assert answer.code == 0, answer.err
    (table,) = case.folder.glob(".mlkit/objects/*/candidates.json")
    invalid = {item["name"]: item["reason"] for item in json.loads(table.read_text()) if item.get("reason")}
    assert not {name for name, reason in invalid.items() if "double" in reason or "float64" in reason}, invalid


IDS = 2**53


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [IDS, IDS + 1, IDS + 2, IDS + 3],
            "merges 75% of the 4 distinct values .such as 9007199254740992 and .*, and 25%",
        ),
        ([*[0] * 60, *range(SECONDS, SECONDS + 120)], "after centring"),
    ],
    ids=["ids beyond 2^53", "zero for a missing time"],
)
def test_a_column_that_centring_does_not_save_is_refused_before_training(
    case: Case, values: list[int], message: str
) -> None:
    generator = random.Random(3)
    case.data("id,x,y", [f"{value},{generator.random():.3f},{value % 2}" for value in values * (600 // len(values))])
    case.recipe("{kind: sklearn, module: 'sklearn.linear_model:LogisticRegression'}")
    answer = case.mlkit("run", "recipe.yaml", "--until", "train", "--json")
    assert answer.code == 3
    error = json.loads(answer.out)["error"]
    assert re.search(message, error["message"]), error
    assert "{id: categorical}" in error["hint"]
    again = case.mlkit("run", "recipe.yaml", "--until", "train", "+data.columns={id: categorical}")
    assert again.code == 0, again.err


def test_ordinary_numbers_keep_float32(case: Case) -> None:
    generator = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "share": generator.random(5000),
            "amount": generator.lognormal(8, 2, 5000).round(2),
            "id": generator.permutation(5000),
            "large": generator.normal(5e5, 1e4, 5000),
            "y": generator.normal(2e5, 1e4, 5000),
        }
    )
    frame.to_csv(case.folder / "data.csv", index=False)
    case.recipe(RIDGE, task="regression")
    answer = case.mlkit("run", "recipe.yaml", "--until", "data")
    assert answer.code == 0
    assert "centred" not in answer.err


@pytest.mark.parametrize("kind", ["linear_model:Ridge", "svm:SVR"])
def test_parity_is_held_against_double_precision(kind: str, tmp_path: Path) -> None:
    """What float32 merges in a graph is a difference, also where both sides would merge it alike."""
    generator = np.random.default_rng(0)
    passed = generator.integers(0, 120, 400)
    frame = pd.DataFrame({"ts": SECONDS + passed, "y": passed.astype(float)})
    world = write_data(tmp_path, frame, "y", "regression")  # a table without offsets, as an older version wrote it
    world.train({"kind": "sklearn", "module": f"sklearn.{kind}"})
    with pytest.raises(EngineError, match="differs from the Python model in double precision"):
        world.export()


UNFAITHFUL = {
    "HistGradientBoosting with categorical features": (
        "ensemble:HistGradientBoostingClassifier", {"max_iter": 20, "categorical_features": [2]},
        "categorical_features: .* has no ONNX form", "leave it out of model.args",
    ),
    "LDA of two classes": (
        "discriminant_analysis:LinearDiscriminantAnalysis", {}, "differs from the Python model", "three classes",
    ),
    "neighbours weighted by distance": (
        "neighbors:KNeighborsClassifier", {"weights": "distance"}, "differs from the Python model", "weights: uniform",
    ),
    "QDA": ("discriminant_analysis:QuadraticDiscriminantAnalysis", {}, "QuadraticDiscriminantAnalysis|differs",
            "sklearn.linear_model:LogisticRegression"),
    "SVC without probabilities": ("svm:SVC", {}, "gives no probabilities", "LogisticRegression"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFAITHFUL)
def test_an_estimator_without_a_faithful_graph_is_refused_before_training(name: str, tmp_path: Path) -> None:
    module, args, message, hint = UNFAITHFUL[name]
    world = write_data(tmp_path, numbers_table(), "y", "classification")
    with pytest.raises((EngineError, UserCodeError), match=message) as caught:
        world.train({"kind": "sklearn", "module": f"sklearn.{module}", "args": args})
    assert hint in caught.value.hint
    assert "forward" not in caught.value.hint + caught.value.message
    assert not any((tmp_path / "train").iterdir()), "nothing was trained"


FAITHFUL = {
    "forest": ("ensemble:RandomForestClassifier", {"n_estimators": 300}),
    "boosting": ("ensemble:HistGradientBoostingClassifier", {"max_iter": 5}),
    "more neighbours than the rehearsal has rows": ("neighbors:KNeighborsClassifier", {"n_neighbors": 310}),
    "calibrated": ("calibration:CalibratedClassifierCV", {}),
    "bayes": ("naive_bayes:GaussianNB", {}),
}


@pytest.mark.parametrize("name", FAITHFUL)
def test_an_estimator_with_a_faithful_graph_is_trained_as_the_recipe_says(name: str, tmp_path: Path) -> None:
    module, args = FAITHFUL[name]
    world = write_data(tmp_path, numbers_table(), "y", "classification")
    world.train({"kind": "sklearn", "module": f"sklearn.{module}", "args": args})
    assert world.export().metrics["parity_max_abs_difference"] < 1e-4
    fitted = load_sklearn(tmp_path / "train" / "model.skops")
    assert {name: getattr(fitted, name) for name in args} == args
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["rehearsed"]


def numbers_table(rows: int = 800) -> pd.DataFrame:
    generator = np.random.default_rng(4)
    frame = pd.DataFrame({"a": generator.normal(size=rows), "b": generator.normal(size=rows).round(1)})
    frame["c"] = generator.integers(0, 4, rows).astype(float)
    frame["y"] = np.where(frame["a"] + frame["c"] + generator.normal(0, 0.5, rows) > 1.5, "good", "rare")
    return frame


def test_categorical_features_of_boosting_end_the_run_with_what_to_write(case: Case) -> None:
    numbers_table().to_csv(case.folder / "data.csv", index=False)
    case.recipe(
        "{kind: sklearn, module: 'sklearn.ensemble:HistGradientBoostingClassifier', "
        "args: {max_iter: 20, categorical_features: [2]}}"
    )
    answer = case.mlkit("run", "recipe.yaml", "--until", "train", "--json")
    error = json.loads(answer.out)["error"]
    assert answer.code == 3
    assert "has no ONNX form" in error["message"]
    assert "~model.args.categorical_features" in error["hint"]
    typed = case.mlkit("run", "recipe.yaml", "--until", "train", "~model.args.categorical_features")
    assert typed.code == 0, typed.err


ENDINGS = {
    "softmax": ("return self.a(x).softmax(dim=1)", r"ends in a softmax.*no probability can exceed 0.73"),
    "softmax by hand": (
        "e = self.a(x).exp(); return e / e.sum(dim=1, keepdim=True)",
        r"ends in a softmax.*no probability can exceed 0.73",
    ),
    "sigmoid": ("return torch.sigmoid(self.a(x))", "ends in a sigmoid"),
    "logits": ("return self.a(x)", ""),
    "log softmax": ("return self.a(x).log_softmax(dim=1)", ""),
    "softmax inside": ("return self.a(x.softmax(dim=1))", ""),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_activation_that_bounds_the_scores_is_told(ending: str, tmp_path: Path) -> None:
    forward, message = ENDINGS[ending]
    world = torch_world(tmp_path, forward)
    for _ in range(2):  # told again where the rehearsal is not repeated
        findings = world.train({"kind": "torch", "module": "nets:Net"}).summary["findings"]
        assert len(findings) == bool(message)
        for finding in findings:
            assert re.search(message, finding["message"])
            assert "logits" in finding["hint"]


def test_a_small_file_that_expands_beyond_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 1_000_000
    table = pa.table({"x": pa.nulls(rows, pa.float64()), "y": pa.nulls(rows, pa.string())})
    path = tmp_path / "bomb.parquet"
    parquet.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 10_000
    assert len(parquet_files.read_columns([path], ["x", "y"])[0]) == rows, "there is memory for it"
    monkeypatch.setattr(parquet_files, "memory", lambda field: 11 * rows)
    with pytest.raises(DataError, match=r"of 0.0 MiB expands to 0.0 GiB at least \(1,000,000 rows of 2 columns\)"):
        parquet_files.read_columns([path], ["x", "y"])
    assert len(parquet_files.read_columns([path], ["x"])[0]) == rows, "only what is read counts"
