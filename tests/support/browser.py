"""A real browser for tests: headless Chromium, spoken to over a pipe in its DevTools protocol.

Tests that want it are skipped where no ``chromium`` is on the PATH (``apt-get install chromium``).
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WANTED = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")

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
    """One Chromium with one page; ``events`` are what the page said since the last `open`.

    It has no network unless it is ``online``.
    """

    def __init__(self, profile: Path, *, online: bool = False) -> None:
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
        speed = -1 if online else 0
        self.ask(
            "Network.emulateNetworkConditions", offline=not online, latency=0, downloadThroughput=speed,
            uploadThroughput=speed,
        )  # fmt: skip

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

    def open(
        self, page: Path | str, *, width: int, scheme: str = "light", media: str = "", scripts: bool = False
    ) -> None:
        """Load a page at a width in a colour scheme and wait until it has loaded."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", media=media, features=features)
        self.ask("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.events.clear()
        self.ask("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.next()

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; None where it has none."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> Any:
        """The value of an expression in the page, once it is true."""
        return wait_for(lambda: self.evaluate(expression), PATIENCE, expression, poll=0.05)

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
