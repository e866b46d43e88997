"""Rows of a table by the values of a column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.system.text import category_text

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MISSING = "(missing)"


def group_text(value: object) -> str:
    """The name of a value's group.

    >>> group_text(36.0), group_text(None)
    ('36', '(missing)')
    """
    return category_text(value) or MISSING


def rows_by_value(column: pd.Series) -> list[tuple[str, np.ndarray]]:
    """Row numbers by value, the most frequent value first, ties in the order of the text."""
    import numpy as np
    import pandas as pd

    texts = np.array([group_text(value) for value in column], dtype=object)
    codes, values = pd.factorize(texts)
    order = np.argsort(codes, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(codes))[:-1])
    return sorted(zip(map(str, values), groups, strict=True), key=lambda group: (-len(group[1]), group[0]))


def other_rows_by_value(data: Path, columns: Sequence[str]) -> dict[str, dict[str, int]]:
    """Rows of the train and validation parts by value, of each of these columns."""
    import pandas as pd

    counts: dict[str, dict[str, int]] = {name: {} for name in columns}
    for part in ("train", "validation") if columns else ():
        table = pd.read_parquet(data / f"{part}.parquet", columns=list(columns))
        for name in columns:
            for value, rows in table[name].value_counts(dropna=False).items():
                text = group_text(value)
                counts[name][text] = counts[name].get(text, 0) + int(rows)
    return counts
