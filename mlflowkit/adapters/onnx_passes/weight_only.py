"""Weights in 4 or 8 bits, each block with a scale of its own; activations and arithmetic in float."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlflowkit.adapters.onnx_passes.calibration import Rows
from mlflowkit.adapters.onnx_passes.typed_graph import (
    InapplicableError,
    constants,
    first_line,
    normalised,
    products,
    quiet,
    split_gemms,
)
from mlflowkit.errors import EngineError
from mlflowkit.graphs.candidates import WeightOnly


def rewrite(settings: WeightOnly, model: Any, calibration: Rows) -> Any:
    """``model`` with its large linear layers as ONNX Runtime's MatMulNBits (rounding to nearest, symmetric).

    Raises InapplicableError when no layer has ``settings.smallest`` weights, EngineError when the quantiser fails.
    """
    del calibration
    model = normalised(model)
    split_gemms(model)
    sizes = {name: int(np.prod(tensor.dims)) for name, tensor in constants(model).items() if len(tensor.dims) == 2}
    layers = [node for node in products(model) if node.op_type == "MatMul" and node.input[1] in sizes]
    chosen = {node.name for node in layers if sizes[node.input[1]] >= settings.smallest}
    if not chosen:
        largest = max((sizes[node.input[1]] for node in layers), default=0)
        raise InapplicableError(
            f"no linear layer has {settings.smallest} weights or more"
            + (f"; the largest has {largest}" if largest else "")
        )
    with quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            model,
            nodes_to_exclude=[node.name for node in model.graph.node if node.name not in chosen],
            algo_config=DefaultWeightOnlyQuantConfig(
                block_size=settings.block, is_symmetric=True, bits=settings.bits, op_types_to_quantize=("MatMul",)
            ),
        )
        try:
            quantizer.process()
        except Exception as error:
            raise EngineError(
                f"the graph's weights cannot be quantised: {first_line(error)}", hint="leave this candidate out"
            ) from error
    return quantizer.model.model
