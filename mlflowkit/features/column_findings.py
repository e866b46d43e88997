"""What is remarkable about the texts of a table's columns, each with its share of rows and the line to write.

A column of numbers that a separator, a sign or a few texts turn into categories would be learnt as hundreds of names: a
column with many different numbers is refused, one with few, which may be meant as categories, is told. Pure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mlflowkit.bundle import TextRule
from mlflowkit.errors import DataError
from mlflowkit.features.cells import NUMBER, grouped_pattern
from mlflowkit.system.text import format_count, limited

REFUSED_SHARE = 0.9
"""Share of numbers among the values from which a column is refused, or told if it has few different ones."""
TOLD_SHARE = 0.5
FEW_NUMBERS = 12
"""Different numbers up to which a column may well be meant as categories."""
DISTINCT_SHARE = 0.9
MIN_DISTINCT = 30
"""Values from which a column with nearly as many different ones is told."""
MAX_EXAMINED = 20_000
"""Different values that are looked at; of more, the most frequent."""
MAX_TOKENS = 5
"""Different texts among numbers up to which they are taken for signs of a missing value."""
SEPARATORS = ((".", ","), (",", "."), (".", " "), (".", "\N{NO-BREAK SPACE}"), (".", "\N{NARROW NO-BREAK SPACE}"),
              (".", "'"), (",", " "), (".", "_"), (",", ""))  # fmt: skip
"""Decimal mark and separator of thousands, the usual first."""
SIGN = r"[%\u2030\u00b0$\u20ac\u00a3\u00a5\u20b9\u20bd\u00a2]|[A-Z]{3}(?=\s)|(?<=\s)[A-Z]{3}"
"""Percent, degrees, currencies: no category is written with them but a number."""
WORD = r"[A-Za-z\u00b5]{1,8}"
DATE = re.compile(
    r"\s*(\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d{4}[./-]\d{1,2}[./-]\d{1,2}|\d{1,2}[ -][A-Za-z]{3,9}[ -]\d{2,4}"
    r"|\d{1,2}:\d{2}(:\d{2})?)"
)
"""Begins a date or a time of day."""
TRIM = "write trim: true under data.source to remove them"
CODE = re.compile(r"[-+]?0\d")
"""Begins a text whose zeros a number would lose."""
_UNIT = re.compile(rf"\s*([-+]?)\s*({SIGN})?\s*([-+]?\d.*?|\.\d+)\s*({SIGN}|{WORD})?\s*")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a column that its owner should know; ``hint`` is what to write in the recipe."""

    column: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"column {self.column!r} {self.message}" + (f": {self.hint}" if self.hint else "")

    def to_json(self) -> dict[str, str]:
        return {"column": self.column, "message": self.message, "hint": self.hint}


@dataclass(frozen=True, slots=True)
class NumberReading:
    """How most of a column's texts are numbers.

    share     of the values that are numbers by it
    decimal, thousands, units, tokens  the keys of data.source that it needs
    others    texts that are no numbers, the most frequent first
    """

    share: float
    distinct: int
    decimal: str
    thousands: str
    units: tuple[str, ...]
    others: tuple[str, ...]
    words: bool
    """Whether a unit is a word (kg, months), which a category may have too."""

    @property
    def plain(self) -> bool:
        """Whether the numbers need no key."""
        return self.decimal == "." and not self.thousands and not self.units


def number_reading(values: Mapping[str, int], rule: TextRule) -> NumberReading | None:
    """The reading by which most of the values (text: rows) are numbers; None if less than half are by any.

    >>> reading = number_reading({"1,234": 3, "56": 4, "?": 1}, TextRule())
    >>> reading.thousands, reading.share, reading.others
    (',', 0.875, ('?',))
    """
    total = sum(values.values())
    cores = {text: _core(text) for text in values}
    best: NumberReading | None = None
    for decimal, thousands in ((rule.decimal, rule.thousands), *SEPARATORS):
        reading = _read_by(values, cores, decimal, thousands, total)
        if reading is not None and (best is None or reading.share > best.share + 1e-9):
            best = reading
    return best if best is not None and best.share >= TOLD_SHARE else None


def _core(text: str) -> tuple[str, tuple[str, ...], bool]:
    """A text without the units around it, the units, and whether one of them is a word."""
    match = _UNIT.fullmatch(text)
    if match is None:
        return text.strip(), (), False
    units = tuple(unit for unit in (match[2], match[4]) if unit)
    return match[1] + match[3], units, bool(match[4] and re.fullmatch(WORD, match[4]) and not match[4].isupper())


def _read_by(
    values: Mapping[str, int],
    cores: Mapping[str, tuple[str, tuple[str, ...], bool]],
    decimal: str,
    thousands: str,
    total: int,
) -> NumberReading | None:
    grouped = re.compile(grouped_pattern(decimal, thousands)) if thousands else None
    number = re.compile(NUMBER.replace(r"\.", re.escape(decimal)))
    units: Counter[str] = Counter()
    numbers = {}
    for text, (core, around, word) in cores.items():
        if CODE.match(core):
            continue
        if number.fullmatch(core) or (grouped is not None and grouped.match(core)):
            numbers[text] = word
            units.update(dict.fromkeys(around, values[text]))
    if not numbers:
        return None
    rows = sum(values[text] for text in numbers)
    others = sorted((text for text in values if text not in numbers), key=lambda text: (-values[text], text))
    return NumberReading(
        rows / total, len(numbers), decimal, thousands, tuple(unit for unit, _ in units.most_common(MAX_TOKENS)),
        tuple(others), any(numbers.values()),
    )  # fmt: skip


def is_refused(reading: NumberReading) -> bool:
    """Whether a column is numbers in all likelihood, and too many of them to be meant as categories."""
    return reading.share >= REFUSED_SHARE and reading.distinct > FEW_NUMBERS and not reading.words


@dataclass(frozen=True, slots=True)
class ColumnExamination:
    """What is told of a column that the recipe does not declare, and why it is refused."""

    told: tuple[Finding, ...] = ()
    refused: tuple[Finding, ...] = ()


def examine_undeclared(
    column: str, values: Mapping[str, int], distinct: int, rule: TextRule, missing: Iterable[str], *, typed: bool
) -> ColumnExamination:
    """Examine a column of ``distinct`` different texts that is used as categories; ``values`` has the most frequent."""
    codes = code_finding(column, values)
    if codes is not None:
        return ColumnExamination(() if typed else (codes,))
    reading = number_reading(values, rule)
    if reading is not None and (reading.share >= REFUSED_SHARE or reading.distinct > FEW_NUMBERS):
        finding = number_finding(column, values, reading, rule, missing, typed=typed)
        stored_so = typed and reading.plain and not reading.others
        refused = is_refused(reading) and not stored_so
        return ColumnExamination(refused=(finding,)) if refused else ColumnExamination((finding,))
    return ColumnExamination(tuple(text_findings(column, values, distinct)))


def refusal(refused: Sequence[Finding]) -> DataError:
    """The error of columns that are numbers in all likelihood."""
    lines = "\n".join(f"  column {finding.column!r} {finding.message}" for finding in refused)
    message = f"{format_count(len(refused), 'column')} of numbers would become categories\n{lines}"
    return DataError(message, hint="; ".join(dict.fromkeys(finding.hint for finding in refused)))


def number_finding(
    column: str,
    values: Mapping[str, int],
    reading: NumberReading,
    rule: TextRule,
    missing: Iterable[str],
    *,
    typed: bool,
) -> Finding:
    """A column of texts that are numbers by a reading. ``missing`` has the texts that count as missing already;
    ``typed`` says that the source stores the column as text, so that it must be declared numeric besides."""
    total = sum(values.values())
    marks = [f"{reading.thousands!r} between thousands"] if reading.thousands else []
    marks += [f"{reading.decimal!r} as decimal mark"] if reading.decimal != "." else []
    marks += [f"units ({limited(list(map(repr, reading.units)))})"] if reading.units else []
    rows = round(reading.share * total)
    share = f"{rows:,} of {total:,} values ({reading.share:.1%}) are numbers" + (
        f" with {' and '.join(marks)}" if marks else ""
    )
    examples = [repr(text) for text in list(values)[:3]] if marks else []
    others = (
        f"; {format_count(total - rows, 'row')} hold {limited(list(map(repr, reading.others)))}"
        if reading.others
        else ""
    )
    message = f"is text: {share}{f', such as {limited(examples)}' if examples else ''}{others}"
    if reading.decimal == "." != rule.decimal:
        hint = f"data.source.decimal is {rule.decimal!r} for all columns: write the numbers of the file alike"
        return Finding(column, message, f"{hint}; or, to keep the text, {categorical_line(column)}")
    return Finding(column, message, _number_hint(column, reading, missing, typed=typed))


def _number_hint(column: str, reading: NumberReading, missing: Iterable[str], *, typed: bool) -> str:
    keys = [f"thousands: {quoted(reading.thousands)}"] if reading.thousands else []
    keys += [f"decimal: {quoted(reading.decimal)}"] if reading.decimal != "." else []
    keys += [f"units: [{', '.join(map(quoted, reading.units))}]"] if reading.units else []
    if reading.others and len(reading.others) <= MAX_TOKENS:
        tokens = dict.fromkeys([*missing, *(text.strip() for text in reading.others if text.strip())])
        keys += [f"missing: [{', '.join(map(quoted, tokens))}]"] if tokens else []
    lines = [f"{' and '.join(keys)} under data.source"] if keys else []
    if typed or (reading.plain and len(reading.others) > MAX_TOKENS):
        lines.append(f"{quoted(column)}: numeric under data.columns")
    return f"write {', and '.join(lines)}; or, to keep the text, {categorical_line(column)}"


