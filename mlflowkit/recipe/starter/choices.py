"""Choose task, target, columns, split and gates from the facts of a CSV; each choice has its reason. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mlflowkit.errors import UsageError, closest_match
from mlflowkit.recipe.starter.column_facts import NEARLY_ALL, ColumnFacts, FileFacts
from mlflowkit.recipe.starter.leaks import ALONE
from mlflowkit.system.text import format_list, shell_word

MAX_CLASSES = 20
"""Most different whole numbers of a target that are taken for classes."""
MAX_CATEGORIES = 50
"""Categories that a recipe one-hot encodes without being told a number."""
MANY_CATEGORIES = 1000
"""From this many categories a text column is left out."""
FREE_TEXT = 40
"""Mean number of characters from which a column with mostly different texts is free text."""
IDENTIFIER = re.compile(r"(^|_|\b)(id|key|uuid|guid|index|rownames?|row|nr|number)$", re.I)
POSITIVE = ("1", "true", "yes", "y", "bad", "positive", "default", "churned", "fraud", "spam", "malignant")
"""Texts, in lower case, of a class that is usually the one to be detected."""
WHOLE = re.compile(r"-?(?:[1-9]\d{0,14}|0)\.0*")
"""A class that the data stage reads as a whole number: 1.0 is 1."""
MIN_TIMES = 10
"""Different dates from which on a column orders rows in time."""
AS_FEATURES = "year, month, day and weekday are features"
RARE = 0.1
"""Share of the positive class below which precision matters beside the ranking."""


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """What a recipe does with one column, and why. ``warning`` asks the reader to decide."""

    name: str
    role: Literal["numeric", "categorical", "date", "time", "drop"]
    reason: str
    warning: str = ""


@dataclass(frozen=True, slots=True)
class RecipeChoices:
    """The choices of a recipe. ``classes`` are the target's texts with their rows, the most frequent first."""

    facts: FileFacts
    target: str
    task: Literal["classification", "regression"]
    task_reason: str
    classes: Mapping[str, int]
    positive: str | None
    positive_reason: str
    columns: tuple[ColumnChoice, ...]
    max_categories: int | None
    time_column: str | None

    @property
    def missing_targets(self) -> int:
        """Rows without a target."""
        if self.classes:
            return self.facts.column(self.target).rows - sum(self.classes.values())
        return self.facts.column(self.target).missing

    def with_role(self, role: str) -> tuple[ColumnChoice, ...]:
        return tuple(column for column in self.columns if column.role == role)


def require_target(facts: FileFacts, target: str) -> ColumnFacts:
    """The facts of the target. Raises UsageError when it is no column, has no values, or only one."""
    names = [column.name for column in facts.columns]
    if target not in names:
        close = closest_match(target, names)
        hint = f"--target {close}" if close else f"the columns are {format_list(names, 20)}"
        raise UsageError(f"{facts.path} has no column {target!r}", hint=hint)
    column = facts.column(target)
    if column.distinct < 2:
        problem = f"column {target!r} has {column.distinct or 'no'} value{'s' if not column.distinct else ''}"
        raise UsageError(
            f"{problem}: there is nothing to predict", hint=f"--target names one of {format_list(names, 20)}"
        )
    return column


def is_classification(column: ColumnFacts) -> tuple[bool, str]:
    """Whether a target holds classes, and why."""
    if column.numbers < NEARLY_ALL or column.codes:
        return True, f"{column.distinct} different texts"
    if column.whole and column.distinct <= MAX_CLASSES:
        return True, f"{column.distinct} different whole numbers; write regression if they are quantities"
    return False, f"numbers, {column.distinct:,} different"


def choose(facts: FileFacts, target: str, alone: Mapping[str, tuple[str, float]]) -> RecipeChoices:
    """The choices for a file; ``alone`` has (metric, score) of the features that predict the target alone."""
    column = require_target(facts, target)
    classification, reason = is_classification(column)
    classes = _classes(facts, target) if classification else {}
    positive, positive_reason = _positive(classes) if len(classes) == 2 else (None, "")
    choices = [_choose_column(item, alone.get(item.name)) for item in facts.columns if item.name != target]
    time_column = _time_column(facts, choices)
    choices = [_as_time(item) if item.name == time_column else item for item in choices]
    _require_feature(facts, target, choices)
    categories = [facts.column(item.name).distinct for item in choices if item.role == "categorical"]
    widest = max(categories, default=0)
    return RecipeChoices(
        facts=facts,
        target=target,
        task="classification" if classification else "regression",
        task_reason=reason,
        classes=classes,
        positive=positive,
        positive_reason=positive_reason,
        columns=tuple(choices),
        max_categories=widest if widest > MAX_CATEGORIES else None,
        time_column=time_column,
    )


def _time_column(facts: FileFacts, choices: Sequence[ColumnChoice]) -> str | None:
    """The first column of dates that tells rows apart in time, where the others leave a feature."""
    if sum(item.role != "drop" for item in choices) < 2:
        return None
    dates = (item.name for item in choices if item.role == "date" and facts.column(item.name).distinct >= MIN_TIMES)
    return next(dates, None)


