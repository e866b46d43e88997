"""FP16: the network's weights and arithmetic; inputs, outputs, preprocessing and labels keep their types."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from mlflowkit.adapters.onnx_passes.calibration import Rows
from mlflowkit.adapters.onnx_passes.half_precision import convert, convertible_nodes, float_weights
from mlflowkit.adapters.onnx_passes.typed_graph import PassNotApplicableError, infer_types, normalize, silence_tools
from mlflowkit.graphs.candidates import Float16

MAX_FLOAT16 = float(np.finfo(np.float16).max)
MIN_FLOAT16 = float(np.finfo(np.float16).smallest_subnormal)
LOWEST_FLOAT = float(np.finfo(np.float32).min)
"""Minus infinity in exported attention masks; FP16's lowest serves as well."""


def rewrite(settings: Float16, model: Any, calibration: Rows) -> Any:
    """Convert ``model`` to FP16. Raises PassNotApplicableError without weights to convert, or with too large ones.

    Scalars beyond FP16's range saturate, as does the lowest float in a mask; tiny numbers become FP16's smallest, so
    that no divisor becomes 0. Operators on the block list of ONNX Runtime's converter (no kernels) stay FLOAT.
    """
    del settings, calibration
    model = infer_types(normalize(model))
    with silence_tools():
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    convertible = convertible_nodes(model, TensorProto.FLOAT16, DEFAULT_OP_BLOCK_LIST)
    weights = float_weights(model, convertible)
    if not weights:
        raise PassNotApplicableError("the graph has no weights of operators that can be computed in FP16")
    for tensor in weights:
        values = numpy_helper.to_array(tensor)
        magnitudes = np.abs(values[(values != LOWEST_FLOAT) & np.isfinite(values)])
        if magnitudes.size and magnitudes.max() > MAX_FLOAT16:
            reason = f"{tensor.name} holds {magnitudes.max():.6g}, and FP16 ends at {MAX_FLOAT16:.0f}"
            raise PassNotApplicableError(reason)
    return convert(model, convertible, TensorProto.FLOAT16, _round_to_float16)


def _round_to_float16(values: np.ndarray) -> np.ndarray:
    """float32 as float16, saturated at both ends of its range.

    >>> _round_to_float16(np.array([1.5, 1e9, -1e-12, 0.0, -np.inf], np.float32)).tolist()
    [1.5, 65504.0, -5.960464477539063e-08, 0.0, -inf]
    """
    small = (values != 0) & (np.abs(values) < MIN_FLOAT16)
    values = np.where(np.isfinite(values), np.clip(values, -MAX_FLOAT16, MAX_FLOAT16), values)
    return np.where(small, np.copysign(MIN_FLOAT16, values), values).astype(np.float16)
