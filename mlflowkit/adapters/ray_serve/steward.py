"""The steward: starts Ray and Serve, then keeps the services of one state folder at what their files say.

``python -m mlflowkit.adapters.ray_serve.steward STATE RUNTIME``, where RUNTIME is the ``module:class`` of the
Runtime that replicas load graphs with. It ends on SIGTERM, and when its state folder is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflowkit.adapters.ray_serve import cluster as clusters
from mlflowkit.adapters.ray_serve.cluster import Cluster
from mlflowkit.serving.files import Desired, Observed, ServiceFiles, process_started

POLL_SECONDS = 0.1
OBJECT_STORE_BYTES = 512 << 20
_log = logging.getLogger("mlflowkit.steward")


def main(arguments: list[str]) -> int:
    """Be the steward of a state folder until told to stop; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    state, runtime = Path(arguments[0]), arguments[1]
    stop = threading.Event()
    with (state / "ray" / "steward.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("another steward has %s", state)
            return 0
        os.set_inheritable(lock.fileno(), False)
        with _ray(state) as connected:
            if connected:
                for number in (signal.SIGTERM, signal.SIGINT):  # after Ray, which installs its own
                    signal.signal(number, lambda *_: stop.set())
                Steward(state, runtime).follow(stop)
                return 0
    return 1


@contextlib.contextmanager
def _ray(state: Path) -> Iterator[bool]:
    """Ray and Serve, up; yields False, with the reason in the record, when they do not start."""
    owned = not os.environ.get("RAY_ADDRESS")
    temporary = clusters.temp_dir(state)
    pid = os.getpid()
    record = Cluster("starting", pid, process_started(pid) or 0.0, str(temporary), owned)
    clusters.write(state, record)
    import ray

    try:
        try:
            ready = replace(record, **_connect(state, temporary, owned))
        except Exception as error:  # noqa: BLE001 - whatever Ray raises is the reason, told in the record
            traceback.print_exc()
            clusters.write(state, replace(record, state="failed", message=str(error).strip()[:2000]))
            yield False
            return
        clusters.write(state, ready)
        yield True
    finally:
        ray.shutdown()


def _connect(state: Path, temporary: Path, owned: bool) -> dict[str, Any]:
    import ray
    from ray import serve

    if owned:
        temporary.mkdir(mode=0o700, parents=True, exist_ok=True)
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=OBJECT_STORE_BYTES,
            namespace="mlkit",
            _node_ip_address="127.0.0.1",
            _temp_dir=str(temporary),
        )
    else:
        ray.init(log_to_driver=False, namespace="mlkit")
    serve.start(proxy_location="Disabled")
    address = ray.get_runtime_context().gcs_address
    environment = {"RAY_ADDRESS": address, **(clusters.ray_environment(state) if owned else {})}
    return {"state": "ready", "address": address, "environment": environment}


class Steward:
    """Compares what each service's files ask for with what Serve runs, and carries the difference out."""

    def __init__(self, state: Path, runtime: str) -> None:
        self._state = state
        self._runtime = runtime
        self._suffix = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:8]
        self._done: dict[str, int] = {}
        self._running: dict[str, int] = {}
        """Services that Serve runs for us, with their number of replicas."""

    def follow(self, stop: threading.Event) -> None:
        """Reconcile until ``stop`` is set or the state folder is gone."""
        while not stop.wait(POLL_SECONDS) and self._state.is_dir():
            for files in ServiceFiles.all(self._state):
                desired = files.desired()
                if desired is not None and self._done.get(files.service) != desired.generation:
                    self._reconcile(files, desired)
        for service in list(self._running):
            self._delete(service)

    def _reconcile(self, files: ServiceFiles, desired: Desired) -> None:
        self._done[files.service] = desired.generation
        try:
            if desired.up:
                self._run(files, desired)
                files.write_observed(Observed(desired.generation, "running"))
            else:
                self._delete(files.service)
                files.write_observed(Observed(desired.generation, "stopped"))
        except Exception as error:  # noqa: BLE001 - whatever Serve raises is the reason, told in the file
            _log.exception("service %s", files.service)
            files.write_observed(Observed(desired.generation, "failed", str(error).strip()[:2000]))

    def _run(self, files: ServiceFiles, desired: Desired) -> None:
        from ray import serve

        from mlflowkit.adapters.ray_serve.deployment import application

        service, replicas = files.service, desired.settings.replicas
        if self._running.get(service) == replicas:
            return
        name = self._application(service)
        serve.run(application(files.folder, replicas, self._runtime), name=name, route_prefix=f"/{name}")
        self._running[service] = replicas

    def _delete(self, service: str) -> None:
        from ray import serve

        if self._running.pop(service, None) is not None:
            serve.delete(self._application(service))

    def _application(self, service: str) -> str:
        """A name that no other state folder on the same cluster has."""
        return f"{service}-{self._suffix}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
