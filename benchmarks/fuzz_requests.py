"""Generated bad requests, from a seed: what clients send by mistake, and what is sent to break a server.

Each kind makes the bytes that go over a connection (HTTP), or a method with the bytes of its message (gRPC). The model
is that of `benchmarks.fuzz`: ``numeric`` FP32 [-1, 3] and ``categorical`` BYTES [-1, 2].
"""

from __future__ import annotations

import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SERVICE = "lending"
INFER = f"/v2/models/{SERVICE}/infer"
COLUMNS = ("age", "income", "debt", "term", "purpose")
LIMIT = 1 << 20
"""Bytes of a body that the gateway under test reads."""
NUMBERS = struct.pack("<3f", 41, 52000, 0)
TEXTS = b"\x09\x00\x00\x0036 months\x03\x00\x00\x00car"
BOMB = gzip.compress(b"\x00" * (8 << 20))
WORDS = ("numeric", "categorical", "inputs", "name", "shape", "datatype", "data", "outputs", "parameters", "id", "rows",
         *COLUMNS)  # fmt: skip
DATATYPES = ("FP32", "BYTES", "INT64", "UINT8", "BOOL", "FP16", "BF16", "FP64", "fp32", "STRING", "", None, 7)
ODD = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e39", "-0.0", "null", "true", "[]", "{}", '""', '"\\ud800"',
    "9" * 400, "-9223372036854775809", "1.5", "0x10", "01", "'a'", '"\\u0000"', "1e-400",
)  # fmt: skip
SIZES = (0, -1, 1, 2, 3, 5, -(2**63), 2**31, 2**63 - 1, 10**18, 65537, 1.0, True, None, "1", [], {})


@dataclass(frozen=True, slots=True)
class Request:
    """``method`` is "" for HTTP, whose ``data`` is all that is sent, and a method of the service for gRPC.

    ``stalls`` leaves the connection open after ``data`` and waits for the gateway to give it up; ``breaks`` may be
    answered by closing the connection; ``good`` has one right answer.
    """

    kind: str
    data: bytes
    method: str = ""
    stalls: bool = False
    breaks: bool = False
    good: bool = False


def http(body: bytes, path: str = INFER, method: str = "POST", **headers: Any) -> bytes:
    """A request as it goes over the wire."""
    given = {"content-length": len(body), **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value is not None)
    return f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n{head}\r\n".encode("latin-1") + body


def tensors() -> list[dict[str, Any]]:
    return [
        {"name": "numeric", "shape": [1, 3], "datatype": "FP32", "data": [41, 52000, 0]},
        {"name": "categorical", "shape": [1, 2], "datatype": "BYTES", "data": ["36 months", "car"]},
    ]


def columns() -> list[dict[str, Any]]:
    """The same, one tensor a column."""
    values = (41, 52000, 0, "36 months", "car")
    return [
        {"name": name, "shape": [1], "datatype": "FP32" if place < 3 else "BYTES", "data": [value]}
        for place, (name, value) in enumerate(zip(COLUMNS, values, strict=True))
    ]


def good() -> bytes:
    return json.dumps({"inputs": tensors()}).encode()


def rows(count: int = 1) -> bytes:
    row = dict(zip(COLUMNS, (41, 52000, 0, "36 months", "car"), strict=True))
    return json.dumps({"rows": [row] * count}).encode()


