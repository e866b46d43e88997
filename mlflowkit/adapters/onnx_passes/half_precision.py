"""Conversion from FLOAT to a 16-bit type, shared by the passes fp16 and bf16.

ONNX Runtime's own converter (onnxruntime.transformers.float16) casts every float tensor to FP16, also between operators
that stay FLOAT: an unscaled income becomes infinite, a token id another one. Here only the results of converted
operators are narrow, with casts where the two types meet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import prod
from typing import Any

import numpy as np
from onnx import TensorProto, defs, helper, numpy_helper

from mlflowkit.adapters.onnx_passes.typed_graph import (
    FLOATS,
    attributes,
    initializers,
    network_nodes,
    opset_versions,
    set_nodes,
    tensor_types,
)
from mlflowkit.graphs import decision, onnx_file

TYPE_NAMES = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
"""ONNX's names of the narrow types."""
ALWAYS_FLOAT = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "SplitToSequence", "ConcatFromSequence"}
)
"""Operators with FLOAT-only scales before opset 19, and sequence operators."""
FLOAT_INPUTS = {"GroupNorm": (1, 2), "SkipGroupNorm": (1, 2)}
"""FLOAT-only inputs of vendor operators; for ONNX's own the schema says so."""
SHAPE_ONLY = frozenset({"Shape", "Size"})
"""Operators that read a tensor's shape, not its values."""


def convertible_nodes(model: Any, kind: int, blocked: Collection[str] = ()) -> set[str]:
    """Names of the network's nodes that can be computed in element type ``kind``.

    Excludes operators in ``blocked`` or not defined by ONNX for the type, nodes with nested graphs, and everything that
    a cast to an integer depends on: a token or category in 16 bits would become another one.
    """
    versions, excluded = opset_versions(model), ALWAYS_FLOAT.union(blocked)
    names = {
        node.name
        for node in network_nodes(model)
        if node.op_type not in excluded
        and not any(entry.HasField("g") or entry.graphs for entry in node.attribute)
        and _supports_type(node, versions, kind)
    }
    return names - _integer_dependencies(model)


def float_weights(model: Any, chosen: Collection[str]) -> list[Any]:
    """Non-scalar FLOAT initializers read by the nodes ``chosen``."""
    read = {name for node in model.graph.node if node.name in chosen for name in node.input}
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    return [tensor for tensor in floats if tensor.name in read and prod(tensor.dims) > 1]


