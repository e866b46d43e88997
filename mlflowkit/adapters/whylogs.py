"""Profiles with whylogs 1.6.4: mergeable sketches of columns (KLL quantiles, HyperLogLog, frequent items).

whylogs is unmaintained and predates NumPy 2; the workarounds are here. Its KLL update is randomised and cannot
be seeded; here all rows are available, so each sketch is built from the sorted rows, which is deterministic and more
accurate (`_build_kll`). Equal tables give equal bytes, and profiles merge with any other whylogs profile.
"""

from __future__ import annotations

import io
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from mlflowkit.errors import DataError
from mlflowkit.ports import NamedColumns

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
HISTOGRAM_BINS = 20
MAX_FREQUENT_VALUES = 50
"""Number of most frequent values in a summary."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""Fixed timestamp of profiles, so that equal sketches give equal bytes."""


class WhylogsProfiler:
    """The Profiler port, with merging of profiles.

    Numbers and booleans are profiled as numbers, everything else as text; None, NaN and NaT are missing.
    """

    def profile(self, table: NamedColumns) -> bytes:
        """The serialised whylogs profile of a table.

        Passes whole columns to whylogs, counted with NumPy and pandas: the summary equals that of ``track(df)``,
        quantiles up to their rank error. Uses private names, hence the exact pin.
        """
        core = _import_whylogs()
        schema = core.DatasetSchema()
        profile = core.DatasetProfile(schema, dataset_timestamp=_EPOCH, creation_timestamp=_EPOCH)
        for label, values in table.items():
            name, column = str(label), _preprocess(values)
            del values
            kind = str if column.pandas.strings is not None else float if column.numpy.ints is None else int
            schema.resolve(row={name: kind()})
            profile._initialize_new_columns((name,))
            _update_metrics(profile._columns[name]._metrics, column)
            del column
        profile._track_count += 1
        return _canonical(profile.view().serialize())

    def merge(self, profiles: Sequence[bytes]) -> bytes:
        """Merge serialised profiles into one. Raises DataError for bytes that are not a profile."""
        first, *others = map(_deserialize, profiles)
        for other in others:
            first = first.merge(other)
        return _canonical(first.serialize())

    def stamp(self, profile: bytes, time: float) -> bytes:
        """The profile with another timestamp of its data, in seconds since the epoch, for systems that file it by time.

        Raises DataError for bytes that are not a profile.
        """
        view = _deserialize(profile)
        view.set_dataset_timestamp(datetime.fromtimestamp(time, UTC))
        return _canonical(view.serialize())

    def summary(self, profile: bytes) -> Mapping[str, Any]:
        """``{rows, columns: {name: {type, count, missing, mean, stddev, min, max, quantiles, histogram, frequent,
        unique}}}``; keys that do not apply are absent. Raises DataError for bytes that are not a profile."""
        view = _deserialize(profile)
        columns = {name: _column_summary(column) for name, column in sorted(view.get_columns().items())}
        rows = max((column["count"] for column in columns.values()), default=0)
        return {"rows": rows, "columns": columns}


def _deserialize(profile: bytes) -> Any:
    core = _import_whylogs()
    try:
        return core.DatasetProfileView.deserialize(profile)
    except (core.errors.DeserializationError, ValueError, IndexError) as error:
        raise DataError(f"not a whylogs profile: {error}", hint="mlkit run RECIPE --force validate") from error


def _import_whylogs() -> Any:
    """Import whylogs.core without telemetry and scikit-learn, and with a NumPy 2 workaround.

    whylogs uses scikit-learn for embeddings only, and it costs 1 s. None in sys.modules blocks an import
    (docs.python.org/3/reference/import.html#the-module-cache).
    """
    os.environ.setdefault("WHYLOGS_NO_ANALYTICS", "1")
    if not hasattr(np, "unicode_"):
        np.unicode_ = np.str_  # type: ignore[attr-defined]
    blocked = "sklearn.cluster" not in sys.modules
    if blocked:
        sys.modules["sklearn.cluster"] = None  # type: ignore[assignment]
    try:
        import whylogs.core.errors
        import whylogs.core.preprocessing
    finally:
        if blocked:
            del sys.modules["sklearn.cluster"]
    return whylogs.core


def _preprocess(series: pd.Series) -> Any:
    """Split a column into the values and the missing count that whylogs expects."""
    column = _import_whylogs().preprocessing.PreprocessedColumn()
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


