"""The FileChecker of pandera schemas: code beside the recipe, or the YAML that pandera writes."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit import usercode
from mlflowkit.errors import DataError
from mlflowkit.judging.file_checks.check_sections import PanderaCheck, bounded_cell
from mlflowkit.values import CheckResult

if TYPE_CHECKING:
    import pandas as pd

MAX_LISTED_ROWS = 10
"""Rows that a failure lists; all are counted."""
MAX_WORDS = 200
"""Length of texts of pandera and of user code in a result."""


class PanderaSchemas:
    """The FileChecker port."""

    def check(
        self, table: pd.DataFrame, check: PanderaCheck, folder: Path, evidence: Path, previous: Path | None = None
    ) -> Sequence[CheckResult]:
        """One result per failure, and one per column (or the table) without a failure."""
        schema = load_schema(check, folder)
        with usercode.translate_user_errors(str(check.schema), folder):
            results = list(_evaluate(table, schema, str(check.schema)))
        (evidence / "schema.json").write_text(json.dumps(describe_schema(schema), indent=1, ensure_ascii=False))
        return results


def load_schema(check: PanderaCheck, folder: Path) -> Any:
    """The DataFrameSchema that a check names.

    Raises UserCodeError for code that raises, and DataError for what is no schema of a table, states nothing, or would
    remove rows instead of judging them.
    """
    pa = _import_pandera()
    name = str(check.schema)
    if check.is_file:
        from pandera.io import pandas_io

        text = (folder / name).read_text(encoding="utf-8")
        try:
            schema = pandas_io.from_yaml(text)
        except Exception as error:
            message = f"{name}: not a schema of pandera: {type(error).__name__}: {str(error)[:MAX_WORDS]}"
            raise DataError(message, hint="write it anew with schema.to_yaml()") from error
    else:
        schema = usercode.load(name, folder)
        with usercode.translate_user_errors(name, folder):
            schema = schema.to_schema() if hasattr(schema, "to_schema") else schema
    if not isinstance(schema, pa.DataFrameSchema):
        message = f"{name} is a {type(schema).__module__}.{type(schema).__name__}, not a schema of a pandas table"
        raise DataError(message, hint="name a pandera.pandas.DataFrameSchema or DataFrameModel")
    if problem := _unsuitable(schema):
        raise DataError(f"{name} {problem[0]}", hint=problem[1])
    return schema


def _unsuitable(schema: Any) -> tuple[str, str] | None:
    """Why a schema cannot judge a table of mlflowkit, and what to do; None when it can."""
    columns = list(schema.columns.values())
    if not columns and not schema.checks and schema.dtype is None and not schema.unique:
        return "states nothing: no columns and no checks", "a check that always passes is none: add columns to it"
    if any(part.drop_invalid_rows for part in (schema, *columns)):
        return "drops invalid rows: they would pass unseen", "remove drop_invalid_rows from it"
    if schema.index is not None:
        return "has an index, and a table of a recipe has none", "make a column of it"
    return None


def describe_schema(schema: Any) -> dict[str, Any]:
    """What a schema states, as JSON: per column its type and the names of its checks."""
    columns = {str(name): _statements(column) for name, column in schema.columns.items()}
    return {"columns": columns, "table": [_check_name(check) for check in schema.checks], "unique": schema.unique}


def _evaluate(table: pd.DataFrame, schema: Any, name: str) -> Iterator[CheckResult]:
    pa = _import_pandera()
    from pandera.config import ValidationDepth, config_context

    faults: Sequence[Any] = ()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            with config_context(validation_enabled=True, validation_depth=ValidationDepth.SCHEMA_AND_DATA):
                schema.validate(table, lazy=True)
        except pa.errors.SchemaErrors as error:
            faults = error.schema_errors
    failed = [_failure(table, fault) for fault in faults]
    yield from failed
    notes = [str(item.message)[:MAX_WORDS] for item in warned if issubclass(item.category, pa.errors.SchemaWarning)]
    yield from _passes(table, schema, name, {result.column for result in failed}, notes)


def _passes(
    table: pd.DataFrame, schema: Any, name: str, failed: set[str], notes: Sequence[str]
) -> Iterator[CheckResult]:
    for column_name, column in schema.columns.items():
        absent = not column.regex and column_name not in table.columns
        if str(column_name) not in failed:
            message = "is not in the table, and not required" if absent else ", ".join(_statements(column))
            yield CheckResult("pandera", str(column_name), passed=True, message=message)
    if "" not in failed:
        checks = [_check_name(check) for check in schema.checks]
        warned = f"; warned of {notes[0]}" if notes else ""
        message = f"{name}: {len(schema.columns)} columns{', '.join(['', *checks])}{warned}"
        yield CheckResult("pandera", "", passed=True, message=message)


def _statements(column: Any) -> list[str]:
    statements = [f"type {column.dtype}"] if column.dtype is not None else []
    statements += [] if column.nullable else ["not missing"]
    statements += ["unique"] if column.unique else []
    statements += ["after coercion"] if column.coerce else []
    statements += ["after its parsers"] if column.parsers else []
    return [*statements, *(_check_name(check) for check in column.checks)]


def _check_name(check: Any) -> str:
    return str(getattr(check, "error", None) or getattr(check, "name", None) or check)[:MAX_WORDS]


def _failure(table: pd.DataFrame, fault: Any) -> CheckResult:
    """The result of one SchemaError of pandera."""
    reason = fault.reason_code.name if fault.reason_code is not None else ""
    column = str(fault.column_name) if fault.column_name is not None else ""
    rule = _check_name(fault.check)
    if reason in ("COLUMN_NOT_IN_DATAFRAME", "COLUMN_NOT_IN_SCHEMA"):
        column = str(fault.failure_cases)
        where = "is missing" if reason == "COLUMN_NOT_IN_DATAFRAME" else "is not in the schema"
        return CheckResult("pandera", column, passed=False, message=f"column {column!r} {where}", failed=1)
    if reason == "CHECK_ERROR" or not hasattr(fault.failure_cases, "columns"):
        message = f"{rule}: {str(fault.failure_cases if reason == 'CHECK_ERROR' else fault)[:MAX_WORDS]}"
        return CheckResult("pandera", column, False, message, failed=1, error=reason == "CHECK_ERROR")
    cases = fault.failure_cases
    indexed = cases[cases["index"].notna()] if "index" in cases else cases.iloc[:0]
    if indexed.empty:
        message = f"{rule}: {str(cases['failure_case'].iloc[0])[:MAX_WORDS]}" if len(cases) else rule
        return CheckResult("pandera", column, passed=False, message=message, failed=max(len(cases), 1))
    indexed = indexed.drop_duplicates("index").sort_values("index")
    shown = indexed.head(MAX_LISTED_ROWS)
    whole = not column or "column" in cases
    cells = [None] * len(shown) if whole else [_plain(value) for value in shown["failure_case"]]
    failures = tuple((int(row), cell) for row, cell in zip(shown["index"], cells, strict=True))
    listed = ", ".join(f"row {row}" if whole else f"row {row}: {_word(cell)}" for row, cell in failures)
    more = len(indexed) - len(failures)
    message = f"{rule}: {len(indexed)} row{'s' * (len(indexed) > 1)}: {listed}{f' and {more} more' if more else ''}"
    return CheckResult("pandera", column, passed=False, message=message, failed=len(indexed), failures=failures)


def _word(cell: Any) -> str:
    return "missing" if cell is None else repr(cell)


def _plain(value: Any) -> Any:
    import pandas as pd

    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    value = value.item() if hasattr(value, "item") else value
    return bounded_cell(value if isinstance(value, str | int | float | bool) else str(value))


def _import_pandera() -> Any:
    os.environ.setdefault("DISABLE_PANDERA_IMPORT_WARNING", "True")
    import pandera.pandas

    return pandera.pandas
