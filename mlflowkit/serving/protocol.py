"""Request bodies to arrays, arrays to reply bodies: the Open Inference Protocol v2 in JSON, and plain rows.

Pure: bytes in, arrays out, no clock and no socket. Everything wrong with a body is a `Refusal`, which has the
HTTP status and a sentence that says where the fault is, what was found and what is allowed. What is decided here:

- A tensor is sent whole, as the signature names it (``numeric`` FP32 [rows, k], ``categorical`` BYTES
  [rows, m]), or as one tensor a column (its name is the column's, its shape [rows] or [rows, 1]).
- ``data`` is flat (row-major) or nested as deep as its shape; it must hold exactly the product of the shape.
- ``null`` is a missing value: NaN in a numeric tensor, the empty string in a categorical one. The literals
  ``NaN`` and ``Infinity`` are not JSON, and a number beyond the range of FP32 is refused, not made infinite.
- A row of ``/predict`` names every column, with null for what is missing: a column left out is more often
  a mistake than a missing value, and imputing it silently would hide the mistake.
- A category that training never saw is answered (the graph encodes it as zeros) and counted.

Source: Open Inference Protocol, "inference_rest" of the KServe project.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from mlflowkit.bundle import Signature, Tensor
from mlflowkit.errors import nearest
from mlflowkit.tables import category_text

_DTYPES: Mapping[str, Any] = {
    "FP32": np.float32,
    "FP64": np.float64,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "BYTES": np.object_,
}
_NUMBERS = ("FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL")
_REAL = frozenset({float, int})
_INTEGER = frozenset({int})
_TEXT = frozenset({str})
_NULL = type(None)
_FP32_LIMIT = 3.4028235e38
_ROWS_KEYS = ("rows", "id", "parameters")
_SCALARS = frozenset({str, int, float, bool, _NULL})
_JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
}


class Refusal(Exception):
    """An answer to a request that cannot be served as it was asked. Not a fault of ours: status is 4xx or 503."""

    def __init__(self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


@dataclass(slots=True)
class Query:
    """A request, parsed; not frozen, because a frozen one takes three times as long to make.

    ``inputs`` is what the graph takes; ``outputs`` names the outputs asked for (all if empty).
    """

    inputs: Mapping[str, np.ndarray]
    rows: int
    id: str = ""
    outputs: tuple[str, ...] = ()
    unseen: Mapping[str, int] = field(default_factory=dict)
    """Cells, by column, that hold a category which training never saw."""


class Schema:
    """A signature made ready for parsing: names looked up once, not once a request.

    ``categories`` has the complete set of values that training saw, for the columns where it is known.

    >>> from mlflowkit.bundle import Signature, Tensor
    >>> schema = Schema(Signature(task="regression",
    ...     inputs=(Tensor(name="numeric", datatype="FP32", shape=(-1, 2), columns=("age", "income")),),
    ...     outputs=(Tensor(name="prediction", datatype="FP32", shape=(-1,)),)))
    >>> schema.rows({"rows": [{"age": 41, "income": None}]}, limit=10).inputs["numeric"]
    array([[41., nan]], dtype=float32)
    """

    def __init__(self, signature: Signature, categories: Mapping[str, frozenset[str]] | None = None) -> None:
        self.signature = signature
        self.tensors = {tensor.name: tensor for tensor in signature.inputs}
        self.outputs = {tensor.name: tensor for tensor in signature.outputs}
        self.columns = {
            column: (tensor, place) for tensor in signature.inputs for place, column in enumerate(tensor.columns)
        }
        self.widths = {tensor.name: _width(tensor) for tensor in signature.inputs}
        self.categories = dict(categories or {})
        self._watched = {
            tensor.name: tuple(
                (column, place) for place, column in enumerate(tensor.columns) if column in self.categories
            )
            for tensor in signature.inputs
            if tensor.datatype == "BYTES"
        }

    def infer(self, document: Mapping[str, Any], *, limit: int) -> Query:
        """Parse an infer request of at most ``limit`` rows. Raises Refusal."""
        given = document.get("inputs")
        if type(given) is not list or not given:
            raise Refusal(400, 'inputs: a list of tensors is needed, such as {"inputs": [{"name": ..., "shape": ..., '
                               '"datatype": ..., "data": [...]}]}')  # fmt: skip
        named: dict[str, dict[str, Any]] = {}
        for index, tensor in enumerate(given):
            name = tensor.get("name") if type(tensor) is dict else None
            if type(name) is not str:
                raise Refusal(400, f"inputs[{index}]: an object with a name is needed, found {_kind(tensor)}")
            if name in named:
                raise Refusal(400, f"inputs[{index}]: tensor {_show(name)} is given twice")
            named[name] = tensor
        inputs, rows = self._tensors(named, limit) if not named.keys().isdisjoint(self.tensors) else self._by_column(
            named, limit
        )  # fmt: skip
        identity = document.get("id", "")
        if type(identity) is not str or len(identity) > 256:
            raise Refusal(400, "id: a string of at most 256 characters is needed")
        outputs = self._asked(document["outputs"]) if "outputs" in document else ()
        return Query(inputs, rows, identity, outputs, self._unseen(inputs))

    def rows(self, document: Mapping[str, Any], *, limit: int) -> Query:
        """Parse a /predict request, ``{"rows": [{column: value}]}``. Raises Refusal."""
        rows = document.get("rows")
        if type(rows) is not list or not rows:
            raise Refusal(400, 'rows: a list of at least one row is needed, such as {"rows": [{"column": value}]}')
        for key in document:
            if key not in _ROWS_KEYS:
                raise Refusal(
                    400, f"{_show(key)} is not known here; allowed: rows, id, parameters{_nearest(key, _ROWS_KEYS)}"
                )
        if len(rows) > limit:
            raise Refusal(413, f"{len(rows)} rows; at most {limit} are answered at once")
        identity = document.get("id", "")
        if type(identity) is not str or len(identity) > 256:
            raise Refusal(400, "id: a string of at most 256 characters is needed")
        inputs = self.arrays(rows)
        return Query(inputs, len(rows), identity, (), self._unseen(inputs))

    def arrays(self, rows: Sequence[Any]) -> dict[str, np.ndarray]:
        """Rows of ``{column: value}`` as the tensors of the signature. Raises Refusal naming row and column."""
        wanted = self.columns.keys()
        for index, row in enumerate(rows):
            if type(row) is not dict:
                raise Refusal(400, f"row {index}: an object of column: value is needed, found {_kind(row)}")
            if row.keys() != wanted:
                self._wrong_columns(index, row)
        inputs: dict[str, np.ndarray] = {}
        for tensor in self.signature.inputs:
            columns = tensor.columns
            cells = [row[column] for row in rows for column in columns]
            if tensor.datatype == "BYTES":
                if not set(map(type, cells)) <= _TEXT:
                    cells = self._categories(cells, columns)
                inputs[tensor.name] = np.array(cells, dtype=object).reshape(len(rows), len(columns))
            else:
                inputs[tensor.name] = _numbers(cells, tensor, loose=True).reshape(len(rows), len(columns))
        return inputs

    def _categories(self, cells: Sequence[Any], columns: Sequence[str]) -> list[str]:
        """Cells as the text that they are to the graph. A number or a boolean passes where training saw it as one."""
        texts = []
        for place, cell in enumerate(cells):
            column = columns[place % len(columns)]
            known = self.categories.get(column)
            text = category_text(cell) if type(cell) in _SCALARS else None
            if text is None or (known is not None and text not in known and type(cell) is not str and text):
                raise Refusal(
                    400,
                    f"row {place // len(columns)}, column {column}: {_kind(cell)} ({_show(cell)}); "
                    "a string or null is expected",
                )
            texts.append(text)
        return texts

    def _wrong_columns(self, index: int, row: Mapping[str, Any]) -> None:
        for column in row:
            if column not in self.columns:
                raise Refusal(
                    400,
                    f"row {index}: column {_show(column)} is not known; allowed: {_listing(self.columns)}"
                    f"{_nearest(column, self.columns)}",
                )
        missing = [column for column in self.columns if column not in row]
        raise Refusal(
            400, f"row {index}: column {missing[0]} is not given; null says that a value is missing"
            + (f" (also not given: {_listing(missing[1:])})" if len(missing) > 1 else "")
        )  # fmt: skip

    def _tensors(self, named: Mapping[str, dict[str, Any]], limit: int) -> tuple[dict[str, np.ndarray], int]:
        inputs: dict[str, np.ndarray] = {}
        rows = -1
        for name, given in named.items():
            tensor = self.tensors.get(name)
            if tensor is None:
                raise self._unknown_input(name)
            if given.get("datatype") != tensor.datatype:
                raise Refusal(
                    400, f"inputs[{name}]: datatype {_show(given.get('datatype'))}; {tensor.datatype} is expected"
                )
            width = self.widths[name]
            shape = given.get("shape")
            if (
                type(shape) is not list
                or not _integers(shape[1:])
                or len(shape) != 1 + len(width)
                or tuple(shape[1:]) != width
            ):
                raise Refusal(
                    400, f"inputs[{name}]: shape {_show(shape)}; {_shape_text(tensor)} is expected (-1: rows)"
                )
            rows = _same_rows(name, shape, rows, limit)
            inputs[name] = _data(given, tensor, shape)
        for name in self.tensors:
            if name not in inputs:
                raise Refusal(400, f"inputs: tensor {name} is missing; expected {_listing(self.tensors)}")
        return inputs, rows

    def _by_column(self, named: Mapping[str, dict[str, Any]], limit: int) -> tuple[dict[str, np.ndarray], int]:
        parts: dict[str, np.ndarray] = {}
        rows = -1
        for name, given in named.items():
            if name not in self.columns:
                raise self._unknown_input(name)
            tensor, _ = self.columns[name]
            allowed = ("BYTES",) if tensor.datatype == "BYTES" else _NUMBERS
            if given.get("datatype") not in allowed:
                raise Refusal(
                    400, f"inputs[{name}]: datatype {_show(given.get('datatype'))}; {tensor.datatype} is expected"
                )
            shape = given.get("shape")
            if type(shape) is not list or shape[1:] not in ([], [1]) or not _integers(shape[1:]):
                raise Refusal(400, f"inputs[{name}]: shape {_show(shape)}; [-1] or [-1, 1] is expected (-1: rows)")
            rows = _same_rows(name, shape, rows, limit)
            parts[name] = _data(given, tensor, shape).reshape(rows)
        missing = [column for column in self.columns if column not in parts]
        if missing:
            raise Refusal(400, f"inputs: columns {_listing(missing)} are missing; null says that a value is missing")
        inputs = {
            tensor.name: np.stack([parts[column] for column in tensor.columns], axis=1)
            for tensor in self.signature.inputs
        }
        return inputs, rows

    def _unknown_input(self, name: str) -> Refusal:
        allowed = [*self.tensors, *self.columns]
        return Refusal(
            400,
            f"inputs: tensor {_show(name)} is not known; expected {_listing(self.tensors)}, or one tensor for each of "
            f"{_listing(self.columns)}{_nearest(name, allowed)}",
        )

    def _asked(self, outputs: Any) -> tuple[str, ...]:
        if type(outputs) is not list:
            raise Refusal(400, f"outputs: a list is needed, found {_kind(outputs)}")
        names = []
        for index, output in enumerate(outputs):
            name = output.get("name") if type(output) is dict else None
            if type(name) is not str or name not in self.outputs:
                raise Refusal(
                    400, f"outputs[{index}]: {_show(name)} is not known; allowed: {_listing(self.outputs)}"
                    f"{_nearest(name, self.outputs)}"
                )  # fmt: skip
            names.append(name)
        return tuple(names)

    def _unseen(self, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
        unseen: dict[str, int] = {}
        for name, watched in self._watched.items():
            cells = inputs[name].ravel().tolist()
            width = len(self.tensors[name].columns)
            for column, place in watched:
                found = cells[place::width]
                strange = set(found) - self.categories[column] - {""}
                if strange:
                    unseen[column] = sum(1 for value in found if value in strange)
        return unseen


def render_infer(
    schema: Schema, query: Query, answers: Mapping[str, np.ndarray], *, model: str, version: str, id: str
) -> bytes:
    """The body of an infer reply; the answers are finite."""
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

    Numbers stay NumPy scalars, which orjson prints as short as their type allows (0.1, not 0.10000000149).
    """
    if "probabilities" not in answers:
        return [{"prediction": value} for value in answers["prediction"].reshape(-1)]
    classes = [str(label) for label in schema.signature.classes]
    labels = answers["label"].reshape(-1).tolist()
    shares = answers["probabilities"]
    return [
        {"label": label, "probabilities": dict(zip(classes, row, strict=True))}
        for label, row in zip(labels, shares, strict=True)
    ]


