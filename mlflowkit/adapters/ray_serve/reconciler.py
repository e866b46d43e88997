"""The steward: starts Ray and Serve, then keeps the services of one state folder at what their files say.

``python -m mlflowkit.adapters.ray_serve.reconciler STATE RUNTIME``, where RUNTIME is the ``module:class`` of the
Runtime that replicas load graphs with. Its guard runs it; it ends on SIGTERM, and when its state folder is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflowkit.adapters.ray_serve import cluster as clusters
from mlflowkit.errors import EngineError, ServiceError
from mlflowkit.service_state.records import Desired, Observed, ServiceFiles, Settings, write_json
from mlflowkit.values import Json, Variant

POLL_SECONDS = 0.1
LINGER_SECONDS = 15.0
"""How long an isolated variant outlives the last table that has it."""
RETRY_SECONDS = 2.0
"""Before Serve is asked again for what it refused."""
LOOK_SECONDS = 1.0
"""How often Serve is asked how isolated variants are."""
OBJECT_STORE_BYTES = 512 << 20
_log = logging.getLogger("mlflowkit.steward")


def main(arguments: list[str]) -> int:
    """Be the steward of a state folder until told to stop; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    state, runtime = Path(arguments[0]), arguments[1]
    stop = threading.Event()
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
    record = clusters.read(state)
    if record is None:
        raise EngineError(f"no guard keeps {state}", hint="mlkit up RECIPE")
    temporary = Path(record.temp_dir)
    if record.owned:
        shutil.rmtree(temporary, ignore_errors=True)  # what a steward before this one left
    import ray

    try:
        try:
            ready = replace(record, **_connect(state, temporary, record.owned))
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


class Isolated:
    """Runs the isolated variants of one service: those of its table and of its proposal, an application each.

    One that nobody wants any more is kept for LINGER_SECONDS: requests are still in flight to it, and a rollback may
    want it again.
    """

    def __init__(self, files: ServiceFiles, runtime: str, suffix: str) -> None:
        self._files = files
        self._runtime = runtime
        self._prefix = f"{files.service}_{suffix}_"
        self._mark: object = None
        self._running: dict[str, tuple[Variant, Settings]] = {}
        self._unwanted: dict[str, float] = {}
        self._told: Json = {}
        self._look_at = 0.0
        self._retry_at = 0.0

    def follow(self, desired: Desired) -> None:
        """Bring what runs to what is wanted; returns at once. Raises what Serve or a damaged file raises."""
        files = self._files
        mark = desired, stat_mark(files.proposal_path), stat_mark(files.table_path)
        if mark != self._mark and time.monotonic() >= self._retry_at:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._reconcile(desired)
            self._mark, self._retry_at = mark, 0.0
        for digest, until in list(self._unwanted.items()):
            if time.monotonic() >= until:
                self._stop(digest)
        self._tell()

    def _reconcile(self, desired: Desired) -> None:
        wanted = self._wanted() if desired.up else {}
        if self._mark is None:
            self._clear(wanted)
        for digest, variant in wanted.items():
            self._start(digest, variant, desired.settings)
        until = time.monotonic() + (LINGER_SECONDS if desired.up else 0.0)
        self._unwanted = {
            digest: self._unwanted.get(digest, until) if desired.up else until
            for digest in self._running
            if digest not in wanted
        }

    def _clear(self, wanted: Mapping[str, Variant]) -> None:
        """Stop what a steward before this one left running in a Ray that outlived it, and nobody wants."""
        from ray import serve

        names = {self._name(digest) for digest in wanted}
        for name in serve.status().applications:
            if name.startswith(self._prefix) and name not in names:
                serve.delete(name, _blocking=False)

    def stop(self) -> None:
        """Stop all."""
        for digest in list(self._running):
            self._stop(digest)

    def _wanted(self) -> dict[str, Variant]:
        """Isolated variants by digest. The proposal is read first: publishing writes the table before it goes."""
        proposal, table = self._files.proposal(), self._files.table()
        tables = (None if proposal is None else proposal.table, table)
        variants = (variant for found in tables if found is not None for variant in found.variants)
        return {variant.digest: variant for variant in variants if variant.placement == "isolated"}

    def _start(self, digest: str, variant: Variant, settings: Settings) -> None:
        """Run a version, or change how it is run; Serve replaces its processes only where it must."""
        from ray import serve

        from mlflowkit.adapters.ray_serve.isolated import application

        before = self._running.get(digest)
        if before is not None and _resources(before[1]) == _resources(settings) and before[0].bundle == variant.bundle:
            return
        name = self._name(digest)
        built = application(self._files.folder, variant, self._runtime, settings)
        serve.run_many([serve.RunTarget(built, name=name, route_prefix=None)], wait_for_applications_running=False)
        self._running[digest] = variant, settings

    def _stop(self, digest: str) -> None:
        from ray import serve

        from mlflowkit.adapters.ray_serve.isolated import reports_path

        self._running.pop(digest, None)
        self._unwanted.pop(digest, None)
        serve.delete(self._name(digest), _blocking=False)
        shutil.rmtree(reports_path(self._files.folder, digest), ignore_errors=True)

    def _name(self, digest: str) -> str:
        return f"{self._prefix}{digest[:16]}"

    def _tell(self) -> None:
        """Leave in isolated.json what Serve says of each version, for whoever waits for one."""
        if (not self._running and not self._told) or time.monotonic() < self._look_at:
            return
        from ray import serve

        self._look_at = time.monotonic() + LOOK_SECONDS
        applications = serve.status().applications if self._running else {}
        told: Json = {}
        for digest in self._running:
            found = applications.get(self._name(digest))
            if found is not None:
                messages = [found.message, *(deployment.message for deployment in found.deployments.values())]
                message = "\n".join(filter(None, messages))
                told[digest] = {"state": str(found.status.value), "message": message[-2000:]}
        if told != self._told:
            self._told = told
            write_json(self._files.folder / "isolated.json", told, durable=False)


def _resources(settings: Settings) -> tuple[float | None, ...]:
    return (
        settings.isolated_replicas,
        settings.isolated_max_replicas,
        settings.isolated_cpus,
        settings.isolated_gpus,
        settings.isolated_memory_mb,
    )


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
        self._isolated: dict[str, Isolated] = {}
        self._complaints: dict[str, str] = {}

    def follow(self, stop: threading.Event) -> None:
        """Reconcile until ``stop`` is set or the state folder is gone; then take down what runs."""
        while not stop.wait(POLL_SECONDS) and self._state.is_dir():
            for files in ServiceFiles.all(self._state):
                desired = self._desired(files)
                if desired is not None and self._done.get(files.service) != desired.generation:
                    self._reconcile(files, desired)
                if desired is not None:
                    self._reconcile_isolated(files, desired)
        for isolated in self._isolated.values():
            isolated.stop()
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

    def _reconcile_isolated(self, files: ServiceFiles, desired: Desired) -> None:
        isolated = self._isolated.get(files.service)
        if isolated is None:
            isolated = self._isolated[files.service] = Isolated(files, self._runtime, self._suffix)
        try:
            isolated.follow(desired)
        except Exception as error:  # noqa: BLE001 - whatever Serve raises; logged when it is another than before
            if str(error) != self._complaints.get(files.service):
                _log.exception("isolated variants of %s", files.service)
            self._complaints[files.service] = str(error)
        else:
            self._complaints.pop(files.service, None)

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


def stat_mark(path: Path) -> tuple[int, int] | None:
    """Changes whenever the file is replaced; None while there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
