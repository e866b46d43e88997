"""Leakage: rows that several parts share, features that hold the target, times that run backwards. Pure.

A table is a frame whose rows are those of train, then validation, then test, and whose index is the row in the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflowkit.stages.base import PARTS, LeakageCheck
from mlflowkit.system.text import category_text, format_count
from mlflowkit.values import CheckResult, Json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MAX_LISTED_ROWS = 10
"""Rows that a result lists; all are counted."""


@dataclass(frozen=True, slots=True)
class PartedTable:
    """A table with the roles of its columns. ``rows`` counts each part; ``classes`` is 0 for a regression.

    ``features`` are all that a model takes, ``numeric`` those of them that are numbers.
    """

    frame: pd.DataFrame
    rows: Mapping[str, int]
    target: str
    features: Sequence[str]
    numeric: Sequence[str]
    classes: int

    @property
    def parts(self) -> np.ndarray:
        """The number of each row's part in PARTS."""
        import numpy as np

        return np.repeat(np.arange(len(PARTS)), [self.rows[part] for part in PARTS])


def check_leakage(check: LeakageCheck, table: PartedTable) -> list[CheckResult]:
    """The results of what a leakage check asks for; one that passed where nothing was found."""
    results = []
    if check.duplicates is not None:
        results.append(_check_duplicates(check.duplicates, table))
    if check.time:
        results.append(_check_time(check.time, table))
    if check.single_feature is not None:
        results += _check_features(check.single_feature, table)
    return results


# ---- rows that several parts share


def row_codes(frame: pd.DataFrame) -> np.ndarray:
    """A number for each row, the same for rows that are equal in all columns; exact, missing values are equal.

    >>> import pandas as pd
    >>> row_codes(pd.DataFrame({"a": [1.0, 2.0, 1.0, None, None], "b": list("xxxyy")})).tolist()
    [0, 1, 0, 2, 2]
    """
    import numpy as np
    import pandas as pd

    codes = np.zeros(len(frame), dtype=np.int64)
    for name in frame.columns:
        column, values = pd.factorize(frame[name], use_na_sentinel=False)
        codes = pd.factorize(codes * max(len(values), 1) + column)[0].astype(np.int64)
    return codes


def _check_duplicates(allowed: int, table: PartedTable) -> CheckResult:
    import numpy as np

    codes, parts = row_codes(table.frame[[*table.features, table.target]]), table.parts
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    copied = parts[first][inverse] < parts
    count = int(copied.sum())
    text = f"{format_count(count, 'row')} of the validation and test parts"
    if count:
        counts = [int((copied & (parts == at)).sum()) for at in range(len(PARTS))]
        shares = [f"{counts[at]:,} of {table.rows[PARTS[at]]:,} {PARTS[at]} rows" for at in (1, 2)]
        text = f"{' and '.join(shares)} are copies of a row of an earlier part, in all features and the target"
    else:
        text += " is a copy of one of an earlier part"
    if count <= allowed:
        return CheckResult("leakage", "", passed=True, message=text)
    index = table.frame.index
    rows = np.flatnonzero(copied)[:MAX_LISTED_ROWS]
    failures = tuple((int(index[row]), f"as row {int(index[first[inverse[row]]])}") for row in rows)
    text += f" ({allowed:,} allowed): {_list(failures, count)}; split by group, or drop the copies at the source"
    return CheckResult("leakage", "", passed=False, message=text, failed=count, failures=failures)


# ---- times that run backwards


def _check_time(time: bool | str, table: PartedTable) -> CheckResult:
    import numpy as np
    import pyarrow as pa

    if isinstance(time, bool):
        message = "time: true is for a split of kind time; name the column otherwise: time: COLUMN"
        return CheckResult("leakage", "", passed=False, message=message, failed=1)
    if time not in table.frame.columns:
        message = f"the parts have no column {time!r}: data.columns: {{{time}: time}} keeps it"
        return CheckResult("leakage", time, passed=False, message=message, failed=1)
    times = _sortable(table.frame[time])
    if times is None:
        message = f"column {time!r} holds {pa.array(table.frame[time].head(1)).type}, which is no time and no number"
        return CheckResult("leakage", time, passed=False, message=message, failed=1)
    parts = table.parts
    early = np.zeros(len(parts), dtype=bool)
    for at in (1, 2):
        before = times[(parts < at) & ~np.isnan(times)]
        if len(before):
            early |= (parts == at) & (times <= before.max())
    count, missing = int(early.sum()), int(np.isnan(times).sum())
    text = f"{format_count(count, 'row')} of the validation and test parts no later than one of an earlier part"
    text += f"; {missing:,} rows without a time are not compared" if missing else ""
    if not count:
        return CheckResult("leakage", time, passed=True, message=text)
    rows = np.flatnonzero(early)[:MAX_LISTED_ROWS]
    failures = tuple((int(table.frame.index[row]), _cell(table.frame[time].iloc[row])) for row in rows)
    text += f": {_list(failures, count)}; write data.split: {{kind: time, column: {time}}}"
    return CheckResult("leakage", time, passed=False, message=text, failed=count, failures=failures)


