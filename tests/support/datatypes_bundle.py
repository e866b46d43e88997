"""A bundle for every datatype: the graph answers its input as it came, beside the number of its rows' elements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from mlflowkit import bundle
from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.values import Lineage

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
VALUES: dict[str, list[list[Any]]] = {
    "BOOL": [[True, False], [False, True]],
    "INT8": [[-128, 127], [0, 1]],
    "INT16": [[-(2**15), 2**15 - 1], [0, 1]],
    "INT32": [[-(2**31), 2**31 - 1], [0, 1]],
    "INT64": [[-(2**63), 2**63 - 1], [0, 2**53 + 1]],
    "UINT8": [[0, 255], [1, 2]],
    "UINT16": [[0, 2**16 - 1], [1, 2]],
    "UINT32": [[0, 2**32 - 1], [1, 2]],
    "UINT64": [[0, 2**64 - 1], [1, 2**53 + 1]],
    "FP16": [[-65504.0, 65504.0], [0.5, 0.0999755859375]],
    "FP32": [[-3.4e38, 3.4e38], [0.5, 0.1]],
    "FP64": [[-1.7e308, 1.7e308], [0.5, 0.1]],
    "BYTES": [["", "é"], ["日本", "a\x00b"]],
}
"""Two rows of two elements, with the ends of each type's range."""


def echo(folder: Path) -> bundle.Bundle:
    """One graph with an input and an output of each datatype: [rows, 2], named after it."""
    nodes = [helper.make_node("Identity", [name.lower()], [f"{name.lower()}_echo"]) for name in ONNX_TYPES]
    graph = helper.make_graph(
        nodes,
        "echo",
        [helper.make_tensor_value_info(name.lower(), kind, [None, 2]) for name, kind in ONNX_TYPES.items()],
        [helper.make_tensor_value_info(f"{name.lower()}_echo", kind, [None, 2]) for name, kind in ONNX_TYPES.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    signature = Signature(
        task="regression",
        inputs=tuple(
            TensorSpec(name=name.lower(), datatype=name, shape=(-1, 2), columns=(f"{name}_a", f"{name}_b"))  # type: ignore[arg-type]
            for name in ONNX_TYPES
        ),
        outputs=tuple(
            TensorSpec(name=f"{name.lower()}_echo", datatype=name, shape=(-1, 2))  # type: ignore[arg-type]
            for name in ONNX_TYPES
        ),
    )
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    (folder / "signature.json").write_text(signature.model_dump_json())
    return bundle.write(
        folder, name="kinds", lineage=Lineage("", False, "", ""), policy="", run="", blessed=True, created=0.0
    )


def array(datatype: str) -> np.ndarray:
    """The values of a datatype as an array of it."""
    from mlflowkit.serving.protocol.json_tensors import DTYPES

    return np.array(VALUES[datatype], dtype=DTYPES[datatype])
