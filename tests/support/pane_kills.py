"""A real gateway and its observer, killed under traffic: what was answered, and what the panes and ledgers say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil

from mlflowkit.bundle import Bundle
from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.reference import ColumnReference, Reference
from mlflowkit.service_state.records import Desired, GatewaySettings, ServiceFiles
from mlflowkit.serving.observer.panes import PaneReading, list_panes, read_panes
from mlflowkit.system import failpoint
from mlflowkit.values import RoutingTable, Variant
from tests.support.lending_bundle import make_bundle
from tests.support.processes import free_port
from tests.support.waiting import wait_for

PURPOSES = ("car", "home", "other")
MONITORING = Reference(
    {
        "age": ColumnReference(Cells("number", edges=(0.0, 30.0, 60.0)), (0, 50, 50, 0, 0)),
        "purpose": ColumnReference(Cells("text", values=PURPOSES), (40, 30, 30, 0, 0, 0)),
        "output.label": ColumnReference(Cells("text", values=("bad", "good")), (50, 50, 0, 0, 0)),
    }
)


def wait_long_for(condition: Callable[[], Any]) -> Any:
    """Wait for processes that start, beside others that leave them little of the machine."""
    return wait_for(condition, seconds=120.0)


class KillDrill:
    """One service on a port of this machine. ``replied`` counts the rows of requests that were answered, by purpose;
    ``cut`` those whose connection broke, of which it is not known whether they were answered."""

    def __init__(
        self, folder: Path, *, port: int = 0, pane_seconds: float = 1.0, profiler: str = "", log: bool = False
    ) -> None:
        self.files = ServiceFiles(folder / "services" / "lending")
        self.bundle: Bundle = make_bundle(folder / "bundle", 1, monitoring=MONITORING)
        self.version = self.bundle.manifest.version
        self.replied: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.refused = 0
        self._port, self._profiler = free_port(), profiler
        self._settings = GatewaySettings(
            "lending", port=self._port, log=log, pane_seconds=pane_seconds, segments=("purpose",)
        )
        self.files.write_desired(Desired(1, True, self._settings))
        champion = Variant("champion", self.version, self.bundle.manifest.identity, str(self.bundle.path))
        self.files.write_table(RoutingTable("lending", 1, (champion,), experiment="e1", salt="e1"))
        self._gateway: subprocess.Popen[bytes] | None = None
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=20)
        self._sent = 0

    def __enter__(self) -> KillDrill:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._client.close()
        if self._gateway is not None:
            self._end(signal.SIGKILL)

    @property
    def profiles(self) -> Path:
        return self.files.folder / "profiles"

    def start(self, point: str = "") -> None:
        """Start the gateway, which fails at ``point`` (see `mlflowkit.system.failpoint`); "" for nowhere."""
        environment = {**os.environ, failpoint.VARIABLE: point}
        command = [sys.executable, "-m", "tests.support.replica_process", str(self.files.folder), "r1", self._profiler]
        self._gateway = subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[2])
        wait_long_for(lambda: self._is_ready() or self._ended())
        assert point or not self._ended(), f"the gateway ended with {self._gateway.returncode}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/predict"

    @property
    def gateway(self) -> psutil.Process:
        assert self._gateway is not None
        return psutil.Process(self._gateway.pid)

    def change(self, **settings: Any) -> None:
        """Change the gateway's settings, and wait until it follows them."""
        desired = self.files.desired()
        assert desired is not None
        generation = desired.generation + 1
        self._settings = replace(self._settings, **settings)
        self.files.write_desired(Desired(generation, True, self._settings))
        wait_long_for(lambda: any(report.generation == generation for report in self.files.reports()))

    @property
    def observer(self) -> psutil.Process | None:
        """The gateway's observer, once its process is there."""
        assert self._gateway is not None
        try:
            children = psutil.Process(self._gateway.pid).children()
        except psutil.NoSuchProcess:
            return None
        return next((child for child in children if child.status() != psutil.STATUS_ZOMBIE), None)

    def ask(self, requests: int) -> bool:
        """Send requests of one to three rows, one after the other, until one is cut off; whether none was."""
        for _ in range(requests):
            self._sent += 1
            purpose, rows = PURPOSES[self._sent % 3], 1 + self._sent % 3
            row = {"age": float(self._sent % 70), "income": 1.0, "debt": None, "term": "36 months", "purpose": purpose}
            try:
                reply = self._client.post("/predict", json={"rows": [row] * rows})
            except httpx.TransportError:
                self.cut[purpose] += rows
                return False
            assert reply.status_code == 200, reply.text
            self.replied[purpose] += rows
        return True

    def ask_until_written(self) -> None:
        """Send requests until the observer has written another pane."""
        home = self.profiles / self.version
        before = {item.name for item in list_panes(home)}
        wait_long_for(lambda: self.ask(3) and {item.name for item in list_panes(home)} - before)

    def send_bad(self, row: dict[str, Any]) -> None:
        """Send a request that the model's inputs refuse."""
        assert self._client.post("/predict", json={"rows": [row]}).status_code == 400
        self.refused += 1

    def kill_observer(self) -> None:
        """SIGKILL the observer, and wait until there is another."""
        observer = wait_long_for(lambda: self.observer)
        observer.send_signal(signal.SIGKILL)
        wait_long_for(lambda: (other := self.observer) is not None and other.pid != observer.pid)

    def kill_gateway(self) -> None:
        """SIGKILL the gateway, and wait until its observer has written what it had and ended."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop the gateway as a service does; both processes end."""
        self._end(signal.SIGTERM)

    def check(self) -> PaneReading:
        """What is in the panes and ledgers. Raises AssertionError unless it is exactly what was answered."""
        reading = read_panes(self.profiles, self.version)
        assert reading.problems == ()
        answered = sum(window.answered for window in reading.windows)
        replied, cut = self.replied.total(), self.cut.total()
        assert replied <= answered <= replied + cut, (replied, answered, cut)
        for window in reading.windows:
            assert 0 <= window.total.rows <= window.answered
            assert window.lost >= 0
            assert all(sum(counts) == window.total.rows for counts in window.total.columns.values())
        for index, purpose in enumerate(PURPOSES):  # no row twice, none that nobody sent
            rows = sum(window.total.columns["purpose"][index] for window in reading.windows if window.total.rows)
            assert rows <= self.replied[purpose] + self.cut[purpose]
        return reading

    def _end(self, number: signal.Signals) -> None:
        assert self._gateway is not None
        observer = self.observer
        self._gateway.send_signal(number)
        self._gateway.wait(30)
        if observer is not None:
            wait_long_for(lambda: not observer.is_running() or observer.status() == psutil.STATUS_ZOMBIE)
        self._gateway = None

    def _is_ready(self) -> bool:
        try:
            return self._client.get("/v2/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def _ended(self) -> bool:
        return self._gateway is not None and self._gateway.poll() is not None