def _as_time(column: ColumnChoice) -> ColumnChoice:
    reason = column.reason.replace(AS_FEATURES, "kept for the split, no feature")
    return replace(column, role="time", reason=reason)


def _require_feature(facts: FileFacts, target: str, choices: Sequence[ColumnChoice]) -> None:
    """Raise UsageError when every column but the target is left out: there is nothing to predict it from."""
    if all(choice.role == "drop" for choice in choices):
        reasons = "; ".join(f"{choice.name}: {choice.reason}" for choice in choices[:5]) or "it is the only column"
        message = f"{facts.path} has no feature to predict {target!r} from ({reasons})"
        raise UsageError(message, hint=f"head -3 {shell_word(facts.path)}")


def _classes(facts: FileFacts, target: str) -> dict[str, int]:
    """The target's texts with their rows, without those that the data stage takes for missing."""
    classes: dict[str, int] = {}
    for text, rows in facts.table[target].value_counts().items():
        label = str(text).strip() if facts.rule.trim else str(text)
        if label.strip() and label not in facts.rule.missing:
            classes[label] = classes.get(label, 0) + int(rows)
    if all(WHOLE.fullmatch(label) for label in classes):
        return {label.partition(".")[0]: rows for label, rows in classes.items()}
    return classes


def _positive(classes: Mapping[str, int]) -> tuple[str, str]:
    named = [text for text in classes if text.strip().lower() in POSITIVE]
    if len(named) == 1:
        return named[0], f"{classes[named[0]] / sum(classes.values()):.1%} of the rows"
    rarest = min(classes, key=lambda text: classes[text])
    return rarest, f"the rarer class, {classes[rarest] / sum(classes.values()):.1%} of the rows"


def _choose_column(column: ColumnFacts, alone: tuple[str, float] | None) -> ColumnChoice:
    reason = _reason_to_drop(column)
    if reason:
        return ColumnChoice(column.name, "drop", reason)
    if column.other_dates >= NEARLY_ALL:
        example = column.examples[0]
        reason = f"dates that are not written year first, such as {example}: write 2024-01-31 to use them"
        return ColumnChoice(column.name, "drop", reason)
    if column.dates >= NEARLY_ALL:
        if column.mixed_clocks:
            example = f"dates with and without an offset from UTC, such as {column.examples[0]}"
            return ColumnChoice(column.name, "drop", f"{example}: write all with one, or none, to use them")
        return ColumnChoice(column.name, "date", f"dates, such as {column.examples[0]}: {AS_FEATURES}")
    warning = ""
    if alone is not None and alone[1] >= ALONE:
        score = f"{alone[0]} {alone[1]:.3f}"
        warning = f"alone predicts the target ({score}): is it known before the target is? else move it to drop"
    role, reason = _kind(column)
    return ColumnChoice(column.name, role, reason, warning)


def _reason_to_drop(column: ColumnFacts) -> str:
    """Why a column cannot be a feature, or ""."""
    if column.values == 0:
        return "empty in all rows"
    if column.distinct == 1:
        return f"always {column.examples[0]!r}"
    if column.values < 20 or column.dates >= NEARLY_ALL:
        return ""
    text, all_distinct = column.numbers < NEARLY_ALL, column.distinct == column.values
    if all_distinct and column.rising and column.whole:
        return "a row number: whole numbers, all different, rising"
    if text and column.distinct > column.values / 2 and column.length >= FREE_TEXT:
        return f"free text of {column.length:.0f} characters on average; this version has no features of text"
    if all_distinct and (text or (column.whole and IDENTIFIER.search(column.name))):
        return f"an identifier: all {column.distinct:,} values differ"
    if text and column.distinct > MANY_CATEGORIES:
        return f"{column.distinct:,} categories: too many to encode one by one"
    return ""


def _kind(column: ColumnFacts) -> tuple[Literal["numeric", "categorical"], str]:
    """Kind of a feature, and why. Numbers with a leading zero are codes."""
    examples = ", ".join(column.examples)
    if column.codes:
        return "categorical", f"codes with leading zeros, such as {next(iter(column.examples))}"
    if column.numbers == 1 or (column.numbers >= NEARLY_ALL and column.tokens):
        missing = f"; missing in {column.missing:,} rows" if column.missing else ""
        return "numeric", f"{'whole numbers' if column.whole else 'numbers'}, {column.distinct:,} different{missing}"
    if column.booleans == 1:
        return "categorical", "true or false"
    mixed = f"; {column.numbers:.0%} of the values are numbers" if column.numbers > 0.5 else ""
    return "categorical", f"{column.distinct:,} texts, such as {examples}{mixed}"


def tested_features(facts: FileFacts, target: str) -> Sequence[tuple[str, bool]]:
    """(name, whether numeric) of the columns that could predict the target alone: those that are not dropped."""
    choices = [_choose_column(column, None) for column in facts.columns if column.name != target]
    return [(item.name, item.role == "numeric") for item in choices if item.role in ("numeric", "categorical")]
