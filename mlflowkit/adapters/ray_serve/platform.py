"""RayServePlatform: the Platform port over the files of a state folder and its steward. Imports no Ray."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflowkit.adapters.ray_serve import cluster as clusters
from mlflowkit.errors import ServiceError, UsageError, nearest
from mlflowkit.service_state import http_client
from mlflowkit.service_state.records import (
    Desired,
    Proposal,
    ReplicaReport,
    ServiceFiles,
    Settings,
    read_json,
    service_state,
)
from mlflowkit.serving import auth
from mlflowkit.values import RoutingTable, ServiceStatus, Variant

ENSURE_SECONDS = 120.0
PUBLISH_SECONDS = 120.0


class RayServePlatform:
    """Keeps the gateways of a state folder running.

    ``runtime`` is the ``module:class`` of the Runtime that replicas load graphs with, in their own processes.
    ``companions`` are modules that are kept running beside the steward, with the state folder as their argument.
    """

    def __init__(
        self,
        state: Path,
        runtime: str = "mlflowkit.adapters.onnxruntime:OnnxRuntime",
        companions: Sequence[str] = (),
    ) -> None:
        self.state = state.resolve()
        self.runtime = runtime
        self.companions = tuple(companions)

    def prewarm(self, service: Any = None) -> None:
        """Begin starting Ray and Serve in the background; returns at once.

        Raises ServiceError when the port of ``service`` (a stages.deploy.ServeSection) is taken: better now than
        after an hour of training.
        """
        clusters.check_format(self.state)
        if service is not None:
            _wanted(ServiceFiles(self.state / "services" / service.service), service)
        clusters.spawn(self.state, self.runtime, self.companions)

    def ensure(self, service: Any) -> str:
        """Start the gateways of a stages.deploy.ServeSection if they are not up; returns the endpoint's URL.

        Changed limits, threads, replicas or address are taken up by the running gateways. Raises ServiceError when
        the port is taken (before Ray is started) or the gateway does not come up, EngineError when Ray does not.
        """
        clusters.check_format(self.state)
        files = ServiceFiles(self.state / "services" / service.service)
        with files.lock("ensure"), contextlib.ExitStack() as claims:
            for port in sorted({service.port, service.grpc_port or service.port}):
                claims.enter_context(_claimed(port))
            before = files.desired()
            settings = _wanted(files, service)
            desired = _next(before, settings, up=True)
            if desired != before:
                files.write_desired(desired)
            _materialise(files, service)
            clusters.spawn(self.state, self.runtime, self.companions)
            clusters.wait(self.state)
            self._await_replicas(files, desired)
        return settings.endpoint

    def publish(self, table: RoutingTable) -> None:
        """Hand a table to every replica; returns once all have loaded, verified, warmed and swapped to it.

        A table whose versions are all loaded (other weights, other roles, fewer variants) is swapped to at once. For
        any other, the processes of isolated variants are started first, then every replica gets ready, then all swap.
        A table with fence 0, of someone who holds no lease, keeps the fence of the table before it.

        Raises ServiceError when the table is not newer or its fence is older than the present one's, and with the
        reason of the first replica or process that refuses (a corrupted or unblessed bundle, a failed warm-up); every
        replica then goes on answering with the table that it has.
        """
        files = ServiceFiles(self.state / "services" / table.service)
        with files.lock("publish"):
            desired = files.desired()
            if desired is None or not desired.up:
                raise ServiceError(f"service {table.service} is not up", hint="mlkit up RECIPE, or mlkit run RECIPE")
            current = files.table()
            table = _successor(current, table)
            if current is not None and _loaded(current, table) and _serves(files, current):
                files.write_table(table)
                self._await_swap(files, desired, table)
                return
            try:
                self._prepare(files, desired, table)
                files.write_table(table)
                self._await_swap(files, desired, table)
            finally:
                files.proposal_path.unlink(missing_ok=True)

    def _prepare(self, files: ServiceFiles, desired: Desired, table: RoutingTable) -> None:
        """Have processes of isolated variants started and every replica ready for a table."""
        if any(variant.placement == "isolated" for variant in table.variants):
            files.write_proposal(Proposal("", table))
            self._await_isolated(files, desired, table)
        proposal = Proposal(secrets.token_hex(8), table)
        files.write_proposal(proposal)
        self._await(files, desired, lambda report: _prepared(report, proposal), "loaded the new version")

    def _await_swap(self, files: ServiceFiles, desired: Desired, table: RoutingTable) -> None:
        self._await(files, desired, lambda report: report.epoch >= table.epoch, "swapped to the new version")

    def _await_isolated(self, files: ServiceFiles, desired: Desired, table: RoutingTable) -> None:
        """Wait until each isolated variant has a process that answers. Raises ServiceError with why it has none."""
        from mlflowkit.adapters.ray_serve.isolated import listening, read_reports

        deadline = time.monotonic() + PUBLISH_SECONDS
        for variant in table.variants:
            while variant.placement == "isolated":
                reports = read_reports(files.folder, variant.digest).values()
                if any(not listening(report, variant.digest) for report in reports):
                    break
                self._check_alive(files, desired)
                _check_isolated(files, variant, late=time.monotonic() > deadline)
                time.sleep(0.1)

    def status(self) -> Sequence[ServiceStatus]:
        """Every service of the state folder, from its files and one health request each. Imports no Ray."""
        return [_status(files) for files in ServiceFiles.all(self.state)]

    def folder(self, service: str) -> Path:
        """Where the files of a service are."""
        return self.state / "services" / service

    def down(self, service: str | None = None) -> Sequence[str]:
        """Stop one service, or all and the local Ray that was started for them; returns the names stopped.

        Raises UsageError when there is no such service, ServiceError when it does not stop.
        """
        known = {files.service: files for files in ServiceFiles.all(self.state)}
        if service is not None and service not in known:
            close = nearest(service, known)
            allowed = ", ".join(known) or "none"
            raise UsageError(
                f"no service {service!r} in {self.state}; there is {allowed}",
                hint=f"mlkit down {close}" if close else "mlkit status",
            )
        stopped = [name for name in known if service in (None, name) and self._stop(known[name])]
        if service is None:
            clusters.stop(self.state)
        return stopped

    def _stop(self, files: ServiceFiles) -> bool:
        """Ask for a service to be down and wait until it is; returns whether it was up."""
        with files.lock("ensure"):
            before = files.desired()
            if before is None or not before.up:
                return False
            desired = replace(before, generation=before.generation + 1, up=False)
            files.write_desired(desired)
            deadline = time.monotonic() + 60
            while clusters.read(self.state) is not None and files.reports():
                if time.monotonic() > deadline:
                    raise ServiceError(
                        f"service {files.service} did not stop within 60 s", hint=f"see {clusters.log_path(self.state)}"
                    )
                time.sleep(0.05)
        return True

    def _await_replicas(self, files: ServiceFiles, desired: Desired) -> None:
        """Wait until as many replicas as desired follow this generation.

        A replica that refuses its table follows too: what mends it is the next table.
        """

        def follows(report: ReplicaReport) -> bool:
            return report.generation >= desired.generation and report.state != "starting"

        self._await(files, desired, follows, "started", ENSURE_SECONDS)

    def _await(
        self,
        files: ServiceFiles,
        desired: Desired,
        done: Callable[[ReplicaReport], bool],
        what: str,
        seconds: float = PUBLISH_SECONDS,
    ) -> None:
        deadline = time.monotonic() + seconds
        while True:
            reports = files.reports()
            count = sum(map(done, reports))
            if count == len(reports) and count >= desired.settings.replicas:
                return
            self._check_alive(files, desired)
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{count} of {desired.settings.replicas} replicas of {files.service} {what} within {seconds:g} s",
                    hint=f"mlkit status; the log is {clusters.log_path(self.state)}",
                )
            time.sleep(0.01)

    def _check_alive(self, files: ServiceFiles, desired: Desired) -> None:
        """Raise ServiceError when what is waited for cannot come any more."""
        observed = files.observed()
        if observed is not None and observed.generation >= desired.generation and observed.state == "failed":
            raise ServiceError(
                f"Ray Serve did not start {files.service}: {observed.message}",
                hint=f"see {clusters.log_path(self.state)}",
            )
        if clusters.read(self.state) is None:
            raise ServiceError("the local Ray ended", hint=f"see {clusters.log_path(self.state)}; then mlkit up RECIPE")


def _successor(current: RoutingTable | None, table: RoutingTable) -> RoutingTable:
    """The table as it is published after the current one. Raises ServiceError when it may not follow it."""
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
            hint="nothing to do: the other controller goes on",
        )
    return replace(table, fence=max(table.fence, current.fence))


def _loaded(current: RoutingTable, table: RoutingTable) -> bool:
    """Whether replicas that answer with the current table have all that another one needs."""
    have = {(variant.digest, variant.placement) for variant in current.variants}
    return all((variant.digest, variant.placement) in have for variant in table.variants)


def _serves(files: ServiceFiles, current: RoutingTable) -> bool:
    """Whether the current table is in use. A replica that is gone just now finds the next one when it comes back: a
    rollback does not wait for it.
    """
    return any(report.state == "serving" and report.epoch == current.epoch for report in files.reports())


def _check_isolated(files: ServiceFiles, variant: Variant, *, late: bool) -> None:
    """Raise ServiceError when Serve gave up on an isolated variant, or it is ``late``, with what Serve says of it."""
    told = (read_json(files.folder / "isolated.json") or {}).get(variant.digest, {})
    if late or told.get("state") in ("DEPLOY_FAILED", "UNHEALTHY"):
        message = str(told.get("message") or "it has not started")
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


def _next(before: Desired | None, settings: Settings, *, up: bool) -> Desired:
    if before is not None and before.settings == settings and before.up == up:
        return before
    return Desired(1 if before is None else before.generation + 1, up, settings)


def _wanted(files: ServiceFiles, service: Any) -> Settings:
    """What a ServeSection asks for, with a port that is free or that the service already listens on."""
    before = files.desired()
    settings = replace(_settings(service, before), keys=_keys(files, service))
    auth.check_exposed(settings.host, settings.keys)
    mine = before.settings if before is not None and files.reports() else None
    used = () if mine is None or mine.host != settings.host else (mine.port, mine.grpc_port)
    port = _port(settings.host, settings.port, used, kept=before is not None and service.port == 0)
    grpc = settings.grpc_port
    if grpc is not None:
        if grpc and grpc == port:
            raise ServiceError(
                f"port {port} cannot serve HTTP and gRPC both", hint="serve.grpc_port=0 takes a free one"
            )
        grpc = _port(settings.host, grpc, used, kept=service.grpc_port == 0, key="grpc_port")
    return replace(settings, port=port, grpc_port=grpc)


def _keys(files: ServiceFiles, service: Any) -> str:
    """Where replicas find the API keys of a ServeSection; "" for none. Raises ServiceError when they are no good."""
    if service.auth.keys_env:
        auth.parse(_environment(service.auth.keys_env), f"the environment variable {service.auth.keys_env}")
        return str(files.folder / "keys.json")
    if service.auth.keys:
        auth.read(Path(service.auth.keys))
        return str(Path(service.auth.keys).resolve())
    return ""


def _materialise(files: ServiceFiles, service: Any) -> None:
    """Leave keys that came in the environment where replicas follow them, for their owner's eyes only."""
    if service.auth.keys_env:
        auth.write_private(files.folder / "keys.json", _environment(service.auth.keys_env).encode())


