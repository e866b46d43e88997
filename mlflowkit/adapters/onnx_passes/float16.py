"""FP16: the network's weights and arithmetic; inputs, answers, preprocessing and labels keep their types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from mlflowkit.adapters.onnx_passes.calibration import Rows
from mlflowkit.adapters.onnx_passes.half_precision import convertible, narrowed, prepared, weights_read
from mlflowkit.adapters.onnx_passes.typed_graph import InapplicableError, quiet
from mlflowkit.graphs.candidates import Float16

LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
LOWEST_FLOAT = float(np.finfo(np.float32).min)
"""What exporters write for minus infinity in an attention mask; FP16's lowest does as well."""


def rewrite(settings: Float16, model: Any, calibration: Rows) -> Any:
    """``model`` in FP16. Raises InapplicableError when there are no weights to convert, or some lie beyond FP16.

    A single number beyond FP16 becomes its largest, and so does the lowest float in a mask; a number too small for it
    becomes its smallest, for a divisor must not become 0. Operators that ONNX Runtime's converter leaves alone for
    want of kernels stay FLOAT.
    """
    del settings, calibration
    model = prepared(model)
    with quiet():
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    chosen = convertible(model, TensorProto.FLOAT16, DEFAULT_OP_BLOCK_LIST)
    weights = weights_read(model, chosen)
    if not weights:
        raise InapplicableError("the graph has no weights of operators that can be computed in FP16")
    _require_range(weights)
    return narrowed(model, chosen, TensorProto.FLOAT16, _rounded)


def _rounded(values: np.ndarray) -> np.ndarray:
    """float32 as float16, saturated at both ends.

    >>> _rounded(np.array([1.5, 1e9, -1e-12, 0.0, -np.inf], np.float32)).tolist()
    [1.5, 65504.0, -5.960464477539063e-08, 0.0, -inf]
    """
    small = (values != 0) & (np.abs(values) < SMALLEST)
    values = np.where(np.isfinite(values), np.clip(values, -LARGEST, LARGEST), values)
    return np.where(small, np.copysign(SMALLEST, values), values).astype(np.float16)


def _require_range(weights: Sequence[Any]) -> None:
    """Raise InapplicableError for a weight that FP16 cannot hold."""
    for tensor in weights:
        values = numpy_helper.to_array(tensor)
        beyond = np.abs(values[(values != LOWEST_FLOAT) & np.isfinite(values)])
        if beyond.size and beyond.max() > LARGEST:
            raise InapplicableError(f"{tensor.name} holds {beyond.max():.6g}, and FP16 ends at {LARGEST:.0f}")
