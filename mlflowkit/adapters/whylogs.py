"""Profiles by whylogs 1.6.4: mergeable sketches of columns (KLL quantiles, HyperLogLog, frequent items).

whylogs has ended upstream and predates NumPy 2; what that takes is kept in this file. Its KLL update is randomised
and cannot be seeded; here the rows are at hand, so each sketch is built from them sorted, which is deterministic and
closer than an update (`_kll`). Equal tables give equal bytes, and profiles merge with any other of whylogs.
"""

from __future__ import annotations

import io
import os
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mlflowkit.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BINS = 20
FREQUENT = 50
"""Most frequent values that a summary lists."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""Time stamped on a profile: none, so that equal sketches are equal bytes."""


class WhylogsProfiler:
    """The Profiler port, and what merges parts of it.

    Numbers and booleans are profiled as numbers, everything else as text; None, NaN and NaT are missing.
    """

    def profile(self, table: pd.DataFrame) -> bytes:
        """The serialised whylogs profile of a table.

        Columns go to whylogs whole, with the counting done in NumPy and pandas: the summary that ``track(df)`` gives,
        quantiles up to their rank error. Uses private names, hence the exact pin.
        """
        core = _whylogs()
        schema = core.DatasetSchema()
        profile = core.DatasetProfile(schema, dataset_timestamp=_EPOCH, creation_timestamp=_EPOCH)
        for label in table.columns:
            name, column = str(label), _prepared(table[label])
            kind = str if column.pandas.strings is not None else float if column.numpy.ints is None else int
            schema.resolve(row={name: kind()})
            profile._initialize_new_columns((name,))
            _update(profile._columns[name]._metrics, column)
        profile._track_count += 1
        return _canonical(profile.view().serialize())

    def merge(self, profiles: Sequence[bytes]) -> bytes:
        """The serialised profile of all rows that went into ``profiles``. Raises DataError for bytes that are none."""
        first, *others = map(_view, profiles)
        for other in others:
            first = first.merge(other)
        return _canonical(first.serialize())

    def summary(self, profile: bytes) -> Mapping[str, Any]:
        """``{rows, columns: {name: {type, count, missing, mean, stddev, min, max, quantiles, histogram, frequent,
        unique}}}``; keys are absent where they make no sense. Raises DataError for bytes that are no profile."""
        view = _view(profile)
        columns = {name: _column_summary(column) for name, column in sorted(view.get_columns().items())}
        rows = max((column["count"] for column in columns.values()), default=0)
        return {"rows": rows, "columns": columns}


def _view(profile: bytes) -> Any:
    core = _whylogs()
    try:
        return core.DatasetProfileView.deserialize(profile)
    except (core.DeserializationError, ValueError, IndexError) as error:
        raise DataError(f"not a whylogs profile: {error}", hint="mlkit run --force validate") from error


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Let the import of an optional module fail: whylogs wants scikit-learn for embeddings only, and it costs 1 s.

    None in sys.modules is how an import is refused (docs.python.org/3/reference/import.html#the-module-cache).
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


def _whylogs() -> Any:
    """The names used here, imported with telemetry off, NumPy 2 mended and scikit-learn left out."""
    import numpy as np

    os.environ.setdefault("WHYLOGS_NO_ANALYTICS", "1")
    if not hasattr(np, "unicode_"):
        np.unicode_ = np.str_  # type: ignore[attr-defined]
    from types import SimpleNamespace

    with _without("sklearn.cluster"):
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


def _update(metrics: Mapping[str, Any], column: Any) -> None:
    """Tell each metric of a column: as whylogs would, but text by its distinct values, and large sketches built."""
    numbers = column.numpy.ints if column.numpy.ints is not None else column.numpy.floats
    for name, metric in metrics.items():
        if name == "distribution" and numbers is not None and len(numbers) > metric.kll.value.get_k():
            metric.mean.set(float(numbers.mean()))
            metric.m2.set(float(numbers.var()) * len(numbers))
            metric.kll.set(_kll(numbers, metric.kll.value))
        elif name in ("cardinality", "frequent_items") and column.pandas.strings is not None:
            _update_text(metric, column.pandas.strings)
        else:
            metric.columnar_update(column)


def _update_text(metric: Any, values: pd.Series) -> None:
    counts = values.value_counts(sort=False)
    if hasattr(metric, "hll"):
        metric.hll.value.update_str_list(counts.index.to_list())
        return
    for value, count in counts.items():
        metric.frequent_strings.value.update(str(value)[: metric.max_frequent_item_size], int(count))


def _kll(numbers: np.ndarray, like: Any) -> Any:
    """A KLL sketch of all of ``numbers`` with the parameters of ``like``, without its randomness.

    A sketch keeps, at level h, items that each stand for 2^h. The sorted numbers are cut into blocks of 2^h, with
    2^h the smallest that leaves no more than k blocks, and smaller blocks for the rest; the middle of each block
    stands for it. Every rank is right to within half a block, at most n / k. Written in the serialised form of Apache
    DataSketches (preamble of 6 ints, then the offset of each level, minimum, maximum, items), which it is read from.
    """
    import numpy as np

    k, m = like.get_k(), 8
    ordered = np.sort(numbers.astype(np.float64))
    count = len(ordered)
    top = max((count - 1) // k, 0).bit_length()
    sizes = [count >> level & 1 for level in range(top)] + [count >> top]
    kept, start = [], 0
    for level, size in enumerate(sizes):
        kept.append(ordered[start + (1 << level) // 2 :: 1 << level][:size])
        start += size << level
    items = np.concatenate(kept)
    capacity = sum(max(m, ((2 * k << depth) // 3**depth + 1) >> 1) for depth in range(top + 1))
    offsets = capacity - len(items) + np.concatenate([[0], np.cumsum(sizes[:-1])])
    preamble = struct.pack("<BBBBHBxQHBxxxxx", 6, 1, 15, 0, k, m, count, k, top + 1)
    ends = struct.pack("<dd", ordered[0], ordered[-1])
    return like.deserialize(preamble + offsets.astype("<u4").tobytes() + ends + items.astype("<f8").tobytes())


def _canonical(profile: bytes) -> bytes:
    """The same profile with the entries of protobuf's maps in order (they come in the order of addresses).

    A profile is a magic number, two length-delimited headers, and a header and a message for each column. No length
    changes, so offsets stay right.
    """
    from whylogs.core.proto import ChunkHeader, ChunkMessage, DatasetProfileHeader, DatasetSegmentHeader
    from whylogs.core.utils import read_delimited_protobuf

    stream, parts = io.BytesIO(profile), [profile[:4]]
    stream.seek(4)

    def copy_delimited(kind: Any) -> Any:
        message = read_delimited_protobuf(stream, kind)
        parts.append(_varint(message.ByteSize()) + message.SerializeToString(deterministic=True))
        return message

    copy_delimited(DatasetSegmentHeader)
    copy_delimited(DatasetProfileHeader)
    while stream.tell() < len(profile):
        length = copy_delimited(ChunkHeader).length
        parts.append(ChunkMessage.FromString(stream.read(length)).SerializeToString(deterministic=True))
    return b"".join(parts)


def _varint(number: int) -> bytes:
    """
    >>> _varint(300).hex()
    'ac02'
    """
    content = bytearray()
    while number > 0x7F:
        content.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*content, number])


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