class Generator:
    """Requests of a seed, one after another, for ever. ``heads`` is the share of the stalled that stop in their head,
    which a gateway waits for longer than for a body."""

    def __init__(self, seed: int, heads: float = 0.5) -> None:
        self.heads = heads
        self.random = random.Random(seed)
        kinds: dict[Callable[[], Request], int] = {
            self.control: 4, self.garbage: 8, self.cut: 8, self.flipped: 10, self.literal: 10, self.shape: 10,
            self.types: 10, self.nested: 3, self.row: 10, self.feedback: 4, self.binary: 12, self.lengths: 4,
            self.texts: 6, self.coding: 2, self.oversize: 1, self.head: 8, self.path: 4,
            self.grpc_garbage: 4, self.grpc_message: 6,
        }  # fmt: skip
        self._kinds, self._weights = list(kinds), list(kinds.values())

    def __call__(self) -> Request:
        return self.random.choices(self._kinds, self._weights)[0]()

    def some(self, *values: Any) -> Any:
        return self.random.choice(values)

    def value(self, depth: int = 0) -> Any:
        roll = self.random.random()
        if depth < 3 and roll < 0.15:
            return [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        if depth < 3 and roll < 0.3:
            return {self.some(*WORDS): self.value(depth + 1) for _ in range(self.random.randrange(4))}
        return self.some(None, True, False, 0, -1, 1.5, 2**53 + 1, -(2**63), 1e308, "", "x", "é" * 40, "\x00", *WORDS)

    def control(self) -> Request:
        if self.random.random() < 0.5:
            return Request("control", http(good()), good=True)
        heads = [{**tensor, "parameters": {"binary_data_size": size}} for tensor, size in
                 zip(tensors(), (len(NUMBERS), len(TEXTS)), strict=True)]  # fmt: skip
        for tensor in heads:
            del tensor["data"]
        text = json.dumps({"inputs": heads}).encode()
        sent = http(text + NUMBERS + TEXTS, inference_header_content_length=len(text))
        return Request("control", sent, good=True)

    def garbage(self) -> Request:
        body = self.random.randbytes(self.random.randrange(300))
        return Request("garbage", http(body, self.some(INFER, "/predict", "/v2/feedback", "/v2/repository/index")))

    def cut(self) -> Request:
        whole, path = self.some((good(), INFER), (rows(), "/predict"))
        return Request("cut", http(whole[: self.random.randrange(len(whole))], path))

    def flipped(self) -> Request:
        whole, path = self.some((good(), INFER), (rows(), "/predict"))
        body = bytearray(whole)
        for _ in range(self.random.randrange(1, 4)):
            body[self.random.randrange(len(body))] = self.random.randrange(256)
        return Request("flipped", http(bytes(body), path))

    def literal(self) -> Request:
        """A value that JSON has not, or that no number holds, in the place of a right one."""
        text, path = self.some((good().decode(), INFER), (rows().decode(), "/predict"))
        old = self.some("41", "52000", '"36 months"', '"car"', "[1, 3]" if path == INFER else "41")
        return Request("literal", http(text.replace(old, self.some(*ODD)).encode(), path))

    def shape(self) -> Request:
        given = tensors()
        for tensor in given:
            if self.random.random() < 0.7:
                tensor["shape"] = [self.some(*SIZES) for _ in range(self.random.randrange(5))]
                tensor["shape"] = self.some(tensor["shape"], tensor["shape"], self.value())
        return Request("shape", http(json.dumps({"inputs": given}).encode()))

    def types(self) -> Request:
        given = tensors() if self.random.random() < 0.6 else columns()
        for tensor in given:
            for key in ("name", "datatype", "data", "parameters"):
                if self.random.random() < 0.5 / len(given):
                    tensor[key] = self.some(*DATATYPES, self.value()) if key == "datatype" else self.value()
        document: dict[str, Any] = {"inputs": self.some(given, given, given[:1], given * 2, self.value())}
        for key in ("outputs", "parameters", "id"):
            if self.random.random() < 0.3:
                document[key] = self.some(self.value(), [{"name": self.some("label", "labels", 3)}])
        return Request("types", http(json.dumps(document).encode()))

    def nested(self) -> Request:
        deep = self.random.randrange(10, 60_000)
        opening = self.some(b"[", b'{"inputs":', b'{"rows":[', b'{"inputs":[{"data":[')
        return Request("nested", http((opening * deep)[: LIMIT - 1], self.some(INFER, "/predict")))

    def row(self) -> Request:
        row = dict(zip(COLUMNS, (41, 52000, 0, "36 months", "car"), strict=True))
        for _ in range(self.random.randrange(3)):
            row[self.some(*COLUMNS, "incme", "")] = self.value()
        for column in self.random.sample(COLUMNS, self.random.randrange(2)):
            row.pop(column)
        found: Any = [row] * self.some(1, 1, 2, 5)
        found = self.some(found, found, found, [*found, self.value()], self.value())
        return Request(
            "row", http(json.dumps({"rows": found, **self.some({}, {"id": self.value()})}).encode(), "/predict")
        )

    def feedback(self) -> Request:
        item: Any = {"id": "r1", "label": "good"}
        for _ in range(self.random.randrange(3)):
            item[self.some("id", "label", "target", "labels", "time", "at", "")] = self.value()
        found = self.some(
            item, {"feedback": [item] * self.random.randrange(3)}, {"feedback": self.value()}, self.value()
        )
        return Request("feedback", http(json.dumps(found).encode(), "/v2/feedback"))

    def binary(self) -> Request:
        """Sizes, contents and lengths of binary tensors that do not fit one another."""
        given, raw = tensors(), [NUMBERS, TEXTS]
        for place, tensor in enumerate(given):
            del tensor["data"]
            if self.random.random() < 0.4:
                raw[place] = self.some(
                    raw[place][: self.random.randrange(30)], raw[place] * 2, self.random.randbytes(40)
                )
            size = len(raw[place]) if self.random.random() < 0.7 else self.some(*SIZES, len(raw[place]) + 1)
            tensor["parameters"] = {"binary_data_size": size}
            if self.random.random() < 0.2:
                tensor["datatype"] = self.some(*DATATYPES)
            if self.random.random() < 0.2:
                tensor["shape"] = [self.some(*SIZES), 3 - place]
        text = json.dumps({"inputs": given, "parameters": {"binary_data_output": self.some(True, False, 1)}}).encode()
        length = len(text) + (self.random.randrange(-3, 4) if self.random.random() < 0.2 else 0)
        return Request("binary", http(text + b"".join(raw), inference_header_content_length=length))

    def lengths(self) -> Request:
        length = self.some(-1, "", "x", 10**30, "1e3", " 12", 0, len(good()) + 1, 2**31, "0x10", "5,5")
        return Request("lengths", http(good(), inference_header_content_length=length), breaks=True)

    def texts(self) -> Request:
        """Elements of BYTES whose lengths lie."""
        given = tensors()[1]
        del given["data"]
        raw = b"".join(
            struct.pack("<I", self.some(0, 1, 3, 2**32 - 1, 2**31)) + self.random.randbytes(self.random.randrange(5))
            for _ in range(self.random.randrange(5))
        )
        given["parameters"] = {"binary_data_size": len(raw)}
        text = json.dumps({"inputs": [tensors()[0], given]}).encode()
        return Request("texts", http(text + raw, inference_header_content_length=len(text)))

    def coding(self) -> Request:
        coding = self.some("gzip", "deflate", "br", "zstd", "gzip, gzip", "GZIP", "x" * 200)
        body = self.some(BOMB, zlib.compress(good()), gzip.compress(good()))
        return Request("coding", http(body, content_encoding=coding), breaks=True)

    def oversize(self) -> Request:
        """Bodies over the limit: announced and not sent, sent, or in chunks without end."""
        way = self.random.randrange(3)
        if way == 0:
            return Request("oversize", http(b"{", content_length=10**12), breaks=True)
        body = b'{"rows": ["' + b"x" * (LIMIT + self.random.randrange(LIMIT))
        if way == 1:
            return Request("oversize", http(body, "/predict"), breaks=True)
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:70_000], body[70_000:])) + b"0\r\n\r\n"
        head = http(b"", "/predict", content_length=None, transfer_encoding="chunked")
        return Request("oversize", head + chunks, breaks=True)

    def head(self) -> Request:
        """What is no HTTP, or nearly."""
        sent = self.some(
            self.random.randbytes(200),
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST " + INFER.encode() + b" HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
            b"POST " + INFER.encode() + b" HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 7\r\n\r\n{}",
            b"POST " + INFER.encode() + b" HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            http(good(), x_request_id="\x01" * 10),
            http(good(), x_request_id="a" * 5000, authorization="Bearer \xff\xfe"),
            http(good(), cookie="a=" + "b" * 3000, upgrade="h2c", connection="Upgrade"),
            http(good(), method=self.some("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "BREW")),
            http(good(), x_mlkit_variant=self.some("challenger", "\xe9", "")),
        )
        return Request("head", sent, breaks=True)

    def path(self) -> Request:
        parts = ["v2", "models", "health", SERVICE, "versions", "7", "infer", "ready", "stats", "", "..", "%2e%2e",
                 "repository", "index", "a" * 3000, "\xe9", "predict"]  # fmt: skip
        path = "/" + "/".join(self.random.choices(parts, k=self.random.randrange(7)))
        return Request("path", http(b"", path, self.some("GET", "POST")), breaks=True)

    def grpc_garbage(self) -> Request:
        method = self.some("ModelInfer", "ModelMetadata", "RepositoryIndex", "ModelStatistics", "Nothing")
        return Request("grpc garbage", self.random.randbytes(self.random.randrange(200)), method)

    def grpc_message(self) -> Request:
        """A ModelInferRequest that is wrong somewhere, put together by its fields' numbers."""
        inputs = b""
        for place, (name, datatype) in enumerate((("numeric", "FP32"), ("categorical", "BYTES"))):
            odd = self.random.random
            shape = [self.some(*(size for size in SIZES if type(size) is int)) if odd() < 0.2 else 1, 3 - place]
            datatype = str(self.some(*DATATYPES)) if odd() < 0.2 else datatype
            tensor = _field(1, (name if odd() < 0.9 else "x").encode()) + _field(2, datatype.encode())
            tensor += b"".join(b"\x18" + _varint(size) for size in shape)
            if odd() < 0.1:
                tensor += _field(5, _field(6, self.random.randbytes(8)))
            inputs += _field(5, tensor)
        raw = [self.some(*[part] * 8, part[:-1], part * 2, b"") for part in (NUMBERS, TEXTS)]
        contents = b"".join(_field(7, part) for part in self.some(*[raw] * 6, raw[:1], []))
        return Request("grpc message", _field(1, SERVICE.encode()) + inputs + contents, "ModelInfer")

    def stalled(self) -> Request:
        """Part of a request, and then nothing."""
        whole = self.some(http(good()), http(rows(), "/predict"))
        first = 1 if self.random.random() < self.heads else whole.index(b"\r\n\r\n") + 4
        return Request("stalled", whole[: self.random.randrange(first, len(whole) - 1)], stalls=True, breaks=True)


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content
