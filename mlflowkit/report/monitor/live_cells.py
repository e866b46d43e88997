"""Reference and live counts of one column in one window, cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflowkit.errors import MlkitError
from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.counts import WindowCounts
from mlflowkit.judging.shift.reference import EVIDENCE, Reference
from mlflowkit.service_state.records import ServiceFiles, read_json

WindowReader = Callable[[Path, str, float, float], Sequence[WindowCounts]]
"""``read_windows(folder, version, since, until)`` of the profiles on disk."""
MAX_SHOWN = 40
"""Cells shown; further ones of a column with many values are summed."""


@dataclass(frozen=True, slots=True)
class CellPair:
    """One cell: its name, and its rows in the reference and in the window."""

    name: str
    reference: int
    live: int


@dataclass(frozen=True, slots=True)
class CellCounts:
    """The cells of a column, in their order, with the totals of both sides. ``problem`` says what could not be read."""

    cells: tuple[CellPair, ...] = ()
    reference_rows: int = 0
    live_rows: int = 0
    problem: str = ""


def compare_cells(cells: Cells, reference: Sequence[int], live: Sequence[int]) -> CellCounts:
    """Pair the counts of both sides. Raises ValueError when the counts do not fit the cells.

    >>> pairs = compare_cells(Cells("text", values=("a",)), (3, 0, 0, 1), (1, 0, 2, 0))
    >>> pairs.cells[2], pairs.reference_rows
    (CellPair(name='(new)', reference=0, live=2), 4)
    """
    names = cells.names
    if not len(names) == len(reference) == len(live):
        raise ValueError(f"{len(names)} cells, but {len(reference)} counts of the reference and {len(live)} live ones")
    pairs = [CellPair(*row) for row in zip(names, reference, live, strict=True)]
    if len(pairs) > MAX_SHOWN:
        order = sorted(range(len(pairs)), key=lambda index: -(pairs[index].reference + pairs[index].live))
        kept = set(order[: MAX_SHOWN - 1]) | {index for index, pair in enumerate(pairs) if pair.name.startswith("(")}
        rest = [pair for index, pair in enumerate(pairs) if index not in kept]
        more = CellPair(f"{len(rest)} more", sum(p.reference for p in rest), sum(p.live for p in rest))
        pairs = [pair for index, pair in enumerate(pairs) if index in kept] + [more]
    return CellCounts(tuple(pairs), sum(reference), sum(live))


def read_cell_counts(
    files: ServiceFiles, version: str, column: str, segment: str, since: float, until: float, read: WindowReader
) -> CellCounts:
    """The counts of a column of a version in [since, until), from the bundle's reference and the profiles on disk."""
    try:
        reference = read_reference(files, version)
        known = reference.columns.get(column)
        if known is None:
            return CellCounts(problem=f"the reference of version {version} has no column {column}")
        before = reference.segments.get(segment, {}).get(column) if segment else known.counts
        live = [0] * len(known.cells.names)
        for window in read(files.folder / "profiles", version, since, until):
            part = window.segments.get(segment) if segment else window.total
            counts = None if part is None else part.columns.get(column)
            if counts is not None:
                live = [first + second for first, second in zip(live, counts, strict=True)]
        return compare_cells(known.cells, before or [0] * len(live), live)
    except (MlkitError, OSError) as error:
        return CellCounts(problem=str(error))
    except (KeyError, TypeError, ValueError) as error:
        return CellCounts(problem=f"the counts are damaged: {error}")


def read_reference(files: ServiceFiles, version: str) -> Reference:
    """The reference of a version that the service serves; an empty one when its bundle has none.

    Raises MlkitError, KeyError, TypeError or ValueError when it cannot be read.
    """
    table = files.table()
    for variant in () if table is None else table.variants:
        if variant.version == version:
            value = read_json(Path(variant.bundle) / EVIDENCE)
            return Reference() if value is None else Reference.from_json(value)
    return Reference()
