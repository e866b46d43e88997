"""Checks the table and computes its reference profile."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit.errors import DataError, StoreError
from mlflowkit.judging.file_checks.check_sections import FileCheck
from mlflowkit.judging.file_checks.number_texts import as_numbers
from mlflowkit.ports import StageContext
from mlflowkit.sections import Section
from mlflowkit.stages.base import PARTS, Check, SchemaCheck, TableInfo, WholeTableCheck, read_table_info, write_json
from mlflowkit.stages.validation.table_checks import CheckedTable, run_table_checks, sample_of
from mlflowkit.stages.validation.version_record import read_version, write_version
from mlflowkit.system.files import make_folder
from mlflowkit.system.text import parse_json
from mlflowkit.values import CheckResult, Event, Json, StageResult

if TYPE_CHECKING:
    import pandas as pd

PORTS = ("checker", "profiler")
"""Ports that the result depends on."""

EVIDENCE = "evidence"
"""Folder of what checks by files write, below the stage's."""

MAX_LISTED_CHECKS = 50
"""Failed checks that an error lists; all are counted."""

Schema = Mapping[str, Mapping[str, Any]]


class Spec(Section):
    """Inputs of the validate stage's result, besides its input folder."""

    checks: list[Check]


def run(spec: Spec, context: StageContext) -> StageResult:
    """Run the checks on the table, and write its schema and reference profile for later runs and the service.

    A schema check without columns requires ``schema.json`` of ``context.previous``; the first run infers it. Raises
    DataError that lists every failed check; ``checks.json`` is in ``context.failure`` then.
    """
    folder = context.inputs["data"]
    info = read_table_info(folder)
    table = read_parts(folder)
    inferred = context.ports.checker.infer(table)
    frozen = _frozen_schema(context.previous, info.dropped)
    expected = expected_schema(spec.checks, inferred, frozen)
    context.progress(Event("validate", "progress", f"{len(spec.checks)} checks of {len(table):,} rows", 0.2))
    sample = sample_of(spec.checks, table, info, context.seed)
    checked = CheckedTable(table, info, read_version(context.previous), sample)
    results = _check(spec.checks, checked, expected, context)
    _keep_evidence(context)
    context.progress(Event("validate", "progress", "reference profile", 0.6))
    profiler = context.ports.profiler
    profile = profiler.profile(_without_texts(features_of(table.iloc[: info.rows["train"]], info), info))
    reference = _without_values(profiler.summary(profile), info)
    (context.out / "reference.whylogs").write_bytes(profile)
    write_json(context.out / "reference.json", reference)
    write_json(context.out / "schema.json", expected)
    write_json(context.out / "checks.json", [asdict(result) for result in results])
    write_version(context.out, checked.record, sample)
    failed = sum(not result.passed for result in results)
    return StageResult(
        metrics={"checks": float(len(spec.checks)), "checks_failed": float(failed)},
        summary={
            "checks": [_summary_of(result) for result in results],
            "schema": "declared" if _declared(spec.checks) else "frozen" if context.previous else "inferred",
            "profiled_rows": info.rows["train"],
        },
    )


def _check(
    checks: Sequence[Check], checked: CheckedTable, expected: Schema, context: StageContext
) -> list[CheckResult]:
    """The results of all checks. Raises DataError where one ends the run."""
    table = checked.frame
    declared = [check for check in checks if not isinstance(check, FileCheck | WholeTableCheck)]
    results = list(context.ports.checker.check(as_checked(table, declared, expected), declared, expected))
    results += run_table_checks(checks, checked)
    results += check_by_files(table, checks, context)
    _tell(results, context)
    _keep_failure(results, context)
    require_passed(results)
    return results


