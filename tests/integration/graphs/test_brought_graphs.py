"""Graphs that were made elsewhere, on real rows: taken in, wrapped, judged and served as trained ones are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import mlflowkit as mk
from mlflowkit.bundle import open_bundle
from mlflowkit.errors import DataError, EngineError, MlkitError, UsageError
from mlflowkit.features.tensors import inputs_from_table
from tests.support.export_world import ExportWorld, bunch, loans, write_data

RECIPE = """
name: brought
task: classification
data: {source: {kind: csv, path: cells.csv}, target: finding, positive: benign, split: {kind: stratified}}
model: {kind: onnx, path: model.onnx}
gates: [{metric: roc_auc, min: 0.9}]
"""


COLUMNS = ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]
"""Of the diabetes table."""


@pytest.fixture(scope="module")
def cells() -> pd.DataFrame:
    """The breast cancer table, with the positive class first in the alphabet."""
    frame = load_breast_cancer(as_frame=True).frame
    finding = np.where(frame.pop("target") == 1, "benign", "malignant")
    return frame.rename(columns=lambda name: name.replace(" ", "_")).assign(finding=finding)


@pytest.fixture(scope="module")
def logistic(cells: pd.DataFrame) -> Any:
    x, y = cells.drop(columns="finding").to_numpy(np.float32), cells["finding"].to_numpy(str)
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(x[::2], y[::2])


def converted(model: Any, columns: int) -> onnx.ModelProto:
    options = {id(model): {"zipmap": False}} if hasattr(model, "classes_") else None
    return to_onnx(model, initial_types=[("X", FloatTensorType([None, columns]))], options=options)


def write_recipe(folder: Path, cells: pd.DataFrame, model: onnx.ModelProto, text: str = RECIPE) -> Path:
    cells.to_csv(folder / "cells.csv", index=False)
    onnx.save(model, folder / "model.onnx")
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def test_from_a_graph_of_scikit_learn_to_a_blessed_bundle(cells: pd.DataFrame, logistic: Any, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, cells, converted(logistic, 30))
    result = mk.run(recipe).raise_for_status()
    assert result.bundle is not None
    bundle = open_bundle(result.bundle, blessed=True)
    assert bundle.signature.classes == ("malignant", "benign"), "the positive class is the last, whatever the graph has"
    inputs = inputs_from_table(bundle.signature, cells)
    session = onnxruntime.InferenceSession(str(bundle.model), providers=["CPUExecutionProvider"])
    label, probabilities = session.run(["label", "probabilities"], inputs)
    x = cells.drop(columns="finding").to_numpy(np.float32)
    np.testing.assert_allclose(probabilities, logistic.predict_proba(x)[:, ::-1], atol=1e-5)
    assert label.tolist() == logistic.predict(x).tolist()
    assert mk.run(recipe).answer["steps"][2]["action"] == "reuse"


def test_another_graph_at_the_same_path_is_another_model(cells: pd.DataFrame, logistic: Any, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, cells, converted(logistic, 30))
    mk.run(recipe, until="train")
    model = converted(logistic, 30)
    model.doc_string = "changed"
    onnx.save(model, tmp_path / "model.onnx")
    plan = mk.plan(recipe, until="train")
    assert plan.stale == ("train",)
    assert plan[2].reason == "model: model.onnx changed"


def import_external(world: ExportWorld, model: onnx.ModelProto, **model_keys: Any) -> ExportWorld:
    onnx.save(model, world.base / "model.onnx")
    world.train({"kind": "onnx", "path": "model.onnx", **model_keys})
    world.export()
    return world


def answers_of(world: ExportWorld) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """The test rows and what the exported graph answers."""
    from mlflowkit.stages.base import read_signature

    table = pd.read_parquet(world.base / "data" / "test.parquet")
    session = onnxruntime.InferenceSession(
        str(world.base / "export" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    inputs = inputs_from_table(read_signature(world.base / "export"), table)
    return table, dict(zip(names, session.run(names, inputs), strict=True))


def test_one_input_a_column_strings_among_them(tmp_path: Path) -> None:
    frame = loans()[["state", "annual_income", "loan_amount", "homeownership"]]
    world = write_data(tmp_path, frame, "homeownership", "classification")
    encode = ColumnTransformer(
        [
            ("text", OneHotEncoder(handle_unknown="ignore"), ["state"]),
            ("n", StandardScaler(), ["annual_income", "loan_amount"]),
        ]
    )
    model = make_pipeline(encode, RandomForestClassifier(5, random_state=0))
    model.fit(frame.drop(columns="homeownership"), frame["homeownership"])
    types = [("loan_amount", FloatTensorType([None, 1])), ("annual_income", FloatTensorType([None, 1]))]
    types.insert(1, ("state", StringTensorType([None, 1])))
    world = import_external(world, to_onnx(model, initial_types=types, options={id(model): {"zipmap": False}}))
    table, predictions = answers_of(world)
    expected = model.predict_proba(table[["state", "annual_income", "loan_amount"]])
    np.testing.assert_allclose(predictions["probabilities"], expected, atol=1e-5)
    assert predictions["label"].dtype == object


class Network(torch.nn.Module):
    def __init__(self, columns: int, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(columns, 8), torch.nn.ReLU(), torch.nn.Linear(8, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def exported(module: torch.nn.Module, columns: int, path: Path, *, fixed: bool = False) -> onnx.ModelProto:
    axes = None if fixed else {"x": {0: "rows"}, "scores": {0: "rows"}}
    example = (torch.zeros(2, columns),)
    names = {"input_names": ["x"], "output_names": ["scores"]}
    torch.onnx.export(module.eval(), example, path, dynamic_axes=axes, dynamo=False, opset_version=13, **names)
    return onnx.load(path)


def test_logits_of_columns_in_another_order(tmp_path: Path) -> None:
    world = write_data(tmp_path, bunch("wine"), "target", "classification")
    network = Network(3, 3)
    model = exported(network, 3, tmp_path / "network.onnx")
    keep = ["proline", "alcohol", "hue"]
    table = pd.read_parquet(tmp_path / "data" / "train.parquet")
    only(world, [*keep, "target"])
    import_external(world, model, inputs={"x": keep}, outputs={"logits": "scores"})
    table, predictions = answers_of(world)
    with torch.no_grad():
        expected = network(torch.tensor(table[keep].to_numpy(np.float32))).softmax(dim=1).numpy()
    np.testing.assert_allclose(predictions["probabilities"], expected, atol=1e-5)
    assert predictions["label"].tolist() == expected.argmax(axis=1).tolist()


def only(world: ExportWorld, columns: list[str]) -> None:
    """Leave these columns in the data stage's folder, as data.drop does."""
    path = world.base / "data" / "table.json"
    about = json.loads(path.read_text())
    about["features"] = [feature for feature in about["features"] if feature["name"] in columns]
    path.write_text(json.dumps(about))


