"""A gateway's OpenAPI 3.1 document, from its routes and the signature of its champion."""

from __future__ import annotations

import math
import re
from typing import Any

import mlflowkit
from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.features.dates.date_terms import ZONES, Zone
from mlflowkit.service_state.records import GatewaySettings
from mlflowkit.serving.inference import metadata
from mlflowkit.serving.inference.variants import ActiveTable
from mlflowkit.serving.protocol.json_tensors import DTYPES, FLOATING

Document = dict[str, Any]
_OVERFLOW = {"FP16": 65520.0, "FP32": 3.4028235677973366e38}
"""Smallest numbers that round to infinity, which are refused; beyond FP64, the JSON parser refuses them."""
_ERRORS = {
    "400": "The body is malformed; the message says where, what was found and what is allowed.",
    "401": "No valid API key.",
    "403": "An API key without the scope, or an operation that no key permits.",
    "404": "No such model or version.",
    "415": "A content type or a content encoding that is not read.",
    "408": "The body arrived too slowly.",
    "413": "Too many bytes or rows.",
    "422": "The model has no finite answer for these values.",
    "503": "No model yet, or too many requests are waiting: retry after Retry-After.",
    "504": "The deadline passed.",
}
_COMMON_ERRORS = ("401", "403", "503")
_INFERENCE_ERRORS = ("400", "404", "408", "413", "415", "422", "504")
_TEXT: Document = {"type": "string"}
_COUNT: Document = {"type": "integer", "minimum": 0}
_BOOLEAN: Document = {"type": "boolean"}
_NOTES: Document = {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": _COUNT}}
"""What the client should know about the rows, by note: cells by column."""


def openapi(service: str, active: ActiveTable | None, settings: GatewaySettings) -> Document:
    """The document of a service, with the inputs of its champion if there is one."""
    signature = None if active is None else active.champion.bundle.signature
    return {
        "openapi": "3.1.0",
        "info": {
            "title": service,
            "version": "none" if active is None else active.champion.variant.version,
            "description": f"Open Inference Protocol v2, answered by mlflowkit {mlflowkit.__version__}. "
            "Tensors may also be sent as bytes: see the binary tensor data extension.",
        },
        "paths": _paths(service, active),
        "components": {
            "schemas": {
                **_protocol_schemas(service),
                **_feedback_schemas(settings.max_rows),
                **_model_schemas(signature, settings),
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        **({"security": [{"bearer": []}, {"key": []}]} if settings.keys else {}),
    }


def _paths(service: str, active: ActiveTable | None) -> Document:
    load_text = f"Refused: {metadata.load_not_allowed().message}"
    metrics = {"200": {"description": "Metrics", "content": {"text/plain": {"schema": _TEXT}}}}
    page = {"200": {"description": "A page", "content": {"text/html": {"schema": _TEXT}}}}
    healthz = {"200": {"description": "success", "content": {"text/plain": {"schema": _TEXT}}}}
    ready_filter = {"required": False, "content": {"application/json": {"schema": _object((), ready=_BOOLEAN)}}}
    feedback_text = "Report ground truth by request id"
    paths: Document = {
        "/v2": {"get": _operation("serverMetadata", "Server metadata", "ServerMetadata")},
        "/v2/health/live": {"get": _operation("serverLive", "Whether the process answers", "Live")},
        "/v2/health/ready": {"get": _operation("serverReady", "Whether there is a model", "Ready")},
        "/v2/models/stats": {"get": _operation("allStatistics", "Statistics of every version", "Statistics")},
        "/v2/repository/index": {
            "post": {
                **_operation("repositoryIndex", "Loaded versions", "Index", "400", "408", "413"),
                "requestBody": ready_filter,
            }
        },
        "/predict": {"post": _inference("predict", "Predict from plain rows", "Rows", "Predictions")},
        "/invocations": {"post": _invocations()},
        "/ping": {"get": _operation("ping", "Whether there is a model, for SageMaker", "Ready")},
        "/-/healthz": {"get": _operation("healthz", "Whether there is a model, for KubeRay", None, responses=healthz)},
        "/v2/feedback": {
            "post": {
                **_operation("feedback", feedback_text, "Accepted", "400", "404", "408", "413", "415", status="202"),
                "requestBody": {"required": True, "content": _json_content("Feedback")},
            }
        },
        "/v2/delivery": {"get": _operation("delivery", "What follows a delivery.yaml has done", "Delivery", "404")},
        "/metrics": {"get": _operation("metrics", "Metrics for Prometheus", None, responses=metrics)},
        "/openapi.json": {"get": _operation("openapi", "This document", "Document")},
        "/docs": {"get": _operation("docs", "This document as a page for people", None, responses=page)},
    }
    for verb in ("load", "unload"):
        operation = _operation(f"repository{verb.capitalize()}", load_text, None, "404")
        paths[f"/v2/repository/models/{service}/{verb}"] = {"post": operation}
    versions = {"enum": list(active.by_version)} if active is not None and active.by_version else {}
    version = {"name": "version", "in": "path", "required": True, "schema": {**_TEXT, **versions}}
    for path, infix, item in (("", "", {}), ("/versions/{version}", "Version", {"parameters": [version]})):
        prefix, name = f"/v2/models/{service}{path}", f"model{infix}"
        paths |= {
            prefix: {"get": _operation(f"{name}Metadata", "Model metadata", "ModelMetadata", "404"), **item},
            f"{prefix}/ready": {
                "get": _operation(f"{name}Ready", "Whether the model answers", "ModelReady", "404"), **item,
            },
            f"{prefix}/config": {
                "get": _operation(f"{name}Config", "Model configuration", "ModelConfig", "404"), **item,
            },
            f"{prefix}/stats": {"get": _operation(f"{name}Statistics", "Statistics", "Statistics", "404"), **item},
            f"{prefix}/infer": {
                "post": _inference(f"{name}Infer", "Infer from tensors", "InferRequest", "InferReply"), **item,
            },
        }  # fmt: skip
    return paths


def _json_content(schema: str) -> Document:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _operation(
    operation: str,
    summary: str,
    schema: str | None,
    *errors: str,
    status: str = "200",
    responses: Document | None = None,
) -> Document:
    """An operation with one successful response (a named schema, or ``responses``) and its errors."""
    if schema is not None:
        responses = {status: {"description": summary, "content": _json_content(schema)}}
    failures = {
        code: {"description": _ERRORS[code], "content": _json_content("Error")}
        for code in sorted((*_COMMON_ERRORS, *errors))
    }
    return {"operationId": operation, "summary": summary, "responses": {**(responses or {}), **failures}}


def _inference(operation: str, summary: str, request: str, reply: str) -> Document:
    names = ("x-mlkit-variant", "x-mlkit-version", "x-mlkit-request-id")
    headers = {name: {"schema": _TEXT} for name in names}
    answer = {"200": {"description": "The answers", "headers": headers, "content": _json_content(reply)}}
    return {
        **_operation(operation, summary, None, *_INFERENCE_ERRORS, responses=answer),
        "requestBody": {"required": True, "content": _json_content(request)},
    }


def _invocations() -> Document:
    """Rows, tensors or CSV."""
    operation = _inference("invocations", "Predict, as SageMaker calls it", "Rows", "Predictions")
    read, replies = (
        {"schema": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in names]}}
        for names in (("Rows", "InferRequest"), ("Predictions", "InferReply"))
    )
    table = {"schema": {"$ref": "#/components/schemas/Table"}}
    operation["requestBody"]["content"] = {"application/json": read, "text/csv": table}
    operation["responses"]["200"]["content"] = {"application/json": replies}
    return operation


def _object(required: tuple[str, ...], **properties: Any) -> Document:
    return {"type": "object", **({"required": list(required)} if required else {}), "properties": properties}


def _closed(schema: Document) -> Document:
    return {**schema, "additionalProperties": False}


def _list(items: Document, **limits: Any) -> Document:
    return {"type": "array", "items": items, **limits}


def _protocol_schemas(service: str) -> Document:
    """Schemas that do not depend on the model."""
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
        "Live": _object(("live",), live=_BOOLEAN),
        "Ready": _object(("ready",), ready=_BOOLEAN),
        "ServerMetadata": _object(
            ("name", "version", "extensions"), name=_TEXT, version=_TEXT, extensions=_list(_TEXT), models=_list(name)
        ),
        "ModelReady": _object(("name", "ready"), name=name, ready=_BOOLEAN),
        "ModelMetadata": _object(
            ("name", "versions", "platform", "inputs", "outputs"), name=name, versions=_list(_TEXT), platform=_TEXT,
            inputs=_list(tensor), outputs=_list(tensor), parameters={"type": "object"},
        ),
        "ModelConfig": _object(
            ("name", "platform", "max_batch_size", "input", "output"), name=name, platform=_TEXT, max_batch_size=_COUNT,
            input=_list({"type": "object"}), output=_list({"type": "object"}), parameters={"type": "object"},
        ),
        "Statistics": _object(("model_stats",), model_stats=_list(statistics)),
        "Index": _list(entry),
        "Delivery": _object(("file", "action", "reason", "fault", "served"), served={"type": "object"}),
    }  # fmt: skip


