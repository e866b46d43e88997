"""Copies of a real bundle with a fault planted in the graph: what a rollout has to find out.

Each is a whole, blessed bundle of its own identity, whose sample rows answer as they were packaged: nothing but traffic
can tell that it is worse.

    errors     no finite answer (NaN) for rows whose numeric column is at least a threshold
    latency    a chain of matrix products before the answer, so many milliseconds of one core
    flip       the classes' probabilities exchanged: everywhere, or where a categorical column has a value
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mlflowkit import bundle as bundles
from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.bundle import Bundle
from mlflowkit.serving.protocol.input_schema import Schema
from mlflowkit.values import Lineage

SIDE = 256
"""Side of the matrices of `latency`: one product takes about half a millisecond."""


def errors(good: Bundle, folder: Path, column: str, threshold: float) -> Bundle:
    """Answers NaN where ``column`` is at least ``threshold``."""
    tensor, place = _place(good, column)
    nodes = [
        *_cell(tensor, place),
        helper.make_node("GreaterOrEqual", ["planted_cell", "planted_threshold"], ["planted_hit"]),
        helper.make_node("Where", ["planted_hit", "planted_nan", "planted_one"], ["planted_factor"]),
        helper.make_node("Mul", ["planted_was", "planted_factor"], ["probabilities"]),
    ]
    constants = {"planted_threshold": np.float32(threshold), "planted_nan": np.float32(np.nan)}
    return _planted(good, folder, nodes, {**constants, "planted_one": np.float32(1), **_index(place)})


def latency(good: Bundle, folder: Path, products: int) -> Bundle:
    """Takes ``products`` matrix products of SIDE x SIDE longer for each request, whatever its rows."""
    tensor = next(one for one in good.signature.inputs if one.datatype == "FP32")
    side = (np.random.default_rng(0).normal(size=(SIDE, SIDE)) / np.sqrt(SIDE)).astype(np.float32)
    nodes = [  # made from the input, so that it cannot be computed beforehand
        helper.make_node("IsNaN", [tensor.name], ["planted_gaps"]),
        helper.make_node("Cast", ["planted_gaps"], ["planted_numbers"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["planted_numbers"], ["planted_seed"], keepdims=0),
        helper.make_node("Add", ["planted_seed", "planted_side"], ["planted_0"]),
    ]
    for number in range(products):
        nodes.append(helper.make_node("MatMul", [f"planted_{number}", "planted_side"], [f"planted_{number + 1}"]))
    nodes += [
        helper.make_node("ReduceSum", [f"planted_{products}"], ["planted_sum"], keepdims=0),
        helper.make_node("Mul", ["planted_sum", "planted_zero"], ["planted_nothing"]),
        helper.make_node("Add", ["planted_was", "planted_nothing"], ["probabilities"]),
    ]
    return _planted(good, folder, nodes, {"planted_side": side, "planted_zero": np.float32(0)})


def flip(good: Bundle, folder: Path, column: str = "", value: str = "") -> Bundle:
    """Exchanges the two classes, in ``probabilities`` and ``label``; with a column, only where it has this value."""
    nodes = [helper.make_node("Gather", ["planted_was", "planted_other"], ["planted_turned"], axis=1)]
    constants: dict[str, Any] = {"planted_other": np.array([1, 0], dtype=np.int64)}
    if column:
        tensor, place = _place(good, column)
        nodes += [
            *_cell(tensor, place),
            helper.make_node(
                "LabelEncoder",
                ["planted_cell"],
                ["planted_is"],
                domain="ai.onnx.ml",
                keys_strings=[value],
                values_floats=[1.0],
                default_float=0.0,
            ),
            helper.make_node("Cast", ["planted_is"], ["planted_hit"], to=onnx.TensorProto.BOOL),
            helper.make_node("Where", ["planted_hit", "planted_turned", "planted_was"], ["probabilities"]),
        ]
        constants |= _index(place)
    else:
        nodes.append(helper.make_node("Identity", ["planted_turned"], ["probabilities"]))
    return _planted(good, folder, nodes, constants, relabel=True)


def _place(good: Bundle, column: str) -> tuple[str, int]:
    return next(
        (tensor.name, tensor.columns.index(column)) for tensor in good.signature.inputs if column in tensor.columns
    )


def _cell(tensor: str, place: int) -> list[onnx.NodeProto]:
    return [helper.make_node("Gather", [tensor, "planted_place"], ["planted_cell"], axis=1)]


def _index(place: int) -> dict[str, Any]:
    return {"planted_place": np.array([place], dtype=np.int64)}


def _planted(
    good: Bundle, folder: Path, nodes: list[onnx.NodeProto], constants: dict[str, Any], *, relabel: bool = False
) -> Bundle:
    shutil.copytree(good.path, folder)
    model = onnx.load(folder / "model.onnx")
    for node in model.graph.node:  # what made the probabilities, and the label from them, now makes what is spoilt
        node.output[:] = ["planted_was" if name == "probabilities" else name for name in node.output]
        node.input[:] = ["planted_was" if name == "probabilities" else name for name in node.input]
    model.graph.node.extend(nodes)
    if relabel:
        _relabel(model, good)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    onnx.save(model, folder / "model.onnx")
    sample = json.loads((folder / "evidence" / "sample.json").read_bytes())
    inputs = Schema(good.signature).arrays(sample["rows"])
    answers = OnnxRuntime().load(folder / "model.onnx").run(inputs)
    sample["outputs"] = {name: answers[name].tolist() for name in sample["outputs"]}
    (folder / "evidence" / "sample.json").write_text(json.dumps(sample))
    was = good.manifest
    return bundles.write(
        folder, name=was.name, lineage=Lineage(was.git_commit, was.git_dirty, was.data_version, was.recipe_digest),
        policy=was.policy, run="planted", blessed=True, created=0.0,
    )  # fmt: skip


def _relabel(model: onnx.ModelProto, good: Bundle) -> None:
    """The label is made anew from the probabilities."""
    for node in model.graph.node:
        node.output[:] = ["planted_label" if name == "label" else name for name in node.output]
    model.graph.node.extend(
        [
            helper.make_node("ArgMax", ["probabilities"], ["planted_best"], axis=1, keepdims=0),
            helper.make_node("Gather", ["planted_classes", "planted_best"], ["label"]),
        ]
    )
    classes = np.array(good.signature.classes, dtype=object if isinstance(good.signature.classes[0], str) else np.int64)
    model.graph.initializer.append(numpy_helper.from_array(classes, "planted_classes"))
