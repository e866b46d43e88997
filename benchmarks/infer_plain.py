"""The limit of this road: uvicorn and ONNX Runtime with nothing between them, for one graph that is known beforehand.

    python -m benchmarks.infer_plain MODEL PORT

It checks, counts, limits and swaps nothing: what a careful service costs is measured against it. A request with an
inference-header-content-length is read and answered with the binary tensor extension.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnxruntime
import orjson
import uvicorn

DTYPES = {"FP32": np.float32, "BYTES": np.object_}
NAMES = {np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64", np.dtype(np.object_): "BYTES"}
HEADERS = [(b"content-type", b"application/json")]
BINARY = b"inference-header-content-length"


def from_json(body: bytes) -> dict[str, np.ndarray]:
    return {
        tensor["name"]: np.array(tensor["data"], dtype=DTYPES[tensor["datatype"]]).reshape(tensor["shape"])
        for tensor in orjson.loads(body)["inputs"]
    }


def from_binary(body: bytes, head: int) -> dict[str, np.ndarray]:
    inputs, place = {}, head
    for tensor in orjson.loads(body[:head])["inputs"]:
        size = tensor["parameters"]["binary_data_size"]
        values = np.frombuffer(body, DTYPES[tensor["datatype"]], count=size // 4, offset=place)
        inputs[tensor["name"]] = values.reshape(tensor["shape"])
        place += size
    return inputs


def to_json(answers: dict[str, np.ndarray]) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    outputs = [
        {
            "name": name,
            "datatype": NAMES[array.dtype],
            "shape": array.shape,
            "data": array.tolist() if array.dtype == object else array.ravel(),
        }
        for name, array in answers.items()
    ]
    return orjson.dumps({"model_name": "lending", "outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY), HEADERS


def to_binary(answers: dict[str, np.ndarray]) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    outputs = [
        {
            "name": name,
            "datatype": NAMES[array.dtype],
            "shape": array.shape,
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in answers.items()
    ]
    head = orjson.dumps({"model_name": "lending", "outputs": outputs})
    return b"".join((head, *(array.tobytes() for array in answers.values()))), [
        (b"content-type", b"application/octet-stream"),
        (BINARY, str(len(head)).encode()),
    ]


def application(model: str) -> Any:
    """An ASGI application that answers every POST with the graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        head = next((int(value) for name, value in scope["headers"] if name == BINARY), 0)
        inputs = from_binary(body, head) if head else from_json(body)
        answers = dict(zip(names, session.run(names, inputs), strict=True))
        reply, headers = to_binary(answers) if head else to_json(answers)
        length = (b"content-length", str(len(reply)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [*headers, length]})
        await send({"type": "http.response.body", "body": reply})

    return app


if __name__ == "__main__":
    uvicorn.run(
        application(sys.argv[1]),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
    )
