"""Dynamic INT8: weights quantised ahead, activations by their range per request. Not supported by TensorRT."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper

from mlflowkit.adapters.onnx_passes.calibration import Rows
from mlflowkit.adapters.onnx_passes.typed_graph import (
    PassNotApplicableError,
    infer_types,
    normalize,
    silence_tools,
    split_gemms,
    temporary_file,
    weighted_products,
)
from mlflowkit.graphs.candidates import Int8Dynamic


def rewrite(settings: Int8Dynamic, model: Any, calibration: Rows) -> Any:
    """Convert linear layers to dynamic INT8 (onnxruntime.quantization.quantize_dynamic).

    Raises PassNotApplicableError without linear layers. Convolutions stay in float: ConvInteger with signed weights has
    no kernel on x86.
    """
    del calibration
    model = normalize(model)
    split_gemms(model)
    chosen = [node.name for node in weighted_products(model) if node.op_type == "MatMul"]
    if not chosen:
        raise PassNotApplicableError("the graph has no linear layer with constant weights to quantise")
    model = infer_types(model)
    types, metadata = list(model.graph.value_info), list(model.metadata_props)
    helper.set_model_props(model, {"onnx.infer": "onnxruntime.quant", "onnx.quant.pre_process": "onnxruntime.quant"})
    with silence_tools(), temporary_file(model) as source:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        target = source.with_name("quantised.onnx")
        quantize_dynamic(
            source, target, ["MatMul"], settings.per_channel, weight_type=QuantType.QInt8, nodes_to_quantize=chosen,
            use_external_data_format=source.with_name("model.onnx.data").exists(),
        )  # fmt: skip
        quantised = onnx.load(target)
    del quantised.metadata_props[:], quantised.graph.value_info[:]
    quantised.metadata_props.extend(metadata)
    quantised.graph.value_info.extend(types)
    return quantised
