"""The dates of a request: ISO 8601 text or seconds since 1970, for any request format.

The texts and numbers that are no date count as missing, and the client is told how many, by column; a text with an
offset from UTC for a column without, or the other way round, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlflowkit.bundle import TensorSpec
from mlflowkit.features.dates.date_reading import EARLIEST, LATEST, read_dates
from mlflowkit.features.dates.date_terms import ZONES, Zone
from mlflowkit.serving.protocol.binary_tensors import Buffer
from mlflowkit.serving.protocol.categories import SCALARS
from mlflowkit.serving.protocol.http_error import bad_request, json_type, short_json
from mlflowkit.serving.protocol.json_tensors import ValueLocation
from mlflowkit.serving.protocol.tensor_values import json_values, parse_numbers, parse_texts

UNREADABLE = "unreadable_dates"
"""The note of a response: cells, by column, that are no date."""
Notes = dict[str, dict[str, int]]


class DateInputs:
    """The columns of dates of a signature, prepared for parsing.

    >>> spec = TensorSpec(name="dates", datatype="FP64", shape=(-1, 1), columns=("day",))
    >>> notes = {}
    >>> DateInputs({"day": "naive"}).cells(["1970-01-02", 1.5, "soon"], spec, lambda index: "", notes).tolist(), notes
    ([86400.0, 1.5, nan], {'unreadable_dates': {'day': 1}})
    """

    def __init__(self, zones: Mapping[str, Zone]) -> None:
        self._zones = zones

    def takes(self, tensor: TensorSpec) -> bool:
        """Whether the columns of an input are dates."""
        return bool(tensor.columns) and tensor.columns[0] in self._zones

    def cells(self, cells: Sequence[Any], tensor: TensorSpec, locate: ValueLocation, notes: Notes) -> np.ndarray:
        """JSON values of one or all columns of an input, row by row, as a flat array. Raises RequestError."""
        wrong = next((at for at, cell in enumerate(cells) if type(cell) is bool or type(cell) not in SCALARS), None)
        if wrong is not None:
            value = f"{json_type(cells[wrong])} ({short_json(cells[wrong])})"
            raise bad_request(f"{locate(wrong)}: {value}; a date as text, seconds since 1970 or null is expected")
        read = read_dates(cells)
        for at, name in enumerate(tensor.columns):
            zone = self._zones[name]
            other: Zone = "offset" if zone == "naive" else "naive"
            width = len(tensor.columns)
            if (mixed := next((row for row in read.of_zone(other) if row % width == at), None)) is not None:
                message = f"{locate(mixed)}: {short_json(cells[mixed])} is {ZONES[other]}"
                raise bad_request(f"{message}; the model learnt from dates {ZONES[zone]}")
            _note(notes, name, sum(row % width == at for row in read.unreadable))
        return read.seconds

    def tensor(
        self, item: Mapping[str, Any], tensor: TensorSpec, shape: Sequence[int], raw: Mapping[str, Buffer], notes: Notes
    ) -> np.ndarray:
        """A tensor of dates, or of one of its columns, in any numeric datatype or as BYTES. Raises RequestError."""
        name = item["name"]
        if item["datatype"] == "BYTES":
            given = name in raw
            cells = parse_texts(item, shape, raw, ()).tolist() if given else json_values(item, shape)
            return self.cells(cells, tensor, lambda index: f"inputs[{name}], value {index}", notes)
        seconds = parse_numbers(item, "FP64", shape, raw)
        with np.errstate(invalid="ignore"):
            beyond = ~((seconds >= EARLIEST) & (seconds < LATEST)) & ~np.isnan(seconds)
        for at, column in enumerate(tensor.columns):
            _note(notes, column, int(beyond.reshape(-1, len(tensor.columns))[:, at].sum()))
        return seconds


def _note(notes: Notes, column: str, count: int) -> None:
    if count:
        noted = notes.setdefault(UNREADABLE, {})
        noted[column] = noted.get(column, 0) + count
