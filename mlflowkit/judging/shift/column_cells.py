"""Cells of a column: the fixed parts of its range in which a reference and live windows are counted.

Cells are made once, from the reference rows, and never move. They compare values only with values of the reference, so
counts are the same after any change of units and any increasing map of both sides. Values that the reference has not
seen have cells of their own: below its minimum, above its maximum, new, missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from mlflowkit.values import Json

BELOW, ABOVE, MISSING, NEW, OTHER = "(below)", "(above)", "(missing)", "(new)", "(other)"


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of one column.

    Of a number: ``edges`` ascend from the reference's minimum to its maximum, in the type that the graph takes
    (float32 values, held as float). A value x is in cell j of the inner ones when edges[j] <= x < edges[j + 1], the
    last of them also at its upper edge. Where the last two edges are equal, the last inner cell holds the maximum
    alone. The inner cells lie between (below) and (above); infinities are in those; NaN is (missing).

    Of a text: ``values`` have a cell each; ``others`` are further values of the reference, counted as (other); anything
    else is (new), and an absent value or "" is (missing). ``complete`` is False where the reference had more values
    than can be kept: then (new) and (other) cannot be told apart, and what is not in ``values`` is (other).

    >>> Cells("number", edges=(0.0, 1.0, 5.0)).names
    ('(below)', '[0, 1)', '[1, 5]', '(above)', '(missing)')
    >>> Cells("number", edges=(0.0, 1.0, 1.0)).names
    ('(below)', '[0, 1)', '1', '(above)', '(missing)')
    >>> Cells("text", values=("red",), others=("blue",)).names
    ('red', '(other)', '(new)', '(missing)')
    """

    kind: Literal["number", "text"]
    edges: tuple[float, ...] = ()
    values: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    complete: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each cell, in the order of the counts."""
        if self.kind == "text":
            return (*self.values, OTHER, NEW, MISSING)
        pairs = list(pairwise(self.edges))
        inner = [
            f"[{low:.6g}, {high:.6g}{']' if index == len(pairs) - 1 else ')'}" if low < high else f"{high:.6g}"
            for index, (low, high) in enumerate(pairs)
        ]
        if len(self.edges) == 1:
            inner = [f"{self.edges[0]:.6g}"]
        return (BELOW, *inner, ABOVE, MISSING)

    @property
    def ordered(self) -> bool:
        """Whether the cells but (missing) have an order: the distance is then Kolmogorov and Smirnov's."""
        return self.kind == "number"

    def to_json(self) -> Json:
        """The cells as JSON."""
        if self.kind == "number":
            return {"kind": "number", "edges": list(self.edges)}
        return {"kind": "text", "values": list(self.values), "others": list(self.others), "complete": self.complete}

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Cells:
        """The cells that `to_json` returned. Raises KeyError, TypeError or ValueError for anything else.

        >>> cells = Cells("text", values=("a",), others=("b",), complete=False)
        >>> Cells.from_json(cells.to_json()) == cells
        True
        """
        if value["kind"] == "number":
            edges = tuple(float(edge) for edge in value["edges"])
            ascend = [low < high for low, high in pairwise(edges)]
            if not (all(ascend[:-1]) and all(low <= high for low, high in pairwise(edges[-2:]))):
                raise ValueError("the edges of cells must ascend")
            return cls("number", edges=edges)
        if value["kind"] != "text":
            raise ValueError(f"{value['kind']!r} is no kind of cells")
        values, others = (tuple(map(str, value[name])) for name in ("values", "others"))
        return cls("text", (), values, others, bool(value["complete"]))
