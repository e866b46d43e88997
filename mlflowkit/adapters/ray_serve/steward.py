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
from mlflowkit.errors import EngineError, ServiceError
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
        if temporary.stat().st_uid != os.getuid():
            raise EngineError(f"{temporary} belongs to someone else", hint="set TMPDIR to a short path of your own")
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
    """Compares what each service's files ask for with what Serve runs, and carries the difference out.

    Each gateway replica is a Serve application of its own: Serve replaces every replica of an application when
    anything of it changes, the number of replicas included, and that would take a service down to scale it.
    """

    def __init__(self, state: Path, runtime: str) -> None:
        self._state = state
        self._runtime = runtime
        self._suffix = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:8]
        self._done: dict[str, int] = {}
        self._damaged: set[str] = set()

    def follow(self, stop: threading.Event) -> None:
        """Reconcile until ``stop`` is set or the state folder is gone; then take down what runs."""
        while not stop.wait(POLL_SECONDS) and self._state.is_dir():
            for files in ServiceFiles.all(self._state):
                desired = self._desired(files)
                if desired is not None and self._done.get(files.service) != desired.generation:
                    self._reconcile(files, desired)
        for service in self._done:
            self._scale(ServiceFiles(self._state / "services" / service), 0)

    def _desired(self, files: ServiceFiles) -> Desired | None:
        """What a service's file asks for; None when it is damaged: the service stays as it is, and so do the others."""
        try:
            desired = files.desired()
        except ServiceError as error:
            if files.service not in self._damaged:
                _log.error("service %s: %s", files.service, error.message)
            self._damaged.add(files.service)
            return None
        self._damaged.discard(files.service)
        return desired

    def _reconcile(self, files: ServiceFiles, desired: Desired) -> None:
        self._done[files.service] = desired.generation
        try:
            self._scale(files, desired.settings.replicas if desired.up else 0)
            files.write_observed(Observed(desired.generation, "running" if desired.up else "stopped"))
        except Exception as error:  # noqa: BLE001 - whatever Serve raises is the reason, told in the file
            _log.exception("service %s", files.service)
            files.write_observed(Observed(desired.generation, "failed", str(error).strip()[:2000]))

    def _scale(self, files: ServiceFiles, replicas: int) -> None:
        """Run exactly ``replicas`` applications of a service; those that run already are left alone."""
        from ray import serve

        prefix = f"{files.service}-{self._suffix}-"
        wanted = [f"{prefix}{number}" for number in range(replicas)]
        present = [name for name in serve.status().applications if name.startswith(prefix)]
        for name in set(present) - set(wanted):
            serve.delete(name)
        missing = [name for name in wanted if name not in present]
        if missing:
            from mlflowkit.adapters.ray_serve.deployment import application

            built = application(files.folder, self._runtime)
            serve.run_many([serve.RunTarget(built, name=name, route_prefix=f"/{name}") for name in missing])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
