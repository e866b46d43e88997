"""BF16: as FP16 with the range of FLOAT and three decimal digits. ONNX Runtime's CPU kernels hardly know it."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from mlflowkit.adapters.onnx_passes.calibration import Rows
from mlflowkit.adapters.onnx_passes.half_precision import convertible, narrowed, prepared, weights_read
from mlflowkit.adapters.onnx_passes.typed_graph import InapplicableError
from mlflowkit.graphs.candidates import BFloat16


def rewrite(settings: BFloat16, model: Any, calibration: Rows) -> Any:
    """``model`` in BF16. Raises InapplicableError when there are no weights to convert.

    Operators that ONNX does not define for BF16 at the graph's opset (Conv before 22) stay FLOAT.
    """
    del settings, calibration
    model = prepared(model)
    chosen = convertible(model, TensorProto.BFLOAT16)
    if not weights_read(model, chosen):
        raise InapplicableError("the graph has no weights of operators that can be computed in BF16")
    return narrowed(model, chosen, TensorProto.BFLOAT16, _rounded)


def _rounded(values: np.ndarray) -> np.ndarray:
    """float32 as bfloat16, to the nearest (to even where two are as near)."""
    return values.astype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
