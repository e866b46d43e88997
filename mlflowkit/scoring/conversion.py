"""Turn the columns of a file into the graph's feature columns: numbers for numeric inputs, text for categories."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlflowkit.bundle import Signature, TextRule
from mlflowkit.errors import DataError
from mlflowkit.features.cells import categorical_columns, category_rules, number_of, number_rule
from mlflowkit.features.tensors import numeric_matrix
from mlflowkit.features.text_columns import category_texts, clean_texts, without_marks

_BOOLEANS = {"true": "1", "false": "0"}


def feature_names(signature: Signature) -> tuple[str, ...]:
    """The columns that a model takes, in the order of its inputs."""
    return tuple(column for tensor in signature.inputs for column in tensor.columns)


def feature_frame(table: pa.Table, signature: Signature, *, start: int) -> pd.DataFrame:
    """The feature columns of a batch: float64 for numeric inputs (NaN is missing), text for categories ("" is missing).

    Texts are read as the training data were, by the signature's rule. ``table`` has every feature column, ``start`` is
    the number of its first row in its file, for errors. Raises DataError for text that is no finite number in a numeric
    column.
    """
    rules = category_rules(signature.texts, categorical_columns(signature))
    columns: dict[str, np.ndarray] = {}
    for tensor in signature.inputs:
        for name in tensor.columns:
            column = table.column(name)
            if tensor.datatype == "BYTES":
                texts, _ = clean_texts(category_texts(column, name).combine_chunks(), rules[name])
                columns[name] = texts.fill_null("").to_numpy(zero_copy_only=False)
            elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                columns[name] = _parse_numbers(column.cast(pa.string()), name, number_rule(signature.texts), start)
            else:
                frame = pd.DataFrame({name: column.to_pandas()})
                columns[name] = _require_finite(numeric_matrix(frame, [name], np.float64)[:, 0], name, start)
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


def _parse_numbers(column: pa.ChunkedArray, name: str, rule: TextRule, start: int) -> np.ndarray:
    """Numbers of a column of text; float64, NaN where missing."""
    trimmed = pc.utf8_trim_whitespace(column)
    lowered = pc.utf8_lower(trimmed)
    for word, number in _BOOLEANS.items():
        trimmed = pc.if_else(pc.equal(lowered, word), number, trimmed)
    gone = pc.is_in(trimmed, pa.array(sorted({"", *rule.missing})))
    present = pc.if_else(gone, pa.scalar(None, pa.string()), trimmed)
    marked = without_marks(present, rule)
    try:
        numbers = (present if marked is None else marked).cast(pa.float64()).to_numpy().astype(np.float64)
    except pa.ArrowInvalid as error:
        raise _no_number(present, name, rule, start) from error
    return _require_finite(numbers, name, start)


def _no_number(column: pa.ChunkedArray, name: str, rule: TextRule, start: int) -> DataError:
    for index, value in enumerate(column.to_pylist()):
        try:
            number_of(value or "", rule)
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
