"""What passes share: a graph with names and types on everything, and the part of it that they may change."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, version_converter

from mlflowkit.errors import EngineError
from mlflowkit.graphs import onnx_file

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
PRODUCTS = ("MatMul", "Gemm", "Conv")
"""Operators with weights that INT8 is made for."""
_HELD_FROM = 1024
"""Bytes from which a constant's content is no shape that inference would read."""


class InapplicableError(Exception):
    """A graph cannot be had so; the message is the reason. Caught by OnnxPasses, never seen outside."""


def normalised(model: Any) -> Any:
    """The same model with a name of its own on every node, and constants as initialisers alone.

    Changes ``model``. Constant nodes become initialisers, as tools find weights there only; initialisers are no inputs
    (before IR version 4 they had to be).
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    kept = [entry for entry in graph.input if entry.name not in constants]
    if len(kept) < len(graph.input):
        del graph.input[:]
        graph.input.extend(kept)
        model.ir_version = max(model.ir_version, 4)
    outputs = {entry.name for entry in graph.output}
    nodes = []
    for node in graph.node:
        tensor = None if outputs.intersection(node.output) else _constant(node)
        if tensor is None:
            nodes.append(node)
        else:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    taken = {node.name for node in nodes}
    seen: set[str] = set()
    for index, node in enumerate(nodes):
        if not node.name or node.name in seen:
            node.name = _free(f"{node.name or node.op_type}_{index}", taken)
        seen.add(node.name)
    replace_nodes(graph, nodes)
    return model


def replace_nodes(graph: Any, nodes: list[Any]) -> None:
    """Set the nodes of a graph."""
    nodes = [copied(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)


def in_order(nodes: Iterable[Any]) -> list[Any]:
    """Nodes so ordered that each comes after what it reads; the same order for the same nodes."""
    nodes = list(nodes)
    makers = {name: index for index, node in enumerate(nodes) for name in node.output}
    reads = {
        index: [makers[name] for inner in onnx_file.nodes_of([node]) for name in inner.input if name in makers]
        for index, node in enumerate(nodes)
    }
    needed = {index: [other for other in others if other != index] for index, others in reads.items()}
    return [nodes[index] for index in TopologicalSorter(needed).static_order()]


def copied(message: Any) -> Any:
    """A copy of a protobuf message."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def network(model: Any) -> list[Any]:
    """Nodes that passes may change: those that came from the model, where the exporter marked them, else all.

    Preprocessing and answers keep their exact arithmetic: their nodes do not bear the mark (`onnxfile.NETWORK`).
    """
    marked = [
        node
        for node in model.graph.node
        if node.name.startswith(onnx_file.NETWORK) and onnx_file.FEATURES not in node.output
    ]
    return marked or list(model.graph.node)


def constants(model: Any) -> dict[str, Any]:
    """Initialisers of the graph by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def products(model: Any) -> list[Any]:
    """The network's products whose second factor is a constant of at least two dimensions, in the graph's order."""
    weights = {name: tensor for name, tensor in constants(model).items() if tensor.data_type in FLOATS[:2]}
    return [
        node
        for node in network(model)
        if node.op_type in PRODUCTS
        and node.domain in ("", "ai.onnx")
        and len(node.input) > 1
        and node.input[0] not in weights
        and node.input[1] in weights
        and len(weights[node.input[1]].dims) >= 2
    ]


def attributes(node: Any) -> dict[str, Any]:
    """Attributes of a node by name."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def split_gemms(model: Any) -> None:
    """Write each of the network's Gemms with constant weights as MatMul and Add, where that is the same.

    Dynamic and block quantisation take MatMul only.
    """
    weights = constants(model)
    chosen = {node.name for node in products(model) if node.op_type == "Gemm"}
    taken = set(weights) | {name for node in model.graph.node for name in node.output}
    nodes: list[Any] = []
    for node in model.graph.node:
        said = attributes(node) if node.name in chosen else {"transA": 1}
        if said.get("transA", 0) or said.get("alpha", 1.0) != 1.0 or said.get("beta", 1.0) != 1.0:
            nodes.append(node)
            continue
        weight = node.input[1]
        if said.get("transB", 0):
            weight = _transposed(model, weights[weight], taken)
        with_bias = len(node.input) > 2 and node.input[2] != ""
        product = _free(f"{node.output[0]}/product", taken) if with_bias else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], weight], [product], name=node.name))
        if with_bias:
            bias = f"{node.name}/bias"
            nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=bias))
    replace_nodes(model.graph, nodes)
    drop_unused(model)


