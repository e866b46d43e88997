"""The limit of this road: uvicorn and ONNX Runtime with nothing between them, for one graph that is known beforehand.

    python -m benchmarks.infer_plain MODEL PORT

It checks, counts, limits and swaps nothing: what a careful service costs is measured against it.
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
        inputs = {
            tensor["name"]: np.array(tensor["data"], dtype=DTYPES[tensor["datatype"]]).reshape(tensor["shape"])
            for tensor in orjson.loads(body)["inputs"]
        }
        outputs = [
            {
                "name": name,
                "datatype": NAMES[array.dtype],
                "shape": array.shape,
                "data": array.tolist() if array.dtype == object else array.ravel(),
            }
            for name, array in zip(names, session.run(names, inputs), strict=True)
        ]
        reply = orjson.dumps({"model_name": "lending", "outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
        length = (b"content-length", str(len(reply)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, length]})
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
