"""Columns of texts become numbers, booleans, times or categories, a batch at a time; the rule of `cells` for columns.

Nothing is lost on the way: a column is a number only if every text is one, by its digits and by the table's rule. Texts
with a leading zero (02116) or in hexadecimal are codes: one of them makes the column text, unless it is declared
numeric.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflowkit.bundle import TextRule
from mlflowkit.errors import DataError
from mlflowkit.features.cells import (
    NUMBER,
    CategoryRule,
    ReadingPlan,
    Role,
    category_rules,
    grouped_pattern,
    unit_pattern,
)
from mlflowkit.system.text import category_text

CODE = "^\\s*[-+]?0[0-9xX]"
"""Begins a text that a number would not print again. RE2."""
HEXADECIMAL = "^\\s*[-+]?0[xX]"
NUMERIC = ("int", "float")
_TYPES: Mapping[str, pa.DataType] = {
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us"),
    "nanoseconds": pa.timestamp("ns"),
    "zoned": pa.timestamp("us", tz="UTC"),
}
"""The types that texts are tried as, in this order."""
_WIDER: Mapping[str, tuple[str, ...]] = {
    "": tuple(_TYPES),
    "int": NUMERIC,
    "timestamp": ("timestamp", "nanoseconds"),
}
"""Types that may follow a type in later batches; others are followed by themselves only."""
PROBE = 32
"""Texts that are tried before a whole batch is."""
_NO_TEXT = pa.scalar(None, pa.string())


@dataclass(frozen=True, slots=True)
class TableRead:
    """A table, and what was decided while its texts were read."""

    table: pa.Table
    missing: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How often each text counted as missing, by column."""
    parsed: bool = False
    """Whether types were found in texts (CSV), or come with the source (Parquet, pandas)."""


class TextColumn:
    """Reads one column of texts.

    >>> column = TextColumn("age", ReadingPlan(TextRule(missing=("?",))))
    >>> column.add(pa.array(["41", "?"])), column.add(pa.array([" 1.5", None]))
    (None, None)
    >>> column.values().to_pylist(), dict(column.missing)
    ([41.0, None, 1.5, None], {'?': 1})
    """

    def __init__(self, name: str, plan: ReadingPlan) -> None:
        self.name = name
        self.missing: Counter[str] = Counter()
        """How often each text counted as missing."""
        self.is_text = plan.roles.get(name) == "text"
        self.reread = False
        """Whether earlier batches have lost their text, and must be read again by `as_text`."""
        self._rule = plan.rule
        self._category = category_rules(plan.rule, [name])[name]
        self._number = plan.roles.get(name) == "number"
        numbers = [text for text in plan.rule.missing if re.fullmatch(NUMBER, text)]
        self._plain = plan.rule.decimal == "." and not numbers
        self._kind = ""
        self._chunks: list[pa.Array] = []

    def add(self, batch: pa.Array) -> None:
        """Read the next batch of texts; null is an empty field."""
        if not self.is_text and not self._add_typed(batch):
            self.is_text, self.reread = True, bool(self._chunks)
            self._chunks.clear()
            self.missing.clear()
        if self.is_text and not self.reread:
            texts, missing = clean_texts(batch, self._category)
            self.missing.update(missing)
            self._chunks.append(texts)

    def as_text(self) -> TextColumn:
        """A reader that keeps the same column as text."""
        return TextColumn(self.name, ReadingPlan(self._rule, {self.name: "text"}))

    def values(self) -> pa.ChunkedArray:
        """The values that were added; the reader forgets them."""
        kind = pa.string() if self.is_text else _TYPES.get(self._kind, pa.null())
        empty = pa.types.is_null(kind)
        safe = kind != pa.float64()  # whole numbers of many digits are rounded, as where they are read as fractions
        chunks = [pa.nulls(len(chunk)) if empty else chunk.cast(kind, safe=safe) for chunk in self._chunks]
        self._chunks.clear()
        return pa.chunked_array(chunks, kind)

    def _add_typed(self, batch: pa.Array) -> bool:
        """Read a batch as the type of the batches before it, or a wider one; False if it is text."""
        kinds = _WIDER.get(self._kind, (self._kind,))
        if self._number:
            kinds = tuple(kind for kind in kinds if kind in NUMERIC)
        if batch.null_count == len(batch):
            self._chunks.append(batch)
            return True
        if self._plain and self._cast(batch, kinds):
            return True
        trimmed = pc.utf8_trim_whitespace(batch)
        gone = pc.fill_null(pc.is_in(trimmed, value_set=pa.array(["", *self._rule.missing], pa.string())), False)
        present = pc.if_else(gone, _NO_TEXT, trimmed)
        if present.null_count == len(present):
            self._chunks.append(present)
        elif not self._cast(present if self._rule.decimal == "." else without_point(present), kinds):
            marked = without_marks(present, self._rule)
            if kinds[0] not in NUMERIC or marked is None or not self._cast(marked, NUMERIC):
                return False
        self.missing.update(count_texts(batch.filter(gone)))
        return True

    def _cast(self, batch: pa.Array, kinds: tuple[str, ...]) -> bool:
        """Append a batch as the first of ``kinds`` that holds all its texts; whether there is one."""
        for kind in kinds:
            try:
                if len(batch) > PROBE:  # a cast that fails does so for every value, slowly
                    batch.slice(0, PROBE).cast(_TYPES[kind])
                values = batch.cast(_TYPES[kind])
            except pa.ArrowInvalid:
                continue
            if kind in NUMERIC and has_codes(batch, HEXADECIMAL if self._number else CODE):
                return False
            if kind == "float" and pc.any(pc.is_nan(values)).as_py():
                return False
            self._chunks.append(values)
            self._kind = kind
            return True
        return False


def has_codes(texts: pa.Array, pattern: str = CODE) -> bool:
    """Whether a text begins with a zero that a number would lose (02116, 0x10; not 0 or 0.5)."""
    for sign in ("", "-", "+"):  # the regular expression costs more than the search for those to try it on
        starting = pc.starts_with(texts, f"{sign}0")
        if not pc.any(starting).as_py():
            continue
        longer = texts.filter(pc.and_(starting, pc.greater(pc.binary_length(texts), len(sign) + 1)))
        if pc.any(pc.match_substring_regex(longer, pattern)).as_py():
            return True
    return False


def count_texts(texts: pa.Array) -> dict[str, int]:
    """How often each text occurs."""
    counts = pc.value_counts(texts)
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))


def clean_texts(texts: pa.Array, rule: CategoryRule) -> tuple[pa.Array, dict[str, int]]:
    """Categories, null where missing, and how often each text counted as missing.

    >>> clean_texts(pa.array(["NA", "", "x", None]), CategoryRule(frozenset({"NA"})))[1]
    {'NA': 1}
    """
    trimmed = pc.utf8_trim_whitespace(texts) if rule.trim else texts
    missing = {""} | rule.missing
    gone = pc.fill_null(pc.is_in(trimmed, value_set=pa.array(sorted(missing), pa.string())), False)
    if rule.missing:
        gone = pc.or_(gone, pc.fill_null(pc.utf8_is_space(trimmed), False))
    if not pc.any(gone).as_py():
        return trimmed, {}
    counts = count_texts(texts.filter(gone))
    counts.pop("", None)
    return pc.if_else(gone, _NO_TEXT, trimmed), counts


def without_point(texts: pa.Array) -> pa.Array:
    """Texts of which none with a point is a number: it is no decimal mark."""
    return pc.replace_substring(texts, ".", "?")


def without_marks(texts: pa.Array, rule: TextRule) -> pa.Array | None:
    """Texts without units and separators of thousands and with a decimal point; None if the rule names none of them.

    >>> without_marks(pa.array(["$1,234.5", "7"]), TextRule(thousands=",", units=("$",))).to_pylist()
    ['1234.5', '7']
    """
    if not rule.units and not rule.thousands and rule.decimal == ".":
        return None
    if rule.units:
        texts = pc.replace_substring_regex(texts, unit_pattern(rule.units), r"\1\2")
    if rule.thousands:
        grouped = pc.match_substring_regex(texts, grouped_pattern(rule.decimal, rule.thousands))
        texts = pc.if_else(grouped, pc.replace_substring(texts, rule.thousands, ""), texts)
    if rule.decimal != ".":
        texts = pc.replace_substring(without_point(texts), rule.decimal, ".")
    return texts


def category_texts(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """A column as the texts of its values: whole numbers by their digits, other numbers as short as they read back,
    booleans as True and False, dates and times by ISO 8601. Raises DataError for lists and the like.

    >>> category_texts(pa.chunked_array([[1.0, 2.5, None]]), "a").to_pylist()
    ['1', '2.5', None]
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return category_texts(column.cast(kind.value_type), name)
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if texts or pa.types.is_integer(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        message = f"column {name!r} holds {kind}, which is no category"
        raise DataError(message, hint=f"add it to data.drop: [{name}], or turn it into text at the source")
    array = column.combine_chunks()
    encoded = array.dictionary_encode()
    values = encoded.dictionary
    plain = values.to_numpy(zero_copy_only=False) if pa.types.is_floating(kind) else values.to_pylist()
    labels = pa.array([_text_of(value) or None for value in plain], pa.string())
    return pa.chunked_array([labels.take(encoded.indices)], pa.string())


def _text_of(value: Any) -> str:
    if isinstance(value, Decimal):
        return f"{value.normalize():f}" if value else "0"
    return value.isoformat() if isinstance(value, date | time) else category_text(value)


def _same_texts(values: pa.ChunkedArray, texts: pa.ChunkedArray, rule: TextRule) -> bool:
    """Whether texts that were read are those before: none was trimmed, and none has come to be missing."""
    return not rule.trim and values.null_count == texts.null_count


def read_texts(table: pa.Table, plan: ReadingPlan) -> TableRead:
    """Apply a plan to the text columns of a table that has types: those declared numeric become numbers if they are.

    A column of categories (a dictionary of texts) stays one.

    >>> table = pa.table({"a": pa.array(["x", "?"]).dictionary_encode()})
    >>> read_texts(table, ReadingPlan(TextRule(missing=("?",)))).table.column("a").to_pylist()
    ['x', None]
    """
    missing: dict[str, Mapping[str, int]] = {}
    for index, name in enumerate(table.column_names):
        kind = table.schema.field(index).type
        encoded = pa.types.is_dictionary(kind)
        kind = kind.value_type if encoded else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            continue
        role: Role = "number" if plan.roles.get(name) == "number" else "text"
        reader = TextColumn(name, ReadingPlan(plan.rule, {name: role}))
        chunks = table.column(index).cast(pa.string()).chunks
        for chunk in chunks:
            reader.add(chunk)
        if reader.reread:
            reader = reader.as_text()
            for chunk in chunks:
                reader.add(chunk)
        values = reader.values()
        if values.type == table.schema.field(index).type and _same_texts(values, table.column(index), plan.rule):
            continue
        if encoded and pa.types.is_string(values.type):  # the source stores it as categories
            values = values.dictionary_encode()
        table = table.set_column(index, name, values)
        if reader.missing:
            missing[name] = dict(reader.missing)
    return TableRead(table, missing)
