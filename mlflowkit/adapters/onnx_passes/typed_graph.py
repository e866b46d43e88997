"""Shared graph operations of the passes: names and types on everything, and the nodes they may change."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnx_ir.passes import common as passes

from mlflowkit.errors import EngineError
from mlflowkit.graphs import onnx_file
from mlflowkit.system.text import first_line

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
PRODUCTS = ("MatMul", "Gemm", "Conv")
"""Operators with weights that INT8 applies to."""
_MIN_DETACHED_BYTES = 1024
"""Size from which a constant cannot be a shape that type inference needs."""


class PassNotApplicableError(Exception):
    """A pass does not apply to a graph; the message is the reason. Caught by OnnxPasses, never raised to callers."""


def normalize(model: Any) -> Any:
    """A copy of the model with unique node names, constants as initializers only, and no initializers among its inputs.

    Quantisation tools look for weights in initializers only, and before IR version 4 initializers had to be inputs.
    """
    model = ir.from_proto(model)
    ir.passes.Sequential(
        passes.RemoveInitializersFromInputsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.NameFixPass(),
    )(model)
    model.ir_version = max(model.ir_version, 4)
    return ir.to_proto(model)


def set_nodes(graph: Any, nodes: list[Any]) -> None:
    nodes = [copied(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)


def rank(entry: Any) -> int:
    """Number of dimensions of a ValueInfoProto."""
    return len(entry.type.tensor_type.shape.dim)


def topological_order(nodes: Iterable[Any]) -> list[Any]:
    """Nodes in a deterministic order in which each follows the nodes it reads from."""
    nodes = list(nodes)
    producers = {name: index for index, node in enumerate(nodes) for name in node.output}
    dependencies: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        reads = [producers.get(name) for inner in onnx_file.iter_nested_nodes([node]) for name in inner.input]
        dependencies[index] = [other for other in reads if other not in (None, index)]
    return [nodes[index] for index in TopologicalSorter(dependencies).static_order()]


def copied(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def network_nodes(model: Any) -> list[Any]:
    """Nodes that passes may change: those with the prefix `onnx_file.NETWORK_PREFIX`, or all where there are none.

    Preprocessing and outputs have no prefix and keep their exact arithmetic.
    """
    prefixed = [node for node in model.graph.node if node.name.startswith(onnx_file.NETWORK_PREFIX)]
    own_nodes = [node for node in prefixed if onnx_file.FEATURES_TENSOR not in node.output]
    return own_nodes or list(model.graph.node)


def initializers(model: Any) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def weighted_products(model: Any) -> list[Any]:
    """The network's products with a constant second factor of at least two dimensions, in graph order."""
    weights = {name: tensor for name, tensor in initializers(model).items() if tensor.data_type in FLOATS[:2]}
    return [
        node
        for node in network_nodes(model)
        if node.op_type in PRODUCTS
        and node.domain in ("", "ai.onnx")
        and len(node.input) > 1
        and node.input[0] not in weights
        and node.input[1] in weights
        and len(weights[node.input[1]].dims) >= 2
    ]


def attributes(node: Any) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def split_gemms(model: Any) -> None:
    """Replace each Gemm with constant weights by an equivalent MatMul and Add, where there is one.

    Dynamic and block quantisation support MatMul only.
    """
    weights = initializers(model)
    chosen = {node.name for node in weighted_products(model) if node.op_type == "Gemm"}
    taken = set(weights) | {name for node in model.graph.node for name in node.output}
    nodes: list[Any] = []
    for node in model.graph.node:
        options = attributes(node) if node.name in chosen else {"transA": 1}
        if options.get("transA", 0) or options.get("alpha", 1.0) != 1.0 or options.get("beta", 1.0) != 1.0:
            nodes.append(node)
            continue
        weight = node.input[1]
        if options.get("transB", 0):
            weight = _add_transposed(model, weights[weight], taken)
        with_bias = len(node.input) > 2 and node.input[2] != ""
        product = _unique_name(f"{node.output[0]}/product", taken) if with_bias else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], weight], [product], name=node.name))
        if with_bias:
            bias = f"{node.name}/bias"
            nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=bias))
    set_nodes(model.graph, nodes)
    drop_unused(model)