def _feedback_schemas(max_items: int) -> Document:
    """Feedback items: a label or a target each, one value a row."""
    label = {"type": ["string", "integer", "boolean"], "maxLength": 256, "minimum": -(2**53), "maximum": 2**53}
    target = {"type": "number", "exclusiveMinimum": -1e300, "exclusiveMaximum": 1e300}
    request_id = {"type": "string", "minLength": 1, "maxLength": 256}
    when = {"type": ["number", "null"], "minimum": 0, "exclusiveMaximum": 1e11}
    items = []
    for kind, value in (("label", label), ("target", target)):
        values = {"anyOf": [value, _list({"anyOf": [value, {"type": "null"}]}, contains=value)]}
        items.append(_closed(_object(("id", kind), id=request_id, time=when, **{kind: values})))
    batch = _object(("feedback",), feedback=_list({"oneOf": items}, minItems=1, maxItems=max_items))
    return {"Feedback": {"oneOf": [*items, _closed(batch)]}, "Accepted": _object(("accepted",), accepted=_COUNT)}


def _model_schemas(signature: Signature | None, settings: GatewaySettings) -> Document:
    """Requests and replies of a model; without a signature, any object."""
    if signature is None:
        schemas = {name: {"type": "object"} for name in ("Rows", "Predictions", "InferRequest", "InferReply")}
        return {**schemas, "Table": _TEXT}
    request = {"id": {"type": "string", "maxLength": 256}, "parameters": {"type": ["object", "null"]}}
    reply = {"model_name": {"const": settings.service}, "model_version": _TEXT, "id": _TEXT}
    tensors = [_tensor_schema(tensor) for tensor in signature.inputs]
    count = len(tensors)
    ignore, fill = settings.unknown_columns == "ignore", settings.missing_columns == "null"
    inputs = {"type": "array", "prefixItems": tensors, "items": ignore, "minItems": count}
    inputs |= {} if ignore else {"maxItems": count}
    output = _object(("name",), name={"enum": [tensor.name for tensor in signature.outputs]})
    cells = {column: _value_schema(tensor, row=True) for tensor in signature.inputs for column in tensor.columns}
    cells |= {column: _date_schema(zone) for column, zone in signature.texts.dates.items()}
    row = {
        "type": "object",
        "required": [] if fill else list(cells),
        "properties": cells,
        "additionalProperties": ignore,
    }
    row |= {"minProperties": 1} if fill else {}
    rows = _list(row, minItems=1, maxItems=settings.max_rows)
    predictions = _list(_prediction_schema(signature), minItems=1)
    outputs = _list(_object(("name", "datatype", "shape"), name=_TEXT, datatype=_TEXT, shape=_list(_COUNT)))
    return {
        "Rows": _closed(_object(("rows",), rows=rows, **request)),
        "Table": _table_schema(signature),
        "Predictions": _object((*reply, "predictions"), **reply, predictions=predictions, notes=_NOTES),
        "InferRequest": _object(("inputs",), **request, inputs=inputs, outputs=_list(output)),
        "InferReply": _object((*reply, "outputs"), **reply, outputs=outputs, parameters={"type": "object"}),
    }


