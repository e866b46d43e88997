"""The quickest way through an infer request: tensors that are exactly as the signature has them.

Nearly every client sends whole tensors, with flat values of their own type and nothing missing. These are recognised in
one pass; anything else, right or wrong, is left to `input_schema`, which decides and explains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlflowkit.bundle import TensorSpec
from mlflowkit.serving.protocol.json_tensors import FP32_LIMIT

_INTEGERS, _TEXTS = {int}, {str}
_REALS: frozenset[type] = frozenset({float, int})


class ExactTensors:
    """The inputs of a signature, prepared for `parse`.

    >>> exact = ExactTensors([TensorSpec(name="x", datatype="FP32", shape=(-1, 2), columns=("a", "b"))])
    >>> exact.parse([{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2.5]}], 10)
    ({'x': array([[1. , 2.5]], dtype=float32)}, 1)
    >>> exact.parse([{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, None]}], 10) is None
    True
    """

    def __init__(self, inputs: Sequence[TensorSpec]) -> None:
        self._expected = {
            tensor.name: (tensor.datatype, list(tensor.shape[1:]), math.prod(tensor.shape[1:])) for tensor in inputs
        }
        self._possible = all(
            datatype in ("FP32", "BYTES") and -1 not in width for datatype, width, _ in self._expected.values()
        )

    def parse(self, tensors: Sequence[Any], limit: int) -> tuple[dict[str, np.ndarray], int] | None:
        """Arrays by name, and their rows; None for a request that is not of this kind."""
        expected = self._expected
        if not self._possible or len(tensors) != len(expected):
            return None
        inputs: dict[str, np.ndarray] = {}
        rows = 0
        for tensor in tensors:
            if type(tensor) is not dict:
                return None
            name = tensor.get("name")
            if type(name) is not str or name not in expected:
                return None
            datatype, width, size = expected[name]
            shape, data = tensor.get("shape"), tensor.get("data")
            if tensor.get("datatype") != datatype or type(shape) is not list or type(data) is not list:
                return None
            if not shape or shape[1:] != width or set(map(type, shape)) != _INTEGERS:
                return None
            if rows not in (0, shape[0]) or not 0 < shape[0] <= limit or len(data) != shape[0] * size:
                return None
            array = _flat_array(data, datatype)
            if array is None:
                return None
            rows = shape[0]
            inputs[name] = array.reshape(shape)
        return (inputs, rows) if len(inputs) == len(expected) else None


def _flat_array(data: list[Any], datatype: str) -> np.ndarray | None:
    """The values of a tensor, None where one of them is of another type, missing, or beyond FP32."""
    types = set(map(type, data))
    if datatype == "BYTES":
        return np.array(data, dtype=object) if types == _TEXTS else None
    if types and types <= _REALS and min(data) > -FP32_LIMIT and max(data) < FP32_LIMIT:
        return np.array(data, dtype=np.float32)
    return None