def check_by_files(table: pd.DataFrame, checks: Sequence[Check], context: StageContext) -> list[CheckResult]:
    """Results of the checks whose rules stand in files. Each writes its evidence to a folder of the scratch folder."""
    results: list[CheckResult] = []
    shutil.rmtree(context.scratch / EVIDENCE, ignore_errors=True)
    previous = context.previous / EVIDENCE if context.previous is not None else None
    for index, check in enumerate(checks):
        if isinstance(check, FileCheck):
            evidence = context.scratch / EVIDENCE / f"{index}-{check.kind}"
            evidence.mkdir(parents=True)
            checker = context.ports.file_checker(check.kind)
            results += checker.check(table, check, context.folder, evidence, previous)
    return results


def _keep_failure(results: Sequence[CheckResult], context: StageContext) -> None:
    """Keep with the run what ends it: the results of all checks, and the evidence of those by files."""
    if context.failure is None or all(result.passed or not result.blocking for result in results):
        return
    make_folder(context.failure)
    write_json(context.failure / "checks.json", [asdict(result) for result in results])
    if (context.scratch / EVIDENCE).exists():
        shutil.copytree(context.scratch / EVIDENCE, context.failure / EVIDENCE, dirs_exist_ok=True)


def _keep_evidence(context: StageContext) -> None:
    """Publish the evidence of checks that passed."""
    if (context.scratch / EVIDENCE).exists():
        shutil.copytree(context.scratch / EVIDENCE, context.out / EVIDENCE)


def read_parts(folder: Path) -> pd.DataFrame:
    """All rows of the data stage's folder: train, then validation, then test. The index is the row in the source.

    Integers and booleans with missing values keep their type (Int64, boolean). Columns are read one by one, so that
    the table is not in memory twice.
    """
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as parquet

    files = [parquet.ParquetFile(folder / f"{part}.parquet") for part in PARTS]
    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    columns = {}
    for name in files[0].schema_arrow.names:
        column = pa.concat_tables([file.read(columns=[name]) for file in files]).column(0)
        kind = nullable.get(column.type) if column.null_count else None
        columns[name] = column.to_pandas(types_mapper=(lambda _, kind=kind: kind) if kind is not None else None)
    frame = pd.DataFrame(columns, copy=False)
    frame.index = pd.Index(np.argsort(np.load(folder / "split.npy"), kind="stable")[: len(frame)])
    return frame


def expected_schema(checks: Sequence[Check], inferred: Schema, frozen: Schema | None) -> Schema:
    """The schema that a schema check requires: the declared one, else the frozen one, else the inferred one.

    >>> int_column = {"a": {"dtype": "int", "nullable": False}}
    >>> expected_schema([], {"a": {"dtype": "float", "nullable": True}}, int_column)["a"]["dtype"]
    'float'
    >>> expected_schema([SchemaCheck(kind="schema")], {}, int_column) == int_column
    True
    """
    schema_checks = [check for check in checks if isinstance(check, SchemaCheck)]
    if not schema_checks:
        return inferred
    declared = _declared(checks)
    if declared:
        return {name: {"dtype": dtype, "nullable": True} for name, dtype in declared.items()}
    return frozen if frozen is not None else inferred


def as_checked(table: pd.DataFrame, checks: Sequence[Check], schema: Schema) -> pd.DataFrame:
    """The table as its checks see it: a category whose check is about numbers is compared by its number.

    A column that is declared categorical is text (``"3"``), and a schema, a range or a list of values may say that its
    texts are whole numbers. Columns with a text that is no number stay as they are, for the check to refuse.
    """
    numeric = {name for name, rule in schema.items() if rule["dtype"] in ("int", "float")}
    numeric |= {check.column for check in checks if check.kind == "range"}
    for check in checks:
        if check.kind == "allowed" and not any(isinstance(value, str) for value in check.values):
            numeric.add(check.column)
    return as_numbers(table, numeric)