def join_gemms(model: Any) -> None:
    """Replace MatMul and Add of a bias by Gemm for inputs of two dimensions. The model must be typed.

    ONNX Runtime makes the same replacement before it looks for Q/DQ pairs, and then has no integer kernel for pairs
    around the MatMul alone. (More dimensions have their own kernel.)
    """
    ranks = {entry.name: rank(entry) for entry in (*model.graph.value_info, *model.graph.input)}
    constants = initializers(model)
    readers = _readers(model)
    outputs = {entry.name for entry in model.graph.output}
    joined: dict[str, Any] = {}
    dropped: set[str] = set()
    for node in weighted_products(model):
        weight, following = constants[node.input[1]], readers[node.output[0]]
        if node.op_type != "MatMul" or len(weight.dims) != 2 or ranks.get(node.input[0]) != 2 or len(following) != 1:
            continue
        (add,) = following
        bias = next((n for n in add.input if n in constants and list(constants[n].dims) == [weight.dims[1]]), "")
        if add.op_type == "Add" and bias and node.output[0] not in outputs:
            joined[node.name] = helper.make_node("Gemm", [*node.input, bias], list(add.output), name=node.name)
            dropped.add(add.name)
    set_nodes(model.graph, [joined.get(n.name, n) for n in model.graph.node if n.name not in dropped])


def sum_residuals(model: Any) -> None:
    """Replace the Add of a residual connection before a layer normalisation by the equivalent Sum.

    ONNX Runtime fuses Add and LayerNormalization to SkipLayerNormalization. On CPUs that kernel takes several times as
    long as the two apart (in INT8 a sixth of a whole MiniLM); it does not fuse Sum.
    """
    constants = initializers(model)
    readers = _readers(model)
    for node in network_nodes(model):
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx") or any(name in constants for name in node.input):
            continue
        following = {reader.op_type for reader in readers[node.output[0]]}
        if "LayerNormalization" in following or {"ReduceMean", "Sub"} <= following:  # below opset 17 it is decomposed
            node.op_type = "Sum"


def _readers(model: Any) -> dict[str, list[Any]]:
    """The nodes that read a tensor, by its name."""
    readers: dict[str, list[Any]] = defaultdict(list)
    for node in onnx_file.iter_nodes(model):
        for name in node.input:
            readers[name].append(node)
    return readers


def drop_unused(model: Any) -> None:
    """Remove unused initializers, and operator sets of domains without nodes."""
    used = {name for node in onnx_file.iter_nodes(model) for name in node.input}
    used |= {entry.name for entry in model.graph.output}
    _filter(model.graph.initializer, lambda tensor: tensor.name in used)
    domains = {node.domain for node in onnx_file.iter_nodes(model)} | {"", "ai.onnx"}
    _filter(model.opset_import, lambda entry: entry.domain in domains)


def opset_versions(model: Any) -> dict[str, int]:
    """Imported opset version by domain; ONNX's own domain is ""."""
    return {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}


