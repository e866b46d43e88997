"""The report in a real browser: headless Chromium, spoken to over a pipe in its DevTools protocol.

Chromium is started with its network emulated offline; scripts of the page are off except where a test says
otherwise. Skipped where no ``chromium`` is on the PATH (``apt-get install chromium``).
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import report_evidence
from mlflowkit.report.page import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")

PATIENCE = 60.0
"""Seconds to wait for any answer of the browser."""
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
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

FACTS = """(() => {
  const visible = one => one.checkVisibility({contentVisibilityAuto: true});
  const box = one => one.getBoundingClientRect();
  return {
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    sections: Object.fromEntries([...document.querySelectorAll('main > section')].map(s => [s.id, box(s).height])),
    drawings: document.querySelectorAll('svg').length,
    empty: [...document.querySelectorAll('svg')].filter(visible)
      .filter(s => !(box(s).width > 0 && box(s).height > 0)).map(s => s.outerHTML.slice(0, 120)),
    background: getComputedStyle(document.body).backgroundColor,
    scripts: document.scripts.length,
    fetched: performance.getEntriesByType('resource').map(one => one.name),
    pwned: window.pwned === true,
  };
})()"""

CONTRAST = """(() => {
  const channel = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    channel.clearRect(0, 0, 1, 1); channel.fillStyle = '#000'; channel.fillStyle = colour;
    channel.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = channel.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, under) => under.map((c, i) => i === 3 ? 1 : top[i] * top[3] + c * (1 - top[3]));
  const behind = one => {
    const layers = [];
    for (let e = one; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const poor = new Set();
  for (const one of document.body.querySelectorAll('*')) {
    if (!one.checkVisibility() || one.closest('.skip')) continue;
    if (![...one.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    if (one instanceof SVGTitleElement) continue;
    const style = getComputedStyle(one), ground = behind(one);
    const ink = over(rgba(one instanceof SVGElement ? style.fill : style.color), ground);
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.add(`${one.tagName}.${one.className.baseVal ?? one.className} ${ratio.toFixed(2)}`);
  }
  return [...poor];
})()"""


class Browser:
    """One Chromium with one page; ``events`` are what the page said since the last `open`."""

    def __init__(self, profile: Path) -> None:
        hear, told = os.pipe()
        tell, said = os.pipe()
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"]

        def attach() -> None:  # the protocol's pipe is on descriptors 3 (to it) and 4 (from it)
            first, second = os.dup(tell), os.dup(told)
            spare = [os.dup(first), os.dup(second)]
            os.dup2(spare[0], 3)
            os.dup2(spare[1], 4)

        self.process = subprocess.Popen(
            command, preexec_fn=attach, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(tell)
        os.close(told)
        self.hear, self.said = hear, said
        self.waiting = selectors.DefaultSelector()
        self.waiting.register(hear, selectors.EVENT_READ)
        self.rest = b""
        self.count = 0
        self.session = ""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.ask(f"{domain}.enable")
        self.ask("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.said, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next()
            if answer.get("id") == self.count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def next(self) -> dict[str, Any]:
        """The next message; an event is kept too."""
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            ready = self.waiting.select(max(0.0, end - time.monotonic()))
            assert ready, f"the browser said nothing for {PATIENCE} s"
            chunk = os.read(self.hear, 1 << 16)
            assert chunk, f"the browser ended with {self.process.wait()}"
            self.rest += chunk
        text, self.rest = self.rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, page: Path, *, width: int, scheme: str = "light", media: str = "", scripts: bool = False) -> None:
        """Load a page at a width in a colour scheme and wait until it has loaded."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", media=media, features=features)
        self.ask("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.events.clear()
        self.ask("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.next()

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"]["value"]

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions included."""
        loud = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in loud]

    def requests(self) -> list[str]:
        """Addresses that the page asked for, itself and inline data apart."""
        asked = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith("data:")][1:]

    def close(self) -> None:
        """End the browser."""
        os.close(self.said)
        try:
            self.process.wait(PATIENCE)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            os.close(self.hear)


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
