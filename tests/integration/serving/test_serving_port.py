"""One port, one service: also when two deploys begin at the same moment. Real replicas, in this process."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.adapters.ray_serve import RayServePlatform
from mlflowkit.adapters.ray_serve import cluster as clusters
from mlflowkit.errors import ServiceError
from mlflowkit.serving.replica import Replica
from mlflowkit.stages.deploy import ServeSection


def test_two_deploys_at_once_do_not_share_a_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replicas: list[Replica] = []

    def spawn(state: Path, runtime: str, sidecars: tuple[str, ...]) -> None:
        """In place of the supervisor: starts a replica as a process of its own."""
        replicas.append(Replica(state / "services" / "lending", OnnxRuntime(), f"r{len(replicas)}"))

    ready = clusters.Cluster("ready", os.getpid(), 0.0, str(tmp_path), True)
    monkeypatch.setattr(clusters, "spawn", spawn)
    monkeypatch.setattr(clusters, "wait", lambda state, progress: ready)
    monkeypatch.setattr(clusters, "read", lambda state: ready)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def deploy(name: str) -> str:
        try:
            return RayServePlatform(tmp_path / name).ensure(ServeSection(service="lending", port=port))
        except ServiceError as error:
            return error.message

    try:
        with ThreadPoolExecutor(2) as pool:
            told = sorted(pool.map(deploy, ("one", "two")))
        assert told[0] == f"http://127.0.0.1:{port}"
        assert told[1].startswith(f"port {port} on 127.0.0.1 is in use"), told
        assert len(replicas) == 1
    finally:
        for replica in replicas:
            replica.stop()
