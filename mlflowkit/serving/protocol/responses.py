"""Renders reply bodies: the Open Inference Protocol in JSON or with binary tensors, and plain rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from mlflowkit.serving.protocol.binary_tensors import JSON_LENGTH_HEADER, encode
from mlflowkit.serving.protocol.http_error import RequestError
from mlflowkit.serving.protocol.input_schema import Query, Schema

Headers = tuple[tuple[bytes, bytes], ...]
_SMALL = 64
MAX_NOTED_COLUMNS, MAX_NAME = 10, 40
"""Columns that a note of a reply names, the rest being counted under "...", and characters of a name: the names of
unknown columns are the client's, and headers have a limit."""


def answer_notes(query: Query) -> dict[str, dict[str, int]]:
    """What the client should know about an answered query, with bounded names; see `Query`. Mostly empty."""
    return {name: _first_columns(cells) for name, cells in query.notes.items()} if query.notes else {}


def note_texts(notes: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    r"""Each note as ASCII JSON, for headers and for the protocol's parameters, which are scalars.

    >>> note_texts({"unseen_categories": {"café": 2}})
    {'unseen_categories': '{"caf\\u00e9": 2}'}
    """
    return {name: json.dumps(columns) for name, columns in notes.items()}


def note_headers(notes: Mapping[str, Mapping[str, int]]) -> Headers:
    """The notes as headers: ``x-mlkit-unseen-categories: {"term": 1}``."""
    return tuple(
        (b"x-mlkit-" + name.replace("_", "-").encode(), text.encode()) for name, text in note_texts(notes).items()
    )


def _first_columns(cells: Mapping[str, int]) -> dict[str, int]:
    first: Counter[str] = Counter()
    for number, (name, count) in enumerate(cells.items()):
        first[name[:MAX_NAME] if number < MAX_NOTED_COLUMNS else "..."] += count
    return dict(first)


def render_infer(
    schema: Schema, query: Query, arrays: Mapping[str, np.ndarray], *, model: str, version: str, id: str
) -> tuple[bytes, Headers]:
    """The body of an infer reply and its headers; the outputs of ``query.binary`` follow the JSON part as bytes."""
    outputs: list[dict[str, Any]] = []
    parts: list[bytes | memoryview] = []
    for name in query.outputs or schema.outputs:
        datatype, array = requested_output(schema, query, name, arrays)
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": array.shape}
        if name in query.binary:
            parts.append(encode(array))
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            output["data"] = array.ravel().tolist() if array.dtype == object else np.ascontiguousarray(array).ravel()
        outputs.append(output)
    reply: dict[str, Any] = {"model_name": model, "model_version": version, "id": id, "outputs": outputs}
    if notes := answer_notes(query):
        reply["parameters"] = note_texts(notes)
    front = orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)
    if not parts:
        return front, ()
    headers = ((b"content-type", b"application/octet-stream"), (JSON_LENGTH_HEADER, b"%d" % len(front)))
    return b"".join((front, *parts)), headers


def requested_output(
    schema: Schema, query: Query, name: str, arrays: Mapping[str, np.ndarray]
) -> tuple[str, np.ndarray]:
    """Datatype and values of an output: as the graph made them, or as its top classes where the request says so."""
    for asked, count in query.classes:
        if asked == name:
            return "BYTES", top_classes(arrays[name], count, schema.signature.classes)
    return schema.outputs[name].datatype, arrays[name]


def top_classes(array: np.ndarray, count: int, classes: Sequence[str | int]) -> np.ndarray:
    """The largest values of each row as ``value:index:label`` (without a label where none is known), largest first.

    Equal values keep the order of the classes.

    >>> top_classes(np.array([[0.25, 0.75]], dtype=np.float32), 1, ("bad", "good")).tolist()
    [['0.750000:1:good']]
    """
    rows = array.reshape(len(array), -1)
    best = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    labels = [f":{label}" for label in classes] if len(classes) == rows.shape[1] else [""] * rows.shape[1]
    texts = np.empty(best.shape, dtype=object)
    for place, index in np.ndenumerate(best):
        texts[place] = f"{rows[place[0], index]:f}:{index}{labels[index]}"
    return texts


def render_rows(
    schema: Schema, query: Query, arrays: Mapping[str, np.ndarray], *, model: str, version: str, id: str
) -> bytes:
    """The body of a /predict reply with finite outputs: one prediction a row, and the query's notes, if any."""
    reply: dict[str, Any] = {"model_name": model, "model_version": version, "id": id}
    reply["predictions"] = predictions(schema, arrays)
    if notes := answer_notes(query):
        reply["notes"] = notes
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def predictions(schema: Schema, arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Outputs by row: ``{"label", "probabilities": {class: p}}`` or ``{"prediction"}``, otherwise by output name.

    Numbers stay NumPy scalars, which orjson prints as short as their type allows (0.1, not 0.10000000149).
    """
    if "probabilities" in arrays and "label" in arrays:
        classes = [str(label) for label in schema.signature.classes]
        labels = arrays["label"].reshape(-1).tolist()
        return [
            {"label": label, "probabilities": dict(zip(classes, row, strict=True))}
            for label, row in zip(labels, arrays["probabilities"], strict=True)
        ]
    if arrays.keys() == {"prediction"}:
        return [{"prediction": value} for value in arrays["prediction"].reshape(-1)]
    columns = [array.tolist() if array.dtype == object else array for array in arrays.values()]
    return [dict(zip(arrays, row, strict=True)) for row in zip(*columns, strict=True)]


def require_finite(array: np.ndarray, name: str) -> np.ndarray:
    """Return the array; raise RequestError(422) when it holds NaN or an infinity.

    A well-formed row without a finite answer is neither a malformed request (400) nor a server failure (500): the
    model cannot answer it, and JSON could not carry the value.
    """
    if array.dtype.kind != "f":
        return array
    if array.size <= _SMALL:  # a sum of floats is faster than a NumPy call; a non-finite sum may be an overflow
        total = sum(array.ravel().tolist())
        if total - total == 0.0:
            return array
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0, 0])
        message = f"row {row}: the model has no finite answer ({name} is not a number) for these values"
        raise RequestError(422, message, reason="no finite answer")
    return array
