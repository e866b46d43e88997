"""Answers to reply bodies: the Open Inference Protocol in JSON or with bytes after it, and plain rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from mlflowkit.serving.protocol.binary_tensors import HEADER, encode
from mlflowkit.serving.protocol.http_error import Refusal
from mlflowkit.serving.protocol.input_schema import Query, Schema

Headers = tuple[tuple[bytes, bytes], ...]
_SMALL = 64


def render_infer(
    schema: Schema, query: Query, answers: Mapping[str, np.ndarray], *, model: str, version: str, id: str
) -> bytes:
    """The body of an infer reply in JSON; the answers are finite."""
    outputs = []
    for name in query.outputs or schema.outputs:
        array = answers[name]
        outputs.append(
            {
                "name": name,
                "datatype": schema.outputs[name].datatype,
                "shape": array.shape,
                "data": array.ravel().tolist() if array.dtype == object else np.ascontiguousarray(array).ravel(),
            }
        )
    reply = {"model_name": model, "model_version": version, "id": id, "outputs": outputs}
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def render_binary(
    schema: Schema, query: Query, answers: Mapping[str, np.ndarray], *, model: str, version: str, id: str
) -> tuple[bytes, Headers]:
    """The body of an infer reply with the outputs of ``query.binary`` as bytes after the JSON part, and its headers."""
    outputs: list[dict[str, Any]] = []
    parts: list[bytes | memoryview] = [b""]
    for name in query.outputs or schema.outputs:
        array = answers[name]
        output: dict[str, Any] = {"name": name, "datatype": schema.outputs[name].datatype, "shape": array.shape}
        if name in query.binary:
            parts.append(encode(array))
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            output["data"] = array.ravel().tolist() if array.dtype == object else np.ascontiguousarray(array).ravel()
        outputs.append(output)
    reply = {"model_name": model, "model_version": version, "id": id, "outputs": outputs}
    parts[0] = orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = ((b"content-type", b"application/octet-stream"), (HEADER, b"%d" % len(parts[0])))
    return b"".join(parts), headers


def render_rows(schema: Schema, answers: Mapping[str, np.ndarray], *, model: str, version: str, id: str) -> bytes:
    """The body of a /predict reply: one prediction a row; the answers are finite."""
    reply = {
        "model_name": model,
        "model_version": version,
        "id": id,
        "predictions": predictions(schema, answers),
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def predictions(schema: Schema, answers: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Answers as people read them: ``{"label", "probabilities": {class: p}}`` or ``{"prediction"}`` a row.

    Numbers stay NumPy scalars, which orjson prints as short as their type allows (0.1, not 0.10000000149). A graph
    with other outputs than these is told by its own names.
    """
    if "probabilities" in answers and "label" in answers:
        classes = [str(label) for label in schema.signature.classes]
        labels = answers["label"].reshape(-1).tolist()
        return [
            {"label": label, "probabilities": dict(zip(classes, row, strict=True))}
            for label, row in zip(labels, answers["probabilities"], strict=True)
        ]
    if answers.keys() == {"prediction"}:
        return [{"prediction": value} for value in answers["prediction"].reshape(-1)]
    columns = [array.tolist() if array.dtype == object else array for array in answers.values()]
    return [dict(zip(answers, row, strict=True)) for row in zip(*columns, strict=True)]


def finite(array: np.ndarray, name: str) -> np.ndarray:
    """The array, or Refusal(422) when it holds NaN or an infinity.

    A graph that has no finite answer for a well-formed row is not a fault of the request's form (400) nor of the
    server (500): the row lies outside of what the model can answer. JSON could not carry the value either.
    """
    if array.dtype.kind != "f":
        return array
    if array.size <= _SMALL:  # a sum of floats is quicker than a call of NumPy; not finite, it only asks for a look
        total = sum(array.ravel().tolist())
        if total - total == 0.0:
            return array
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0, 0])
        raise Refusal(422, f"row {row}: the model has no finite answer ({name} is not a number) for these values")
    return array