def categorical_line(column: str) -> str:
    """What to write to have a column's texts as categories."""
    return f"{quoted(column)}: categorical under data.columns"


def quoted(text: str) -> str:
    """A text as YAML reads it back, in quotes unless it is a plain word."""
    words = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    if re.fullmatch(r"[A-Za-z_][\w ]*\w|[A-Za-z_]", text) and text.lower() not in words:
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if "'" in text else f"'{text}'"


def text_findings(column: str, values: Mapping[str, int], distinct: int) -> list[Finding]:
    """What is to be known of a column that is used as categories: dates, nearly distinct values."""
    total = sum(values.values())
    drop = f"write drop: [{quoted(column)}] under data; or, if it is meant, {categorical_line(column)}"
    dates = sum(rows for text, rows in values.items() if DATE.match(text))
    if dates >= REFUSED_SHARE * total:
        message = (
            f"is text: {dates:,} of {total:,} values look like dates or times ({next(iter(values))!r}), each a category"
        )
        date = f"data.columns: {{{quoted(column)}: date}} to learn from them (ISO 8601)"
        return [Finding(column, message, f"write {date}, or data.drop: [{quoted(column)}]")]
    if total >= MIN_DISTINCT and distinct >= DISTINCT_SHARE * total:
        message = f"has {distinct:,} different values in {total:,} rows: as categories they say nothing of new rows"
        return [Finding(column, message, drop)]
    return []


def blank_findings(column: str, values: Mapping[str, int]) -> list[Finding]:
    """Values with blanks around them, and values that differ only by blanks or by upper and lower case."""
    findings = []
    padded = {text: rows for text, rows in values.items() if text != text.strip()}
    if padded:
        first = next(iter(padded))
        merged = _alike(values, str.strip)
        message = f"has blanks around the text in {format_count(sum(padded.values()), 'row')} (such as {first!r})"
        message += f"; {merged} differ by blanks only" if merged else ""
        findings.append(Finding(column, message, TRIM))
    cases = _alike({text.strip(): rows for text, rows in values.items()}, str.casefold)
    if cases:
        findings.append(
            Finding(
                column,
                f"has values that differ by upper and lower case only: {cases}",
                "write them alike at the source, if they are",
            )
        )
    return findings


def name_findings(names: Sequence[str]) -> list[Finding]:
    """Names of columns with blanks around them, which requests must have too."""
    message = "has blanks around its name, as a request must write it"
    return [Finding(name, message, TRIM) for name in names if name != name.strip()]


def _alike(values: Mapping[str, int], key: object) -> str:
    groups: dict[str, list[str]] = {}
    for text in values:
        groups.setdefault(key(text), []).append(text)  # type: ignore[operator]  # a method of str
    alike = [group for group in groups.values() if len(group) > 1]
    shown = [" and ".join(f"{text!r} ({values[text]:,})" for text in group[:3]) for group in alike]
    return limited(shown, 3)


def missing_findings(
    missing: Mapping[str, Mapping[str, int]], categorical: Sequence[str], rows: int, *, default: bool
) -> list[Finding]:
    """Texts of categorical columns that count as missing, when the recipe does not say so."""
    if not default:
        return []
    findings = []
    for column in categorical:
        counts = missing.get(column, {})
        if counts:
            texts = ", ".join(f"{text!r} in {format_count(count, 'row')}" for text, count in list(counts.items())[:5])
            message = f"is missing in {sum(counts.values()) / rows:.1%} of the rows by its text ({texts})"
            keep = f"if that text is a category, write {categorical_line(column)}"
            findings.append(Finding(column, message, keep))
    return findings


def verbatim_findings(column: str, values: Mapping[str, int], tokens: Iterable[str]) -> list[Finding]:
    """Texts of a column declared categorical that would be missing elsewhere."""
    present = {text: values[text] for text in tokens if text in values}
    if not present:
        return []
    texts = ", ".join(f"{text!r} in {format_count(count, 'row')}" for text, count in present.items())
    listed = ", ".join(map(quoted, present))
    hint = f"if it says that the value is missing, write missing: [{listed}] under data.source"
    return [Finding(column, f"is declared categorical: {texts} is a category", hint)]


def code_finding(column: str, values: Mapping[str, int]) -> Finding | None:
    """A column that would be numbers but for its leading zeros."""
    total = sum(values.values())
    zeros = {text: rows for text, rows in values.items() if re.match(r"\s*[-+]?0\d", text)}
    if not zeros or any(not re.fullmatch(NUMBER, text.strip()) for text in values):
        return None
    message = (
        f"is text: {sum(zeros.values()) / total:.1%} of the values begin with a zero (such as {next(iter(zeros))!r})"
    )
    hint = f"write {categorical_line(column)} to say so, or {quoted(column)}: numeric there to read numbers"
    return Finding(column, message, hint)