def _environment(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise ServiceError(
            f"the environment variable {name} is not set; serve.auth.keys_env says that it holds the API keys",
            hint=f'export {name}="$(cat keys.json)"',
        )
    return value


def _settings(service: Any, before: Desired | None) -> Settings:
    """What a ServeSection asks for; port 0 keeps the port that was chosen before."""
    mine = before.settings if before is not None and before.settings.host == service.host else None
    port = service.port or (0 if mine is None else mine.port)
    grpc = service.grpc_port
    if grpc == 0 and mine is not None:
        grpc = mine.grpc_port or 0
    return Settings(
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
    )


@contextlib.contextmanager
def _claimed(port: int) -> Iterator[None]:
    """Wait until no other process of this machine is about to listen on ``port``, and keep others waiting.

    Replicas share their port, so the kernel would let two services that both found it free share it too, and deal
    requests out between different models. The claim is an abstract socket: it ends with this process, leaves no
    file, and is as wide as the port itself, one network namespace. Raises ServiceError after ENSURE_SECONDS.
    """
    deadline = time.monotonic() + ENSURE_SECONDS
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as claim:
        while True:
            try:
                claim.bind(f"\0mlkit-{os.getuid()}-port-{port}")
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise ServiceError(f"port {port} cannot be claimed: {error}", hint="run it again") from error
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"another deploy has been taking port {port} for {ENSURE_SECONDS:g} s",
                    hint="wait for it, or choose another: serve.port=0 takes a free one",
                )
            time.sleep(0.05)
        yield


