"""The reference of a model: cells and counts of its features on the training rows and of its outputs on the test rows.

It is ``evidence/monitor.json`` of a bundle, written when the bundle is packaged. A bundle without it is one of an older
version: its columns cannot be judged before live windows have made a baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.counts import Counts
from mlflowkit.values import Json

FORMAT = 1
EVIDENCE = "evidence/monitor.json"


@dataclass(frozen=True, slots=True)
class ColumnReference:
    """One column: its cells, its counts in them, and the counts of consecutive parts of the rows where they are in time
    order (``parts``). ``importance`` is the column's share of the summed permutation importance, from 0 to 1; None when
    it was not measured."""

    cells: Cells
    counts: Counts
    parts: tuple[Counts, ...] = ()
    importance: float | None = None

    @property
    def rows(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Reference:
    """All columns, named as in `ProfileCounts`; ``segments`` holds counts by ``column=value`` and column."""

    columns: Mapping[str, ColumnReference] = field(default_factory=dict)
    segments: Mapping[str, Mapping[str, Counts]] = field(default_factory=dict)

    def to_json(self) -> Json:
        """The content of ``evidence/monitor.json``."""
        columns = {
            name: {
                "cells": column.cells.to_json(),
                "counts": list(column.counts),
                "parts": [list(part) for part in column.parts],
                "importance": column.importance,
            }
            for name, column in self.columns.items()
        }
        segments = {
            segment: {name: list(counts) for name, counts in columns.items()}
            for segment, columns in self.segments.items()
        }
        return {"format": FORMAT, "columns": columns, "segments": segments}

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Reference:
        """The reference that `to_json` returned. Raises KeyError, TypeError or ValueError for anything else.

        >>> column = ColumnReference(Cells("number", edges=(0.0, 1.0)), (0, 9, 0, 1), importance=0.5)
        >>> reference = Reference({"age": column}, {"country=DE": {"age": (0, 4, 0, 0)}})
        >>> Reference.from_json(reference.to_json()) == reference
        True
        """
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']!r} of a monitoring reference is not known")
        columns = {str(name): _column_from_json(column) for name, column in value["columns"].items()}
        segments = {
            str(segment): {str(name): tuple(map(int, counts)) for name, counts in parts.items()}
            for segment, parts in value["segments"].items()
        }
        return cls(columns, segments)


def _column_from_json(value: Mapping[str, Json]) -> ColumnReference:
    cells = Cells.from_json(value["cells"])
    counts, *parts = (tuple(map(int, part)) for part in (value["counts"], *value["parts"]))
    if any(len(part) != len(cells.names) for part in (counts, *parts)):
        raise ValueError("counts and cells of a monitoring reference do not fit")
    importance = value["importance"]
    return ColumnReference(cells, counts, tuple(parts), None if importance is None else float(importance))
