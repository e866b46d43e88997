"""The words of dates: zones, parts, cycles and units, for recipes and for what computes with them.

Imports only the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

Zone = Literal["naive", "offset"]
DatePart = Literal["year", "month", "day", "weekday", "hour"]
Cycle = Literal["month", "weekday", "hour"]
AgeUnit = Literal["hours", "days", "years"]
DEFAULT_PARTS: tuple[DatePart, ...] = ("year", "month", "day", "weekday")
ZONES: Mapping[Zone, str] = {"naive": "without an offset from UTC", "offset": "with an offset from UTC"}
UNITS: Mapping[AgeUnit, float] = {"hours": 3600.0, "days": 86400.0, "years": 31_556_952.0}
"""Seconds of the units of an age; a year is the mean one of the calendar, 365.2425 days."""
_CLOCK = r"(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?)"
DATE_FORM = re.compile(rf"\d{{4}}-\d\d-\d\d(?:{_CLOCK}(Z|[+-]\d\d(?::?\d\d)?)?)?", re.ASCII)
"""The form of a date that is text; its group is the offset from UTC, if any."""
