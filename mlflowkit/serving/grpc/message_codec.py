"""Converts gRPC messages to the documents that `Schema.infer` parses, and results to messages. Pure.

Tensors come as ``raw_input_contents``, one for each input in order, or each with typed contents in its datatype's
field; FP16 and BF16 have no field and must come raw. Outputs are always raw.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import SimpleNamespace
from typing import Any

import numpy as np

from mlflowkit.bundle import Signature
from mlflowkit.serving.protocol.binary_tensors import encode
from mlflowkit.serving.protocol.http_error import bad_request, join_names, short_json
from mlflowkit.serving.protocol.input_schema import Query, Schema
from mlflowkit.serving.protocol.responses import answer_notes, note_texts, requested_output
from mlflowkit.values import Json

SERVICE = "inference.GRPCInferenceService"
TYPED_CONTENT_FIELDS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The typed-contents field of each datatype."""


@cache
def messages() -> Any:
    """The message classes of open_inference.proto as attributes, by name. protobuf is imported at the first call.

    They are in a private descriptor pool: in the default one they would clash with those of another client of the
    protocol in the same process, as all clients describe the package ``inference``, each with different descriptors.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    serialized = resources.files("mlflowkit.serving.grpc").joinpath("open_inference.binpb").read_bytes()
    files = descriptor_pb2.FileDescriptorSet.FromString(serialized).file
    pool = descriptor_pool.DescriptorPool()
    for file in files:
        pool.Add(file)
    classes = message_factory.GetMessageClassesForFiles([file.name for file in files], pool)
    return SimpleNamespace(**{name.rpartition(".")[2]: message for name, message in classes.items()})


def parse_message(message_name: str, data: bytes) -> Any:
    """Parse a message of the named type. Raises RequestError."""
    from google.protobuf.message import DecodeError

    try:
        return getattr(messages(), message_name).FromString(data)
    except DecodeError as error:
        raise bad_request(f"the message is no {message_name}: {error}") from error


def to_document(request: Any) -> tuple[dict[str, Json], dict[str, bytes]]:
    """A ModelInferRequest as the document and raw contents that `Schema.infer` parses. Raises RequestError."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise bad_request(f"raw_input_contents: {len(raw)} for {len(request.inputs)} inputs; one for each is expected")
    inputs: list[Json] = []
    for index, tensor in enumerate(request.inputs):
        item: dict[str, Json] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if tensor.parameters:
            item["parameters"] = to_parameters(tensor.parameters)
        if not raw:
            item["data"] = _typed_values(tensor)
        elif tensor.HasField("contents"):
            raise bad_request(f"inputs[{tensor.name[:80]}]: both contents and raw_input_contents[{index}] are given")
        inputs.append(item)
    document: dict[str, Json] = {"id": request.id, "inputs": inputs}
    if request.outputs:
        document["outputs"] = [
            {"name": output.name, "parameters": to_parameters(output.parameters)} for output in request.outputs
        ]
    names = [tensor.name for tensor in request.inputs] if raw else []
    return document, dict(zip(names, raw, strict=False))


def to_parameters(parameters: Mapping[str, Any]) -> dict[str, Json]:
    kind = "parameter_choice"
    return {name: getattr(value, value.WhichOneof(kind) or "", None) for name, value in parameters.items()}


def _typed_values(tensor: Any) -> list[Json]:
    """The values of typed contents. Raises RequestError for another field than the datatype's."""
    where = f"inputs[{tensor.name[:80]}]"
    field = TYPED_CONTENT_FIELDS.get(tensor.datatype)
    if field is None:
        if tensor.datatype in ("FP16", "BF16"):
            raise bad_request(f"{where}: {tensor.datatype} has no typed contents; send raw_input_contents")
        allowed = join_names((*TYPED_CONTENT_FIELDS, "FP16", "BF16"))
        raise bad_request(f"{where}: datatype {short_json(tensor.datatype)}; allowed: {allowed}")
    filled = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if filled not in ([], [field]):
        raise bad_request(f"{where}: contents are in {join_names(filled)}; {tensor.datatype} is in {field}")
    values = list(getattr(tensor.contents, field))
    for index, value in enumerate(values) if tensor.datatype == "BYTES" else ():
        try:
            values[index] = value.decode()
        except UnicodeDecodeError as error:
            raise bad_request(f"{where}, value {index}: its bytes are not UTF-8 ({error.reason})") from error
    return values


def infer_reply(
    schema: Schema, query: Query, outputs: Mapping[str, np.ndarray], *, model: str, version: str, id: str
) -> Any:
    """A ModelInferResponse of finite outputs."""
    reply = messages().ModelInferResponse(model_name=model, model_version=version, id=id)
    for name in query.outputs or schema.outputs:
        datatype, array = requested_output(schema, query, name, outputs)
        reply.outputs.add(name=name, datatype=datatype, shape=array.shape)
        reply.raw_output_contents.append(bytes(encode(array)))
    for name, text in note_texts(answer_notes(query)).items():
        reply.parameters[name].string_param = text
    return reply


def config_reply(document: Json) -> Any:
    """A ModelConfigResponse of `metadata.config`."""
    from google.protobuf.json_format import ParseDict

    return ParseDict({"config": document}, messages().ModelConfigResponse())


def metadata_reply(name: str, versions: list[str], platform: str, signature: Signature) -> Any:
    reply = messages().ModelMetadataResponse(name=name, versions=versions, platform=platform)
    for tensors, field in ((signature.inputs, reply.inputs), (signature.outputs, reply.outputs)):
        for tensor in tensors:
            field.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return reply
