"""Ranges of activations from rows: their extremes, or where a histogram says that little is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mlflowkit.adapters.onnx_passes import calibration
from mlflowkit.adapters.onnx_passes.calibration import Rows
from mlflowkit.adapters.onnx_passes.typed_graph import quiet
from mlflowkit.errors import DataError

Method = Literal["minmax", "entropy", "percentile"]
PERCENTILE = 99.99
"""Share of an activation's values that its range holds, in percent."""
BINS = {"entropy": 128, "percentile": 2048}
"""Bins of the first request's histogram, ONNX Runtime's own choice for each method."""


def activation_ranges(model: Any, names: Sequence[str], rows: Rows, method: Method) -> dict[str, tuple[float, float]]:
    """The range (lowest, highest) of each tensor ``names`` of the graph over calibration rows.

    minmax takes the extremes; percentile the part that holds PERCENTILE of the values; entropy the part whose
    quantised distribution is nearest to the real one by Kullback-Leibler divergence (Migacz, "8-bit Inference with
    TensorRT", GTC 2017, as ONNX Runtime has it). Raises DataError where a value is not finite.
    """
    found = _extremes(model, list(names), rows) if method == "minmax" else _histograms(model, list(names), rows, method)
    for name, (low, high) in found.items():
        if not (np.isfinite(low) and np.isfinite(high)):
            raise _not_finite(name)
    return found


def _extremes(model: Any, names: list[str], rows: Rows) -> dict[str, tuple[float, float]]:
    found = dict.fromkeys(names, (np.inf, -np.inf))
    for tensors in calibration.run(model, rows, names):
        _require_finite(tensors)
        for name, values in tensors.items():
            low, high = found[name]
            found[name] = (min(low, float(values.min())), max(high, float(values.max())))
    return found


def _histograms(
    model: Any, names: list[str], rows: Rows, method: Literal["entropy", "percentile"]
) -> dict[str, tuple[float, float]]:
    from onnxruntime.quantization.calibrate import HistogramCollector

    with quiet():
        collector = HistogramCollector(
            method=method,
            symmetric=method == "percentile",
            num_bins=BINS[method],
            num_quantized_bins=128,
            percentile=PERCENTILE,
            scenario="same",
        )
        for tensors in calibration.run(model, rows, names):
            _require_finite(tensors)
            collector.collect({name: values.astype(np.float32, copy=False) for name, values in tensors.items()})
        thresholds = collector.compute_collection_result()
    return {name: _pair(thresholds[name]) for name in names}


def _pair(threshold: Any) -> tuple[float, float]:
    low, high = (threshold.range_value if hasattr(threshold, "range_value") else threshold)[:2]
    return float(low), float(high)


def _require_finite(tensors: Mapping[str, np.ndarray]) -> None:
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise _not_finite(name)


def _not_finite(name: str) -> DataError:
    return DataError(
        f"calibration rows give values at {name} that are not finite",
        hint="calibrate with rows that the model answers with finite numbers, without NaN where it fills no gaps",
    )
