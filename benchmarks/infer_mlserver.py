"""MLServer's custom runtime over the same graph: load() and predict(), as its documentation has them.

Runs in MLServer's own environment (see benchmarks.infer), so it imports nothing of ours.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):  # type: ignore[misc]
    """A graph behind MLServer's data plane."""

    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        uri = self.settings.parameters.uri
        self.session = onnxruntime.InferenceSession(uri, options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = {}
        for tensor in payload.inputs:
            if tensor.datatype == "BYTES":
                array = np.array(StringCodec.decode_input(tensor), dtype=object)
            else:
                array = NumpyCodec.decode_input(tensor).astype(np.float32)
            inputs[tensor.name] = array.reshape(tensor.shape)
        outputs = [
            StringCodec.encode_output(name, array.tolist())
            if array.dtype == object
            else NumpyCodec.encode_output(name, array)
            for name, array in zip(self.names, self.session.run(self.names, inputs), strict=True)
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
