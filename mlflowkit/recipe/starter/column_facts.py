"""Facts of the columns of a CSV: what share are numbers, dates, codes; how many values; what predicts the target alone.

Every field is read as text. Nothing is decided here: see `choices`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv

from mlflowkit.bundle import TextRule
from mlflowkit.errors import UsageError
from mlflowkit.features.cells import DEFAULT_MISSING, number_of
from mlflowkit.features.column_findings import CODE
from mlflowkit.features.column_findings import DATE as LOOSE_DATE
from mlflowkit.system.text import first_line, shell_word

MAX_ROWS = 200_000
"""Rows that are looked at: the first of the file."""
BLOCK_BYTES = 4 * 2**20
SEPARATORS = (",", ";", "\t", "|")
UNITS = ("%", "$", "€", "£", "EUR", "USD", "kg", "km", "m", "cm")
"""Signs and units that are tried around numbers."""
_WRITTEN = tuple(
    TextRule(missing=DEFAULT_MISSING, decimal=decimal, thousands=thousands)
    for decimal, thousands in ((".", ""), (".", ","), (",", ""), (",", "."))
)
NUMBER_RULES = (*_WRITTEN, *(rule.model_copy(update={"units": UNITS}) for rule in _WRITTEN))
"""Ways of writing numbers, the plainest first."""
DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(?P<offset>Z|[+-]\d{2}:?\d{2})?)?")
NEARLY_ALL = 0.9
"""Share of a column's values that must be numbers before the rest are taken for missing values."""
MAX_TOKENS = 5
"""Most different texts of a column that are taken for missing values."""


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """Facts of one column; shares are of the values that are not missing.

    missing     rows without a value: the empty field, and the texts in ``tokens``
    tokens      texts that stand for a missing value, with their rows
    distinct    number of different values
    numbers     share that are numbers by the file's rule
    codes       share that are numbers with a leading zero, such as 02116
    dates       share that are ISO 8601 dates or times
    mixed_clocks whether some dates have an offset from UTC, and some have none
    other_dates share that look like dates or times of another form, such as 31/01/2024
    booleans    share that are true or false
    whole       whether all numbers are whole
    rising      whether the numbers rise from row to row
    blanks      values with blanks around them
    length      mean number of characters
    examples    a few values: codes first, then the most frequent
    """

    name: str
    rows: int
    missing: int
    tokens: dict[str, int]
    distinct: int
    numbers: float
    codes: float
    dates: float
    mixed_clocks: bool
    other_dates: float
    booleans: float
    whole: bool
    rising: bool
    blanks: int
    length: float
    examples: tuple[str, ...]

    @property
    def is_number(self) -> bool:
        """Whether nearly all values are numbers, and none is a code."""
        return self.numbers >= NEARLY_ALL and not self.codes

    @property
    def values(self) -> int:
        """Rows that have a value."""
        return self.rows - self.missing


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Facts of a CSV: its columns as text, and how numbers are written in it."""

    path: Path
    separator: str
    rule: TextRule
    columns: tuple[ColumnFacts, ...]
    table: pd.DataFrame
    complete: bool
    """Whether all rows were read."""

    def column(self, name: str) -> ColumnFacts:
        return next(column for column in self.columns if column.name == name)


def read_facts(path: Path, max_rows: int = MAX_ROWS) -> FileFacts:
    """Read the first rows of a CSV and describe its columns. Raises UsageError for a file that is no CSV."""
    separator = _separator(path)
    try:
        table, complete = _read_texts(path, separator, max_rows)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        hint = f"file {shell_word(path)}"
        raise UsageError(f"{path} cannot be read as CSV: {first_line(error)[:200]}", hint=hint) from error
    if not len(table):
        raise UsageError(f"{path} has no rows", hint=f"head {shell_word(path)}")
    rule = _text_rule(table)
    columns = tuple(_column_facts(table[name], rule) for name in table.columns)
    tokens = tuple(dict.fromkeys(token for column in columns for token in column.tokens))
    trim = any(column.name != column.name.strip() or (column.blanks and not column.is_number) for column in columns)
    if trim:
        table = table.rename(columns=str.strip)
        columns = tuple(replace(column, name=column.name.strip()) for column in columns)
    rule = rule.model_copy(update={"missing": tuple(dict.fromkeys((*rule.missing, *tokens))), "trim": trim})
    return FileFacts(path, separator, rule, columns, table, complete)


def _separator(path: Path) -> str:
    """The separator that gives the same number of fields, more than one, in the first lines. Raises UsageError."""
    try:
        with io.TextIOWrapper(pa.input_stream(str(path), compression="detect"), "utf-8-sig", newline="") as stream:
            start = stream.read(2**16)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(
            f"{path} cannot be read: {first_line(error)}", hint=f"ls -l {shell_word(path.parent)}"
        ) from error
    except UnicodeDecodeError as error:
        hint = f"iconv -f latin1 -t utf-8 {shell_word(path)} > {shell_word(f'utf8-{path.name}')}"
        raise UsageError(f"{path} is not UTF-8", hint=hint) from error
    widths = {separator: _width(start, separator) for separator in SEPARATORS}
    best = max(SEPARATORS, key=lambda separator: widths[separator])
    if widths[best] < 2:
        problem = f"{path} does not look like a CSV: no separator gives every line the same number of fields"
        raise UsageError(problem, hint=f"head -3 {shell_word(path)}")
    return best


def _width(text: str, separator: str) -> int:
    """Fields of each of the first lines, if that is the same number; else 0."""
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))[:50]
    except csv.Error:
        return 0
    widths = {len(line) for line in (lines[:-1] if len(lines) > 2 else lines) if line}
    return widths.pop() if len(widths) == 1 else 0


def _read_texts(path: Path, separator: str, max_rows: int) -> tuple[pd.DataFrame, bool]:
    """The first rows, every field as text; and whether that is all of them."""
    with io.TextIOWrapper(pa.input_stream(str(path), compression="detect"), "utf-8-sig", newline="") as stream:
        names = next(csv.reader(stream, delimiter=separator), [])
    repeated = sorted({name for name in names if names.count(name) > 1 or not name})
    if repeated:
        raise UsageError(
            f"{path}:1: column name {repeated[0]!r} is empty or occurs twice", hint="name each column once"
        )
    reader = arrow_csv.open_csv(
        pa.input_stream(str(path), compression="detect"),
        read_options=arrow_csv.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
    batches: list[pa.RecordBatch] = []
    rows = 0
    for batch in reader:
        batches.append(batch)
        rows += batch.num_rows
        if rows > max_rows:
            break
    table = pa.Table.from_batches(batches, reader.schema)
    return table.slice(0, max_rows).to_pandas().astype(object), rows <= max_rows


def _text_rule(table: pd.DataFrame) -> TextRule:
    """The way of writing numbers that makes the most columns numeric, and of their values; the plain one where others
    add nothing: a column of which a few amounts alone are above 999 needs its separator all the same."""
    samples = [_sample(table[name]) for name in table.columns]

    def numeric(rule: TextRule) -> tuple[int, float]:
        shares = [_number_share(sample, rule) for sample in samples]
        return sum(share >= NEARLY_ALL for share in shares), sum(share for share in shares if share >= NEARLY_ALL)

    best = max(NUMBER_RULES, key=numeric)
    without_units = best.model_copy(update={"units": ()})
    gained = [
        sample for sample in samples if _number_share(sample, without_units) < NEARLY_ALL <= _number_share(sample, best)
    ]
    units = tuple(unit for unit in best.units if any(sample.str.contains(unit, regex=False).any() for sample in gained))
    return best.model_copy(update={"units": units})


def _sample(column: pd.Series) -> pd.Series:
    """Different values of a column: the first, and the first of those with a mark between digits."""
    different = column.drop_duplicates()
    marked = different[different.str.contains(r"\d[.,]\d{3}", regex=True)]
    sample: pd.Series = pd.concat([different.head(500), marked.head(100)]).drop_duplicates()
    return sample


def _number_share(values: pd.Series, rule: TextRule) -> float:
    texts = [text for text in values if text.strip() and text.strip() not in rule.missing]
    return sum(_is_number(text, rule) for text in texts) / len(texts) if texts else 0.0


def _is_number(text: str, rule: TextRule) -> bool:
    try:
        value = number_of(text, rule)
    except ValueError:
        return False
    return value is not None and not isinstance(value, bool)


def _column_facts(column: pd.Series, rule: TextRule) -> ColumnFacts:
    counts = column.value_counts()
    texts = [str(text) for text in counts.index]
    stripped = {text: text.strip() for text in texts}
    empty = {text for text in texts if not stripped[text]}
    numbers = {text for text in texts if _is_number(text, rule)}
    tokens = _missing_tokens(counts, texts, numbers, empty, rule)
    present = [text for text in texts if text not in empty and text not in tokens]
    values = int(counts[present].sum()) if present else 0

    dates = {text: date for text in present if (date := DATE.fullmatch(stripped[text]))}
    codes = {text for text in numbers if CODE.match(stripped[text])}

    def share(matching: set[str]) -> float:
        return float(counts[[text for text in present if text in matching]].sum()) / values if values else 0.0

    rows = column[column.isin([text for text in present if text in numbers])]
    series = np.array([float(number_of(text, rule) or 0) for text in rows])
    return ColumnFacts(
        name=str(column.name),
        rows=len(column),
        missing=len(column) - values,
        tokens=tokens,
        distinct=len(present),
        numbers=share(numbers),
        codes=share(codes),
        dates=share(set(dates)),
        mixed_clocks=len({bool(date["offset"]) for date in dates.values()}) > 1,
        other_dates=share({text for text in present if LOOSE_DATE.match(text) and text not in dates} - numbers),
        booleans=share({text for text in present if stripped[text].lower() in ("true", "false")}),
        whole=bool(len(series)) and bool((series == np.floor(series)).all()),
        rising=len(series) > 1 and bool((np.diff(series) > 0).all()),
        blanks=int(counts[[text for text in present if text != stripped[text]]].sum()),
        length=float(np.average([len(text) for text in present], weights=counts[present])) if present else 0.0,
        examples=tuple(stripped[text] for text in sorted(present[:50], key=lambda text: text not in codes)[:3]),
    )


def _missing_tokens(
    counts: pd.Series, texts: Sequence[str], numbers: set[str], empty: set[str], rule: TextRule
) -> dict[str, int]:
    """Texts that stand for a missing number: the few others of a column nearly all of whose values are numbers."""
    others = [text for text in texts if text not in numbers and text not in empty]
    rows = int(counts[list(numbers)].sum()) if numbers else 0
    rest = int(counts[others].sum()) if others else 0
    if not rows or rows / (rows + rest) < NEARLY_ALL or len({text.strip() for text in others}) > MAX_TOKENS:
        return {}
    tokens: dict[str, int] = {}
    for text in others:
        if any(_is_number(text, other) for other in NUMBER_RULES):
            continue  # a number written in another way is no missing value: a run names it
        tokens[text.strip()] = tokens.get(text.strip(), 0) + int(counts[text])
    return tokens
