"""Small ONNX graphs that tests of engines are about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, HALF, STRING = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.STRING


def save(
    path: Path,
    nodes: Sequence[Any],
    inputs: dict[str, tuple[int, Sequence[Any]]],
    outputs: dict[str, int],
    constants: dict[str, np.ndarray] | None = None,
    *,
    domains: Sequence[str] = (),
    opset: int = 18,
) -> Path:
    """Write a graph; ``inputs`` has type and shape by name, ``outputs`` the type."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def mlp(path: Path, *, seed: int = 0, width: int = 128, half: bool = False, rows: int | str = "rows") -> Path:
    """``y`` [rows, 2] = relu(x w + b) v of ``x`` FP32 [rows, 8]; with ``half`` weights and arithmetic are FP16."""
    random = np.random.default_rng(seed)
    kind = np.float16 if half else np.float32
    constants = {
        "w": random.normal(size=(8, width)).astype(kind),
        "b": random.normal(size=width).astype(kind),
        "v": random.normal(size=(width, width)).astype(kind),
    }
    nodes = [
        helper.make_node("Cast", ["x"], ["x_in"], name="cast_in", to=HALF if half else FLOAT),
        helper.make_node("MatMul", ["x_in", "w"], ["xw"], name="product"),
        helper.make_node("Add", ["xw", "b"], ["xwb"], name="bias"),
        helper.make_node("Relu", ["xwb"], ["hidden"], name="relu"),
        helper.make_node("MatMul", ["hidden", "v"], ["y_in"], name="head"),
        helper.make_node("Cast", ["y_in"], ["y"], name="cast_out", to=FLOAT),
    ]
    return save(path, nodes, {"x": (FLOAT, [rows, 8])}, {"y": FLOAT}, constants)


def quantised_mlp(path: Path, *, width: int = 128) -> Path:
    """A product of INT8 weights and activations as explicit, symmetric Q/DQ pairs: ``y`` of ``x`` FP32 [rows, 128]."""
    weights = np.random.default_rng(0).integers(-127, 127, size=(128, width)).astype(np.int8)
    scales = {"s": np.array(0.05, np.float32), "t": np.array(0.01, np.float32), "zero": np.array(0, np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "zero"], ["xq"], name="q"),
        helper.make_node("DequantizeLinear", ["xq", "s", "zero"], ["xf"], name="dq"),
        helper.make_node("DequantizeLinear", ["w", "t", "zero"], ["wf"], name="dqw"),
        helper.make_node("MatMul", ["xf", "wf"], ["y"], name="product"),
    ]
    return save(path, nodes, {"x": (FLOAT, ["rows", 128])}, {"y": FLOAT}, {**scales, "w": weights})


def outside(path: Path, location: str) -> Path:
    """A graph whose weights are in a file that it names itself: 8 floats of ``location``."""
    save(path, [helper.make_node("Add", ["x", "w"], ["y"])], {"x": (FLOAT, ["rows", 8])}, {"y": FLOAT})
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer.add(name="w", data_type=FLOAT, dims=[8], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "32"}.items():
        tensor.external_data.add(key=key, value=value)
    onnx.save(model, path)
    return path


def strings(path: Path) -> Path:
    """What a bundle's graph is like: strings in, encoded by operators of classical machine learning."""
    nodes = [
        helper.make_node(
            "LabelEncoder", ["home"], ["code"], name="encode", domain="ai.onnx.ml", keys_strings=["own"],
            values_floats=[1.0],
        ),
        helper.make_node("Add", ["code", "x"], ["y"], name="add"),
    ]  # fmt: skip
    inputs = {"home": (STRING, ["rows", 1]), "x": (FLOAT, ["rows", 1])}
    save(path, nodes, inputs, {"y": FLOAT}, domains=["ai.onnx.ml"])
    model = onnx.load(path)
    next(each for each in model.opset_import if each.domain).version = 3
    onnx.save(model, path)
    return path


def foreign(path: Path) -> Path:
    """A graph with two operators that nobody has."""
    nodes = [
        helper.make_node("Swirl", ["x"], ["a"], name="swirl_1", domain="com.acme"),
        helper.make_node("Twist", ["a"], ["y"], name="twist_2", domain="com.acme"),
    ]
    return save(path, nodes, {"x": (FLOAT, ["rows", 8])}, {"y": FLOAT}, domains=["com.acme"])
