"""How often a table without drift is called drifted, by simulation: one table of 100 columns, split in two at random.

Chance that a test fails when all is well: 0 on unchanged code, as all seeds are fixed. More runs and sizes:
``python -m benchmarks.data_checks``.
"""

from __future__ import annotations

import pytest

from benchmarks.data_checks import drifted_columns

pytestmark = pytest.mark.simulation


@pytest.mark.parametrize(("rows", "largest"), [(400, 0.02), (60, 0.02)])
def test_one_table_split_in_two_is_seldom_called_drifted(rows: int, largest: float) -> None:
    """Also where the distance that is no harm is far smaller than what chance alone makes."""
    runs = 20
    assert sum(bool(columns) for columns in drifted_columns(rows, largest, runs, seed=3)) <= 0.05 * runs


def test_one_column_of_a_hundred_that_doubled_is_found_alone() -> None:
    assert list(drifted_columns(2000, 0.1, 5, seed=4, scale=2.0)) == [["c0"]] * 5
