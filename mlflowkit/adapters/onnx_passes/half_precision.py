"""From FLOAT to a type of 16 bits: what the passes fp16 and bf16 share.

ONNX Runtime's own converter (onnxruntime.transformers.float16) sends every float tensor through FP16, those between
operators that are to stay FLOAT too: an income before it is scaled becomes infinite, a token another one. Here a tensor
is narrow exactly where an operator of 16 bits makes it, and casts are where the two kinds meet.
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
    constants,
    network,
    normalised,
    typed,
    types_of,
)
from mlflowkit.graphs import onnx_file

NAMES = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
"""What ONNX calls the narrow types."""
ALWAYS_FLOAT = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "SplitToSequence", "ConcatFromSequence"}
)
"""Operators whose scales know no other type before opset 19, and those that make sequences."""
FLOAT_INPUTS = {"GroupNorm": (1, 2), "SkipGroupNorm": (1, 2)}
"""Inputs of vendors' operators that stay FLOAT; ONNX's own operators say so themselves."""
SHAPE_ONLY = frozenset({"Shape", "Size"})
"""Operators that look at a tensor's shape, not at its values."""


def prepared(model: Any) -> Any:
    """``model`` with names and types on everything, as `narrowed` needs it."""
    return typed(normalised(model))


def convertible(model: Any, kind: int, kept: Collection[str] = ()) -> set[str]:
    """Names of the network's nodes that can be computed in element type ``kind``.

    Not: operators in ``kept`` and those that ONNX does not define for the type; nodes with graphs inside; and
    everything that a cast to a whole number depends on, for a token or a category in 16 bits would be another one.
    """
    versions = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    found = {
        node.name
        for node in network(model)
        if node.op_type not in ALWAYS_FLOAT
        and node.op_type not in kept
        and not any(entry.HasField("g") or entry.graphs for entry in node.attribute)
        and _defined(node, versions, kind)
    }
    return found - _behind_numbers(model)


def weights_read(model: Any, chosen: Collection[str]) -> list[Any]:
    """FLOAT initialisers of more than one number that the nodes ``chosen`` read."""
    read = {name for node in model.graph.node if node.name in chosen for name in node.input}
    return [
        tensor
        for name, tensor in constants(model).items()
        if name in read and tensor.data_type == TensorProto.FLOAT and prod(tensor.dims) > 1
    ]


def narrowed(model: Any, chosen: Collection[str], kind: int, rounded: Callable[[np.ndarray], np.ndarray]) -> Any:
    """``model``, typed, with its nodes ``chosen`` in element type ``kind``; inputs and answers keep their types.

    ``rounded`` takes float32 constants to the narrow type.
    """
    work = _Narrowing(model, set(chosen), kind, rounded)
    for node in list(model.graph.node):
        if node.name in work.chosen:
            work.narrow(node)
        else:
            work.leave(node)
    del model.graph.node[:]
    model.graph.node.extend(work.nodes)
    model.graph.initializer.extend(work.tensors.values())
    for entry in model.graph.value_info:
        if entry.name in work.made:
            entry.type.tensor_type.elem_type = kind
    return model