def join_gemms(model: Any) -> None:
    """Write MatMul and Add of a bias as the Gemm that ONNX Runtime makes of them, where two dimensions come in.

    It does so before it looks for Q/DQ pairs, and has no integer kernel for what it finds then: pairs around MatMul
    alone. (More dimensions have a kernel of their own.) The model must be typed.
    """
    ranks = {
        entry.name: len(entry.type.tensor_type.shape.dim) for entry in (*model.graph.value_info, *model.graph.input)
    }
    known = constants(model)
    readers: dict[str, list[Any]] = {}
    for node in onnx_file.nodes(model):
        for name in node.input:
            readers.setdefault(name, []).append(node)
    answers = {entry.name for entry in model.graph.output}
    joined: dict[str, Any] = {}
    dropped: set[str] = set()
    for node in products(model):
        weight, following = known[node.input[1]], readers.get(node.output[0], [])
        if node.op_type != "MatMul" or len(weight.dims) != 2 or ranks.get(node.input[0]) != 2 or len(following) != 1:
            continue
        (add,) = following
        bias = next((name for name in add.input if name in known and list(known[name].dims) == [weight.dims[1]]), "")
        if add.op_type == "Add" and bias and node.output[0] not in answers:
            joined[node.name] = helper.make_node("Gemm", [*node.input, bias], list(add.output), name=node.name)
            dropped.add(add.name)
    replace_nodes(model.graph, [joined.get(n.name, n) for n in model.graph.node if n.name not in dropped])


def sum_residuals(model: Any) -> None:
    """Write the Add of a residual connection before a layer normalisation as Sum, which is the same.

    ONNX Runtime makes one SkipLayerNormalization of Add and what follows. On CPUs that kernel takes several times as
    long as the two apart, and in INT8 a sixth of a whole MiniLM; of Sum it makes nothing.
    """
    known = constants(model)
    readers: dict[str, set[str]] = {}
    for node in onnx_file.nodes(model):
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    for node in network(model):
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx") or any(name in known for name in node.input):
            continue
        read = readers.get(node.output[0], set())
        if "LayerNormalization" in read or {"ReduceMean", "Sub"} <= read:  # below opset 17 it is written out
            node.op_type = "Sum"


def drop_unused(model: Any) -> None:
    """Leave out initialisers that nothing reads, and the operator sets of domains that no node is of."""
    used = {name for node in onnx_file.nodes(model) for name in node.input}
    used |= {entry.name for entry in model.graph.output}
    _keep(model.graph.initializer, lambda tensor: tensor.name in used)
    domains = {_domain(node.domain) for node in onnx_file.nodes(model)} | {""}
    _keep(model.opset_import, lambda entry: _domain(entry.domain) in domains)


def typed(model: Any) -> Any:
    """``model`` with types and shapes of what lies between its nodes, as far as they can be known.

    ONNX's own inference, which does not know vendors' operators; ONNX Runtime is asked for what it leaves open.
    """
    with _without_weights(model):
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.graph.value_info)
    known = {entry.name for entry in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    missing = [name for node in model.graph.node for name in node.output if name and name not in known]
    if missing:
        model.graph.value_info.extend(_runtime_types(model, missing))
    return model


def lifted(model: Any, opset: int, purpose: str) -> Any:
    """``model`` at ``opset`` of ONNX's own operators or a later one. Raises InapplicableError when it cannot be."""
    (own,) = [entry for entry in model.opset_import if _domain(entry.domain) == ""]
    if own.version >= opset:
        return model
    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:
        raise InapplicableError(
            f"{purpose} needs opset {opset}, and ONNX cannot lift the graph from {own.version}: {first_line(error)}"
        ) from error


def types_of(model: Any) -> dict[str, int]:
    """Element type of every tensor of a typed model, by name."""
    entries = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    known = {entry.name: entry.type.tensor_type.elem_type for entry in entries if entry.type.HasField("tensor_type")}
    return known | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def session(model: Any, *, outputs: Collection[str] = ()) -> Any:
    """An ONNX Runtime session on one CPU thread without rewriting; ``outputs`` are given beside the graph's own."""
    own = {entry.name for entry in model.graph.output}
    changed = copied(model)
    changed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in own)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with written(changed) as path:
        try:
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime cannot load the graph: {first_line(error)}", hint="check the model with onnx.checker"
            ) from error


