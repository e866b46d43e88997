"""What one value is: the rule by which files, requests, sample rows and ``mlkit predict`` read it.

**A category is its text.** A text is taken as it stands: ``02116``, ``NA``, ``true``, ``1.0`` and ``1E5`` are five
categories. A value that is no text (of Parquet, pandas or JSON) has one canonical text: a whole number its digits
(``3`` and ``3.0`` are ``3``), another number the shortest that reads back, a boolean ``True`` or ``False``, a date
``2024-01-31``, a time ``2024-01-31T10:00:00``.

**Missing** is null, NaN and the empty text; besides, the texts of a table's `TextRule`, unless the column was declared
categorical and the recipe names no texts. ``""`` stands for a missing category.

**A number** is a number of JSON; as text it may have the decimal mark, the separator of thousands and the units of the
rule. `features.text_columns` does the same for whole columns.

Imports only the standard library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from mlflowkit.bundle import Signature, TextRule, TokenRule
from mlflowkit.features.texts.text_tokens import canonical_text

DEFAULT_MISSING = (
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "N/A", "NA", "NULL", "NaN",
    "n/a", "nan", "null",
)  # fmt: skip
"""Texts that are missing values in a CSV file whose recipe has no ``data.source.missing``: those of pyarrow."""
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
Role = Literal["infer", "text", "number"]
"""What the recipe says of a column: nothing, a category (never parsed), a number."""


@dataclass(frozen=True, slots=True)
class CategoryRule:
    """How a cell of one categorical column becomes the text that the graph knows.

    >>> rule = category_rules(TextRule(missing=("?",)), ["city"])["city"]
    >>> [rule.text(cell) for cell in ("NA", "?", "  ", "02116")]
    ['NA', '', '', '02116']
    """

    missing: frozenset[str] = frozenset()
    trim: bool = False
    tokens: TokenRule | None = None
    """Of free text, which becomes its canonical form."""

    @property
    def is_identity(self) -> bool:
        """Whether every text stands for itself."""
        return not (self.missing or self.trim or self.tokens)

    def text(self, cell: str) -> str:
        """The category of a cell; "" for a missing value."""
        text = cell.strip() if self.trim else cell
        text = "" if text in self.missing or (self.missing and text.isspace()) else text
        return text if self.tokens is None else canonical_text(text, self.tokens)[0]

    def texts(self, cells: Sequence[str]) -> tuple[list[str], int]:
        """The categories of cells, and how many of them are free texts with more tokens than are read.

        >>> CategoryRule(tokens=TokenRule(max_tokens=2)).texts(["so far so good", "so far"])
        (['so far', 'so far'], 1)
        """
        if self.tokens is None:
            return [self.text(cell) for cell in cells], 0
        plain = CategoryRule(self.missing, self.trim)
        read = [canonical_text(plain.text(cell), self.tokens) for cell in cells]
        return [text for text, _ in read], sum(shortened for _, shortened in read)


@dataclass(frozen=True, slots=True)
class ReadingPlan:
    """How the columns of a source are read: the table's rule, and the roles that the recipe gives to columns."""

    rule: TextRule = field(default_factory=TextRule)
    roles: Mapping[str, Role] = field(default_factory=dict)


def category_rules(rule: TextRule, columns: Iterable[str]) -> dict[str, CategoryRule]:
    """The rule of each categorical column."""
    tokens, verbatim = frozenset(rule.missing), frozenset(rule.verbatim)
    return {
        name: CategoryRule(frozenset() if name in verbatim else tokens, rule.trim, rule.tokens.get(name))
        for name in columns
    }


def categorical_columns(signature: Signature) -> tuple[str, ...]:
    """The columns that a signature takes as text."""
    return tuple(name for tensor in signature.inputs if tensor.datatype == "BYTES" for name in tensor.columns)


def number_of(text: str, rule: TextRule) -> float | bool | None:
    """The number that a text is, by a table's rule; None for a missing value, true and false for booleans.

    Raises ValueError for other texts, and for infinity.

    >>> rule = TextRule(missing=("?",), decimal=",", thousands=".", units=("EUR",))
    >>> [number_of(text, rule) for text in ("1.234,5", " 7 EUR", "?", "", "true")]
    [1234.5, 7.0, None, None, True]
    """
    stripped = text.strip()
    if not stripped or stripped in rule.missing:
        return None
    if stripped.lower() in ("true", "false"):
        return stripped.lower() == "true"
    plain = without_separators(without_units(stripped, rule.units), rule.decimal, rule.thousands)
    if not re.fullmatch(NUMBER, plain) or not math.isfinite(number := float(plain)):
        raise ValueError(f"{text[:40]!r} is not a finite number")
    return number


def without_units(text: str, units: tuple[str, ...]) -> str:
    """A text without one of ``units`` before or after it (after a sign, too).

    >>> without_units("-$5", ("$", "%")), without_units("12 %", ("$", "%")), without_units("5 kg", ())
    ('-5', '12', '5 kg')
    """
    return re.sub(unit_pattern(units), r"\1\2", text) if units else text


@lru_cache(maxsize=16)
def unit_pattern(units: tuple[str, ...]) -> str:
    """Matches a text with at most one unit on each side: sign and number are its groups. For RE2 and ``re``."""
    unit = "|".join(re.escape(item) for item in sorted(units, key=len, reverse=True))
    return rf"^\s*([-+]?)\s*(?:{unit})?\s*(.*?)\s*(?:{unit})?\s*$"


def without_separators(text: str, decimal: str, thousands: str) -> str:
    """A number with a point and no separators; other texts unchanged but for a point that is no decimal mark.

    >>> without_separators("1.234,5", ",", "."), without_separators("1,23", ".", ",")
    ('1234.5', '1,23')
    """
    if thousands and re.fullmatch(grouped_pattern(decimal, thousands), text):
        text = text.replace(thousands, "")
    if decimal != ".":
        text = text.replace(".", "?").replace(decimal, ".")
    return text


@lru_cache(maxsize=16)
def grouped_pattern(decimal: str, thousands: str) -> str:
    """Matches a number whose digits are grouped by three. For RE2 and ``re``."""
    return rf"^[-+]?\d{{1,3}}(?:{re.escape(thousands)}\d{{3}})+(?:{re.escape(decimal)}\d*)?(?:[eE][-+]?\d+)?$"
