"""The text of a recipe for a CSV: YAML with the reason of each choice as a comment."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from mlflowkit.features.cells import DEFAULT_MISSING
from mlflowkit.recipe.starter.choices import RARE, ColumnChoice, RecipeChoices
from mlflowkit.system.text import printable_json, printable_line

COMMENT_COLUMN = 58
"""Where comments begin, if the line before is shorter."""
MAX_COMMENT = 240
"""Characters of a comment."""
PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}
"""Plain texts that YAML, or a reader of YAML, takes for something else."""


def recipe_text(choices: RecipeChoices, *, name: str, path: str, port: int) -> str:
    """The recipe. ``path`` is the CSV's, relative to the recipe."""
    rows = f"{choices.facts.column(choices.target).rows:,} rows"
    looked = rows if choices.facts.complete else f"the first {rows}"
    lines = [
        "# yaml-language-server: $schema=recipe.schema.json",
        f"# Written by mlkit init from {looked} of {printable_line(path)}. Read the comments: each says "
        "what was seen in the data.",
        "#   mlkit validate recipe.yaml     reports all errors, with their lines",
        "#   mlkit run recipe.yaml          trains, checks and deploys the model",
        f"name: {name}",
        _line(f"task: {choices.task}", choices.task_reason),
        "seed: 7",
        "",
        *_data(choices, path),
        "",
        "model:",
        "  kind: sklearn",
        f"  module: sklearn.ensemble:HistGradientBoosting{'Classifier' if choices.classes else 'Regressor'}",
        *_preprocess(choices),
        "",
        "optimize: {candidates: [onnx]}",
        "",
        *_gates(choices),
        "",
        f"serve: {{service: {name}, port: {port}}}",
    ]
    return "\n".join(lines) + "\n"


def _data(choices: RecipeChoices, path: str) -> Iterator[str]:
    target = choices.facts.column(choices.target)
    yield "data:"
    yield "  source:"
    yield "    kind: csv"
    yield f"    path: {value(path)}"
    yield from _source_keys(choices)
    yield f"  target: {value(choices.target)}"
    if choices.positive is not None:
        yield _line(f"  positive: {value(choices.positive)}", choices.positive_reason)
    if missing := choices.missing_targets:
        share = f"{missing:,} rows ({missing / target.rows:.1%}) have no target"
        yield _line("  missing_target: drop", share)
    yield from _drop(choices.with_role("drop"))
    yield "  columns:"
    for column in choices.columns:
        if column.role != "drop":
            yield _line(f"    {scalar(column.name)}: {column.role}", column.reason)
            if column.warning:
                yield f"    # WARNING: {printable_line(f'{scalar(column.name)} {column.warning}')}"
    yield from _split(choices)
    yield "  checks:"
    yield _line("    - {kind: schema}", "inferred on the first run, then enforced")


def _source_keys(choices: RecipeChoices) -> Iterator[str]:
    """Keys of the source that differ from their defaults."""
    rule, columns = choices.facts.rule, choices.facts.columns
    if choices.facts.separator != ",":
        yield f"    separator: {_quoted(choices.facts.separator)}"
    extra = [token for token in rule.missing if token not in DEFAULT_MISSING]
    if extra:
        rows = {token: sum(column.tokens.get(token, 0) for column in columns) for token in extra}
        counted = ", ".join(f"{token} in {count:,} rows" for token, count in rows.items())
        used = [*extra, *_default_tokens(choices)]
        yield _line(f"    missing: [{', '.join(map(value, used))}]", f"no numbers: {counted}")
    if rule.decimal != ".":
        yield _line(f"    decimal: {_quoted(rule.decimal)}", "numbers are written with a decimal comma")
    if rule.thousands:
        yield _line(f"    thousands: {_quoted(rule.thousands)}", "digits are grouped by three")
    if rule.units:
        yield _line(f"    units: [{', '.join(map(_quoted, rule.units))}]", "around numbers")
    if rule.trim:
        total = sum(column.blanks for column in columns if not column.is_number)
        yield _line("    trim: true", f"{total:,} texts have blanks around them" if total else "blanks around names")


