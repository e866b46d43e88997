"""Every datatype of the protocol through a real graph: in JSON, in bytes, and over gRPC, there and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest

from mlflowkit.service_state.records import GatewaySettings
from mlflowkit.serving.grpc.message_codec import TYPED_CONTENT_FIELDS, messages
from mlflowkit.serving.protocol.binary_tensors import encode
from tests.support.datatypes_bundle import VALUES, array, echo
from tests.support.gateways import Grpc, InProcess
from tests.support.lending_bundle import table

PATH = "/v2/models/kinds/infer"


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    running = InProcess(GatewaySettings("kinds"))
    running.swap(table(1, echo(tmp_path_factory.mktemp("kinds") / "echo"), "kinds"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def grpc_kinds(kinds: InProcess) -> Iterator[Grpc]:
    with Grpc(kinds) as found:
        yield found


def in_json(name: str) -> dict[str, Any]:
    data = [value for row in VALUES[name] for value in row]
    return {"name": name.lower(), "shape": [2, 2], "datatype": name, "data": data}


def in_bytes(name: str) -> tuple[dict[str, Any], bytes]:
    raw = bytes(encode(array(name)))
    head = {"name": name.lower(), "shape": [2, 2], "datatype": name, "parameters": {"binary_data_size": len(raw)}}
    return head, raw


def decoded(raw: bytes, name: str) -> list[Any]:
    """What bytes hold, by the book: struct and NumPy, not the code under test."""
    if name != "BYTES":
        kind = {"BOOL": "?", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}.get(name)
        bits = "" if kind else str(int(name.lstrip("UINT")) // 8)
        return np.frombuffer(raw, kind or ("<u" if name.startswith("U") else "<i") + bits).reshape(2, 2).tolist()
    found = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        found.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    return [found[:2], found[2:]]


def parted(reply: Any) -> tuple[dict[str, Any], bytes]:
    length = int(reply.headers["inference-header-content-length"])
    assert reply.headers["content-type"] == "application/octet-stream"
    return orjson.loads(reply.content[:length]), reply.content[length:]


def test_all_of_them_at_once_in_json(kinds: InProcess) -> None:
    reply = kinds.client.post(PATH, content=orjson.dumps({"inputs": [in_json(name) for name in VALUES]}))
    assert reply.status_code == 200, reply.text
    for output in orjson.loads(reply.content)["outputs"]:
        name = output["datatype"]
        assert output["name"] == f"{name.lower()}_echo"
        found = np.array(output["data"], dtype=array(name).dtype).reshape(2, 2)
        np.testing.assert_array_equal(found, array(name), err_msg=name)


@pytest.mark.parametrize("pad", range(4))
def test_all_of_them_at_once_in_bytes_at_any_alignment(kinds: InProcess, pad: int) -> None:
    parts = [in_bytes(name) for name in VALUES]
    document = {"inputs": [head for head, _ in parts], "parameters": {"binary_data_output": True}}
    text = orjson.dumps(document) + b" " * pad
    body = text + b"".join(raw for _, raw in parts)
    reply = kinds.client.post(PATH, content=body, headers={"inference-header-content-length": str(len(text))})
    assert reply.status_code == 200, reply.text
    told, tail = parted(reply)
    for output in told["outputs"]:
        size = output["parameters"]["binary_data_size"]
        raw, tail = tail[:size], tail[size:]
        assert "data" not in output
        assert decoded(raw, output["datatype"]) == array(output["datatype"]).tolist()
    assert tail == b""


def test_outputs_are_sent_as_each_is_asked_for(kinds: InProcess) -> None:
    document = {
        "inputs": [in_json(name) for name in VALUES],
        "parameters": {"binary_data_output": True},
        "outputs": [
            {"name": "int8_echo", "parameters": {"binary_data": False}},
            {"name": "bytes_echo"},
            {"name": "fp16_echo", "parameters": {"binary_data": True}},
        ],
    }
    told, tail = parted(kinds.client.post(PATH, content=orjson.dumps(document)))
    assert [output["name"] for output in told["outputs"]] == ["int8_echo", "bytes_echo", "fp16_echo"]
    assert told["outputs"][0]["data"] == [-128, 127, 0, 1]
    sizes = [output["parameters"]["binary_data_size"] for output in told["outputs"][1:]]
    assert sum(sizes) == len(tail)
    assert decoded(tail[: sizes[0]], "BYTES") == VALUES["BYTES"]
    assert decoded(tail[sizes[0] :], "FP16") == array("FP16").tolist()


def test_all_of_them_over_grpc_raw_and_typed(grpc_kinds: Grpc) -> None:
    def tensor(name: str, contents: Any = None) -> Any:
        return messages().ModelInferRequest.InferInputTensor(
            name=name.lower(), datatype=name, shape=[2, 2], contents=contents
        )

    raw = messages().ModelInferRequest(
        model_name="kinds",
        inputs=[tensor(name) for name in VALUES],
        raw_input_contents=[bytes(encode(array(name))) for name in VALUES],
    )
    reply = grpc_kinds.ask("ModelInfer", raw)
    for output, found in zip(reply.outputs, reply.raw_output_contents, strict=True):
        assert decoded(found, output.datatype) == array(output.datatype).tolist()
    without_half = {name: rows for name, rows in VALUES.items() if name in TYPED_CONTENT_FIELDS}
    typed = messages().ModelInferRequest(model_name="kinds")
    for name, rows in without_half.items():
        values = [value.encode() if name == "BYTES" else value for row in rows for value in row]
        typed.inputs.append(tensor(name, {TYPED_CONTENT_FIELDS[name]: values}))
    error = grpc_kinds.refused("ModelInfer", typed)
    assert error == (
        "INVALID_ARGUMENT",
        "inputs: tensor fp16 is missing; expected " + ", ".join(map(str.lower, VALUES)),
    )
    half = messages().ModelInferRequest(model_name="kinds", inputs=[tensor("FP16", {"fp32_contents": [1, 2, 3, 4]})])
    assert "send raw_input_contents" in grpc_kinds.refused("ModelInfer", half)[1]


def columns(**changed: Any) -> list[dict[str, Any]]:
    """One tensor a column, in the columns' own datatypes but for those that are given as (datatype, values)."""
    found = []
    for name, rows in VALUES.items():
        for place, column in enumerate((f"{name}_a", f"{name}_b")):
            datatype, values = changed.get(column, (name, [row[place] for row in rows]))
            found.append({"name": column, "shape": [2], "datatype": datatype, "data": values})
    return found


