"""Tensors as bytes: the binary tensor data extension of REST, and the raw contents of gRPC.

Elements are little-endian, row-major, without padding. BOOL is one byte, 1 or 0; an element of BYTES is four bytes of
length (unsigned) and then as many bytes, here UTF-8, since a column holds text. A large numeric tensor is not copied:
its array is a view of the request's body where that is aligned (see `request_body`).

In a REST body the JSON object comes first, as long as ``Inference-Header-Content-Length`` says, then the bytes of
each input that has ``binary_data_size``, in the order of the inputs. Everything must fit exactly.

Sources: Triton Inference Server, "Binary Tensor Data Extension"; grpc_service.proto.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from mlflowkit.serving.protocol.http_error import bad_request, json_type, short_json
from mlflowkit.serving.protocol.json_tensors import DTYPES, ValueLocation

Buffer = bytes | bytearray | memoryview
_LENGTH = struct.Struct("<I")
ALIGNMENT = 8
_WIRE: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(dtype).newbyteorder("<") for name, dtype in DTYPES.items() if name not in ("BYTES", "BF16")
}
JSON_LENGTH_HEADER = b"inference-header-content-length"
_EXPLAINED_BYTES = 1 << 20
"""How much of a body that is no JSON is read again for a better message."""


def parse_json_length(value: bytes) -> int:
    """The length of the JSON part, from the header. Raises RequestError.

    >>> parse_json_length(b"17")
    17
    """
    if not value.isdigit() or len(value) > 12:
        shown = value[:40].decode("latin-1")
        raise bad_request(f"{JSON_LENGTH_HEADER.decode()}: {shown!r}; the length of the JSON part in bytes is expected")
    return int(value)


def split_body(body: Buffer, length: int) -> tuple[memoryview, memoryview]:
    """The JSON part of a body and the rest. Raises RequestError when the body is shorter than its JSON part."""
    if length > len(body):
        raise bad_request(f"{JSON_LENGTH_HEADER.decode()}: {length}; the body has {len(body)} bytes")
    view = memoryview(body)
    return view[:length], view[length:]


def read_document(body: Buffer) -> dict[str, Any]:
    """Parse a body, or the JSON part of one, that must be an object. Raises RequestError."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(_explain_not_json(bytes(body), error)) from error
    if type(document) is not dict:
        raise bad_request(f"the body must be a JSON object, found {json_type(document)}")
    return document


def _explain_not_json(body: bytes, error: orjson.JSONDecodeError) -> str:
    """Why a body is no JSON, with what to send instead where it is a known mistake."""
    text = body[:_EXPLAINED_BYTES].decode("latin-1")
    try:
        _, end = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(text, len(text) - len(text.lstrip()))
    except _ConstantError as constant:
        return f"{constant} is no JSON: send a finite number, or null for a missing value"
    except (ValueError, RecursionError):
        return f"the body is not JSON: {error}"
    if len(body) > end:
        return (
            f"the body goes on after its JSON, which ends at byte {end}: one document is expected, and where binary "
            "tensors follow it the header Inference-Header-Content-Length, which is missing or wrong"
        )
    return f"the body is not JSON: {error}"


class _ConstantError(Exception):
    """A number of Python's or JavaScript's that JSON does not have."""


def _refuse_constant(name: str) -> Any:
    raise _ConstantError(name)


def binary_inputs(inputs: Any, tail: memoryview) -> dict[str, memoryview]:
    """The bytes of each binary input by name; together they must be exactly ``tail``. Raises RequestError.

    ``inputs`` is that value of the JSON part, unvalidated; `Schema` refuses a tensor without a name.
    """
    buffers: dict[str, memoryview] = {}
    begin = 0
    for index, tensor in enumerate(inputs if type(inputs) is list else ()):
        size = _binary_size(tensor, index)
        if size is None:
            continue
        left = len(tail) - begin
        if size > left:
            name = _display_name(tensor, index)
            raise bad_request(f"inputs[{name}]: binary_data_size {size}; {left} bytes are left in the body")
        if type(tensor.get("name")) is str:
            buffers[tensor["name"]] = tail[begin : begin + size]
        begin += size
    if begin != len(tail):
        header, left = JSON_LENGTH_HEADER.decode(), len(tail) - begin
        raise bad_request(f"{left} bytes follow the last tensor: see {header}, binary_data_size")
    return buffers


