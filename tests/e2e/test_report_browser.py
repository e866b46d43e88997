"""The report in a real browser.

Chromium is started with its network emulated offline; scripts of the page are off except where a test says otherwise.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mlflowkit.report.run.run_page import render
from tests.support import report_evidence
from tests.support.browser import CONTRAST, FACTS, WANTED, Browser

pytestmark = WANTED
SECTIONS = [
    "steps",
    "gates",
    "data",
    "training",
    "quality",
    "slices",
    "champion",
    "latency",
    "bundle",
    "serving",
    "lineage",
    "recipe",
]
"""Every section has its place on every page, reached or not."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The page of a run of each task, of one that failed, and of one whose data is an attack."""
    root = tmp_path_factory.mktemp("runs")
    attack = "</script><script>window.pwned=true</script><img src=x onerror='window.pwned=true'>\"><b>"
    runs = {name: getattr(report_evidence, name)(root / name) for name in ("binary", "multiclass", "regression")}
    runs["failed"] = runs["binary"].until("export", "failed", "EngineError: operator X is not supported")
    names = [f"{attack}{index}" for index in range(30)]
    runs["attack"] = report_evidence.binary(root / "attack", names)
    made = {}
    for name, run in runs.items():
        made[name] = root / f"{name}.html"
        made[name].write_text(render(run.record, run.folders), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["binary", "multiclass", "regression", "failed"])
def test_page_lays_out_offline_without_a_request_or_a_complaint(
    browser: Browser, pages: Mapping[str, Path], name: str, width: int
) -> None:
    browser.open(pages[name], width=width)
    facts = browser.evaluate(FACTS)
    assert browser.complaints() == []
    assert browser.requests() == []
    assert facts["fetched"] == []
    assert facts["overflow"] <= 0
    assert list(facts["sections"]) == SECTIONS
    assert min(facts["sections"].values()) > 40
    assert facts["drawings"] > (5 if name == "failed" else 20)
    assert facts["empty"] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["binary", "multiclass", "failed"])
def test_every_text_stands_out_in_both_colour_schemes(
    browser: Browser, pages: Mapping[str, Path], name: str, scheme: str
) -> None:
    browser.open(pages[name], width=1280, scheme=scheme)
    red = int(browser.evaluate(FACTS)["background"].removeprefix("rgb(").split(",")[0])
    assert red > 200 if scheme == "light" else red < 60
    assert browser.evaluate(CONTRAST) == []


def test_page_prints_black_on_white_and_within_the_sheet(browser: Browser, pages: Mapping[str, Path]) -> None:
    browser.open(pages["binary"], width=794, scheme="dark", media="print")
    facts = browser.evaluate(FACTS)
    assert facts["background"] == "rgb(255, 255, 255)"
    assert facts["overflow"] <= 0
    pdf = base64.b64decode(browser.ask("Page.printToPDF", printBackground=True)["data"])
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page/") >= 2


def test_names_from_data_stay_text_even_with_scripts_on(browser: Browser, pages: Mapping[str, Path]) -> None:
    browser.open(pages["attack"], width=1280, scripts=True)
    facts = browser.evaluate(FACTS)
    assert facts["pwned"] is False
    assert facts["scripts"] == 0
    assert browser.evaluate("document.images.length") == 0
    assert browser.complaints() == []
    assert "<script>window.pwned=true</script>" in browser.evaluate("document.querySelector('#data').textContent")


def test_every_drawing_and_table_is_named_for_those_who_do_not_see_it(
    browser: Browser, pages: Mapping[str, Path]
) -> None:
    browser.open(pages["binary"], width=1280)
    unnamed = browser.evaluate(
        "[...document.querySelectorAll('svg')].filter(s => s.getAttribute('aria-hidden') !== 'true')"
        ".filter(s => !(s.getAttribute('role') === 'img' && s.getAttribute('aria-label'))).length"
    )
    headless = browser.evaluate(
        "[...document.querySelectorAll('table')].filter(t => !t.querySelector('thead th[scope=col]')).length"
    )
    assert (unnamed, headless) == (0, 0)
    tree = browser.ask("Accessibility.getFullAXTree")["nodes"]
    names = {node["name"]["value"] for node in tree if node.get("role", {}).get("value") == "image"}
    assert any(name.startswith("ROC curve: area 0.99") for name in names)
