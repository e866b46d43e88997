"""What a date is: ISO 8601 text or seconds since 1970, read alike in files, requests and ``mlkit predict``.

A column is *naive* (no offset from UTC in any text) or has an *offset* in each; both become seconds since
1970-01-01T00:00:00, of the clock that wrote them or of UTC. Texts of the other kind are refused, since nobody knows
what lies between two clocks. A text or a number that is no date between the years 1 and 9999 is a missing value,
and counted.

Imports only the standard library and NumPy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from mlflowkit.bundle import Signature
from mlflowkit.features.cells import NUMBER
from mlflowkit.features.dates.date_terms import DATE_FORM, Zone

DATES_TENSOR = "dates"
"""The graph's input of seconds, float64 [rows, columns]; NaN is a missing value."""
EARLIEST, LATEST = -62_135_596_800, 253_402_300_800
"""Seconds from which on, and before which, there is a date: the years 1 to 9999."""
LONGEST = 40
"""Characters of a text that are looked at; a longer one is no date."""
_NUMBER = re.compile(NUMBER, re.ASCII)
_EPOCH = datetime(1970, 1, 1)
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class ReadDates:
    """Dates as ``seconds`` float64 [rows], NaN where missing; the rows of texts without and with an offset, and of
    values that are no date."""

    seconds: np.ndarray
    naive: Sequence[int] = ()
    offset: Sequence[int] = ()
    unreadable: Sequence[int] = ()

    def of_zone(self, zone: Zone) -> Sequence[int]:
        """Rows whose text is of a zone."""
        return self.naive if zone == "naive" else self.offset


def read_dates(values: Iterable[str | float | None]) -> ReadDates:
    """Texts and numbers as dates; None, NaN and the empty text are missing. Booleans are unreadable.

    >>> read = read_dates(["1970-01-02", "1969-12-31T23:59:59Z", 86400.5, "soon", None, ""])
    >>> read.seconds.tolist()
    [86400.0, -1.0, 86400.5, nan, nan, nan]
    >>> read.naive, read.offset, read.unreadable
    ([0], [1], [3])
    """
    naive: list[int] = []
    offset: list[int] = []
    unreadable: list[int] = []
    seconds: list[float] = []
    for row, value in enumerate(values):
        read = math.nan
        if isinstance(value, str):
            parsed = DATE_FORM.fullmatch(text) if len(text := value.strip()) <= LONGEST else None
            if parsed is not None:
                read = _text_seconds(text)
                (offset if parsed.group(1) else naive).append(row)
            elif text and len(text) <= LONGEST and _NUMBER.fullmatch(text):
                read = date_number(float(text))
            elif not text:
                seconds.append(read)
                continue
        elif value is None or value != value:
            seconds.append(read)
            continue
        elif not isinstance(value, bool):
            read = date_number(value)
        seconds.append(read)
        if read != read:
            unreadable.append(row)
    return ReadDates(np.array(seconds, dtype=np.float64), naive, offset, unreadable)


def date_number(value: float) -> float:
    """Seconds since 1970, NaN where there is no date."""
    return float(value) if EARLIEST <= value < LATEST else math.nan


def _text_seconds(text: str) -> float:
    """Seconds of a text that has the form of a date; NaN where there is no such day or time of day."""
    try:
        read = datetime.fromisoformat(text)
        if read.tzinfo is not None:
            read = read.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return math.nan
    return (read - _EPOCH) / _SECOND


def date_text(seconds: float, zone: Zone) -> str | float | None:
    """The ISO 8601 text that reads back as these seconds; the number itself where microseconds do not tell it.

    >>> date_text(86400.0, "naive"), date_text(-0.5, "offset"), date_text(float("nan"), "naive")
    ('1970-01-02', '1969-12-31T23:59:59.500000Z', None)
    """
    if date_number(seconds) != seconds:
        return None if seconds != seconds else seconds
    moment = _EPOCH + timedelta(seconds=seconds)
    text = moment.isoformat()
    if zone == "naive":
        text = text.removesuffix("T00:00:00")
    else:
        text += "Z"
    return text if _text_seconds(text) == seconds else seconds


def date_columns(signature: Signature) -> Mapping[str, Zone]:
    """The columns that a signature takes as dates, and their zones."""
    return signature.texts.dates
