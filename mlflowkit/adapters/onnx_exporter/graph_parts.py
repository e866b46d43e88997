"""Parts of the exported graph: a torch network, a scikit-learn estimator, the outputs; and their assembly.

skl2onnx converts estimators, torch networks; `preprocessing_graph` has what comes before them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, compose, helper, numpy_helper, version_converter

from mlflowkit.errors import EngineError
from mlflowkit.graphs import onnx_file
from mlflowkit.system.text import first_line

OPSET = 17
ML_OPSET = 3
IR_VERSION = 8
TEXT_OPSET = 20
"""First opset with StringConcat, for graphs that hash texts."""
RUNTIME = "com.microsoft"
"""ONNX Runtime's own operators, of which Tokenizer and MurmurHash3 have no form in ONNX."""
ML = "ai.onnx.ml"
NETWORK = onnx_file.NETWORK_PREFIX
"""Name prefix of the model's own nodes; passes change only these."""
FEATURES = onnx_file.FEATURES_TENSOR
"""The tensor between preprocessing and model, float32 [rows, width]."""


@dataclass(slots=True)
class GraphPart:
    """Nodes and constants with their operator sets."""

    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    opsets: dict[str, int] = field(default_factory=lambda: {"": OPSET, ML: ML_OPSET})

    def add(self, operator: str, inputs: Sequence[str], output: str | Sequence[str], **attributes: Any) -> None:
        outputs = [output] if isinstance(output, str) else list(output)
        self.nodes.append(helper.make_node(operator, list(inputs), outputs, name=outputs[0] + ".node", **attributes))

    def constant(self, name: str, value: Any, dtype: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name


def estimator(fitted: Any, width: int, remedy: str, opset: int = OPSET) -> GraphPart:
    """A scikit-learn estimator from FEATURES: ``network/label`` and ``network/probabilities``, or ``network/variable``.

    Raises EngineError with the hint ``remedy`` when skl2onnx has no converter for it.
    """
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    convertible = _with_float_thresholds(fitted)
    options = {id(convertible): {"zipmap": False}} if hasattr(fitted, "classes_") else None
    types = [("features", FloatTensorType([None, width]))]
    try:
        model = to_onnx(convertible, initial_types=types, target_opset={"": OPSET, ML: ML_OPSET}, options=options)
    except Exception as error:
        raise EngineError(
            f"skl2onnx cannot convert {type(fitted).__name__}: {first_line(error)}",
            hint=remedy,
        ) from error
    return part_from_model(model, opset)


def _with_float_thresholds(fitted: Any) -> Any:
    """A histogram boosting model with float64 thresholds rounded down to float32; others unchanged.

    For a float32 x, ``x <= t`` equals ``x <= down(t)``; skl2onnx rounds to nearest, which moves rows that lie on a
    threshold to the other side (for other trees skl2onnx rounds down itself).
    """
    if not type(fitted).__name__.startswith("HistGradientBoosting"):
        return fitted
    fitted = copy.deepcopy(fitted)
    for trees in fitted._predictors:
        for tree in trees:
            exact = tree.nodes["num_threshold"]
            near = exact.astype(np.float32)
            down = np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)
            tree.nodes["num_threshold"] = down.astype(np.float64)
    return fitted


def part_from_model(model: Any, opset: int = OPSET) -> GraphPart:
    """A converted model's graph with names prefixed by NETWORK, at ``opset`` or later."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.get("", OPSET) < opset:
        model = version_converter.convert_version(model, opset)
        opsets = {entry.domain: entry.version for entry in model.opset_import}
    prefixed = compose.add_prefix(model, NETWORK)
    opsets.setdefault(ML, ML_OPSET)
    return GraphPart(list(prefixed.graph.node), list(prefixed.graph.initializer), opsets)


def add_class_outputs(part: GraphPart, classes: Sequence[str | int], *, scores: str = "", codes: str = "") -> None:
    """Add ``label`` and, from ``scores`` (logits), ``probabilities``; without scores ``codes`` give the label."""
    if scores:
        part.add("Softmax", [scores], "probabilities", axis=1)
        part.add("ArgMax", [scores], codes := "label/code", axis=1, keepdims=0)
    dtype = object if isinstance(classes[0], str) else np.int64
    part.add("Gather", [part.constant("label/classes", list(classes), dtype), codes], "label", axis=0)


def add_value_output(part: GraphPart, values: str, mean: float, scale: float, *, double: bool = False) -> None:
    """Add ``prediction`` [rows] from ``values`` [rows, 1] in units of the standardised target."""
    dtype = np.float64 if double else np.float32
    if double:
        part.add("Cast", [values], values := "target/double", to=TensorProto.DOUBLE)
    if (mean, scale) != (0.0, 1.0):
        part.add("Mul", [values, part.constant("target/scale", scale, dtype)], "target/scaled")
        part.add("Add", ["target/scaled", part.constant("target/mean", mean, dtype)], values := "target/value")
    part.add("Reshape", [values, part.constant("target/shape", [-1], np.int64)], "prediction")


def assemble(
    name: str, parts: Sequence[GraphPart], inputs: Sequence[Any], outputs: Sequence[Any], *,
    width: int | None = None, ir_version: int = IR_VERSION,
) -> bytes:  # fmt: skip
    """One checked, deterministic model of all parts. Raises EngineError when it is not valid.

    With ``width`` the type of FEATURES [rows, width] is recorded: type inference stops at the ai.onnx.ml encoders.
    """
    value_info = [] if width is None else [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["rows", width])]
    opsets: dict[str, int] = {}
    for part in parts:
        for domain, version in part.opsets.items():
            opsets[domain] = max(version, opsets.get(domain, 0))
    nodes = [node for part in parts for node in part.nodes]
    constants = [constant for part in parts for constant in part.constants]
    graph = helper.make_graph(nodes, name, list(inputs), list(outputs), constants, value_info=value_info)
    imports = [helper.make_opsetid(domain, opsets[domain]) for domain in sorted(opsets)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version, producer_name="mlflowkit")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        hint = "report this with the recipe"
        raise EngineError(f"the graph is not valid ONNX: {first_line(error)}", hint=hint) from error
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised
