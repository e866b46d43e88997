"""Checks of a table before it is split: kinds of columns, target, unusable features, digest.

Pure: Arrow tables in, values out. Faults of the data raise a DataError that names columns and rows; rows count from 0
in the order of the source.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflowkit.bundle import TextRule
from mlflowkit.errors import DataError, closest_match
from mlflowkit.features.cells import number_of
from mlflowkit.features.column_findings import MAX_EXAMINED, NumberReading, number_finding, number_reading
from mlflowkit.features.text_columns import category_texts
from mlflowkit.system.text import MAX_LISTED, format_count, format_list

MISSING_TARGET_HINT = "set data.missing_target: drop to leave these rows out, or give them a target at the source"
FLOAT32_MAX = 3.4028234663852886e38
DIGEST_BATCH = 65_536


def canonical(table: pa.Table) -> pa.Table:
    """The table with one type for each kind of value: int64, float32 or float64, bool, string, timestamp.

    NaN becomes a missing value. Columns that have the type already are not copied.
    """
    for index, name in enumerate(table.column_names):
        column = table.column(index)
        values = _canonical_column(column)
        if values is not column:
            table = table.set_column(index, name, values)
    return table.replace_schema_metadata(None)


def data_version(table: pa.Table) -> str:
    """SHA-256 of a canonical table's columns, in hexadecimal: equal for equal names, types and values in order."""
    digest = hashlib.sha256()
    for field in table.schema:
        digest.update(f"{field.name}\0{field.type}\0{table.num_rows}\0".encode())
        column = table.column(field.name)
        for start in range(0, table.num_rows, DIGEST_BATCH):
            for chunk in _column_bytes(column.slice(start, DIGEST_BATCH)):
                digest.update(chunk)
    return digest.hexdigest()


def dictionary_columns(table: pa.Table) -> frozenset[str]:
    """Columns that the source itself stores as categories."""
    return frozenset(field.name for field in table.schema if pa.types.is_dictionary(field.type))


def require(table: pa.Table, names: Iterable[str], key: str) -> None:
    """Raise DataError when a column that the recipe names under ``key`` is missing; the closest name is suggested."""
    for name in names:
        if name not in table.column_names:
            near = closest_match(name, table.column_names)
            hint = f"did you mean {near!r}?" if near else f"the columns are {format_list(table.column_names, 20)}"
            raise DataError(f"{key} names column {name!r}, which the table does not have", hint=hint)


def as_categories(table: pa.Table, names: Iterable[str]) -> pa.Table:
    """Columns that are used as categories as text: whole numbers by their digits, other numbers as short as they read
    back, booleans as True and False, dates and times by ISO 8601. Raises DataError for lists and the like."""
    for name in names:
        index = table.schema.get_field_index(name)
        if not pa.types.is_string(table.schema.field(index).type):
            table = table.set_column(index, name, category_texts(table.column(index), name))
    return table


def drop_missing(table: pa.Table, target: str) -> tuple[pa.Table, np.ndarray]:
    """The rows that have a target; and which rows those are, bool [rows]."""
    present = pc.is_valid(table.column(target))
    kept = present.combine_chunks().to_numpy(zero_copy_only=False)
    return (table if kept.all() else table.filter(present)), kept


def kinds_of(
    table: pa.Table, features: Sequence[str], declared: Mapping[str, str], categories: frozenset[str]
) -> dict[str, str]:
    """numeric or categorical for each feature: as declared, else numbers and booleans numeric, text categorical."""
    kinds: dict[str, str] = {}
    times: list[str] = []
    others: list[str] = []
    for name in features:
        kind = table.schema.field(name).type
        if name in declared:
            kinds[name] = declared[name]
        elif name in categories or pa.types.is_string(kind) or pa.types.is_null(kind):
            kinds[name] = "categorical"
        elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
            kinds[name] = "numeric"
        else:
            (times if pa.types.is_temporal(kind) else others).append(name)
    if times:
        message = f"{_columns(times)} times; a model takes numbers and categories"
        dates, aside = (", ".join(f"{name}: {kind}" for name in times) for kind in ("date", "time"))
        hint = f"write data.columns: {{{dates}}} to learn from them, or {{{aside}}} to leave them out"
        raise DataError(message, hint=hint)
    if others:
        raise DataError(
            f"{_columns(others)} values of type {format_list([str(table.schema.field(name).type) for name in others])}",
            hint=f"add to data.drop: [{', '.join(others)}], or turn them into numbers or text at the source",
        )
    return kinds


def require_orders(table: pa.Table, orders: Mapping[str, Sequence[str]]) -> None:
    """Raise DataError for values of an ordered column that its order does not list."""
    for name, order in orders.items():
        counts = {str(item["values"]): item["counts"] for item in pc.value_counts(table.column(name)).to_pylist()}
        others = {text: rows for text, rows in counts.items() if text not in order and text != "None"}
        if others:
            rows = sum(others.values())
            message = f"column {name!r} holds {format_list(list(others))} in {format_count(rows, 'row')}, which"
            hint = f"data.orders.{name}=[{', '.join([*order, *list(others)[:3]])}], in the right order"
            raise DataError(f"{message} data.orders.{name} does not list", hint=hint)


def as_numbers(table: pa.Table, names: Iterable[str], rule: TextRule, missing: Sequence[str]) -> pa.Table:
    """Columns declared numeric as numbers. Raises DataError naming the rows of values that are not.

    ``rule`` and ``missing``, the texts that count as missing, are for its hint.
    """
    for name in names:
        index = table.schema.get_field_index(name)
        kind = table.schema.field(index).type
        if pa.types.is_string(kind):
            try:
                numbers = _canonical_column(table.column(index).cast(pa.float64()))
                table = table.set_column(index, name, numbers)
            except pa.ArrowInvalid as error:
                message = f"column {name!r} is declared numeric and holds {_not_numbers(table.column(index), rule)}"
                hint = f"declare data.columns.{name}: categorical, or correct the values"
                reading = number_reading(text_counts(table.column(index)), rule)
                if reading and _reads_alike(reading, rule):
                    hint = f"correct the values, or add them to data.source.missing; or {hint}"
                elif reading:
                    finding = number_finding(
                        name, text_counts(table.column(index)), reading, rule, missing, typed=False
                    )
                    hint = f"{finding.hint}; or correct the values"
                raise DataError(message, hint=hint) from error
        elif pa.types.is_temporal(kind):
            message = f"column {name!r} is declared numeric and holds times"
            raise DataError(message, hint=f"declare data.columns.{name}: time, or add it to data.drop")
    return table


def require_learnable(table: pa.Table, kinds: Mapping[str, str]) -> None:
    """Raise DataError for features without any value, and for numbers beyond float32 (infinity included)."""
    empty = [name for name in kinds if table.column(name).null_count == table.num_rows]
    if empty:
        message = f"{_columns(empty)} no value in any of the {table.num_rows} rows"
        raise DataError(message, hint=f"add to data.drop: [{', '.join(empty)}]")
    too_large = []
    for name, kind in kinds.items():
        if kind == "numeric":
            rows = _too_large(table.column(name))
            if rows:
                values = ", ".join(f"row {row}: {table.column(name)[row].as_py()}" for row in rows[:MAX_LISTED])
                too_large.append(
                    f"{name!r} in {format_count(len(rows), 'row')} ({values}{', …' if len(rows) > MAX_LISTED else ''})"
                )
    if too_large:
        raise DataError(
            f"infinity, or a number beyond float32, in column {'; '.join(too_large[:MAX_LISTED])}"
            + (f"; and {len(too_large) - MAX_LISTED} more columns" if len(too_large) > MAX_LISTED else ""),
            hint="leave the value empty (missing values are allowed), or correct it at the source",
        )


def class_target(
    table: pa.Table, target: str, positive: str | int | bool | None, *, parsed: bool = False
) -> tuple[pa.Table, list[str | int]]:
    """The table with its target as int64 or string, and the classes, sorted, the positive one of two last.

    Texts of a file (``parsed``) are whole numbers if all of them are written so; others stay as they are. Raises
    DataError for a missing target, fewer than two classes, a class with fewer than three rows (one for each part) and a
    positive class that does not occur.
    """
    _require_no_missing(table.column(target), f"target {target!r}", MISSING_TARGET_HINT)
    index = table.schema.get_field_index(target)
    column = original = table.column(index)
    if pa.types.is_string(column.type):
        column = _whole_numbers(column, target) if parsed else column
    elif pa.types.is_boolean(column.type):
        column = column.cast(pa.int64())
    elif pa.types.is_floating(column.type):
        column = _integers(column, target)
    elif not pa.types.is_integer(column.type):
        raise DataError(f"target {target!r} holds {column.type}, not classes", hint="use whole numbers or text")
    table = table if column is original else table.set_column(index, target, column)
    counts = {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}
    classes = sorted(counts)
    if len(classes) < 2:
        message = f"target {target!r} is {classes[0]!r} in all {table.num_rows} rows: there is nothing to tell apart"
        raise DataError(message, hint="mlkit explain RECIPE data.target shows what set it")
    _require_three_of_each(counts, classes)
    return table, _positive_last(classes, positive)


def number_target(table: pa.Table, target: str, rule: TextRule, missing: Sequence[str]) -> None:
    """Raise DataError unless the target is a finite number in every row, and not the same in all."""
    _require_no_missing(table.column(target), f"target {target!r}", MISSING_TARGET_HINT)
    column = table.column(target)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        message = f"target {target!r} holds {'text' if pa.types.is_string(column.type) else column.type}, not numbers"
        hint = "set task: classification, or name another data.target"
        if pa.types.is_string(column.type) and (reading := number_reading(text_counts(column), rule)):
            hint = number_finding(target, text_counts(column), reading, rule, missing, typed=False).hint
        raise DataError(message, hint=hint)
    rows = _too_large(column)
    if rows:
        message = f"target {target!r} is infinite or beyond float32 in {_format_rows(rows)}"
        raise DataError(message, hint="correct or drop these rows")
    extremes = pc.min_max(column).as_py()
    if extremes["min"] == extremes["max"]:
        message = f"target {target!r} is {extremes['min']} in all {table.num_rows} rows: there is nothing to predict"
        raise DataError(message, hint="mlkit explain RECIPE data.target shows what set it")


def codes(column: pa.ChunkedArray, classes: Sequence[str | int]) -> np.ndarray:
    """Index into ``classes`` of each value; int32 [rows]."""
    values = pa.array(list(classes), column.type)
    indices = np.empty(len(column), dtype=np.int32)
    start = 0
    for chunk in column.chunks:
        indices[start : start + len(chunk)] = pc.index_in(chunk, value_set=values).to_numpy(zero_copy_only=False)
        start += len(chunk)
    return indices


def present_values(column: pa.ChunkedArray, rows: np.ndarray) -> np.ndarray:
    """The values of the rows where a mask is true, without missing ones; a chunk at a time."""
    values, start = [], 0
    for chunk in column.chunks:
        chosen = chunk.filter(pa.array(rows[start : start + len(chunk)]))
        values.append(chosen.drop_null().to_numpy(zero_copy_only=False))
        start += len(chunk)
    return np.concatenate(values)


def group_codes(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Number of each row's group, from 0 in order of appearance; int32 [rows]. Raises DataError for missing ones."""
    _require_no_missing(column, f"group column {name!r}", "give these rows a group, or leave them out at the source")
    return codes(column, column.unique().to_pylist())


def sortable_times(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Times as sortable numbers; [rows]. Text is read as ISO 8601. Raises DataError for missing or invalid times."""
    _require_no_missing(column, f"time column {name!r}", "give these rows a time, or leave them out at the source")
    if pa.types.is_string(column.type):
        try:
            column = column.cast(pa.timestamp("us"))
        except pa.ArrowInvalid as error:
            message = f"time column {name!r} holds text that is no ISO 8601 time: {str(error)[:120]}"
            raise DataError(message, hint="write times as 2024-01-31 or 2024-01-31T10:00:00, or as numbers") from error
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    times: np.ndarray = column.to_numpy()
    return times


# ------------------------------------------------------------------------------------------------------------ details


def _canonical_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _canonical_column(column.cast(kind.value_type))
    if pa.types.is_uint64(kind):
        return column.cast(pa.float64(), safe=False)
    if pa.types.is_integer(kind):
        return column if pa.types.is_int64(kind) else column.cast(pa.int64())
    if pa.types.is_float16(kind):
        column = column.cast(pa.float32())
    elif pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return column.cast(pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=False)
    if pa.types.is_floating(column.type) and pc.any(pc.is_nan(column)).as_py():
        return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return column


def text_counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Rows of each text, the MAX_EXAMINED most frequent if there are more."""
    counted = pc.value_counts(column.drop_null())
    texts, rows = counted.field("values").to_pylist(), counted.field("counts").to_pylist()
    pairs = list(zip(texts, rows, strict=True))
    if len(pairs) > MAX_EXAMINED:
        pairs = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:MAX_EXAMINED]
    return dict(pairs)


def _whole_numbers(column: pa.ChunkedArray, target: str) -> pa.ChunkedArray:
    """Texts as int64 if each is a whole number as Python prints it, or one with zeros after the point."""
    texts = column.unique().drop_null().to_pylist()
    if all(re.fullmatch(r"-?[1-9]\d{0,17}|0", text) for text in texts):
        return column.cast(pa.int64())
    if all(re.fullmatch(r"-?(?:[1-9]\d{0,14}|0)\.\d*", text) for text in texts):
        return _integers(column.cast(pa.float64()), target)
    return column


def _integers(column: pa.ChunkedArray, target: str) -> pa.ChunkedArray:
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid as error:
        hint = "set task: regression, or name another data.target"
        raise DataError(f"target {target!r} holds fractions, not classes", hint=hint) from error


def _column_bytes(column: pa.ChunkedArray) -> Iterable[Any]:
    """The content of a slice of a canonical column as bytes: the mask of missing values, then the values."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    yield pc.is_null(array).to_numpy(zero_copy_only=False).tobytes()
    kind = array.type
    if pa.types.is_string(kind):
        array = pc.fill_null(array, "") if array.null_count else array
        yield pc.binary_length(array).to_numpy().tobytes()
        _, offsets, content = array.buffers()
        if content is not None:
            bounds = memoryview(offsets).cast("i")[array.offset : array.offset + len(array) + 1]
            yield memoryview(content)[bounds[0] : bounds[-1]]
    elif pa.types.is_boolean(kind):
        yield pc.fill_null(array, False).to_numpy(zero_copy_only=False).tobytes()
    elif pa.types.is_timestamp(kind):
        yield pc.fill_null(array.cast(pa.int64()), 0).to_numpy().tobytes()
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        yield pc.fill_null(array, 0).to_numpy().tobytes()
    else:
        yield repr(array.to_pylist()).encode()


def _not_numbers(column: pa.ChunkedArray, rule: TextRule) -> str:
    """The first texts that are no numbers by the rule, with their rows."""
    rows = [row for row, text in enumerate(column.to_pylist()) if text is not None and not _is_number(text, rule)]
    values = ", ".join(f"{column[row].as_py()!r} (row {row})" for row in rows[:MAX_LISTED])
    return f"{values}{f' and {len(rows) - MAX_LISTED} more' if len(rows) > MAX_LISTED else ''}" if rows else "text"


def _is_number(text: str, rule: TextRule) -> bool:
    try:
        number_of(text, rule)
    except ValueError:
        return False
    return True


def _reads_alike(reading: NumberReading, rule: TextRule) -> bool:
    """Whether a rule has all the keys that a reading of numbers needs."""
    marks = (reading.decimal, reading.thousands) == (rule.decimal, rule.thousands) or reading.plain
    return marks and set(reading.units) <= set(rule.units)


def _too_large(column: pa.ChunkedArray) -> list[int]:
    """Rows whose absolute value is beyond float32."""
    if not pa.types.is_floating(column.type):
        return []
    extremes = pc.min_max(column).as_py()
    if extremes["min"] is None or max(abs(extremes["min"]), abs(extremes["max"])) <= FLOAT32_MAX:
        return []
    beyond = pc.fill_null(pc.greater(pc.abs(column), FLOAT32_MAX), False)
    return [int(row) for row in np.flatnonzero(beyond.to_numpy())]


def _require_no_missing(column: pa.ChunkedArray, what: str, hint: str) -> None:
    if column.null_count:
        rows = [int(row) for row in np.flatnonzero(pc.is_null(column).to_numpy())]
        raise DataError(f"{what} is missing in {_format_rows(rows)}", hint=hint)


def _require_three_of_each(counts: Mapping[str | int, int], classes: Sequence[str | int]) -> None:
    rare = [f"{name!r} ({format_count(counts[name], 'row')})" for name in classes if counts[name] < 3]
    if rare:
        more = f" and {len(rare) - MAX_LISTED} more" if len(rare) > MAX_LISTED else ""
        numbers = len(rare) > MAX_LISTED and not isinstance(classes[0], str)
        message = f"too few rows of class {', '.join(rare[:MAX_LISTED])}{more} to have one in each part"
        hint = (
            "set task: regression if the target is a quantity" if numbers else "merge or drop the class at the source"
        )
        raise DataError(message, hint=hint)


def _positive_last(classes: list[str | int], positive: str | int | bool | None) -> list[str | int]:
    if positive is None:
        return classes
    label = int(positive) if isinstance(positive, bool) else positive
    matching = [name for name in classes if name == label or str(name) == str(label)]
    if not matching and isinstance(label, int) and {str(name).lower() for name in classes} == {"true", "false"}:
        matching = [name for name in classes if (str(name).lower() == "true") is bool(label)]
    if not matching and isinstance(label, str) and label.lower() in ("true", "false") and set(classes) == {0, 1}:
        matching = [int(label.lower() == "true")]
    if not matching:
        near = closest_match(str(label), [str(name) for name in classes])
        hint = f"did you mean {near!r}?" if near else f"the classes are {format_list(classes, 20)}"
        if isinstance(positive, bool) and isinstance(classes[0], str):
            hint += "; YAML reads yes, no, on and off as true and false: write the class in quotes"
        raise DataError(f"data.positive is {positive!r}, which the target never is", hint=hint)
    if len(classes) > 2:
        message = f"data.positive is for two classes; the target has {len(classes)}: {format_list(classes)}"
        raise DataError(message, hint="remove data.positive")
    return [name for name in classes if name != matching[0]] + [matching[0]]


def _format_rows(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:MAX_LISTED]))
    return f"{format_count(len(rows), 'row')} ({shown}{', …' if len(rows) > MAX_LISTED else ''})"


def _columns(names: Sequence[str]) -> str:
    return f"column{'' if len(names) == 1 else 's'} {format_list(names)} {'has' if len(names) == 1 else 'have'}"