def _table_schema(signature: Signature) -> Document:
    """CSV with the model's columns in their order, a plain case: what else is read, no pattern can say."""
    columns = [(name, tensor) for tensor in signature.inputs for name in tensor.columns]
    header = re.sub(r"([\\.^$*+?()\[\]{}|])", r"\\\1", ",".join(_csv_field(name) for name, _ in columns))
    cells = ",".join(_cell_pattern(tensor) for _, tensor in columns)
    return {
        "type": "string",
        "description": "A line of column names and a line for each row. The pattern is a plain case: columns may come "
        "in any order, texts may be quoted, and an empty field is a missing value.",
        "pattern": rf"^{header}\r?\n({cells}\r?\n){{1,100}}$",
    }


def _cell_pattern(tensor: TensorSpec) -> str:
    if tensor.datatype == "BYTES":
        return "[A-Za-z][A-Za-z0-9_-]{0,40}"
    if tensor.datatype == "BOOL":
        return "(true|false)"
    return r"-?[0-9]{1,6}(\.[0-9]{1,4})?" if tensor.datatype in FLOATING else "[0-9]{1,2}"


def _csv_field(text: str) -> str:
    """A field of a CSV, quoted where it must be (RFC 4180)."""
    return '"' + text.replace('"', '""') + '"' if re.search(r'[",\r\n]', text) else text


