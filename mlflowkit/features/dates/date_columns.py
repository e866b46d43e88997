"""Whole columns of dates become seconds since 1970; the rule of `date_reading` for tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mlflowkit.errors import DataError
from mlflowkit.features.column_findings import Finding
from mlflowkit.features.dates.date_reading import EARLIEST, LATEST, ReadDates, read_dates
from mlflowkit.features.dates.date_terms import ZONES, Zone
from mlflowkit.system.text import format_list

LARGEST_UNREADABLE = 0.5
"""Share of a column's values, from which on it is no column of dates."""
COMPACT = (19_000_101, 21_001_231)
"""The range of dates that are written as one number, 20240131."""
ISO_HINT = "write dates as 2024-01-31 or 2024-01-31T10:00:00 (with Z or +02:00 where the clock is known)"


@dataclass(frozen=True, slots=True)
class DateTable:
    """A table whose columns of dates are float64 seconds, null where missing; their zones, and what is to be told."""

    table: pa.Table
    zones: Mapping[str, Zone]
    findings: Sequence[Finding]


def as_seconds(table: pa.Table, names: Iterable[str]) -> DateTable:
    """Columns of dates as seconds. Raises DataError for a column that mixes texts with and without an offset, or that
    holds no dates in more than LARGEST_UNREADABLE of its values.

    >>> read = as_seconds(pa.table({"day": ["1970-01-02", None, "soon", "1969-12-31"]}), ["day"])
    >>> read.table.column("day").to_pylist(), dict(read.zones)
    ([86400.0, None, None, -86400.0], {'day': 'naive'})
    >>> print(read.findings[0].message)
    holds 1 of 3 values (33.3%) that are no dates, and count as missing: 'soon'
    """
    zones: dict[str, Zone] = {}
    findings: list[Finding] = []
    for name in names:
        column = table.column(name)
        seconds, zones[name], finding = _read_column(column, name)
        findings += [finding] if finding else []
        values = pa.array(seconds, pa.float64(), mask=np.isnan(seconds))
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return DateTable(table, zones, findings)


def column_seconds(column: pa.ChunkedArray, name: str, zone: Zone, start: int) -> tuple[np.ndarray, int]:
    """The dates of a column of a file that is scored, as seconds, and how many of its values are no dates.

    Raises DataError for texts of the other zone; ``start`` is the number of the first row, for that error.
    """
    read = _dates_of(column, name)
    other: Zone = "offset" if zone == "naive" else "naive"
    if wrong := read.of_zone(other):
        message = f"row {start + wrong[0]}: {name}: {_shown(column, wrong[:1])} is {ZONES[other]}"
        raise DataError(f"{message}, and the model learnt from dates {ZONES[zone]}", hint=f"write it {ZONES[zone]}")
    return read.seconds, len(read.unreadable)


def _read_column(column: pa.ChunkedArray, name: str) -> tuple[np.ndarray, Zone, Finding | None]:
    read = _dates_of(column, name)
    if read.naive and read.offset:
        few, zone = (read.naive, "naive") if len(read.naive) < len(read.offset) else (read.offset, "offset")
        message = f"column {name!r} mixes dates with and without an offset from UTC: {len(few):,} of "
        message += f"{len(read.naive) + len(read.offset):,} are {ZONES['naive' if zone == 'naive' else 'offset']}"
        hint = "write all of them with an offset (Z, +02:00) at the source, or none"
        raise DataError(f"{message}, such as {_shown(column, few)}", hint=hint)
    present = len(column) - column.null_count
    compact = (read.seconds >= COMPACT[0]) & (read.seconds <= COMPACT[1])
    if present and compact.sum() == present and not (read.naive or read.offset):
        message = f"column {name!r} is declared date, and its numbers look like days written as one number"
        raise DataError(f"{message} ({_shown(column, [int(compact.argmax())])}), not seconds", hint=ISO_HINT)
    found: Zone = "offset" if read.offset else "naive"
    if not read.unreadable:
        return read.seconds, found, None
    share = len(read.unreadable) / present
    message = f"holds {len(read.unreadable):,} of {present:,} values ({share:.1%}) that are no dates"
    if share > LARGEST_UNREADABLE:
        hint = f"{ISO_HINT}; numbers are seconds since 1970; or declare it otherwise under data.columns"
        raise DataError(f"column {name!r} {message}, such as {_shown(column, read.unreadable)}", hint=hint)
    finding = Finding(name, f"{message}, and count as missing: {_shown(column, read.unreadable)}", ISO_HINT)
    return read.seconds, found, finding


def _dates_of(column: pa.ChunkedArray, name: str) -> ReadDates:
    """A column of any type as dates: times by their own zone, numbers as seconds. Raises DataError for other types."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _dates_of(column.cast(kind.value_type), name)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _times(column)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        numbers = column.cast(pa.float64(), safe=False).to_numpy()
        with np.errstate(invalid="ignore"):
            valid = (numbers >= EARLIEST) & (numbers < LATEST)
        seconds = np.where(valid, numbers, np.nan)
        return ReadDates(seconds, unreadable=np.flatnonzero(~valid & ~np.isnan(numbers)).tolist())
    if pa.types.is_null(kind):
        return ReadDates(np.full(len(column), np.nan))
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise DataError(f"column {name!r} is declared date and holds {kind}", hint=ISO_HINT)
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    return _spread(read_dates(encoded.dictionary.to_pylist()), encoded.indices)


def _times(column: pa.ChunkedArray) -> ReadDates:
    """Times of a typed column; those beyond the years 1 to 9999 are unreadable."""
    zoned = pa.types.is_timestamp(column.type) and column.type.tz is not None
    ticks = column.cast(pa.timestamp("us", tz="UTC" if zoned else None), safe=False).cast(pa.int64())
    present = np.flatnonzero(column.is_valid().to_numpy())
    micros = ticks.fill_null(0).to_numpy()
    seconds = np.full(len(column), np.nan)
    seconds[present] = micros[present] / 1e6
    beyond = (seconds < EARLIEST) | (seconds >= LATEST)
    seconds[beyond] = np.nan
    rows = present.tolist()
    return ReadDates(seconds, [] if zoned else rows, rows if zoned else [], np.flatnonzero(beyond).tolist())


def _spread(read: ReadDates, indices: pa.Array) -> ReadDates:
    """The dates of different texts, for all rows by the index of their text; null is missing."""
    codes = indices.fill_null(len(read.seconds)).to_numpy()
    seconds = np.append(read.seconds, np.nan)[codes]

    def rows(of: Sequence[int]) -> list[int]:
        chosen = np.zeros(len(read.seconds) + 1, dtype=bool)
        chosen[list(of)] = True
        return np.flatnonzero(chosen[codes]).tolist()

    return ReadDates(seconds, rows(read.naive), rows(read.offset), rows(read.unreadable))


def _shown(column: pa.ChunkedArray, rows: Sequence[int]) -> str:
    """The most frequent of these values."""
    counted = Counter(str(column[row].as_py()) for row in rows[:1000])
    return format_list([text[:40] for text, _ in counted.most_common(4)])