def _binary_size(tensor: Any, index: int) -> int | None:
    """``binary_data_size`` of an unvalidated tensor; None when it has none. Raises RequestError."""
    parameters = tensor.get("parameters") if type(tensor) is dict else None
    if type(parameters) is not dict or "binary_data_size" not in parameters:
        return None
    size, where = parameters["binary_data_size"], f"inputs[{_display_name(tensor, index)}]"
    if type(size) is not int or size < 0:
        raise bad_request(f"{where}: binary_data_size {short_json(size)}; a number of bytes is expected")
    if "data" in tensor:
        raise bad_request(f"{where}: both data and binary_data_size are given; one of them is expected")
    return size


def _display_name(tensor: Mapping[str, Any], index: int) -> str:
    name = tensor.get("name")
    return name[:80] if type(name) is str else str(index)


def decode(raw: Buffer, datatype: str, shape: Sequence[int], name: str, locate: ValueLocation) -> np.ndarray:
    """The flat array in ``raw``. Raises RequestError unless it holds exactly the elements of the shape.

    An infinity is refused, like a JSON number beyond its datatype's range; NaN is a missing value.

    >>> decode(b"\\x00\\x00\\x80?", "FP32", [1], "x", str)
    array([1.], dtype=float32)
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        return _decode_texts(raw, count, name, shape, locate)
    width = 2 if datatype == "BF16" else _WIRE[datatype].itemsize
    if len(raw) != count * width:
        needed = f"shape {short_json(list(shape))} of {datatype} needs {count * width}"
        raise bad_request(f"inputs[{name}]: {len(raw)} bytes; {needed}")
    if datatype == "BF16":
        array = (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    elif datatype == "BOOL":
        values = np.frombuffer(raw, dtype=np.uint8)
        if (values > 1).any():
            index = int(np.argmax(values > 1))
            raise bad_request(f"{locate(index)}: byte {values[index]}; BOOL is 0 or 1")
        array = values.view(np.bool_)
    else:
        array = np.frombuffer(raw, dtype=_WIRE[datatype])
        if not array.flags.aligned:
            array = array.copy()
    if array.dtype.kind == "f" and (wrong := np.isinf(array)).any():
        raise bad_request(f"{locate(int(np.argmax(wrong)))}: an infinity; a finite number or NaN is expected")
    return array


def _decode_texts(raw: Buffer, count: int, name: str, shape: Sequence[int], locate: ValueLocation) -> np.ndarray:
    if len(raw) < 4 * count:
        needed = f"shape {short_json(list(shape))} of BYTES needs at least {4 * count}"
        raise bad_request(f"inputs[{name}]: {len(raw)} bytes; {needed}")
    data, end = bytes(raw), len(raw)
    texts: list[str] = []
    begin = 0
    read_length = _LENGTH.unpack_from
    try:
        for _ in range(count):
            first = begin + 4
            begin = first + read_length(data, begin)[0]
            if begin > end:
                raise bad_request(f"{locate(len(texts))}: its length is {begin - first} bytes; {end - first} are left")
            texts.append(data[first:begin].decode())
    except UnicodeDecodeError as error:
        raise bad_request(f"{locate(len(texts))}: its bytes are not UTF-8 ({error.reason})") from error
    except struct.error as error:
        raise bad_request(f"{locate(len(texts))}: {end - begin} bytes are left; its length has four") from error
    if begin != end:
        raise bad_request(f"inputs[{name}]: {end - begin} bytes are left after its last element")
    return np.array(texts, dtype=object)


def encode(array: np.ndarray) -> bytes | memoryview:
    """An array's bytes on the wire; a contiguous numeric array is not copied.

    >>> encode(np.array(["a", "é"], dtype=object))
    b'\\x01\\x00\\x00\\x00a\\x02\\x00\\x00\\x00\\xc3\\xa9'
    """
    if array.dtype == object:
        parts: list[bytes] = []
        for value in array.ravel().tolist():
            text = value if isinstance(value, bytes) else str(value).encode()
            parts += (_LENGTH.pack(len(text)), text)
        return b"".join(parts)
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return little.data.cast("B") if little.ndim and little.size else little.tobytes()


def boolean_parameter(parameters: Any, name: str, where: str) -> bool | None:
    """A boolean parameter; None when absent. Raises RequestError."""
    if parameters is None:
        return None
    if type(parameters) is not dict:
        raise bad_request(f"{where}: parameters must be an object, found {json_type(parameters)}")
    value = parameters.get(name)
    if value is not None and type(value) is not bool:
        raise bad_request(f"{where}: {name} {short_json(value)}; true or false is expected")
    return value
