"""The heat map of a monitor: one row for each column, one cell for each window, as inline SVG. Pure.

The colour of a cell is its distance as a share of the margin; a hatched one could not be judged. Cells of one colour
are one path, so that 200 columns over 60 windows cost about 100 kB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from mlflowkit.report import formatting

LEVELS = (0.25, 0.5, 1.0, 1.5, 2.0)
"""Upper bounds of the colours, as shares of the margin; beyond the last is the strongest."""
HATCHED = len(LEVELS) + 1
"""Level of a cell that could not be judged."""
HEIGHT = 22
MAX_WINDOWS = 60
"""Windows drawn: the last ones."""
HATCHING = (
    '<svg class="defs" aria-hidden="true" width="1" height="1"><defs><pattern id="hatched" width="5" height="5" '
    'patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><path class="hatch" d="M0 0V5"/>'
    "</pattern></defs></svg>"
)
"""The pattern of hatched cells, once for a page."""


@dataclass(frozen=True, slots=True)
class HeatCell:
    """The judgement of one column in one window: a distance (or share), None where it could not be judged."""

    value: float | None
    margin: float

    @property
    def level(self) -> int:
        """Index of the colour.

        >>> HeatCell(0.04, 0.1).level, HeatCell(0.3, 0.1).level, HeatCell(None, 0.1).level
        (1, 5, 6)
        >>> HeatCell(0.0, 0.0).level, HeatCell(0.01, 0.0).level
        (0, 5)
        """
        if self.value is None:
            return HATCHED
        if self.margin <= 0:
            return 0 if self.value <= 0 else len(LEVELS)
        ratio = self.value / self.margin
        return next((index for index, bound in enumerate(LEVELS) if ratio <= bound), len(LEVELS))


def heat_row(cells: Mapping[float, HeatCell], starts: Sequence[float]) -> str:
    """The SVG of one row; a window without a cell is left empty. It scales with its place; cells are 1 wide.

    It is hidden from screen readers: the row has its name, its last value and its verdict as text.
    """
    levels = [None if (cell := cells.get(start)) is None else cell.level for start in starts]
    paths: dict[int, list[str]] = {}
    hatched = []
    for level, run in groupby(enumerate(levels), key=lambda pair: pair[1]):
        (first, _), *more = run
        wide = 1 + len(more)
        if level == HATCHED:
            place, share = 100 * first / len(starts), 100 * wide / len(starts)
            hatched.append(f'<rect x="{place:.5g}%" width="{share:.5g}%" height="{HEIGHT}"/>')
        elif level is not None:
            paths.setdefault(level, []).append(f"M{first} .5h{wide}")
    drawn = "".join(f'<path class="h{level}" d="{"".join(parts)}"/>' for level, parts in sorted(paths.items()))
    box = f'viewBox="0 0 {max(1, len(starts))} 1" preserveAspectRatio="none"'
    over = f'<svg class="over" aria-hidden="true" height="{HEIGHT}">{"".join(hatched)}</svg>' if hatched else ""
    return f'<svg class="heat" aria-hidden="true" {box}>{drawn}</svg>{over}'


def legend_items() -> list[tuple[int, str]]:
    """Level and text of each colour.

    >>> legend_items()[0], legend_items()[-1]
    ((0, 'up to 25 % of the margin'), (6, 'not judged'))
    """
    texts = [f"up to {formatting.share(bound)} of the margin" for bound in LEVELS]
    return [*enumerate([*texts, f"beyond {formatting.share(LEVELS[-1])}", "not judged"])]
