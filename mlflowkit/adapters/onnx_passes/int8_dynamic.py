"""Dynamic INT8: weights quantised now, activations by their range in each request. No TensorRT takes it."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper

from mlflowkit.adapters.onnx_passes.calibration import Rows
from mlflowkit.adapters.onnx_passes.typed_graph import (
    InapplicableError,
    first_line,
    normalised,
    products,
    quiet,
    split_gemms,
    typed,
    written,
)
from mlflowkit.errors import EngineError
from mlflowkit.graphs.candidates import Int8Dynamic


def rewrite(settings: Int8Dynamic, model: Any, calibration: Rows) -> Any:
    """``model`` with its linear layers in dynamic INT8 (onnxruntime.quantization.quantize_dynamic).

    Raises InapplicableError when there is none, EngineError when the quantiser fails. Convolutions stay in float: an
    integer one with weights of a sign has no kernel on x86.
    """
    del calibration
    model = normalised(model)
    split_gemms(model)
    chosen = [node.name for node in products(model) if node.op_type == "MatMul"]
    if not chosen:
        raise InapplicableError("the graph has no linear layer with constant weights to quantise")
    model = typed(model)
    types = list(model.graph.value_info)
    about = list(model.metadata_props)
    helper.set_model_props(model, {"onnx.infer": "onnxruntime.quant", "onnx.quant.pre_process": "onnxruntime.quant"})
    with quiet(), written(model) as source:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        target = source.with_name("quantised.onnx")
        try:
            quantize_dynamic(
                source,
                target,
                op_types_to_quantize=["MatMul"],
                nodes_to_quantize=chosen,
                per_channel=settings.per_channel,
                weight_type=QuantType.QInt8,
                use_external_data_format=source.with_name("model.onnx.data").exists(),
            )
        except Exception as error:
            raise EngineError(
                f"the graph cannot be quantised: {first_line(error)}", hint="leave this candidate out"
            ) from error
        quantised = onnx.load(target)
    del quantised.metadata_props[:], quantised.graph.value_info[:]
    quantised.metadata_props.extend(about)
    quantised.graph.value_info.extend(types)
    return quantised
