"""One gateway replica: a gateway, its servers, and a thread that reconciles both with the service's files.

Why files and not a call to each replica: Ray Serve has no broadcast (a handle's call goes to one replica, of its
choice), a change of ``user_config`` takes a replica out of rotation, and a replica that restarts after a crash needs a
durable copy of the table anyway. So the table lives in one file, is replaced atomically, and every replica polls it; on
several machines the state folder is shared.

A table is rolled out in two phases. A *proposal* is loaded, verified and warmed while the current table answers; each
replica reports it prepared or refused, with the reason. Only when all have prepared does the *table* itself change, and
each replica flips its pointer: no replica answers with a version that another could not load.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit.errors import BundleError, MlkitError, ServiceError
from mlflowkit.service_state.records import (
    DELIVERY,
    DRAINING,
    HEARTBEAT_SECONDS,
    RETIRED,
    GatewaySettings,
    Proposal,
    ReplicaReport,
    ServiceFiles,
    process_started,
)
from mlflowkit.serving.auth import Keyring, check_exposed
from mlflowkit.serving.feedback.intake import Intake
from mlflowkit.serving.grpc.grpc_server import GrpcServer
from mlflowkit.serving.http.gateway import Gateway
from mlflowkit.serving.http.http_server import HttpServer, prepare_interpreter
from mlflowkit.serving.inference.data_plane import DataPlane
from mlflowkit.serving.inference.gateway_metrics import Telemetry
from mlflowkit.serving.inference.shadow import ShadowMirror
from mlflowkit.serving.inference.variants import ActiveTable, Versions, load_table
from mlflowkit.serving.key_file import KeyFile
from mlflowkit.serving.observer.answered_ledger import AnsweredLedger
from mlflowkit.serving.observer.observer_client import ObserverClient, observer_command
from mlflowkit.system.log_once import LogOnce
from mlflowkit.system.text import first_line
from mlflowkit.values import Json, RoutingTable

if TYPE_CHECKING:
    from mlflowkit.ports import RemoteModels, Runtime

POLL_SECONDS = 0.02
RETRY_SECONDS = 5.0
EVIDENCE_SECONDS = 0.2
"""Shortest time between two writes of evidence."""
REMOTE_SECONDS = 5.0
"""How long to wait for an isolated variant of a proposal, which the publisher has found ready. For a table that already
answers there is no wait: a challenger that is down must not keep a gateway from starting."""
RESTART_HINT = "nothing to do: Ray Serve replaces the replica; mlkit status"
_log = logging.getLogger("mlflowkit.serving")
WATCHED = ("service.json", "table.json", "proposal.json", RETIRED, DRAINING)
"""The records that a replica follows."""


class Replica:
    """Serves what the files in ``folder`` say until `stop`. ``profiler`` is the ``module:class`` of a traffic profiler.

    A replica that ``retired.json`` names stops, and then calls ``retired``.

    Raises ServiceError when the service has no settings, or would listen beyond loopback without API keys.
    """

    def __init__(
        self,
        folder: Path,
        runtime: Runtime,
        name: str,
        remotes: RemoteModels | None = None,
        profiler: str = "",
        retired: Callable[[], None] | None = None,
    ) -> None:
        self._retired = retired
        self._files = ServiceFiles(folder)
        desired = self._files.desired()
        if desired is None:
            raise ServiceError(f"{folder} has no service.json", hint="mlkit run RECIPE")
        check_exposed(desired.settings.host, desired.settings.keys)
        self._runtime = runtime
        self._remotes = remotes
        self._settings: GatewaySettings = desired.settings
        self.versions = Versions()
        self._ledger = AnsweredLedger(folder / "profiles", name, pane_seconds=_pane_seconds(self._settings))
        self._observer = observer = ObserverClient(observer_command(folder, name, profiler), ledger=self._ledger)
        telemetry = Telemetry(self._settings.service, name)
        telemetry.sink_counters = observer.counters
        mirror = ShadowMirror(self.versions, observer)
        self.plane = DataPlane(self._settings, self.versions, telemetry, observer, mirror)
        self._feedback = Intake(
            folder / "feedback", name, days=desired.settings.log_days, megabytes=desired.settings.feedback_mb
        )
        self.gateway = Gateway(self.plane, self._other_metrics_pages, self._feedback, self._delivery_record)
        self._report = ReplicaReport(
            replica=name,
            pid=os.getpid(),
            node=socket.gethostname(),
            started=process_started(os.getpid()) or 0.0,
        )
        self._key_file = KeyFile(self._apply_keys)
        self._key_file.follow(self._settings.keys)
        self._server: HttpServer | None = None
        self._grpc: GrpcServer | None = None
        self._prepared: tuple[Proposal, ActiveTable] | None = None
        self._versions: Mapping[str, str] = {}
        self._retry_at = 0.0
        self._evidence_at = 0.0
        self._evidence_revision: object = None
        self._errors = LogOnce(_log)
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="mlkit-replica", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise ServiceError when the replica can no longer serve; Ray Serve then replaces it."""
        if self._failure is not None:
            message = f"the replica stopped following its table: {self._failure!r}"
            raise ServiceError(message, hint=RESTART_HINT) from self._failure
        if self._server is not None and not self._server.alive:
            raise ServiceError("the listener's thread ended", hint=RESTART_HINT)

    def stop(self) -> None:
        """Stop accepting, finish requests in flight, remove the report."""
        self._stopping.set()
        self._thread.join(5.0)
        self._key_file.stop()
        _stop_servers(self._grpc, self._server)
        self.plane.close()
        self._feedback.stop()
        self._observer.stop()
        self._write_evidence(now=True)
        self._files.remove_replica(self._report.replica)

    def _retire(self, retired: Callable[[], None]) -> None:
        """Stop, because another replica has taken this one's place, and then call ``retired``."""
        try:
            self.stop()
        finally:
            retired()

    def _run(self) -> None:
        try:
            versions = self._files.watch(WATCHED, self._versions, 0.0)
            while not self._stopping.is_set():
                self._update_warning()
                if versions != self._versions or (self._retry_at and time.monotonic() > self._retry_at):
                    self._versions, self._retry_at = versions, 0.0
                    self._reconcile()
                elif time.time() - self._report.heartbeat > HEARTBEAT_SECONDS:
                    self._write_report()
                self._write_evidence()
                versions = self._files.watch(WATCHED, self._versions, POLL_SECONDS)
        except BaseException as error:  # noqa: BLE001 - raised by check(), which Ray Serve calls
            _log.exception("the replica stopped following its table")
            self._failure = error

    def _reconcile(self) -> None:
        """Apply settings, table and proposal from the files, in this order, and start the servers when due."""
        if self._retired is not None and self._report.replica in (self._files.read(RETIRED, _retired_replicas) or ()):
            threading.Thread(target=self._retire, args=(self._retired,), name="mlkit-retire").start()
            return
        self.plane.draining = self._files.exists(DRAINING)
        desired = self._files.desired()
        if desired is not None and desired.generation != self._report.generation:
            self._update_report(generation=desired.generation)
            self._apply_settings(desired.settings)
        table = self._files.table()
        if table is not None and table.epoch > self.versions.epoch:
            self._activate_table(table)
        if self._server is None and (table is None or self.versions.active is not None):
            self._start_servers()
        proposal = self._files.proposal()
        if proposal is None or proposal.table.epoch <= self.versions.epoch:
            self._prepared = None
        elif proposal.ticket and proposal.ticket not in (self._report.prepared, self._report.refused):
            self._prepare(proposal)
        self._write_report()

    def _apply_keys(self, keys: Keyring | None) -> None:
        self.plane.keys = keys

    def _update_warning(self) -> None:
        warning = "; ".join(filter(None, (self._key_file.warning, self._feedback.warning)))
        if warning != self._report.warning:
            self._update_report(warning=warning, heartbeat=0.0)  # written in the next iteration

    def _apply_settings(self, settings: GatewaySettings) -> None:
        """Apply limits; start servers on a new address before stopping the old; reload models for new threads."""
        try:
            check_exposed(settings.host, settings.keys)
        except ServiceError as error:
            _log.error("the new settings are not applied: %s", error.message)
            self._update_report(message=error.message, hint=error.hint)
            return
        old, self._settings = self._settings, settings
        self._key_file.follow(settings.keys)
        self.plane.settings = settings
        self._ledger.pane_seconds = _pane_seconds(settings)
        self._feedback.days, self._feedback.megabytes = settings.log_days, settings.feedback_mb
        if self._server is not None and _address(settings) != _address(old):
            previous = self._grpc, self._server
            self._start_servers()
            _stop_servers(*previous)
        active = self.versions.active
        if active is not None and settings.threads != old.threads:
            self.versions.activate(self._load(active.table))

    def _activate_table(self, table: RoutingTable) -> None:
        prepared = self._prepared
        try:
            loaded = prepared[1] if prepared is not None and prepared[0].table == table else self._load(table)
        except MlkitError as error:
            state = "serving" if self.versions.active is not None else "refused"
            self._update_report(state=state, message=error.message, hint=error.hint)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            return
        self._observer.send_table(table)
        self.versions.activate(loaded)
        self._prepared = None
        variants = [model.variant for model in loaded.by_name.values()]
        roles = tuple((variant.name, variant.version, variant.role) for variant in variants)
        self.plane.telemetry.record_swap(table.epoch, roles)
        self._update_report(state="serving", epoch=table.epoch, message="", hint="", prepared="", refused="")

    def _prepare(self, proposal: Proposal) -> None:
        try:
            self._prepared = (proposal, self._load(proposal.table, remote_seconds=REMOTE_SECONDS))
        except MlkitError as error:
            self._prepared = None
            self._update_report(refused=proposal.ticket, prepared="", message=error.message, hint=error.hint)
        else:
            self._update_report(prepared=proposal.ticket, refused="", message="", hint="")

    def _load(self, table: RoutingTable, remote_seconds: float = 0.0) -> ActiveTable:
        active = self.versions.active
        reuse = () if active is None else tuple(active.by_name.values())
        try:
            return load_table(
                table,
                self._runtime,
                self._settings.threads,
                reuse,
                self.versions.counters,
                remotes=self._remotes,
                remote_seconds=remote_seconds,
            )
        except MlkitError:
            raise
        except Exception as error:  # a damaged candidate must not end the thread that follows the table
            message = f"a version of table {table.epoch} cannot be loaded: {type(error).__name__}: {first_line(error)}"
            raise BundleError(message, hint="restore its bundle: mlkit run RECIPE --force package") from error

    def _start_servers(self) -> None:
        if self._server is None:
            prepare_interpreter()
        host, grpc_port = self._settings.host, self._settings.grpc_port
        self._server = HttpServer(self.gateway, host, self._settings.port)
        loop = self._server.loop
        self._grpc = None if grpc_port is None else GrpcServer(self.plane, host, grpc_port, loop)
        state = "waiting" if self.versions.active is None else "serving"
        self._update_report(port=self._server.port, state=state)

    def _update_report(self, **changes: Any) -> None:
        self._report = dataclasses.replace(self._report, **changes)

    def _write_report(self) -> None:
        self._update_report(heartbeat=time.time())
        if self._settings.replicas > 1:
            page = self.plane.telemetry.render(self.plane.in_flight)
            self._attempt(lambda: self._files.write_metrics_page(self._report.replica, page))
        self._attempt(lambda: self._files.write_report(self._report))

    def _write_evidence(self, *, now: bool = False) -> None:
        """Write the counters when they changed; a failed write is repeated the next time."""
        monotonic = time.monotonic()
        if not now and monotonic < self._evidence_at:
            return
        self._evidence_at = monotonic + EVIDENCE_SECONDS
        counters, name = self.versions.counters, self._report.replica
        revision = counters.revision
        if self.versions.active is None or revision == self._evidence_revision:
            return
        if self._attempt(lambda: self._files.write_evidence(name, counters.to_json())):
            self._evidence_revision = revision

    def _attempt(self, write: Callable[[], None]) -> bool:
        """Run a write and return whether it succeeded. A full disk must not stop the gateway; it is logged once."""
        try:
            write()
        except ServiceError as error:
            self._errors.error(error.message)
            return False
        self._errors.clear()
        return True

    def _delivery_record(self) -> Json:
        """What follows the delivery.yaml recorded, and how many seconds ago; None where nothing follows one."""
        record = self._files.read_json(DELIVERY)
        return {**record, "age": time.time() - record["looked"]} if isinstance(record, dict) else None

    def _other_metrics_pages(self) -> list[str]:
        """Metrics pages of the other live replicas, at most a few seconds old."""
        if self._settings.replicas == 1:
            return []
        others = [report.replica for report in self._files.reports() if report.replica != self._report.replica]
        return [page for page in map(self._files.metrics_page, others) if page]


def _retired_replicas(record: Any) -> tuple[str, ...]:
    return tuple(record["replicas"])


def _pane_seconds(settings: GatewaySettings) -> float:
    """The length of the windows in which answered rows are counted; 0 when no profiles are kept."""
    return settings.pane_seconds if settings.profile else 0.0


def _address(settings: GatewaySettings) -> tuple[object, ...]:
    """The settings that need new servers when they change; the gRPC server has a limit on bodies of its own."""
    grpc = settings.grpc_port
    return settings.host, settings.port, grpc, None if grpc is None else settings.max_body_bytes


def _stop_servers(grpc: GrpcServer | None, server: HttpServer | None) -> None:
    """Stop after calls in flight end; gRPC first, which runs on the HTTP server's loop."""
    if grpc is not None:
        grpc.stop()
    if server is not None:
        server.stop()
