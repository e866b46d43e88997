"""One port, one service: also when two deploys begin at the same moment. Real replicas, in this process."""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.adapters.ray_serve import RayServePlatform, platform
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


def test_a_name_that_another_user_took_delays_no_deploy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user can bind the name without listening, or listen; neither is a deploy of this user."""
    monkeypatch.setattr(platform, "FOREIGN_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as squatter:
        squatter.bind(f"\0mlkit-{os.getuid()}-port-21399")
        with platform._port_lock(21399):
            pass
        squatter.listen(4)
        assert platform._is_held_by_this_user(f"\0mlkit-{os.getuid()}-port-21399")
        mine = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: mine + 1)
        assert not platform._is_held_by_this_user(f"\0mlkit-{mine}-port-21399")


def test_a_deploy_of_this_user_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "FOREIGN_SECONDS", 0.1)
    order: list[str] = []

    def deploy(name: str, held: threading.Event, go: threading.Event) -> None:
        with platform._port_lock(21398):
            order.append(name)
            held.set()
            go.wait(60)
            order.append(f"{name} ends")

    events = [threading.Event() for _ in range(3)]
    threads = [
        threading.Thread(target=deploy, args=("one", events[0], events[1])),
        threading.Thread(target=deploy, args=("two", events[2], events[1])),
    ]
    threads[0].start()
    events[0].wait(60)
    threads[1].start()
    assert not events[2].wait(1.0), "the second waits while the first holds the port"
    events[1].set()
    for thread in threads:
        thread.join(60)
    assert order == ["one", "one ends", "two", "two ends"]
