"""Every sort of model becomes one graph over raw columns, with the Python model's answers."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import skops.io

from mlflowkit.adapters.onnx_exporter import OnnxExporter, graph_parts
from mlflowkit.bundle import Signature
from mlflowkit.errors import EngineError, UserCodeError
from mlflowkit.features.tensors import inputs_from_table
from mlflowkit.stages.base import expected_signature, read_table_info
from tests.support.export_world import CASES, ExportWorld, sklearn

Make = Callable[[str], ExportWorld]
RUNTIME_TYPES = {"FP32": "tensor(float)", "INT64": "tensor(int64)", "BYTES": "tensor(string)"}


def session_of(folder: Path) -> Any:
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


def signature_of(world: ExportWorld) -> Signature:
    return Signature.model_validate_json((world.base / "export" / "signature.json").read_bytes())


def rows_of(world: ExportWorld, part: str = "test") -> dict[str, np.ndarray]:
    return inputs_from_table(signature_of(world), pd.read_parquet(world.base / "data" / f"{part}.parquet"))


@pytest.mark.parametrize("case", CASES)
def test_graph_answers_as_the_python_model_does(case: str, exported: Make) -> None:
    world = exported(case)
    parity = json.loads((world.base / "export" / "parity.json").read_text())
    assert parity["max_abs_difference"] < 1e-5
    assert parity["label_mismatches"] == 0
    assert parity["rows"] > 1.2 * parity["real_rows"], "rows with gaps and unseen categories are part of it"
    inputs = rows_of(world)  # rows that neither parity nor training saw
    expected = OnnxExporter().reference(world.base / "train", world.base).predict(inputs)
    outputs = dict(zip(expected, session_of(world.base / "export").run(list(expected), inputs), strict=True))
    for name, answer in expected.items():
        assert answer.dtype.kind == outputs[name].dtype.kind, name
        if answer.dtype.kind == "f":
            np.testing.assert_allclose(outputs[name], answer, rtol=1e-4, atol=1e-5)
        else:
            assert answer.tolist() == outputs[name].tolist()


@pytest.mark.parametrize("case", CASES)
def test_signature_says_what_the_graph_takes_and_gives(case: str, exported: Make) -> None:
    world = exported(case)
    signature, session = signature_of(world), session_of(world.base / "export")
    for tensors, nodes in ((signature.inputs, session.get_inputs()), (signature.outputs, session.get_outputs())):
        assert [tensor.name for tensor in tensors] == [node.name for node in nodes]
        for tensor, node in zip(tensors, nodes, strict=True):
            assert RUNTIME_TYPES[tensor.datatype] == node.type
            assert ["rows", *tensor.shape[1:]] == node.shape
    about = json.loads((world.base / "data" / "table.json").read_text())
    assert list(signature.classes) == about["classes"]
    listed = {tensor.name: list(tensor.columns) for tensor in signature.inputs}
    for name in ("numeric", "categorical"):
        columns = [feature["name"] for feature in about["features"] if feature["kind"] == name]
        assert listed.get(name, []) == columns
    assert expected_signature(read_table_info(world.base / "data")) == signature


def test_a_regression_answers_in_units_of_the_target(exported: Make) -> None:
    world = exported("network, strings, gaps, regression")
    (predictions,) = session_of(world.base / "export").run(["prediction"], rows_of(world))
    target = pd.read_parquet(world.base / "data" / "train.parquet")["interest_rate"]
    assert predictions.shape == (len(rows_of(world)["numeric"]),)
    assert target.min() - 5 < predictions.mean() < target.max() + 5
    assert target.mean() > 8, "a graph that forgot to undo the scale would answer about 0"


def test_labels_are_the_likeliest_classes(exported: Make) -> None:
    world = exported("network, strings, gaps, three classes")
    label, probabilities = session_of(world.base / "export").run(["label", "probabilities"], rows_of(world))
    classes = np.array(signature_of(world).classes, dtype=object)
    assert label.tolist() == classes[probabilities.argmax(axis=1)].tolist()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_unseen_and_missing_values_are_no_category(exported: Make) -> None:
    world = exported("network, strings only")
    inputs = {"categorical": np.array([["", "nowhere"], ["\N{SNOWMAN}", ""]], dtype=object)}
    _, probabilities = session_of(world.base / "export").run(["label", "probabilities"], inputs)
    expected = OnnxExporter().reference(world.base / "train", world.base).predict(inputs)
    np.testing.assert_allclose(probabilities, expected["probabilities"], atol=1e-6)


def test_a_tree_keeps_rows_on_their_side_of_a_threshold(fresh: Make) -> None:
    """Neighbouring float32 values: a threshold between them is none of float32, and rounding it up would move rows."""
    world = fresh("forest")
    low = np.float32(1) + np.arange(1, 41, 2, dtype=np.float32) * np.finfo(np.float32).eps
    values = np.concatenate([low, np.nextafter(low, np.float32(2))] * 10)
    frame = pd.DataFrame({"x": values, "y": (np.arange(len(values)) // 20 % 2)})
    for part in ("train", "validation", "test"):
        frame.to_parquet(world.base / "data" / f"{part}.parquet")
    about = {"features": [{"name": "x", "kind": "numeric"}], "target": "y", "classes": [0, 1]}
    table = json.loads((world.base / "data" / "table.json").read_text()) | about
    (world.base / "data" / "table.json").write_text(json.dumps(table))
    model = sklearn("ensemble:HistGradientBoostingClassifier", min_samples_leaf=1, max_iter=30)
    world.train(model, scale="none")
    assert world.export().metrics["parity_max_abs_difference"] < 1e-6
    (label,) = session_of(world.base / "export").run(["label"], {"numeric": values[:, None]})
    assert label.tolist() == frame["y"].tolist(), "the trees tell neighbours apart"


BRANCHING = """
import torch
class Branching(torch.nn.Module):
    def __init__(self, features, outputs):
        super().__init__()
        self.one, self.two = torch.nn.Linear(features, outputs), torch.nn.Linear(features, outputs)
    def forward(self, x):
        return self.one(x) if x.sum() == 0 else self.two(x)