def convert(model: Any, chosen: Collection[str], kind: int, round_values: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Convert the nodes ``chosen`` of a typed model to element type ``kind``; inputs and outputs keep their types.

    ``round_values`` converts float32 constants to the narrow type.
    """
    converter = _PrecisionConverter(model, chosen, kind, round_values)
    for node in list(model.graph.node):
        (converter.convert_node if node.name in chosen else converter.copy_node)(node)
    set_nodes(model.graph, converter.nodes)
    model.graph.initializer.extend(converter.tensors.values())
    for entry in model.graph.value_info:
        if entry.name in converter.narrow:
            entry.type.tensor_type.elem_type = kind
    return model


class _PrecisionConverter:
    """Rewrites a graph's nodes in order. ``narrow`` are the names of the tensors that become narrow."""

    def __init__(
        self, model: Any, chosen: Collection[str], kind: int, round_values: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        self.kind, self.round_values = kind, round_values
        self.versions = opset_versions(model)
        self.types = tensor_types(model)
        self.constants = initializers(model)
        self.outputs = {entry.name for entry in model.graph.output}
        self.nodes: list[Any] = []
        self.tensors: dict[str, Any] = {}
        self.casts: set[str] = set()
        self.narrow = {
            name
            for node in model.graph.node
            if node.name in chosen
            for index, name in enumerate(node.output)
            if self._is_float(name) and self._accepts_narrow(node, index, output=True)
        }

    def convert_node(self, node: Any) -> None:
        """Add a chosen node in the narrow type."""
        for index, name in enumerate(node.input):
            if self._is_float(name):
                accepts = self._accepts_narrow(node, index)
                node.input[index] = self._as_narrow(name) if accepts else self._as_float(name)
        for entry in node.attribute:  # of nodes that create floats or cast to them
            if entry.name in ("to", "dtype") and entry.i == TensorProto.FLOAT:
                entry.i = self.kind
            if entry.HasField("t") and entry.t.data_type == TensorProto.FLOAT:
                values = self.round_values(numpy_helper.to_array(entry.t))
                entry.t.CopyFrom(numpy_helper.from_array(values, entry.t.name))
        graph_outputs = [(index, name) for index, name in enumerate(node.output) if name in self.narrow & self.outputs]
        self.nodes.append(node)
        for index, name in graph_outputs:
            node.output[index] = self._narrow_name(name)
            self._cast(node.output[index], name, TensorProto.FLOAT)

    def copy_node(self, node: Any) -> None:
        """Add a node unchanged but for reading floats, nested graphs included."""
        for inner in onnx_file.iter_nested_nodes([node]):
            for index, name in enumerate(inner.input):
                if name in self.narrow:
                    inner.input[index] = self._as_float(name)
        self.nodes.append(node)

    def _is_float(self, name: str) -> bool:
        return bool(self.types.get(name) == TensorProto.FLOAT)

    def _narrow_name(self, name: str) -> str:
        return f"{name}/{TYPE_NAMES[self.kind]}"

    def _as_narrow(self, name: str) -> str:
        """The name of a float tensor's narrow version, added if needed."""
        narrow_name = self._narrow_name(name)
        if name in self.narrow:
            return narrow_name if name in self.outputs else name
        if name in self.constants:
            if narrow_name not in self.tensors:
                values = self.round_values(numpy_helper.to_array(self.constants[name]))
                self.tensors[narrow_name] = numpy_helper.from_array(values, narrow_name)
        else:
            self._cast(name, narrow_name, self.kind)
        return narrow_name

    def _as_float(self, name: str) -> str:
        """The name of a tensor's FLOAT version, added if needed."""
        if name not in self.narrow or name in self.outputs:
            return name
        self._cast(name, f"{name}/float", TensorProto.FLOAT)
        return f"{name}/float"

    def _cast(self, source: str, target: str, kind: int) -> None:
        if target not in self.casts:
            self.casts.add(target)
            self.nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=kind))

    def _accepts_narrow(self, node: Any, index: int, *, output: bool = False) -> bool:
        """Whether a node's input (or output) may have the narrow type."""
        schema = _schema(node, self.versions)
        if schema is None:
            return output or index not in FLOAT_INPUTS.get(node.op_type, ())
        listed = list(schema.outputs if output else schema.inputs)
        formal = listed[min(index, len(listed) - 1)]
        return bool(f"tensor({TYPE_NAMES[self.kind]})" in formal.types)


def _schema(node: Any, versions: dict[str, int]) -> Any:
    """ONNX's schema of a node's operator, or None for a vendor's."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = versions.get(domain, 1)
    is_defined = domain in ("", "ai.onnx.ml") and defs.has(node.op_type, version, domain)
    return defs.get_schema(node.op_type, version, domain) if is_defined else None


def _supports_type(node: Any, versions: dict[str, int], kind: int) -> bool:
    """Whether an operator supports a narrow type. Vendor operators are assumed to support FP16 and not BF16."""
    schema = _schema(node, versions)
    if schema is None:
        return bool(kind == TensorProto.FLOAT16)
    if node.op_type == "ConstantOfShape" and not node.attribute:
        return False  # its default value is FLOAT
    narrow_type = f"tensor({TYPE_NAMES[kind]})"
    first = next((formal for formal in schema.inputs if "tensor(float)" in formal.types), None)
    if first is not None:
        return narrow_type in first.types
    return any(narrow_type in formal.types for formal in schema.outputs)


def _integer_dependencies(model: Any) -> set[str]:
    """Names of casts to a non-float type, and of all nodes they depend on.

    The cast of a decision threshold is none of them: it makes an integer of a comparison.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    casts = [node for node in model.graph.node if node.op_type == "Cast" and attributes(node)["to"] not in FLOATS]
    pending = [node for node in casts if not node.output[0].startswith(decision.PREFIX)]
    names: set[str] = set()
    while pending:
        node = pending.pop()
        if node.name not in names:
            names.add(node.name)
            read = [] if node.op_type in SHAPE_ONLY else list(node.input)
            pending += [producers[name] for name in read if name in producers]
    return names
