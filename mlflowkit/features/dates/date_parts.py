"""Features of dates: parts, cycles and ages, by arithmetic on integers that the ONNX graph repeats bit for bit.

Days become a civil date in the proleptic Gregorian calendar by the algorithm of H. Hinnant, "chrono-compatible
low-level date algorithms" (2013), on days since 0000-03-01, which are positive for every date that is read, so that
integer division truncates as it floors. Cycles are looked up in tables of float32, since sine and cosine of two
libraries differ in the last bit. An age is a difference of seconds in double precision, divided, then rounded to
float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflowkit.errors import UsageError, closest_match
from mlflowkit.features.dates.date_reading import EARLIEST, LATEST, read_dates
from mlflowkit.features.dates.date_terms import DEFAULT_PARTS, UNITS, ZONES, Zone

DAY = 86_400
SHIFT_DAYS = 719_468
"""Days from 0000-03-01 to 1970-01-01."""
WEEKDAY_SHIFT = 2
"""Added to days since 0000-03-01, a Wednesday, for Monday to be 0."""
PERIODS: Mapping[str, tuple[int, int]] = {"month": (1, 12), "weekday": (0, 7), "hour": (0, 24)}
"""First value and number of values of the parts that have a cycle."""


@dataclass(frozen=True, slots=True)
class DateFeature:
    """One column of a model's matrix, made of the date column ``column`` (its index).

    ``name`` is a part, the sine or cosine of one (``month_sin``), or ``age``: the time since another date column, or
    since ``since`` seconds where ``other`` is None, in units of ``unit`` seconds.
    """

    column: int
    name: str
    other: int | None = None
    since: float = 0.0
    unit: float = 1.0


def plan_dates(names: Sequence[str], zones: Sequence[Zone], settings: Mapping[str, Any]) -> tuple[DateFeature, ...]:
    """The features of date columns by their stages.train.DateSettings; the parts that are its default without one.

    Raises UsageError for an age since what is neither a date column of the same zone nor a date.

    >>> [feature.name for feature in plan_dates(["day"], ["naive"], {})]
    ['year', 'month', 'day', 'weekday']
    """
    features: list[DateFeature] = []
    for column, name in enumerate(names):
        setting = settings.get(name)
        wanted: list[str] = list(DEFAULT_PARTS if setting is None else setting.parts)
        for part in () if setting is None else setting.cycles:
            wanted += [f"{part}_sin", f"{part}_cos"]
        features += [DateFeature(column, feature) for feature in wanted]
        if setting is not None and setting.age is not None:
            other, since = _start_of(column, setting.age.since, names, zones)
            features.append(DateFeature(column, "age", other, since, UNITS[setting.age.unit]))
    return tuple(features)


def _start_of(column: int, since: str, names: Sequence[str], zones: Sequence[Zone]) -> tuple[int | None, float]:
    """The column that an age counts from, or None and the seconds of a fixed date."""
    key, zone = f"preprocess.dates.{names[column]}.age.since", zones[column]
    if since in names:
        other = names.index(since)
        if zones[other] != zone:
            message = f"{key}: {since!r} is {ZONES[zones[other]]}, {names[column]!r} is {ZONES[zone]}: their difference"
            hint = "write both with an offset from UTC at the source, or both without"
            raise UsageError(f"{message} is not known", hint=hint)
        return other, 0.0
    read = read_dates([since])
    if read.unreadable or not (read.naive or read.offset):
        near = closest_match(since, names)
        hint = f"did you mean {near!r}?" if near else "write a date such as '2020-01-01', or declare the column: date"
        raise UsageError(f"{key} is {since!r}, which is no date and no column of dates", hint=hint)
    if read.offset and zone == "naive":
        hint = f"write {key} without an offset"
        raise UsageError(f"{key} has an offset from UTC, and the column {names[column]!r} has none", hint=hint)
    return None, float(read.seconds[0])


def cycle_table(name: str) -> np.ndarray:
    """The values of ``month_sin`` and the like by part, counted from its first value; float32.

    >>> cycle_table("hour_cos")[[0, 6, 12]].round(6).tolist()
    [1.0, 0.0, -1.0]
    """
    part, _, wave = name.rpartition("_")
    angles = 2 * np.pi * np.arange(PERIODS[part][1]) / PERIODS[part][1]
    table: np.ndarray = (np.sin(angles) if wave == "sin" else np.cos(angles)).astype(np.float32)
    return table


def date_features(seconds: np.ndarray, features: Sequence[DateFeature], dtype: Any = np.float32) -> np.ndarray:
    """The features of ``seconds``, float64 [rows, columns]: [rows, features], NaN where a date is missing.

    >>> columns = [DateFeature(0, name) for name in ("year", "month", "day", "weekday", "hour")]
    >>> date_features(np.array([[951_782_400.0], [-1.0], [np.nan]]), columns).tolist()
    [[2000.0, 2.0, 29.0, 1.0, 0.0], [1969.0, 12.0, 31.0, 2.0, 23.0], [nan, nan, nan, nan, nan]]
    """
    with np.errstate(invalid="ignore"):
        valid = (seconds >= EARLIEST) & (seconds < LATEST)
    present = np.where(valid, seconds, 0.0)
    parts = civil_parts(np.floor(present).astype(np.int64))
    matrix = np.empty((len(seconds), len(features)), dtype=dtype)
    for index, feature in enumerate(features):
        known = valid[:, feature.column]
        if feature.name == "age":
            start: Any = feature.since
            if feature.other is not None:
                start, known = present[:, feature.other], known & valid[:, feature.other]
            values = ((present[:, feature.column] - start) / feature.unit).astype(dtype)
        elif feature.name in parts:
            values = parts[feature.name][:, feature.column].astype(dtype)
        else:
            part = feature.name.rpartition("_")[0]
            codes = parts[part][:, feature.column] - PERIODS[part][0]
            values = cycle_table(feature.name)[codes].astype(dtype)
        matrix[:, index] = np.where(known, values, dtype(np.nan))
    return matrix


def civil_parts(seconds: np.ndarray) -> dict[str, np.ndarray]:
    """Year, month (1-12), day (1-31), weekday (Monday is 0) and hour of whole seconds since 1970; int64."""
    shifted = seconds + SHIFT_DAYS * DAY
    days = shifted // DAY
    era = days // 146_097
    of_era = days - era * 146_097
    year_of_era = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    from_march = (5 * of_year + 2) // 153
    next_year = from_march // 10  # 1 in January and February, which end the year that began in March
    return {
        "year": year_of_era + 400 * era + next_year,
        "month": from_march + 3 - 12 * next_year,
        "day": of_year - (153 * from_march + 2) // 5 + 1,
        "weekday": (days + WEEKDAY_SHIFT) % 7,
        "hour": (shifted - days * DAY) // 3600,
    }
