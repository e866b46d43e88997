"""Converts an ONNX graph to a torch.fx graph.

Shape arithmetic (Shape, Gather, Concat, ...) stays in Python integers, so that torch.compile sees one graph without
breaks, and eager mode spends no time on tiny tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from onnx import helper, numpy_helper

from mlflowkit.adapters.torch_runtime.operators import MULTIPLE_OUTPUTS, OPERATORS
from mlflowkit.errors import EngineError
from mlflowkit.graphs.onnx_file import request_inputs, unsupported_nodes
from mlflowkit.system.text import limited

MIN_OPSET = 13
"""Before it, Softmax has another meaning of axis."""
MAX_HOST_SIZE = 64
"""Integer constants up to this size become Python lists: shapes, axes and indices."""
STRING = 8
"""TensorProto.DataType."""
MAX_LISTED_NODES = 8
"""Nodes listed in an error."""


def build_torch_module(proto: Any) -> Any:
    """A torch.fx.GraphModule equivalent to an onnx.ModelProto, with inputs and outputs in graph order."""
    root, graph = torch.nn.Module(), torch.fx.Graph()
    values: dict[str, Any] = {"": None}

    def add_constant(name: str, tensor: Any) -> None:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.int64 and array.ndim <= 1 and array.size <= MAX_HOST_SIZE:
            values[name] = array.tolist()
            return
        attribute = f"constant_{len(root._buffers)}"
        root.register_buffer(attribute, torch.from_numpy(np.array(array)))
        values[name] = graph.get_attr(attribute)

    for index, value in enumerate(request_inputs(proto)):
        values[value.name] = graph.placeholder(f"input_{index}")
    for tensor in proto.graph.initializer:
        add_constant(tensor.name, tensor)
    for node in proto.graph.node:
        attributes = {attribute.name: _attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            add_constant(node.output[0], attributes["value"])
            continue
        if "value" in attributes:
            attributes["value"] = numpy_helper.to_array(attributes["value"]).item()
        result = graph.call_function(OPERATORS[node.op_type], tuple(values[name] for name in node.input), attributes)
        for index, name in enumerate(node.output):
            is_tuple = node.op_type in MULTIPLE_OUTPUTS
            values[name] = graph.call_function(operator.getitem, (result, index)) if is_tuple else result
    graph.output(tuple(values[value.name] for value in proto.graph.output))
    return torch.fx.GraphModule(root, graph)


def _attribute_value(attribute: Any) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def check_supported(proto: Any, model: str) -> None:
    """Raise EngineError for unsupported operators, string inputs and old opsets."""
    unknown = unsupported_nodes(proto, lambda domain, name: domain == "" and name in OPERATORS)
    unknown += [
        f"{node.op_type} with {len(node.output)} outputs (node {node.name or node.output[0]})"
        for node in proto.graph.node
        if node.op_type not in MULTIPLE_OUTPUTS and len(node.output) > 1
    ]
    strings = [value.name for value in proto.graph.input if value.type.tensor_type.elem_type == STRING]
    if unknown or strings:
        parts = [f"inputs of strings ({', '.join(strings)})"] if strings else []
        parts += [f"the operators {limited(unknown, MAX_LISTED_NODES)}"] if unknown else []
        raise EngineError(f"{model} has no form in torch: {' and '.join(parts)}", hint="leave the torch candidates out")
    opset = next((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), 0)
    if opset < MIN_OPSET:
        reason = f"{model} is of opset {opset}; torch forms are of {MIN_OPSET} and later"
        raise EngineError(reason, hint="onnx.version_converter lifts it")
