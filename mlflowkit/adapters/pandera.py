"""Table checks with pandera. Each check of a recipe is one lazy schema, so that all its failures are reported."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from pandas.api import types

from mlflowkit.ports import NamedColumns
from mlflowkit.values import CheckResult

MAX_LISTED_ROWS = 10
"""Rows that a failure lists; all are counted."""


class PanderaChecker:
    """The Checker port."""

    def check(
        self, table: pd.DataFrame, checks: Sequence[Any], schema: Mapping[str, Mapping[str, Any]]
    ) -> Sequence[CheckResult]:
        """Results in the order of the checks; a schema check gives one result per failure."""
        results: list[CheckResult] = []
        for check in checks:
            columns = [] if check.kind == "schema" else check.columns if check.kind == "unique" else [check.column]
            missing = [name for name in columns if name not in table.columns]
            if missing:
                names = ", ".join(map(str, table.columns[:MAX_LISTED_ROWS]))
                message = f"column {missing[0]!r} is not in the table (dropped? data.columns can mark it `ignore`); "
                message += f"it has {names}"
                results.append(CheckResult(check.kind, missing[0], passed=False, message=message, failed=1))
            elif check.kind == "schema":
                results.extend(_check_schema(table, schema, extra=check.extra))
            else:
                results.append(_CHECKS[check.kind](table, check))
        return results

    def infer(self, table: NamedColumns) -> dict[str, dict[str, Any]]:
        """The table's schema as ``{column: {dtype, nullable}}``."""
        schema = {}
        for name, values in table.items():
            schema[str(name)] = {"dtype": _dtype_name(values), "nullable": bool(values.isna().any())}
            del values
        return schema


def _check_range(table: pd.DataFrame, check: Any) -> CheckResult:
    pa = _import_pandera()
    series = table[check.column]
    if _dtype_name(series) not in ("int", "float", "bool"):
        message = f"column {check.column!r} holds {_dtype_name(series)}, not numbers"
        return CheckResult("range", check.column, passed=False, message=message, failed=len(series))
    bounds = [] if check.min is None else [pa.Check.ge(check.min)]
    bounds += [] if check.max is None else [pa.Check.le(check.max)]
    rows = _failing_rows(table, check.column, checks=bounds)
    low = "-inf" if check.min is None else f"{check.min:g}"
    high = "inf" if check.max is None else f"{check.max:g}"
    return _result("range", check.column, table, rows, f"outside [{low}, {high}]")


def _check_nulls(table: pd.DataFrame, check: Any) -> CheckResult:
    pa = _import_pandera()
    missing = table[check.column].isna()
    share = float(missing.mean())
    if check.max_share == 0:
        rows = _failing_rows(table, check.column, nullable=False)
    else:
        bounded = pa.Check(lambda column: column.isna().mean() <= check.max_share, ignore_na=False, name="nulls")
        failed = _failing_rows(table, check.column, checks=bounded)
        rows = _labels(missing) if failed is not None else None
    problem = f"missing ({share:.2%} of the rows; {check.max_share:.2%} allowed)"
    return _result("nulls", check.column, table, rows, problem)


def _check_unique(table: pd.DataFrame, check: Any) -> CheckResult:
    names = ", ".join(check.columns)
    rows = _failing_rows(table[list(check.columns)], *check.columns, unique=list(check.columns))
    rows = sorted(set(rows)) if rows is not None else None
    return _result("unique", names, table, rows, f"alike in {names}")


def _check_allowed(table: pd.DataFrame, check: Any) -> CheckResult:
    allowed = _import_pandera().Check.isin(list(check.values))
    rows = _failing_rows(table, check.column, checks=allowed)
    values = ", ".join(map(repr, check.values[:MAX_LISTED_ROWS]))
    values += ", …" if len(check.values) > MAX_LISTED_ROWS else ""
    return _result("allowed", check.column, table, rows, f"not one of {values}")


_CHECKS: Mapping[str, Callable[[pd.DataFrame, Any], CheckResult]] = {
    "range": _check_range,
    "nulls": _check_nulls,
    "unique": _check_unique,
    "allowed": _check_allowed,
}


def _check_schema(table: pd.DataFrame, schema: Mapping[str, Mapping[str, Any]], *, extra: str) -> list[CheckResult]:
    pa = _import_pandera()
    columns = {}
    for name, rule in schema.items():
        allowed = {"int", "float"} if rule["dtype"] == "float" else {str(rule["dtype"])}  # integers are also floats
        check = pa.Check(lambda series, allowed=allowed: _dtype_name(series) in allowed, ignore_na=False, name="dtype")
        columns[name] = pa.Column(None, nullable=bool(rule["nullable"]), checks=check)
    try:
        pa.DataFrameSchema(columns, strict=extra == "forbid").validate(table, lazy=True, inplace=True)
    except pa.errors.SchemaErrors as error:
        return _schema_failures(table, schema, error.failure_cases)
    message = f"the {len(schema)} columns have the names and types expected"
    return [CheckResult("schema", "", passed=True, message=message)]


