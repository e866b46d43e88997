"""The replay of recipes/fraud.yaml: what is sent, what is told later and when, which durations the recipe gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.recipe_programs import recipe_program

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def replay() -> Iterator[Any]:
    """The program as a module."""
    with recipe_program("drive_fraud") as program:
        yield program


def test_a_day_is_a_sample_that_is_sent_evenly_and_has_no_answer_in_it(replay: Any) -> None:
    plan = replay.Plan(rows=300)
    items = replay.transactions_of(4, plan)
    assert len({item.request.id for item in items}) == 300
    assert [item.at for item in items] == pytest.approx([4 + number / 300 for number in range(300)])
    row = json.loads(items[0].request.body)["rows"][0]
    assert set(row) == set(replay.fraud.FEATURES)
    assert {item.outcome for item in items} <= {"genuine", "fraud"}
    assert items == replay.transactions_of(4, plan)


def test_missing_values_are_sent_as_null(replay: Any) -> None:
    plan = replay.Plan(rows=300, scenario="nulls", onset=0)
    ages = [json.loads(item.request.body)["rows"][0]["device_age_days"] for item in replay.transactions_of(4, plan)]
    assert 90 < ages.count(None) < 180


def test_outcomes_are_posted_when_they_are_due_once_and_never_where_never(
    replay: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    posted: list[dict[str, str]] = []
    monkeypatch.setattr(replay, "call", lambda url, body: posted.extend(json.loads(body)["feedback"]))
    items = [item for day in range(3) for item in replay.transactions_of(day, replay.Plan(rows=200))]
    labels = replay.Labels("http://service")
    for item in items:
        labels.expect(item)
    counts = [labels.post_due(day) for day in (1, 2, 3, 400, 500)]
    known = [item for item in items if item.due != float("inf")]
    assert counts[0] < counts[1] < counts[2]
    assert counts[4] == 0
    assert sum(counts) == len(posted) == len(known)
    assert 0.75 < len(known) / len(items) < 0.95
    outcome = {item.request.id: item.outcome for item in items}
    assert all(outcome[label["id"]] == label["label"] for label in posted)


def test_recipe_gets_durations_of_the_replay_and_is_valid_with_them(replay: Any, tmp_path: Path) -> None:
    from mlflowkit.recipe.check import load

    calendar = tmp_path / "calendar.json"
    replay.write_calendar(calendar, replay.Plan(), 0)
    recipe = load(RECIPES / "fraud.yaml", replay.overrides(replay.Plan(), calendar))
    assert recipe is not None
    assert "monitor.window=5s" in replay.overrides(replay.Plan(), calendar)
    assert json.loads(calendar.read_text())["scenario"] == "ring"


def test_command_line_says_what_is_replayed(replay: Any, tmp_path: Path) -> None:
    plan, state, more = replay.parse(
        ["--days", "9", "--day", "7s", "--scenario", "cents", "--state", str(tmp_path), "a=1"]
    )
    assert (plan.days, plan.day_seconds, plan.scenario, state, more) == (9, 7.0, "cents", tmp_path, ["a=1"])
    with pytest.raises(SystemExit):
        replay.parse(["--scenario", "storm"])
