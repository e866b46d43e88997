"""Static INT8: both factors of the network's products as explicit Q/DQ pairs, with ranges from training rows.

Only products with constant weights (MatMul, Gemm, Conv); preprocessing and outputs are unchanged. Two forms:

tensorrt  symmetric INT8 activations and weights, bias and results in float: TensorRT rejects dynamic quantisation,
          unsigned or asymmetric activations, and quantised biases.
cpu       UINT8 activations with a zero point, as required by ONNX Runtime's fast x86 kernels; quantised bias, and
          quantised results of convolutions, which have no kernel otherwise. Operators between the products are
          rewritten for faster kernels (`join_gemms`, `sum_residuals`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
from onnx import TensorProto, helper

from mlflowkit.adapters.onnx_passes.calibration import Rows, check_rows, request_rows, run_requests, split_requests
from mlflowkit.adapters.onnx_passes.typed_graph import (
    FLOATS,
    PRODUCTS,
    PassNotApplicableError,
    copied,
    infer_types,
    initializers,
    join_gemms,
    normalize,
    open_session,
    set_nodes,
    silence_tools,
    sum_residuals,
    tensor_types,
    upgrade_opset,
    weighted_products,
)
from mlflowkit.errors import DataError, EngineError
from mlflowkit.graphs.candidates import Int8

FLOAT16_SCALES_OPSET = 19
"""First opset with Q/DQ between FP16 and INT8."""
PERCENTILE = 99.99
"""Percentage of an activation's values inside its range."""
BINS = {"entropy": 128, "percentile": 2048}
"""Histogram bins for the first request: ONNX Runtime's defaults per method."""
SENSITIVITY_REQUESTS = 1
"""Calibration requests that measure sensitivity; few, as the graph runs once per product."""
Ranges = dict[str, tuple[float, float]]
"""Lowest and highest value of activations by name."""


def rewrite(settings: Int8, model: Any, calibration: Rows) -> Any:
    """Quantise the products of ``model``, except for the ``settings.keep`` most sensitive.

    The first ``settings.rows`` rows of ``calibration`` determine the ranges. Raises PassNotApplicableError without
    products to quantise, DataError for rows that do not fit the graph.
    """
    model = normalize(model)
    if not weighted_products(model):
        raise PassNotApplicableError("the graph has no matrix product or convolution with constant weights to quantise")
    if any(tensor.data_type == TensorProto.FLOAT16 for tensor in initializers(model).values()):
        model = normalize(upgrade_opset(model, FLOAT16_SCALES_OPSET, "INT8 after FP16"))
    model = infer_types(model)
    if settings.form == "cpu":
        join_gemms(model)
        sum_residuals(model)
    products = weighted_products(model)
    names = [node.name for node in products]
    rows = check_rows(model, {name: matrix[: settings.rows] for name, matrix in calibration.items()})
    tensors = {node.input[0] for node in products}
    if settings.form == "cpu":
        tensors |= {node.output[0] for node in products if node.op_type == "Conv"}
    ranges = _activation_ranges(model, sorted(tensors), rows, settings.calibration)
    if settings.keep >= len(names):
        message = f"the graph has {len(names)} products and keep leaves {settings.keep} of them in float"
        raise PassNotApplicableError(message)
    if settings.keep:
        losses = _losses(model, _quantise(settings, model, names, ranges), names, rows)
        float_names = set(sorted(names, key=lambda name: -losses[name])[: settings.keep])
        names = [name for name in names if name not in float_names]
    return _quantise(settings, model, names, ranges)


def _activation_ranges(
    model: Any, names: list[str], rows: Rows, method: Literal["minmax", "entropy", "percentile"]
) -> Ranges:
    """The range of each of the tensors ``names`` over the calibration rows.

    minmax takes the extremes, percentile the interval that holds PERCENTILE of the values, entropy the interval with
    the smallest Kullback-Leibler divergence between real and quantised distribution (Migacz, "8-bit Inference with
    TensorRT", GTC 2017, as implemented by ONNX Runtime). Raises DataError for values that are not finite.
    """
    if method != "minmax":
        ranges = _histogram_ranges(model, names, rows, method)
    else:
        ranges = dict.fromkeys(names, (np.inf, -np.inf))
        for tensors in run_requests(model, rows, names):
            _require_finite(tensors)
            for name, values in tensors.items():
                low, high = ranges[name]
                ranges[name] = (min(low, float(values.min())), max(high, float(values.max())))
    _require_finite({name: np.asarray(pair) for name, pair in ranges.items()})
    return ranges


def _histogram_ranges(model: Any, names: list[str], rows: Rows, method: Literal["entropy", "percentile"]) -> Ranges:
    from onnxruntime.quantization.calibrate import HistogramCollector

    with silence_tools():
        collector = HistogramCollector(
            method=method, symmetric=method == "percentile", num_bins=BINS[method], num_quantized_bins=128,
            percentile=PERCENTILE, scenario="same",
        )  # fmt: skip
        for tensors in run_requests(model, rows, names):
            _require_finite(tensors)
            collector.collect({name: values.astype(np.float32, copy=False) for name, values in tensors.items()})
        thresholds = collector.compute_collection_result()
    pairs = {name: getattr(thresholds[name], "range_value", thresholds[name]) for name in names}
    return {name: (float(pair[0]), float(pair[1])) for name, pair in pairs.items()}


