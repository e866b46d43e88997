"""A request's tensors or rows, held against a bundle's signature: what comes out is what the graph takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlflowkit.bundle import Signature, Tensor
from mlflowkit.features.tensors import category_text
from mlflowkit.serving.protocol.binary_tensors import Buffer, decode, flag
from mlflowkit.serving.protocol.http_error import Refusal, kind, listing, show, suggestion
from mlflowkit.serving.protocol.json_tensors import DTYPES, NUMERIC, converted, flat, numbers, texts

_INTEGER = frozenset({int})
_TEXT = frozenset({str})
_BYTES = frozenset({"BYTES"})
_NULL: type = type(None)
_SCALARS: frozenset[type] = frozenset({str, int, float, bool, _NULL})
_NO_RAW: Mapping[str, Buffer] = {}


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
    binary: frozenset[str] = frozenset()
    """Outputs that are sent as bytes after the JSON part of the reply."""


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
        self.widths = {tensor.name: tuple(tensor.shape[1:]) for tensor in signature.inputs}
        self.by_rows = all(tensor.columns for tensor in signature.inputs)
        self.categories = dict(categories or {})
        self._watched = {
            tensor.name: tuple(
                (column, place) for place, column in enumerate(tensor.columns) if column in self.categories
            )
            for tensor in signature.inputs
            if tensor.datatype == "BYTES"
        }

    def infer(self, document: Mapping[str, Any], *, limit: int, raw: Mapping[str, Buffer] = _NO_RAW) -> Query:
        """Parse an infer request of at most ``limit`` rows. Raises Refusal.

        ``raw`` has the bytes of the inputs, by name, that do not come as JSON's ``data``.
        """
        given = document.get("inputs")
        if type(given) is not list or not given:
            raise Refusal(400, 'inputs: a list of tensors is needed, such as {"inputs": [{"name": ..., "shape": ..., '
                               '"datatype": ..., "data": [...]}]}')  # fmt: skip
        named: dict[str, dict[str, Any]] = {}
        for index, tensor in enumerate(given):
            name = tensor.get("name") if type(tensor) is dict else None
            if type(name) is not str:
                raise Refusal(400, f"inputs[{index}]: an object with a name is needed, found {kind(tensor)}")
            if name in named:
                raise Refusal(400, f"inputs[{index}]: tensor {show(name)} is given twice")
            named[name] = tensor
        if named.keys().isdisjoint(self.tensors):
            inputs, rows = self._by_column(named, raw, limit)
        else:
            inputs, rows = self._tensors(named, raw, limit)
        outputs, binary = self._asked(document) if "outputs" in document or "parameters" in document else ((), None)
        return Query(inputs, rows, _identity(document), outputs, self._unseen(inputs), binary or frozenset())

    def rows(self, document: Mapping[str, Any], *, limit: int) -> Query:
        """Parse a /predict request, ``{"rows": [{column: value}]}``. Raises Refusal."""
        rows = document.get("rows")
        if type(rows) is not list or not rows:
            raise Refusal(400, 'rows: a list of at least one row is needed, such as {"rows": [{"column": value}]}')
        for key in document:
            if key not in ("rows", "id", "parameters"):
                allowed = ("rows", "id", "parameters")
                raise Refusal(
                    400, f"{show(key)} is not known here; allowed: {listing(allowed)}{suggestion(key, allowed)}"
                )
        if len(rows) > limit:
            raise Refusal(413, f"{len(rows)} rows; at most {limit} are answered at once")
        identity = _identity(document)
        inputs = self.arrays(rows)
        return Query(inputs, len(rows), identity, (), self._unseen(inputs))

    def arrays(self, rows: Sequence[Any]) -> dict[str, np.ndarray]:
        """Rows of ``{column: value}`` as the tensors of the signature. Raises Refusal naming row and column."""
        if not self.by_rows:
            raise Refusal(400, "this model's inputs have no columns with names: send tensors, see GET /openapi.json")
        wanted = self.columns.keys()
        for index, row in enumerate(rows):
            if type(row) is not dict:
                raise Refusal(400, f"row {index}: an object of column: value is needed, found {kind(row)}")
            if row.keys() != wanted:
                self._wrong_columns(index, row)
        inputs: dict[str, np.ndarray] = {}
        for tensor in self.signature.inputs:
            columns = tensor.columns
            cells = [row[column] for row in rows for column in columns]
            if tensor.datatype == "BYTES":
                if not set(map(type, cells)) <= _TEXT:
                    cells = self._categories(cells, columns)
                array = np.array(cells, dtype=object)
            else:
                array = _cells(cells, tensor)
            inputs[tensor.name] = array.reshape(len(rows), *self.widths[tensor.name])
        return inputs

    def _categories(self, cells: Sequence[Any], columns: Sequence[str]) -> list[str]:
        """Cells as the text that they are to the graph. A number or a boolean passes where training saw it as one."""
        found = []
        for place, cell in enumerate(cells):
            column = columns[place % len(columns)]
            known = self.categories.get(column)
            text = category_text(cell) if type(cell) in _SCALARS else None
            if text is None or (known is not None and text not in known and type(cell) is not str and text):
                raise Refusal(
                    400,
                    f"row {place // len(columns)}, column {column}: {kind(cell)} ({show(cell)}); "
                    "a string or null is expected",
                )
            found.append(text)
        return found

    def _wrong_columns(self, index: int, row: Mapping[str, Any]) -> None:
        for column in row:
            if column not in self.columns:
                raise Refusal(
                    400,
                    f"row {index}: column {show(column)} is not known; allowed: {listing(self.columns)}"
                    f"{suggestion(column, self.columns)}",
                )
        missing = [column for column in self.columns if column not in row]
        raise Refusal(
            400, f"row {index}: column {missing[0]} is not given; null says that a value is missing"
            + (f" (also not given: {listing(missing[1:])})" if len(missing) > 1 else "")
        )  # fmt: skip

    def _tensors(
        self, named: Mapping[str, dict[str, Any]], raw: Mapping[str, Buffer], limit: int
    ) -> tuple[dict[str, np.ndarray], int]:
        inputs: dict[str, np.ndarray] = {}
        rows = -1
        for name, given in named.items():
            tensor = self.tensors.get(name)
            if tensor is None:
                raise self._unknown_input(name)
            if given.get("datatype") != tensor.datatype:
                raise Refusal(
                    400, f"inputs[{name}]: datatype {show(given.get('datatype'))}; {tensor.datatype} is expected"
                )
            width = self.widths[name]
            shape = given.get("shape")
            if type(shape) is not list or not _integers(shape[1:]) or not _fits(shape[1:], width):
                raise Refusal(
                    400, f"inputs[{name}]: shape {show(shape)}; {show(list(tensor.shape))} is expected (-1: any)"
                    if -1 in width else
                    f"inputs[{name}]: shape {show(shape)}; {_shape_text(tensor)} is expected (-1: rows)"
                )  # fmt: skip
            rows = _same_rows(name, shape, rows, limit)
            inputs[name] = _elements(given, tensor.datatype, shape, raw).reshape(shape)
        for name in self.tensors:
            if name not in inputs:
                raise Refusal(400, f"inputs: tensor {name} is missing; expected {listing(self.tensors)}")
        return inputs, rows

    def _by_column(
        self, named: Mapping[str, dict[str, Any]], raw: Mapping[str, Buffer], limit: int
    ) -> tuple[dict[str, np.ndarray], int]:
        parts: dict[str, np.ndarray] = {}
        rows = -1
        for name, given in named.items():
            if name not in self.columns:
                raise self._unknown_input(name)
            tensor, _ = self.columns[name]
            sent = given.get("datatype")
            allowed = _BYTES if tensor.datatype == "BYTES" else NUMERIC
            if type(sent) is not str or sent not in allowed:
                more = "" if tensor.datatype == "BYTES" else " (or another numeric one)"
                raise Refusal(400, f"inputs[{name}]: datatype {show(sent)}; {tensor.datatype} is expected{more}")
            shape = given.get("shape")
            if type(shape) is not list or shape[1:] not in ([], [1]) or not _integers(shape[1:]):
                raise Refusal(400, f"inputs[{name}]: shape {show(shape)}; [-1] or [-1, 1] is expected (-1: rows)")
            rows = _same_rows(name, shape, rows, limit)
            parts[name] = _column(given, tensor, shape, raw)
        missing = [column for column in self.columns if column not in parts]
        if missing:
            raise Refusal(400, f"inputs: columns {listing(missing)} are missing; null says that a value is missing")
        inputs = {
            tensor.name: np.stack([parts[column] for column in tensor.columns], axis=1)
            if len(tensor.shape) > 1
            else parts[tensor.columns[0]]
            for tensor in self.signature.inputs
        }
        return inputs, rows

    def _unknown_input(self, name: str) -> Refusal:
        allowed = [*self.tensors, *self.columns]
        by_column = f", or one tensor for each of {listing(self.columns)}" if self.by_rows else ""
        return Refusal(
            400,
            f"inputs: tensor {show(name)} is not known; expected {listing(self.tensors)}{by_column}"
            f"{suggestion(name, allowed)}",
        )

    def _asked(self, document: Mapping[str, Any]) -> tuple[tuple[str, ...], frozenset[str]]:
        """The outputs asked for, and those of them that are asked for as bytes. Raises Refusal."""
        every = flag(document.get("parameters"), "binary_data_output", "the request") or False
        outputs = document.get("outputs", [])
        if type(outputs) is not list:
            raise Refusal(400, f"outputs: a list is needed, found {kind(outputs)}")
        asked: dict[str, bool] = {}
        for index, output in enumerate(outputs):
            name = output.get("name") if type(output) is dict else None
            if type(name) is not str or name not in self.outputs:
                raise Refusal(
                    400, f"outputs[{index}]: {show(name)} is not known; allowed: {listing(self.outputs)}"
                    f"{suggestion(name, self.outputs)}"
                )  # fmt: skip
            parameters = output.get("parameters")
            binary = flag(parameters, "binary_data", f"outputs[{index}]")
            if parameters and parameters.keys() & {"classification", "shared_memory_region"}:
                unserved = "classification" if "classification" in parameters else "shared memory"
                raise Refusal(400, f"outputs[{index}]: {unserved} is not served; see the extensions of GET /v2")
            asked[name] = every if binary is None else binary
        names = asked or dict.fromkeys(self.outputs, every)
        return tuple(asked), frozenset(name for name, binary in names.items() if binary)

    def _unseen(self, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
        unseen: dict[str, int] = {}
        for name, watched in self._watched.items():
            if not watched:
                continue
            cells = inputs[name].ravel().tolist()
            width = len(self.tensors[name].columns)
            for column, place in watched:
                found = cells[place::width]
                strange = set(found) - self.categories[column] - {""}
                if strange:
                    unseen[column] = sum(1 for value in found if value in strange)
        return unseen


def zeros(signature: Signature, rows: int) -> dict[str, np.ndarray]:
    """Inputs of the right shapes for a warm-up: zeros and empty strings, one of what a shape leaves open."""
    inputs: dict[str, np.ndarray] = {}
    for tensor in signature.inputs:
        shape = (rows, *(1 if size == -1 else size for size in tensor.shape[1:]))
        inputs[tensor.name] = (
            np.full(shape, "", dtype=object) if tensor.datatype == "BYTES" else np.zeros(shape, DTYPES[tensor.datatype])
        )
    return inputs


def _identity(document: Mapping[str, Any]) -> str:
    """The client's id for its request. Raises Refusal for one that is none, or for parameters that are no object."""
    if type(document.get("parameters")) not in (dict, _NULL):
        raise Refusal(400, f"parameters: an object is needed, found {kind(document['parameters'])}")
    identity = document.get("id", "")
    if type(identity) is not str or len(identity) > 256:
        raise Refusal(400, "id: a string of at most 256 characters is needed")
    return identity


