"""A model in the registry of a real MLflow server, looked up from a machine that has neither its run nor its bundle."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mlflowkit.adapters.mlflow import MlflowTracker
from mlflowkit.errors import BundleError
from mlflowkit.pipeline.lineage.model_lookup import ModelLookup
from mlflowkit.pipeline.lineage.model_reference import opened_bundle
from mlflowkit.values import Lineage, RunRecord
from mlflowkit.wiring import Wiring
from tests.support import lending_bundle
from tests.support.tools import require_tool
from tests.support.waiting import wait_for

pytestmark = pytest.mark.delivery


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The URI of an MLflow server that keeps its artifacts below ``tmp_path / "artifacts"``."""
    mlflow = require_tool("mlflow", "pip install mlflow==3.17.2 in an environment of its own")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [mlflow, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{tmp_path}/server.db",
               "--artifacts-destination", str(tmp_path / "artifacts")]  # fmt: skip
    uri = f"http://127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYTHON"))}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        wait_for(lambda: process.poll() is not None or _answers(uri), 120, "the server", poll=0.2)
        assert process.poll() is None, (tmp_path / "server.log").read_text()
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_a_registered_model_leads_to_its_commit_from_elsewhere(server: str, tmp_path: Path) -> None:
    made = lending_bundle.make_bundle(tmp_path / "bundle")
    manifest = made.manifest
    lineage = Lineage(manifest.git_commit, manifest.git_dirty, manifest.data_version, manifest.recipe_digest)
    run = RunRecord(
        "run-1", "lending", "/recipes/lending.yaml", "done", 1.0, 2.0, lineage, {}, bundle=manifest.identity
    )
    with closing(MlflowTracker(tmp_path / "here", server)) as tracker:
        tracker.record(run)
        number = tracker.register("lending", made.path, run, "champion")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with closing(MlflowTracker(elsewhere, server)) as tracker:
        lookup = ModelLookup(Wiring(elsewhere), tracker)
        for reference in ("models:/lending@champion", f"models:/lending/{number}"):
            origin = lookup.origin(reference)
            assert (origin.identity, origin.lineage.git_commit) == (manifest.identity, manifest.git_commit)
            assert (origin.lineage.data_version, origin.registered) == (manifest.data_version, number)
            assert origin.blessing is not None
            assert origin.sources == ("the bundle in MLflow's artifacts", "tags of MLflow")
        with opened_bundle("models:/lending@champion", Wiring(elsewhere), tracker, blessed=True) as bundle:
            assert bundle.manifest == manifest
        assert not bundle.path.exists()
        (graph,) = (tmp_path / "artifacts").rglob("model.onnx")
        graph.write_bytes(graph.read_bytes() + b"changed")
        with pytest.raises(BundleError, match=r"model\.onnx"):
            lookup.origin("models:/lending@champion")
