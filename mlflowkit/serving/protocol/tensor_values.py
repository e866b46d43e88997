"""The values of a tensor, of one of its columns, or of cells of rows, from JSON or bytes, as the graph takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlflowkit.serving.protocol.binary_tensors import Buffer, decode
from mlflowkit.serving.protocol.categories import NONE_KNOWN, SCALARS, to_categories, to_category
from mlflowkit.serving.protocol.http_error import bad_request, json_type, short_json
from mlflowkit.serving.protocol.json_tensors import ValueLocation, convert, flatten, to_numeric

TEXT_ONLY: frozenset[type] = frozenset({str})


def parse_values(item: Mapping[str, Any], datatype: str, shape: Sequence[int], raw: Mapping[str, Buffer]) -> np.ndarray:
    """The flat array of one tensor, from JSON or bytes. Raises RequestError."""
    name = item["name"]

    def locate(index: int) -> str:
        return f"inputs[{name}], value {index}"

    if name in raw:
        return decode(raw[name], datatype, shape, name, locate)
    data = json_values(item, shape)
    return to_numeric(data, datatype, locate)


def json_values(item: Mapping[str, Any], shape: Sequence[int]) -> list[Any]:
    """The flat values of ``data``. Raises RequestError."""
    name, data = item["name"], item.get("data")
    if type(data) is not list:
        parameters = item.get("parameters")
        if data is None and type(parameters) is dict and "shared_memory_region" in parameters:
            raise bad_request(f"inputs[{name}]: shared memory is not supported; send the tensor itself")
        raise bad_request(f"inputs[{name}]: data must be a list, found {json_type(data)}")
    return flatten(data, name, shape)


def parse_numbers(
    item: Mapping[str, Any], datatype: str, shape: Sequence[int], raw: Mapping[str, Buffer]
) -> np.ndarray:
    """One column in any numeric datatype, converted to its tensor's. Raises RequestError."""
    name, sent, data = item["name"], item["datatype"], item.get("data")
    if datatype.startswith("FP") and sent not in ("BOOL", datatype) and type(data) is list and None in data:
        sent = datatype  # an integer datatype has no null; the floating tensor has NaN
    values = parse_values(item, sent, shape, raw).reshape(-1)
    return convert(values, datatype, lambda index: f"inputs[{name}], value {index}")


def parse_texts(
    item: Mapping[str, Any], shape: Sequence[int], raw: Mapping[str, Buffer], known: Sequence[frozenset[str]]
) -> np.ndarray:
    """The flat texts of a BYTES tensor or of one of its columns, sent in any datatype. Raises RequestError.

    ``known`` has the training values of each column.
    """
    name, sent = item["name"], item["datatype"]

    def locate(index: int) -> str:
        return f"inputs[{name}], value {index}"

    if name in raw:
        array = decode(raw[name], sent, shape, name, locate)
        return array if sent == "BYTES" else to_categories(array, known).reshape(-1)
    data = json_values(item, shape)
    if sent == "BYTES":
        texts = data if set(map(type, data)) <= TEXT_ONLY else to_texts(data, known, locate)
        return np.array(texts, dtype=object)
    missing = [index for index, value in enumerate(data) if value is None]
    values = to_numeric([0 if value is None else value for value in data] if missing else data, sent, locate)
    array = to_categories(values, known).reshape(-1)
    array[missing] = ""
    return array


def to_texts(cells: Sequence[Any], known: Sequence[frozenset[str]], locate: ValueLocation) -> list[str]:
    """JSON values as text, by `to_category`. Raises RequestError for a list or an object."""
    wrong = next((index for index, cell in enumerate(cells) if type(cell) not in SCALARS), None)
    if wrong is not None:
        value = f"{json_type(cells[wrong])} ({short_json(cells[wrong])})"
        raise bad_request(f"{locate(wrong)}: {value}; a string, a number, a boolean or null is expected")
    width = max(1, len(known))
    return [to_category(cell, known[index % width] if known else NONE_KNOWN) for index, cell in enumerate(cells)]


def row_location(columns: Sequence[str]) -> ValueLocation:
    return lambda index: f"row {index // len(columns)}, column {columns[index % len(columns)]}"
