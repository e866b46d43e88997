"""The reconciler process: starts Ray and Serve, then keeps each service of a state folder as its files specify.

``python -m mlflowkit.adapters.ray_serve.reconciler STATE RUNTIME``, where RUNTIME is the ``module:class`` of the
Runtime that replicas load graphs with. The supervisor runs it; it ends on SIGTERM and when its state folder is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mlflowkit.adapters.ray_serve import cluster as clusters
from mlflowkit.adapters.ray_serve import ownership, ray_health, ray_logs, starting
from mlflowkit.adapters.ray_serve.survivors import Retirement
from mlflowkit.errors import EngineError, ServiceError
from mlflowkit.service_state.records import Desired, GatewaySettings, ReconciledState, ServiceFiles
from mlflowkit.system.files import use_private_umask
from mlflowkit.system.log_once import LogOnce
from mlflowkit.system.logs import configure_logging
from mlflowkit.system.text import first_line
from mlflowkit.values import Json, Variant

POLL_SECONDS = 0.1
RAYLET_SECONDS = 0.25
"""Interval at which a raylet that is awaited is looked for."""
LINGER_SECONDS = 15.0
"""How long an isolated variant outlives the last table that has it."""
RETRY_SECONDS = 2.0
"""Time before a failed request to Serve is repeated."""
STATUS_SECONDS = 1.0
"""Interval of the status records of isolated variants."""
OBJECT_STORE_BYTES = 512 << 20
_log = logging.getLogger("mlflowkit.reconciler")


def main(arguments: list[str]) -> int:
    """Reconcile a state folder until terminated; returns the exit code."""
    use_private_umask()
    configure_logging()
    state, runtime = Path(arguments[0]), arguments[1]
    stop = threading.Event()
    survivors = _survivors(state)
    with _running_ray(state) as connected:
        if connected:
            for number in (signal.SIGTERM, signal.SIGINT):  # after Ray, which installs its own
                signal.signal(number, lambda *_: stop.set())
            ray_health.watch_ray()
            Reconciler(state, runtime, survivors).run(stop)
            return 0
    return starting.FAILED_START


def _survivors(state: Path) -> set[ownership.ProcessKey]:
    """Processes that an earlier reconciler's Ray left answering; called before another Ray is started."""
    record = clusters.read(state)
    if record is None:
        return set()
    managed = ownership.descendants({record.pid})
    return {(pid, started) for pid, started in clusters.process_group(record) if pid not in managed}


@contextlib.contextmanager
def _running_ray(state: Path) -> Iterator[bool]:
    """Start Ray and Serve; yields False, with the reason in the record, when they do not start.

    Whether that is final is the supervisor's to say.
    """
    record = clusters.read(state)
    if record is None:
        raise EngineError(f"no supervisor runs on {state}", hint="mlkit up RECIPE")
    if record.owned:  # of the previous reconciler
        ray_logs.save_crash_logs(Path(record.temp_dir), state)
        ownership.remove_temp_dir(Path(record.temp_dir), state)
    import ray

    try:
        try:
            ready = replace(record, **_connect(state, Path(record.temp_dir), record.owned))
        except Exception as error:  # noqa: BLE001 - Ray may raise anything; the record holds the reason
            traceback.print_exc()
            cause = ray_logs.cause(Path(record.temp_dir)) if record.owned else ""
            reason = "; ".join(filter(None, (first_line(error), cause)))
            clusters.write(state, replace(record, reason=reason[:2000]))
            yield False
            return
        clusters.write(state, ready)
        yield True
    finally:
        ray.shutdown()


def _connect(state: Path, temp_dir: Path, owned: bool) -> dict[str, Any]:
    """Connect to Ray, starting it when ``owned``, and start Serve; returns the changed fields of the record."""
    import ray
    from ray import serve

    if owned:
        folder = ownership.create_temp_dir(temp_dir)
        _be_patient(starting.seconds_of(starting.this_try()))
        ray.init(
            "local", include_dashboard=False, log_to_driver=False, configure_logging=False, namespace="mlkit",
            object_store_memory=OBJECT_STORE_BYTES, _node_ip_address="127.0.0.1", _temp_dir=str(folder),
        )  # fmt: skip
    else:
        ray.init(log_to_driver=False, namespace="mlkit")
    serve.start(proxy_location="Disabled")
    address = ray.get_runtime_context().gcs_address
    environment = {"RAY_ADDRESS": address, **(clusters.ray_environment(state) if owned else {})}
    return {"state": "ready", "address": address, "environment": environment}


def _be_patient(seconds: float) -> None:
    """Let the raylet take ``seconds`` to register: Ray waits for 30 (ray 2.60, ``ray/_private/node.py``), then fails.

    Ray looks the node up until then, so a look-up that waits makes it wait. One whose raylet has ended does not: Ray
    would ask again after a RuntimeError, but not after an EngineError.
    """
    from ray._private import services

    look_up, deadline = services.get_node, time.monotonic() + seconds

    def get_node(*arguments: Any) -> Any:
        while True:
            try:
                return _while_raylet_runs(partial(look_up, *arguments))
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    services.get_node = get_node


