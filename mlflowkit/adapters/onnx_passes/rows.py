"""A graph for one batch size, with everything that follows from it computed beforehand."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from mlflowkit.adapters.onnx_passes.calibration import Rows
from mlflowkit.adapters.onnx_passes.typed_graph import (
    InapplicableError,
    attributes,
    constants,
    drop_unused,
    normalised,
    quiet,
    replace_nodes,
    session,
    typed,
)
from mlflowkit.graphs.candidates import FixedRows

LARGEST = 1 << 16
"""Bytes of the largest constant that is computed beforehand; what is larger costs more to hold than to compute."""
NEVER_FOLDED = frozenset({"QuantizeLinear", "DequantizeLinear", "RandomNormal", "RandomUniform", "Bernoulli"})
"""Weights behind these stay as they are written, and what is random stays random."""


def rewrite(settings: FixedRows, model: Any, calibration: Rows) -> Any:
    """``model`` for requests of exactly ``settings.rows`` rows; the first dimension of every input is that of rows.

    Raises InapplicableError when the graph is for another number already, EngineError when it cannot take this one.
    """
    del calibration
    model = normalised(model)
    names = {_first_dimension(entry, settings.rows) for entry in model.graph.input if entry.type.tensor_type.shape.dim}
    with quiet():
        from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

        for name in sorted(names - {""}):
            make_dim_param_fixed(model.graph, name, settings.rows)
    while _fold(typed(model)):
        pass
    shapes = {entry.name: entry.shape for entry in session(model).get_outputs()}
    for entry in model.graph.output:
        for size, found in zip(entry.type.tensor_type.shape.dim, shapes[entry.name], strict=False):
            if isinstance(found, int) and not size.dim_value:
                size.dim_value = found
    return model


def _first_dimension(entry: Any, rows: int) -> str:
    """The name of an input's first dimension; one without a name is set. Raises InapplicableError."""
    first = entry.type.tensor_type.shape.dim[0]
    if first.dim_value > 0 and first.dim_value != rows:
        raise InapplicableError(f"the graph is for {first.dim_value} rows at a time already")
    name = str(first.dim_param)
    if not name:
        first.dim_value = rows
    return name


def _fold(model: Any) -> bool:
    """Make nodes whose values are known constants, in one walk through a typed model; whether any was."""
    shapes = {
        entry.name: [size.dim_value for size in entry.type.tensor_type.shape.dim]
        for entry in (*model.graph.value_info, *model.graph.input)
        if all(size.HasField("dim_value") for size in entry.type.tensor_type.shape.dim)
        and entry.type.tensor_type.HasField("shape")
    }
    known = constants(model)
    answers = {entry.name for entry in model.graph.output}
    kept: list[Any] = []
    for node in model.graph.node:
        value = None if answers.intersection(node.output) else _value(node, shapes, known, model)
        if value is None:
            kept.append(node)
        else:
            known[node.output[0]] = numpy_helper.from_array(value, node.output[0])
            model.graph.initializer.append(known[node.output[0]])
    folded = len(kept) < len(model.graph.node)
    replace_nodes(model.graph, kept)
    drop_unused(model)
    return folded


def _value(node: Any, shapes: dict[str, list[int]], known: dict[str, Any], model: Any) -> np.ndarray | None:
    """What a node gives whatever the request says, or None where that is not known or not small."""
    if node.domain not in ("", "ai.onnx") or len(node.output) != 1 or node.op_type in NEVER_FOLDED:
        return None
    if node.op_type == "Shape" and node.input[0] in shapes:
        said = attributes(node)
        return np.array(shapes[node.input[0]][said.get("start", 0) : said.get("end")], dtype=np.int64)
    read = [name for name in node.input if name]
    if any(name not in known for name in read) or any(entry.HasField("g") for entry in node.attribute):
        return None
    if sum(len(known[name].raw_data) for name in read) > LARGEST:
        return None
    return _computed(node, [known[name] for name in read], model)


def _computed(node: Any, read: list[Any], model: Any) -> np.ndarray | None:
    """A node's value by ONNX's reference implementation; None where it has none."""
    from onnx.reference import ReferenceEvaluator

    output = helper.make_empty_tensor_value_info(node.output[0])
    graph = helper.make_graph([node], "constant", [], [output], read)
    try:
        (value,) = ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import)).run(None, {})
    except Exception:  # noqa: BLE001 - the node stays and the runtime computes it
        return None
    small = isinstance(value, np.ndarray | np.generic) and 0 < value.nbytes <= LARGEST and value.dtype.kind in "biuf"
    return np.asarray(value) if small else None
