"""Parses a request's tensors or rows against a bundle's signature, into the graph's input arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.features.cells import categorical_columns, category_rules
from mlflowkit.serving.protocol.binary_tensors import Buffer, boolean_parameter
from mlflowkit.serving.protocol.categories import NONE_KNOWN
from mlflowkit.serving.protocol.date_values import DateInputs
from mlflowkit.serving.protocol.exact_tensors import ExactTensors
from mlflowkit.serving.protocol.http_error import (
    RequestError,
    bad_request,
    join_names,
    json_type,
    short_json,
    suggestion,
)
from mlflowkit.serving.protocol.json_tensors import DTYPES, FLOATING, NUMERIC, to_numeric
from mlflowkit.serving.protocol.tensor_values import (
    TEXT_ONLY,
    parse_numbers,
    parse_texts,
    parse_values,
    row_location,
    to_texts,
)

_INTEGER = frozenset({int})
_NULL: type = type(None)
NULLS: Mapping[str, Any] = {**dict.fromkeys(FLOATING, np.nan), "BYTES": ""}
"""The missing value of the datatypes that have one."""
_NO_RAW: Mapping[str, Buffer] = {}
SHORTENED = "shortened_texts"
"""The note of a response: cells, by column, that hold more words or characters than are read."""


@dataclass(frozen=True, slots=True)
class ColumnPolicy:
    """What happens to columns that a model does not know, and to those that a request does not have.

    unknown   error: the request is refused. ignore: the column is left out, and told
    missing   error: the request is refused. null: the values are missing, and told
    """

    unknown: str = "error"
    missing: str = "error"


STRICT = ColumnPolicy()


@dataclass(slots=True)
class Query:
    """A parsed request; not frozen, because a frozen one takes three times as long to construct.

    outputs   names of the requested outputs, all if empty
    binary    outputs to send as bytes after the JSON part of the reply
    classes   outputs to send as their top classes, with how many
    notes     what the client should know: cells by column, by note. ``unseen_categories`` have a category that was not
              in the training data, ``ignored_columns`` a column that the model does not know, ``missing_columns`` no
              value because the request had none, ``shortened_texts`` a free text with more tokens than are read
    """

    inputs: Mapping[str, np.ndarray]
    rows: int
    id: str = ""
    outputs: tuple[str, ...] = ()
    binary: frozenset[str] = frozenset()
    classes: tuple[tuple[str, int], ...] = ()
    notes: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def unseen(self) -> Mapping[str, int]:
        """Cells, by column, with a category that was not in the training data."""
        return self.notes.get("unseen_categories", {})


class Schema:
    """A signature prepared for parsing: names are looked up once, not once a request.

    ``categories`` has the complete set of a column's training values, where it is known.

    >>> from mlflowkit.bundle import Signature, TensorSpec
    >>> schema = Schema(Signature(task="regression",
    ...     inputs=(TensorSpec(name="numeric", datatype="FP32", shape=(-1, 2), columns=("age", "income")),),
    ...     outputs=(TensorSpec(name="prediction", datatype="FP32", shape=(-1,)),)))
    >>> schema.rows({"rows": [{"age": 41, "income": None}]}, limit=10).inputs["numeric"]
    array([[41., nan]], dtype=float32)
    """

    def __init__(self, signature: Signature, categories: Mapping[str, frozenset[str]] | None = None) -> None:
        self.signature = signature
        self.tensors = {tensor.name: tensor for tensor in signature.inputs}
        self.outputs = {tensor.name: tensor for tensor in signature.outputs}
        self.columns = {
            column: (tensor, index) for tensor in signature.inputs for index, column in enumerate(tensor.columns)
        }
        self.widths = {tensor.name: tuple(tensor.shape[1:]) for tensor in signature.inputs}
        self._exact = ExactTensors(signature.inputs)
        self.by_rows = all(tensor.columns for tensor in signature.inputs)
        hashed = signature.texts.tokens
        self.categories = {column: known for column, known in (categories or {}).items() if column not in hashed}
        self._known = {
            tensor.name: tuple(self.categories.get(column, NONE_KNOWN) for column in tensor.columns)
            for tensor in signature.inputs
            if tensor.datatype == "BYTES"
        }
        self._category_columns: dict[str, list[tuple[str, int, frozenset[str]]]] = {}
        for column, (tensor, index) in self.columns.items():
            if tensor.datatype == "BYTES" and column in self.categories:
                counted = (column, index, self.categories[column] | {""})
                self._category_columns.setdefault(tensor.name, []).append(counted)
        self._dates = DateInputs(signature.texts.dates)
        self._rules = category_rules(signature.texts, categorical_columns(signature))
        self._ruled_columns: dict[str, list[tuple[str, int]]] = {}
        for column, (tensor, index) in self.columns.items():
            if column in self._rules and not self._rules[column].is_identity:
                self._ruled_columns.setdefault(tensor.name, []).append((column, index))

    def infer(
        self,
        document: Mapping[str, Any],
        *,
        limit: int,
        raw: Mapping[str, Buffer] = _NO_RAW,
        columns: ColumnPolicy = STRICT,
    ) -> Query:
        """Parse an infer request of at most ``limit`` rows; ``raw`` has the binary inputs. Raises RequestError."""
        tensors = document.get("inputs")
        if type(tensors) is not list or not tensors:
            example = '{"inputs": [{"name": ..., "shape": ..., "datatype": ..., "data": [...]}]}'
            raise bad_request(f"inputs: a list of tensors is needed, such as {example}")
        notes: dict[str, dict[str, int]] = {}
        exact = None if raw else self._exact.parse(tensors, limit)
        inputs, rows = exact or self._parse_named(tensors, raw, limit, columns, notes)
        self._apply_rules(inputs, notes)
        self._count_unseen(inputs, notes)
        query = Query(inputs, rows, notes=notes)
        if "outputs" in document or "parameters" in document:
            query.outputs, query.binary, query.classes = self._requested_outputs(document)
        query.id = _parse_id(document)
        return query

    def _parse_named(
        self,
        tensors: Sequence[Any],
        raw: Mapping[str, Buffer],
        limit: int,
        policy: ColumnPolicy,
        notes: dict[str, dict[str, int]],
    ) -> tuple[dict[str, np.ndarray], int]:
        """Tensors, or one tensor for each column, as arrays by input, and their rows. Raises RequestError."""
        named: dict[str, dict[str, Any]] = {}
        for index, tensor in enumerate(tensors):
            name = tensor.get("name") if type(tensor) is dict else None
            if type(name) is not str:
                raise bad_request(f"inputs[{index}]: an object with a name is needed, found {json_type(tensor)}")
            if name in named:
                raise bad_request(f"inputs[{index}]: tensor {short_json(name)} is given twice")
            named[name] = tensor
        by_column = named.keys().isdisjoint(self.tensors)
        known: Mapping[str, Any] = self.columns if by_column else self.tensors
        ignored = [name for name in named if name not in known] if policy.unknown == "ignore" else ()
        if ignored and len(ignored) < len(named):
            notes["ignored_columns"] = {name: _rows_of(named.pop(name)) for name in ignored}
        parse = self._parse_columns if by_column else self._parse_tensors
        return parse(named, raw, limit, policy, notes)

    def rows(self, document: Mapping[str, Any], *, limit: int, columns: ColumnPolicy = STRICT) -> Query:
        """Parse a /predict request, ``{"rows": [{column: value}]}``. Raises RequestError."""
        rows = document.get("rows")
        if type(rows) is not list or not rows:
            raise bad_request('rows: a list of at least one row is needed, such as {"rows": [{"column": value}]}')
        allowed = ("rows", "id", "parameters")
        for key in document:
            if key not in allowed:
                hint = f"allowed: {join_names(allowed)}{suggestion(key, allowed)}"
                raise bad_request(f"{short_json(key)} is not known here; {hint}")
        if len(rows) > limit:
            raise RequestError(413, f"{len(rows)} rows; at most {limit} are answered at once")
        request_id, notes = _parse_id(document), dict[str, dict[str, int]]()
        inputs = self.arrays(rows, columns, notes)
        self._count_unseen(inputs, notes)
        return Query(inputs, len(rows), request_id, notes=notes)

    def arrays(
        self, rows: Sequence[Any], policy: ColumnPolicy = STRICT, notes: dict[str, dict[str, int]] | None = None
    ) -> dict[str, np.ndarray]:
        """Rows of ``{column: value}`` as the signature's tensors. Raises RequestError naming row and column."""
        if not self.by_rows:
            raise bad_request("this model's inputs have no columns with names: send tensors, see GET /openapi.json")
        columns = self.columns.keys()
        notes = {} if notes is None else notes
        for index, row in enumerate(rows):
            if type(row) is not dict:
                raise bad_request(f"row {index}: an object of column: value is needed, found {json_type(row)}")
            if row.keys() != columns:
                rows = self._fit_columns(rows, policy, notes)
                break
        inputs: dict[str, np.ndarray] = {}
        for tensor in self.signature.inputs:
            cells = [row[column] for row in rows for column in tensor.columns]
            if tensor.datatype == "BYTES":
                if not set(map(type, cells)) <= TEXT_ONLY:
                    cells = to_texts(cells, self._known[tensor.name], row_location(tensor.columns))
                array = np.array(cells, dtype=object)
            elif self._dates.takes(tensor):
                array = self._dates.cells(cells, tensor, row_location(tensor.columns), notes)
            else:
                array = _parse_cells(cells, tensor)
            inputs[tensor.name] = array.reshape(len(rows), *self.widths[tensor.name])
        self._apply_rules(inputs, notes)
        return inputs

    def _apply_rules(self, inputs: dict[str, np.ndarray], notes: dict[str, dict[str, int]]) -> None:
        """Replace texts that say that a value is missing by "", and free texts by their canonical form, as was done
        with the training rows."""
        for name, columns in self._ruled_columns.items():
            matrix = inputs[name].reshape(len(inputs[name]), -1)
            changed = {}
            for column, index in columns:
                cells = matrix[:, index].tolist()
                texts, shortened = self._rules[column].texts(cells)
                if shortened:
                    notes.setdefault(SHORTENED, {})[column] = shortened
                if texts != cells:
                    changed[index] = texts
            if changed:  # a tensor of a binary request may be read-only
                matrix = matrix.copy()
                for index, texts in changed.items():
                    matrix[:, index] = texts
                inputs[name] = matrix.reshape(inputs[name].shape)

    def _fit_columns(
        self, rows: Sequence[Any], policy: ColumnPolicy, notes: dict[str, dict[str, int]]
    ) -> list[dict[str, Any]]:
        """Rows with the model's columns, as a policy allows. Raises RequestError for other rows."""
        fitted: list[dict[str, Any]] = []
        ignored: Counter[str] = Counter()
        missing: Counter[str] = Counter()
        for index, row in enumerate(rows):
            if type(row) is not dict:
                raise bad_request(f"row {index}: an object of column: value is needed, found {json_type(row)}")
            self._check_columns(index, row, policy)
            ignored.update(column for column in row if column not in self.columns)
            missing.update(column for column in self.columns if column not in row)
            fitted.append({column: row.get(column) for column in self.columns})
        notes |= {
            name: dict(count) for name, count in (("ignored_columns", ignored), ("missing_columns", missing)) if count
        }
        return fitted

    def _check_columns(self, index: int, row: Mapping[str, Any], policy: ColumnPolicy) -> None:
        """Raise RequestError for a row with columns that the policy does not allow, or with none that is known."""
        known = not row.keys().isdisjoint(self.columns)
        for column in () if policy.unknown == "ignore" and known else row:
            if column not in self.columns:
                allowed = join_names(self.columns) + suggestion(column, self.columns)
                message = f"row {index}: column {short_json(column)} is not known; allowed: {allowed}"
                raise bad_request(message, f"unknown column {str(column)[:64]}")
        missing = [column for column in self.columns if column not in row]
        if not missing or (policy.missing == "null" and known):
            return
        also = f" (also not given: {join_names(missing[1:])})" if len(missing) > 1 else ""
        message = f"row {index}: column {missing[0]} is not given; null says that a value is missing{also}"
        raise bad_request(message, f"missing column {missing[0]}")

    def _parse_tensors(
        self,
        named: Mapping[str, dict[str, Any]],
        raw: Mapping[str, Buffer],
        limit: int,
        policy: ColumnPolicy,
        notes: dict[str, dict[str, int]],
    ) -> tuple[dict[str, np.ndarray], int]:
        inputs: dict[str, np.ndarray] = {}
        rows = -1
        for name, item in named.items():
            tensor = self.tensors.get(name)
            if tensor is None:
                raise self._unknown_tensor(name)
            sent = item.get("datatype")
            if self._dates.takes(tensor):
                convertible = sent == "BYTES"
            else:
                convertible = (
                    type(sent) is str and sent in NUMERIC and bool(tensor.datatype == "BYTES" and tensor.columns)
                )
            if sent != tensor.datatype and not convertible:
                raise bad_request(f"inputs[{name}]: datatype {short_json(sent)}; {tensor.datatype} is expected")
            width = self.widths[name]
            shape = item.get("shape")
            if type(shape) is not list or not _shape_matches(shape[1:], width):
                expected = f"{list(tensor.shape)} is expected (-1: {'any' if -1 in width else 'rows'})"
                raise bad_request(f"inputs[{name}]: shape {short_json(shape)}; {expected}")
            rows = _check_rows(name, shape, rows, limit)
            if tensor.datatype == "BYTES":
                inputs[name] = parse_texts(item, shape, raw, self._known[name]).reshape(shape)
            elif self._dates.takes(tensor):
                inputs[name] = self._dates.tensor(item, tensor, shape, raw, notes).reshape(shape)
            else:
                inputs[name] = parse_values(item, tensor.datatype, shape, raw).reshape(shape)
        for name, tensor in self.tensors.items():
            if name not in inputs:
                if policy.missing != "null" or not tensor.columns or tensor.datatype not in NULLS:
                    message = f"inputs: tensor {name} is missing; expected {join_names(self.tensors)}"
                    raise bad_request(message, f"missing input {name}")
                inputs[name] = _nulls(tensor.datatype, (rows, *self.widths[name]))
                notes.setdefault("missing_columns", {}).update(dict.fromkeys(tensor.columns, rows))
        return inputs, rows

    def _parse_columns(
        self,
        named: Mapping[str, dict[str, Any]],
        raw: Mapping[str, Buffer],
        limit: int,
        policy: ColumnPolicy,
        notes: dict[str, dict[str, int]],
    ) -> tuple[dict[str, np.ndarray], int]:
        parts: dict[str, np.ndarray] = {}
        rows = -1
        for name, item in named.items():
            if name not in self.columns:
                raise self._unknown_tensor(name)
            tensor, position = self.columns[name]
            sent = item.get("datatype")
            takes = NUMERIC | {"BYTES"} if self._dates.takes(tensor) else NUMERIC | {tensor.datatype}
            if type(sent) is not str or sent not in takes:
                more = "(or a numeric one)" if tensor.datatype == "BYTES" else "(or another numeric one)"
                raise bad_request(f"inputs[{name}]: datatype {short_json(sent)}; {tensor.datatype} is expected {more}")
            shape = item.get("shape")
            if type(shape) is not list or not (_shape_matches(shape[1:], ()) or _shape_matches(shape[1:], (1,))):
                raise bad_request(f"inputs[{name}]: shape {short_json(shape)}; [-1] or [-1, 1] is expected (-1: rows)")
            rows = _check_rows(name, shape, rows, limit)
            if tensor.datatype == "BYTES":
                parts[name] = parse_texts(item, shape, raw, self._known[tensor.name][position : position + 1])
            elif self._dates.takes(tensor):
                column = tensor.model_copy(update={"columns": (name,)})
                parts[name] = self._dates.tensor(item, column, shape, raw, notes).reshape(-1)
            else:
                parts[name] = parse_numbers(item, tensor.datatype, shape, raw)
        missing = [column for column in self.columns if column not in parts]
        datatypes = {column: self.columns[column][0].datatype for column in missing}
        if missing and (policy.missing != "null" or not set(datatypes.values()) <= NULLS.keys()):
            message = f"inputs: columns {join_names(missing)} are missing; null says that a value is missing"
            raise bad_request(message, f"missing column {missing[0]}")
        if missing:
            parts |= {column: _nulls(datatype, (rows,)) for column, datatype in datatypes.items()}
            notes["missing_columns"] = dict.fromkeys(missing, rows)
        inputs = {}
        for tensor in self.signature.inputs:
            arrays = [parts[column] for column in tensor.columns]
            inputs[tensor.name] = np.stack(arrays, axis=1) if len(tensor.shape) > 1 else arrays[0]
        return inputs, rows

    def _unknown_tensor(self, name: str) -> RequestError:
        by_column = f", or one tensor for each of {join_names(self.columns)}" if self.by_rows else ""
        expected = join_names(self.tensors) + by_column + suggestion(name, [*self.tensors, *self.columns])
        message = f"inputs: tensor {short_json(name)} is not known; expected {expected}"
        return bad_request(message, f"unknown input {str(name)[:64]}")

    def _requested_outputs(
        self, document: Mapping[str, Any]
    ) -> tuple[tuple[str, ...], frozenset[str], tuple[tuple[str, int], ...]]:
        """The requested outputs, those of them to send as bytes, and as their top classes. Raises RequestError."""
        all_binary = boolean_parameter(document.get("parameters"), "binary_data_output", "the request") or False
        outputs = document.get("outputs", [])
        if type(outputs) is not list:
            raise bad_request(f"outputs: a list is needed, found {json_type(outputs)}")
        requested: dict[str, bool] = {}
        classes: list[tuple[str, int]] = []
        for index, output in enumerate(outputs):
            name = output.get("name") if type(output) is dict else None
            if type(name) is not str or name not in self.outputs:
                allowed = join_names(self.outputs) + suggestion(name, self.outputs)
                raise bad_request(f"outputs[{index}]: {short_json(name)} is not known; allowed: {allowed}")
            parameters = output.get("parameters")
            binary = boolean_parameter(parameters, "binary_data", f"outputs[{index}]")
            if parameters and "shared_memory_region" in parameters:
                raise bad_request(f"outputs[{index}]: shared memory is not supported; see the extensions of GET /v2")
            if parameters and "classification" in parameters:
                classes.append((name, self._class_count(name, parameters["classification"], f"outputs[{index}]")))
            requested[name] = all_binary if binary is None else binary
        names = requested or dict.fromkeys(self.outputs, all_binary)
        return tuple(requested), frozenset(name for name, binary in names.items() if binary), tuple(classes)

    def _class_count(self, name: str, count: Any, where: str) -> int:
        """How many classes of an output are asked for. Raises RequestError."""
        if type(count) is not int or count < 1:
            raise bad_request(f"{where}: classification {short_json(count)}; a number of classes from 1 is expected")
        output = self.outputs[name]
        if output.datatype not in NUMERIC - {"BOOL"} or len(output.shape) < 2:
            fitting = [spec.name for spec in self.outputs.values() if spec.datatype in NUMERIC and len(spec.shape) > 1]
            raise bad_request(f"{where}: {name} has no values by class; allowed: {join_names(fitting) or 'none'}")
        return count

    def _count_unseen(self, inputs: Mapping[str, np.ndarray], notes: dict[str, dict[str, int]]) -> None:
        for name, columns in self._category_columns.items():
            cells = inputs[name].ravel().tolist()
            width = len(self.tensors[name].columns)
            for column, index, known in columns:
                values = cells[index::width]
                if not known.issuperset(values):
                    count = sum(value not in known for value in values)
                    notes.setdefault("unseen_categories", {})[column] = count