def _schema_failures(
    table: pd.DataFrame, schema: Mapping[str, Mapping[str, Any]], cases: pd.DataFrame
) -> list[CheckResult]:
    """One result per column with a failure."""
    whole = {"column_in_dataframe": "is missing", "column_in_schema": "is not in the schema"}
    failures: dict[tuple[str, str], CheckResult] = {}
    for case in cases.to_dict("records"):
        check = str(case["check"])
        column = str(case["failure_case" if check in whole else "column"])
        if (check, column) in failures:
            continue
        if check in whole:
            failure = CheckResult("schema", column, False, f"column {column!r} {whole[check]}", failed=1)
        elif check == "dtype":
            failure = _wrong_type(table[column], str(schema[column]["dtype"]))
        else:
            rows = _labels(table[column].isna())
            failure = _result("schema", column, table, rows, "missing; the schema allows none")
        failures[check, column] = failure
    return list(failures.values())


def _wrong_type(series: pd.Series, expected: str) -> CheckResult:
    """The failure of a column of another type; lists non-numeric rows of a text column expected to be numbers."""
    actual = _dtype_name(series)
    message = f"column {series.name!r} holds {actual}; the schema says {expected}"
    rows: list[int] = []
    if actual == "string" and expected in ("int", "float"):
        numbers = pd.to_numeric(series, errors="coerce")
        rows = _labels(numbers.isna() & series.notna())
    elif actual == "float" and expected == "int":
        rows = _labels(series.notna() & (series % 1 != 0))
    failures = tuple((row, _to_json(series.loc[row])) for row in rows[:MAX_LISTED_ROWS])
    message += f": {_format_failures(failures, len(rows))}" if failures else ""
    return CheckResult("schema", str(series.name), False, message, failed=max(len(rows), 1), failures=failures)


def _dtype_name(series: pd.Series) -> str:
    kinds = {"bool": types.is_bool_dtype, "int": types.is_integer_dtype, "float": types.is_float_dtype}
    kinds |= {"datetime": types.is_datetime64_any_dtype}
    return next((name for name, is_kind in kinds.items() if is_kind(series.dtype)), "string")


def _import_pandera() -> Any:
    os.environ.setdefault("DISABLE_PANDERA_IMPORT_WARNING", "True")
    import pandera.pandas

    return pandera.pandas


def _failing_rows(
    table: pd.DataFrame, *columns: str, nullable: bool = True, checks: Any = None, unique: list[str] | None = None
) -> list[int] | None:
    """Rows that fail, in order; None when the check passed. A failure of a whole column has no rows."""
    pa = _import_pandera()
    schema = pa.DataFrameSchema(
        {name: pa.Column(None, nullable=nullable, checks=checks) for name in columns}, unique=unique
    )
    try:
        schema.validate(table, lazy=True, inplace=True)
    except pa.errors.SchemaErrors as error:
        return sorted(int(row) for row in error.failure_cases["index"].dropna())
    return None


def _labels(mask: pd.Series) -> list[int]:
    return sorted(int(row) for row in mask.index[mask.to_numpy(dtype=bool)])


def _result(check: str, column: str, table: pd.DataFrame, rows: Sequence[int] | None, problem: str) -> CheckResult:
    """``rows`` are labels of the table's index, None for a check that passed."""
    if rows is None:
        return CheckResult(check, column, passed=True, message="")
    names = column.split(", ") if check == "unique" else [column]
    failures = tuple((row, _to_json([table.at[row, name] for name in names])) for row in rows[:MAX_LISTED_ROWS])
    message = f"{len(rows)} row{'' if len(rows) == 1 else 's'} {problem}: {_format_failures(failures, len(rows))}"
    return CheckResult(check, column, passed=False, message=message, failed=len(rows), failures=failures)


def _format_failures(failures: Sequence[tuple[int, Any]], total: int) -> str:
    """List rows and their values.

    >>> _format_failures([(3, "x"), (9, None)], 12)
    "row 3: 'x', row 9: missing and 10 more"
    """
    listed = ", ".join(f"row {row}: {'missing' if value is None else repr(value)}" for row, value in failures)
    return listed if total <= len(failures) else f"{listed} and {total - len(failures)} more"


def _to_json(value: Any) -> Any:
    """Convert a cell, or a list of cells, to a JSON value; a list of one to its element."""
    if isinstance(value, list):
        cells = [_to_json(cell) for cell in value]
        return cells[0] if len(cells) == 1 else cells
    if pd.isna(value):
        return None
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, str | int | float | bool) else str(value)
