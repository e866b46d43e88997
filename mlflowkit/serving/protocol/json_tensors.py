"""JSON values to arrays: the elements of one tensor, in the datatypes of the Open Inference Protocol.

- ``null`` is a missing value: NaN in a floating tensor, the empty string in a categorical one; elsewhere it is refused.
- A number beyond the range of its datatype is refused, not made infinite or wrapped.
- An integer datatype takes 3 and 3.0, not 3.5. BOOL takes true, false, 1 and 0. Numbers are not booleans elsewhere.
- A column may be sent in another datatype than its tensor's. `convert` takes it when every value keeps its meaning: a
  boolean is 0 or 1, a floating number is rounded to the nearest (like JSON's numbers), an integer keeps its value in
  an integer datatype; values out of range, and fractions or gaps in an integer datatype, are refused.
- BF16 has no NumPy type: it is read as FP32, which holds each of its values, and no output has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mlflowkit.serving.protocol.http_error import RequestError, bad_request, json_type, short_json

DTYPES: Mapping[str, Any] = {
    "BOOL": np.bool_,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BF16": np.float32,
    "BYTES": np.object_,
}
"""The NumPy type of each datatype; BF16 is widened."""
FLOATING = frozenset({"FP16", "BF16", "FP32", "FP64"})
NUMERIC = frozenset(DTYPES) - {"BYTES"}
ValueLocation = Callable[[int], str]
"""Describes the location of a tensor's n-th value, for error messages."""
_NULL: type = type(None)
_REAL: frozenset[type] = frozenset({float, int})
_REAL_OR_NULL: frozenset[type] = _REAL | {_NULL}
_INTEGER = frozenset({int})
_BOOLEAN: frozenset[type] = frozenset({bool, int})
FP32_LIMIT = 3.4028235e38
_BF16_LIMIT = 3.3895314e38


def to_numeric(values: list[Any], datatype: str, locate: ValueLocation) -> np.ndarray:
    """JSON values as a flat array of a numeric datatype. Raises RequestError with the location.

    >>> to_numeric([1, 2.5, None], "FP32", lambda index: f"value {index}")
    array([1. , 2.5, nan], dtype=float32)
    >>> to_numeric([1, 300], "UINT8", lambda index: f"value {index}")
    Traceback (most recent call last):
    mlflowkit.serving.protocol.http_error.RequestError: value 1: 300 is beyond the range of UINT8
    """
    types = set(map(type, values))
    if datatype == "FP32" and types <= _REAL and min(values) > -FP32_LIMIT and max(values) < FP32_LIMIT:
        return np.array(values, dtype=np.float32)  # nearly every request
    if datatype in FLOATING:
        _check_types(values, types, _REAL_OR_NULL, "a number or null", locate)
        return _to_floats(values, datatype, locate)
    if datatype == "BOOL":
        _check_types(values, types, _BOOLEAN, "true or false", locate)
        if not set(values) <= {0, 1}:
            raise _value_error(values, lambda value: value not in (0, 1), "no value of BOOL", locate)
        return np.array(values, dtype=np.bool_)
    _check_types(values, types, _REAL, f"a number of {datatype}", locate)
    return _to_integers(values, types, datatype, locate)


def _to_integers(values: list[Any], types: set[type], datatype: str, locate: ValueLocation) -> np.ndarray:
    if types != _INTEGER:
        if any(value % 1 for value in values):
            raise _value_error(values, lambda value: bool(value % 1), f"no value of {datatype}", locate)
        values = [int(value) for value in values]
    try:
        return np.array(values, dtype=DTYPES[datatype])
    except OverflowError:
        bounds = np.iinfo(DTYPES[datatype])
        beyond = f"beyond the range of {datatype}"
        raise _value_error(values, lambda value: not bounds.min <= value <= bounds.max, beyond, locate) from None


def _to_floats(values: list[Any], datatype: str, locate: ValueLocation) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=DTYPES[datatype])
    except OverflowError:  # an integer beyond float64
        beyond = f"beyond the range of {datatype}"
        raise _value_error(values, lambda value: value is not None and abs(value) > 1e308, beyond, locate) from None
    wrong = np.abs(array) > _BF16_LIMIT if datatype == "BF16" else np.isinf(array)
    if wrong.any():
        index = int(np.argmax(wrong))
        raise bad_request(f"{locate(index)}: {values[index]!r} is beyond the range of {datatype}")
    return array


def convert(array: np.ndarray, datatype: str, locate: ValueLocation) -> np.ndarray:
    """A numeric array in another datatype, without changing the meaning of a value. Raises RequestError.

    >>> convert(np.array([1.0, 2.0]), "INT8", lambda index: f"value {index}")
    array([1, 2], dtype=int8)
    >>> convert(np.array([1.0, np.nan]), "INT8", lambda index: f"value {index}")
    Traceback (most recent call last):
    mlflowkit.serving.protocol.http_error.RequestError: value 1: NaN is no value of INT8
    """
    dtype = np.dtype(DTYPES[datatype])
    if array.dtype == dtype:
        return array
    with np.errstate(all="ignore"):
        result = array.astype(dtype)
        if dtype.kind == "f":
            wrong = np.isinf(result)
        elif dtype.kind == "b":
            wrong = (array != 0) & (array != 1)
        elif array.dtype.kind == "f":
            # 2.0**bits is exact in a float where the largest integer is not
            bounds = np.iinfo(dtype)
            wide = array.astype(np.float64)
            inside = (wide >= float(bounds.min)) & (wide < float(bounds.max // 2 + 1) * 2)
            wrong = ~inside | (wide != np.floor(wide))
        else:
            wrong = (result.astype(array.dtype) != array) | ((result < 0) != (array < 0))
    if wrong.any():
        index = int(np.argmax(wrong))
        value = array.reshape(-1)[index]
        raise bad_request(f"{locate(index)}: {'NaN' if value != value else value} is no value of {datatype}")
    return result


def flatten(data: list[Any], name: str, shape: Sequence[int]) -> list[Any]:
    """Flatten data that is flat or nested as its shape, row-major. Raises RequestError."""
    nested, count = data and type(data[0]) is list, math.prod(shape)
    if nested and len(data) != shape[0]:
        problem = f"data has {len(data)} rows; shape {short_json(list(shape))} needs {shape[0]}"
        raise bad_request(f"inputs[{name}]: {problem}")
    for size in shape[1:] if nested else ():
        merged: list[Any] = []
        for part in data:
            if type(part) is not list or len(part) != size:
                raise bad_request(f"inputs[{name}]: data is not nested as shape {short_json(list(shape))} says")
            merged += part
        data = merged
    if len(data) != count:
        raise bad_request(f"inputs[{name}]: {len(data)} values in data; shape {short_json(shape)} needs {count}")
    return data


def _check_types(
    values: list[Any], types: set[type], allowed: frozenset[type], expected: str, locate: ValueLocation
) -> None:
    if not types <= allowed:
        index, value = next((index, value) for index, value in enumerate(values) if type(value) not in allowed)
        raise bad_request(f"{locate(index)}: {json_type(value)} ({short_json(value)}); {expected} is expected")


def _value_error(values: list[Any], wrong: Callable[[Any], bool], problem: str, locate: ValueLocation) -> RequestError:
    """The error for the first wrong value, which exists."""
    index, value = next((index, value) for index, value in enumerate(values) if wrong(value))
    return bad_request(f"{locate(index)}: {value} is {problem}")