@pytest.mark.parametrize(
    ("column", "datatype", "values", "expected"),
    [
        ("INT8_a", "INT64", [-128, 127], [-128, 127]),
        ("INT8_a", "FP64", [3.0, -4.0], [3, -4]),
        ("INT8_a", "BOOL", [True, False], [1, 0]),
        ("UINT64_a", "FP32", [2**63, 0], [2**63, 0]),
        ("FP32_a", "INT64", [7, None], None),
        ("FP32_a", "FP64", [0.1, 1e-60], [0.10000000149011612, 0.0]),
        ("FP16_a", "UINT8", [255, 0], [255.0, 0.0]),
        ("BOOL_a", "INT32", [1, 0], [True, False]),
    ],
)
def test_a_column_may_come_in_another_type_that_keeps_its_meaning(
    kinds: InProcess, column: str, datatype: str, values: list[Any], expected: list[Any] | None
) -> None:
    name = column.split("_")[0].lower()
    asked = {"inputs": columns(**{column: (datatype, values)}), "outputs": [{"name": f"{name}_echo"}]}
    reply = kinds.client.post(PATH, content=orjson.dumps(asked))
    if expected is None:  # a gap: the graph has no finite answer for it, and says so
        assert (reply.status_code, "row 1" in reply.text) == (422, True)
        return
    assert reply.status_code == 200, reply.text
    found = orjson.loads(reply.content)["outputs"][0]["data"][::2]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("column", "datatype", "values", "words"),
    [
        ("INT8_a", "INT64", [128, 0], "128 is no value of INT8"),
        ("INT8_a", "FP64", [0, 0.5], "value 1: 0.5 is no value of INT8"),
        ("INT8_a", "FP64", [0, None], "NaN is no value of INT8"),
        ("INT8_a", "UINT8", [256, 0], "256 is beyond the range of UINT8"),
        ("UINT8_a", "INT8", [-1, 0], "-1 is no value of UINT8"),
        ("INT64_a", "UINT64", [2**64 - 1, 0], "is no value of INT64"),
        ("UINT64_a", "FP64", [2.0**64, 0], "is no value of UINT64"),
        ("FP16_a", "FP32", [65520, 0], "is no value of FP16"),
        ("FP32_a", "FP64", [1e39, 0], "is no value of FP32"),
        ("BOOL_a", "INT8", [2, 0], "2 is no value of BOOL"),
        ("INT8_a", "BYTES", ["1", "2"], "INT8 is expected"),
        ("INT8_a", "BF17", [1, 2], "INT8 is expected"),
        ("INT8_a", None, [1, 2], "INT8 is expected"),
        ("BYTES_a", "INT8", [1, 200], "200 is beyond the range of INT8"),
        ("BOOL_a", "BOOL", [0.5, 0], "true or false is expected"),
        ("INT8_a", "INT8", [1.5, 0], "1.5 is no value of INT8"),
        ("INT8_a", "INT8", [True, 0], "a boolean"),
        ("INT8_a", "INT8", [None, 0], "null"),
        ("FP64_a", "FP64", ["1", 0], "a number or null is expected"),
    ],
)
def test_what_would_lose_its_meaning_is_refused_with_its_place(
    kinds: InProcess, column: str, datatype: Any, values: list[Any], words: str
) -> None:
    reply = kinds.client.post(PATH, content=orjson.dumps({"inputs": columns(**{column: (datatype, values)})}))
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert f"inputs[{column}]" in error
    assert words in error


def test_bf16_is_widened_where_a_column_takes_numbers(kinds: InProcess) -> None:
    asked = columns()
    place = next(index for index, tensor in enumerate(asked) if tensor["name"] == "FP32_a")
    raw = np.array([1.5, -2.25], dtype="<f4").view("<u2")[1::2].tobytes()
    asked[place] = {**asked[place], "datatype": "BF16", "parameters": {"binary_data_size": len(raw)}}
    del asked[place]["data"]
    text = orjson.dumps({"inputs": asked, "outputs": [{"name": "fp32_echo"}]})
    reply = kinds.client.post(PATH, content=text + raw, headers={"inference-header-content-length": str(len(text))})
    assert orjson.loads(reply.content)["outputs"][0]["data"][::2] == [1.5, -2.25]


def test_rows_take_every_type_too(kinds: InProcess) -> None:
    row = {f"{name}_{letter}": VALUES[name][0][place] for name in VALUES for place, letter in enumerate("ab")}
    reply = kinds.client.post("/predict", content=orjson.dumps({"rows": [row]}))
    assert reply.status_code == 200, reply.text
    (answer,) = orjson.loads(reply.content)["predictions"]
    for name in VALUES:
        assert answer[f"{name.lower()}_echo"] == pytest.approx(VALUES[name][0]), name
