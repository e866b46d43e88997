"""mlkit serve as the one process of a container: starts, reaps, drains, comes back, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlflowkit.system.machine import parent_ids
from tests.support.lending_bundle import ROWS, make_bundle
from tests.support.ports import free_port
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class _Foreground:
    """`mlkit serve` in a process of its own, with its state beside the bundle."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        self.log = folder / "serve.log"
        command = [sys.executable, "-m", "mlflowkit.cli", "serve", "--bundle", str(folder / "bundle")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(port), "--drain", "5", "--state", str(folder / "state")],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ping", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def wait_ready(self) -> None:
        wait_for(lambda: self.ready() or self.process.poll() is not None, 240, "mlkit serve", poll=0.2)
        assert self.process.poll() is None, self.log.read_text()

    def family(self) -> set[int]:
        """Processes below this one, and this one."""
        found, parents = {self.process.pid}, parent_ids()
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def epoch(self) -> Any:
        return httpx.get(f"{self.url}/v2/models/lending", timeout=10).json()["versions"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreground")
    make_bundle(folder / "bundle")
    return folder


@pytest.fixture
def served(folder: Path) -> Iterator[_Foreground]:
    running = _Foreground(folder, free_port())
    try:
        running.wait_ready()
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            running.process.wait(240)


class _Load(threading.Thread):
    """Sends requests as a load balancer does: to an instance that says that it is ready."""

    def __init__(self, served: _Foreground) -> None:
        super().__init__()
        self.served, self.answered, self.failed = served, 0, list[str]()
        self.ended = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self.served.url, timeout=20) as client:
            while not self.ended.is_set():
                try:
                    reply = client.post("/predict", json={"rows": ROWS})
                    if reply.status_code == 200:
                        self.answered += 1
                    else:
                        self.failed.append(reply.text)
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))


def test_sigterm_drains_without_a_failed_request_and_leaves_no_process(served: _Foreground) -> None:
    loads = [_Load(served) for _ in range(4)]
    for load in loads:
        load.start()
    wait_for(lambda: all(load.answered > 50 for load in loads), what="answers under load")
    family = served.family()
    zombies = [
        pid for pid in family if (status := Path(f"/proc/{pid}/status")).exists() and "State:\tZ" in status.read_text()
    ]
    served.process.send_signal(signal.SIGTERM)
    wait_for(lambda: not served.ready(), what="the end of readiness")  # a load balancer takes it out now
    for load in loads:
        load.ended.set()
    for load in loads:
        load.join()
    assert served.process.wait(240) == 0, served.log.read_text()
    assert [failure for load in loads for failure in load.failed] == []
    assert sum(load.answered for load in loads) > 200
    assert [pid for pid in family if Path(f"/proc/{pid}").exists()] == []
    assert zombies == []


def test_a_killed_service_comes_back_with_the_same_table(folder: Path, served: _Foreground) -> None:
    before, family = served.epoch(), served.family()
    os.kill(served.process.pid, signal.SIGKILL)
    served.process.wait(240)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), what="the end of what it started")
    again = _Foreground(folder, int(served.url.rpartition(":")[2]))
    try:
        again.wait_ready()
        assert again.epoch() == before
        assert again.process.poll() is None
    finally:
        again.process.terminate()
        assert again.process.wait(240) == 0, again.log.read_text()
