"""Checks the table and computes its reference profile."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from mlflowkit.errors import DataError, StoreError
from mlflowkit.judging.file_checks.check_sections import FileCheck
from mlflowkit.ports import StageContext
from mlflowkit.sections import Section
from mlflowkit.stages.base import (
    LARGE_BYTES,
    Check,
    LeakageCheck,
    SchemaCheck,
    TableInfo,
    WholeTableCheck,
    read_table_info,
    write_json,
)
from mlflowkit.stages.validation.column_checks import Schema, check_columns
from mlflowkit.stages.validation.part_columns import FeatureColumns, PartColumns
from mlflowkit.stages.validation.table_checks import CheckedTable, run_table_checks, sample_of
from mlflowkit.stages.validation.version_record import read_version, write_version
from mlflowkit.system.files import make_folder
from mlflowkit.system.machine import memory
from mlflowkit.system.text import format_list, parse_json
from mlflowkit.values import CheckResult, Event, Json, StageResult

PORTS = ("checker", "profiler")
"""Ports that the result depends on."""

EVIDENCE = "evidence"
"""Folder of what checks by files write, below the stage's."""

MAX_LISTED_CHECKS = 50
"""Failed checks that an error lists; all are counted."""


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
    columns = PartColumns(folder)
    inferred = context.ports.checker.infer(columns)
    frozen = _frozen_schema(context.previous, info.dropped)
    expected = expected_schema(spec.checks, inferred, frozen)
    context.progress(Event("validate", "progress", f"{len(spec.checks)} checks of {columns.rows:,} rows", 0.2))
    sample = sample_of(spec.checks, columns, info, context.seed)
    checked = CheckedTable(columns, info, read_version(context.previous), sample)
    results = _check(spec.checks, checked, expected, context)
    _keep_evidence(context)
    context.progress(Event("validate", "progress", "reference profile", 0.6))
    profiler = context.ports.profiler
    profile = profiler.profile(FeatureColumns(PartColumns(folder, ("train",)), info.features, hide_texts=True))
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
    declared = [check for check in checks if not isinstance(check, FileCheck | WholeTableCheck)]
    results = check_columns(context.ports.checker, declared, checked.columns, expected)
    _require_memory(checks, checked.columns, context)
    results += run_table_checks(checks, checked)
    results += check_by_files(checked, checks, context)
    _tell(results, context)
    _keep_failure(results, context)
    require_passed(results)
    return results


def _require_memory(checks: Sequence[Check], columns: PartColumns, context: StageContext) -> None:
    """Tell the memory that checks of the whole table take. Raises DataError where the table is larger than what is
    free."""
    whole = list(dict.fromkeys(check.kind for check in checks if isinstance(check, LeakageCheck | FileCheck)))
    needed = columns.memory() if whole else 0
    if needed < LARGE_BYTES:
        return
    size = f"about {needed / 2**30:,.1f} GiB ({columns.rows:,} rows of {len(columns.names)} columns)"
    free = memory("MemAvailable")
    if free is not None and needed > free:
        message = f"the check {format_list(whole)} needs the whole table in memory, {size}"
        hint = "leave the check out, read fewer columns (data.drop), or use a machine with more memory"
        raise DataError(f"{message}, and {free / 2**30:,.1f} GiB are free", hint=hint)
    message = f"{format_list(whole)}: the whole table is read into memory for it, {size}, besides what the check takes"
    context.progress(Event("validate", "progress", message, 0.3))


def check_by_files(table: CheckedTable, checks: Sequence[Check], context: StageContext) -> list[CheckResult]:
    """Results of the checks whose rules stand in files. Each writes its evidence to a folder of the scratch folder."""
    results: list[CheckResult] = []
    shutil.rmtree(context.scratch / EVIDENCE, ignore_errors=True)
    previous = context.previous / EVIDENCE if context.previous is not None else None
    for index, check in enumerate(checks):
        if isinstance(check, FileCheck):
            evidence = context.scratch / EVIDENCE / f"{index}-{check.kind}"
            evidence.mkdir(parents=True)
            checker = context.ports.file_checker(check.kind)
            results += checker.check(table.frame, check, context.folder, evidence, previous)
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
