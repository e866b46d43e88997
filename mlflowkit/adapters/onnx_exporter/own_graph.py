"""Graphs of the user's own transformers, inside the exported graph."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, compose

from mlflowkit.adapters.onnx_exporter.graph_parts import GraphPart
from mlflowkit.features.numbers.own_transforms import OwnTransform


def own_numbers(part: GraphPart, numeric: str, transform: OwnTransform, name: str) -> str:
    """Add a transformer's graph from ``numeric``, float [rows, columns], to the returned tensor, float [rows, numbers];
    see `own_transforms.apply_transforms`."""
    columns = part.constant(f"{name}/columns", list(transform.columns), np.int64)
    part.add("Gather", [numeric, columns], f"{name}/chosen", axis=1)
    model = compose.add_prefix(onnx.load_from_string(transform.content), f"{name}/own/")
    part.add("Cast", [f"{name}/chosen"], model.graph.input[0].name, to=TensorProto.DOUBLE)
    part.nodes.extend(model.graph.node)
    part.constants.extend(model.graph.initializer)
    part.add("Cast", [model.graph.output[0].name], f"{name}/single", to=TensorProto.FLOAT)
    part.add("IsInf", [f"{name}/single"], f"{name}/infinite")
    missing = part.constant(f"{name}/missing", np.nan, np.float32)
    part.add("Where", [f"{name}/infinite", missing, f"{name}/single"], f"{name}/numbers")
    return f"{name}/numbers"