def _sortable(column: pd.Series) -> np.ndarray | None:
    """Times or numbers as float64, missing ones NaN; None for other values."""
    import numpy as np
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(column):
        numbers = column.astype("int64").to_numpy(dtype=np.float64)
        return np.where(column.isna(), np.nan, numbers)
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    parsed = pd.to_datetime(column, errors="coerce", utc=True, format="ISO8601")
    return None if (parsed.isna() & column.notna()).any() else _sortable(parsed)


# ---- features that hold the target


def _check_features(most: float, table: PartedTable) -> list[CheckResult]:
    from mlflowkit.stages.validation.single_feature import MIN_OF_CLASS, MIN_ROWS, leaking_score

    target = _target_values(table)
    results, scored, best = [], 0, ("", 0.0)
    for name in table.features:
        values = _feature_values(table, name)
        copies = _is_copy(table.frame[name], table.frame[table.target], table.classes)
        score = leaking_score(values, target, table.classes)
        scored += score is not None
        if copies or (score is not None and score >= most):
            results.append(_leaking(table, name, score, most, copies=copies))
        elif score is not None and score > best[1]:
            best = (name, score)
    if results:
        return results[:MAX_LISTED_ROWS]
    if not scored:
        reason = f"no feature can be scored alone: it takes {MIN_ROWS} rows, and {MIN_OF_CLASS} of a class; "
        return [CheckResult("leakage", "", passed=True, message=f"{reason}a larger table decides", inconclusive=True)]
    metric = "ROC AUC" if table.classes else "R2"
    message = f"no feature alone reaches {most:g} ({metric}; the best, {best[0]}, {best[1]:.3f})" if best[0] else ""
    return [CheckResult("leakage", "", passed=True, message=message or f"no feature alone reaches {most:g} ({metric})")]


def _leaking(table: PartedTable, name: str, score: float | None, most: float, *, copies: bool) -> CheckResult:
    rows = table.frame[[name, table.target]].head(MAX_LISTED_ROWS)
    failures = tuple(
        (int(row), [_cell(value), _cell(label)])
        for row, value, label in zip(rows.index, rows[name], rows[table.target], strict=True)
    )
    metric = "ROC AUC" if table.classes else "R2"
    text = f"each value of it is one value of the target {table.target}: a copy under another name" if copies else ""
    if score is not None and not copies:
        text = f"it alone tells the target: {metric} {score:.4f} >= {most:g}"
    first = ", ".join(f"row {row}: {value!r}" for row, value in failures[:3])
    text += f" ({first}); if it is not known when a prediction is asked for, add it to data.drop"
    return CheckResult("leakage", name, passed=False, message=text, failed=len(table.frame), failures=failures)


def _is_copy(feature: pd.Series, target: pd.Series, classes: int) -> bool:
    """Whether values of both correspond one to one. Of numbers that are almost all different only equality counts."""
    import pandas as pd

    if not classes:
        return bool(pd.api.types.is_numeric_dtype(feature) and (feature == target).all())
    pairs = pd.DataFrame({"feature": feature.map(category_text), "target": target.map(category_text)}).drop_duplicates()
    return len(pairs) == pairs["feature"].nunique() == pairs["target"].nunique() > 1


def _feature_values(table: PartedTable, name: str) -> np.ndarray:
    import numpy as np
    import pandas as pd

    column = table.frame[name]
    if name in table.numeric:
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    times = _sortable(column) if pd.api.types.is_datetime64_any_dtype(column) else None
    if times is not None:
        return times
    return np.array([category_text(value) for value in column], dtype=object)


def _target_values(table: PartedTable) -> np.ndarray:
    import numpy as np
    import pandas as pd

    column = table.frame[table.target]
    if table.classes:
        return np.asarray(pd.factorize(column, sort=True)[0])
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _cell(value: object) -> Json:
    text = category_text(value)
    return text if text else None


def _list(failures: Sequence[tuple[int, Json]], total: int) -> str:
    listed = ", ".join(f"row {row}: {value}" for row, value in failures)
    return listed if total <= len(failures) else f"{listed} and {total - len(failures):,} more"
