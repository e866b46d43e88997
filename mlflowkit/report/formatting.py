"""Formatting of numbers, durations, sizes and digests for pages and tables. Pure; no vendor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

NONE = "–"
"""Placeholder for a missing value."""

LATENCY_UNITS = ((1e6, "s"), (1e3, "ms"), (1.0, "µs"))


def number(value: Any, digits: int = 4) -> str:
    """Format a number with ``digits`` significant digits, without exponents between 1e-4 and 1e15.

    Values just below one are not rounded to one.

    >>> number(0.739512), number(9857), number(1234567.8), number(0.00001234), number(None), number(float("nan"))
    ('0.7395', '9,857', '1,234,568', '1.234e-05', '–', '–')
    >>> number(0.99998)
    '0.99998'
    """
    if value is None or isinstance(value, str):
        return value or NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not math.isfinite(value):
        return NONE
    value = 0 if abs(value) < 1e-12 else value
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if 10 ** (digits - 1) <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.{digits if abs(value) < 0.999 or abs(value) > 1 else 7}g}"


def share(value: Any) -> str:
    """Format a share as a percentage.

    >>> share(0.0524), share(0.99999), share(1), share(0)
    ('5.24 %', '>99.9 %', '100 %', '0 %')
    """
    if value is None or not math.isfinite(value):
        return NONE
    if 0.999 < value < 1:
        return ">99.9 %"
    if 0 < value < 0.0005:
        return "<0.05 %"
    return f"{100 * value:.3g} %"


def seconds(value: float | None) -> str:
    """Format a duration in seconds.

    >>> seconds(0.0123), seconds(4.56), seconds(75), seconds(7384), seconds(None)
    ('12 ms', '4.6 s', '1 min 15 s', '2 h 03 min', '–')
    """
    if value is None:
        return NONE
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def micros(value: Any) -> str:
    """Format a latency in microseconds with a suitable unit.

    >>> micros(12.34), micros(1530), micros(2.5e6), micros(None)
    ('12.3 µs', '1.53 ms', '2.5 s', '–')
    """
    if value is None:
        return NONE
    factor, unit = next((pair for pair in LATENCY_UNITS if value >= pair[0]), LATENCY_UNITS[-1])
    return f"{value / factor:.3g} {unit}"


def millis(value: float | None) -> str:
    """Format a latency in milliseconds with a suitable unit."""
    return micros(None if value is None else 1000 * value)


def format_bytes(count: float | None) -> str:
    """Format a size in bytes with a suitable unit.

    >>> format_bytes(512), format_bytes(20_480), format_bytes(91_000_000), format_bytes(None)
    ('512 B', '20 KiB', '86.8 MiB', '–')
    """
    if count is None:
        return NONE
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


def moment(epoch: float | None) -> str:
    """Format a time in seconds since the epoch, in UTC.

    >>> moment(0.0)
    '1970-01-01 00:00:00 UTC'
    """
    return NONE if epoch is None else datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def interval(measurement: Mapping[str, Any] | None) -> str:
    """Format a measurement (a values.Measurement as JSON) with its interval.

    >>> interval({"value": 0.7412, "low": 0.69, "high": 0.79, "unit": ""})
    '0.7412 [0.69, 0.79]'
    """
    if measurement is None:
        return NONE
    unit = f" {measurement['unit']}" if measurement.get("unit") else ""
    low, high = number(measurement.get("low")), number(measurement.get("high"))
    bounds = "" if low == high == NONE else f" [{low}, {high}]"
    return f"{number(measurement.get('value'))}{bounds}{unit}"


def short(digest: str, length: int = 12) -> str:
    """Return the first digits of a digest.

    >>> short("0123456789abcdef"), short("")
    ('0123456789ab', '–')
    """
    return digest[:length] or NONE
