"""Block-wise quantised weights of 4 or 8 bits; activations and arithmetic in float."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlflowkit.adapters.onnx_passes.calibration import Rows
from mlflowkit.adapters.onnx_passes.typed_graph import (
    PassNotApplicableError,
    initializers,
    normalize,
    silence_tools,
    split_gemms,
    weighted_products,
)
from mlflowkit.graphs.candidates import WeightOnly


def rewrite(settings: WeightOnly, model: Any, calibration: Rows) -> Any:
    """Convert large linear layers to ONNX Runtime's MatMulNBits (round to nearest, symmetric).

    Raises PassNotApplicableError when no layer has ``settings.smallest`` weights.
    """
    del calibration
    model = normalize(model)
    split_gemms(model)
    sizes = {name: int(np.prod(tensor.dims)) for name, tensor in initializers(model).items() if len(tensor.dims) == 2}
    layers = [node for node in weighted_products(model) if node.op_type == "MatMul" and node.input[1] in sizes]
    chosen = {node.name for node in layers if sizes[node.input[1]] >= settings.smallest}
    if not chosen:
        largest = max((sizes[node.input[1]] for node in layers), default=0)
        note = f"; the largest has {largest}" if largest else ""
        raise PassNotApplicableError(f"no linear layer has {settings.smallest} weights or more{note}")
    with silence_tools():
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

        config = DefaultWeightOnlyQuantConfig(
            block_size=settings.block, is_symmetric=True, bits=settings.bits, op_types_to_quantize=("MatMul",)
        )
        excluded = [node.name for node in model.graph.node if node.name not in chosen]
        quantizer = MatMulNBitsQuantizer(model, nodes_to_exclude=excluded, algo_config=config)
        quantizer.process()
    return quantizer.model.model
