"""The checks of a table as a whole, in the order of the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mlflowkit.stages.base import Check, DriftCheck, LeakageCheck, RowsCheck, TableInfo
from mlflowkit.stages.validation.leakage import PartedTable, check_leakage
from mlflowkit.stages.validation.part_columns import PartColumns
from mlflowkit.stages.validation.version_checks import check_drift, check_rows
from mlflowkit.stages.validation.version_record import VersionRecord, drawn_rows
from mlflowkit.values import CheckResult

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@dataclass(frozen=True)
class CheckedTable:
    """A table, what it is, and the version before it."""

    columns: PartColumns
    info: TableInfo
    previous: VersionRecord | None
    sample: pa.Table | None
    """Rows to compare with the last version and to keep for the next; None without a drift check."""

    @property
    def record(self) -> VersionRecord:
        """What is kept of this version."""
        return VersionRecord(self.info.data_version, self.columns.rows)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All columns in memory, for the checks that need them together."""
        return self.columns.frame()


def sample_of(checks: Sequence[Check], columns: PartColumns, info: TableInfo, seed: int) -> pa.Table | None:
    """Rows of the features and the target, where a drift check asks for them."""
    import pandas as pd
    import pyarrow as pa

    if not any(isinstance(check, DriftCheck) for check in checks):
        return None
    rows = drawn_rows(columns.rows, seed)
    names = [*(column.name for column in info.features), info.target]
    drawn = pd.DataFrame({name: columns.series(name).take(rows) for name in names})
    return pa.Table.from_pandas(drawn, preserve_index=False)


def run_table_checks(checks: Sequence[Check], table: CheckedTable) -> list[CheckResult]:
    """The results of those checks that are about the whole table."""
    results: list[CheckResult] = []
    for check in checks:
        if isinstance(check, RowsCheck):
            results.append(check_rows(check, table.columns.rows, table.previous))
        elif isinstance(check, LeakageCheck):
            results += check_leakage(check, _parted(table))
        elif isinstance(check, DriftCheck) and table.sample is not None:
            results += check_drift(check, table.sample, table.info.data_version, table.previous)
    return results


def _parted(table: CheckedTable) -> PartedTable:
    info = table.info
    features = tuple(column.name for column in info.features)
    return PartedTable(table.frame, info.rows, info.target, features, info.numeric, len(info.classes))
