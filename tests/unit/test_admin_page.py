"""Words, buttons and tables of the admin page, from views: what is said before it is done, and in every emptiness."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from mlflowkit.report.rollout import incident_views, rollout_charts
from mlflowkit.report.rollout.rollout_page import render_service, render_services
from mlflowkit.rollout.admin.snapshot import ServiceMonitor
from mlflowkit.rollout.admin.view_models import ExampleView, PointView, ServiceView
from mlflowkit.rollout.policy import PolicyCommand
from mlflowkit.service_state import version_history
from mlflowkit.service_state.records import write_json
from mlflowkit.values import RoutingTable, Variant
from tests.support.rollout_world import CHAMPION, RolloutWorld


def shown(world: RolloutWorld) -> ServiceView:
    view = ServiceMonitor(world.state).view(world.service)
    assert view is not None
    return view


def buttons(page: str) -> dict[str, tuple[str, dict[str, object]]]:
    """Consequence and body of each command's button, by its label."""
    matches = re.findall(r'data-body="([^"]*)" data-label="([^"]*)" data-consequence="([^"]*)"', page)
    return {unescape(label): (unescape(words), json.loads(unescape(body))) for body, label, words in matches}


def section(page: str, name: str) -> str:
    """The text of one section."""
    match = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    assert match is not None
    return unescape(re.sub(r"<[^>]+>", " ", match[0]))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> ServiceView:
    return shown(RolloutWorld(tmp_path_factory.mktemp("state")).controlled().begin().run(120))


def test_an_interval_of_a_few_requests_has_no_absurd_end(running: ServiceView) -> None:
    assert running.rollout is not None
    (ratio,) = [finding for finding in running.rollout.findings if finding.unit == "x"]
    early = replace(ratio, value=0.48, low=0.09, high=2.18e6, threshold=2.0)
    assert rollout_charts.interval_text(early, 1.0, "times") == "0.48 [0.09, ∞] times"
    assert rollout_charts.interval_text(replace(early, low=4e-7), 1.0, "times") == "0.48 [0, ∞] times"
    point = PointView(1.0, 30, 30, 0.0, 0.0, 0.48, 0.09, 2.18e6)
    drawn = rollout_charts.estimate(early, [point, replace(point, time=2.0)], 0.0, 1.0, "times")
    assert "0.09, ∞" in drawn["svg"]
    assert not re.search(r"2\.18|\de\+|0{5}", drawn["svg"]), drawn["svg"]


def test_every_command_says_what_it_will_do(running: ServiceView) -> None:
    labels = buttons(render_service(running))
    assert list(labels) == ["Next step", "Promote at once", "Pause", "Abort", "Roll back"]
    assert "25 % for version 20261123-bb22" in labels["Next step"][0]
    assert "Not yet passed: error_rate" in labels["Next step"][0]
    assert "version 20261101-aa11 leaves" in labels["Promote at once"][0]
    assert labels["Promote at once"][1] == {"full": True}
    assert "keeps its 5 % of the traffic" in labels["Pause"][0]
    assert "no cool-down" in labels["Abort"][0]
    assert "cools down" in labels["Roll back"][0]
    assert "mlkit rollout forget lending 20261123-bb22" in labels["Roll back"][0]


def test_paused_rollout_offers_to_resume_and_the_last_step_to_promote(tmp_path: Path) -> None:
    world = RolloutWorld(tmp_path).begin().run(10)
    world.look((), PolicyCommand("pause", "lunch"))
    assert list(buttons(render_service(shown(world))))[:3] == ["Next step", "Promote at once", "Resume"]
    view = shown(world)
    assert view.rollout is not None
    last = replace(view, rollout=replace(view.rollout, step=3, phase="awaiting_approval", commands=("promote",)))
    assert list(buttons(render_service(last))) == ["Promote"]
    assert "becomes the champion" in buttons(render_service(last))["Promote"][0]


def test_without_a_rollout_one_may_go_back_and_remove_a_shadow_that_stays(tmp_path: Path) -> None:
    world = RolloutWorld(tmp_path)
    assert buttons(render_service(shown(world))) == {}
    older = Variant("champion", "20261001-00ff", "c" * 64, "/bundles/c")
    version_history.record_champion(world.files, older, {}, 1.0)
    version_history.record_champion(world.files, CHAMPION, {}, 2.0)
    shadow = Variant("shadow-9", "9", "d" * 64, "/bundles/d", role="shadow", weight=0.0)
    world.serve(RoutingTable(world.service, 5, (CHAMPION, shadow)))
    labels = buttons(render_service(shown(world)))
    assert list(labels) == ["Roll back to 20261001-00ff", "Remove shadow-9"]
    assert labels["Remove shadow-9"][1] == {"variant": "shadow-9"}
    world.begin()
    assert "Remove shadow-9" not in buttons(render_service(shown(world)))


