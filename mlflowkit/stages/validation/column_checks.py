"""Checks of columns, each on those columns that it is about, so that the others need not be in memory.

The results are those of the checker on the whole table. Rows are numbered only where a check fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlflowkit.judging.file_checks.number_texts import as_numbers
from mlflowkit.ports import Checker
from mlflowkit.stages.base import Check, SchemaCheck, TableCheck
from mlflowkit.stages.validation.part_columns import PartColumns
from mlflowkit.values import CheckResult

if TYPE_CHECKING:
    import pandas as pd

Schema = Mapping[str, Mapping[str, Any]]


def check_columns(
    checker: Checker, checks: Sequence[TableCheck], columns: PartColumns, schema: Schema
) -> list[CheckResult]:
    """The results of the checks, in their order."""
    numbers = compared_as_numbers(checks, schema)
    results: list[CheckResult] = []
    for check in checks:
        names = columns_of(check)
        if isinstance(check, SchemaCheck):
            results += _check_schema(checker, check, columns, schema, numbers)
        elif set(names) <= set(columns.names):
            results += _check_values(checker, check, columns, names, schema, numbers)
        else:
            results += checker.check(_without_rows(columns), [check], schema)
    return results


def columns_of(check: TableCheck) -> list[str]:
    """The columns that a check names; none for a schema, which is about all."""
    if check.kind == "schema":
        return []
    return list(dict.fromkeys(check.columns)) if check.kind == "unique" else [check.column]


def compared_as_numbers(checks: Sequence[Check], schema: Schema) -> set[str]:
    """The columns whose texts are compared by their numbers.

    A column that is declared categorical is text (``"3"``), and a schema, a range or a list of values may say that its
    texts are whole numbers. Columns with a text that is no number stay as they are, for the check to refuse.
    """
    numbers = {name for name, rule in schema.items() if rule["dtype"] in ("int", "float")}
    numbers |= {check.column for check in checks if check.kind == "range"}
    for check in checks:
        if check.kind == "allowed" and not any(isinstance(value, str) for value in check.values):
            numbers.add(check.column)
    return numbers


def _check_values(
    checker: Checker, check: TableCheck, columns: PartColumns, names: Sequence[str], schema: Schema, numbers: set[str]
) -> Sequence[CheckResult]:
    results = checker.check(as_numbers(columns.frame(names, numbered=False), numbers), [check], schema)
    if all(result.passed for result in results):
        return results
    return checker.check(as_numbers(columns.frame(names), numbers), [check], schema)


def _check_schema(
    checker: Checker, check: SchemaCheck, columns: PartColumns, schema: Schema, numbers: set[str]
) -> Sequence[CheckResult]:
    """The result of a schema check: of all columns without their rows if each block passes by itself, else of those
    blocks that do not pass."""
    import pandas as pd

    empty: dict[str, pd.Series] = {}
    wrong = set(schema) - set(columns.names)
    for block in columns.blocks():
        frame = as_numbers(columns.frame(block, numbered=False), numbers)
        rules = {name: rule for name, rule in schema.items() if name in block}
        if not all(result.passed for result in checker.check(frame, [check], rules)):
            wrong.update(block)
        empty.update({name: frame[name].iloc[:0].copy() for name in block})
        del frame
    if not wrong:
        return checker.check(pd.DataFrame(empty), [check], schema)
    frame = as_numbers(columns.frame(name for name in columns.names if name in wrong), numbers)
    return checker.check(frame, [check], {name: rule for name, rule in schema.items() if name in wrong})


def _without_rows(columns: PartColumns) -> pd.DataFrame:
    """No rows of all columns."""
    import pandas as pd

    return pd.DataFrame(columns=list(columns.names))
