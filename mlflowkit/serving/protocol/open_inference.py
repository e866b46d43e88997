"""Request bodies to arrays, arrays to reply bodies: the Open Inference Protocol v2, and plain rows.

Pure: bytes in, arrays out, no clock and no socket. Everything wrong with a body is a `Refusal`, which has the
HTTP status and a sentence that says where the fault is, what was found and what is allowed. What is decided here:

- A tensor is sent whole, as the signature names it (``numeric`` FP32 [rows, k], ``categorical`` BYTES
  [rows, m]) and in its datatype, or as one tensor a column (its name is the column's, its shape [rows] or
  [rows, 1]) in any numeric datatype whose values keep their meaning (see `elements`).
- ``data`` is flat (row-major) or nested as deep as its shape; it must hold exactly the product of the shape. Or the
  tensor comes as bytes (see `binary`), which must be exactly as many as its shape needs.
- ``null`` is a missing value: NaN in a numeric tensor, the empty string in a categorical one. The literals
  ``NaN`` and ``Infinity`` are not JSON, and a number beyond the range of FP32 is refused, not made infinite.
- A row of ``/predict`` names every column, with null for what is missing: a column left out is more often
  a mistake than a missing value, and imputing it silently would hide the mistake.
- A category that training never saw is answered (the graph encodes it as zeros) and counted.
- Request parameters that are not known are ignored, as the protocol has it; those of extensions that are not served
  (classification, shared memory) are refused.

`refusal` has the words, `elements` JSON's values, `binary` bytes, `schema` the signature, `replies` the way back.

Source: Open Inference Protocol, "inference_rest" of the KServe project; Triton's extensions of it.
"""

from __future__ import annotations

from typing import Any

import orjson

from mlflowkit.serving.protocol.binary_tensors import Buffer
from mlflowkit.serving.protocol.http_error import Refusal, kind
from mlflowkit.serving.protocol.input_schema import Query, Schema, zeros
from mlflowkit.serving.protocol.responses import finite, predictions, render_binary, render_infer, render_rows

__all__ = [
    "Query",
    "Refusal",
    "Schema",
    "finite",
    "predictions",
    "read_document",
    "render_binary",
    "render_infer",
    "render_rows",
    "zeros",
]


def read_document(body: Buffer) -> dict[str, Any]:
    """The JSON object that a body holds. Raises Refusal."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from error
    if type(document) is not dict:
        raise Refusal(400, f"the body must be a JSON object, found {kind(document)}")
    return document
