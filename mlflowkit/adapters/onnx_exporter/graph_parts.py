"""Pieces of the graph: fitted preprocessing, a torch network, a scikit-learn estimator, the answers.

Preprocessing is written with ONNX operators that repeat its float32 arithmetic bit for bit (subtract, then
divide), so that a tree behind it sees the very numbers that it was fitted on; skl2onnx multiplies by a reciprocal
instead, needs 0.3 s to import, and its graph of lending's 22 columns takes 19 µs a row where this one takes 14.
Estimators are converted by skl2onnx, networks by torch.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, compose, helper, numpy_helper

from mlflowkit.errors import EngineError
from mlflowkit.features.preprocess import Preprocess
from mlflowkit.graphs import onnx_file

OPSET = 17
ML_OPSET = 3
IR_VERSION = 8
ML = "ai.onnx.ml"
NETWORK = onnx_file.NETWORK
"""Prefix of the names of everything that came from the model; quantisation keeps to these nodes."""
FEATURES = onnx_file.FEATURES
"""The tensor between preprocessing and model, float32 [rows, width]."""


@dataclass(slots=True)
class Piece:
    """Nodes and constants, with the operator sets that they need."""

    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    opsets: dict[str, int] = field(default_factory=lambda: {"": OPSET, ML: ML_OPSET})

    def add(self, operator: str, inputs: Sequence[str], output: str | Sequence[str], **attributes: Any) -> None:
        outputs = [output] if isinstance(output, str) else list(output)
        self.nodes.append(helper.make_node(operator, list(inputs), outputs, name=outputs[0] + ".node", **attributes))

    def constant(self, name: str, value: Any, dtype: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name


def preprocessing(fitted: Preprocess) -> Piece:
    """From inputs ``numeric`` [rows, k] and ``categorical`` [rows, m] to FEATURES, as preprocess.transform does it."""
    piece, parts = Piece(), []
    if len(fitted.fill):
        parts.append(_numeric(piece, fitted))
    if fitted.categories:
        parts.append(_categorical(piece, fitted.categories))
    if len(parts) == 1:
        piece.add("Identity", parts, FEATURES)
    else:
        piece.add("Concat", parts, FEATURES, axis=1)
    return piece


def _numeric(piece: Piece, fitted: Preprocess) -> str:
    piece.add(
        "Imputer",
        ["numeric"],
        "numeric/imputed",
        domain=ML,
        imputed_value_floats=fitted.fill.tolist(),
        replaced_value_float=float("nan"),
    )
    if not fitted.center.any() and (fitted.scale == 1).all():
        return "numeric/imputed"
    center = piece.constant("numeric/center", fitted.center, np.float32)
    scale = piece.constant("numeric/scale", fitted.scale, np.float32)
    piece.add("Sub", ["numeric/imputed", center], "numeric/centred")
    piece.add("Div", ["numeric/centred", scale], "numeric/scaled")
    return "numeric/scaled"


def _categorical(piece: Piece, categories: Sequence[Sequence[str]]) -> str:
    """One OneHotEncoder for each column: all zero for a value that it does not know."""
    columns = [f"categorical/{index}" for index in range(len(categories))]
    if len(columns) == 1:
        columns = ["categorical"]
    else:
        sizes = piece.constant("categorical/split", [1] * len(columns), np.int64)
        piece.add("Split", ["categorical", sizes], columns, axis=1)
    parts = []
    for index, (column, texts) in enumerate(zip(columns, categories, strict=True)):
        cube, flat = f"categorical/{index}/cube", f"categorical/{index}/encoded"
        piece.add("OneHotEncoder", [column], cube, domain=ML, cats_strings=list(texts), zeros=1)
        shape = piece.constant(f"categorical/{index}/shape", [-1, len(texts)], np.int64)
        piece.add("Reshape", [cube, shape], flat)
        parts.append(flat)
    if len(parts) == 1:
        return parts[0]
    piece.add("Concat", parts, "categorical/encoded", axis=1)
    return "categorical/encoded"


def network(module: Any, width: int) -> Piece:
    """A torch module from FEATURES to ``network/scores`` [rows, outputs].

    The tracing exporter is used: 0.04 s where the one through torch.export takes 3 s. What a trace can get wrong
    (a branch on values, a batch size baked in) shows in the parity of the graph. Raises EngineError.
    """
    import torch

    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.onnx.export(
                module,
                (torch.zeros(3, width),),
                buffer,
                input_names=["features"],
                output_names=["scores"],
                dynamic_axes={"features": {0: "rows"}, "scores": {0: "rows"}},
                opset_version=OPSET,
                dynamo=False,
            )
    except Exception as error:
        raise EngineError(
            f"torch cannot export {type(module).__name__} to ONNX: {(str(error).splitlines() or [''])[0]}",
            hint="use operators that ONNX has in its forward, and no code that depends on values",
        ) from error
    return piece_of(onnx.load_from_string(buffer.getvalue()))


def estimator(fitted: Any, width: int) -> Piece:
    """A scikit-learn estimator from FEATURES: ``network/label`` and ``network/probabilities``, or ``network/variable``.

    Raises EngineError when skl2onnx has no converter for it.
    """
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    convertible = _with_float_thresholds(fitted)
    options = {id(convertible): {"zipmap": False}} if hasattr(fitted, "classes_") else None
    try:
        model = to_onnx(
            convertible,
            initial_types=[("features", FloatTensorType([None, width]))],
            target_opset={"": OPSET, ML: ML_OPSET},
            options=options,
        )
    except Exception as error:
        raise EngineError(
            f"skl2onnx cannot convert {type(fitted).__name__}: {(str(error).splitlines() or [''])[0]}",
            hint="choose another estimator under model.module; https://onnx.ai/sklearn-onnx/supported.html lists them",
        ) from error
    return piece_of(model)


def _with_float_thresholds(fitted: Any) -> Any:
    """Histogram boosting with each float64 threshold rounded down to float32.

    For a float32 x, ``x <= t`` and ``x <= down(t)`` are the same question, while skl2onnx rounds to nearest, which
    moves rows that lie on a threshold to the other side. (For other trees skl2onnx does this itself.)
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