class _Narrowing:
    """The walk through a graph's nodes, in their order. ``made`` are the tensors that become narrow."""

    def __init__(self, model: Any, chosen: set[str], kind: int, rounded: Callable[[np.ndarray], np.ndarray]) -> None:
        self.chosen, self.kind, self.rounded = chosen, kind, rounded
        self.versions = {"" if e.domain == "ai.onnx" else e.domain: e.version for e in model.opset_import}
        self.types = types_of(model)
        self.constants = constants(model)
        self.answers = {entry.name for entry in model.graph.output}
        self.nodes: list[Any] = []
        self.tensors: dict[str, Any] = {}
        self.casts: set[str] = set()
        self.made = {
            name
            for node in model.graph.node
            if node.name in chosen
            for place, name in enumerate(node.output)
            if self._is_float(name) and self._takes(node, place, output=True)
        }

    def narrow(self, node: Any) -> None:
        """Take a chosen node over in the narrow type."""
        for place, name in enumerate(node.input):
            if self._is_float(name):
                wanted = self._takes(node, place)
                node.input[place] = self._as_narrow(name) if wanted else self._as_float(name)
        self._attributes(node)
        published = [(place, name) for place, name in enumerate(node.output) if name in self.made & self.answers]
        self.nodes.append(node)
        for place, name in published:
            node.output[place] = self._narrow_name(name)
            self._cast(node.output[place], name, TensorProto.FLOAT)

    def leave(self, node: Any) -> None:
        """Take a node over as it is, reading floats, in graphs inside it too."""
        for inner in onnx_file.nodes_of([node]):
            for place, name in enumerate(inner.input):
                if name in self.made:
                    inner.input[place] = self._as_float(name)
        self.nodes.append(node)

    def _is_float(self, name: str) -> bool:
        return bool(self.types.get(name) == TensorProto.FLOAT)

    def _narrow_name(self, name: str) -> str:
        return f"{name}/{NAMES[self.kind]}"

    def _as_narrow(self, name: str) -> str:
        """The name under which a float tensor is to be had in the narrow type."""
        narrow = self._narrow_name(name)
        if name in self.made:
            return narrow if name in self.answers else name
        if name in self.constants:
            if narrow not in self.tensors:
                values = self.rounded(numpy_helper.to_array(self.constants[name]))
                self.tensors[narrow] = numpy_helper.from_array(values, narrow)
        else:
            self._cast(name, narrow, self.kind)
        return narrow

    def _as_float(self, name: str) -> str:
        """The name under which a tensor is to be had as FLOAT."""
        if name not in self.made or name in self.answers:
            return name
        self._cast(name, f"{name}/float", TensorProto.FLOAT)
        return f"{name}/float"

    def _cast(self, source: str, target: str, kind: int) -> None:
        if target not in self.casts:
            self.casts.add(target)
            self.nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=kind))

    def _attributes(self, node: Any) -> None:
        """Let a node that makes floats out of nothing, or casts to them, make narrow ones."""
        for entry in node.attribute:
            if entry.name in ("to", "dtype") and entry.i == TensorProto.FLOAT:
                entry.i = self.kind
            if entry.HasField("t") and entry.t.data_type == TensorProto.FLOAT:
                values = self.rounded(numpy_helper.to_array(entry.t))
                entry.t.CopyFrom(numpy_helper.from_array(values, entry.t.name))

    def _takes(self, node: Any, place: int, *, output: bool = False) -> bool:
        """Whether a node's input (or output) at a place may be of the narrow type."""
        schema = _schema(node, self.versions)
        if schema is None:
            return output or place not in FLOAT_INPUTS.get(node.op_type, ())
        listed = list(schema.outputs if output else schema.inputs)
        formal = listed[min(place, len(listed) - 1)]
        return bool(f"tensor({NAMES[self.kind]})" in formal.types)


def _schema(node: Any, versions: dict[str, int]) -> Any:
    """ONNX's definition of a node's operator, or None for a vendor's."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = versions.get(domain, 1)
    known = domain in ("", "ai.onnx.ml") and defs.has(node.op_type, version, domain)
    return defs.get_schema(node.op_type, version, domain) if known else None


def _defined(node: Any, versions: dict[str, int], kind: int) -> bool:
    """Whether an operator takes a narrow type. Vendors' are taken to know FP16 and not BF16."""
    schema = _schema(node, versions)
    if schema is None:
        return bool(kind == TensorProto.FLOAT16)
    if node.op_type == "ConstantOfShape" and not node.attribute:
        return False  # what it makes without a value is FLOAT
    wanted = f"tensor({NAMES[kind]})"
    first = next((formal for formal in schema.inputs if "tensor(float)" in formal.types), None)
    if first is not None:
        return wanted in first.types
    return any(wanted in formal.types for formal in schema.outputs)


def _behind_numbers(model: Any) -> set[str]:
    """Names of casts from float to anything but a float, and of all nodes that these depend on."""
    makers = {name: node for node in model.graph.node for name in node.output}
    waiting = [node for node in model.graph.node if node.op_type == "Cast" and attributes(node)["to"] not in FLOATS]
    found: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node.name not in found:
            found.add(node.name)
            read = [] if node.op_type in SHAPE_ONLY else list(node.input)
            waiting += [makers[name] for name in read if name in makers]
    return found
