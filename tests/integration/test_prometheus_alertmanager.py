"""Real Prometheus and Alertmanager: one notification an episode, and silence that resolves nothing.

The programs are Debian's packages `prometheus` and `prometheus-alertmanager`; they run on free ports of loopback.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

import pytest
import yaml

from mlflowkit.monitoring.export.alert_rules import RuleTarget, alertmanager_config, rule_groups
from mlflowkit.monitoring.export.alertmanager import AlertmanagerExporter
from mlflowkit.monitoring.export.export_loop import ExportLoop
from mlflowkit.monitoring.export.grafana import dashboard, expressions
from mlflowkit.report.rollout.rollout_page import admin_listener
from mlflowkit.service_state.records import ServiceFiles
from tests.support.monitor_views import finding, view, window, write_view
from tests.support.rollout_world import RolloutWorld
from tests.support.waiting import wait_for

PROMETHEUS = shutil.which("prometheus")
ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
pytestmark = pytest.mark.skipif(
    not (PROMETHEUS and ALERTMANAGER),
    reason="no Prometheus or Alertmanager: apt-get install prometheus prometheus-alertmanager",
)
SECONDS = 60.0
"""Deadline of each wait; on a machine at rest each takes 1 to 8 s."""


class Receiver:
    """A webhook's receiver: alerts as they arrive, as (name, status)."""

    def __init__(self) -> None:
        self.alerts: list[tuple[str, str]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                receiver.alerts += [(alert["labels"]["alertname"], alert["status"]) for alert in body["alerts"]]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/alerts"

    def __enter__(self) -> Receiver:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait_for(self, name: str, status: str) -> None:
        wait_for(lambda: (name, status) in self.alerts, SECONDS, f"{name} {status}, not only {self.alerts}")

    def count(self, name: str, status: str = "firing") -> int:
        return self.alerts.count((name, status))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def get(url: str) -> Any:
    """The JSON of a reply; None while nobody answers."""
    try:
        with urlopen(url, timeout=10) as reply:
            return json.loads(reply.read() or b"null")
    except (URLError, ConnectionError, TimeoutError, ValueError):
        return None


def query(port: int, expression: str) -> list[Any]:
    reply = get(f"http://127.0.0.1:{port}/api/v1/query?query={quote(expression)}")
    return [] if reply is None else reply["data"]["result"]


@contextmanager
def running(folder: Path, name: str, *command: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose output is in ``folder``; it is ended with SIGTERM."""
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, cwd=folder)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def alertmanager(folder: Path, webhook: str) -> Iterator[int]:
    """Alertmanager with our inhibitions, which groups for a tenth of a second; its port."""
    config = alertmanager_config(webhook)
    config["route"] |= {"group_wait": "100ms", "group_interval": "1s"}
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with running(
        folder, "alertmanager", ALERTMANAGER, f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'alertmanager'}", f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ):  # fmt: skip
        wait_for(lambda: get(f"http://127.0.0.1:{port}/api/v2/status"), SECONDS, "Alertmanager")
        yield port


@contextmanager
def prometheus(folder: Path, target: str, alerts: int, port: int) -> Iterator[None]:
    """Prometheus with our rules, which scrapes and evaluates every second, until its context ends."""
    rules = rule_groups([RuleTarget("lending", window_seconds=1.0, p99_ms=20.0, error_rate=0.01)])
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "mlkit", "static_configs": [{"targets": [target]}]}],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alerts}"]}]}]},
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with running(
        folder, "prometheus", PROMETHEUS, f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}",
        "--rules.alert.resend-delay=1s",
    ):  # fmt: skip
        wait_for(lambda: query(port, "vector(1)"), SECONDS, "Prometheus")
        yield


def ahead(**values: Any) -> dict[str, Any]:
    """A view that is never stale: its window ends in an hour."""
    now = time.time() + 3600
    return view(windows=[window(start=now)], since=now, updated=now, window_seconds=1.0, **values)


def evaluated(port: int, seconds: float = 3.0) -> None:
    """Wait until the rules were evaluated, by Prometheus's clock, so long after the last time."""

    def last() -> float:
        reply = get(f"http://127.0.0.1:{port}/api/v1/rules")
        groups = [] if reply is None else reply["data"]["groups"]
        text = groups[0]["lastEvaluation"][:19] if groups else ""
        return datetime.fromisoformat(f"{text}+00:00").timestamp() if text > "2000" else 0.0

    begin = wait_for(last, SECONDS, "an evaluation")
    wait_for(lambda: last() >= begin + seconds, SECONDS, "further evaluations")


def test_episode_is_one_notification_that_silence_does_not_resolve(tmp_path: Path, record_property: Any) -> None:
    files = RolloutWorld(tmp_path / "state", settings={"admin_port": free_port()}).files
    write_view(files.state, ahead())
    port = free_port()
    with Receiver() as receiver, alertmanager(tmp_path, receiver.url) as alerts, ExitStack() as page:
        page.enter_context(admin_listener(files.state))
        wait_for(lambda: files.exists("admin.json"))
        target = urlsplit(files.admin_url()).netloc
        with prometheus(tmp_path, target, alerts, port):
            wait_for(lambda: query(port, 'mlkit_monitor_state{state="HEALTHY"} == 1'), SECONDS, "a scrape")
            assert_expressions_are_queries(port)
            begin = time.monotonic()
            write_view(files.state, ahead(state="DRIFTING", columns=[finding(evidence=1.3, verdict="FAILED")]))
            receiver.wait_for("MlkitDriftSustained", "firing")
            record_property("seconds to the webhook", time.monotonic() - begin)
            evaluated(port)
            assert receiver.count("MlkitDriftSustained") == 1
            page.close()  # the admin page is down
            receiver.wait_for("MlkitMonitorStale", "firing")
            evaluated(port)
            assert query(port, 'ALERTS{alertname="MlkitDriftSustained",alertstate="firing"}')
        with prometheus(tmp_path, target, alerts, port):
            evaluated(port)
            wait_for(
                lambda: query(port, 'ALERTS{alertname="MlkitDriftSustained",alertstate="firing"}'), SECONDS, "the alert"
            )
            assert receiver.alerts.count(("MlkitDriftSustained", "resolved")) == 0
            assert receiver.count("MlkitDriftSustained") == 1
            write_view(files.state, ahead())
            with admin_listener(files.state):
                wait_for(lambda: files.exists("admin.json"))
                receiver.wait_for("MlkitDriftSustained", "resolved")
                receiver.wait_for("MlkitMonitorStale", "resolved")
        assert receiver.count("MlkitDriftSustained") == 1


def assert_expressions_are_queries(port: int) -> None:
    """Prometheus evaluates every expression of the dashboard."""
    for expression in expressions(dashboard()):
        text = expression.replace("$service", "lending").replace("$__rate_interval", "5m")
        reply = get(f"http://127.0.0.1:{port}/api/v1/query?query={quote(text)}")
        assert reply is not None, text
        assert reply["status"] == "success", text


def test_pushed_alert_is_one_notification_until_the_monitor_ends_it(tmp_path: Path) -> None:
    files = RolloutWorld(tmp_path / "state").files
    alert = {
        "id": "a1", "kind": "drift", "column": "age", "severity": "warning", "since": time.time(), "state": "firing",
        "message": "age has moved",
    }  # fmt: skip
    with Receiver() as receiver, alertmanager(tmp_path, receiver.url) as port:
        settings = {"monitor": {"alerts": {"alertmanager": f"http://127.0.0.1:{port}"}}}
        files.write_json("monitor/settings.json", settings)
        write_view(files.state, view(alerts=[alert]))
        shift = [0.0]
        with ExportLoop(files.state, [AlertmanagerExporter()], clock=lambda: time.time() + shift[0], poll_seconds=0.05):
            receiver.wait_for("MlkitDriftSustained", "firing")
            sent = refreshed(files)
            write_view(files.state, view(alerts=[alert], state="NO_DATA"))
            shift[0] = 600.0  # ten minutes later it is sent again
            wait_for(lambda: refreshed(files) > sent, SECONDS, "a refresh")
        # nobody refreshes now
        (active,) = get(f"http://127.0.0.1:{port}/api/v2/alerts")
        assert active["status"]["state"] == "active"
        assert receiver.alerts == [("MlkitDriftSustained", "firing")]
        write_view(files.state, view(alerts=[alert | {"state": "resolved", "resolved": time.time()}]))
        with ExportLoop(files.state, [AlertmanagerExporter()], poll_seconds=0.05):
            receiver.wait_for("MlkitDriftSustained", "resolved")
        assert receiver.count("MlkitDriftSustained") == 1


def refreshed(files: ServiceFiles) -> float:
    record = files.read_json("monitor/alertmanager.json")
    return 0.0 if record is None else float(record["refreshed"])
