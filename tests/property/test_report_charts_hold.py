"""Whatever the numbers and the words, charts are well-formed and stay within their frame."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.report import charts

numbers = st.floats(allow_nan=True, allow_infinity=True)
finite = st.floats(min_value=-1e12, max_value=1e12)
words = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30)


@given(st.lists(finite, min_size=4, max_size=4), st.sampled_from(["min", "max"]), words)
@settings(max_examples=150, deadline=None)
def test_forest_row_stays_within_its_cell(values: list[float], direction: str, label: str) -> None:
    low, value, high = sorted(values[:3])
    bound = charts.Bound(low, value, high, values[3], direction, "PASSED")
    domain = charts.forest_domain([bound])
    svg = charts.forest_row(bound, domain, label)
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == label
    places = [float(place) for place in re.findall(r'"(-?[\d.]+)%"', svg.replace(f'aria-label="{label}"', ""))]
    assert all(-0.1 <= place <= 100.1 for place in places)
    ElementTree.fromstring(charts.forest_axis(domain))


@given(finite, finite)
@settings(max_examples=200, deadline=None)
def test_ticks_rise_within_the_domain(one: float, other: float) -> None:
    low, high = charts.padded([one, other])
    places = [place for place, _ in charts.ticks(low, high)]
    assert 1 <= len(places) <= 12
    slack = (high - low) * 1e-6
    assert all(low - slack <= place <= high + slack for place in places)
    assert all(left < right for left, right in pairwise(places))


@given(st.lists(st.tuples(numbers, numbers), max_size=40), words, words)
@settings(max_examples=150, deadline=None)
def test_plot_of_any_numbers_is_well_formed_and_has_only_finite_places(
    points: list[tuple[float, float]], name: str, label: str
) -> None:
    x, y = [point[0] for point in points], [point[1] for point in points]
    line = charts.Line(name, x, y)
    stepped = charts.Line(name, x, y, stepped=True)
    svg = charts.plot(
        [line, charts.Cloud(name, x, y), stepped, charts.Band(name, x, y, x), charts.Level(name, charts.padded(y)[0])],
        label=label,
        x_label=name,
        y_label=name,
        x_domain=charts.padded(x),
        y_domain=charts.padded(y),
    )
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == label
    paths = " ".join(node.get("d", "") for node in root.iter())
    assert "nan" not in paths
    assert "inf" not in paths


@given(st.lists(st.floats(min_value=0, max_value=1e9), max_size=60), words)
@settings(max_examples=100, deadline=None)
def test_sparkline_is_well_formed(heights: list[float], label: str) -> None:
    ElementTree.fromstring(charts.spark(heights, label))