def _elements(given: Mapping[str, Any], datatype: str, shape: Sequence[int], raw: Mapping[str, Buffer]) -> np.ndarray:
    """The flat array of one tensor as it was sent, in JSON or in bytes. Raises Refusal."""
    name = given["name"]

    def place(index: int) -> str:
        return f"inputs[{name}], value {index}"

    if name in raw:
        return decode(raw[name], datatype, shape, name, place)
    data = given.get("data")
    if type(data) is not list:
        parameters = given.get("parameters")
        if data is None and type(parameters) is dict and "shared_memory_region" in parameters:
            raise Refusal(400, f"inputs[{name}]: shared memory is not served; send the tensor itself")
        raise Refusal(400, f"inputs[{name}]: data must be a list, found {kind(data)}")
    data = flat(data, name, shape)
    return texts(data, place) if datatype == "BYTES" else numbers(data, datatype, place)


def _column(given: Mapping[str, Any], tensor: Tensor, shape: Sequence[int], raw: Mapping[str, Buffer]) -> np.ndarray:
    """One column in its tensor's datatype. Raises Refusal."""
    name, sent, datatype = given["name"], given["datatype"], tensor.datatype
    data = given.get("data")
    if datatype.startswith("FP") and sent not in ("BOOL", datatype) and type(data) is list and None in data:
        sent = datatype  # a gap has no place in an integer; the tensor that it goes to has one
    found = _elements(given, sent, shape, raw).reshape(-1)
    return found if datatype == "BYTES" else converted(found, datatype, lambda place: f"inputs[{name}], value {place}")