def features_of(table: pd.DataFrame, info: TableInfo) -> pd.DataFrame:
    """The features as a model sees them: numbers as float64, categories as text, missing values kept.

    Columns that have that form already are not copied.
    """
    import numpy as np
    import pandas as pd

    from mlflowkit.features.tensors import categorical_matrix

    columns: dict[str, pd.Series] = {}
    for feature in info.features:
        column = table[feature.name]
        if feature.kind == "numeric" and column.dtype != np.float64:
            numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
            column = pd.Series(numbers, index=table.index, copy=False)
        elif feature.kind in ("categorical", "text") and not isinstance(column.dtype, pd.StringDtype):
            text = categorical_matrix(table, [feature.name])[:, 0]
            column = pd.Series(text, index=table.index, dtype="str")
        if feature.kind in ("categorical", "text") and (empty := column == "").any():
            column = column.mask(empty)
        columns[feature.name] = column
    return pd.DataFrame(columns, copy=False)


def _without_texts(features: pd.DataFrame, info: TableInfo) -> pd.DataFrame:
    """Features whose free texts, which may be what people wrote, are replaced by a mark: a profile goes with the
    bundle."""
    texts = {column.name: features[column.name] for column in info.features if column.kind == "text"}
    return features.assign(**{name: column.where(column.isna(), "(text)") for name, column in texts.items()})


def _without_values(profile: Mapping[str, Json], info: TableInfo) -> dict[str, Json]:
    """A summary that says of free texts how many there are, and no values."""
    texts = {column.name for column in info.features if column.kind == "text"}
    columns = {
        name: {key: item for key, item in summary.items() if name not in texts or key not in ("frequent", "unique")}
        for name, summary in profile["columns"].items()
    }
    return {**profile, "columns": columns}


def require_passed(results: Sequence[CheckResult]) -> None:
    """Raise DataError that lists every failed check."""
    failed = [result for result in results if not result.passed and result.blocking]
    if not failed:
        return
    lines = [f"{len(failed)} check{'' if len(failed) == 1 else 's'} of the data failed"]
    lines += [
        f"  {result.check}{f' {result.column}' if result.column else ''}: {'ERROR: ' * result.error}{result.message}"
        for result in failed[:MAX_LISTED_CHECKS]
    ]
    if len(failed) > MAX_LISTED_CHECKS:
        lines.append(f"  and {len(failed) - MAX_LISTED_CHECKS} more")
    hint = "correct these rows at the source, or change data.checks"
    if any(result.check == "schema" for result in failed):
        hint += "; if the schema has changed for good: mlkit run RECIPE --force validate"
    elif any(result.check in ("rows", "drift") for result in failed):
        hint = "mlkit run RECIPE --force validate takes this version as the one to compare with, if the change is meant"
    raise DataError("\n".join(lines), hint=hint)


def _tell(results: Sequence[CheckResult], context: StageContext) -> None:
    """Tell what did not pass and does not end the run, and what cannot be judged."""
    for result in results:
        name = f"{result.check}{f' {result.column}' if result.column else ''}"
        if result.inconclusive:
            context.progress(Event("validate", "warning", f"{name}: INCONCLUSIVE: {result.message}"))
        elif not result.passed and not result.blocking:
            context.progress(Event("validate", "warning", f"{name}: {result.message} (on: warn)"))


def _summary_of(result: CheckResult) -> dict[str, Json]:
    summary: dict[str, Json] = {"check": result.check, "column": result.column, "passed": result.passed}
    return {**summary, "inconclusive": True} if result.inconclusive else summary


def _declared(checks: Sequence[Check]) -> dict[str, str]:
    columns: dict[str, str] = {}
    for check in checks:
        if isinstance(check, SchemaCheck) and check.columns is not None:
            columns.update(check.columns)
    return columns


def _frozen_schema(previous: Path | None, dropped: Sequence[str]) -> Schema | None:
    """The schema of the last run without columns that the recipe now drops; None when there was no run."""
    if previous is None:
        return None
    try:
        frozen: Schema = parse_json((previous / "schema.json").read_text())
    except (OSError, ValueError) as error:
        message = f"the frozen schema {previous / 'schema.json'} cannot be read: {error}"
        raise StoreError(message, hint="mlkit run RECIPE --force validate") from error
    return {name: rule for name, rule in frozen.items() if name not in dropped}
