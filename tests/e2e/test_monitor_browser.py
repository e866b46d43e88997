"""The monitor's page in a real browser: served by the admin server with its script, and alone in one file without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.monitoring.monitor_view import VIEW
from mlflowkit.report.monitor import monitor_site
from mlflowkit.report.rollout.rollout_page import admin_listener
from tests.support.browser import CONTRAST, FACTS, WANTED, Browser
from tests.support.live_pages import admin_endpoint, online_browser, show
from tests.support.monitored import example, monitor
from tests.support.rollout_world import RolloutWorld

pytestmark = WANTED

ATTACK = "</script><script>window.pwned=true</script><img src=x onerror='window.pwned=true'>\"><b onclick=alert(1)>"
SECTIONS = ["alerts", "drift", "detail", "performance", "retrain", "decisions", "blind", "windows"]
STATES = ("drifting", "healthy", "quiet", "wide", "hostile", "young")


def spoiled(value: Any) -> Any:
    """The record with an attack and a long name after each of its free texts."""
    known = ("FAILED", "PASSED", "INCONCLUSIVE", "firing", "acked", "silenced", "resolved", "distribution")
    if isinstance(value, str):
        return value if value in known else value + ATTACK + "long_name_" * 12
    if isinstance(value, list):
        return [spoiled(item) for item in value]
    return {key: spoiled(item) for key, item in value.items()} if isinstance(value, dict) else value


def views() -> dict[str, dict[str, Any]]:
    """A record for each of STATES."""
    base, quiet, wide, young = example(), example(), example(), example()
    healthy = {**base, "state": "HEALTHY", "alerts": [], "blind": [], "message": "all within their margins"}
    healthy["columns"] = [{**column, "verdict": "PASSED", "value": 0.01} for column in base["columns"]]
    quiet["state"] = "NO_DATA"
    for column in quiet["columns"]:
        column |= {"value": None, "low": None, "high": None, "verdict": "INCONCLUSIVE"}
        column["history"] = [[start, None, 0.0] for start, _, _ in column["history"]]
    first = {**wide["columns"][0], "segment": ""}
    wide["columns"] = [{**first, "column": f"sensor_{number:03d}"} for number in range(200)]
    young = {"state": "LEARNING", "since": base["since"], "version": base["version"]}
    hostile = spoiled(base) | {"version": base["version"]}
    return dict(zip(STATES, (base, healthy, quiet, wide, hostile, young), strict=True))


class Site:
    """The services of STATES in one state folder, and one that is not monitored."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.worlds = {name: monitor(state, name, view) for name, view in views().items()}
        RolloutWorld(state, "idle")

    def url(self, service: str) -> str:
        return f"{admin_endpoint(self.state, service)}/monitor"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("monitored"))
    with admin_listener(site.state):
        yield site


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with online_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("service", STATES)
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
    assert facts["pwned"] is False
    assert browser.evaluate("document.images.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("service", ["drifting", "quiet"])
def test_every_text_stands_out_in_both_colour_schemes(browser: Browser, site: Site, service: str, scheme: str) -> None:
    show(browser, site.url(service), scheme=scheme)
    assert browser.evaluate(CONTRAST) == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("service", STATES)
def test_one_file_lays_out_without_scripts_and_loads_nothing(
    browser: Browser, site: Site, service: str, width: int, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text(monitor_site.render_file(site.worlds[service].files))
    assert page.stat().st_size < 300_000
    browser.open(page, width=width)
    facts = browser.evaluate(FACTS)
    assert browser.complaints() == []
    assert facts["fetched"] == []
    assert facts["scripts"] == 0
    assert facts["overflow"] <= 0
    assert sorted(facts["sections"]) == sorted(SECTIONS)
    assert facts["empty"] == []


def test_row_of_one_file_leads_to_its_histograms(browser: Browser, site: Site, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(monitor_site.render_file(site.worlds["drifting"].files))
    browser.open(page, width=1280)
    target = browser.evaluate("document.querySelector('.heats li > a').getAttribute('href')")
    detail = browser.evaluate(f"document.querySelector('{target}').innerText")
    assert "int_rate" in detail
    assert "10,000 rows of the reference, 2,000 live rows" in detail


def click(browser: Browser, x: float, y: float) -> None:
    for kind in ("mousePressed", "mouseReleased"):
        browser.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def test_pointer_over_a_cell_says_its_numbers_and_a_click_opens_its_histograms(browser: Browser, site: Site) -> None:
    show(browser, site.url("drifting") + "?column=annual_inc")
    row = "[...document.querySelectorAll('.heats li > a')].find(a => a.innerText.startsWith('int_rate'))"
    place = f"(() => {{ const row = {row}; row.scrollIntoView({{block: 'center'}}); "
    place += "const box = row.querySelector('.cells')"
    box = browser.evaluate(place + ".getBoundingClientRect(); return [box.left, box.top, box.width, box.height]; })()")
    windows = len(example()["windows"])
    x, y = box[0] + box[2] * (windows - 0.5) / windows, box[1] + box[3] / 2
    browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    browser.until("document.getElementById('readout').textContent.includes('2025-12-12 16:00:00 UTC')")
    assert "0.23 of allowed 0.1" in browser.evaluate("document.getElementById('readout').textContent")
    click(browser, x, y)
    browser.until("location.search.includes('column=int_rate') && document.querySelector('table.cells') !== null")
    detail = browser.evaluate("document.querySelector('#detail').innerText")
    assert "window of 24 h 00 min from 2025-12-12 16:00:00 UTC" in detail
    assert "10,000 rows of the reference, 2,000 live rows" in detail
    browser.until("document.querySelector('#live.on') !== null")
    x = box[0] + box[2] * (windows - 1.5) / windows
    box = browser.evaluate(place + ".getBoundingClientRect(); return [box.left, box.top, box.width, box.height]; })()")
    click(browser, x, box[1] + box[3] / 2)
    browser.until("document.querySelector('#detail')?.innerText.includes('from 2025-12-11 16:00:00 UTC')")
    assert browser.complaints() == []


def test_row_opens_from_the_keyboard(browser: Browser, site: Site) -> None:
    show(browser, site.url("drifting") + "?column=annual_inc")
    browser.evaluate("document.querySelector('.heats li > a').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.ask("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    browser.until("location.search.includes('column=int_rate')")
    browser.until("document.querySelector('#detail')?.innerText.includes('2,000 live rows')")


def test_new_window_shows_up_without_a_reload(browser: Browser, site: Site) -> None:
    files = monitor(site.state, "moving", {**example(), "state": "HEALTHY", "message": "calm"}).files
    show(browser, site.url("moving") + "?column=annual_inc")
    browser.evaluate("window.mine = true")
    assert "healthy" in browser.evaluate("document.querySelector('#head').innerText")
    files.write_json(VIEW, {**example(), "service": "moving", "state": "SUSPECT", "message": "int_rate moves"})
    browser.until("document.querySelector('#head').innerText.includes('int_rate moves')")
    assert browser.evaluate("window.mine") is True
    assert "annual_inc" in browser.evaluate("document.querySelector('#detail').innerText")


def test_json_of_the_page_is_the_record_and_what_is_not_monitored_says_so(browser: Browser, site: Site) -> None:
    endpoint = site.url("drifting").replace("/services/", "/api/services/")
    show(browser, site.url("drifting"))
    browser.evaluate(f"fetch('{endpoint}').then(reply => reply.text()).then(text => {{ window.record = text; }})")
    record = json.loads(browser.until("window.record"))
    assert record["columns"] == example()["columns"]
    browser.open(site.url("idle"), width=390, scripts=True)
    assert "monitor:" in browser.evaluate("document.body.innerText")
    service = site.url("idle").removesuffix("/monitor")
    browser.open(service, width=390, scripts=True)
    assert browser.evaluate("[...document.querySelectorAll('a')].some(a => a.href.endsWith('/services/idle/monitor'))")


def test_every_drawing_and_table_is_named_for_those_who_do_not_see_it(browser: Browser, site: Site) -> None:
    show(browser, site.url("drifting"))
    unnamed = browser.evaluate(
        "[...document.querySelectorAll('svg')].filter(s => s.getAttribute('aria-hidden') !== 'true')"
        ".filter(s => !(s.getAttribute('role') === 'img' && s.getAttribute('aria-label'))).length"
    )
    headless = browser.evaluate(
        "[...document.querySelectorAll('table')].filter(t => !t.querySelector('thead th[scope=col]')).length"
    )
    assert (unnamed, headless) == (0, 0)