def _value_schema(tensor: TensorSpec, *, row: bool = False) -> Document:
    """One element of a tensor; in a row, a boolean is a number too."""
    if tensor.datatype == "BYTES":
        return {"type": ["string", "number", "boolean", "null"]}
    if tensor.datatype == "BOOL":
        return _BOOLEAN
    if tensor.datatype in FLOATING:
        types = ["number", "null", *(["boolean"] if row else [])]
        limit = _OVERFLOW.get(tensor.datatype)
        return {"type": types, **({"exclusiveMinimum": -limit, "exclusiveMaximum": limit} if limit else {})}
    bits = int(tensor.datatype.lstrip("UINT"))
    low, high = (0, 2**bits - 1) if tensor.datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return {"type": "integer", "minimum": low, "maximum": high}


def _date_schema(zone: Zone) -> Document:
    """A cell of a column of dates."""
    example = "2024-01-31T10:00:00" + ("Z" if zone == "offset" else "")
    about = f"A date in ISO 8601 {ZONES[zone]}, such as {example}, or seconds since 1970; null is a missing value."
    return {"type": ["string", "number", "null"], "description": about}


def _tensor_schema(tensor: TensorSpec) -> Document:
    """One row of a tensor: a schema cannot relate a shape to the length of its data."""
    width = [1 if size == -1 else size for size in tensor.shape[1:]]
    count = math.prod(width)
    return _object(
        ("name", "datatype", "shape", "data"), name={"const": tensor.name}, datatype={"const": tensor.datatype},
        shape={"const": [1, *width]}, data=_list(_value_schema(tensor), minItems=count, maxItems=count),
    )  # fmt: skip


def _prediction_schema(signature: Signature) -> Document:
    names = {tensor.name for tensor in signature.outputs}
    if names >= {"label", "probabilities"}:
        classes = {str(label): {"type": "number", "minimum": 0} for label in signature.classes}
        return _object(
            ("label", "probabilities"), label={"type": ["string", "integer"]},
            probabilities=_closed(_object(tuple(classes), **classes)),
        )  # fmt: skip
    return _object(tuple(sorted(names)))
