"""From a table to a graph's input tensors, shared by training, optimisation and evaluation.

The conversion of a cell does not depend on the dtype pandas chose for its column: a whole number that is categorical is
``"3"``, also where a missing value elsewhere in the column made pandas store ``3.0``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mlflowkit.bundle import Signature
from mlflowkit.errors import DataError
from mlflowkit.features.texts.text_hashing import canonical_matrix
from mlflowkit.system.text import category_text


def numeric_matrix(table: pd.DataFrame, columns: Sequence[str], dtype: Any = np.float32) -> np.ndarray:
    """Columns as float32 (or float64) [rows, columns]; a missing value is NaN, booleans are 0 and 1.

    Raises DataError when a column is absent or not numeric.

    >>> numeric_matrix(pd.DataFrame({"a": [1, None], "b": [True, False]}), ["b", "a"]).tolist()
    [[1.0, 1.0], [0.0, nan]]
    """
    _require_columns(table, columns)
    matrix = np.empty((len(table), len(columns)), dtype=dtype)
    for index, name in enumerate(columns):
        if pd.api.types.is_datetime64_any_dtype(table[name].dtype):
            hint = f"declare data.columns.{name}: time, or drop it"
            raise DataError(f"column {name!r} holds times, not numbers", hint=hint)
        try:
            with np.errstate(over="ignore"):
                matrix[:, index] = table[name].to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            hint = f"declare data.columns.{name}: categorical"
            raise DataError(f"column {name!r} holds something that is not a number: {error}", hint=hint) from error
    return matrix


def categorical_matrix(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Columns as an object array of str [rows, columns], by `category_text`; a missing value is "".

    Raises DataError when a column is absent.

    >>> categorical_matrix(pd.DataFrame({"a": ["x", None], "b": [1.0, None]}), ["a", "b"]).tolist()
    [['x', '1'], ['', '']]
    """
    _require_columns(table, columns)
    matrix = np.empty((len(table), len(columns)), dtype=object)
    for index, name in enumerate(columns):
        if table[name].dtype == object and pd.api.types.infer_dtype(table[name], skipna=True).startswith("mixed"):
            # factorize compares by equality, and 0 == False, 1 == True: they would get the same text.
            matrix[:, index] = [category_text(value) for value in table[name]]
        elif len(table):
            codes, uniques = pd.factorize(table[name], use_na_sentinel=False)
            matrix[:, index] = np.array([category_text(value) for value in uniques], dtype=object)[codes]
    return matrix


def inputs_from_table(signature: Signature, table: pd.DataFrame) -> dict[str, np.ndarray]:
    """The inputs of a graph by name: FP32 and FP64 by `numeric_matrix`, BYTES by `categorical_matrix`, free texts in
    their canonical form.

    Ignores columns that the signature does not name. Raises DataError when one is missing.
    """
    numbers = {"FP32": np.float32, "FP64": np.float64}
    inputs = {}
    for tensor in signature.inputs:
        if tensor.datatype == "BYTES":
            inputs[tensor.name] = _text_matrix(signature, table, tensor.columns)
        elif tensor.datatype in numbers:
            inputs[tensor.name] = numeric_matrix(table, tensor.columns, numbers[tensor.datatype])
        else:
            message = f"input {tensor.name} of the graph is {tensor.datatype}; a table gives FP32, FP64 and BYTES"
            raise DataError(message, hint="mlkit run RECIPE --force export")
    return inputs


def double_inputs(signature: Signature, table: pd.DataFrame) -> dict[str, np.ndarray]:
    """As `inputs_from_table`, with numbers in double precision. Raises DataError when a column is missing."""
    inputs = {}
    for tensor in signature.inputs:
        is_text = tensor.datatype == "BYTES"
        columns = tensor.columns
        inputs[tensor.name] = (
            _text_matrix(signature, table, columns) if is_text else numeric_matrix(table, columns, float)
        )
    return inputs


def _text_matrix(signature: Signature, table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Categories, and the canonical forms of free texts."""
    return canonical_matrix(categorical_matrix(table, columns), columns, signature.texts.tokens)


def class_codes(values: pd.Series, classes: Sequence[str | int]) -> np.ndarray:
    """Index into ``classes`` of each label, int64 [rows]. Booleans count as 0 and 1.

    Raises DataError when a label is missing or not one of the classes.

    >>> class_codes(pd.Series(["no", "yes", "no"]), ["no", "yes"]).tolist()
    [0, 1, 0]
    """
    position = {category_text(_as_number(label)): code for code, label in enumerate(classes)}
    codes, uniques = pd.factorize(values, use_na_sentinel=False)
    table = np.array([position.get(category_text(_as_number(value)), -1) for value in uniques], dtype=np.int64)
    result = table[codes]
    if (result < 0).any():
        row = int(np.flatnonzero(result < 0)[0])
        raise DataError(
            f"row {row} of column {values.name!r} is {values.iloc[row]!r}, not one of the classes "
            f"{', '.join(map(repr, list(classes)[:10]))}",
            hint="was the model trained on another table? mlkit run RECIPE --force data reads it again",
        )
    return result


def _as_number(value: object) -> object:
    """Booleans (NumPy's too) as 0 and 1; other values unchanged."""
    return int(bool(value)) if type(value).__name__ in ("bool", "bool_") else value


def _require_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in table.columns]
    if missing:
        message = f"the table has no column {', '.join(map(repr, missing))}"
        raise DataError(message, hint=f"it has {', '.join(map(str, list(table.columns)[:12]))}")
