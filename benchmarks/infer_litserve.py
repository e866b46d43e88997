"""LitServe over the same graph: setup(), predict(); one worker, no batching, its own server.

Runs in LitServe's own environment (see benchmarks.infer), so it imports nothing of ours.

    python infer_litserve.py MODEL PORT
"""

from __future__ import annotations

import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime

DTYPES = {"FP32": np.float32, "BYTES": np.object_}


class Api(litserve.LitAPI):  # type: ignore[misc]
    """One graph; requests and replies as the Open Inference Protocol has them."""

    def __init__(self, model: str) -> None:
        super().__init__(api_path="/v2/models/lending/infer")
        self.path = model

    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def predict(self, body: dict[str, Any]) -> dict[str, Any]:
        inputs = {
            tensor["name"]: np.array(tensor["data"], dtype=DTYPES[tensor["datatype"]]).reshape(tensor["shape"])
            for tensor in body["inputs"]
        }
        outputs = [
            {"name": name, "shape": list(array.shape), "data": array.ravel().tolist()}
            for name, array in zip(self.names, self.session.run(self.names, inputs), strict=True)
        ]
        return {"model_name": "lending", "outputs": outputs}


if __name__ == "__main__":
    server = litserve.LitServer(Api(sys.argv[1]), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
