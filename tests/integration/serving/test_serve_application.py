"""The importable Serve application, deployed from a configuration as KubeRay deploys it, on a Ray of two workers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from mlflowkit.adapters.ray_serve.deployment import GATEWAY_RESOURCE
from mlflowkit.bundle import Bundle
from mlflowkit.delivery.manifests import workloads
from mlflowkit.delivery.targets import target
from mlflowkit.errors import UsageError
from mlflowkit.processes.serve_application import ServeApplicationArguments, serve_arguments, serve_size
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system.machine import parent_ids
from tests.support import ROOT
from tests.support.cluster_manifests import cluster_plan
from tests.support.lending_bundle import ROWS, make_bundle
from tests.support.ports import free_port
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
PORT = free_port()


def test_the_rayservice_imports_an_application_with_arguments_that_it_takes() -> None:
    plan = cluster_plan(environments={"prod": {"replicas": 3}}, kubernetes={"workload": "rayservice"})
    assert list(target("kubernetes").unsupported(plan)) == []
    overlay = yaml.safe_load(target("kubernetes").render(plan)["deploy/overlays/prod/kustomization.yaml"])
    edits = {edit["path"]: edit["value"] for edit in yaml.safe_load(overlay["patches"][0]["patch"])}
    (application,) = yaml.safe_load(edits["/spec/serveConfigV2"])["applications"]
    module, _, name = application["import_path"].partition(":")
    __import__(module)
    assert callable(getattr(sys.modules[module], name))
    arguments = serve_arguments(application["args"])
    (deployment,) = application["deployments"]
    assert deployment["name"] == "service"
    assert serve_size(deployment["user_config"]).replicas == 3 * plan.recipe.replicas
    assert arguments.command(1)[:3] == ["serve", "--delivery", "/etc/mlkit/delivery.yaml"]
    assert workloads.GATEWAY_RESOURCE == GATEWAY_RESOURCE


def test_the_version_of_ray_is_the_pinned_one() -> None:
    assert f'"ray[serve]=={workloads.RAY_VERSION}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ({"service": "lending"}, "name one of delivery, bundle"),
        ({"service": "lending", "bundle": "a", "delivery": "b"}, "name one of delivery, bundle"),
        ({"service": "lending", "bundel": "a"}, "args.bundel"),
        ({"bundle": "a"}, "args.service"),
        ({"service": "lending", "bundle": "a", "give_up": 0}, "args.give_up"),
    ],
)
def test_other_arguments_are_refused(args: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        serve_arguments(args)


def test_each_ray_cluster_has_state_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ServeApplicationArguments(service="lending", bundle="b", state=str(tmp_path))
    assert arguments.state_folder() == tmp_path
    monkeypatch.setenv("RAY_CLUSTER_NAME", "lending-x7k2p")
    assert arguments.state_folder() == tmp_path / "clusters" / "lending-x7k2p"
    monkeypatch.setenv("RAY_CLUSTER_NAME", "../other")
    assert arguments.state_folder() == tmp_path


class _Deployed:
    """A Ray head without CPUs and two workers that may each run a gateway, and ``serve run`` of a configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "serve.log"
        self._environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "MLKIT_PORT": str(PORT),
            "RAY_USAGE_STATS_ENABLED": "0", "MLKIT_STATE": str(folder / "state"), "RAY_CLUSTER_NAME": "lending-a",
        }  # fmt: skip
        from ray.cluster_utils import Cluster

        for name, value in self._environment.items():
            os.environ[name] = value
        store = {"object_store_memory": 100 << 20}
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **store})
        for _ in range(2):
            self._cluster.add_node(num_cpus=2, resources={GATEWAY_RESOURCE: 1}, **store)
        self._processes: list[subprocess.Popen[bytes]] = []

    def serve(self, replicas: int = 1, **args: Any) -> None:
        """Apply a configuration; the process stays, and at its end all applications end."""
        application = {
            "name": "lending", "import_path": workloads.SERVE_APPLICATION, "route_prefix": "/", "args": args,
            "deployments": [{"name": "service", "user_config": {"replicas": replicas}}],
        }  # fmt: skip
        config = self.folder / "serve.yaml"
        config.write_text(yaml.safe_dump({"proxy_location": "Disabled", "applications": [application]}))
        command = [sys.executable, "-m", "ray.serve.scripts", "run", str(config), "--address", self._cluster.address]
        with self.log.open("ab") as log:
            self._processes.append(
                subprocess.Popen(command, stdout=log, stderr=log, env=self._environment, cwd=self.folder)
            )

    def end(self) -> None:
        """Stop ``serve run``, which deletes the applications."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self._processes:
            process.wait(240)
        self._processes.clear()

    def close(self) -> None:
        self.end()
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle", 1)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Deployed]:
    before = dict(os.environ)
    running = _Deployed(tmp_path_factory.mktemp("application"))
    try:
        yield running
    finally:
        running.close()
        os.environ.clear()
        os.environ.update(before)


def _answers(path: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{PORT}{path}", timeout=5).status_code == 200
    return False


def _serving(state: Path) -> list[int]:
    """The processes of `mlkit serve` on a state folder."""
    pids = []
    for pid in parent_ids():
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if "serve" in line and str(state) in line:
                pids.append(pid)
    return pids


class _Load(threading.Thread):
    """Sends a request at a time until it is ended."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended, self.answered, self.failed = threading.Event(), 0, list[str]()

    def run(self) -> None:
        while not self.ended.is_set():
            try:
                reply = httpx.post(f"http://127.0.0.1:{PORT}/predict", json={"rows": ROWS}, timeout=30)
            except httpx.HTTPError as error:
                self.failed.append(repr(error))
            else:
                self.answered += reply.status_code == 200
                self.failed += [] if reply.status_code == 200 else [reply.text]


