"""The options of `mlkit serve` that containers use: SageMaker's port, a delivery.yaml, another name, and giving up."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest
import yaml

from mlflowkit.bundle import Bundle
from mlflowkit.delivery.image.bundle_artifact import push_bundle
from mlflowkit.service_state.records import DRAINING, ServiceFiles
from tests.support.lending_bundle import ROWS, make_bundle
from tests.support.ports import free_port
from tests.support.registries import real_registry
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("options") / "bundle")


@pytest.fixture
def port() -> int:
    return free_port()


class _Served:
    """A running `mlkit serve`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, state: Path, log: Path) -> None:
        self.process, self.state, self._log = process, state, log
        self.url = f"http://127.0.0.1:{port}"

    @property
    def log(self) -> str:
        return self._log.read_text()

    def ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/ping", timeout=2).status_code == 200
        return False

    def wait_ready(self) -> None:
        wait_for(lambda: self.ready() or self.process.poll() is not None, 240, "mlkit serve", poll=0.2)
        assert self.process.poll() is None, self.log

    def model(self, name: str) -> int:
        return httpx.get(f"{self.url}/v2/models/{name}", timeout=10).status_code


@contextlib.contextmanager
def _serve(folder: Path, port: int, *options: str, variables: Mapping[str, str] | None = None) -> Iterator[_Served]:
    log, state = folder / "serve.log", folder / "state"
    command = [sys.executable, "-m", "mlflowkit.cli", "serve", "--drain", "0", "--state", str(state), *options]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env={**os.environ, **(variables or {})}, start_new_session=True
        )
    try:
        yield _Served(process, port, state, log)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(240)


def test_sagemaker_names_the_port_a_second_one_is_refused_and_a_service_that_stays_away_is_given_up(
    tmp_path: Path, bundle: Bundle, port: int
) -> None:
    variables = {"SAGEMAKER_BIND_TO_PORT": str(port), "MLKIT_UNAUTHENTICATED": "1"}
    options = ("--bundle", str(bundle.path), "--service", "scores", "--give-up", "10")
    with _serve(tmp_path, port, *options, variables=variables) as served:
        served.wait_ready()
        assert (served.model("scores"), served.model("lending")) == (200, 404)
        reply = httpx.post(f"{served.url}/invocations", json={"rows": ROWS}, timeout=20)
        assert reply.status_code == 200, reply.text
        files = ServiceFiles(served.state / "services" / "scores")
        desired = files.desired()
        assert desired is not None
        assert (desired.settings.host, desired.settings.port) == ("0.0.0.0", port)
        _refuse_a_second_one(served, tmp_path / "other", *options)
        files.write_json(DRAINING, {"since": time.time()})  # whatever keeps it from being ready
        assert served.process.wait(240) == 3
        assert "scores was not ready for 10 s" in served.log
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), 1):
        pass


def _refuse_a_second_one(first: _Served, folder: Path, *options: str) -> None:
    """As two pods with one volume are: when the second ends, it stops nothing that is not its own."""
    folder.mkdir()
    port = first.url.rpartition(":")[2]
    with _serve(folder, int(port), *options, "--port", port, "--state", str(first.state)) as second:
        assert second.process.wait(240) == 3
        assert "another mlkit serve runs on" in second.log
    assert first.ready()
    desired = ServiceFiles(first.state / "services" / "scores").desired()
    assert desired is not None
    assert desired.up
    assert first.process.poll() is None


def test_sagemakers_port_opens_nothing_beyond_loopback_without_keys(tmp_path: Path, bundle: Bundle, port: int) -> None:
    with _serve(
        tmp_path, port, "--bundle", str(bundle.path), variables={"SAGEMAKER_BIND_TO_PORT": str(port)}
    ) as served:
        assert served.process.wait(240) != 0
        assert "0.0.0.0" in served.log


@pytest.mark.delivery
def test_the_champion_of_a_delivery_file_is_fetched_by_digest_and_served(
    tmp_path: Path, bundle: Bundle, port: int
) -> None:
    with real_registry(tmp_path) as host:
        reference = push_bundle(bundle.path, f"{host}/acme/lending-bundle")
        file = _delivery(tmp_path, reference, bundle.manifest.identity)
        with _serve(tmp_path, port, "--delivery", str(file), "--port", str(port)) as served:
            served.wait_ready()
            reply = httpx.post(f"{served.url}/predict", json={"rows": ROWS}, timeout=20)
            assert reply.json()["model_version"] == bundle.manifest.version
            assert served.model("from-file") == 200


@pytest.mark.delivery
def test_a_delivery_file_that_names_another_model_than_its_digest_is_refused(
    tmp_path: Path, bundle: Bundle, port: int
) -> None:
    with real_registry(tmp_path) as host:
        reference = push_bundle(bundle.path, f"{host}/acme/lending-bundle")
        file = _delivery(tmp_path, reference, "f" * 64)
        with _serve(tmp_path, port, "--delivery", str(file), "--port", str(port)) as served:
            assert served.process.wait(240) == 3
            assert "and delivery.yaml says ffffffffffff" in served.log
        with _serve(tmp_path, port, "--delivery", str(file), "--service", "other") as served:
            assert served.process.wait(240) == 2
            assert "is of the service from-file, not other" in served.log
    file.write_text("service: from-file\nchampion: null\n")
    with _serve(tmp_path, port, "--delivery", str(file), "--bundle", str(bundle.path)) as served:
        assert served.process.wait(240) == 2
        assert "name two models" in served.log


def _delivery(folder: Path, reference: str, identity: str) -> Path:
    file = folder / "delivery.yaml"
    champion = {"bundle": reference, "identity": identity}
    keys = {"service": "from-file", "champion": champion, "candidate": None, "rejected": []}
    file.write_text(yaml.safe_dump(keys))
    return file
