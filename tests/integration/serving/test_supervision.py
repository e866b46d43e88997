"""Whatever ends below a service, it goes on answering and comes back to full strength without a hand."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mlflowkit.adapters.ray_serve import RayServePlatform, ownership
from mlflowkit.adapters.ray_serve import cluster as clusters
from mlflowkit.bundle import Bundle
from mlflowkit.service_state.records import ServiceFiles, process_started
from mlflowkit.stages.deploy import ServeSection
from mlflowkit.system.machine import command_line
from tests.support import ROOT
from tests.support.lending_bundle import ROWS, make_bundle, table
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]
BACK_SECONDS = 240.0
"""A deadline for a crowded machine, no promise."""


class Service:
    """A service on a Ray of its own, with the processes below it by name."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.state, self.bundle = folder / ".mlkit", bundle
        self.platform = RayServePlatform(self.state)
        self.files = ServiceFiles(self.state / "services" / "lending")
        self.url = self.platform.ensure(ServeSection(service="lending", port=0, grpc_port=None))
        self.platform.publish(table(1, bundle))

    def process(self, name: str) -> int:
        """The id of the process that has ``name`` in its title or command line."""
        cluster = clusters.wait(self.state)
        if name == "supervisor":
            return cluster.pid
        family = ownership.descendants({cluster.pid})
        return next((pid for pid in sorted(family) if name in " ".join(command_line(pid)) and process_started(pid)), 0)

    def gateways(self) -> set[int]:
        return {report.pid for report in self.files.reports() if report.state == "serving"}

    def settled(self) -> bool:
        """Whether Ray is ready, one gateway serves, and nothing of an earlier Ray is left."""
        cluster = clusters.read(self.state)
        if cluster is None or cluster.state != "ready" or cluster.previous or len(self.gateways()) != 1:
            return False
        return {pid for pid, _ in clusters.process_group(cluster)} <= ownership.descendants({cluster.pid})


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    bundle = make_bundle(tmp_path_factory.mktemp("bundle") / "bundle", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv("RAY_ADDRESS", raising=False)
        folder = tmp_path_factory.mktemp("service")
        try:
            yield Service(folder, bundle)
        finally:
            state = folder / ".mlkit"
            cluster = clusters.read(state)
            RayServePlatform(state).down()
            assert cluster is not None
            assert clusters.process_group(cluster) == set()
            assert not Path(cluster.temp_dir).exists()


class Client(threading.Thread):
    """Sends a request at a time, and each once more when its connection breaks."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.stop, self.answered, self.failed = url, threading.Event(), 0, list[str]()

    def run(self) -> None:
        while not self.stop.is_set():
            for last in (False, True):
                try:
                    reply = httpx.post(f"{self.url}/predict", json={"rows": ROWS}, timeout=30)
                except httpx.TransportError as error:
                    if last:
                        self.failed.append(repr(error))
                    continue
                self.answered += 1
                if reply.status_code != 200:
                    self.failed.append(f"{reply.status_code} {reply.text}")
                break
            time.sleep(0.02)

    def __enter__(self) -> Client:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.join()


@pytest.mark.parametrize(
    ("victim", "sign"),
    [
        ("raylet", signal.SIGKILL),
        ("gcs_server", signal.SIGKILL),
        ("ServeController", signal.SIGKILL),
        ("ctypes", signal.SIGKILL),
        ("supervisor", signal.SIGKILL),
        ("keeper", signal.SIGKILL),
        ("raylet", signal.SIGSTOP),
        ("supervisor", signal.SIGSTOP),
    ],
)
def test_no_request_fails_and_the_service_comes_back(service: Service, victim: str, sign: signal.Signals) -> None:
    wait_for(service.settled, BACK_SECONDS)
    before, pid = service.gateways(), wait_for(lambda: service.process(victim), BACK_SECONDS)
    started = process_started(pid)
    restarts_ray = victim not in ("ServeController", "keeper")
    with Client(service.url) as client:
        wait_for(lambda: client.answered > 5)
        os.kill(pid, sign)
        wait_for(lambda: process_started(pid) != started, BACK_SECONDS)
        if restarts_ray:
            wait_for(lambda: not service.gateways() & before, BACK_SECONDS)
        wait_for(lambda: service.settled() and service.process(victim) not in (0, pid), BACK_SECONDS)
        count = client.answered
        wait_for(lambda: client.answered > count + 5)
    assert client.failed == []
    (status,) = service.platform.status()
    assert (status.state, status.variants[0].version) == ("serving", service.bundle.manifest.version)
    assert status.supervision == ""
