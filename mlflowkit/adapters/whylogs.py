"""Profiles by whylogs 1.6.4: mergeable sketches of columns (KLL quantiles, HyperLogLog, frequent items).

whylogs has ended upstream and predates NumPy 2; what that takes is kept in this file. KLL is randomised and cannot
be seeded, so two profiles of one table agree up to its rank error (about 0.3 % at k = 1024), not byte for byte.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mlflowkit.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BINS = 20
FREQUENT = 50
"""Most frequent values that a summary lists."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""Time stamped on a profile: none, so that equal sketches are equal bytes."""


class WhylogsProfiler:
    """The Profiler port.

    Numbers and booleans are profiled as numbers, everything else as text; None, NaN and NaT are missing.
    """

    def profile(self, table: pd.DataFrame) -> bytes:
        """The serialised whylogs profile of a table.

        Columns go to whylogs whole, with the counting done in NumPy: the same summary as ``track(df)`` up to KLL's
        noise, some fifteen times faster at 1,000 rows. Uses private names, hence the exact pin.
        """
        core = _whylogs()
        schema = core.DatasetSchema()
        profile = core.DatasetProfile(schema, dataset_timestamp=_EPOCH, creation_timestamp=_EPOCH)
        prepared = {str(name): _prepared(table[name]) for name in table.columns}
        for name, column in prepared.items():
            kind = str if column.pandas.strings is not None else float if column.numpy.ints is None else int
            schema.resolve(row={name: kind()})
            profile._initialize_new_columns((name,))
            profile._columns[name]._process_extracted_column(column)
        profile._track_count += 1
        content: bytes = profile.view().serialize()
        return content

    def summary(self, profile: bytes) -> Mapping[str, Any]:
        """``{rows, columns: {name: {type, count, missing, mean, stddev, min, max, quantiles, histogram, frequent,
        unique}}}``; keys are absent where they make no sense. Raises DataError for bytes that are no profile."""
        core = _whylogs()
        try:
            view = core.DatasetProfileView.deserialize(profile)
        except (core.DeserializationError, ValueError, IndexError) as error:
            raise DataError(f"not a whylogs profile: {error}", hint="mlkit run --force validate") from error
        columns = {name: _column_summary(column) for name, column in sorted(view.get_columns().items())}
        rows = max((column["count"] for column in columns.values()), default=0)
        return {"rows": rows, "columns": columns}


def _whylogs() -> Any:
    """The names used here, imported with telemetry off and NumPy 2 mended."""
    import numpy as np

    os.environ.setdefault("WHYLOGS_NO_ANALYTICS", "1")
    if not hasattr(np, "unicode_"):
        np.unicode_ = np.str_  # type: ignore[attr-defined]
    from types import SimpleNamespace

    from whylogs.core import DatasetProfile, DatasetProfileView, DatasetSchema
    from whylogs.core.errors import DeserializationError
    from whylogs.core.preprocessing import PreprocessedColumn

    return SimpleNamespace(
        DatasetProfile=DatasetProfile,
        DatasetProfileView=DatasetProfileView,
        DatasetSchema=DatasetSchema,
        DeserializationError=DeserializationError,
        PreprocessedColumn=PreprocessedColumn,
    )


def _prepared(series: pd.Series) -> Any:
    """A column split into what whylogs counts: values that are there, and how many are not."""
    import numpy as np
    import pandas as pd

    column = _whylogs().PreprocessedColumn()
    column.len = len(series)
    missing = series.isna().to_numpy()
    column.null_count = int(missing.sum())
    if pd.api.types.is_integer_dtype(series.dtype) and not column.null_count:
        column.numpy.ints = series.to_numpy(dtype=np.int64)
    elif pd.api.types.is_numeric_dtype(series.dtype):
        numbers = series.to_numpy(dtype=np.float64, na_value=np.nan)
        column.numpy.floats = numbers[~missing] if column.null_count else numbers
        column.nan_count = column.null_count
        column.inf_count = int(np.isinf(column.numpy.floats).sum())
    else:
        present = series[~missing] if column.null_count else series
        column.pandas.strings = present if isinstance(series.dtype, pd.StringDtype) else present.map(str)
    return column


def _column_summary(view: Any) -> dict[str, Any]:
    counts = view.get_metric("counts")
    types = view.get_metric("types")
    numbers = types.integral.value + types.fractional.value + types.boolean.value
    text = numbers == 0 and (types.string.value > 0 or view.get_metric("frequent_items") is not None)
    summary: dict[str, Any] = {
        "type": "categorical" if text else "numeric",
        "count": int(counts.n.value),
        "missing": int(counts.null.value),
    }
    cardinality = view.get_metric("cardinality")
    if cardinality is not None and cardinality.estimate is not None:
        summary["unique"] = round(cardinality.estimate)
    if text:
        items = view.get_metric("frequent_items").strings[:FREQUENT]
        summary["frequent"] = [[item.value, int(item.est)] for item in items]
    elif numbers:
        summary |= _distribution(view.get_metric("distribution"))
    return summary


def _distribution(metric: Any) -> dict[str, Any]:
    sketch = metric.kll.value
    low, high, count = sketch.get_min_value(), sketch.get_max_value(), sketch.get_n()
    quantiles = sketch.get_quantiles(list(QUANTILES))
    return {
        "mean": metric.avg,
        "stddev": metric.stddev,
        "min": low,
        "max": high,
        "quantiles": {str(share): value for share, value in zip(QUANTILES, quantiles, strict=True)},
        "histogram": _histogram(sketch, low, high, count),
    }


def _histogram(sketch: Any, low: float, high: float, count: int) -> dict[str, list[float]]:
    """Equal bins from minimum to maximum; counts are told from the sketch's distribution and sum to ``count``."""
    import numpy as np

    edges = np.unique(np.linspace(low, high, BINS + 1))
    if len(edges) < 3 or not np.isfinite(edges).all():
        return {"edges": [low, high], "counts": [count]}
    below = np.rint(np.cumsum(sketch.get_pmf(edges[1:-1].tolist())) * count).astype(int)
    return {"edges": edges.tolist(), "counts": np.diff(below, prepend=0).tolist()}
