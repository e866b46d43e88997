"""Checks of a table by pandera. Each check of a recipe is one lazy schema, so that all its failures are found."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlflowkit.values import CheckResult

if TYPE_CHECKING:
    import pandas as pd
    import pandera.pandas as pandera

SHOWN = 10
"""Rows that a failure names; all are counted."""


class PanderaChecker:
    """The Checker port."""

    def check(
        self, table: pd.DataFrame, checks: Sequence[Any], schema: Mapping[str, Mapping[str, Any]]
    ) -> Sequence[CheckResult]:
        """Results in the order of the checks; a schema check gives one for each of its faults."""
        results: list[CheckResult] = []
        for check in checks:
            columns = _columns(check)
            absent = [name for name in columns if name not in table.columns]
            if absent:
                results.append(_absent(check.kind, absent[0], table))
            elif check.kind == "schema":
                results.extend(_schema(table, schema, extra=check.extra))
            else:
                results.append(_CHECKS[check.kind](table, check))
        return results

    def infer(self, table: pd.DataFrame) -> dict[str, dict[str, Any]]:
        """``{column: {dtype, nullable}}`` as the table has it."""
        return {
            str(name): {"dtype": _family(table[name]), "nullable": bool(table[name].isna().any())}
            for name in table.columns
        }


def _columns(check: Any) -> list[str]:
    if check.kind == "schema":
        return []
    return list(check.columns) if check.kind == "unique" else [check.column]


def _absent(kind: str, column: str, table: pd.DataFrame) -> CheckResult:
    names = ", ".join(map(str, table.columns[:SHOWN]))
    message = f"column {column!r} is not in the table (dropped? data.columns can mark it `ignore`); it has {names}"
    return CheckResult(check=kind, column=column, passed=False, message=message, failed=1)


# -------------------------------------------------------------------------------------------------- one check at a time


def _range(table: pd.DataFrame, check: Any) -> CheckResult:
    pa = _pandera()
    series = table[check.column]
    if _family(series) not in ("int", "float", "bool"):
        message = f"column {check.column!r} holds {_family(series)}, not numbers"
        return CheckResult("range", check.column, passed=False, message=message, failed=len(series))
    bounds = []
    if check.min is not None:
        bounds.append(pa.Check.ge(check.min))
    if check.max is not None:
        bounds.append(pa.Check.le(check.max))
    cases = _failures(pa.DataFrameSchema({check.column: pa.Column(None, nullable=True, checks=bounds)}), table)
    low = "-inf" if check.min is None else f"{check.min:g}"
    high = "inf" if check.max is None else f"{check.max:g}"
    return _result("range", check.column, table, cases, f"outside [{low}, {high}]")


def _nulls(table: pd.DataFrame, check: Any) -> CheckResult:
    pa = _pandera()
    missing = table[check.column].isna()
    share = float(missing.mean())
    if check.max_share == 0:
        cases = _failures(pa.DataFrameSchema({check.column: pa.Column(None, nullable=False)}), table)
    else:
        bounded = pa.Check(lambda column: column.isna().mean() <= check.max_share, ignore_na=False, name="nulls")
        failed = _failures(pa.DataFrameSchema({check.column: pa.Column(None, nullable=True, checks=bounded)}), table)
        cases = _labels(missing) if failed is not None else None
    return _result(
        "nulls", check.column, table, cases, f"missing ({share:.2%} of the rows; {check.max_share:.2%} allowed)"
    )


def _unique(table: pd.DataFrame, check: Any) -> CheckResult:
    pa = _pandera()
    columns = {name: pa.Column(None, nullable=True) for name in check.columns}
    names = ", ".join(check.columns)
    cases = _failures(pa.DataFrameSchema(columns, unique=list(check.columns)), table[list(check.columns)])
    rows = sorted(set(cases)) if cases is not None else None
    return _result("unique", names, table, rows, f"alike in {names}")


def _allowed(table: pd.DataFrame, check: Any) -> CheckResult:
    pa = _pandera()
    allowed = pa.Check.isin(list(check.values))
    cases = _failures(pa.DataFrameSchema({check.column: pa.Column(None, nullable=True, checks=allowed)}), table)
    values = ", ".join(map(repr, check.values[:SHOWN])) + (", …" if len(check.values) > SHOWN else "")
    return _result("allowed", check.column, table, cases, f"not one of {values}")


_CHECKS: Mapping[str, Callable[[pd.DataFrame, Any], CheckResult]] = {
    "range": _range,
    "nulls": _nulls,
    "unique": _unique,
    "allowed": _allowed,
}


# -------------------------------------------------------------------------------------------------------- the schema


def _schema(table: pd.DataFrame, schema: Mapping[str, Mapping[str, Any]], *, extra: str) -> list[CheckResult]:
    pa = _pandera()
    columns = {
        name: pa.Column(
            None,
            nullable=bool(rule["nullable"]),
            checks=pa.Check(_is(str(rule["dtype"])), ignore_na=False, name="dtype"),
        )
        for name, rule in schema.items()
    }
    try:
        pa.DataFrameSchema(columns, strict=extra == "forbid").validate(table, lazy=True, inplace=True)
    except pa.errors.SchemaErrors as error:
        return _schema_faults(table, schema, error.failure_cases)
    message = f"the {len(schema)} columns have the names and types expected"
    return [CheckResult("schema", "", passed=True, message=message)]


def _schema_faults(
    table: pd.DataFrame, schema: Mapping[str, Mapping[str, Any]], cases: pd.DataFrame
) -> list[CheckResult]:
    """One result for each column that is amiss."""
    faults: list[CheckResult] = []
    for kind, column in dict.fromkeys(_fault(case) for case in cases.to_dict("records")):
        if kind == "missing":
            faults.append(CheckResult("schema", column, False, f"column {column!r} is missing", failed=1))
        elif kind == "extra":
            faults.append(CheckResult("schema", column, False, f"column {column!r} is not in the schema", failed=1))
        elif kind == "dtype":
            faults.append(_wrong_type(table[column], str(schema[column]["dtype"])))
        else:
            rows = _labels(table[column].isna())
            faults.append(_result("schema", column, table, rows, "missing; the schema allows none"))
    return faults


def _fault(case: Mapping[Any, Any]) -> tuple[str, str]:
    check = str(case["check"])
    if check == "column_in_dataframe":
        return "missing", str(case["failure_case"])
    if check == "column_in_schema":
        return "extra", str(case["failure_case"])
    return ("dtype" if check == "dtype" else "nulls"), str(case["column"])


def _wrong_type(series: pd.Series, expected: str) -> CheckResult:
    """A column of another type; where it is text that should be numbers, the rows that are to blame."""
    import pandas as pd

    found = _family(series)
    message = f"column {series.name!r} holds {found}; the schema says {expected}"
    rows: list[int] = []
    if found == "string" and expected in ("int", "float"):
        numbers = pd.to_numeric(series, errors="coerce")
        rows = _labels(numbers.isna() & series.notna())
    elif found == "float" and expected == "int":
        rows = _labels(series.notna() & (series % 1 != 0))
    failures = tuple((row, _plain(series.loc[row])) for row in rows[:SHOWN])
    if failures:
        message += f": {_shown(failures, len(rows))}"
    return CheckResult("schema", str(series.name), False, message, failed=max(len(rows), 1), failures=failures)


def _is(expected: str) -> Callable[[pd.Series], bool]:
    """Whether a column is of a type; whole numbers are also floats."""

    def holds(series: pd.Series) -> bool:
        found = _family(series)
        return found == expected or (found, expected) == ("int", "float")

    return holds


def _family(series: pd.Series) -> str:
    from pandas.api import types

    if types.is_bool_dtype(series.dtype):
        return "bool"
    if types.is_integer_dtype(series.dtype):
        return "int"
    if types.is_float_dtype(series.dtype):
        return "float"
    if types.is_datetime64_any_dtype(series.dtype):
        return "datetime"
    return "string"


# ------------------------------------------------------------------------------------------------------------- shared


def _pandera() -> Any:
    os.environ.setdefault("DISABLE_PANDERA_IMPORT_WARNING", "True")
    import pandera.pandas

    return pandera.pandas


def _failures(schema: pandera.DataFrameSchema, table: pd.DataFrame) -> list[int] | None:
    """Rows that fail, in order; None when all is well. A failure of the column as a whole has no rows."""
    errors = _pandera().errors
    try:
        schema.validate(table, lazy=True, inplace=True)
    except errors.SchemaErrors as error:
        index = error.failure_cases["index"].dropna()
        return sorted(int(row) for row in index)
    return None


def _labels(wrong: pd.Series) -> list[int]:
    return sorted(int(row) for row in wrong.index[wrong.to_numpy(dtype=bool)])


def _result(check: str, column: str, table: pd.DataFrame, rows: Sequence[int] | None, wrong: str) -> CheckResult:
    """``rows`` are labels of the table's index, None for a check that passed."""
    if rows is None:
        return CheckResult(check, column, passed=True, message="")
    names = column.split(", ") if check == "unique" else [column]
    failures = tuple((row, _plain([table.at[row, name] for name in names])) for row in rows[:SHOWN])
    message = f"{len(rows)} row{'' if len(rows) == 1 else 's'} {wrong}: {_shown(failures, len(rows))}"
    return CheckResult(check, column, passed=False, message=message, failed=len(rows), failures=failures)


def _shown(failures: Sequence[tuple[int, Any]], total: int) -> str:
    """
    >>> _shown([(3, "x"), (9, None)], 12)
    "row 3: 'x', row 9: missing and 10 more"
    """
    shown = ", ".join(f"row {row}: {'missing' if value is None else repr(value)}" for row, value in failures)
    return shown if total <= len(failures) else f"{shown} and {total - len(failures)} more"


def _plain(value: Any) -> Any:
    """A cell, or a list of one or more, as JSON."""
    import pandas as pd

    if isinstance(value, list):
        cells = [_plain(cell) for cell in value]
        return cells[0] if len(cells) == 1 else cells
    if pd.isna(value):
        return None
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, str | int | float | bool) else str(value)
