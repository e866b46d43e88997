"""Static INT8: both factors of the network's products as explicit Q/DQ pairs, ranges from training rows.

Only products with constant weights (MatMul, Gemm, Conv); preprocessing and answers stay as they are. Two forms:

tensorrt  activations and weights INT8, symmetric both, bias and what comes out in float: TensorRT rejects dynamic
          quantisation, unsigned or asymmetric activations, and quantised biases.
cpu       activations UINT8 with a zero point, as ONNX Runtime's kernels on x86 want them; bias quantised too, and what
          comes out of a convolution, for there is no kernel without. What lies between the products is written as its
          faster kernels want it (`join_gemms`, `sum_residuals`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from mlflowkit.adapters.onnx_passes import sensitivity
from mlflowkit.adapters.onnx_passes.calibration import Rows, verified
from mlflowkit.adapters.onnx_passes.ranges import activation_ranges
from mlflowkit.adapters.onnx_passes.typed_graph import (
    PRODUCTS,
    InapplicableError,
    constants,
    copied,
    first_line,
    join_gemms,
    lifted,
    normalised,
    products,
    quiet,
    sum_residuals,
    typed,
    types_of,
)
from mlflowkit.errors import EngineError
from mlflowkit.graphs.candidates import Int8

FLOAT16_SCALES = 19
"""The first opset whose Q/DQ pairs can be between FP16 and INT8."""
Ranges = Mapping[str, tuple[float, float]]


def rewrite(settings: Int8, model: Any, calibration: Rows) -> Any:
    """``model`` with its products in INT8, but for the ``settings.keep`` most sensitive.

    The first ``settings.rows`` rows of ``calibration`` fix the ranges. Raises InapplicableError when there is no
    product to quantise, DataError for rows that the graph does not take, EngineError when the quantiser fails.
    """
    model = normalised(model)
    if not products(model):
        raise InapplicableError("the graph has no matrix product or convolution with constant weights to quantise")
    if any(tensor.data_type == TensorProto.FLOAT16 for tensor in constants(model).values()):
        model = normalised(lifted(model, FLOAT16_SCALES, "INT8 after FP16"))
    model = typed(model)
    if settings.form == "cpu":
        join_gemms(model)
        sum_residuals(model)
    chosen = products(model)
    rows = verified(model, {name: matrix[: settings.rows] for name, matrix in calibration.items()})
    needed = {node.input[0] for node in chosen}
    if settings.form == "cpu":
        needed |= {node.output[0] for node in chosen if node.op_type == "Conv"}
    ranges = activation_ranges(model, sorted(needed), rows, settings.calibration)

    def quantise(names: Sequence[str]) -> Any:
        return _quantised(settings, model, names, ranges)

    names = [node.name for node in chosen]
    if settings.keep >= len(names):
        raise InapplicableError(f"the graph has {len(names)} products and keep leaves {settings.keep} of them in float")
    if settings.keep:
        losses = sensitivity.losses(model, quantise(names), names, rows)
        kept = set(sorted(names, key=lambda name: -losses[name])[: settings.keep])
        names = [name for name in names if name not in kept]
    return quantise(names)


def _quantised(settings: Int8, model: Any, names: Sequence[str], ranges: Ranges) -> Any:
    """A copy of ``model`` with the products ``names`` in INT8. Raises EngineError."""
    types = types_of(model)
    for_tensorrt = settings.form == "tensorrt"
    with quiet():
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        marked = copied(model)
        helper.set_model_props(marked, {"onnx.infer": "onnxruntime.quant"})  # types are there: it need not find them
        limits = {
            name: tuple(np.array(limit, helper.tensor_dtype_to_np_dtype(types[name])) for limit in pair)
            for name, pair in ranges.items()
        }
        try:
            quantizer = QDQQuantizer(
                marked,
                settings.per_channel,
                False,  # reduce_range: for CPUs whose 8-bit products overflow 16 bits; TensorRT has no use for it
                QuantType.QInt8,
                QuantType.QInt8 if for_tensorrt else QuantType.QUInt8,
                TensorsData(CalibrationMethod.MinMax, limits),
                list(names),
                [],
                list(PRODUCTS),
                {
                    "ActivationSymmetric": for_tensorrt,
                    "WeightSymmetric": True,
                    "QuantizeBias": not for_tensorrt,
                    "OpTypesToExcludeOutputQuantization": list(PRODUCTS) if for_tensorrt else ["MatMul", "Gemm"],
                },
            )
            quantizer.quantize_model()
        except Exception as error:
            raise EngineError(
                f"the graph cannot be quantised: {first_line(error)}", hint="leave this candidate out"
            ) from error
    quantised = quantizer.model.model
    _spare_others(quantised, model, names)
    _require_pairs(quantised, names)
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(model.metadata_props)
    return quantised


def _spare_others(quantised: Any, model: Any, names: Sequence[str]) -> None:
    """Let nodes other than the products ``names`` read floats as before: the quantiser gives them quantised ones too.

    A residual connection and a product that is kept would lose for nothing. What reads a convolution's quantised
    answers goes on doing so: its kernel gives no others.
    """
    wanted = set(names)
    before = {node.name: node for node in model.graph.node}
    convolved = {before[name].output[0] for name in names if before[name].op_type == "Conv"}
    for node in quantised.graph.node:
        if node.name in before and node.name not in wanted:
            for place, name in enumerate(before[node.name].input):
                if name not in convolved:
                    node.input[place] = name
    read = {name for node in quantised.graph.node for name in node.input}
    known = {*constants(quantised), *(name for node in quantised.graph.node for name in node.output)}
    lost = [tensor for name, tensor in constants(model).items() if name in read and name not in known]
    quantised.graph.initializer.extend(lost)


def _require_pairs(model: Any, names: Sequence[str]) -> None:
    """Raise EngineError unless both factors of each product arrive dequantised (the quantiser only warns)."""
    dequantised = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    wanted = set(names)
    for node in model.graph.node:
        if node.name in wanted and not dequantised.issuperset(node.input[:2]):
            raise EngineError(
                f"{node.op_type} {node.name} was quantised on one side only", hint="leave this candidate out"
            )
