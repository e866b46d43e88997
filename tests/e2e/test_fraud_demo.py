"""The fraud demo: a ring changes its ways, the monitor notices by late outcomes, trains once, and the page shows it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import FACTS, WANTED, Browser

pytestmark = [WANTED, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1500)]

RECIPES = Path(__file__).parents[2] / "recipes"
QUICK = ("serve.port=0", "monitor.performance.realised.mature=10s")
"""Outcomes count after two days. The ring begins on the fourth, and the monitor judges after a week."""
MLKIT = [sys.executable, "-c", "from mlflowkit.cli import main; main()"]


@dataclass(frozen=True)
class Replay:
    """What the program printed, and the monitor's page that it named."""

    printed: str
    page: str

    def record(self) -> dict[str, Any]:
        url = self.page.replace("/services/", "/api/services/")
        value: dict[str, Any] = json.load(urllib.request.urlopen(url, timeout=30))
        return value


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replay]:
    """Replay days until the version that was trained again is the champion."""
    state = tmp_path_factory.mktemp("fraud")
    command = [sys.executable, str(RECIPES / "drive_fraud.py"), "--days", "150", "--day", "5s", "--until", "promotion"]
    command += ["--rows", "1000", "--onset", "4", "--delay", "1", "--state", str(state), *QUICK]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        page = re.search(r"^page  (\S+)$", done.stdout, re.MULTILINE)
        assert page is not None
        yield Replay(done.stdout, page[1])
    finally:
        subprocess.run([*MLKIT, "down", "--state", str(state)], check=False, capture_output=True)


def test_alarm_is_followed_by_one_retraining_a_canary_and_a_promotion(replay: Replay) -> None:
    days = dict(re.findall(r"(alarm|retrain|canary|promotion) on day (\d+)", replay.printed))
    assert list(days) == ["alarm", "retrain", "canary", "promotion"], replay.printed[-3000:]
    assert 4 <= int(days["alarm"]) <= int(days["promotion"])
    assert re.search(r"monitor: train: .*recall", replay.printed), "the retraining does not say what asked for it"
    runs = replay.record()["retrain"]["runs"]
    assert len(runs) == 1, runs


def test_no_row_is_lost_without_being_counted(replay: Replay) -> None:
    for window in replay.record()["windows"]:
        assert window["rows"] + window["lost"] == window["answered"]


def test_page_shows_what_happened(replay: Replay, tmp_path: Path) -> None:
    browser = Browser(tmp_path / "profile", online=True)
    try:
        browser.open(replay.page, width=1280, scripts=True)
        browser.until("document.querySelector('#live.on') !== null")
        facts = browser.evaluate(FACTS)
        assert browser.complaints() == []
        assert facts["overflow"] <= 0
        for section in ("decisions", "retrain"):
            browser.until(f"document.getElementById('{section}').innerText.includes('promoted')")
        assert "Monitor of fraud" in browser.evaluate("document.querySelector('#head').innerText")
    finally:
        browser.open("about:blank", width=1280)
        browser.close()