def _cells(cells: list[Any], tensor: Tensor) -> np.ndarray:
    """Cells of rows as a flat array; a boolean is 0 or 1. Raises Refusal that names row and column."""
    columns = tensor.columns

    def place(index: int) -> str:
        return f"row {index // len(columns)}, column {columns[index % len(columns)]}"

    if tensor.datatype != "BOOL" and bool in set(map(type, cells)):
        cells = [int(cell) if type(cell) is bool else cell for cell in cells]
    return numbers(cells, tensor.datatype, place)


def _integers(sizes: list[Any]) -> bool:
    """Whether all are integers; true and 1.0 equal 1, and are none."""
    return set(map(type, sizes)) <= _INTEGER


def _fits(sizes: Sequence[int], width: Sequence[int]) -> bool:
    if tuple(sizes) == width:
        return -1 not in width
    return len(sizes) == len(width) and all(
        size == wanted or (wanted == -1 and size > 0) for size, wanted in zip(sizes, width, strict=True)
    )


def _same_rows(name: str, shape: Sequence[Any], rows: int, limit: int) -> int:
    found = shape[0] if shape else None
    if type(found) is not int or found < 1:
        raise Refusal(400, f"inputs[{name}]: shape {show(shape)}; one row or more is expected")
    if found > limit:
        raise Refusal(413, f"inputs[{name}]: {found} rows; at most {limit} are answered at once")
    if rows not in (-1, found):
        raise Refusal(400, f"inputs[{name}]: {found} rows, another tensor has {rows}")
    return int(found)


def _shape_text(tensor: Tensor) -> str:
    return "[" + ", ".join(str(size) for size in tensor.shape) + "]"
