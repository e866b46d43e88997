"""BF16: as FP16, with the range of FLOAT and three decimal digits. Few of ONNX Runtime's CPU kernels support it."""

from __future__ import annotations

from typing import Any

from onnx import TensorProto, helper

from mlflowkit.adapters.onnx_passes.calibration import Rows
from mlflowkit.adapters.onnx_passes.half_precision import convert, convertible_nodes, float_weights
from mlflowkit.adapters.onnx_passes.typed_graph import PassNotApplicableError, infer_types, normalize
from mlflowkit.graphs.candidates import BFloat16


def rewrite(settings: BFloat16, model: Any, calibration: Rows) -> Any:
    """Convert ``model`` to BF16. Raises PassNotApplicableError when there are no weights to convert.

    Operators that ONNX does not define for BF16 at the graph's opset (Conv before 22) stay FLOAT.
    """
    del settings, calibration
    model = infer_types(normalize(model))
    convertible = convertible_nodes(model, TensorProto.BFLOAT16)
    if not float_weights(model, convertible):
        raise PassNotApplicableError("the graph has no weights of operators that can be computed in BF16")
    dtype = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)  # NumPy rounds to nearest even
    return convert(model, convertible, TensorProto.BFLOAT16, lambda values: values.astype(dtype))