def _require_finite(tensors: Mapping[str, np.ndarray]) -> None:
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise DataError(
                f"calibration rows give values at {name} that are not finite",
                hint="calibrate with rows for which the model gives finite numbers, without NaN where it imputes none",
            )


def _quantise(settings: Int8, model: Any, names: Sequence[str], ranges: Ranges) -> Any:
    """A copy of ``model`` with the products ``names`` in INT8. Raises EngineError."""
    types = tensor_types(model)
    for_tensorrt = settings.form == "tensorrt"
    with silence_tools():
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        source = copied(model)
        helper.set_model_props(source, {"onnx.infer": "onnxruntime.quant"})  # skips type inference: types are set
        limits = {
            name: tuple(np.array(limit, helper.tensor_dtype_to_np_dtype(types[name])) for limit in pair)
            for name, pair in ranges.items()
        }
        quantizer = QDQQuantizer(
            source,
            settings.per_channel,
            False,  # reduce_range: for CPUs whose 8-bit products overflow 16 bits; useless for TensorRT
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
    quantised = quantizer.model.model
    _restore_float_inputs(quantised, model, names)
    chosen = set(names)
    dequantised = {node.output[0] for node in quantised.graph.node if node.op_type == "DequantizeLinear"}
    for node in quantised.graph.node:
        if node.name in chosen and not dequantised.issuperset(node.input[:2]):  # the quantiser only warns
            message = f"{node.op_type} {node.name} was quantised on one side only"
            raise EngineError(message, hint="leave this candidate out")
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(model.metadata_props)
    return quantised


def _restore_float_inputs(quantised: Any, model: Any, names: Sequence[str]) -> None:
    """Undo quantised inputs of nodes other than the products ``names``, except for results of convolutions.

    The quantiser redirects every reader of a tensor; residual connections and float products would lose accuracy for
    nothing. Convolution kernels give quantised results only.
    """
    quantised_names = set(names)
    before = {node.name: node for node in model.graph.node}
    convolved = {before[name].output[0] for name in names if before[name].op_type == "Conv"}
    for node in quantised.graph.node:
        if node.name in before and node.name not in quantised_names:
            for index, name in enumerate(before[node.name].input):
                if name not in convolved:
                    node.input[index] = name
    read = {name for node in quantised.graph.node for name in node.input}
    _add_missing_initializers(quantised, model, read)


def _add_missing_initializers(graph: Any, model: Any, read: set[str] | None = None) -> None:
    """Add ``model``'s initializers (only those in ``read``) that ``graph`` does not define; a bias is dequantised."""
    defined = {*initializers(graph), *(name for node in graph.graph.node for name in node.output)}
    constants = initializers(model)
    names = [name for name in constants if name not in defined and (read is None or name in read)]
    graph.graph.initializer.extend(constants[name] for name in names)


def _losses(model: Any, quantised: Any, names: Sequence[str], rows: Rows) -> dict[str, float]:
    """Mean absolute change of the float outputs of ``model`` for each product quantised alone; NaN counts as infinite.

    ``quantised`` is ``model`` with all products ``names`` in INT8.
    """
    session = open_session(_switchable_graph(model, quantised, names))
    output_names = [entry.name for entry in model.graph.output if entry.type.tensor_type.elem_type in FLOATS]

    def outputs(quantised_name: str) -> list[np.ndarray]:
        switches = {_switch(name): np.array(name == quantised_name) for name in names}
        requests = islice(split_requests(rows, request_rows(model)), SENSITIVITY_REQUESTS)
        results = (session.run(output_names, {**request, **switches}) for request in requests)
        return [array.astype(np.float64) for arrays in results for array in arrays]

    reference, loss = outputs(""), {}
    for name in names:
        differences = [np.abs(array - exact).mean() for array, exact in zip(outputs(name), reference, strict=True)]
        loss[name] = float(np.nan_to_num(np.mean(differences), nan=np.inf))
    return loss


def _switchable_graph(model: Any, quantised: Any, names: Sequence[str]) -> Any:
    """A graph with a boolean input per product that switches it between quantised and float factors.

    One graph for all products: loading one per product would take longer than running it.
    """
    factors = {node.name: list(node.input[:2]) for node in model.graph.node}
    graph, switched = copied(quantised), set(names)
    _add_missing_initializers(graph, model)
    nodes: list[Any] = []
    for node in graph.graph.node:
        if node.name in switched:
            for index, factor in enumerate(factors[node.name]):
                chosen = f"{node.name}/factor{index}"
                nodes.append(helper.make_node("Where", [_switch(node.name), node.input[index], factor], [chosen]))
                node.input[index] = chosen
        nodes.append(node)
    set_nodes(graph.graph, nodes)
    graph.graph.input.extend(helper.make_tensor_value_info(_switch(name), TensorProto.BOOL, []) for name in names)
    return graph


def _switch(name: str) -> str:
    return f"{name}/quantised"
