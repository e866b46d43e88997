"""Charts as SVG text: what is drawn where."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from mlflowkit.report import charts


def rectangle(svg: str) -> tuple[float, float]:
    """Left edge and width of the tinted side, in percent."""
    found = re.search(r'<rect class="allowed" x="([\d.]+)%" y="0" width="([\d.]+)%"', svg)
    assert found is not None
    return float(found[1]), float(found[2])


def test_allowed_side_lies_above_a_minimum_and_below_a_maximum() -> None:
    above = charts.forest_row(charts.Bound(0.69, 0.74, 0.79, 0.70, "min", "INCONCLUSIVE"), (0.6, 0.8), "")
    below = charts.forest_row(charts.Bound(0.9, 1.0, 1.2, 5.0, "max", "PASSED"), (0.0, 10.0), "")
    assert rectangle(above) == (50.0, 50.0)
    assert rectangle(below) == (0.0, 50.0)


def test_forest_row_places_interval_value_and_threshold_on_one_scale() -> None:
    svg = charts.forest_row(charts.Bound(0.2, 0.5, 0.6, 0.1, "min", "PASSED"), (0.0, 1.0), "gate")
    assert 'class="threshold" x1="10%" x2="10%"' in svg
    assert 'class="interval" x1="20%" x2="60%"' in svg
    assert 'circle cx="50%"' in svg


def test_what_is_not_finite_is_left_out_and_the_rest_is_drawn() -> None:
    bound = charts.Bound(math.nan, 0.5, math.nan, 0.4)
    svg = charts.forest_row(bound, charts.forest_domain([bound]), "no interval")
    assert "interval" not in svg.replace("no interval", "")
    assert svg.count("<circle") == 1
    assert "nan" not in svg


def test_line_breaks_where_a_value_is_missing() -> None:
    line = charts.Line("loss", [1, 2, 3, 4], [1.0, math.nan, 3.0, 4.0])
    path = line.draw(charts.Scale(1, 4, 0, 300), charts.Scale(0, 4, 100, 0))
    assert 'd="M0 75M200 25L300 0"' in path


def test_long_line_is_thinned_and_keeps_its_ends() -> None:
    count = 100_000
    line = charts.Line("", list(range(count)), [float(value) for value in range(count)])
    path = line.draw(charts.Scale(0, count - 1, 0, 400), charts.Scale(0, count - 1, 0, 200))
    assert path.count("L") <= charts.MAX_POINTS
    assert 'd="M0 0L' in path
    assert path.endswith('L400 200"/>')


def test_histogram_bars_stand_on_zero_in_their_bins() -> None:
    bars = charts.Bars("", [0.0, 1.0, 2.0], [2.0, 0.0])
    assert 'd="M0 100V0H50V100z"' in bars.draw(charts.Scale(0, 2, 0, 100), charts.Scale(0, 2, 100, 0))


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 1.0, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (-0.03, 0.01, ["-0.03", "-0.02", "-0.01", "0", "0.01"]),
        (0.0, 4_200_000.0, ["0", "1M", "2M", "3M", "4M"]),
        (5.0, 5.0, ["5"]),
    ],
)
def test_ticks_are_round(low: float, high: float, labels: list[str]) -> None:
    assert [label for _, label in charts.ticks(low, high)] == labels


def test_words_are_escaped_wherever_they_go() -> None:
    evil = '<script>"&'
    layer = charts.Dots(evil, [0.5], [0.5], [0.4], [0.6], [evil])
    svg = charts.plot(
        [layer, charts.Rule(evil, 0.1)], label=evil, x_label=evil, y_label=evil, x_domain=(0, 1), y_domain=(0, 1)
    )
    for text in (svg, charts.forest_row(charts.Bound(0, 1, 2), (0, 2), evil), charts.spark([1, 2], evil)):
        ElementTree.fromstring(text)
        assert "<script" not in text
    assert "<script" not in charts.legend([layer, layer])


def test_dots_have_their_interval_and_their_words() -> None:
    svg = charts.Dots("", [0.5], [0.4], [0.2], [0.8], ["12 rows"]).draw(
        charts.Scale(0, 1, 0, 100), charts.Scale(0, 1, 100, 0)
    )
    assert '<title>12 rows</title><path class="whisker" d="M50 80V20"/><circle cx="50" cy="60"' in svg


def test_sparkline_is_as_tall_as_its_tallest_bar_and_shows_rare_values() -> None:
    path = charts.spark([1000.0, 1.0, 0.0], "x")
    assert "V1h" in path
    assert "V27h" in path
    assert path.count("z") == 2


def test_stepped_line_holds_its_value_until_the_next_point() -> None:
    line = charts.Line("weight", [0, 2, 4], [0.0, 1.0, 0.5], stepped=True)
    assert 'd="M0 100H200V0H400V50"' in line.draw(charts.Scale(0, 4, 0, 400), charts.Scale(0, 1, 100, 0))


def test_band_ends_at_the_edge_of_the_plot_and_leaves_out_what_is_missing() -> None:
    band = charts.Band("interval", [0, 1, 2, 3], [-9.0, 0.0, math.nan, 0.2], [9.0, 0.5, 1.0, 0.4])
    path = band.draw(charts.Scale(0, 4, 0, 400), charts.Scale(0, 1, 100, 0))
    assert 'd="M0 0L100 50L100 100L0 100zM300 60L300 80z"' in path


def test_level_is_named_within_the_plot_and_in_no_legend() -> None:
    level = charts.Level("margin <1>", 1.0, "bad")
    text = level.draw(charts.Scale(0, 1, 60, 420), charts.Scale(0, 1, 212, 24))
    assert 'class="level bad" d="M60 24H420"' in text
    assert 'y="37"' in text
    assert "margin &lt;1&gt;" in text
    assert charts.legend([level, charts.Line("a", [0], [0]), charts.Line("b", [0], [0])]).count("<li>") == 2
