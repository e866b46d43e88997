"""Small real bundles over numbers only, with columns and classes of choice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mlflowkit import bundle
from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.values import Lineage


def make_columns_bundle(
    folder: Path, columns: Sequence[str], classes: Sequence[str] = ("bad", "good"), *, scale: float = 1.0
) -> bundle.Bundle:
    """Write a blessed bundle: a softmax over the columns, with a missing value taken as 0. ``scale`` is of weights."""
    (folder / "evidence").mkdir(parents=True)
    onnx.save(_graph(len(columns), classes, scale), folder / "model.onnx")
    signature = Signature(
        task="classification",
        inputs=(TensorSpec(name="numeric", datatype="FP32", shape=(-1, len(columns)), columns=tuple(columns)),),
        outputs=(
            TensorSpec(name="label", datatype="BYTES", shape=(-1,)),
            TensorSpec(name="probabilities", datatype="FP32", shape=(-1, len(classes))),
        ),
        classes=tuple(classes),
    )
    (folder / "signature.json").write_text(signature.model_dump_json())
    answers = OnnxRuntime().load(folder / "model.onnx").run({"numeric": np.ones((1, len(columns)), np.float32)})
    sample = {"rows": [dict.fromkeys(columns, 1.0)], "outputs": {name: item.tolist() for name, item in answers.items()}}
    (folder / "evidence" / "sample.json").write_text(json.dumps(sample))
    lineage = Lineage("c0ffee", False, "data1", "recipe1")
    return bundle.write(folder, name="lending", lineage=lineage, policy="p", run="run1", blessed=True, created=0.0)


def _graph(width: int, classes: Sequence[str], scale: float) -> onnx.ModelProto:
    weights = np.linspace(-scale, scale, width * len(classes), dtype=np.float32).reshape(width, len(classes))
    constants = {"zero": np.float32(0), "weights": weights, "classes": np.array(classes, dtype=object)}
    nodes = [
        helper.make_node("IsNaN", ["numeric"], ["gaps"]),
        helper.make_node("Where", ["gaps", "zero", "numeric"], ["filled"]),
        helper.make_node("MatMul", ["filled", "weights"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["best"], axis=1, keepdims=0),
        helper.make_node("Gather", ["classes", "best"], ["label"]),
    ]
    graph = helper.make_graph(
        nodes,
        "columns",
        [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, [None, width])],
        [
            helper.make_tensor_value_info("label", TensorProto.STRING, [None]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, len(classes)]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return model
