"""A gateway's OpenAPI 3.1 document, from the signature of its champion and the roads that there are."""

from __future__ import annotations

from typing import Any

import mlflowkit
from mlflowkit.bundle import Signature, Tensor
from mlflowkit.service_state.records import Settings
from mlflowkit.serving.inference import metadata
from mlflowkit.serving.inference.variants import Loaded
from mlflowkit.serving.protocol.json_tensors import DTYPES, FLOATING

Document = dict[str, Any]
_INFINITE = {"FP16": 65520.0, "FP32": 3.4028235677973366e38}
"""What rounds to an infinity, and is refused; beyond FP64, the parser of JSON refuses it."""
_SAID = {
    "400": "The body is wrong; the sentence says where, what was found and what is allowed.",
    "401": "No API key that is known here.",
    "403": "An API key without the scope, or what no key may do.",
    "404": "No such model or version.",
    "408": "The body came too slowly.",
    "413": "Too many bytes or rows.",
    "422": "The model has no finite answer for these values.",
    "503": "No model yet, or too many requests are waiting: ask again after Retry-After.",
    "504": "The deadline passed.",
}
_ALWAYS = ("401", "403", "503")
_ASKED = ("400", "404", "408", "413", "422", "504")


def openapi(service: str, active: Loaded | None, settings: Settings) -> Document:
    """The document of a service; its inputs are those of the champion, if there is one."""
    signature = None if active is None else active.champion.bundle.signature
    one, version = f"/v2/models/{service}", f"/v2/models/{service}/versions/{{version}}"
    paths: Document = {
        "/v2": {"get": _told("serverMetadata", "Server metadata", "ServerMetadata")},
        "/v2/health/live": {"get": _told("serverLive", "Whether the process answers", "Live")},
        "/v2/health/ready": {"get": _told("serverReady", "Whether there is a model", "Ready")},
        "/v2/models/stats": {"get": _told("allStatistics", "Statistics of every version", "Statistics")},
        "/v2/repository/index": {"post": _index()},
        f"/v2/repository/models/{service}/load": {"post": _refused("load")},
        f"/v2/repository/models/{service}/unload": {"post": _refused("unload")},
        "/predict": {"post": _posted("predict", "Ask with plain rows", "Rows", "Predictions")},
        "/v2/feedback": {"post": _feedback()},
        "/metrics": {"get": _metrics()},
        "/openapi.json": {"get": _told("openapi", "This document", "Document")},
    }
    for path, named in ((one, ""), (version, "Version")):
        parts = {
            "": {"get": _told(f"model{named}Metadata", "Model metadata", "ModelMetadata", "404")},
            "/ready": {"get": _told(f"model{named}Ready", "Whether the model answers", "ModelReady", "404")},
            "/stats": {"get": _told(f"model{named}Statistics", "Statistics", "Statistics", "404")},
            "/infer": {"post": _posted(f"model{named}Infer", "Ask with tensors", "InferRequest", "InferReply")},
        }
        for part, item in parts.items():
            paths[path + part] = {**item, **({"parameters": [_version(active)]} if named else {})}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": service,
            "version": "none" if active is None else active.champion.variant.version,
            "description": f"Open Inference Protocol v2, answered by mlflowkit {mlflowkit.__version__}. "
            "Tensors may also be sent as bytes: see the binary tensor data extension.",
        },
        "paths": paths,
        "components": {
            "schemas": {**_schemas(service), **_of_feedback(settings), **_of_signature(signature, settings)},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        **({"security": [{"bearer": []}, {"key": []}]} if settings.keys else {}),
    }


def _version(active: Loaded | None) -> Document:
    known = [] if active is None else list(active.by_version)
    return {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "string", **({"enum": known} if known else {})},
    }


def _json(schema: str) -> Document:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _failures(*statuses: str) -> Document:
    return {status: {"description": _SAID[status], "content": _json("Error")} for status in sorted(statuses)}


def _told(operation: str, summary: str, schema: str, *more: str) -> Document:
    """A GET operation."""
    return {
        "operationId": operation,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": _json(schema)}, **_failures(*_ALWAYS, *more)},
    }


