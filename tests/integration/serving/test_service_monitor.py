"""A real gateway, its observer and the controller's process: traffic is HEALTHY, and a planted shift is told."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlflowkit.monitoring.monitor_settings import (
    Alerts,
    AlertWebhook,
    ColumnMonitor,
    LiveBaseline,
    MonitorSection,
    MonitorSettings,
    PredictionMonitor,
    write_settings,
)
from mlflowkit.monitoring.monitor_view import AlertView, MonitorView, read_view
from mlflowkit.rollout.webhooks import verify
from tests.support.pane_kills import KillDrill
from tests.support.waiting import wait_for
from tests.support.warm_commands import warm_command

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
KEY = "whsec_c2VjcmV0"
WINDOW = 10.0
PATIENCE = 280.0


class Clients:
    """Sends rows one by one until it is closed; ``ages`` draws a row's age."""

    def __init__(self, url: str) -> None:
        self.ages: Callable[[random.Random], float] = lambda drawn: drawn.uniform(1, 59)
        self.row: dict[str, Any] = {"income": 9.0, "debt": None, "term": "36 months", "purpose": "car"}
        self.name = "age"
        self._url, self._ending = url, threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(seed,), daemon=True) for seed in range(4)]
        for thread in self._threads:
            thread.start()

    def _send(self, seed: int) -> None:
        drawn = random.Random(seed)
        with httpx.Client(timeout=20) as client:
            while not self._ending.is_set():
                row = {**self.row, "purpose": drawn.choice(["car", "home", "other"]), self.name: self.ages(drawn)}
                client.post(self._url, json={"rows": [row]})
                self._ending.wait(0.005)

    def close(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(30)


class Receiver(BaseHTTPRequestHandler):
    events: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        verified = verify(KEY.encode(), body, headers, now=time.time())
        self.events.append({**json.loads(body), "verified": verified})
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    events: list[dict[str, Any]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Receiver,), {"events": events}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/alerts", events
    server.shutdown()


@pytest.fixture
def drill(tmp_path: Path, receiver: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> Iterator[KillDrill]:
    monkeypatch.setenv("ALERT_KEY", KEY)
    section = MonitorSection(
        window=f"{WINDOW:g}s",
        grace="2s",
        min_rows=40,
        baseline=LiveBaseline(kind="live", windows=7),
        margin=0.25,
        columns={"purpose": ColumnMonitor(margin=0.3)},
        predictions=PredictionMonitor(margin=0.3),
        alerts=Alerts(webhooks=[AlertWebhook(url=receiver[0], secret_env="ALERT_KEY")]),
    )
    with KillDrill(tmp_path, pane_seconds=section.pane_seconds) as started:
        write_settings(started.files, MonitorSettings(section, None, "", (), "lending"))
        started.start()
        yield started


@pytest.fixture
def controller(drill: KillDrill) -> Iterator[None]:
    command = [sys.executable, "-m", "mlflowkit.processes.controller_main", str(drill.files.state)]
    process = subprocess.Popen(command, cwd=ROOT)
    yield
    process.terminate()
    process.wait(60)


def mlkit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*warm_command("mlflowkit.cli"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.timeout(900)
def test_healthy_traffic_a_planted_shift_and_a_renamed_column(
    drill: KillDrill, controller: None, receiver: tuple[str, list[dict[str, Any]]]
) -> None:
    def view() -> MonitorView | None:
        return read_view(drill.files)

    def reached(word: str) -> MonitorView | None:
        current = view()
        return current if current is not None and current.state == word else None

    def about_age() -> AlertView | None:
        current = view()
        alerts = () if current is None else current.alerts
        keys = ("drift", "age", "")
        return next((alert for alert in alerts if (alert.kind, alert.column, alert.segment) == keys), None)

    state, events = str(drill.files.state), receiver[1]
    clients = Clients(drill.url)
    try:
        wait_for(lambda: reached("LEARNING"), PATIENCE, "LEARNING", poll=0.2)
        healthy: MonitorView = wait_for(lambda: reached("HEALTHY"), PATIENCE, "HEALTHY", poll=0.2)
        assert healthy.rows_total > 0
        assert mlkit("monitor", "lending", "--state", state).returncode == 0
        assert events == []

        planted = time.time()
        clients.ages = lambda drawn: drawn.uniform(40, 59)
        wait_for(lambda: reached("DRIFTING"), PATIENCE, "DRIFTING", poll=0.2)
        alert: AlertView = wait_for(about_age, PATIENCE, "an alert about all rows", poll=0.2)
        assert planted - 2 * WINDOW < alert.since < time.time()
        wait_for(lambda: [event for event in events if event["event"] == "alert.firing"], PATIENCE, "a notification")
        assert events[0]["verified"]
        assert "age" in events[0]["text"]
        assert "distance" in events[0]["text"]
        shown = mlkit("monitor", "lending", "--json", "--state", state)
        document = json.loads(shown.stdout)
        assert shown.returncode == 1
        key = ("age", "distribution", "")
        [age] = [item for item in document["columns"] if (item["column"], item["aspect"], item["segment"]) == key]
        low, value, high = age["distance"]
        assert 0.25 < low <= value <= high
        text = mlkit("monitor", "explain", "lending", "age", "--state", state).stdout
        assert "FAILED" in text
        assert "distance" in text
        acknowledged = mlkit("monitor", "ack", alert.id, "--for", "2d", "--state", state)
        assert acknowledged.returncode == 0, acknowledged.stderr

        clients.ages, clients.name = (lambda drawn: drawn.uniform(1, 59)), "ages"  # renamed upstream: refused

        def refused() -> bool:
            current = view()
            return current is not None and any(item.kind == "schema" for item in current.alerts)

        wait_for(refused, PATIENCE, "an alert about refused requests", poll=0.2)
        assert [event["event"] for event in events] == ["alert.firing"]  # one episode, told once
    finally:
        clients.close()
    last = view()
    assert last is not None
    for window in last.windows:
        assert window.rows + window.lost == window.answered
