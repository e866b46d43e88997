"""Compressed requests and replies: answered as uncompressed ones, and a bomb costs no more than the limit on bodies."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import orjson
import pytest

from tests.support.gateways import InProcess
from tests.support.lending_bundle import CATEGORIES, NUMERIC, ROWS

BODY = orjson.dumps({"rows": ROWS})
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("coding", "content"),
    [("gzip", gzip.compress(BODY)), ("X-GZIP", gzip.compress(BODY)), ("deflate", zlib.compress(BODY))],
    ids=["gzip", "x-gzip", "deflate"],
)
def test_a_compressed_request_is_answered_like_another(served: InProcess, coding: str, content: bytes) -> None:
    plain = served.client.post("/predict", content=BODY, headers=JSON).json()
    chunked = (content[begin : begin + 7] for begin in range(0, len(content), 7))
    for sent in (content, chunked):
        reply = served.client.post("/predict", content=sent, headers={**JSON, "content-encoding": coding})
        assert (reply.status_code, reply.json()["predictions"]) == (200, plain["predictions"])


def test_a_compressed_body_with_binary_tensors_is_cut_where_its_content_is(served: InProcess) -> None:
    numbers = np.array([[row[column] for column in NUMERIC] for row in ROWS], np.float32)
    tensors = [
        {"name": "numeric", "datatype": "FP32", "shape": list(numbers.shape),
         "parameters": {"binary_data_size": numbers.nbytes}},
        {"name": "categorical", "datatype": "BYTES", "shape": [len(ROWS), len(CATEGORIES)],
         "data": [row[column] for row in ROWS for column in CATEGORIES]},
    ]  # fmt: skip
    front = orjson.dumps({"inputs": tensors})
    headers = {"inference-header-content-length": str(len(front)), "content-encoding": "gzip"}
    body = gzip.compress(front + numbers.tobytes())
    reply = served.client.post("/v2/models/lending/infer", content=body, headers=headers)
    assert reply.status_code == 200, reply.text
    assert reply.json()["outputs"][0]["shape"] == [len(ROWS)]


BOMB = gzip.compress(b"[" + b"0," * (64 << 20) + b"0]", 1)


@pytest.mark.parametrize(
    ("coding", "content", "status", "words"),
    [
        ("gzip", BOMB, 413, "when decompressed"),
        ("gzip", BODY, 400, "not what content-encoding says"),
        ("gzip", gzip.compress(BODY)[:-6], 400, "its end is missing"),
        ("gzip", gzip.compress(BODY) + b"more", 400, "bytes follow its end"),
        ("gzip", b"", 400, "its end is missing"),
        ("deflate", gzip.compress(BODY), 400, "not what content-encoding says"),
        ("gzip, gzip", gzip.compress(gzip.compress(BODY)), 415, "gzip, deflate and identity are"),
        ("br", BODY, 415, "gzip, deflate and identity are"),
    ],
    ids=["bomb", "plain", "cut", "followed", "empty", "other coding", "twice", "unknown coding"],
)
def test_what_does_not_decompress_within_bounds_is_refused_in_words(
    served: InProcess, coding: str, content: bytes, status: int, words: str
) -> None:
    for path in ("/predict", "/v2/models/lending/infer"):
        reply = served.client.post(path, content=content, headers={**JSON, "content-encoding": coding})
        assert reply.status_code == status
        assert words in reply.json()["error"]
    assert served.client.get("/v2/health/live").status_code == 200


def test_a_ratio_that_no_text_has_is_refused_below_the_limit_too(served: InProcess) -> None:
    body = gzip.compress(b" " * (1 << 20) + BODY, 9)  # above a MiB after decompression, whatever the limit
    assert len(body) * 200 < 1 << 20
    reply = served.client.post("/predict", content=body, headers={**JSON, "content-encoding": "gzip"})
    assert reply.status_code == 413


def test_a_reply_is_compressed_where_it_is_large_and_a_client_asks(served: InProcess) -> None:
    many = orjson.dumps({"rows": ROWS * 200})
    asked = served.client.post("/predict", content=many, headers={**JSON, "accept-encoding": "gzip"})
    plain = served.client.post("/predict", content=many, headers={**JSON, "accept-encoding": "identity"})
    assert (asked.headers.get("content-encoding"), asked.headers["vary"]) == ("gzip", "accept-encoding")
    assert "content-encoding" not in plain.headers
    assert asked.json()["predictions"] == plain.json()["predictions"]
    assert int(asked.headers["content-length"]) < int(plain.headers["content-length"])
    small = served.client.post("/predict", content=BODY, headers={**JSON, "accept-encoding": "gzip"})
    assert "content-encoding" not in small.headers
    head = served.client.head("/openapi.json", headers={"accept-encoding": "gzip"})
    assert (head.status_code, head.headers["content-encoding"], head.content) == (200, "gzip", b"")
