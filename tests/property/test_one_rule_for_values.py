"""A value means the same at every door: rows, tensors in JSON, binary tensors, gRPC raw and typed."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.serving.grpc.message_codec import TYPED_CONTENT_FIELDS, messages, parse_message, to_document
from mlflowkit.serving.protocol.binary_tensors import binary_inputs, encode, read_document, split_body
from mlflowkit.serving.protocol.input_schema import Query, Schema
from mlflowkit.serving.protocol.json_tensors import DTYPES, FLOATING

KNOWN = frozenset({"1", "2", "3.0", "02116", "0.5", "true", "false", "rent", "NA"})
SCHEMA = Schema(
    Signature(
        task="regression",
        inputs=(TensorSpec(name="categorical", datatype="BYTES", shape=(-1, 1), columns=("code",)),),
        outputs=(TensorSpec(name="prediction", datatype="FP32", shape=(-1,)),),
    ),
    {"code": KNOWN},
)
NAMES = ("code", "categorical")
SIGNED = ("INT8", "INT16", "INT32", "INT64")


def datatypes(value: Any) -> Iterator[str]:
    """The datatypes that hold a value exactly, or as its shortest text."""
    if isinstance(value, str):
        yield "BYTES"
    elif isinstance(value, bool):
        yield "BOOL"
    elif isinstance(value, int):
        for name in DTYPES:
            if name.startswith(("INT", "UINT")):
                bounds = np.iinfo(DTYPES[name])
                if bounds.min <= value <= bounds.max:
                    yield name
        if abs(value) < 2**53:
            yield "FP64"
        if abs(value) < 2**24:
            yield "FP32"
    elif isinstance(value, float):
        yield "FP64"
        if abs(value) < 1e38 and float(str(np.float32(value))) == value:
            yield "FP32"
    else:
        yield from ("BYTES", "INT64", "BOOL", "FP32", "FP64")


def rows_door(value: Any, name: str, datatype: str) -> Query:
    return SCHEMA.rows(read_document(orjson.dumps({"rows": [{"code": value}]})), limit=9)


def json_door(value: Any, name: str, datatype: str) -> Query:
    shape = [1] if name == "code" else [1, 1]
    tensor = {"name": name, "datatype": datatype, "shape": shape, "data": [value]}
    return SCHEMA.infer(read_document(orjson.dumps({"inputs": [tensor]})), limit=9)


def raw_bytes(value: Any, datatype: str) -> bytes:
    if datatype == "BYTES":
        return bytes(encode(np.array([value or ""], dtype=object)))
    return bytes(encode(np.array([np.nan if value is None else value], dtype=DTYPES[datatype])))


def binary_door(value: Any, name: str, datatype: str) -> Query:
    raw, shape = raw_bytes(value, datatype), [1, 1]
    size = {"binary_data_size": len(raw)}
    front = orjson.dumps({"inputs": [{"name": name, "datatype": datatype, "shape": shape, "parameters": size}]})
    head, tail = split_body(front + raw, len(front))
    document = read_document(head)
    return SCHEMA.infer(document, limit=9, raw=binary_inputs(document["inputs"], tail))


def grpc_door(value: Any, name: str, datatype: str, *, typed: bool = False) -> Query:
    request = messages().ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name=name, datatype=datatype, shape=[1, 1])
    if typed:
        content = (value or "").encode() if datatype == "BYTES" else np.nan if value is None else value
        getattr(tensor.contents, TYPED_CONTENT_FIELDS[datatype]).append(content)
    else:
        request.raw_input_contents.append(raw_bytes(value, datatype))
    document, raw = to_document(parse_message("ModelInferRequest", request.SerializeToString()))
    return SCHEMA.infer(document, limit=9, raw=raw)


def typed_door(value: Any, name: str, datatype: str) -> Query:
    return grpc_door(value, name, datatype, typed=True)


DOORS: tuple[Callable[[Any, str, str], Query], ...] = (rows_door, json_door, binary_door, grpc_door, typed_door)
VALUES = (
    st.sampled_from(sorted(KNOWN))
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-5, 5).map(float)
    | st.none()
)


@settings(max_examples=400, deadline=None)
@given(VALUES)
def test_every_door_reads_the_same_category(value: Any) -> None:
    """Also INT64, BOOL and FP64 for a categorical column, and the answer tells the same about unknown ones."""
    plain = rows_door(value, "", "")
    (expected,) = plain.inputs["categorical"].ravel().tolist()
    for name in NAMES:
        for datatype in datatypes(value):
            for door in DOORS[1:]:
                if value is None and datatype not in FLOATING | {"BYTES"} and door is not json_door:
                    continue  # these bytes have no missing value
                query = door(value, name, datatype)
                assert query.inputs["categorical"].tolist() == [[expected]], (door.__name__, name, datatype)
                assert query.unseen == plain.unseen


@pytest.mark.parametrize(
    ("value", "category"),
    [
        (1, "1"), (1.0, "1"), ("1", "1"), (3, "3.0"), (3.0, "3.0"), (7, "7"), (7.0, "7"), (2116, "2116"),
        ("02116", "02116"), (0.5, "0.5"), (0.1, "0.1"), (True, "true"), (False, "false"), (None, ""), ("", ""),
        (2**53 + 1, "9007199254740993"), (-4, "-4"), ("1.0", "1.0"),
    ],
)  # fmt: skip
def test_the_category_of_a_value(value: Any, category: str) -> None:
    """A number is its text; another spelling only where the training data has that one and not the plain one."""
    query = rows_door(value, "", "")
    assert query.inputs["categorical"].tolist() == [[category]]
    assert query.unseen == ({} if category in KNOWN | {""} else {"code": 1})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | st.integers(-3, 3), min_size=1, max_size=6))
def test_null_in_an_integer_tensor_is_missing_and_the_request_is_not_changed(values: list[Any]) -> None:
    """A request is parsed again when a challenger fails: parsing leaves the document as it came."""
    tensor = {"name": "code", "datatype": "INT64", "shape": [len(values)], "data": list(values)}
    for _ in range(2):
        query = SCHEMA.infer({"inputs": [tensor]}, limit=9)
        texts = [rows_door(value, "", "").inputs["categorical"][0, 0] for value in values]
        assert query.inputs["categorical"].ravel().tolist() == texts
    assert tensor["data"] == values


def test_an_unseen_value_beside_seen_ones_in_a_batch() -> None:
    raw = struct.pack("<3q", 1, 77, 2)
    document = {"inputs": [{"name": "code", "datatype": "INT64", "shape": [3]}]}
    query = SCHEMA.infer(document, limit=9, raw={"code": raw})
    assert query.inputs["categorical"].ravel().tolist() == ["1", "77", "2"]
    assert query.unseen == {"code": 1}
