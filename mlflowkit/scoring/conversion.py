"""Turn the columns of a file into the graph's feature columns: numbers for numeric inputs, text for categories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlflowkit.bundle import Signature, TextRule
from mlflowkit.errors import DataError
from mlflowkit.features.cells import DEFAULT_MISSING, categorical_columns, category_rules, number_of
from mlflowkit.features.dates.date_columns import column_seconds
from mlflowkit.features.tensors import numeric_matrix
from mlflowkit.features.text_columns import category_texts, clean_texts, without_marks
from mlflowkit.features.texts.text_hashing import canonical_column
from mlflowkit.serving.protocol.categories import known_spelling

_BOOLEANS = {"true": "1", "false": "0"}


def feature_names(signature: Signature) -> tuple[str, ...]:
    """The columns that a model takes, in the order of its inputs."""
    return tuple(column for tensor in signature.inputs for column in tensor.columns)


def signature_for_csv(signature: Signature, categories: Mapping[str, Collection[str]] | None) -> Signature:
    """The signature by which the texts of a CSV are read.

    A bundle of version 0.1 has no rule; its training data were read with the default texts of missing values, other
    than categories that are among them.
    """
    if signature.has_text_rule:
        return signature
    known = categories or {}
    verbatim = tuple(name for name in categorical_columns(signature) if {*known.get(name, ())} & {*DEFAULT_MISSING})
    return signature.model_copy(update={"texts": TextRule(missing=DEFAULT_MISSING, verbatim=verbatim)})


def feature_frame(
    table: pa.Table,
    signature: Signature,
    *,
    start: int,
    categories: Mapping[str, Collection[str]] | None,
    no_dates: Counter[str] | None = None,
    shortened: Counter[str] | None = None,
) -> pd.DataFrame:
    """The feature columns of a batch: float64 for numeric inputs (NaN is missing), text for categories ("" is missing),
    seconds since 1970 for dates (NaN is missing), the canonical form of free texts. Values that are no dates are added
    to ``no_dates``, and free texts with more tokens than are read to ``shortened``, by column.

    Texts are read as the training data were, by the signature's rule; a number or a boolean is the spelling that
    ``categories`` (values of the training data by column, where known) have of it, as in a request. With None for
    ``categories`` those values stay as they are, for a service to spell. ``table`` has every feature column, ``start``
    is the number of its first row in its file, for errors. Raises DataError for text that is no finite number in a
    numeric column, and for dates with an offset from UTC where the training data had none, or the other way round.
    """
    rules = category_rules(signature.texts, categorical_columns(signature))
    columns: dict[str, np.ndarray] = {}
    for tensor in signature.inputs:
        for name in tensor.columns:
            column = table.column(name)
            if name in signature.texts.dates:
                column = _with_missing(column, signature.texts)
                columns[name], unread = column_seconds(column, name, signature.texts.dates[name], start)
                if unread and no_dates is not None:
                    no_dates[name] += unread
            elif tensor.datatype == "BYTES" and categories is None and _is_value(column.type):
                columns[name] = _plain_values(column, name)
            elif tensor.datatype == "BYTES":
                known = () if categories is None else categories.get(name, ())
                texts, _ = clean_texts(_categories(column, name, known), rules[name])
                columns[name] = texts.fill_null("").to_numpy(zero_copy_only=False)
                if name in signature.texts.tokens:
                    forms, longer = canonical_column(columns[name].tolist(), signature.texts.tokens[name])
                    columns[name] = np.array(forms, dtype=object)
                    if longer and shortened is not None:
                        shortened[name] += longer
            elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                columns[name] = _parse_numbers(column.cast(pa.string()), name, signature.texts, start)
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


def _is_value(kind: pa.DataType) -> bool:
    """Whether a column holds numbers or booleans, which JSON has too."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _plain_values(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Numbers and booleans as those of JSON, a floating number the shortest of its own type; None where missing."""
    column = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    values = column.to_pylist()
    if pa.types.is_floating(column.type):
        values = [None if text is None else float(text) for text in category_texts(column, name).to_pylist()]
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _categories(column: pa.ChunkedArray, name: str, known: Collection[str]) -> pa.Array:
    """A column's texts; those of numbers and booleans as ``known`` spells them."""
    texts = category_texts(column, name).combine_chunks()
    if not known or not _is_value(column.type) or set(texts.unique().to_pylist()) <= {*known, None}:
        return texts
    column = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    encoded = column.combine_chunks().dictionary_encode()
    values = encoded.dictionary
    named = zip(values.to_pylist(), category_texts(pa.chunked_array([values]), name).to_pylist(), strict=True)
    spelled = [None if text is None else known_spelling(value, text, known) for value, text in named]
    return pa.array(spelled, pa.string()).take(encoded.indices)


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


def _with_missing(column: pa.ChunkedArray, rule: TextRule) -> pa.ChunkedArray:
    """A column without the texts that say that a value is missing."""
    if not (rule.missing and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type))):
        return column
    gone = pc.is_in(pc.utf8_trim_whitespace(column), pa.array(sorted(rule.missing), column.type))
    return pc.if_else(gone, pa.scalar(None, column.type), column)


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