def test_one_column_of_logits_is_of_the_last_class(tmp_path: Path) -> None:
    world = write_data(tmp_path, bunch("breast_cancer"), "target", "classification")
    network = Network(30, 1)
    import_external(world, exported(network, 30, tmp_path / "n.onnx"), outputs={"logits": "scores"}, classes=[1, 0])
    table, predictions = answers_of(world)
    with torch.no_grad():
        x = torch.tensor(table.drop(columns="target").to_numpy(np.float32))
        expected = network(x).sigmoid().numpy().ravel()
    np.testing.assert_allclose(predictions["probabilities"][:, 0], expected, atol=1e-5)


def test_a_regression(tmp_path: Path) -> None:
    frame = bunch("diabetes")
    world = write_data(tmp_path, frame, "target", "regression")
    model = Ridge().fit(frame.drop(columns="target").to_numpy(np.float32), frame["target"])
    import_external(world, converted(model, 10))
    table, predictions = answers_of(world)
    expected = model.predict(table.drop(columns="target").to_numpy(np.float32))
    np.testing.assert_allclose(predictions["prediction"], expected, rtol=1e-4)


def test_logits_taken_for_probabilities_are_found_out(tmp_path: Path) -> None:
    world = write_data(tmp_path, bunch("wine"), "target", "classification")
    model = exported(Network(13, 3), 13, tmp_path / "network.onnx")
    with pytest.raises(EngineError, match=r"row 0 has probabilities \[") as caught:
        import_external(world, model)
    assert "model.outputs" in caught.value.hint


def test_an_operator_that_no_runtime_has_is_named_with_its_node(tmp_path: Path) -> None:
    world = write_data(tmp_path, bunch("diabetes"), "target", "regression")
    with pytest.raises(MlkitError, match="Whirl") as caught:
        import_external(world, plain("Whirl", domain="org.example"))
    assert "spin" in caught.value.message


