"""Dates of gRPC messages and of files that are scored, read as those of JSON are."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlflowkit.bundle import Signature, TensorSpec, TextRule
from mlflowkit.errors import DataError
from mlflowkit.scoring.conversion import feature_frame
from mlflowkit.serving.grpc.message_codec import messages, to_document
from mlflowkit.serving.protocol.input_schema import Schema

SIGNATURE = Signature(
    task="regression",
    inputs=(TensorSpec(name="dates", datatype="FP64", shape=(-1, 2), columns=("day", "moment")),),
    outputs=(TensorSpec(name="prediction", datatype="FP32", shape=(-1,)),),
    texts=TextRule(missing=("?",), dates={"day": "naive", "moment": "offset"}),
)
DAY, MOMENT = "1970-01-02", "1970-01-01T01:00:00+01:00"


def grpc_request(*tensors: dict[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    request = messages().ModelInferRequest(model_name="m", inputs=tensors)
    return to_document(request)


def test_a_grpc_message_may_hold_texts_or_seconds() -> None:
    texts = [
        {"name": "day", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [DAY.encode()]}},
        {"name": "moment", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [MOMENT.encode()]}},
    ]
    whole = {"name": "dates", "datatype": "FP64", "shape": [1, 2], "contents": {"fp64_contents": [86400.0, 0.0]}}
    for tensors in (texts, [whole]):
        document, raw = grpc_request(*tensors)
        query = Schema(SIGNATURE).infer(document, limit=5, raw=raw)
        assert query.inputs["dates"].tolist() == [[86400.0, 0.0]]
        assert query.inputs["dates"].dtype == np.float64
        assert not query.notes


def test_texts_may_come_as_bytes() -> None:
    content = b"".join(struct.pack("<I", len(text)) + text.encode() for text in (DAY, MOMENT))
    tensor = {"name": "dates", "datatype": "BYTES", "shape": [1, 2]}
    request = messages().ModelInferRequest(model_name="m", inputs=[tensor], raw_input_contents=[content])
    document, raw = to_document(request)
    assert Schema(SIGNATURE).infer(document, limit=5, raw=raw).inputs["dates"].tolist() == [[86400.0, 0.0]]


def test_a_file_that_is_scored_is_read_by_the_same_rule() -> None:
    table = pa.table({"day": [DAY, "?", "soon", None], "moment": [MOMENT, MOMENT, "1970-01-01T00:00:01Z", ""]})
    told: Counter[str] = Counter()
    frame = feature_frame(table, SIGNATURE, start=1, categories=None, no_dates=told)
    np.testing.assert_array_equal(frame["day"], [86400.0, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(frame["moment"], [0.0, 0.0, 1.0, np.nan])
    assert told == {"day": 1}
    typed = pa.table({"day": pa.array([86_400], pa.timestamp("s")), "moment": pa.array([0], pa.timestamp("s", "UTC"))})
    frame = feature_frame(typed, SIGNATURE, start=1, categories=None)
    assert frame.to_numpy().tolist() == [[86400.0, 0.0]]


def test_a_file_with_another_clock_is_refused_with_its_row() -> None:
    table = pa.table({"day": [DAY, MOMENT], "moment": [MOMENT, MOMENT]})
    with pytest.raises(DataError, match=r"row 6: day: .* with an offset from UTC"):
        feature_frame(table, SIGNATURE, start=5, categories=None)
