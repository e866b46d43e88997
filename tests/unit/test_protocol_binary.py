"""Bytes of tensors: what is cut short, left over, or said wrongly is refused with its place; nothing is read beyond."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import orjson
import pytest

from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.serving.protocol.binary_tensors import (
    binary_inputs,
    encode,
    parse_json_length,
    read_document,
    split_body,
)
from mlflowkit.serving.protocol.http_error import RequestError
from mlflowkit.serving.protocol.input_schema import Schema
from mlflowkit.serving.protocol.responses import render_infer

SCHEMA = Schema(
    Signature(
        task="classification",
        inputs=(
            TensorSpec(name="numeric", datatype="FP32", shape=(-1, 2), columns=("age", "income")),
            TensorSpec(name="categorical", datatype="BYTES", shape=(-1, 1), columns=("term",)),
        ),
        outputs=(
            TensorSpec(name="label", datatype="BYTES", shape=(-1,)),
            TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 2)),
        ),
        classes=("bad", "good"),
    )
)
NUMBERS = np.array([[1, 2], [3, np.nan]], dtype="<f4").tobytes()
TEXTS = b"\x02\x00\x00\x00ab\x00\x00\x00\x00"
ANY: Any = object()


def tensor(name: str, raw: bytes, size: Any = ANY, **more: Any) -> dict[str, Any]:
    datatype, shape = ("FP32", [2, 2]) if name == "numeric" else ("BYTES", [2, 1])
    parameters = {"binary_data_size": len(raw) if size is ANY else size}
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters, **more}


def ask(inputs: list[Any], *raw: bytes, cut: int = 0, **more: Any) -> Any:
    text = json.dumps({"inputs": inputs, **more}).encode()
    front, tail = split_body(text + b"".join(raw), len(text) + cut)
    document = read_document(front)
    return SCHEMA.infer(document, limit=100, raw=binary_inputs(document.get("inputs"), tail))


def both(numbers: bytes = NUMBERS, texts: bytes = TEXTS, **more: Any) -> Any:
    return ask([tensor("numeric", numbers), tensor("categorical", texts)], numbers, texts, **more)


def test_bytes_are_the_same_arrays_as_json() -> None:
    query = both()
    plain = SCHEMA.infer(
        {
            "inputs": [
                {"name": "numeric", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, None]},
                {"name": "categorical", "shape": [2, 1], "datatype": "BYTES", "data": ["ab", None]},
            ]
        },
        limit=100,
    )
    np.testing.assert_array_equal(query.inputs["numeric"], plain.inputs["numeric"])
    assert query.inputs["categorical"].tolist() == plain.inputs["categorical"].tolist() == [["ab"], [""]]


def test_json_and_bytes_may_be_mixed() -> None:
    given = {"name": "categorical", "shape": [2, 1], "datatype": "BYTES", "data": ["x", "y"]}
    query = ask([given, tensor("numeric", NUMBERS)], NUMBERS)
    assert query.inputs["categorical"].tolist() == [["x"], ["y"]]
    assert query.inputs["numeric"][0].tolist() == [1, 2]


def test_large_numeric_tensors_are_not_copied() -> None:
    values = np.arange(2000, dtype="<f4")
    text = orjson.dumps({"inputs": []})
    body = bytearray(b" " * (-len(text) % 8) + text + values.tobytes())
    _, tail = split_body(body, len(body) - values.nbytes)
    document = {
        "inputs": [
            {"name": "numeric", "shape": [1000, 2], "datatype": "FP32"},
            {"name": "categorical", "shape": [1000, 1], "datatype": "BYTES", "data": ["a"] * 1000},
        ]
    }
    query = SCHEMA.infer(document, limit=1000, raw={"numeric": tail})
    assert np.shares_memory(query.inputs["numeric"], np.frombuffer(body, np.uint8))


@pytest.mark.parametrize("value", [b"", b"-1", b"+5", b"1.0", b"0x10", b" 5", b"5 ", b"1e3", b"9" * 40, b"\xb2"])
def test_a_header_that_is_no_length_is_refused(value: bytes) -> None:
    with pytest.raises(RequestError, match="inference-header-content-length") as refusal:
        parse_json_length(value)
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (15, "1 bytes follow the last tensor"),
        (17, "binary_data_size 17; 16 bytes are left"),
        (-1, "binary_data_size -1"),
        (10**18, "16 bytes are left"),
        (2**70, "binary_data_size"),
        (16.0, "binary_data_size 16.0"),
        (True, "binary_data_size true"),
        ("16", 'binary_data_size "16"'),
        (None, "binary_data_size null"),
        ([16], "binary_data_size [16]"),
    ],
)
def test_a_size_that_does_not_fit_is_refused(size: Any, words: str) -> None:
    with pytest.raises(RequestError) as refusal:
        ask([tensor("numeric", NUMBERS, size)], NUMBERS)
    assert refusal.value.status == 400
    assert words in refusal.value.message


@pytest.mark.parametrize(("cut", "words"), [(1, "goes on after its JSON"), (-1, "not JSON"), (10_000, "the body has")])
def test_a_wrong_header_length_is_refused(cut: int, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        both(cut=cut)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (NUMBERS[:-1], "15 bytes; shape [2,2] of FP32 needs 16"),
        (NUMBERS + b"\x00", "17 bytes; shape [2,2] of FP32 needs 16"),
        (b"", "0 bytes; shape [2,2] of FP32 needs 16"),
        (np.array([1, np.inf, 0, 0], "<f4").tobytes(), "value 1: an infinity"),
        (np.array([1, 2, -np.inf, 0], "<f4").tobytes(), "value 2: an infinity"),
    ],
)
def test_bytes_that_are_not_the_shape_are_refused(numbers: bytes, words: str) -> None:
    with pytest.raises(RequestError) as refusal:
        both(numbers)
    assert "inputs[numeric]" in refusal.value.message
    assert words in refusal.value.message


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (b"", "0 bytes; shape [2,1] of BYTES needs at least 8"),
        (TEXTS[:-1], "value 1: 3 bytes are left; its length has four"),
        (TEXTS + b"\x00", "1 bytes are left after its last element"),
        (TEXTS + TEXTS, "10 bytes are left after its last element"),
        (b"\xff\xff\xff\xff\x00\x00\x00\x00", "value 0: its length is 4294967295 bytes; 4 are left"),
        (b"\x05\x00\x00\x00ab\x00\x00", "value 0: its length is 5 bytes; 4 are left"),
        (b"\x04\x00\x00\x00abcd", "value 1: 0 bytes are left"),
        (b"\x01\x00\x00\x00\xff\x00\x00\x00\x00", "value 0: its bytes are not UTF-8"),
    ],
)
def test_texts_that_are_cut_or_left_over_are_refused_with_their_place(texts: bytes, words: str) -> None:
    with pytest.raises(RequestError) as refusal:
        both(texts=texts)
    assert refusal.value.status == 400
    assert "inputs[categorical]" in refusal.value.message
    assert words in refusal.value.message


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"parameters": []}, "parameters must be an object"),
        ({"parameters": {"binary_data_output": 1}}, "binary_data_output 1; true or false"),
        ({"outputs": [{"name": "label", "parameters": {"binary_data": "yes"}}]}, 'outputs[0]: binary_data "yes"'),
        ({"outputs": [{"name": "label", "parameters": {"classification": 3}}]}, "label has no values by class"),
        (
            {"outputs": [{"name": "label", "parameters": {"shared_memory_region": "x"}}]},
            "shared memory is not supported",
        ),
    ],
)
def test_parameters_that_cannot_be_honoured_are_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as refusal:
        both(**more)
    assert words in refusal.value.message


def test_data_twice_and_shared_memory_are_refused() -> None:
    with pytest.raises(RequestError, match="both data and binary_data_size"):
        ask([tensor("numeric", NUMBERS, data=[1, 2, 3, 4])], NUMBERS)
    shared = {"name": "numeric", "datatype": "FP32", "shape": [2, 2], "parameters": {"shared_memory_region": "r"}}
    with pytest.raises(RequestError, match="shared memory is not supported"):
        ask([shared])


def test_a_reply_has_its_bytes_in_the_order_of_its_outputs() -> None:
    answers = {"label": np.array(["good", "é"], object), "probabilities": np.array([[0.25, 0.75], [1, 0]], np.float32)}
    query = both(outputs=[{"name": "probabilities"}, {"name": "label"}], parameters={"binary_data_output": True})
    body, headers = render_infer(SCHEMA, query, answers, model="m", version="v", id="q")
    length = int(dict(headers)[b"inference-header-content-length"])
    told = orjson.loads(body[:length])
    assert told["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}},
        {"name": "label", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 14}},
    ]
    assert body[length : length + 16] == struct.pack("<4f", 0.25, 0.75, 1, 0)
    assert body[length + 16 :] == b"\x04\x00\x00\x00good\x02\x00\x00\x00\xc3\xa9"


def test_arrays_that_are_not_contiguous_or_not_little_endian_are_sent_in_order() -> None:
    whole = np.arange(6, dtype=">i2").reshape(2, 3)
    assert bytes(encode(whole.T)) == struct.pack("<6h", 0, 3, 1, 4, 2, 5)
    assert bytes(encode(np.zeros((0, 2), np.float32))) == b""