def plain(operator: str, *, domain: str = "", width: int = 10) -> onnx.ModelProto:
    """x [rows, width] -> operator -> y [rows, 1]."""
    weights = numpy_helper.from_array(np.ones((width, 1), np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["sum"], name="sum"),
        helper.make_node(operator, ["sum"], ["y"], name="spin", domain=domain),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["n", width])], [value("y", TensorProto.FLOAT, ["n", 1])], [weights]
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_columns_that_the_graph_leaves_open_are_the_tables(tmp_path: Path) -> None:
    """Rows and columns without a size, as an exporter with dynamic axes for both leaves them."""
    world = write_data(tmp_path, bunch("diabetes"), "target", "regression")
    model = plain("Identity")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "columns"
    table, predictions = answers_of(import_external(world, model))
    expected = table[COLUMNS].to_numpy(np.float32).sum(axis=1)
    np.testing.assert_allclose(predictions["prediction"], expected, rtol=1e-4, atol=1e-5)


def test_a_graph_for_a_fixed_number_of_rows_is_refused(tmp_path: Path) -> None:
    world = write_data(tmp_path, bunch("wine"), "target", "classification")
    model = exported(Network(13, 3), 13, tmp_path / "network.onnx", fixed=True)
    with pytest.raises(UsageError, match=r"input x takes exactly 2 rows; requests and batches need any") as caught:
        import_external(world, model, outputs={"logits": "scores"})
    assert "dynamic_axes={'x': {0: 'rows'}}" in caught.value.hint


@pytest.mark.parametrize("location", ["../weights", "/etc/hostname", "link"])
def test_weights_outside_the_graphs_folder_are_refused(location: str, tmp_path: Path) -> None:
    """A recipe's graph that points at another's file is not read, not even to look at it."""
    (tmp_path / "weights").write_bytes(bytes(40))
    (tmp_path / "home").mkdir()
    world = write_data(tmp_path / "home", bunch("diabetes"), "target", "regression")
    (tmp_path / "home" / "link").symlink_to(tmp_path / "weights")
    model = plain("Identity")
    (weights,) = model.graph.initializer
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    (tmp_path / "home" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match=r"tensor w points at .* outside the model's folder"):
        world.train({"kind": "onnx", "path": "model.onnx"})
    assert not (tmp_path / "home" / "train" / "model.onnx").exists()


def test_a_graph_whose_answers_are_not_finite_is_refused(tmp_path: Path) -> None:
    world = write_data(tmp_path, bunch("diabetes"), "target", "regression")
    with pytest.raises(EngineError, match=r"row \d+ has prediction \[nan\]"):
        import_external(world, plain("Sqrt"))


@pytest.mark.parametrize(
    ("model_keys", "problem"),
    [
        ({"inputs": {"x": ["age", "bmi"]}}, "input x takes 10 columns, and 2 are listed"),
        ({"inputs": {"z": ["age"]}}, "no input 'z'"),
        ({"inputs": {"x": [*COLUMNS[:9], "agge"]}}, "'agge', which is no feature"),
        ({"outputs": {"prediction": "q"}}, "no output 'q'"),
    ],
)
def test_what_does_not_fit_is_refused(model_keys: dict[str, Any], problem: str, tmp_path: Path) -> None:
    world = write_data(tmp_path, bunch("diabetes"), "target", "regression")
    with pytest.raises((UsageError, DataError), match=problem):
        import_external(world, plain("Identity"), **model_keys)


def test_columns_that_go_nowhere_are_named(tmp_path: Path) -> None:
    world = write_data(tmp_path, bunch("diabetes"), "target", "regression")
    columns = COLUMNS[1:]
    with pytest.raises(DataError, match="column 'age' of the table goes into no input") as caught:
        import_external(world, plain("Identity", width=9), inputs={"x": columns})
    assert "data.drop: [age]" in caught.value.hint


def test_a_gap_does_not_go_into_an_integer_input(tmp_path: Path) -> None:
    frame = loans()[["months_since_last_delinq", "interest_rate"]]
    world = write_data(tmp_path, frame, "interest_rate", "regression")
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Cast", ["months_since_last_delinq"], ["y"], to=TensorProto.FLOAT)]
    ends = [value("months_since_last_delinq", TensorProto.INT64, ["n", 1])], [value("y", TensorProto.FLOAT, ["n", 1])]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    with pytest.raises(DataError, match=r"missing values .* input months_since_last_delinq is int64"):
        import_external(world, model)