def _posted(operation: str, summary: str, request: str, reply: str) -> Document:
    """A POST operation that asks a model."""
    headers = {
        name: {"schema": {"type": "string"}} for name in ("x-mlkit-variant", "x-mlkit-version", "x-mlkit-request-id")
    }
    answered = {"description": "The answers", "headers": headers, "content": _json(reply)}
    return {
        "operationId": operation,
        "summary": summary,
        "requestBody": {"required": True, "content": _json(request)},
        "responses": {"200": answered, **_failures(*_ALWAYS, *_ASKED)},
    }


def _index() -> Document:
    found = _told("repositoryIndex", "What is loaded", "Index", "400", "408", "413")
    schema = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    return {**found, "requestBody": {"required": False, "content": {"application/json": {"schema": schema}}}}


def _refused(verb: str) -> Document:
    return {
        "operationId": f"repository{verb.capitalize()}",
        "summary": f"Refused: {metadata.refuse_change().message}",
        "responses": _failures(*_ALWAYS, "404"),
    }


def _feedback() -> Document:
    summary = "Say what turned out to be true, by request id"
    return {
        "operationId": "feedback",
        "summary": summary,
        "requestBody": {"required": True, "content": _json("Feedback")},
        "responses": {
            "202": {"description": "It is kept", "content": _json("Accepted")},
            **_failures(*_ALWAYS, "400", "404", "408", "413"),
        },
    }


def _metrics() -> Document:
    page = {"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {
        "operationId": "metrics",
        "summary": "Metrics for Prometheus",
        "responses": {"200": page, **_failures(*_ALWAYS)},
    }


def _object(required: tuple[str, ...], **properties: Any) -> Document:
    return {"type": "object", "required": list(required), "properties": properties}


def _list(items: Document, **more: Any) -> Document:
    return {"type": "array", "items": items, **more}


_TEXT: Document = {"type": "string"}
_COUNT: Document = {"type": "integer", "minimum": 0}
_TRUTH: Document = {"type": "boolean"}


def _schemas(service: str) -> Document:
    """What does not depend on the model."""
    name = {"const": service}
    tensor = _object(
        ("name", "datatype", "shape"), name=_TEXT, datatype={"enum": sorted(set(DTYPES) - {"BF16"})},
        shape=_list({"type": "integer"}), parameters={"type": "object"},
    )  # fmt: skip
    duration = _object(("count", "ns"), count=_COUNT, ns=_COUNT)
    parts = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit")
    statistics = _object(
        ("name", "version", "last_inference", "inference_count", "execution_count", "inference_stats", "batch_stats"),
        name=name, version=_TEXT, last_inference=_COUNT, inference_count=_COUNT, execution_count=_COUNT,
        inference_stats=_object(parts, **dict.fromkeys(parts, duration)), batch_stats=_list({"type": "object"}),
    )  # fmt: skip
    entry = _object(("name", "version", "state", "reason"), name=name, version=_TEXT, state=_TEXT, reason=_TEXT)
    return {
        "Error": _object(("error",), error=_TEXT),
        "Document": {"type": "object"},
        "Live": _object(("live",), live=_TRUTH),
        "Ready": _object(("ready",), ready=_TRUTH),
        "ServerMetadata": _object(
            ("name", "version", "extensions"), name=_TEXT, version=_TEXT, extensions=_list(_TEXT), models=_list(name)
        ),
        "ModelReady": _object(("name", "ready"), name=name, ready=_TRUTH),
        "ModelMetadata": _object(
            ("name", "versions", "platform", "inputs", "outputs"), name=name, versions=_list(_TEXT), platform=_TEXT,
            inputs=_list(tensor), outputs=_list(tensor), parameters={"type": "object"},
        ),
        "Statistics": _object(("model_stats",), model_stats=_list(statistics)),
        "Index": _list(entry),
    }  # fmt: skip


