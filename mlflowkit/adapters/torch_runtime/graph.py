"""From an ONNX graph to a torch.fx graph.

What a graph computes about shapes (Shape, Gather, Concat, ...) stays in Python integers, so that torch.compile sees one
graph without breaks, and eager mode spends nothing on tensors of three numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlflowkit.adapters.torch_runtime.operators import OPERATORS, SEVERAL
from mlflowkit.errors import EngineError
from mlflowkit.graphs.onnx_file import unsupported

OLDEST_OPSET = 13
"""Before it, axes of Softmax mean something else."""
LARGEST_HOST = 64
"""Constants of whole numbers up to this size are Python's: they are shapes, axes and indices."""
STRING = 8
"""TensorProto.DataType."""
SHOWN = 8
"""Nodes that an error names."""


def to_torch(proto: Any) -> Any:
    """A torch.fx.GraphModule that computes what an onnx.ModelProto does; inputs and outputs in the graph's order."""
    import torch
    from onnx import numpy_helper

    root, graph = torch.nn.Module(), torch.fx.Graph()
    values: dict[str, Any] = {"": None}

    def constant(name: str, tensor: Any) -> None:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.int64 and array.ndim <= 1 and array.size <= LARGEST_HOST:
            values[name] = array.tolist()
            return
        attribute = f"constant_{len(root._buffers)}"
        root.register_buffer(attribute, torch.from_numpy(np.array(array)))
        values[name] = graph.get_attr(attribute)

    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    for index, value in enumerate(proto.graph.input):
        if value.name not in constants:
            values[value.name] = graph.placeholder(f"input_{index}")
    for name, tensor in constants.items():
        constant(name, tensor)
    for node in proto.graph.node:
        attributes = {each.name: _attribute(each) for each in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            constant(node.output[0], attributes["value"])
            continue
        if "value" in attributes:
            attributes["value"] = numpy_helper.to_array(attributes["value"]).item()
        made = graph.call_function(OPERATORS[node.op_type], tuple(values[name] for name in node.input), attributes)
        for place, name in enumerate(node.output):
            values[name] = graph.call_function(operator.getitem, (made, place)) if node.op_type in SEVERAL else made
    graph.output(tuple(values[value.name] for value in proto.graph.output))
    return torch.fx.GraphModule(root, graph)


def _attribute(attribute: Any) -> Any:
    from onnx import helper

    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def refuse_unknown(proto: Any, model: str) -> None:
    """Raise EngineError for what has no form in torch."""
    unknown = unsupported(proto, lambda domain, name: domain == "" and name in OPERATORS)
    unknown += [
        f"{node.op_type} with {len(node.output)} outputs (node {node.name or node.output[0]})"
        for node in proto.graph.node
        if node.op_type not in SEVERAL and len(node.output) > 1
    ]
    strings = [value.name for value in proto.graph.input if value.type.tensor_type.elem_type == STRING]
    if unknown or strings:
        inputs = f"inputs of strings ({', '.join(strings)})" if strings else ""
        shown = ", ".join(unknown[:SHOWN]) + (f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else "")
        what = " and ".join(filter(None, (inputs, f"the operators {shown}" if unknown else "")))
        raise EngineError(f"{model} has no form in torch: {what}", hint="leave the torch candidates out")
    opset = next((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise EngineError(
            f"{model} is of opset {opset}; torch forms are of {OLDEST_OPSET} and later",
            hint="onnx.version_converter lifts it",
        )
