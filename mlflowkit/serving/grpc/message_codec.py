"""Messages of gRPC to what the schema reads, and answers to messages. Pure.

Tensors come as ``raw_input_contents``, one for each input in their order, or each with typed contents in the field
that its datatype has; FP16 and BF16 come raw, since they have no field. Answers always go out raw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlflowkit.bundle import Signature, Tensor
from mlflowkit.serving.grpc.messages import messages
from mlflowkit.serving.protocol.binary_tensors import encode
from mlflowkit.serving.protocol.http_error import Refusal, listing, show
from mlflowkit.serving.protocol.input_schema import Query, Schema
from mlflowkit.values import Json

FIELDS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of typed contents for each datatype."""


def read(kind: str, data: bytes) -> Any:
    """The message that bytes hold. Raises Refusal."""
    from google.protobuf.message import DecodeError

    try:
        return getattr(messages(), kind).FromString(data)
    except DecodeError as error:
        raise Refusal(400, f"the message is no {kind}: {error}") from error


def document_of(request: Any) -> tuple[dict[str, Json], dict[str, bytes]]:
    """A ModelInferRequest as the document and the raw contents that `Schema.infer` reads. Raises Refusal."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise Refusal(400, f"raw_input_contents: {len(raw)} for {len(request.inputs)} inputs; one for each is expected")
    inputs: list[Json] = []
    for index, tensor in enumerate(request.inputs):
        given: dict[str, Json] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if tensor.parameters:
            given["parameters"] = parameters_of(tensor.parameters)
        if not raw:
            given["data"] = _typed(tensor)
        elif tensor.HasField("contents"):
            raise Refusal(400, f"inputs[{tensor.name[:80]}]: both contents and raw_input_contents[{index}] are given")
        inputs.append(given)
    document: dict[str, Json] = {"id": request.id, "inputs": inputs}
    if request.outputs:
        document["outputs"] = [
            {"name": output.name, "parameters": parameters_of(output.parameters)} for output in request.outputs
        ]
    names = [tensor.name for tensor in request.inputs] if raw else []
    return document, dict(zip(names, raw, strict=False))


def parameters_of(parameters: Mapping[str, Any]) -> dict[str, Json]:
    """Parameters as plain values."""
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "", None) for name, value in parameters.items()
    }


def _typed(tensor: Any) -> list[Json]:
    """The values of typed contents. Raises Refusal for another field than the datatype's."""
    where = f"inputs[{tensor.name[:80]}]"
    field = FIELDS.get(tensor.datatype)
    if field is None:
        if tensor.datatype in ("FP16", "BF16"):
            raise Refusal(400, f"{where}: {tensor.datatype} has no typed contents; send raw_input_contents")
        raise Refusal(400, f"{where}: datatype {show(tensor.datatype)}; allowed: {listing((*FIELDS, 'FP16', 'BF16'))}")
    filled = [found.name for found, _ in tensor.contents.ListFields()]
    if filled not in ([], [field]):
        raise Refusal(400, f"{where}: contents are in {listing(filled)}; {tensor.datatype} is in {field}")
    values = list(getattr(tensor.contents, field))
    if tensor.datatype == "BYTES":
        return [_text(value, f"{where}, value {place}") for place, value in enumerate(values)]
    return values


def _text(value: bytes, where: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Refusal(400, f"{where}: its bytes are not UTF-8 ({error.reason})") from error


def infer_reply(
    schema: Schema, query: Query, answers: Mapping[str, np.ndarray], *, model: str, version: str, id: str
) -> Any:
    """A ModelInferResponse; the answers are finite."""
    reply = messages().ModelInferResponse(model_name=model, model_version=version, id=id)
    for name in query.outputs or schema.outputs:
        array = answers[name]
        reply.outputs.add(name=name, datatype=schema.outputs[name].datatype, shape=array.shape)
        reply.raw_output_contents.append(bytes(encode(array)))
    return reply


def metadata_reply(name: str, versions: list[str], platform: str, signature: Signature) -> Any:
    """A ModelMetadataResponse."""
    described = messages().ModelMetadataResponse(name=name, versions=versions, platform=platform)
    for tensors, field in ((signature.inputs, described.inputs), (signature.outputs, described.outputs)):
        for tensor in tensors:
            _add(field, tensor)
    return described


def _add(field: Any, tensor: Tensor) -> None:
    field.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