@contextlib.contextmanager
def written(model: Any) -> Iterator[Path]:
    """A temporary file with ``model``, in a folder of its own. (A large ``model`` has its weights in files then.)"""
    with tempfile.TemporaryDirectory(prefix="mlkit-pass-") as folder:
        path = Path(folder) / "model.onnx"
        onnx_file.write(model, path)
        yield path


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let ONNX Runtime's tools neither print nor set up the process's logging, which they do at import."""
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)


def first_line(error: Exception) -> str:
    """What an error of a tool says, in a line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def interface(model: Any) -> list[tuple[str, int, int]]:
    """Name, element type and rank of inputs and outputs, in their order: what a pass must leave as it is."""
    fed = {tensor.name for tensor in model.graph.initializer}
    entries = [*(entry for entry in model.graph.input if entry.name not in fed), *model.graph.output]
    return [(e.name, e.type.tensor_type.elem_type, len(e.type.tensor_type.shape.dim)) for e in entries]


def _constant(node: Any) -> Any:
    """The tensor that a Constant node holds, or None."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    ((name, value),) = attributes(node).items()
    if name == "value":
        return copied(value)
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return numpy_helper.from_array(np.asarray(value, dtype=kinds[name])) if name in kinds else None


def _transposed(model: Any, weight: Any, taken: set[str]) -> str:
    """The name of a new initialiser that is ``weight`` [n, k] turned to [k, n]; made once for each weight."""
    name = f"{weight.name}/transposed"
    if name not in {tensor.name for tensor in model.graph.initializer}:
        turned = np.ascontiguousarray(numpy_helper.to_array(weight).T)
        model.graph.initializer.append(numpy_helper.from_array(turned, _free(name, taken)))
    return name


def _free(name: str, taken: set[str]) -> str:
    """A name that is not taken, from ``name``; takes it."""
    free, count = name, 1
    while free in taken:
        free, count = f"{name}_{count}", count + 1
    taken.add(free)
    return free


def _keep(repeated: Any, wanted: Callable[[Any], bool]) -> None:
    for index in reversed(range(len(repeated))):
        if not wanted(repeated[index]):
            del repeated[index]


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


@contextlib.contextmanager
def _without_weights(model: Any) -> Iterator[None]:
    """Take the bytes of large constants out for a while: inference copies the model, and 2 GB is the most it can."""
    held = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= _HELD_FROM]
    content = [tensor.raw_data for tensor in held]
    for tensor in held:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="held")
    try:
        yield
    finally:
        for tensor, raw in zip(held, content, strict=True):
            tensor.raw_data = raw
            tensor.ClearField("data_location")
            del tensor.external_data[:]


def _runtime_types(model: Any, names: list[str]) -> list[Any]:
    """What ONNX Runtime says of tensors inside a graph."""
    kinds = {
        "tensor(float)": TensorProto.FLOAT,
        "tensor(float16)": TensorProto.FLOAT16,
        "tensor(int64)": TensorProto.INT64,
        "tensor(int32)": TensorProto.INT32,
        "tensor(int8)": TensorProto.INT8,
        "tensor(uint8)": TensorProto.UINT8,
        "tensor(bool)": TensorProto.BOOL,
    }
    found = {entry.name: entry for entry in session(model, outputs=names).get_outputs()}
    return [
        helper.make_tensor_value_info(name, kinds[found[name].type], found[name].shape or None)  # [] is any rank, too
        for name in names
        if found[name].type in kinds
    ]