def _while_raylet_runs(look_up: Callable[[], Any]) -> Any:
    """What ``look_up`` returns or raises; EngineError once no raylet runs, which a look-up would wait for in vain."""
    answer: Future[Any] = Future()

    def ask() -> None:
        try:
            answer.set_result(look_up())
        except Exception as error:  # noqa: BLE001 - raised where the answer is awaited
            answer.set_exception(error)

    threading.Thread(target=ask, name="mlkit-ray-node", daemon=True).start()
    while not wait([answer], RAYLET_SECONDS).done:
        if not _has_raylet():
            raise EngineError("Ray's raylet ended while it started")
    return answer.result()


def _has_raylet() -> bool:
    """Whether a child of this process is a raylet that runs."""
    import psutil

    children = psutil.Process().children()
    return any(child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE for child in children)


class IsolatedDeployments:
    """Runs the isolated variants of one service: those of its table and of its proposal, an application each.

    A variant in neither is kept for LINGER_SECONDS: it has requests in flight, and a rollback may need it again.
    """

    def __init__(self, files: ServiceFiles, runtime: str, suffix: str) -> None:
        self._files, self._runtime = files, runtime
        self._prefix = f"{files.service}_{suffix}_"
        self._reconciled_for: object = None
        self._running: dict[str, tuple[Variant, GatewaySettings]] = {}
        self._stop_at: dict[str, float] = {}
        self._status: Json = {}
        self._status_at = self._retry_at = 0.0

    def reconcile(self, desired: Desired) -> None:
        """Start and stop variants as needed; returns at once. Propagates errors of Serve and of damaged files."""
        files = self._files
        stamp = desired, files.watch(("proposal.json", "table.json"), {}, 0.0)
        if stamp != self._reconciled_for and time.monotonic() >= self._retry_at:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._start_and_schedule_stops(desired)
            self._reconciled_for, self._retry_at = stamp, 0.0
        for digest, stop_at in list(self._stop_at.items()):
            if time.monotonic() >= stop_at:
                self._stop(digest)
        self._write_status()

    def _start_and_schedule_stops(self, desired: Desired) -> None:
        # The proposal is read first: publishing writes the table before removing it.
        proposal, table = (self._files.proposal(), self._files.table()) if desired.up else (None, None)
        required = [*(() if proposal is None else proposal.table.variants), *(() if table is None else table.variants)]
        variants = {variant.digest: variant for variant in required if variant.placement == "isolated"}
        if self._reconciled_for is None:
            self._delete_leftovers(variants)
        for digest, variant in variants.items():
            self._start(digest, variant, desired.settings)
        stop_at = time.monotonic() + (LINGER_SECONDS if desired.up else 0.0)
        self._stop_at = {
            digest: self._stop_at.get(digest, stop_at) if desired.up else stop_at
            for digest in self._running
            if digest not in variants
        }

    def _delete_leftovers(self, variants: Mapping[str, Variant]) -> None:
        """Delete other applications of a previous reconciler, whose Ray outlived it."""
        from ray import serve

        names = {self._name(digest) for digest in variants}
        for name in serve.status().applications:
            if name.startswith(self._prefix) and name not in names:
                serve.delete(name, _blocking=False)

    def stop(self) -> None:
        """Stop all variants."""
        for digest in list(self._running):
            self._stop(digest)

    def _start(self, digest: str, variant: Variant, settings: GatewaySettings) -> None:
        """Run a version, or change its resources; Serve replaces its processes only where it must."""
        from ray import serve

        from mlflowkit.adapters.ray_serve.isolated import application

        before = self._running.get(digest)
        if before is not None and _resources(before[1]) == _resources(settings) and before[0].bundle == variant.bundle:
            return
        model = application(self._files.folder, variant, self._runtime, settings)
        target = serve.RunTarget(model, name=self._name(digest), route_prefix=None)
        serve.run_many([target], wait_for_applications_running=False)
        self._running[digest] = variant, settings

    def _stop(self, digest: str) -> None:
        from ray import serve

        from mlflowkit.adapters.ray_serve.isolated import delete_addresses

        self._running.pop(digest, None)
        self._stop_at.pop(digest, None)
        serve.delete(self._name(digest), _blocking=False)
        delete_addresses(self._files, digest)

    def _name(self, digest: str) -> str:
        return f"{self._prefix}{digest[:16]}"

    def _write_status(self) -> None:
        """Write Serve's status of each version to isolated.json, for processes that wait for one to start."""
        if (not self._running and not self._status) or time.monotonic() < self._status_at:
            return
        from ray import serve

        self._status_at = time.monotonic() + STATUS_SECONDS
        applications = serve.status().applications if self._running else {}
        status: Json = {}
        for digest in self._running:
            if (application := applications.get(self._name(digest))) is not None:
                messages = [application.message, *(part.message for part in application.deployments.values())]
                message = "\n".join(filter(None, messages))
                status[digest] = {"state": str(application.status.value), "message": message[-2000:]}
        if status != self._status:
            self._status = status
            self._files.write_json("isolated.json", status, durable=False)


