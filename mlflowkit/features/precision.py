"""Which columns float32 cannot hold, and the offset that brings them into its reach.

Models compute in float32, which has 24 bits: of seconds since 1970 it keeps every 128th. A column whose distinct values
it merges is centred: the graph takes the numbers in double precision (FP64), subtracts an offset and rounds what is
left. A column that float32 holds (nearly all) keeps its FP32 input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROWS = 200_000
"""Rows that are looked at; more are thinned evenly. Among more, float32 merges some of any continuous values."""
WHOLE = 2**24
"""Whole numbers up to this are exact in float32."""
NEGLIGIBLE = 1e-5
"""Rounding errors up to this, in standard deviations, change no prediction that matters."""
SMALL_SHARE = 0.01
"""Share of distinct values that may be merged by errors that are negligible."""
LARGEST_SHARE = 0.1
"""Share of distinct values above which a column that is centred has lost what it says."""


@dataclass(frozen=True, slots=True)
class Precision:
    """How float32 holds a column.

    ``merged`` is the share of the distinct values that it merges with others, ``merged_centred`` the share that is left
    after `offset` was subtracted and the column standardised. ``offset`` is 0 where float32 holds the column, else one
    of its values. ``example`` has two values that become one.
    """

    distinct: int = 0
    merged: float = 0.0
    offset: float = 0.0
    merged_centred: float = 0.0
    example: tuple[float, float] | None = None


def assess(values: np.ndarray) -> Precision:
    """The precision of a column's present values, int64 or float64.

    >>> seconds = 1_700_000_000 + np.arange(120)
    >>> held = assess(seconds)
    >>> held.distinct, round(held.merged, 2), held.offset, held.merged_centred, held.example
    (120, 0.98, 1700000059.0, 0.0, (1700000000, 1700000001))
    >>> assess(np.array([0.1, 0.2, 2.0**24])).offset
    0.0
    """
    sample = np.sort(values[:: -(-len(values) // ROWS)] if len(values) > ROWS else values)
    exact = sample[np.append(True, sample[1:] != sample[:-1])] if len(sample) else sample
    if len(exact) < 2 or (exact.dtype.kind in "iub" and max(abs(int(exact[0])), abs(int(exact[-1]))) <= WHOLE):
        return Precision(len(exact))
    single = exact.astype(np.float32)
    same = np.flatnonzero(single[1:] == single[:-1])
    if not same.size:
        return Precision(len(exact))
    merged = same.size / len(exact)
    wide = sample.astype(np.float64)
    deviation = float(wide.std())
    error = float(np.abs(exact.astype(np.float64) - single).max())
    if error <= NEGLIGIBLE * deviation and merged <= SMALL_SHARE:
        return Precision(len(exact), merged)
    offset = float(sample[(len(sample) - 1) // 2])
    centred = _standardised(exact.astype(np.float64) - offset, wide - offset)
    left = int((centred[1:] == centred[:-1]).sum()) / len(exact)
    pair = (exact[same[0]].item(), exact[same[0] + 1].item())
    return Precision(len(exact), merged, offset, left, pair)


def _standardised(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Values as the graph computes them: float32, minus the mean, divided by the standard deviation."""
    mean, deviation = np.float32(rows.mean()), np.float32(rows.std() or 1.0)
    scaled: np.ndarray = (values.astype(np.float32) - mean) / deviation
    return scaled
