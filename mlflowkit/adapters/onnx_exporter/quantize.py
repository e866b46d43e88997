"""Static INT8 quantisation in the one form that TensorRT takes too: explicit, symmetric Q/DQ pairs.

TensorRT rejects dynamic quantisation, unsigned or asymmetric activations, and quantised biases. So: activations and
weights QInt8, symmetric both, bias left in float32, ranges fixed from real rows (MinMax), and only the products of the
network (MatMul, Gemm, Conv); preprocessing and answers stay as they are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from mlflowkit.adapters.onnx_exporter.graph import NETWORK
from mlflowkit.errors import EngineError

OPERATORS = ("MatMul", "Gemm", "Conv")
BATCH = 256
"""Rows of one calibration request."""


def quantize(model: Path, out: Path, calibration: Mapping[str, np.ndarray]) -> str:
    """Write a static INT8 copy of ``model`` to ``out``; returns "" or the reason why there is none.

    ``calibration`` holds rows of the training part by input name. Raises EngineError when ONNX Runtime's quantiser
    fails.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    graph = onnx.load(model)
    products = quantisable(graph)
    if not products:
        return "the graph has no matrix product or convolution to quantise"
    with tempfile.TemporaryDirectory(prefix="mlkit-int8-") as folder:
        prepared, written = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        _prepare(graph, prepared)
        onnxruntime.set_default_logger_severity(3)  # the calibrater's own sessions warn of what it does itself
        try:
            quantize_static(
                prepared,
                written,
                _Rows(calibration),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(OPERATORS),
                nodes_to_quantize=products,
                per_channel=False,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    "OpTypesToExcludeOutputQuantization": list(OPERATORS),
                },
            )
        except Exception as error:
            raise EngineError(
                f"{model.name} cannot be quantised: {(str(error).splitlines() or [''])[0]}",
                hint="leave onnx-int8 out of optimize.candidates",
            ) from error
        quantised = onnx.load(written)
    _require_pairs(quantised, products)
    out.write_bytes(_finished(quantised, graph))
    return ""


def quantisable(graph: Any) -> list[str]:
    """Names of the network's products that have constant weights."""
    constants = {constant.name for constant in graph.graph.initializer}
    return [
        node.name
        for node in graph.graph.node
        if node.op_type in OPERATORS and node.name.startswith(NETWORK) and constants.intersection(node.input)
    ]


def _require_pairs(graph: Any, products: Sequence[str]) -> None:
    """Raise EngineError unless both factors of each product arrive dequantised (the quantiser only warns)."""
    dequantised = {node.output[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.graph.node:
        if node.name in products and not dequantised.issuperset(node.input[:2]):
            raise EngineError(
                f"{node.op_type} {node.name} was quantised on one side only",
                hint="leave onnx-int8 out of optimize.candidates",
            )


class _Rows:
    """Calibration rows in batches, as ONNX Runtime's calibrater reads them."""

    def __init__(self, inputs: Mapping[str, np.ndarray]) -> None:
        rows = len(next(iter(inputs.values())))
        self._batches = iter(
            [
                {name: matrix[start : start + BATCH] for name, matrix in inputs.items()}
                for start in range(0, rows, BATCH)
            ]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def _prepare(graph: Any, path: Path) -> None:
    """Save the graph with inferred shapes and the quantiser's own mark that this was done (it warns without)."""
    inferred = onnx.shape_inference.infer_shapes(graph)
    onnx.helper.set_model_props(
        inferred, {"onnx.infer": "onnxruntime.quant", "onnx.quant.pre_process": "onnxruntime.quant"}
    )
    onnx.save(inferred, path)


def _finished(model: Any, original: Any) -> bytes:
    """The bytes of the graph without the quantiser's marks, with the types that the original writes down."""
    del model.metadata_props[:]
    del model.graph.value_info[:]
    model.graph.value_info.extend(original.graph.value_info)
    model.producer_name, model.producer_version = "mlflowkit", ""
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised
