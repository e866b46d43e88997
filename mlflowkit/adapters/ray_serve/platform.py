"""RayServePlatform: the Platform port over the files of a state folder and its reconciler. Imports no Ray."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflowkit.adapters.ray_serve import cluster as clusters
from mlflowkit.adapters.ray_serve import starting
from mlflowkit.errors import ServiceError, UsageError, closest_match
from mlflowkit.service_state import http_client
from mlflowkit.service_state.records import (
    Desired,
    GatewaySettings,
    Proposal,
    ReplicaReport,
    ServiceFiles,
    summarize_state,
)
from mlflowkit.serving import auth
from mlflowkit.system.text import shell_word
from mlflowkit.values import RoutingTable, ServiceStatus, Variant

ENSURE_SECONDS = 120.0
PUBLISH_SECONDS = 120.0
FOREIGN_SECONDS = 2.0
"""A port's lock that nobody of this user has listened at for so long is another user's, and does not count."""


class RayServePlatform:
    """Keeps the gateways of a state folder running.

    ``runtime`` is the ``module:class`` of the Runtime that replicas load graphs with, in their own processes.
    ``sidecars`` are modules that run beside the reconciler, with the state folder as their argument.
    """

    def __init__(
        self, state: Path, runtime: str = "mlflowkit.adapters.onnxruntime:OnnxRuntime", sidecars: Sequence[str] = ()
    ) -> None:
        self.state, self.runtime, self.sidecars = state.resolve(), runtime, tuple(sidecars)

    def prewarm(self, service: Any = None) -> None:
        """Start Ray and Serve in the background; returns at once.

        Raises ServiceError when the port of ``service`` (a stages.deploy.ServeSection) is taken, so that a run fails
        before training instead of after it.
        """
        clusters.check_format(self.state)
        if service is not None:
            requested_settings(ServiceFiles(self.state / "services" / service.service), service)
        clusters.spawn(self.state, self.runtime, self.sidecars)

    def ensure(
        self, service: Any, progress: Callable[[str], None] = lambda message: None, *, monitor: Any = None
    ) -> str:
        """Start the gateways of a stages.deploy.ServeSection if they are not up; returns the endpoint's URL.

        ``progress`` is told what the start waits for. Running gateways apply changed limits, threads, replicas or
        address. Raises ServiceError when the port is taken
        (before starting Ray) or the gateway does not come up, EngineError when Ray does not.
        """
        clusters.check_format(self.state)
        files = ServiceFiles(self.state / "services" / service.service)
        with files.lock("ensure"), contextlib.ExitStack() as claims:
            for port in sorted({service.port, service.grpc_port or service.port}):
                claims.enter_context(_port_lock(port))
            before = files.desired()
            settings = requested_settings(files, service)
            if monitor is not None:
                settings = replace(
                    settings, pane_seconds=monitor.pane_seconds, segments=tuple(sorted(monitor.segments))
                )
            desired = before
            if desired is None or not desired.up or desired.settings != settings:
                desired = Desired(1 if before is None else before.generation + 1, True, settings)
                files.write_desired(desired)
            write_environment_keys(files, service)
            clusters.spawn(self.state, self.runtime, self.sidecars)
            clusters.wait(self.state, progress=progress)
            generation = desired.generation  # a replica that rejected its table counts: the next table repairs it
            self._await(
                files, desired, lambda report: report.generation >= generation and report.state != "starting",
                "started", max(ENSURE_SECONDS, starting.limit_of(1)),
            )  # fmt: skip
        return settings.endpoint

    def publish(self, table: RoutingTable) -> None:
        """Publish a table; returns once every replica has loaded, verified, warmed and swapped to it.

        A table whose versions are all loaded (other weights, other roles, fewer variants) is swapped to at once. For
        any other, the processes of isolated variants start first, then every replica prepares, then all swap. A
        table with fence 0 (of a publisher without a lease) keeps the fence of the table before it.

        Raises ServiceError when the table is not newer or its fence is older than the current one, and with the
        reason of the first replica or process that rejects it (a corrupted or unblessed bundle, a failed warm-up);
        every replica then keeps its current table.
        """
        files = ServiceFiles(self.state / "services" / table.service)
        with files.lock("publish"):
            desired = files.desired()
            if desired is None or not desired.up:
                raise ServiceError(f"service {table.service} is not up", hint="mlkit up RECIPE, or mlkit run RECIPE")
            current = files.table()
            table = _successor(current, table)
            if current is not None and _can_swap_at_once(files, current, table):
                files.write_table(table)
                self._await_swap(files, desired, table)
                return
            try:
                self._prepare(files, desired, table)
                files.write_table(table)
                self._await_swap(files, desired, table)
            finally:
                files.delete("proposal.json")

    def _prepare(self, files: ServiceFiles, desired: Desired, table: RoutingTable) -> None:
        """Have isolated variants started and every replica load a table."""
        if any(variant.placement == "isolated" for variant in table.variants):
            files.write_proposal(Proposal("", table))
            self._await_isolated(files, desired, table)
        proposal = Proposal(secrets.token_hex(8), table)
        files.write_proposal(proposal)
        self._await(files, desired, lambda report: _prepared(report, proposal), "loaded the new version")

    def _await_swap(self, files: ServiceFiles, desired: Desired, table: RoutingTable) -> None:
        self._await(files, desired, lambda report: report.epoch >= table.epoch, "swapped to the new version")

    def _await_isolated(self, files: ServiceFiles, desired: Desired, table: RoutingTable) -> None:
        """Wait until each isolated variant has a process that answers; raise ServiceError with the reason otherwise."""
        from mlflowkit.adapters.ray_serve.isolated import read_addresses, unreachable_reason

        deadline = time.monotonic() + PUBLISH_SECONDS
        for variant in table.variants:
            while variant.placement == "isolated":
                addresses = read_addresses(files, variant.digest).values()
                if any(not unreachable_reason(address, variant.digest) for address in addresses):
                    break
                self._check_alive(files, desired)
                _check_isolated(files, variant, late=time.monotonic() > deadline)
                time.sleep(0.1)

    def status(self) -> Sequence[ServiceStatus]:
        """Every service of the state folder, from its files and one health request each. Imports no Ray."""
        services = ServiceFiles.all(self.state)
        supervision = _supervision(self.state) if services else ""
        return [_service_status(files, supervision) for files in services]

    def folder(self, service: str) -> Path:
        """The folder of a service's files."""
        return self.state / "services" / service

    def down(self, service: str | None = None) -> Sequence[str]:
        """Stop one service, or all and the local Ray started for them; returns the names of the stopped services.

        Raises UsageError when there is no such service, ServiceError when it does not stop.
        """
        services = {files.service: files for files in ServiceFiles.all(self.state)}
        if service is not None and service not in services:
            match = closest_match(service, services)
            allowed = ", ".join(services) or "none"
            raise UsageError(
                f"no service {service!r} in {self.state}; there is {allowed}",
                hint=f"mlkit down {match}" if match else "mlkit status",
            )
        stopped = [name for name in services if service in (None, name) and self._stop(services[name])]
        if service is None:
            clusters.stop(self.state)
        return stopped

    def _stop(self, files: ServiceFiles) -> bool:
        """Set a service's desired state to down and wait until it is; returns whether it was up."""
        with files.lock("ensure"):
            before = files.desired()
            if before is None or not before.up:
                return False
            desired = replace(before, generation=before.generation + 1, up=False)
            files.write_desired(desired)
            deadline = time.monotonic() + 60
            while clusters.read(self.state) is not None and files.reports():
                if time.monotonic() > deadline:
                    hint = f"tail -n 50 {shell_word(clusters.log_path(self.state))}"
                    raise ServiceError(f"service {files.service} did not stop within 60 s", hint=hint)
                time.sleep(0.05)
        return True

    def _await(
        self, files: ServiceFiles, desired: Desired, done: Callable[[ReplicaReport], bool], action: str,
        seconds: float = PUBLISH_SECONDS,
    ) -> None:  # fmt: skip
        deadline = time.monotonic() + seconds
        while True:
            reports = files.reports()
            count = sum(map(done, reports))
            if count == len(reports) and count >= desired.settings.replicas:
                return
            self._check_alive(files, desired)
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{count} of {desired.settings.replicas} replicas of {files.service} {action} within {seconds:g} s",
                    hint=f"mlkit status; tail -n 50 {shell_word(clusters.log_path(self.state))}",
                )
            time.sleep(0.01)

    def _check_alive(self, files: ServiceFiles, desired: Desired) -> None:
        """Raise ServiceError when Serve failed or Ray ended, so that waiting is pointless."""
        observed = files.observed()
        if observed is not None and observed.generation >= desired.generation and observed.state == "failed":
            raise ServiceError(
                f"Ray Serve did not start {files.service}: {observed.message}",
                hint=f"tail -n 50 {shell_word(clusters.log_path(self.state))}",
            )
        if clusters.read(self.state) is None:
            raise ServiceError(
                "the local Ray ended",
                hint=f"tail -n 50 {shell_word(clusters.log_path(self.state))}; then mlkit up RECIPE",
            )


def _successor(current: RoutingTable | None, table: RoutingTable) -> RoutingTable:
    """The table to publish after the current one, with its fence. Raises ServiceError when it is out of date."""
    if current is None:
        return table
    if table.epoch <= current.epoch:
        raise ServiceError(
            f"{table.service} has routing table {current.epoch}; {table.epoch} is not newer",
            hint="another run deployed meanwhile: run the same command again",
        )
    if table.fence and table.fence < current.fence:
        raise ServiceError(
            f"{table.service} is led by controller {current.fence}; controller {table.fence} has lost its lease",
            hint="nothing to do: the other controller continues",
        )
    return replace(table, fence=max(table.fence, current.fence))


def _can_swap_at_once(files: ServiceFiles, current: RoutingTable, table: RoutingTable) -> bool:
    """Whether the current table has every version of ``table`` loaded, and some replica serves it.

    A replica that is down reads the next table when it restarts, so a rollback does not wait for it.
    """
    loaded = {(variant.digest, variant.placement) for variant in current.variants}
    if not all((variant.digest, variant.placement) in loaded for variant in table.variants):
        return False
    return any(report.state == "serving" and report.epoch == current.epoch for report in files.reports())


def _check_isolated(files: ServiceFiles, variant: Variant, *, late: bool) -> None:
    """Raise ServiceError with Serve's message when Serve gave up on an isolated variant, or it is ``late``."""
    status = files.isolated_status().get(variant.digest, {})
    if late or status.get("state") in ("DEPLOY_FAILED", "UNHEALTHY"):
        message = str(status.get("message") or "it has not started")
        reasons = [line for line in message.splitlines() if line.startswith("mlflowkit.errors.")]
        reason = reasons[-1].partition(": ")[2] if reasons else message.strip().splitlines()[-1]
        raise ServiceError(
            f"{variant.name} {variant.version} does not start in a process of its own: {reason}; "
            "the version before it still answers",
            hint="serve.isolated.cpus may be more than this machine has left" if late else "mlkit run RECIPE",
        )


def _prepared(report: ReplicaReport, proposal: Proposal) -> bool:
    if report.refused == proposal.ticket:
        raise ServiceError(
            f"{proposal.table.service} refuses the new version: {report.message}; the version before it still answers",
            hint=report.hint,
        )
    return report.prepared == proposal.ticket


def requested_settings(files: ServiceFiles, service: Any) -> GatewaySettings:
    """The settings of a ServeSection, with ports that are free or that the service already listens on."""
    before = files.desired()
    settings = replace(_section_settings(service, before), keys=_keys_path(files, service))
    auth.check_exposed(settings.host, settings.keys)
    running = before.settings if before is not None and files.reports() else None
    used = () if running is None or running.host != settings.host else (running.port, running.grpc_port)
    port = _choose_port(settings.host, settings.port, used, replaceable=before is not None and service.port == 0)
    grpc = settings.grpc_port
    if grpc is not None:
        if grpc and grpc == port:
            hint = "serve.grpc_port=0 takes a free one"
            raise ServiceError(f"port {port} cannot serve HTTP and gRPC both", hint=hint)
        grpc = _choose_port(settings.host, grpc, used, replaceable=service.grpc_port == 0, key="grpc_port")
    return replace(settings, port=port, grpc_port=grpc)


def _keys_path(files: ServiceFiles, service: Any) -> str:
    """The file from which replicas read the API keys of a ServeSection; "" for none. Raises ServiceError if invalid."""
    if service.auth.keys_env:
        auth.parse_keys(_environment_keys(service.auth.keys_env), f"the environment variable {service.auth.keys_env}")
        return str(files.folder / "keys.json")
    if service.auth.keys:
        auth.read_keys(Path(service.auth.keys))
        return str(Path(service.auth.keys).resolve())
    return ""


def write_environment_keys(files: ServiceFiles, service: Any) -> None:
    """Write API keys from the environment to a file that replicas watch, readable by its owner only."""
    if service.auth.keys_env:
        auth.write_private(files.folder / "keys.json", _environment_keys(service.auth.keys_env).encode())


def _environment_keys(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise ServiceError(
            f"the environment variable {name} is not set; serve.auth.keys_env names it for the API keys",
            hint=f'export {name}="$(cat keys.json)"',
        )
    return value


def _section_settings(service: Any, before: Desired | None) -> GatewaySettings:
    """The settings of a ServeSection; port 0 keeps the port chosen before."""
    previous = before.settings if before is not None and before.settings.host == service.host else None
    port = service.port or (0 if previous is None else previous.port)
    grpc = service.grpc_port
    if grpc == 0 and previous is not None:
        grpc = previous.grpc_port or 0
    return GatewaySettings(
        service=service.service,
        host=service.host,
        port=port,
        replicas=service.replicas,
        threads=service.threads,
        max_body_bytes=int(service.max_body_mb * (1 << 20)),
        timeout_seconds=service.timeout_seconds,
        max_queue=service.max_queue,
        grpc_port=grpc,
        admin_port=service.admin_port,
        isolated_replicas=service.isolated.replicas,
        isolated_max_replicas=service.isolated.max_replicas,
        isolated_cpus=service.isolated.cpus,
        isolated_gpus=service.isolated.gpus,
        isolated_memory_mb=service.isolated.memory_mb,
        isolated_max_batch=service.isolated.max_batch,
        log=service.log.enabled,
        log_sampling=service.log.sampling,
        log_days=service.log.days,
        log_mb=service.log.max_mb,
        profile=service.log.profile,
        allowed_hosts=tuple(service.allowed_hosts),
        unknown_columns=service.unknown_columns,
        missing_columns=service.missing_columns,
        feedback_mb=service.feedback.max_mb,
        feedback_max_share=service.feedback.max_share,
    )


@contextlib.contextmanager
def _port_lock(port: int) -> Iterator[None]:
    """Hold a machine-wide lock on ``port`` while a service starts to listen on it.

    Replicas share their port (SO_REUSEPORT), so the kernel would let two services share it too and distribute
    requests between different models. The lock is an abstract socket: it ends with this process, leaves no file, and
    has the port's own scope, one network namespace. Any user can take its name, so only a holder of this user counts;
    ports cannot be shared between users. Raises ServiceError after ENSURE_SECONDS.
    """
    deadline, foreign = time.monotonic() + ENSURE_SECONDS, time.monotonic() + FOREIGN_SECONDS
    name = f"\0mlkit-{os.getuid()}-port-{port}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as claim:
        while True:
            try:
                claim.bind(name)
                claim.listen(4096)  # whoever waits connects twice a second
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise ServiceError(f"port {port} cannot be claimed: {error}", hint="run it again") from error
            if _is_held_by_this_user(name):
                foreign = time.monotonic() + FOREIGN_SECONDS
            elif time.monotonic() > foreign:
                break
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"another deploy has been taking port {port} for {ENSURE_SECONDS:g} s",
                    hint="wait for it, or choose another: serve.port=0 takes a free one",
                )
            time.sleep(0.5)
        yield


def _is_held_by_this_user(name: str) -> bool:
    """Whether a process of this user listens at an abstract socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(name)
        except OSError:
            return False
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] == os.getuid())


def _choose_port(host: str, port: int, used: Sequence[int | None], *, replaceable: bool, key: str = "port") -> int:
    """``port`` if it is free or ``used`` by the service itself; a free one for 0, or if it is ``replaceable``."""
    if port and port in used:
        return port
    if port:
        reason = _unavailable_reason(host, port)
        if not reason:
            return port
        if not replaceable:
            raise ServiceError(
                f"port {port} on {host} is {reason}",
                hint=f"choose another: serve.{key}={_free_port(host)} (serve.{key}=0 takes a free one)",
            )
    return _free_port(host)


def _unavailable_reason(host: str, port: int) -> str:
    """Why a port cannot be bound; "" when it can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"in use by another program{_describe_listener(port)}"
            return os.strerror(error.errno or 0)
    return ""


def _describe_listener(port: int) -> str:
    import psutil

    try:
        connections = [c for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr]
        pid = next((connection.pid for connection in connections if connection.laddr[1] == port), None)
        return f" ({psutil.Process(pid).name()}, process {pid})" if pid else ""
    except psutil.Error:
        return ""


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _supervision(state: Path) -> str:
    """What is wrong with the supervision of services that answer; "" when it is well."""
    cluster = clusters.read(state)
    if cluster is None:
        return "nothing would start it again: mlkit up RECIPE"
    if cluster.state == "ready":
        return ""
    return cluster.message or "Ray is being started; its gateways answer meanwhile"


def _service_status(files: ServiceFiles, supervision: str) -> ServiceStatus:
    desired, table, reports = files.desired(), files.table(), files.reports()
    endpoint = "" if desired is None else desired.settings.endpoint
    ready = bool(reports) and http_client.ready(endpoint)
    return ServiceStatus(
        service=files.service,
        endpoint=endpoint,
        epoch=0 if table is None else table.epoch,
        ready=ready,
        variants=() if table is None else table.variants,
        replicas=len(reports),
        state=summarize_state(reports, table=table is not None, serving=ready),
        grpc_endpoint="" if desired is None else desired.settings.grpc_endpoint,
        supervision=supervision if reports else "",
    )
