"""Windows of synthetic traffic: columns of numbers, of which one may shift by a given distance. Seeded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.counts import ProfileCounts, WindowCounts
from mlflowkit.judging.shift.reference import ColumnReference, Reference

if TYPE_CHECKING:
    import numpy as np

CELLS = 20
"""Inner cells of a column, of equal share."""
REFERENCE_ROWS = 7000
IMPORTANCE = 0.5
"""Importance of the column that shifts."""
SHIFTED = "column 1"


@dataclass(frozen=True, slots=True)
class SyntheticVersion:
    """Traffic of one version.

    rows           answered rows a window, in requests of one row
    design_effect  how many rows of a window count as one: days differ by themselves
    onset          number of the first window in which `SHIFTED` is shifted by ``distance`` (Kolmogorov and Smirnov's)
    """

    rows: int
    seconds: float
    columns: int = 20
    design_effect: float = 1.0
    distance: float = 0.0
    onset: int = 0
    windows: int = 60


def synthetic_reference(columns: int, seed: int = 0) -> Reference:
    """The reference that the traffic is counted in."""
    import numpy as np

    random = np.random.default_rng([seed, 1])
    cells = Cells("number", edges=tuple(index / CELLS for index in range(CELLS + 1)))
    rest = (1 - IMPORTANCE) / max(1, columns - 1)
    references = {}
    for number in range(1, columns + 1):
        counts = random.multinomial(REFERENCE_ROWS, np.full(CELLS, 1 / CELLS))
        importance = IMPORTANCE if number == 1 else rest
        references[f"column {number}"] = ColumnReference(cells, (0, *map(int, counts), 0, 0), importance=importance)
    return Reference(references)


def synthetic_windows(traffic: SyntheticVersion, seed: int) -> Iterator[WindowCounts]:
    """The windows of a version, oldest first."""
    import numpy as np

    random = np.random.default_rng([seed, 2])
    even = np.full(CELLS, 1 / CELLS)
    for number in range(traffic.windows):
        shifted = traffic.distance > 0 and number >= traffic.onset
        counts = {}
        for column in range(1, traffic.columns + 1):
            shares = shift_shares(even, traffic.distance) if shifted and column == 1 else even
            counts[f"column {column}"] = (0, *_draw(random, traffic, shares), 0, 0)
        profile = ProfileCounts(traffic.rows, traffic.rows, traffic.rows, counts)
        yield WindowCounts("1", number * traffic.seconds, traffic.seconds, profile, answered=traffic.rows)


def shift_shares(shares: np.ndarray, distance: float) -> np.ndarray:
    """Shares of ordered cells at a distance of Kolmogorov and Smirnov, at most half: mass moves to the upper half.

    >>> import numpy as np
    >>> shift_shares(np.array([0.25, 0.25, 0.25, 0.25]), 0.2).round(2).tolist()
    [0.15, 0.15, 0.35, 0.35]
    """
    import numpy as np

    half = len(shares) // 2
    lower = float(shares[:half].sum())
    factors = np.where(np.arange(len(shares)) < half, 1 - distance / lower, 1 + distance / (1 - lower))
    moved: np.ndarray = shares * factors
    return moved


def _draw(random: np.random.Generator, traffic: SyntheticVersion, shares: np.ndarray) -> list[int]:
    """Counts of a window: multinomial, with shares that differ by window where the design effect is above 1."""
    if traffic.design_effect > 1:
        concentration = max((traffic.rows - 1) / (traffic.design_effect - 1) - 1, 1e-3)
        shares = random.dirichlet(shares * concentration)
    counts: list[int] = random.multinomial(traffic.rows, shares).tolist()
    return counts
