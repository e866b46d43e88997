"""Asks a gateway with tritonclient as it comes: binary over HTTP, raw contents over gRPC. Prints what it was told.

python triton.py HTTP_ADDRESS GRPC_ADDRESS VERSION
"""

import json
import queue
import sys

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

NUMERIC = np.array([[41, 52000, np.nan], [23, 18000, 900]], np.float32)
CATEGORICAL = np.array([["36 months", "car"], ["60 months", ""]], object)


def refused(call):
    try:
        call()
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return None


def plain(value):
    return value if isinstance(value, dict | list) else json_of(value)


def json_of(message):
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True)


def ask(module, address, version, grpc):
    client = module.InferenceServerClient(address)
    inputs = [module.InferInput("numeric", NUMERIC.shape, "FP32"), module.InferInput("categorical", [2, 2], "BYTES")]
    inputs[0].set_data_from_numpy(NUMERIC)
    inputs[1].set_data_from_numpy(CATEGORICAL)
    result = client.infer("lending", inputs, request_id="t1")
    shown = module.InferRequestedOutput("probabilities")
    chosen = client.infer("lending", inputs, model_version=version, outputs=[shown])
    found = {
        "label": [value.decode() for value in result.as_numpy("label").tolist()],
        "probabilities": result.as_numpy("probabilities").tolist(),
        "binary": grpc or "parameters" in result.get_response()["outputs"][0],
        "id": result.get_response().id if grpc else result.get_response()["id"],
        "chosen": chosen.as_numpy("probabilities").tolist(),
        "others": chosen.as_numpy("label") is None,
        "live": [client.is_server_live(), client.is_server_ready(), client.is_model_ready("lending", version)],
        "server": plain(client.get_server_metadata()),
        "model": plain(client.get_model_metadata("lending")),
        "config": plain(client.get_model_config("lending", version)),
        "classes": client.infer(
            "lending", inputs, outputs=[module.InferRequestedOutput("probabilities", class_count=1)]
        )
        .as_numpy("probabilities")
        .astype(str)
        .tolist(),
        "index": plain(client.get_model_repository_index()),
        "statistics": plain(client.get_inference_statistics("lending", version)),
        "load": refused(lambda: client.load_model("lending")),
        "unload": refused(lambda: client.unload_model("lending")),
        "unknown": refused(lambda: client.infer("lendin", inputs)),
        "wrong": refused(lambda: client.infer("lending", inputs[:1])),
    }
    if not grpc:
        for given, values in zip(inputs, (NUMERIC, CATEGORICAL), strict=True):
            given.set_data_from_numpy(np.nan_to_num(values) if values is NUMERIC else values, binary_data=False)
        shown = [module.InferRequestedOutput(name, binary_data=False) for name in ("probabilities", "label")]
        found["json"] = client.infer("lending", inputs, outputs=shown).as_numpy("probabilities").tolist()
    else:
        told = queue.Queue()
        client.async_infer("lending", inputs, lambda result, error: told.put(error is None))
        found["later"] = told.get(timeout=20)
    client.close()
    return found


if __name__ == "__main__":
    http, grpc, version = sys.argv[1:]
    told = {
        "http": ask(tritonclient.http, http, version, False),
        "grpc": ask(tritonclient.grpc, grpc, version, True),
    }
    print(json.dumps(told))
