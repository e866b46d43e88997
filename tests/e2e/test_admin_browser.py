"""The admin page in a real browser, over a state folder as a rollout leaves it; its script runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflowkit.report.rollout.rollout_page import admin_listener
from mlflowkit.rollout.policy import PolicyCommand
from tests.support.browser import CONTRAST, FACTS, WANTED, Browser
from tests.support.live_pages import admin_endpoint, online_browser, show
from tests.support.rollout_world import RolloutWorld

pytestmark = WANTED

ATTACK = "</script><script>window.pwned=true</script><img src=x onerror='window.pwned=true'>\"><b onclick=alert(1)>"
SECTIONS = ["now", "arms", "evidence", "shadow", "incidents", "webhooks"]
PICTURES = "[...document.querySelectorAll('#{} svg')].map(one => one.getAttribute('aria-label'))"


class Site:
    """The page of a state folder with a rollout that runs, one that was turned down, and a service without any."""

    def __init__(self, state: Path) -> None:
        rows = [{"grade": "G", "amount": 12_000 + number, "purpose": ATTACK, ATTACK: number} for number in range(3)]
        self.running = RolloutWorld(state, "lending").controlled().begin().run(250).disagree(rows)
        self.failed = RolloutWorld(state, "fraud", worse=0.06).begin().run(250).disagree(rows)
        RolloutWorld(state, "idle")
        self.state = state

    def url(self, service: str) -> str:
        """The page of a service, once the listener said where it is."""
        return admin_endpoint(self.state, service)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("admin"))
    with admin_listener(site.state):
        yield site


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with online_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("service", ["lending", "fraud", "idle"])
def test_page_lays_out_with_nothing_from_elsewhere_and_no_complaint(
    browser: Browser, site: Site, service: str, width: int
) -> None:
    show(browser, site.url(service), width=width)
    facts = browser.evaluate(FACTS)
    origin = site.url(service).partition("/services")[0]
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith(origin)] == []
    assert facts["overflow"] <= 0
    assert list(facts["sections"]) == SECTIONS
    assert min(facts["sections"].values()) > 40
    assert facts["empty"] == []
    assert facts["drawings"] > (0 if service == "idle" else 12)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("service", ["lending", "fraud"])
def test_every_text_stands_out_in_both_colour_schemes(browser: Browser, site: Site, service: str, scheme: str) -> None:
    show(browser, site.url(service), scheme=scheme)
    red = int(browser.evaluate(FACTS)["background"].removeprefix("rgb(").split(",")[0])
    assert red > 200 if scheme == "light" else red < 60
    assert browser.evaluate(CONTRAST) == []


def test_page_says_who_answers_and_what_the_rollout_waits_for(browser: Browser, site: Site) -> None:
    show(browser, site.url("lending"))
    text = browser.evaluate("document.querySelector('#now').innerText")
    assert "20261101-aa11" in text
    assert "20261123-bb22" in text
    assert "Waiting for" in text
    assert "deadline in" in text
    assert browser.evaluate("document.querySelector('[aria-current=step]').innerText").startswith("25 %")
    assert browser.evaluate(PICTURES.format("now"))[0] == "Traffic: champion 75 %, challenger 25 %"
    assert any("0 %, 5 %, 25 %" in label for label in browser.evaluate(PICTURES.format("arms")))


def test_page_draws_sequential_evidence_with_its_boundary_and_the_estimate_with_its_limit(
    browser: Browser, site: Site
) -> None:
    show(browser, site.url("fraud"))
    labels = browser.evaluate(PICTURES.format("evidence"))
    assert any(label.startswith("Sequential evidence of error_rate against its boundary") for label in labels)
    assert any(
        label.startswith("error_rate, candidate minus champion, with its confidence sequence") for label in labels
    )
    boundary, line, limit = browser.evaluate("""(() => {
      const y = path => path.getPointAtLength(path.getTotalLength()).y;
      const [evidence, estimate] = document.querySelectorAll('#evidence figure svg');
      const harm = evidence.querySelector('.line.s3');
      return [y(evidence.querySelector('.level')), y(harm), estimate.querySelectorAll('.level, .band, .line').length];
    })()""")
    assert line <= boundary  # it FAILED: the line has reached the boundary, and y grows downwards
    assert limit == 3
    assert "FAILED" in browser.evaluate("document.querySelector('#evidence tbody').innerText")


def test_page_shows_disagreements_and_incidents_and_what_comes_from_data_stays_text(
    browser: Browser, site: Site
) -> None:
    show(browser, site.url("fraud"))
    shadow = browser.evaluate("document.querySelector('#shadow').innerText")
    assert "grade=G" in shadow
    assert "good, 80 %" in shadow
    assert "bad, 51 %" in shadow
    assert "<script>window.pwned=true" in shadow
    incidents = browser.evaluate("document.querySelector('#incidents').innerText")
    assert "rolled back" in incidents
    assert "error_rate" in incidents
    assert browser.evaluate("[window.pwned, document.images.length, document.scripts.length]") == [None, 0, 1]
    assert browser.complaints() == []


def test_policy_of_the_page_keeps_a_script_that_got_in_from_running_and_from_sending(
    browser: Browser, site: Site
) -> None:
    show(browser, site.url("idle"))
    refused = browser.evaluate("""[
      () => { document.body.innerHTML += '<img src=x>'; },
      () => { document.createElement('button').setAttribute('onclick', 'window.pwned = true'); },
      () => { document.createElement('script').textContent = 'window.pwned = true'; },
    ].map(attempt => { try { attempt(); return ''; } catch (error) { return error.message; } })""")
    assert all("This document requires" in message for message in refused), refused
    browser.evaluate(
        "document.body.append(Object.assign(document.createElement('img'), {src: 'http://localhost:9/x'}))"
    )
    browser.evaluate("fetch('http://localhost:9/y').catch(() => 0)")
    browser.until("true")
    blocked = " ".join(one for one in browser.complaints() if "Content Security Policy" in one)
    assert "localhost:9/x" in blocked
    assert "localhost:9/y" in blocked


def test_change_shows_up_without_a_reload_and_leaves_what_a_reader_opened(browser: Browser, site: Site) -> None:
    world = RolloutWorld(site.state, "moving", begun=site.running.begun)
    show(browser, site.url("moving"))
    browser.evaluate("window.mine = true")
    assert "No rollout has run yet" in browser.evaluate("document.querySelector('#now').innerText")
    world.begin().run(40)
    browser.until("document.querySelector('#now').innerText.includes('20261123-bb22')")
    world.look((), PolicyCommand("rollback", "looked wrong"))
    world.look(())
    browser.until("document.querySelector('#incidents').innerText.includes('looked wrong')")
    browser.evaluate("document.querySelector('details.incident').open = false")
    world.begun = world.now
    world.begin().run(20)
    browser.until("document.querySelector('#now [aria-current=step]') !== null")
    assert browser.evaluate("document.querySelector('details.incident').open") is False
    assert browser.evaluate("window.mine") is True


def test_button_says_what_it_will_do_and_leaves_the_command_that_was_confirmed(browser: Browser, site: Site) -> None:
    show(browser, site.url("lending"))
    commands = site.running.files.folder / "commands"
    press = "[...document.querySelectorAll('#now button')].find(one => one.textContent === '{}').click()"
    browser.evaluate(press.format("Roll back"))
    consequence = browser.until("document.getElementById('confirm').open && "
                                "document.getElementById('confirm-consequence').textContent")  # fmt: skip
    assert "All traffic goes back to version 20261101-aa11" in consequence
    browser.evaluate("document.querySelector('#confirm button.plain').click()")
    browser.until("!document.getElementById('confirm').open")
    assert not commands.exists()
    browser.evaluate(press.format("Pause"))
    browser.evaluate("document.getElementById('confirm-reason').value = 'lunch'")
    browser.evaluate("document.getElementById('confirm-do').click()")
    browser.until("!document.getElementById('confirm').open")
    [left] = list(commands.iterdir())
    told = json.loads(left.read_bytes())
    assert (told["command"], told["reason"]) == ("pause", "lunch")
    assert browser.complaints() == []


def test_refused_command_says_why_and_keeps_the_dialog(browser: Browser, site: Site) -> None:
    world = RolloutWorld(site.state, "ending").begin().run(10)
    show(browser, site.url("ending"))
    browser.evaluate("document.querySelector('#now button.bad').click()")
    saved = world.files.folder / "rollout.json"
    before = saved.read_bytes()
    world.look((), PolicyCommand("abort"))
    world.look(())
    browser.evaluate("document.getElementById('confirm-do').click()")
    browser.until("!document.getElementById('confirm-problem').hidden")
    assert "no rollout" in browser.evaluate("document.getElementById('confirm-problem').textContent")
    assert browser.evaluate("document.getElementById('confirm').open") is True
    assert before != saved.read_bytes()


def test_every_drawing_and_table_is_named_for_those_who_do_not_see_it(browser: Browser, site: Site) -> None:
    show(browser, site.url("fraud"))
    unnamed = browser.evaluate(
        "[...document.querySelectorAll('svg')].filter(s => s.getAttribute('aria-hidden') !== 'true')"
        ".filter(s => !(s.getAttribute('role') === 'img' && s.getAttribute('aria-label'))).length"
    )
    headless = browser.evaluate(
        "[...document.querySelectorAll('table')].filter(t => !t.querySelector('thead th[scope=col]')).length"
    )
    assert (unnamed, headless) == (0, 0)


def test_first_page_leads_to_every_service(browser: Browser, site: Site) -> None:
    browser.open(site.url("idle").partition("/services")[0], width=390, scripts=True)
    assert browser.evaluate(FACTS)["overflow"] <= 0
    links = browser.evaluate("[...document.querySelectorAll('article a')].map(one => one.textContent)")
    assert {"lending", "fraud", "idle"} <= set(links)
    assert browser.complaints() == []