def _default_tokens(choices: RecipeChoices) -> list[str]:
    """Default tokens that occur in the file: a list of one's own replaces the default."""
    labels = set(choices.facts.table[choices.target].str.strip()) if choices.classes else set()
    tokens = {token for column in choices.facts.columns for token in column.tokens} | labels
    return [token for token in DEFAULT_MISSING if token in tokens]


def _drop(columns: tuple[ColumnChoice, ...]) -> Iterator[str]:
    if not columns:
        return
    yield "  drop:"
    for column in columns:
        yield _line(f"    - {value(column.name)}", column.reason)


def _split(choices: RecipeChoices) -> Iterator[str]:
    kind = "stratified" if choices.classes else "random"
    if choices.time_column is None:
        yield f"  split: {{kind: {kind}, validation: 0.15, test: 0.15}}"
        return
    split = f"  split: {{kind: time, column: {value(choices.time_column)}, validation: 0.15, test: 0.15}}"
    yield _line(split, f"the newest rows are the test, as in production; or kind: {kind}")


def _preprocess(choices: RecipeChoices) -> Iterator[str]:
    if choices.max_categories is not None:
        yield ""
        yield "preprocess:"
        wide = [
            column.name
            for column in choices.with_role("categorical")
            if choices.facts.column(column.name).distinct == choices.max_categories
        ]
        reason = f"{wide[0]} has as many; further ones count as unknown"
        yield _line(f"  max_categories: {choices.max_categories}", reason)


def _gates(choices: RecipeChoices) -> Iterator[str]:
    yield "# Conditions for serving the model. These are floors that chance does not reach: raise them."
    yield "gates:"
    if len(choices.classes) == 2:
        metric, floor, reason = "roc_auc", "0.55", "0.5 is chance"
    elif choices.classes:
        share = max(choices.classes.values()) / sum(choices.classes.values())
        metric, floor, reason = "accuracy", f"{share:.3f}", "always answering the most frequent class reaches this"
    else:
        metric, floor, reason = "r2", "0.0", "always answering the mean reaches 0"
    yield _line(f"  - {{metric: {metric}, min: {floor}}}", reason)
    total = sum(choices.classes.values())
    if choices.positive is not None and choices.classes[choices.positive] / total < RARE:
        share = choices.classes[choices.positive] / total
        yield _line(f"  - {{metric: average_precision, min: {share:.3f}}}", f"{share:.1%} is chance: the class is rare")
    yield f"  - {{metric: {metric}, against: champion, margin: 0.02, on_inconclusive: allow}}"


def _line(text: str, comment: str) -> str:
    """A line with a comment. Comments have texts of the data: none of them ends the line, or is long."""
    comment = printable_line(comment)
    comment = comment if len(comment) <= MAX_COMMENT else f"{comment[: MAX_COMMENT - 1]}…"
    return f"{text:<{COMMENT_COLUMN}}# {comment}" if len(text) < COMMENT_COLUMN else f"{text}   # {comment}"


def _quoted(text: str) -> str:
    return printable_json(json.dumps(text, ensure_ascii=False))


def scalar(text: str) -> str:
    """A text as a YAML scalar that is read back as the same text.

    >>> scalar("churned"), scalar("no"), scalar("mean radius"), scalar("1")
    ('churned', '"no"', '"mean radius"', '"1"')
    """
    plain = PLAIN.fullmatch(text) is not None and text.lower() not in WORDS
    return text if plain else _quoted(text)


def value(text: str) -> str:
    """A text as a YAML scalar of a recipe, where ``${...}`` would name another key.

    >>> print(value("churned"), value("${seed}"))
    churned "\\\\${seed}"
    """
    return scalar(text.replace("${", "\\${"))