def piece_of(model: Any) -> Piece:
    """A converted model's graph under the prefix NETWORK, lifted to OPSET."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.get("", OPSET) < OPSET:
        from onnx import version_converter

        model = version_converter.convert_version(model, OPSET)
        opsets = {entry.domain: entry.version for entry in model.opset_import}
    prefixed = compose.add_prefix(model, NETWORK)
    opsets.setdefault(ML, ML_OPSET)
    return Piece(list(prefixed.graph.node), list(prefixed.graph.initializer), opsets)


def class_answers(piece: Piece, classes: Sequence[str | int], *, scores: str = "", codes: str = "") -> None:
    """Add ``label`` and, from ``scores`` (logits), ``probabilities``; without scores label comes from ``codes``."""
    if scores:
        piece.add("Softmax", [scores], "probabilities", axis=1)
        piece.add("ArgMax", [scores], codes := "label/code", axis=1, keepdims=0)
    dtype = object if isinstance(classes[0], str) else np.int64
    piece.add("Gather", [piece.constant("label/classes", list(classes), dtype), codes], "label", axis=0)


def value_answers(piece: Piece, values: str, mean: float, scale: float) -> None:
    """Add ``prediction`` [rows] from ``values`` [rows, 1] in units of the standardised target."""
    if (mean, scale) != (0.0, 1.0):
        piece.add("Mul", [values, piece.constant("target/scale", scale, np.float32)], "target/scaled")
        piece.add("Add", ["target/scaled", piece.constant("target/mean", mean, np.float32)], values := "target/value")
    piece.add("Reshape", [values, piece.constant("target/shape", [-1], np.int64)], "prediction")


def assemble(
    name: str,
    pieces: Sequence[Piece],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    width: int | None = None,
    ir_version: int = IR_VERSION,
) -> bytes:
    """One checked model of all pieces, the same bytes for the same pieces. Raises EngineError when it is not valid.

    With ``width`` the type of FEATURES [rows, width] is written down: inference stops at the encoders of ai.onnx.ml
    before it.
    """
    known = [] if width is None else [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["rows", width])]
    opsets: dict[str, int] = {}
    for piece in pieces:
        for domain, version in piece.opsets.items():
            opsets[domain] = max(version, opsets.get(domain, 0))
    graph = helper.make_graph(
        [node for piece in pieces for node in piece.nodes],
        name,
        list(inputs),
        list(outputs),
        [constant for piece in pieces for constant in piece.constants],
        value_info=known,
    )
    imports = [helper.make_opsetid(domain, opsets[domain]) for domain in sorted(opsets)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version, producer_name="mlflowkit")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise EngineError(
            f"the graph is not valid ONNX: {str(error).splitlines()[0]}", hint="report this with the recipe"
        ) from error
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised
