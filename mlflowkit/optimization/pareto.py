"""The Pareto front of measured candidates: those that no other is significantly better than.

Every quantity is an interval and smaller is better. A candidate is dominated where another is no larger at either end
of every interval and its whole interval lies below on at least one. This is a strict partial order, so the front is
never empty and does not depend on the order of the candidates; where intervals overlap, both stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Bounds = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Point:
    """A candidate's interval of each quantity, smaller being better; all points of a front have the same quantities.

    >>> Point({"latency": (1.0, 1.1), "size": (4.0, 4.0)}).dominates(Point({"latency": (1.2, 1.3), "size": (4.0, 4.0)}))
    True
    """

    bounds: Mapping[str, Bounds]

    def dominates(self, other: Point) -> bool:
        """Whether this point is significantly better in some quantity, and worse at neither end in any."""
        pairs = [(mine, other.bounds[name]) for name, mine in self.bounds.items()]
        no_worse = all(mine[0] <= theirs[0] and mine[1] <= theirs[1] for mine, theirs in pairs)
        return no_worse and any(mine[1] < theirs[0] for mine, theirs in pairs)


def pareto_front(points: Mapping[str, Point]) -> list[str]:
    """Names of the points that no other dominates, in their order.

    >>> fast, small = Point({"ms": (1, 1), "mb": (4, 4)}), Point({"ms": (2, 2), "mb": (1, 1)})
    >>> pareto_front({"fast": fast, "small": small, "neither": Point({"ms": (3, 3), "mb": (4, 4)})})
    ['fast', 'small']
    """
    return [name for name, point in points.items() if not any(other.dominates(point) for other in points.values())]
