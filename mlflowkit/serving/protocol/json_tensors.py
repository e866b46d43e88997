"""JSON values to arrays: the elements of one tensor, in the datatypes of the Open Inference Protocol.

What is decided here:

- ``null`` is a missing value: NaN in a floating tensor, the empty string in BYTES; elsewhere it is refused.
- A number beyond the range of its datatype is refused, not made infinite or wrapped.
- An integer datatype takes 3 and 3.0, not 3.5. BOOL takes true, false, 1 and 0. Numbers are not booleans elsewhere.
- A column may be sent in another datatype than its tensor's. It is `converted` when every value keeps its meaning: a
  boolean is 0 or 1, a floating number is rounded to the nearest (as JSON's numbers are), an integer keeps its value
  in an integer datatype; what is out of range, and a fraction or a gap in an integer datatype, is refused.
- BF16 has no NumPy type: it is read as FP32, which holds each of its values, and no answer is given in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mlflowkit.serving.protocol.http_error import Refusal, kind, show

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
"""NumPy's type for each datatype; BF16 is widened."""
FLOATING = frozenset({"FP16", "BF16", "FP32", "FP64"})
NUMERIC = frozenset(DTYPES) - {"BYTES"}
Place = Callable[[int], str]
"""Says where the n-th value of a tensor is."""
_NULL: type = type(None)
_REAL: frozenset[type] = frozenset({float, int})
_REAL_OR_NULL: frozenset[type] = _REAL | {_NULL}
_INTEGER = frozenset({int})
_BOOLEAN: frozenset[type] = frozenset({bool, int})
_TEXT = frozenset({str})
_FP32_LIMIT = 3.4028235e38
_BF16_LIMIT = 3.3895314e38


def numbers(values: list[Any], datatype: str, place: Place) -> np.ndarray:
    """JSON values as a flat array of a numeric datatype. Raises Refusal that names the place.

    >>> numbers([1, 2.5, None], "FP32", lambda place: f"value {place}")
    array([1. , 2.5, nan], dtype=float32)
    >>> numbers([1, 300], "UINT8", lambda place: f"value {place}")
    Traceback (most recent call last):
    mlflowkit.serving.protocol.http_error.Refusal: value 1: 300 is beyond the range of UINT8
    """
    kinds = set(map(type, values))
    if datatype == "FP32" and kinds <= _REAL and min(values) > -_FP32_LIMIT and max(values) < _FP32_LIMIT:
        return np.array(values, dtype=np.float32)  # the road that nearly every request takes
    if datatype in FLOATING:
        _only(values, kinds, _REAL_OR_NULL, "a number or null", place)
        return _floating(values, datatype, place)
    if datatype == "BOOL":
        _only(values, kinds, _BOOLEAN, "true or false", place)
        if not set(values) <= {0, 1}:
            raise _first(values, lambda value: value not in (0, 1), "no value of BOOL", place)
        return np.array(values, dtype=np.bool_)
    _only(values, kinds, _REAL, f"a number of {datatype}", place)
    return _whole(values, kinds, datatype, place)


def _whole(values: list[Any], kinds: set[type], datatype: str, place: Place) -> np.ndarray:
    if kinds != _INTEGER:
        if any(value % 1 for value in values):
            raise _first(values, lambda value: bool(value % 1), f"no value of {datatype}", place)
        values = [int(value) for value in values]
    try:
        return np.array(values, dtype=DTYPES[datatype])
    except OverflowError:
        bounds = np.iinfo(DTYPES[datatype])
        beyond = f"beyond the range of {datatype}"
        raise _first(values, lambda value: not bounds.min <= value <= bounds.max, beyond, place) from None


def _floating(values: list[Any], datatype: str, place: Place) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=DTYPES[datatype])
    except OverflowError:  # an integer that no float64 holds
        beyond = f"beyond the range of {datatype}"
        raise _first(values, lambda value: value is not None and abs(value) > 1e308, beyond, place) from None
    wrong = np.abs(array) > _BF16_LIMIT if datatype == "BF16" else np.isinf(array)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise Refusal(400, f"{place(at)}: {values[at]!r} is beyond the range of {datatype}")
    return array


def texts(values: list[Any], place: Place) -> np.ndarray:
    """JSON values as a flat array of str; null is the empty string. Raises Refusal that names the place."""
    kinds = set(map(type, values))
    if not kinds <= _TEXT:
        _only(values, kinds, frozenset({str, _NULL}), "a string or null", place)
        values = ["" if value is None else value for value in values]
    return np.array(values, dtype=object)


def converted(array: np.ndarray, datatype: str, place: Place) -> np.ndarray:
    """A numeric array in another datatype, every value with its meaning. Raises Refusal that names the place.

    >>> converted(np.array([1.0, 2.0]), "INT8", lambda place: f"value {place}")
    array([1, 2], dtype=int8)
    >>> converted(np.array([1.0, np.nan]), "INT8", lambda place: f"value {place}")
    Traceback (most recent call last):
    mlflowkit.serving.protocol.http_error.Refusal: value 1: NaN is no value of INT8
    """
    dtype = np.dtype(DTYPES[datatype])
    if array.dtype == dtype:
        return array
    with np.errstate(all="ignore"):
        found = array.astype(dtype)
        if dtype.kind == "f":
            wrong = np.isinf(found)
        elif dtype.kind == "b":
            wrong = (array != 0) & (array != 1)
        elif array.dtype.kind == "f":
            # 2.0**bits is exact in a float where the largest integer is not
            bounds = np.iinfo(dtype)
            wide = array.astype(np.float64)
            inside = (wide >= float(bounds.min)) & (wide < float(bounds.max // 2 + 1) * 2)
            wrong = ~inside | (wide != np.floor(wide))
        else:
            wrong = (found.astype(array.dtype) != array) | ((found < 0) != (array < 0))
    if wrong.any():
        at = int(np.argmax(wrong))
        value = array.reshape(-1)[at]
        raise Refusal(400, f"{place(at)}: {'NaN' if value != value else value} is no value of {datatype}")
    return found


def flat(data: list[Any], name: str, shape: Sequence[int]) -> list[Any]:
    """Data, flat or nested as deep as its shape, as one list, row-major. Raises Refusal."""
    if data and type(data[0]) is list:
        data = _unnested(data, name, shape)
    count = 1
    for size in shape:
        count *= size
    if len(data) != count:
        raise Refusal(400, f"inputs[{name}]: {len(data)} values in data; shape {show(shape)} needs {count}")
    return data


def _unnested(data: list[Any], name: str, shape: Sequence[int]) -> list[Any]:
    if len(data) != shape[0]:
        raise Refusal(400, f"inputs[{name}]: data has {len(data)} rows; shape {show(list(shape))} needs {shape[0]}")
    for size in shape[1:]:
        found: list[Any] = []
        for part in data:
            if type(part) is not list or len(part) != size:
                raise Refusal(400, f"inputs[{name}]: data is not nested as shape {show(list(shape))} says")
            found += part
        data = found
    return data


def _only(values: list[Any], kinds: set[type], allowed: frozenset[type], expected: str, place: Place) -> None:
    if not kinds <= allowed:
        at = next(index for index, value in enumerate(values) if type(value) not in allowed)
        raise Refusal(400, f"{place(at)}: {kind(values[at])} ({show(values[at])}); {expected} is expected")


def _first(values: list[Any], wrong: Callable[[Any], bool], what: str, place: Place) -> Refusal:
    """The refusal of the first value that is wrong; there is one."""
    at = next(index for index, value in enumerate(values) if wrong(value))
    return Refusal(400, f"{place(at)}: {values[at]} is {what}")
