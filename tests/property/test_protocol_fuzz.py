"""Whatever JSON arrives, the parser returns arrays of the signature's shapes and types, or refuses with a 4xx."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.serving.protocol.binary_tensors import binary_inputs, read_document, split_body
from mlflowkit.serving.protocol.http_error import RequestError
from mlflowkit.serving.protocol.input_schema import Query, Schema

SCHEMA = Schema(
    Signature(
        task="regression",
        inputs=(
            TensorSpec(name="numeric", datatype="FP32", shape=(-1, 2), columns=("a", "b")),
            TensorSpec(name="categorical", datatype="BYTES", shape=(-1, 1), columns=("c",)),
        ),
        outputs=(TensorSpec(name="prediction", datatype="FP32", shape=(-1,)),),
    ),
    {"c": frozenset({"x", "1"})},
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
NAMES = st.sampled_from(["numeric", "categorical", "a", "b", "c", "d"])
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": NAMES | VALUES,
        "shape": st.lists(st.integers(-2, 4), max_size=3) | VALUES,
        "datatype": st.sampled_from(["FP32", "FP64", "BYTES", "INT64", "BOOL"]) | VALUES,
        "parameters": VALUES,
        "data": st.lists(VALUES, max_size=8) | st.lists(st.floats(width=32, allow_nan=False), max_size=8) | VALUES,
    },
)
SHAPES = st.lists(st.integers(-2, 3), max_size=3)
TYPES = st.sampled_from(["FP32", "BYTES", "BF16", "BOOL", "INT8", "FP16"])
SIZED = st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 40) | VALUES}) | VALUES
OUTPUTS = st.lists(st.fixed_dictionaries({"name": st.just("prediction")}, optional={"parameters": VALUES})) | VALUES
ROWS = st.lists(st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4) | VALUES, max_size=3)


def encode(document: Any) -> bytes:
    import json

    return json.dumps(document, allow_nan=True).encode()


def check(door: Any, body: bytes) -> None:
    query: Query | None = None
    refusal: RequestError | None = None
    try:
        query = door(read_document(body), limit=50)
    except RequestError as error:
        refusal = error
    if query is None:
        assert refusal is not None
        assert 400 <= refusal.status < 500
        assert orjson.dumps({"error": refusal.message})
        return
    assert query.inputs["numeric"].shape == (query.rows, 2)
    assert query.inputs["numeric"].dtype == np.float32
    assert not np.isinf(query.inputs["numeric"]).any()
    assert query.inputs["categorical"].shape == (query.rows, 1)
    assert all(isinstance(cell, str) for cell in query.inputs["categorical"].flat)


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "inputs": st.lists(TENSORS, max_size=3) | VALUES,
            "id": VALUES,
            "outputs": OUTPUTS,
            "parameters": VALUES,
        },
    )
)
def test_infer_never_raises_anything_but_a_refusal(document: dict[str, Any]) -> None:
    check(SCHEMA.infer, encode(document))


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({}, optional={"rows": ROWS | VALUES, "id": VALUES}))
def test_rows_never_raise_anything_but_a_refusal(document: dict[str, Any]) -> None:
    check(SCHEMA.rows, encode(document))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_never_raise_anything_but_a_refusal(body: bytes) -> None:
    check(SCHEMA.infer, body)
    check(SCHEMA.rows, body)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries({"name": NAMES}, optional={"parameters": SIZED, "shape": SHAPES, "datatype": TYPES})
    ),
    st.binary(max_size=60),
    st.integers(-3, 3),
)
def test_bytes_of_tensors_never_raise_anything_but_a_refusal(inputs: list[Any], raw: bytes, shift: int) -> None:
    text = encode({"inputs": inputs})

    def door(body: Any, *, limit: int) -> Query:
        front, tail = split_body(text + raw, max(0, len(text) + shift))
        document = read_document(front)
        return SCHEMA.infer(document, limit=limit, raw=binary_inputs(document.get("inputs"), tail))

    check(door, b"{}")
