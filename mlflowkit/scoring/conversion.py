"""Turn the columns of a file into the graph's feature columns: numbers for numeric inputs, text for categories."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlflowkit.bundle import Signature
from mlflowkit.errors import DataError
from mlflowkit.features.tensors import categorical_matrix, numeric_matrix

_BOOLEANS = {"true": "1", "false": "0"}


def feature_names(signature: Signature) -> tuple[str, ...]:
    """The columns that a model takes, in the order of its inputs."""
    return tuple(column for tensor in signature.inputs for column in tensor.columns)


def feature_frame(
    table: pa.Table, signature: Signature, *, text: bool, missing: Collection[str], start: int
) -> pd.DataFrame:
    """The feature columns of a batch: float64 for numeric inputs (NaN is missing), text for categories ("" is missing).

    Args:
        table: a batch with every feature column
        text: whether all values are the text of a file; numbers are parsed then, and tokens in ``missing`` count as
            missing in numeric columns
        start: the number of the batch's first row in its file, for errors

    Raises DataError for text that is no finite number in a numeric column.
    """
    columns: dict[str, np.ndarray] = {}
    for tensor in signature.inputs:
        for name in tensor.columns:
            column = table.column(name)
            if tensor.datatype == "BYTES":
                columns[name] = categorical_matrix(pd.DataFrame({name: column.to_pandas()}), [name])[:, 0]
            elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                columns[name] = _parse_numbers(column.cast(pa.string()), name, missing, start)
            else:
                frame = pd.DataFrame({name: column.to_pandas()})
                columns[name] = _require_finite(numeric_matrix(frame, [name])[:, 0], name, start)
    return pd.DataFrame(columns, copy=False)


def unseen_counts(frame: pd.DataFrame, categories: Mapping[str, Collection[str]]) -> dict[str, int]:
    """Rows by column whose category was not in the training data, for the columns whose categories are known."""
    counts = {}
    for name, values in categories.items():
        if name in frame.columns:
            column = frame[name]
            unseen = int((~column.isin(list(values)) & (column != "")).sum())
            if unseen:
                counts[name] = unseen
    return counts


def _parse_numbers(column: pa.ChunkedArray, name: str, missing: Collection[str], start: int) -> np.ndarray:
    """Numbers of a column of text; float64, NaN where missing."""
    trimmed = pc.utf8_trim_whitespace(column)
    lowered = pc.utf8_lower(trimmed)
    for word, number in _BOOLEANS.items():
        trimmed = pc.if_else(pc.equal(lowered, word), number, trimmed)
    present = pc.if_else(pc.is_in(trimmed, pa.array(sorted({"", *missing}))), pa.scalar(None, pa.string()), trimmed)
    try:
        numbers = present.cast(pa.float64()).to_numpy().astype(np.float64)
    except pa.ArrowInvalid as error:
        raise _no_number(present, name, start) from error
    return _require_finite(numbers, name, start)


def _no_number(column: pa.ChunkedArray, name: str, start: int) -> DataError:
    for index, value in enumerate(column.to_pylist()):
        try:
            float(value or 0)
        except ValueError:
            message = f"row {start + index}: {name}: {value[:40]!r} is not a number"
            return DataError(message, hint="an empty field is a missing value")
    return DataError(f"column {name!r} holds text that is not a number", hint="an empty field is a missing value")


def _require_finite(numbers: np.ndarray, name: str, start: int) -> np.ndarray:
    infinite = np.flatnonzero(np.isinf(numbers))
    if infinite.size:
        message = f"row {start + int(infinite[0])}: {name}: infinity, or a number too large, is not a value of a model"
        raise DataError(message, hint="leave the field empty: a missing value is allowed")
    return numbers