def infer_types(model: Any) -> Any:
    """Set types and shapes of ``model``'s intermediate tensors, as far as they can be inferred; returns ``model``.

    ONNX's own inference comes first; ONNX Runtime supplies the results of vendor operators.
    """
    with _detached_weights(model):
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.graph.value_info)
    inferred_names = {entry.name for entry in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    missing = [name for node in model.graph.node for name in node.output if name and name not in inferred_names]
    if missing:
        model.graph.value_info.extend(_runtime_types(model, missing))
    return model


def upgrade_opset(model: Any, opset: int, purpose: str) -> Any:
    """``model`` at ``opset`` of ONNX's own operators or later. Raises PassNotApplicableError."""
    current = opset_versions(model)[""]
    if current >= opset:
        return model
    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:
        raise PassNotApplicableError(
            f"{purpose} needs opset {opset}, and ONNX cannot convert the graph from {current}: {first_line(error)}"
        ) from error


def tensor_types(model: Any) -> dict[str, int]:
    """Element type by name of every tensor of a typed model."""
    entries = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    types = {entry.name: entry.type.tensor_type.elem_type for entry in entries if entry.type.HasField("tensor_type")}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def open_session(model: Any, *, outputs: Collection[str] = ()) -> Any:
    """An ONNX Runtime session on one CPU thread without optimization; ``outputs`` are added to the graph's own."""
    graph_outputs = {entry.name for entry in model.graph.output}
    extended = copied(model)
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in graph_outputs)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with temporary_file(extended) as path:
        try:
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            hint = "mlkit run RECIPE --force export makes the graph again"
            raise EngineError(f"ONNX Runtime cannot load the graph: {first_line(error)}", hint=hint) from error


@contextlib.contextmanager
def temporary_file(model: Any) -> Iterator[Path]:
    """A temporary file with ``model`` in its own folder. Moves the weights of a large ``model`` to external data."""
    with tempfile.TemporaryDirectory(prefix="mlkit-pass-") as folder:
        path = Path(folder) / "model.onnx"
        onnx_file.write(model, path)
        yield path


@contextlib.contextmanager
def silence_tools() -> Iterator[None]:
    """Keep ONNX Runtime's tools from printing and from configuring the root logger (at import)."""
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


def interface(model: Any) -> list[tuple[str, int, int]]:
    """Name, element type and rank of inputs and outputs in order; a pass must not change them."""
    entries = [*onnx_file.request_inputs(model), *model.graph.output]
    return [(entry.name, entry.type.tensor_type.elem_type, rank(entry)) for entry in entries]


def _add_transposed(model: Any, weight: Any, taken: set[str]) -> str:
    """The name of an initializer with ``weight`` [n, k] transposed to [k, n], added once per weight."""
    name = f"{weight.name}/transposed"
    if name not in initializers(model):
        transposed = np.ascontiguousarray(numpy_helper.to_array(weight).T)
        model.graph.initializer.append(numpy_helper.from_array(transposed, _unique_name(name, taken)))
    return name


def _unique_name(name: str, taken: set[str]) -> str:
    """A name derived from ``name`` that is not in ``taken``; adds it."""
    unique, count = name, 1
    while unique in taken:
        unique, count = f"{name}_{count}", count + 1
    taken.add(unique)
    return unique


def _filter(repeated: Any, keep: Callable[[Any], bool]) -> None:
    for index in reversed(range(len(repeated))):
        if not keep(repeated[index]):
            del repeated[index]


@contextlib.contextmanager
def _detached_weights(model: Any) -> Iterator[None]:
    """Detach the bytes of large constants meanwhile: inference copies the model, which is limited to 2 GB."""
    detached = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= _MIN_DETACHED_BYTES]
    content = [tensor.raw_data for tensor in detached]
    for tensor in detached:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="detached")
    try:
        yield
    finally:
        for tensor, raw in zip(detached, content, strict=True):
            tensor.raw_data = raw
            tensor.ClearField("data_location")
            del tensor.external_data[:]


def _runtime_types(model: Any, names: list[str]) -> list[Any]:
    """Types and shapes of intermediate tensors, from ONNX Runtime."""
    elements = ("float", "float16", "int64", "int32", "int8", "uint8", "bool")
    kinds = {f"tensor({element})": TensorProto.DataType.Value(element.upper()) for element in elements}
    entries = {entry.name: entry for entry in open_session(model, outputs=names).get_outputs()}
    known = [entries[name] for name in names if entries[name].type in kinds]
    return [helper.make_tensor_value_info(e.name, kinds[e.type], e.shape or None) for e in known]  # [] may be any rank