def _update_metrics(metrics: Mapping[str, Any], column: Any) -> None:
    """Update a column's metrics like whylogs, but text by distinct values, and large sketches by `_build_kll`."""
    numbers = column.numpy.ints if column.numpy.ints is not None else column.numpy.floats
    for name, metric in metrics.items():
        if name == "distribution" and numbers is not None and len(numbers) > metric.kll.value.get_k():
            metric.mean.set(float(numbers.mean()))
            metric.m2.set(float(numbers.var()) * len(numbers))
            metric.kll.set(_build_kll(numbers, metric.kll.value))
        elif name in ("cardinality", "frequent_items") and column.pandas.strings is not None:
            counts = column.pandas.strings.value_counts(sort=False)
            if name == "cardinality":
                metric.hll.value.update_str_list(counts.index.to_list())
                continue
            for value, count in counts.items():
                metric.frequent_strings.value.update(str(value)[: metric.max_frequent_item_size], int(count))
        else:
            metric.columnar_update(column)


def _build_kll(numbers: np.ndarray, like: Any) -> Any:
    """A deterministic KLL sketch of all ``numbers`` with the parameters of ``like``.

    A sketch stores, at level h, items of weight 2^h. The sorted numbers are split into blocks of 2^h, with 2^h the
    smallest that gives at most k blocks, and smaller blocks for the remainder; the middle item represents its block.
    The rank error is at most half a block, n / k. Built in the serialised form of Apache DataSketches (preamble of 6
    ints, then the offset of each level, minimum, maximum, items) and deserialised.
    """
    k, m = like.get_k(), 8
    ordered = np.sort(numbers.astype(np.float64, copy=False))
    count = len(ordered)
    top = max((count - 1) // k, 0).bit_length()
    sizes = [count >> level & 1 for level in range(top)] + [count >> top]
    parts, start = [], 0
    for level, size in enumerate(sizes):
        parts.append(ordered[start + (1 << level) // 2 :: 1 << level][:size])
        start += size << level
    items = np.concatenate(parts)
    capacity = sum(max(m, ((2 * k << depth) // 3**depth + 1) >> 1) for depth in range(top + 1))
    offsets = capacity - len(items) + np.concatenate([[0], np.cumsum(sizes[:-1])])
    preamble = struct.pack("<BBBBHBxQHBxxxxx", 6, 1, 15, 0, k, m, count, k, top + 1)
    ends = struct.pack("<dd", ordered[0], ordered[-1])
    return like.deserialize(preamble + offsets.astype("<u4").tobytes() + ends + items.astype("<f8").tobytes())


def _canonical(profile: bytes) -> bytes:
    """Sort the entries of protobuf maps in a profile, whose order otherwise depends on addresses.

    A profile is a magic number, two length-delimited headers, and a header and a message per column. Lengths do not
    change, so offsets stay valid.
    """
    from google.protobuf.internal import encoder
    from whylogs.core.proto import ChunkHeader, ChunkMessage, DatasetProfileHeader, DatasetSegmentHeader
    from whylogs.core.utils import read_delimited_protobuf

    stream, parts = io.BytesIO(profile), [profile[:4]]
    stream.seek(4)

    def copy_delimited(kind: Any) -> Any:
        message = read_delimited_protobuf(stream, kind)
        parts.append(encoder._VarintBytes(message.ByteSize()) + message.SerializeToString(deterministic=True))
        return message

    copy_delimited(DatasetSegmentHeader)
    copy_delimited(DatasetProfileHeader)
    while stream.tell() < len(profile):
        length = copy_delimited(ChunkHeader).length
        parts.append(ChunkMessage.FromString(stream.read(length)).SerializeToString(deterministic=True))
    return b"".join(parts)


def _column_summary(view: Any) -> dict[str, Any]:
    counts, types = view.get_metric("counts"), view.get_metric("types")
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
        items = view.get_metric("frequent_items").strings[:MAX_FREQUENT_VALUES]
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
    """Equal bins from minimum to maximum; counts come from the sketch's distribution and sum to ``count``."""
    edges = np.unique(np.linspace(low, high, HISTOGRAM_BINS + 1))
    if len(edges) < 3 or not np.isfinite(edges).all():
        return {"edges": [low, high], "counts": [count]}
    below = np.rint(np.cumsum(sketch.get_pmf(edges[1:-1].tolist())) * count).astype(int)
    return {"edges": edges.tolist(), "counts": np.diff(below, prepend=0).tolist()}