def test_each_section_that_has_nothing_says_so(tmp_path: Path) -> None:
    page = render_service(shown(RolloutWorld(tmp_path)))
    assert "No rollout has run yet" in section(page, "now")
    for name, words in {
        "arms": "No rollout has put a candidate",
        "evidence": "No rollout has evaluated a metric",
        "shadow": "No shadow has been compared",
        "incidents": "No rollout has been turned down",
        "webhooks": "No event was sent",
    }.items():
        assert words in section(page, name)


def test_rollout_that_nobody_controls_is_pointed_out(tmp_path: Path, running: ServiceView) -> None:
    assert "No controller runs" not in render_service(running)
    lost = replace(running, controller=replace(running.controller, alive=False))  # type: ignore[type-var]
    assert "No controller runs since" in section(render_service(lost), "now")
    never = replace(running, controller=None)
    assert "No controller runs: the rollout is stalled" in section(render_service(never), "now")
    assert "No controller runs" not in render_service(shown(RolloutWorld(tmp_path)))


def test_deliveries_of_webhooks_are_listed_newest_first(tmp_path: Path) -> None:
    world = RolloutWorld(tmp_path)
    delivery = {
        "id": "a",
        "event": "started",
        "url": "http://hook/x",
        "time": 1.0,
        "ok": True,
        "status": 204,
        "attempts": 1,
    }
    two = {
        **delivery,
        "id": "b",
        "event": "rolled_back",
        "ok": False,
        "status": 0,
        "error": "refused <b>",
        "attempts": 8,
    }
    write_json(world.files.folder / "webhooks.json", [delivery, two])
    write_json(world.files.folder / "webhooks" / "c-0.json", {})
    page = render_service(shown(world))
    text = section(page, "webhooks")
    assert text.index("rolled_back") < text.index("started")
    assert "refused <b>" in text
    assert "refused <b>" not in page
    assert "1 waiting for delivery" in text


def test_damaged_file_is_named_on_the_page(tmp_path: Path) -> None:
    world = RolloutWorld(tmp_path).begin()
    (world.files.folder / "rollout.json").write_text("{")
    page = render_service(shown(world))
    assert "rollout.json is damaged" in page
    assert "Who answers" in page


@pytest.mark.parametrize("odd", ["{", "7", "[]", "{}", '{"examples": 5}'])
def test_disagreements_that_are_damaged_keep_no_incident_from_being_recorded(tmp_path: Path, odd: str) -> None:
    world = RolloutWorld(tmp_path).begin()
    path = world.files.folder / "disagreements" / f"{world.candidate.name}.json"
    path.parent.mkdir()
    path.write_text(odd)
    world.look((), PolicyCommand("rollback", "smells"))
    world.look(())
    view = shown(world)
    assert [(incident.reason, incident.examples) for incident in view.incidents] == [("smells", ())]
    assert any(path.name in problem for problem in view.problems)


def test_hostile_words_in_every_file_stay_words(tmp_path: Path) -> None:
    hostile = "\"><script>alert('x')</script>"
    bad = replace(CHAMPION, version=hostile)
    world = RolloutWorld(tmp_path, champion=bad).begin().run(20)
    world.disagree([{"grade": hostile, hostile: hostile}])
    world.look((), PolicyCommand("rollback", hostile))
    world.look(())
    page = render_service(shown(world))
    assert "<script>alert" not in page
    assert page.count("<script") == 1
    assert page.count("&lt;script&gt;alert") > 5
    assert "<script>alert" not in render_services([shown(world)])


def example(**changes: object) -> ExampleView:
    default = ExampleView(0.0, "r", 0, ("b=2",), {"a": 1, "b": 2}, {"prediction": 1.0}, {"prediction": 2.0}, None)
    return replace(default, **changes)  # type: ignore[arg-type]


def test_examples_show_sliced_columns_first_and_no_more_than_fit() -> None:
    table = incident_views.disagreements([example(), example(inputs={"a": 3})], "c")
    assert table is not None
    assert table["columns"] == ["b", "a"]
    assert [row["inputs"] for row in table["rows"]] == [["2", "1"], ["–", "3"]]
    many = {f"c{number}": number for number in range(100)}
    wide = incident_views.disagreements([example(inputs=many, slices=())], "c")
    assert wide is not None
    assert (len(wide["columns"]), wide["left_out"]) == (incident_views.MAX_COLUMNS, 100 - incident_views.MAX_COLUMNS)
    assert incident_views.disagreements([], "c") is None