"""
BAKED = """
import torch
class Baked(torch.nn.Module):
    def __init__(self, features, outputs):
        super().__init__()
        self.linear = torch.nn.Linear(features, outputs)
    def forward(self, x):
        return self.linear(x.reshape(int(x.shape[0]), -1))
"""
SHIFTED = """
import torch
class Shifted(torch.nn.Module):
    def __init__(self, features, outputs):
        super().__init__()
        self.linear = torch.nn.Linear(features, outputs)
    def forward(self, x):
        return self.linear(x + 0.1 * torch.jit.is_tracing())
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("source", "name", "says"),
    [
        (BRANCHING, "Branching", "mine.py line 8: return self.one"),
        (BAKED, "Baked", "3 rows are baked into the graph: .* mine.py line 8: "),
        (SHIFTED, "Shifted", "the worst is row .* annual_income="),
    ],
)
def test_a_graph_that_answers_otherwise_is_refused(source: str, name: str, says: str, fresh: Make) -> None:
    world = fresh("network, strings, gaps, three classes")
    (world.base / "mine.py").write_text(source)
    with pytest.raises((EngineError, UserCodeError), match=says) as caught:
        world.train({"kind": "torch", "module": f"mine:{name}"}, epochs=1)
    assert caught.value.hint


def test_tolerance_and_rows_are_the_recipes(fresh: Make) -> None:
    world = fresh("network, strings, gaps, regression")
    world.train({"kind": "torch", "args": {"hidden": [16]}})
    assert world.export(parity_rows=10).summary["parity"]["real_rows"] == 10
    with pytest.raises(EngineError, match="standard deviations of the target") as caught:
        world.export(tolerance=1e-12)
    assert re.search(r"export.tolerance=\de-\d\d$", caught.value.hint)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("neighbors:LocalOutlierFactor", "gives no probabilities"),
        ("svm:LinearSVC", "gives no probabilities"),
        ("gaussian_process:GaussianProcessClassifier", "skl2onnx cannot convert|differs"),
    ],
)
def test_an_estimator_without_an_onnx_form_is_refused(module: str, says: str, fresh: Make) -> None:
    import importlib

    world = fresh("forest")
    world.train({"kind": "sklearn", "module": "sklearn.ensemble:RandomForestClassifier", "args": {"n_estimators": 2}})
    package, name = module.split(":")
    kind = getattr(importlib.import_module(f"sklearn.{package}"), name)
    frame = pd.read_parquet(world.base / "data" / "train.parquet")
    skops.io.dump(
        kind().fit(frame.drop(columns="target").to_numpy(), frame["target"]), world.base / "train/model.skops"
    )
    with pytest.raises(EngineError, match=says) as caught:
        world.export()
    assert "model.module" in caught.value.hint


def test_a_file_that_would_run_code_is_refused(fresh: Make, tmp_path: Path) -> None:
    import os

    world = fresh("forest")
    world.train({"kind": "sklearn", "module": "sklearn.ensemble:RandomForestClassifier", "args": {"n_estimators": 2}})
    from sklearn.preprocessing import FunctionTransformer

    skops.io.dump(FunctionTransformer(os.system), world.base / "train" / "model.skops")
    with pytest.raises(EngineError, match="untrusted"):
        world.export()


DIGESTS = """
import hashlib, sys
from pathlib import Path
from mlflowkit.adapters.onnx_exporter import OnnxExporter
out = Path(sys.argv[1])
for base in map(Path, sys.argv[2:]):
    OnnxExporter().export(base / "train", base, out)
    print(hashlib.sha256((out / "model.onnx").read_bytes() + (out / "signature.json").read_bytes()).hexdigest())
"""


def test_the_same_model_gives_the_same_bytes_in_another_process(exported: Make, tmp_path: Path) -> None:
    cases = ("network, strings, gaps, three classes", "boosting, strings, gaps", "images, integer classes")
    bases = [exported(case).base for case in cases]
    command = [sys.executable, "-c", DIGESTS, str(tmp_path), *map(str, bases)]
    environment = {"PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
    here = []
    for base in bases:
        folder = base / "export"
        content = (folder / "model.onnx").read_bytes() + (folder / "signature.json").read_bytes()
        here.append(hashlib.sha256(content).hexdigest())
    assert done.stdout.split() == here


def test_the_graph_has_no_leftovers(exported: Make) -> None:
    for case in ("boosting, strings, gaps", "network, strings, gaps, three classes"):
        model = onnx.load(exported(case).base / "export" / "model.onnx")
        onnx.checker.check_model(model)
        operators = {node.op_type for node in model.graph.node}
        assert not operators & {"ZipMap", "If", "Loop", "Scan"}
        assert (model.producer_name, model.producer_version, list(model.metadata_props)) == ("mlflowkit", "", [])
        assert {entry.domain for entry in model.opset_import} == {"", "ai.onnx.ml"}
        assert all(not node.doc_string for node in model.graph.node)
        value_info = {entry.name: entry for entry in model.graph.value_info}
        assert graph_parts.FEATURES in value_info


def test_export_leaves_its_inputs_alone(exported: Make, tmp_path: Path) -> None:
    world = exported("boosting, strings, gaps")
    copy = tmp_path / "train"
    shutil.copytree(world.base / "train", copy)
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    OnnxExporter().export(copy, tmp_path, tmp_path)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