def test_ray_serve_builds_the_application_and_it_answers_a_prediction(deployed: _Deployed, bundle: Bundle) -> None:
    deployed.serve(service="lending", bundle=str(bundle.path))
    wait_for(lambda: _answers("/-/healthz"), 300, "/-/healthz", poll=0.5)
    reply = httpx.post(f"http://127.0.0.1:{PORT}/predict", json={"rows": ROWS}, timeout=30)
    assert reply.status_code == 200, reply.text
    assert reply.json()["model_version"] == bundle.manifest.version
    state = deployed.folder / "state" / "clusters" / "lending-a"
    files, before = ServiceFiles(state / "services" / "lending"), _serving(state)
    assert len(files.reports()) == 1
    load = _Load()
    load.start()
    deployed.serve(2, service="lending", bundle=str(bundle.path))  # another size, as KubeRay applies it
    wait_for(lambda: len([one for one in files.reports() if one.state == "serving"]) == 2, 240, "a second gateway")
    load.ended.set()
    load.join()
    assert load.failed == []
    assert load.answered
    assert set(before) <= set(_serving(state)), "the service was replaced"
    assert len(_nodes_of([report.pid for report in files.reports()])) == 2, "both gateways are on one node"
    deployed.end()
    wait_for(lambda: not _serving(state), what="the end of mlkit serve", poll=0.2)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", PORT), 1):
        pass


def _nodes_of(pids: list[int]) -> set[int]:
    """The raylets that started processes."""
    parents = parent_ids()
    return {parents[pid] for pid in pids}


def test_an_application_without_a_model_fails_and_says_why(deployed: _Deployed, tmp_path: Path) -> None:
    (tmp_path / "delivery.yaml").write_text("service: lending\nchampion: null\ncandidate: null\nrejected: []\n")
    deployed.serve(service="lending", delivery=str(tmp_path / "delivery.yaml"), state=str(tmp_path / "state"))
    wait_for(lambda: "names no version" in deployed.log.read_text(), 200, "the reason", poll=0.5)
    assert not _answers("/-/healthz")
