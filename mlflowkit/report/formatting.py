"""Numbers, spans of time and digests as people read them. Pure; no vendor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

NONE = "–"
"""What stands where there is no number."""

LATENCY_UNITS = ((1e6, "s"), (1e3, "ms"), (1.0, "µs"))


def number(value: Any, digits: int = 4) -> str:
    """A number with ``digits`` significant digits, never in scientific notation between 1e-4 and 1e15. What is
    nearly one is not rounded to it.

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
    """A share of one as a percentage.

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
    """A span of time given in seconds.

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
    """A latency given in microseconds, in the unit that suits it.

    >>> micros(12.34), micros(1530), micros(2.5e6), micros(None)
    ('12.3 µs', '1.53 ms', '2.5 s', '–')
    """
    if value is None:
        return NONE
    factor, unit = next((pair for pair in LATENCY_UNITS if value >= pair[0]), LATENCY_UNITS[-1])
    return f"{value / factor:.3g} {unit}"


def moment(epoch: float | None) -> str:
    """A time given in seconds since the epoch, in UTC.

    >>> moment(0.0)
    '1970-01-01 00:00:00 UTC'
    """
    return NONE if epoch is None else datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def interval(measurement: Mapping[str, Any] | None) -> str:
    """A measurement (a values.Measurement as JSON) with its interval.

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
    """The first digits of a digest.

    >>> short("0123456789abcdef"), short("")
    ('0123456789ab', '–')
    """
    return digest[:length] or NONE