def zeros(signature: Signature, rows: int) -> dict[str, np.ndarray]:
    """Warm-up inputs: zeros and empty strings, with open dimensions set to 1."""
    inputs: dict[str, np.ndarray] = {}
    for tensor in signature.inputs:
        shape = (rows, *(1 if size == -1 else size for size in tensor.shape[1:]))
        text = tensor.datatype == "BYTES"
        inputs[tensor.name] = np.full(shape, "", object) if text else np.zeros(shape, DTYPES[tensor.datatype])
    return inputs


def _nulls(datatype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Missing values."""
    return np.full(shape, NULLS[datatype], dtype=DTYPES[datatype])


def _rows_of(tensor: Mapping[str, Any]) -> int:
    """The rows that an unvalidated tensor has by its shape."""
    shape = tensor.get("shape")
    rows = shape[0] if type(shape) is list and shape else 0
    return rows if type(rows) is int and rows > 0 else 0


def _parse_id(document: Mapping[str, Any]) -> str:
    """The client's id for its request. Raises RequestError for an invalid id, or parameters that are no object."""
    if type(document.get("parameters")) not in (dict, _NULL):
        raise bad_request(f"parameters: an object is needed, found {json_type(document['parameters'])}")
    request_id = document.get("id", "")
    if type(request_id) is not str or len(request_id) > 256:
        raise bad_request("id: a string of at most 256 characters is needed")
    return request_id


def _parse_cells(cells: list[Any], tensor: TensorSpec) -> np.ndarray:
    """Row cells as a flat array; a boolean is 0 or 1. Raises RequestError that names row and column."""
    if tensor.datatype != "BOOL" and bool in set(map(type, cells)):
        cells = [int(cell) if type(cell) is bool else cell for cell in cells]
    return to_numeric(cells, tensor.datatype, row_location(tensor.columns))


def _shape_matches(sizes: Sequence[Any], width: Sequence[int]) -> bool:
    """Whether sizes are integers (true and 1.0 equal 1 but are not) that fit a width, where -1 is any size."""
    if len(sizes) == 1 == len(width) and type(sizes[0]) is int and sizes[0] == width[0]:
        return True  # nearly every request
    if len(sizes) != len(width) or not set(map(type, sizes)) <= _INTEGER:
        return False
    return all(size > 0 if expected == -1 else size == expected for size, expected in zip(sizes, width, strict=True))


def _check_rows(name: str, shape: Sequence[Any], rows: int, limit: int) -> int:
    count = shape[0] if shape else None
    if type(count) is not int or count < 1:
        raise bad_request(f"inputs[{name}]: shape {short_json(shape)}; one row or more is expected")
    if count > limit:
        raise RequestError(413, f"inputs[{name}]: {count} rows; at most {limit} are answered at once")
    if rows not in (-1, count):
        raise bad_request(f"inputs[{name}]: {count} rows, another tensor has {rows}")
    return int(count)
