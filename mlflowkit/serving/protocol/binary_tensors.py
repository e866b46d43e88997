"""Tensors as bytes: the binary tensor data extension of REST, and the raw contents of gRPC.

Elements are little-endian, row-major, without padding. BOOL is one byte, 1 or 0; an element of BYTES is four bytes of
length (unsigned) and then as many bytes, here UTF-8, since a column holds text. A large numeric tensor is not copied:
its array looks into the request's body, wherever that is aligned (see `bodies`).

In a REST body the JSON object comes first, as long as ``Inference-Header-Content-Length`` says, then the bytes of
each input that has ``binary_data_size``, in the order of the inputs. Everything must fit exactly.

Sources: Triton Inference Server, "Binary Tensor Data Extension"; grpc_service.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlflowkit.serving.protocol.http_error import Refusal, kind, show
from mlflowkit.serving.protocol.json_tensors import DTYPES, Place

Buffer = bytes | bytearray | memoryview
_LENGTH = struct.Struct("<I")
ALIGNMENT = 8
_WIRE: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(dtype).newbyteorder("<") for name, dtype in DTYPES.items() if name not in ("BYTES", "BF16")
}
HEADER = b"inference-header-content-length"


def header_length(value: bytes) -> int:
    """The length of the JSON part, from the header. Raises Refusal.

    >>> header_length(b"17")
    17
    """
    if not value.isdigit() or len(value) > 12:
        shown = value[:40].decode("latin-1")
        raise Refusal(400, f"{HEADER.decode()}: {shown!r}; the length of the JSON part in bytes is expected")
    return int(value)


def split(body: Buffer, length: int) -> tuple[memoryview, memoryview]:
    """The JSON part of a body and what follows it. Raises Refusal when the body is shorter than its JSON part."""
    if length > len(body):
        raise Refusal(400, f"{HEADER.decode()}: {length}; the body has {len(body)} bytes")
    view = memoryview(body)
    return view[:length], view[length:]


def contents(inputs: Any, tail: memoryview) -> dict[str, memoryview]:
    """The bytes of each binary input by name, which use up ``tail`` exactly. Raises Refusal.

    ``inputs`` is what the JSON part has under that name, whatever it is; a tensor without a name is left to `Schema`.
    """
    found: dict[str, memoryview] = {}
    begin = 0
    for index, tensor in enumerate(inputs if type(inputs) is list else ()):
        size = _announced(tensor, index)
        if size is None:
            continue
        if size > len(tail) - begin:
            raise Refusal(
                400,
                f"inputs[{_named(tensor, index)}]: binary_data_size {size}; "
                f"{len(tail) - begin} bytes are left in the body",
            )
        if type(tensor.get("name")) is str:
            found[tensor["name"]] = tail[begin : begin + size]
        begin += size
    if begin != len(tail):
        raise Refusal(400, f"{len(tail) - begin} bytes follow the last tensor: see {HEADER.decode()}, binary_data_size")
    return found


def _announced(tensor: Any, index: int) -> int | None:
    """``binary_data_size`` of a tensor as it came; None when it has none. Raises Refusal."""
    parameters = tensor.get("parameters") if type(tensor) is dict else None
    if type(parameters) is not dict or "binary_data_size" not in parameters:
        return None
    size, where = parameters["binary_data_size"], f"inputs[{_named(tensor, index)}]"
    if type(size) is not int or size < 0:
        raise Refusal(400, f"{where}: binary_data_size {show(size)}; a number of bytes is expected")
    if "data" in tensor:
        raise Refusal(400, f"{where}: both data and binary_data_size are given; one of them is expected")
    return size


def _named(tensor: Mapping[str, Any], index: int) -> str:
    name = tensor.get("name")
    return name[:80] if type(name) is str else str(index)


def decode(raw: Buffer, datatype: str, shape: Sequence[int], name: str, place: Place) -> np.ndarray:
    """The flat array that bytes hold. Raises Refusal unless they hold exactly the elements of the shape.

    An infinity is refused, as the JSON number that is beyond its datatype's range is; NaN is a missing value.

    >>> decode(b"\\x00\\x00\\x80?", "FP32", [1], "x", str)
    array([1.], dtype=float32)
    """
    count = 1
    for size in shape:
        count *= size
    if datatype == "BYTES":
        return _texts(raw, count, name, shape, place)
    width = 2 if datatype == "BF16" else _WIRE[datatype].itemsize
    if len(raw) != count * width:
        raise Refusal(
            400, f"inputs[{name}]: {len(raw)} bytes; shape {show(list(shape))} of {datatype} needs {count * width}"
        )
    if datatype == "BF16":
        array = (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    elif datatype == "BOOL":
        array = _booleans(raw, place)
    else:
        array = np.frombuffer(raw, dtype=_WIRE[datatype])
        if not array.flags.aligned:
            array = array.copy()
    if array.dtype.kind == "f" and (wrong := np.isinf(array)).any():
        raise Refusal(400, f"{place(int(np.argmax(wrong)))}: an infinity; a finite number or NaN is expected")
    return array


def _booleans(raw: Buffer, place: Place) -> np.ndarray:
    found = np.frombuffer(raw, dtype=np.uint8)
    if (found > 1).any():
        at = int(np.argmax(found > 1))
        raise Refusal(400, f"{place(at)}: byte {found[at]}; BOOL is 0 or 1")
    return found.view(np.bool_)


def _texts(raw: Buffer, count: int, name: str, shape: Sequence[int], place: Place) -> np.ndarray:
    if len(raw) < 4 * count:
        raise Refusal(
            400, f"inputs[{name}]: {len(raw)} bytes; shape {show(list(shape))} of BYTES needs at least {4 * count}"
        )
    data, end = bytes(raw), len(raw)
    found: list[str] = []
    begin = 0
    length_at = _LENGTH.unpack_from
    try:
        for _ in range(count):
            first = begin + 4
            begin = first + length_at(data, begin)[0]
            if begin > end:
                raise Refusal(400, f"{place(len(found))}: its length is {begin - first} bytes; {end - first} are left")
            found.append(data[first:begin].decode())
    except UnicodeDecodeError as error:
        raise Refusal(400, f"{place(len(found))}: its bytes are not UTF-8 ({error.reason})") from error
    except struct.error as error:
        raise Refusal(400, f"{place(len(found))}: {end - begin} bytes are left; its length has four") from error
    if begin != end:
        raise Refusal(400, f"inputs[{name}]: {end - begin} bytes are left after its last element")
    return np.array(found, dtype=object)


def encode(array: np.ndarray) -> bytes | memoryview:
    """An array's bytes as they are sent; a numeric array that is contiguous is not copied.

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


def flag(parameters: Any, name: str, where: str) -> bool | None:
    """A boolean parameter; None when it is not given. Raises Refusal."""
    if parameters is None:
        return None
    if type(parameters) is not dict:
        raise Refusal(400, f"{where}: parameters must be an object, found {kind(parameters)}")
    value = parameters.get(name)
    if value is not None and type(value) is not bool:
        raise Refusal(400, f"{where}: {name} {show(value)}; true or false is expected")
    return value
