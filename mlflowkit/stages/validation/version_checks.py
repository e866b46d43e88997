"""A table against the last version: its rows, and the distributions of its columns.

Columns are judged as `mlkit drift` judges two tables: intervals that hold for all aspects of all columns together
(Bonferroni, which is stricter than a false-discovery rate), and FAILED only where all of an interval lies beyond the
distance that is no harm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mlflowkit.errors import StoreError
from mlflowkit.judging.shift.findings import ColumnFinding
from mlflowkit.judging.shift.sample_shift import SampleShift
from mlflowkit.stages.base import DriftCheck, RowsCheck
from mlflowkit.stages.validation.version_record import VersionRecord
from mlflowkit.system.text import format_list
from mlflowkit.values import CheckResult, Outcome

if TYPE_CHECKING:
    import pyarrow as pa

    from mlflowkit.features.table_shift import TableShift

MAX_LISTED_COLUMNS = 10
"""Columns that a result names; all are counted."""
FIRST = "there is no earlier version to compare with; the next one is compared with this"


def check_rows(check: RowsCheck, rows: int, previous: VersionRecord | None) -> CheckResult:
    """Compare the number of rows with the last version's.

    >>> check = RowsCheck(kind="rows", min_ratio=0.5)
    >>> check_rows(check, 40, VersionRecord("3f9a", 100)).message
    '40 rows, 0.4 times the 100 of the last version; at least 0.5 times are allowed (50)'
    """
    if previous is None:
        return CheckResult("rows", "", passed=True, message=f"{rows:,} rows; {FIRST}", inconclusive=True)
    ratio = rows / max(previous.rows, 1)
    text = f"{rows:,} rows, {ratio:.3g} times the {previous.rows:,} of the last version"
    if check.min_ratio is not None and ratio < check.min_ratio:
        text += f"; at least {check.min_ratio:g} times are allowed ({check.min_ratio * previous.rows:,.0f})"
        return CheckResult("rows", "", passed=False, message=text, failed=max(previous.rows - rows, 1))
    if check.max_ratio is not None and ratio > check.max_ratio:
        text += f"; at most {check.max_ratio:g} times are allowed ({check.max_ratio * previous.rows:,.0f})"
        return CheckResult("rows", "", passed=False, message=text, failed=max(rows - previous.rows, 1))
    return CheckResult("rows", "", passed=True, message=text)


def check_drift(
    check: DriftCheck, sample: pa.Table, data_version: str, previous: VersionRecord | None
) -> list[CheckResult]:
    """Compare the columns of a sample with those of the last version's: a result for every column that drifted, and
    one for the others."""
    if previous is None or previous.sample is None:
        reason = FIRST if previous is None else f"the last run had no drift check and kept no rows; {FIRST}"
        return [_undecided(check, reason)]
    if previous.data_version == data_version:
        message = f"the data is that of the last version ({data_version[:12]})"
        return [CheckResult("drift", "", passed=True, message=message)]
    before = _read_sample(previous)
    missing = [] if check.columns == "*" else [name for name in check.columns if name not in sample.column_names]
    if missing:
        has = format_list(sample.column_names[:MAX_LISTED_COLUMNS])
        message = f"column {missing[0]!r} is neither a feature nor the target; these are compared: {has}"
        return [CheckResult("drift", missing[0], passed=False, message=message, failed=1)]
    if check.columns != "*":
        before = before.select([name for name in check.columns if name in before.column_names])
        sample = sample.select(list(check.columns))
    return list(_results(check, compare_versions(check, before, sample), (before.num_rows, sample.num_rows)))


def compare_versions(check: DriftCheck, before: pa.Table, after: pa.Table) -> TableShift:
    """The findings of every column that both versions have."""
    from mlflowkit.features.table_shift import compare_tables, table_values

    settings = SampleShift(margin=check.max, level=check.level)
    return compare_tables(table_values(before), table_values(after), settings)


def _results(check: DriftCheck, shift: TableShift, rows: tuple[int, int]) -> Iterator[CheckResult]:
    drifted = {problem.column: [f"the column {problem.message}"] for problem in shift.problems if problem.broken}
    for finding in _with(shift.findings, Outcome.FAILED):
        drifted.setdefault(finding.column, []).append(finding.message.removeprefix(f"{finding.column}: "))
    blocking = check.on == "block"
    for column, messages in list(drifted.items())[:MAX_LISTED_COLUMNS]:
        message = "; ".join(map(_of_versions, messages))
        yield CheckResult("drift", column, passed=False, message=message, failed=len(messages), blocking=blocking)
    count = len({finding.column for finding in shift.findings})
    text = f"{count:,} columns of {rows[1]:,} rows against {rows[0]:,} of the last version"
    if len(drifted) > MAX_LISTED_COLUMNS:
        message = f"{text}: {len(drifted):,} drifted, of which the first {MAX_LISTED_COLUMNS} are listed"
        yield CheckResult("drift", "", passed=False, message=message, failed=len(drifted), blocking=blocking)
    undecided = dict.fromkeys(finding.column for finding in _with(shift.findings, Outcome.INCONCLUSIVE))
    names = [name for name in undecided if name not in drifted]
    if names or not (count or drifted):
        which = _named(names) if names else "any column"
        reason = f"{text}: too few rows to tell for {which}; more rows would decide, or a larger max"
        yield _undecided(check, reason)
    elif not drifted:
        yield CheckResult("drift", "", passed=True, message=f"{text}: none is further than {check.max:g}")


def _undecided(check: DriftCheck, reason: str) -> CheckResult:
    allowed = check.on_inconclusive == "allow" or reason.endswith(FIRST)
    return CheckResult("drift", "", passed=allowed, message=reason, failed=0 if allowed else 1, inconclusive=True)


def _with(findings: Sequence[ColumnFinding], outcome: Outcome) -> list[ColumnFinding]:
    return [finding for finding in findings if finding.outcome is outcome]


def _of_versions(message: str) -> str:
    """A message on two tables as one on two versions.

    >>> _of_versions("holds numbers in the first table and texts in the second")
    'holds numbers in the last version and texts in this one'
    """
    message = message.replace("first table", "last version").replace("the second table", "this one")
    return re.sub(r"the second$", "this one", message)


def _named(columns: Sequence[str]) -> str:
    listed = format_list(list(columns[:MAX_LISTED_COLUMNS]))
    more = len(columns) - MAX_LISTED_COLUMNS
    return f"{listed} and {more:,} more" if more > 0 else listed


def _read_sample(previous: VersionRecord) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(previous.sample)
    except (OSError, pa.ArrowException) as error:
        message = f"{previous.sample} cannot be read: {error}"
        raise StoreError(message, hint="mlkit run RECIPE --force validate") from error