def _port(host: str, port: int, used: Sequence[int | None], *, kept: bool, key: str = "port") -> int:
    """A port that is free now, or ``used`` by the service itself. A ``kept`` one that is taken is chosen anew."""
    if port and port in used:
        return port
    if port:
        reason = _taken(host, port)
        if not reason:
            return port
        if not kept:
            raise ServiceError(
                f"port {port} on {host} is {reason}",
                hint=f"choose another: serve.{key}={_free(host)} (serve.{key}=0 takes a free one)",
            )
    return _free(host)


def _taken(host: str, port: int) -> str:
    """Why a port cannot be had; "" when it can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"in use by another program{_holder(port)}" if error.errno == 98 else os.strerror(error.errno or 0)
    return ""


def _holder(port: int) -> str:
    import psutil

    try:
        found = [c for c in psutil.net_connections("tcp") if c.laddr and c.laddr[1] == port and c.status == "LISTEN"]
        return f" ({psutil.Process(found[0].pid).name()}, process {found[0].pid})" if found and found[0].pid else ""
    except psutil.Error:
        return ""


def _free(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _status(files: ServiceFiles) -> ServiceStatus:
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
        state=service_state(reports, table=table is not None, serving=ready),
        grpc_endpoint="" if desired is None else desired.settings.grpc_endpoint,
    )
