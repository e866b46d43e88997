"""BentoML over the same graph: a service with one worker and one method on the Open Inference Protocol's path.

Runs in BentoML's own environment (see benchmarks.infer), so it imports nothing of ours; the model's path is in MODEL.

    bentoml serve infer_bentoml:Lending --port PORT
"""

from __future__ import annotations

import os
from typing import Any

import bentoml
import numpy as np
import onnxruntime

DTYPES = {"FP32": np.float32, "BYTES": np.object_}


@bentoml.service(workers=1)  # type: ignore[untyped-decorator]
class Lending:
    """One graph; requests and replies as the Open Inference Protocol has them."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    @bentoml.api(route="/v2/models/lending/infer")  # type: ignore[untyped-decorator]
    def infer(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        arrays = {
            tensor["name"]: np.array(tensor["data"], dtype=DTYPES[tensor["datatype"]]).reshape(tensor["shape"])
            for tensor in inputs
        }
        outputs = [
            {"name": name, "shape": list(array.shape), "data": array.ravel().tolist()}
            for name, array in zip(self.names, self.session.run(self.names, arrays), strict=True)
        ]
        return {"model_name": "lending", "outputs": outputs}