def finite(array: np.ndarray, name: str) -> np.ndarray:
    """The array, or Refusal(422) when it holds NaN or an infinity.

    A graph that has no finite answer for a well-formed row is not a fault of the request's form (400) nor of the
    server (500): the row lies outside of what the model can answer. JSON could not carry the value either.
    """
    if array.dtype.kind == "f" and not math.isfinite(sum(array.ravel().tolist())):
        row = int(np.argwhere(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0, 0])
        raise Refusal(422, f"row {row}: the model has no finite answer ({name} is not a number) for these values")
    return array


def zeros(signature: Signature, rows: int) -> dict[str, np.ndarray]:
    """Inputs of the right shapes for a warm-up: zeros and empty strings."""
    inputs: dict[str, np.ndarray] = {}
    for tensor in signature.inputs:
        shape = (rows, *_width(tensor))
        inputs[tensor.name] = (
            np.full(shape, "", dtype=object)
            if tensor.datatype == "BYTES"
            else np.zeros(shape, _DTYPES[tensor.datatype])
        )
    return inputs


def read_document(body: bytes) -> dict[str, Any]:
    """The JSON object that a body holds. Raises Refusal."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from error
    if type(document) is not dict:
        raise Refusal(400, f"the body must be a JSON object, found {_kind(document)}")
    return document


def _data(given: Mapping[str, Any], tensor: Tensor, shape: Sequence[int]) -> np.ndarray:
    data = given.get("data")
    if type(data) is not list:
        raise Refusal(400, f"inputs[{tensor.name}]: data must be a list, found {_kind(data)}")
    if data and type(data[0]) is list:
        data = _flatten(data, given["name"], shape)
    count = 1
    for size in shape:
        count *= size
    if len(data) != count:
        raise Refusal(400, f"inputs[{given['name']}]: {len(data)} values in data; shape {_show(shape)} needs {count}")
    array = _texts(data, tensor) if tensor.datatype == "BYTES" else _numbers(data, tensor)
    return array.reshape(shape)


def _flatten(data: list[Any], name: str, shape: Sequence[int]) -> list[Any]:
    """Nested data as one list, row-major; each level must be as long as the shape says."""
    if len(data) != shape[0]:
        raise Refusal(400, f"inputs[{name}]: data has {len(data)} rows; shape {_show(list(shape))} needs {shape[0]}")
    for size in shape[1:]:
        flat: list[Any] = []
        for part in data:
            if type(part) is not list or len(part) != size:
                raise Refusal(400, f"inputs[{name}]: data is not nested as shape {_show(list(shape))} says")
            flat += part
        data = flat
    return data


def _numbers(values: list[Any], tensor: Tensor, *, loose: bool = False) -> np.ndarray:
    kinds = set(map(type, values))
    if tensor.datatype == "FP32" and kinds <= _REAL and min(values) > -_FP32_LIMIT and max(values) < _FP32_LIMIT:
        return np.array(values, dtype=np.float32)  # the road that nearly every request takes
    if not kinds <= _REAL:
        allowed = _REAL | ({_NULL, bool} if loose or tensor.datatype == "BOOL" else {_NULL})
        if not kinds <= allowed:
            _wrong_cell(values, allowed, tensor, loose)
    if None in values and not tensor.datatype.startswith("FP"):
        raise Refusal(400, f"inputs[{tensor.name}]: null is not allowed in {tensor.datatype}")
    with np.errstate(over="ignore"):
        try:
            array = np.array(values, dtype=_DTYPES[tensor.datatype])
        except OverflowError as error:
            raise Refusal(400, f"inputs[{tensor.name}]: a value is beyond the range of {tensor.datatype}") from error
    if array.dtype.kind == "f" and np.isinf(array).any():
        place = int(np.argmax(np.isinf(array)))
        raise Refusal(400, f"{_cell(place, tensor, loose)}: {values[place]!r} is beyond the range of {tensor.datatype}")
    return array


def _texts(values: list[Any], tensor: Tensor) -> np.ndarray:
    kinds = set(map(type, values))
    if not kinds <= _TEXT:
        if not kinds <= {str, _NULL}:
            _wrong_cell(values, frozenset({str, _NULL}), tensor, loose=False)
        values = ["" if value is None else value for value in values]
    return np.array(values, dtype=object)


def _wrong_cell(values: list[Any], allowed: frozenset[type], tensor: Tensor, loose: bool) -> None:
    place = next(index for index, value in enumerate(values) if type(value) not in allowed)
    expected = "a string or null" if tensor.datatype == "BYTES" else "a number or null"
    raise Refusal(400, f"{_cell(place, tensor, loose)}: {_kind(values[place])} ({_show(values[place])}); {expected} is "
                       "expected")  # fmt: skip


def _cell(place: int, tensor: Tensor, loose: bool) -> str:
    width = max(1, len(tensor.columns))
    if loose:
        return f"row {place // width}, column {tensor.columns[place % width]}"
    return f"inputs[{tensor.name}], value {place}"


def _integers(sizes: list[Any]) -> bool:
    """Whether all are integers; true and 1.0 equal 1, and are none."""
    return set(map(type, sizes)) <= _INTEGER


def _same_rows(name: str, shape: Sequence[Any], rows: int, limit: int) -> int:
    found = shape[0]
    if type(found) is not int or found < 1:
        raise Refusal(400, f"inputs[{name}]: shape {_show(shape)}; one row or more is expected")
    if found > limit:
        raise Refusal(413, f"inputs[{name}]: {found} rows; at most {limit} are answered at once")
    if rows not in (-1, found):
        raise Refusal(400, f"inputs[{name}]: {found} rows, another tensor has {rows}")
    return int(found)


def _width(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape[1:])


def _shape_text(tensor: Tensor) -> str:
    return "[" + ", ".join(str(size) for size in tensor.shape) + "]"


def _kind(value: Any) -> str:
    return "null" if value is None else _JSON_NAMES.get(type(value), type(value).__name__)


def _show(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."


def _listing(names: Any) -> str:
    names = list(names)
    shown = ", ".join(str(name) for name in names[:40])
    return shown if len(names) <= 40 else f"{shown}, ... ({len(names)} in all)"


def _nearest(name: Any, allowed: Any) -> str:
    close = nearest(str(name)[:80], map(str, allowed))
    return f". Did you mean {close}?" if close else ""
