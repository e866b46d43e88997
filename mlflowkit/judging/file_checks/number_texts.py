"""Columns of texts that hold numbers, as numbers: for checks that compare with numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def as_numbers(table: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """The table with the texts of the named columns as numbers; one with a text that is no number stays as it is."""
    import pandas as pd

    converted = {}
    for name in set(names) & set(map(str, table.columns)):
        if isinstance(table[name].dtype, pd.StringDtype):
            numbers = pd.to_numeric(table[name], errors="coerce")
            if not (numbers.isna() & table[name].notna()).any():
                whole = numbers.isna().any() and (numbers.dropna() % 1 == 0).all()
                converted[name] = numbers.astype("Int64") if whole else numbers
    return table.assign(**converted) if converted else table
