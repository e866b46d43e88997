"""The Pareto picture, for any points: its staircase, and the numbers beside the marks."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from mlflowkit.report.run.pareto_views import front, staircase

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


@given(points=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=2, max_size=30))
def test_every_mark_has_its_number_once_beside_it_or_beside_its_neighbours(points: list[tuple[int, int]]) -> None:
    rows = [
        {"name": f"c{x}", "status": "ok", "p99_us": x, "interval": (x, 100 * x), "metric": {"name": "auc", "value": y}}
        for x, y in points
    ]
    figure = front(rows, "latency_p99", 0.005)
    assert figure is not None
    words = re.findall(r"</?circle[^>]*/><text[^>]*>([^<]*)</text>", str(figure["svg"]))
    spans = [part.split("–") for word in words for part in word.split(", ") if part]
    numbers = [number for span in spans for number in range(int(span[0]), int(span[-1]) + 1)]
    assert sorted(numbers) == list(range(1, len(rows) + 1))