def _resources(settings: GatewaySettings) -> tuple[float | None, ...]:
    replicas = settings.isolated_replicas, settings.isolated_max_replicas
    return (*replicas, settings.isolated_cpus, settings.isolated_gpus, settings.isolated_memory_mb)


class Reconciler:
    """Compares the desired state in each service's files with what Serve runs, and applies the difference.

    Each gateway replica is a Serve application of its own: Serve replaces every replica of an application when
    anything of it changes, the number of replicas included, so scaling would take the service down.
    """

    def __init__(self, state: Path, runtime: str, survivors: Collection[ownership.ProcessKey] = ()) -> None:
        self._state, self._runtime = state, runtime
        self._retirement = Retirement(state, survivors, self._forget_previous)
        self._suffix = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:8]
        self._reconciled: dict[str, int] = {}
        self._isolated: dict[str, IsolatedDeployments] = {}
        self._damaged_files, self._isolated_errors = LogOnce(_log), LogOnce(_log)

    def run(self, stop: threading.Event) -> None:
        """Reconcile until ``stop`` is set or the state folder is gone; then stop all services."""
        while not stop.wait(POLL_SECONDS) and self._state.is_dir():
            for files in ServiceFiles.all(self._state):
                desired = self._read_desired(files)
                if desired is not None and self._reconciled.get(files.service) != desired.generation:
                    self._reconcile(files, desired)
                if desired is not None:
                    self._reconcile_isolated(files, desired)
            with contextlib.suppress(ServiceError):  # of a damaged record, which is logged above
                self._retirement.advance()
        for isolated in self._isolated.values():
            isolated.stop()
        for service in self._reconciled:
            self._scale(ServiceFiles(self._state / "services" / service), 0)

    def _forget_previous(self) -> None:
        """Note in the record that no process of an earlier supervisor is left."""
        record = clusters.read(self._state)
        if record is not None and record.previous:
            clusters.write(self._state, replace(record, previous=()))

    def _read_desired(self, files: ServiceFiles) -> Desired | None:
        """A service's desired state; None when its file is damaged: the service then stays as it is."""
        try:
            desired = files.desired()
        except ServiceError as error:
            self._damaged_files.error(f"service {files.service}: {error.message}", key=files.service)
            return None
        self._damaged_files.clear(files.service)
        return desired

    def _reconcile(self, files: ServiceFiles, desired: Desired) -> None:
        self._reconciled[files.service] = desired.generation
        files.write_observed(ReconciledState(desired.generation, "starting" if desired.up else "stopping"))
        try:
            self._scale(files, desired.settings.replicas if desired.up else 0)
            files.write_observed(ReconciledState(desired.generation, "running" if desired.up else "stopped"))
        except Exception as error:  # noqa: BLE001 - Serve may raise anything; the file holds the reason
            _log.exception("service %s", files.service)
            files.write_observed(ReconciledState(desired.generation, "failed", str(error).strip()[:2000]))

    def _reconcile_isolated(self, files: ServiceFiles, desired: Desired) -> None:
        isolated = self._isolated.get(files.service)
        if isolated is None:
            isolated = self._isolated[files.service] = IsolatedDeployments(files, self._runtime, self._suffix)
        try:
            isolated.reconcile(desired)
        except Exception as error:  # noqa: BLE001 - Serve may raise anything; the next poll retries
            message = f"isolated variants of {files.service}: {error}"
            self._isolated_errors.error(message, key=files.service, exc_info=True)
        else:
            self._isolated_errors.clear(files.service)

    def _scale(self, files: ServiceFiles, replicas: int) -> None:
        """Run exactly ``replicas`` applications of a service; running ones are left alone."""
        from ray import serve

        prefix = f"{files.service}-{self._suffix}-"
        names = [f"{prefix}{number}" for number in range(replicas)]
        present = [name for name in serve.status().applications if name.startswith(prefix)]
        for name in set(present) - set(names):
            serve.delete(name)
        missing = [name for name in names if name not in present]
        if missing:
            import ray

            from mlflowkit.adapters.ray_serve.deployment import GATEWAY_RESOURCE, application

            placed = GATEWAY_RESOURCE in ray.cluster_resources()
            gateway = application(files.folder, self._runtime, resources={GATEWAY_RESOURCE: 1} if placed else None)
            serve.run_many([serve.RunTarget(gateway, name=name, route_prefix=f"/{name}") for name in missing])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