def _of_feedback(settings: Settings) -> Document:
    """Items of feedback: a label or a target each, one a row."""
    label = {"type": ["string", "integer", "boolean"], "maxLength": 256, "minimum": -(2**53), "maximum": 2**53}
    target = {"type": "number", "exclusiveMinimum": -1e300, "exclusiveMaximum": 1e300}
    kinds = {}
    for kind, one in (("label", label), ("target", target)):
        told = {"anyOf": [one, _list({"anyOf": [one, {"type": "null"}]}, contains=one)]}
        kinds[kind] = {
            **_object(
                ("id", kind), id={"type": "string", "minLength": 1, "maxLength": 256},
                time={"type": ["number", "null"], "minimum": 0, "exclusiveMaximum": 1e11}, **{kind: told},
            ),
            "additionalProperties": False,
        }  # fmt: skip
    item = {"oneOf": list(kinds.values())}
    many = _object(("feedback",), feedback=_list(item, minItems=1, maxItems=settings.max_rows))
    return {
        "Feedback": {"oneOf": [*kinds.values(), {**many, "additionalProperties": False}]},
        "Accepted": _object(("accepted",), accepted=_COUNT),
    }


def _of_signature(signature: Signature | None, settings: Settings) -> Document:
    """Requests and replies of a model; without one, any object."""
    if signature is None:
        return {name: {"type": "object"} for name in ("Rows", "Predictions", "InferRequest", "InferReply")}
    identity = {"type": "string", "maxLength": 256}
    parameters = {"type": ["object", "null"]}
    stamp = {"model_name": {"const": settings.service}, "model_version": _TEXT, "id": _TEXT}
    inputs = [_tensor(tensor) for tensor in signature.inputs]
    return {
        "Rows": {
            **_object(
                ("rows",), rows=_list(_row(signature), minItems=1, maxItems=settings.max_rows), id=identity,
                parameters=parameters,
            ),
            "additionalProperties": False,
        },
        "Predictions": _object(
            (*stamp, "predictions"), **stamp, predictions=_list(_prediction(signature), minItems=1)
        ),
        "InferRequest": _object(
            ("inputs",), id=identity, parameters=parameters,
            inputs={
                "type": "array", "prefixItems": inputs, "items": False, "minItems": len(inputs),
                "maxItems": len(inputs),
            },
            outputs=_list(_object(("name",), name={"enum": [tensor.name for tensor in signature.outputs]})),
        ),
        "InferReply": _object(
            (*stamp, "outputs"), **stamp,
            outputs=_list(_object(("name", "datatype", "shape"), name=_TEXT, datatype=_TEXT, shape=_list(_COUNT))),
        ),
    }  # fmt: skip


def _element(tensor: Tensor, *, loose: bool = False) -> Document:
    if tensor.datatype == "BYTES":
        return {"type": ["string", "null"]}
    if tensor.datatype == "BOOL":
        return _TRUTH
    if tensor.datatype in FLOATING:
        kinds = ["number", "null", *(["boolean"] if loose else [])]
        limit = _INFINITE.get(tensor.datatype)
        return {"type": kinds, **({"exclusiveMinimum": -limit, "exclusiveMaximum": limit} if limit else {})}
    bits = int(tensor.datatype.lstrip("UINT"))
    low, high = (0, 2**bits - 1) if tensor.datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return {"type": "integer", "minimum": low, "maximum": high}


def _tensor(tensor: Tensor) -> Document:
    """One row of a tensor: what a shape and its data have to do with each other, a schema cannot say."""
    width = [1 if size == -1 else size for size in tensor.shape[1:]]
    count = 1
    for size in width:
        count *= size
    return _object(
        ("name", "datatype", "shape", "data"), name={"const": tensor.name}, datatype={"const": tensor.datatype},
        shape={"const": [1, *width]}, data=_list(_element(tensor), minItems=count, maxItems=count),
    )  # fmt: skip


def _row(signature: Signature) -> Document:
    columns = {column: _element(tensor, loose=True) for tensor in signature.inputs for column in tensor.columns}
    return {"type": "object", "required": list(columns), "properties": columns, "additionalProperties": False}


def _prediction(signature: Signature) -> Document:
    names = {tensor.name for tensor in signature.outputs}
    if names >= {"label", "probabilities"}:
        share = {"type": "number", "minimum": 0}
        classes = {str(label): share for label in signature.classes}
        return _object(
            ("label", "probabilities"), label={"type": ["string", "integer"]},
            probabilities={**_object(tuple(classes), **classes), "additionalProperties": False},
        )  # fmt: skip
    return _object(tuple(sorted(names)))
