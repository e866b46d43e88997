"""Pages of the admin server in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflowkit.service_state.records import read_json
from tests.support.browser import Browser


def admin_endpoint(state: Path, service: str) -> str:
    """The URL of a service's page, once the listener has recorded it."""
    while True:
        record = read_json(state / "services" / service / "admin.json")
        if record is not None:
            return str(record["endpoint"])


@contextmanager
def online_browser(profile: Path) -> Iterator[Browser]:
    """A browser that may make requests."""
    browser = Browser(profile, online=True)
    yield browser
    browser.open("about:blank", width=1280)
    browser.close()


def show(browser: Browser, url: str, **how: Any) -> None:
    """Open a live page and wait until it hears of changes."""
    browser.open(url, scripts=True, **{"width": 1280, **how})
    browser.until("document.querySelector('#live.on') !== null")
