"""Specialises a graph for one batch size and folds all values that follow from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mlflowkit.adapters.onnx_passes.calibration import Rows
from mlflowkit.adapters.onnx_passes.typed_graph import (
    PassNotApplicableError,
    attributes,
    drop_unused,
    infer_types,
    initializers,
    normalize,
    open_session,
    rank,
    set_nodes,
    silence_tools,
)
from mlflowkit.graphs.candidates import FixedRows

MAX_FOLDED_BYTES = 1 << 16
"""Largest folded constant; larger ones cost more to store than to compute."""
NEVER_FOLDED = frozenset({"QuantizeLinear", "DequantizeLinear", "RandomNormal", "RandomUniform", "Bernoulli"})
"""Quantised weights stay quantised, and random operators random."""


def rewrite(settings: FixedRows, model: Any, calibration: Rows) -> Any:
    """Fix ``model`` to requests of exactly ``settings.rows`` rows, the first dimension of every input.

    Raises PassNotApplicableError when the graph has another fixed number, EngineError when it cannot take this one.
    """
    del calibration
    model = normalize(model)
    names: set[str] = set()
    for first in [entry.type.tensor_type.shape.dim[0] for entry in model.graph.input if rank(entry)]:
        if first.dim_value > 0 and first.dim_value != settings.rows:
            raise PassNotApplicableError(f"the graph is for {first.dim_value} rows at a time already")
        if first.dim_param:
            names.add(first.dim_param)
        else:
            first.dim_value = settings.rows
    with silence_tools():
        from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

        for name in sorted(names):
            make_dim_param_fixed(model.graph, name, settings.rows)
    while _fold_constants(infer_types(model)):
        pass
    shapes = {entry.name: entry.shape for entry in open_session(model).get_outputs()}
    for entry in model.graph.output:
        for dimension, size in zip(entry.type.tensor_type.shape.dim, shapes[entry.name], strict=False):
            if isinstance(size, int) and not dimension.dim_value:
                dimension.dim_value = size
    return model


def _fold_constants(model: Any) -> bool:
    """Replace nodes of known value by initializers, in one pass over a typed model; returns whether any was."""
    shapes = {
        entry.name: [size.dim_value for size in entry.type.tensor_type.shape.dim]
        for entry in (*model.graph.value_info, *model.graph.input)
        if all(size.HasField("dim_value") for size in entry.type.tensor_type.shape.dim)
        and entry.type.tensor_type.HasField("shape")
    }
    constants = initializers(model)
    outputs = {entry.name for entry in model.graph.output}
    nodes: list[Any] = []
    for node in model.graph.node:
        value = None if outputs.intersection(node.output) else _constant_value(node, shapes, constants, model)
        if value is None:
            nodes.append(node)
        else:
            constants[node.output[0]] = numpy_helper.from_array(value, node.output[0])
            model.graph.initializer.append(constants[node.output[0]])
    folded = len(nodes) < len(model.graph.node)
    set_nodes(model.graph, nodes)
    drop_unused(model)
    return folded


def _constant_value(
    node: Any, shapes: dict[str, list[int]], constants: dict[str, Any], model: Any
) -> np.ndarray | None:
    """A node's value if it is constant and small, else None."""
    if node.domain not in ("", "ai.onnx") or len(node.output) != 1 or node.op_type in NEVER_FOLDED:
        return None
    if node.op_type == "Shape" and node.input[0] in shapes:
        bounds = attributes(node)
        return np.array(shapes[node.input[0]][bounds.get("start", 0) : bounds.get("end")], dtype=np.int64)
    read = [name for name in node.input if name]
    if any(name not in constants for name in read) or any(entry.HasField("g") for entry in node.attribute):
        return None
    if sum(len(constants[name].raw_data) for name in read) > MAX_FOLDED_BYTES:
        return None
    output = helper.make_empty_tensor_value_info(node.output[0])
    graph = helper.make_graph([node], "constant", [], [output], [constants[name] for name in read])
    try:
        (value,) = ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import)).run(None, {})
    except Exception:  # noqa: BLE001 - the node stays and the runtime computes it
        return None
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in "biuf":
        return None
    return np.asarray(value) if 0 < value.nbytes <= MAX_FOLDED_BYTES else None
