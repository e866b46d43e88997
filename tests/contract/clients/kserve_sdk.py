"""Asks a gateway with the KServe SDK's two clients. Prints what it was told.

python kserve_sdk.py HTTP_URL GRPC_ADDRESS
"""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

NUMERIC = np.array([[41, 52000, np.nan], [23, 18000, 900]], np.float32)
CATEGORICAL = np.array([["36 months", "car"], ["60 months", ""]], object)


def request(binary):
    numeric, categorical = InferInput("numeric", [2, 3], "FP32"), InferInput("categorical", [2, 2], "BYTES")
    numeric.set_data_from_numpy(NUMERIC if binary else np.nan_to_num(NUMERIC), binary_data=binary)
    categorical.set_data_from_numpy(CATEGORICAL, binary_data=binary)
    return InferRequest("lending", [numeric, categorical], request_id="k1")


def shown(reply):
    outputs = {output.name: output.as_numpy() for output in reply.outputs}
    labels = [value.decode() if isinstance(value, bytes) else value for value in outputs["label"].reshape(-1).tolist()]
    shares = np.asarray(outputs["probabilities"]).reshape(2, 2).tolist()
    return {"id": reply.id, "model": reply.model_name, "label": labels, "probabilities": shares}


async def main(url, address):
    rest = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    grpc = InferenceGRPCClient(address, retries=0)
    found = {
        "rest": shown(await rest.infer(url, request(True), model_name="lending")),
        "json": shown(await rest.infer(url, request(False), model_name="lending")),
        "grpc": shown(await grpc.infer(request(True))),
        "typed": shown(await grpc.infer(request(False))),
        "ready": [
            await rest.is_server_live(url),
            await rest.is_server_ready(url),
            await rest.is_model_ready(url, "lending"),
            await grpc.is_server_live(),
            await grpc.is_server_ready(),
            await grpc.is_model_ready("lending"),
        ],
    }
    await rest.close()
    await grpc.close()
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
