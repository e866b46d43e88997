"""The quick way through an infer request says what the thorough one says, or leaves the request to it."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest

from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.serving.protocol.exact_tensors import ExactTensors
from mlflowkit.serving.protocol.http_error import RequestError
from mlflowkit.serving.protocol.input_schema import Schema

SIGNATURE = Signature(
    task="regression",
    inputs=(
        TensorSpec(name="numeric", datatype="FP32", shape=(-1, 2), columns=("a", "b")),
        TensorSpec(name="categorical", datatype="BYTES", shape=(-1, 1), columns=("c",)),
    ),
    outputs=(TensorSpec(name="prediction", datatype="FP32", shape=(-1,)),),
)
GOOD: list[dict[str, Any]] = [
    {"name": "numeric", "datatype": "FP32", "shape": [2, 2], "data": [1, 2.5, -3, 0.1]},
    {"name": "categorical", "datatype": "BYTES", "shape": [2, 1], "data": ["x", "é"]},
]
VALUES: dict[str, list[Any]] = {
    "name": ["numeric", "categorical", "other", None, ["numeric"], 1],
    "datatype": ["FP32", "FP64", "BYTES", "INT64", "BOOL", "fp32", None, 5],
    "shape": [
        [2, 2], [2, True], [2, 1], [2], [2.0, 2], [0, 2], [1, 2], [-2, -2], [True, 2], [], None, [2, 2, 1], [9, 9],
    ],
    "data": [
        [1, 2, 3, 4], [[1, 2], [3, 4]], [1, None, 3, 4], [True, 2, 3, 4], [3.4028235e38, 1e39, 0, 0],
        [10**400, 1, 1, 1],
        ["1", "2", "3", "4"], ["x", "y"], ["x", None], ["x", 1], [["x"], ["y"]], [1, 2], [], None, {}, "xy",
        [16777217, 1, 1, 1],
    ],
}  # fmt: skip


def outcome(schema: Schema, inputs: Any) -> Any:
    try:
        query = schema.infer({"inputs": copy.deepcopy(inputs)}, limit=4)
    except RequestError as error:
        return error.status, error.message
    arrays = {name: (str(array.dtype), array.shape, repr(array.tolist())) for name, array in query.inputs.items()}
    return query.rows, arrays


def variants() -> list[Any]:
    made: list[Any] = [GOOD, GOOD[::-1], GOOD[:1], GOOD + GOOD[:1], [*GOOD, {"name": "x"}], [GOOD[0], GOOD[0]], [1, 2]]
    for index, (key, values) in itertools.product((0, 1), VALUES.items()):
        for value in values:
            changed = copy.deepcopy(GOOD)
            changed[index][key] = value
            made.append(changed)
        less = copy.deepcopy(GOOD)
        del less[index][key]
        made.append(less)
    for shape in VALUES["shape"]:
        both = copy.deepcopy(GOOD)
        both[0] |= {"shape": shape, "data": [1.0]}
        made.append(both)
    return made


@pytest.mark.parametrize("inputs", variants(), ids=str)
def test_both_ways_agree(inputs: Any) -> None:
    schema, thorough = Schema(SIGNATURE), Schema(SIGNATURE)
    thorough._exact = ExactTensors([TensorSpec(name="numeric", datatype="FP64", shape=(-1, 2))])  # takes nothing
    assert outcome(schema, inputs) == outcome(thorough, inputs)


def test_the_quick_way_takes_the_usual_request() -> None:
    arrays = ExactTensors(SIGNATURE.inputs).parse(GOOD, 4)
    assert arrays is not None
    np.testing.assert_array_equal(arrays[0]["numeric"], np.array([[1, 2.5], [-3, 0.1]], np.float32))
    assert arrays[0]["categorical"].tolist() == [["x"], ["é"]]
