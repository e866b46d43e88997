"""The staircase of the Pareto front, for any points."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlflowkit.report.front_views import staircase

POINTS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=30)


@given(points=POINTS, lower=st.booleans())
def test_every_point_is_matched_by_one_of_the_stairs_and_no_stair_by_another(
    points: list[tuple[int, int]], lower: bool
) -> None:
    stairs = staircase(points, lower=lower)
    sign = 1 if lower else -1

    def matches(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] <= other[0] and sign * one[1] <= sign * other[1]

    assert set(stairs) <= set(points)
    assert all(any(matches(stair, point) for stair in stairs) for point in points)
    assert not any(one != other and matches(one, other) for one in stairs for other in stairs)
    assert stairs == sorted(stairs)
