"""The page of `mlkit bench` in a real browser, whose network is emulated offline."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mlflowkit.report.bench_page import render
from tests.support import bench_document
from tests.support.browser import CONTRAST, FACTS, WANTED, Browser

pytestmark = WANTED
ATTACK = "</script><script>window.pwned=true</script><img src=x onerror='window.pwned=true'>\"><b>"
MANY = (
    "lending",
    *(f"lending {name}" for name in ("fp16", "int8", "int8-dynamic", "weights", "basic", "all", "x" * 90)),
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    documents = {
        "compared": bench_document.document(baseline=0.5),
        "open": bench_document.document(settings=bench_document.open_settings()),
        "many": bench_document.document(names=MANY),
        "nothing": bench_document.document(names=()),
        "attack": bench_document.document(names=("lending", ATTACK)),
    }
    made = {name: root / f"{name}.html" for name in documents}
    for name, path in made.items():
        path.write_text(render(documents[name]), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["compared", "open", "many", "nothing"])
def test_page_lays_out_offline_without_a_request_or_a_complaint(
    browser: Browser, pages: Mapping[str, Path], name: str, width: int
) -> None:
    browser.open(pages[name], width=width)
    facts = browser.evaluate(FACTS)
    assert browser.complaints() == []
    assert browser.requests() == []
    assert facts["fetched"] == []
    assert facts["scripts"] == 0
    assert facts["overflow"] <= 0
    assert facts["empty"] == []
    expected = {
        "compared": ["baseline", "comparisons", "batch-1", "batch-8", "parts", "absent", "machine", "notes"],
        "open": ["comparisons", "batch-1", "open", "absent", "machine", "notes"],
        "many": ["comparisons", "batch-1", "batch-8", "parts", "absent", "machine", "notes"],
        "nothing": ["absent", "machine", "notes"],
    }[name]
    assert list(facts["sections"]) == expected
    assert min(facts["sections"].values()) > 40
    assert facts["drawings"] >= (8 if name != "nothing" else 0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["compared", "open"])
def test_every_text_stands_out_in_both_colour_schemes(
    browser: Browser, pages: Mapping[str, Path], name: str, scheme: str
) -> None:
    browser.open(pages[name], width=1280, scheme=scheme)
    red = int(browser.evaluate(FACTS)["background"].removeprefix("rgb(").split(",")[0])
    assert red > 200 if scheme == "light" else red < 60
    assert browser.evaluate(CONTRAST) == []


def test_page_says_what_was_found_in_words(browser: Browser, pages: Mapping[str, Path]) -> None:
    browser.open(pages["compared"], width=1280)
    text = browser.evaluate("document.body.innerText")
    for words in (
        "FAILED", "faster", "not run", "CUDAExecutionProvider", "ended by SIGSEGV while loading", "AMD EPYC",
        "busy: 3.0 processes ran", "copy in", "lowest p50",
    ):  # fmt: skip
        assert words.lower() in text.lower(), words
    browser.open(pages["open"], width=1280)
    assert "could not keep up with" in browser.evaluate("document.body.innerText")


def test_names_from_data_stay_text_even_with_scripts_on(browser: Browser, pages: Mapping[str, Path]) -> None:
    browser.open(pages["attack"], width=1280, scripts=True)
    facts = browser.evaluate(FACTS)
    assert facts["pwned"] is False
    assert facts["scripts"] == 0
    assert browser.evaluate("document.images.length") == 0
    assert browser.complaints() == []
    assert "<script>window.pwned=true</script>" in browser.evaluate("document.querySelector('#batch-1').textContent")


def test_every_drawing_and_table_is_named_for_those_who_do_not_see_it(
    browser: Browser, pages: Mapping[str, Path]
) -> None:
    browser.open(pages["compared"], width=1280)
    unnamed = browser.evaluate(
        "[...document.querySelectorAll('svg')].filter(s => s.getAttribute('aria-hidden') !== 'true')"
        ".filter(s => !(s.getAttribute('role') === 'img' && s.getAttribute('aria-label'))).length"
    )
    headless = browser.evaluate(
        "[...document.querySelectorAll('table')].filter(t => !t.querySelector('thead th[scope=col]')).length"
    )
    assert (unnamed, headless) == (0, 0)


def test_page_prints_black_on_white_and_within_the_sheet(browser: Browser, pages: Mapping[str, Path]) -> None:
    browser.open(pages["compared"], width=794, scheme="dark", media="print")
    facts = browser.evaluate(FACTS)
    assert facts["background"] == "rgb(255, 255, 255)"
    assert facts["overflow"] <= 0
    assert base64.b64decode(browser.ask("Page.printToPDF", printBackground=True)["data"]).startswith(b"%PDF")
