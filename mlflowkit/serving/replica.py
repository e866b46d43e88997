"""One gateway replica: a gateway, its listener, and a thread that keeps both to what the service's files say.

Why files and not a call to each replica: Ray Serve has no broadcast (a handle's call goes to one replica, of its
choice), a change of ``user_config`` takes a replica out of rotation, and a replica that comes back after a crash
has to find the table somewhere durable anyway. So the table lives in one place, is replaced whole, and every
replica follows it; on several machines the state folder is a shared one.

A table comes in two phases. A *proposal* is loaded, verified and warmed while the present table answers; a replica
reports it prepared or refused, with the reason. Only when all have prepared does the *table* itself change, and
then each flips its pointer: no replica answers with a version that another one could not load.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.service_state.records import HEARTBEAT, Proposal, ReplicaReport, ServiceFiles, Settings, process_started
from mlflowkit.serving.auth import Keyring, check_exposed
from mlflowkit.serving.auth import read as read_keys
from mlflowkit.serving.feedback.intake import Intake
from mlflowkit.serving.grpc.grpc_server import GrpcListener
from mlflowkit.serving.http.gateway import Gateway
from mlflowkit.serving.http.http_server import Listener
from mlflowkit.serving.inference.gateway_metrics import Telemetry
from mlflowkit.serving.inference.shadow import ShadowMirror
from mlflowkit.serving.inference.variants import Loaded, Versions, load_table
from mlflowkit.serving.observer.observer_client import ObserverTap, command
from mlflowkit.values import RoutingTable

if TYPE_CHECKING:
    from mlflowkit.ports import RemoteModels, Runtime

POLL_SECONDS = 0.02
RETRY_SECONDS = 5.0
EVIDENCE_SECONDS = 0.2
"""Evidence that changed is written at most this often."""
REMOTE_SECONDS = 5.0
"""How long an isolated variant of a proposal is waited for; the publisher has seen it up. One of a table that answers
already is not waited for: a challenger that is down keeps no gateway from starting."""
RESTART = "nothing to do: Ray Serve replaces the replica; mlkit status"
_log = logging.getLogger("mlflowkit.serving")
_Mark = tuple[tuple[int, int] | None, ...]


class Replica:
    """Follows the files in ``folder`` until `stop`. ``profiler`` is the ``module:class`` of what profiles its traffic.

    Raises ServiceError when the service has no settings, or asks to be reached from other machines without API keys.
    """

    def __init__(
        self, folder: Path, runtime: Runtime, name: str, remotes: RemoteModels | None = None, profiler: str = ""
    ) -> None:
        self._files = ServiceFiles(folder)
        desired = self._files.desired()
        if desired is None:
            raise ServiceError(f"{folder} has no service.json", hint="mlkit run RECIPE")
        check_exposed(desired.settings.host, desired.settings.keys)
        self._runtime = runtime
        self._remotes = remotes
        self._settings: Settings = desired.settings
        self.versions = Versions()
        self._tap = tap = ObserverTap(command(folder, name, profiler))
        self.gateway = Gateway(
            self._settings,
            self.versions,
            Telemetry(self._settings.service, name),
            self._neighbours,
            tap,
            ShadowMirror(self.versions, tap),
        )
        self.gateway.telemetry.tap = tap.counters
        self.gateway.feedback = self._feedback = Intake(folder / "feedback", name, days=desired.settings.log_days)
        self._report = ReplicaReport(
            replica=name,
            pid=os.getpid(),
            node=socket.gethostname(),
            started=process_started(os.getpid()) or 0.0,
        )
        self._keys_mark: _Mark = ()
        self._follow_keys()
        self._listener: Listener | None = None
        self._grpc: GrpcListener | None = None
        self._prepared: tuple[Proposal, Loaded] | None = None
        self._mark: _Mark = ()
        self._retry_at = 0.0
        self._evidence_at = 0.0
        self._evidence_mark: object = None
        self._complaint = ""
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._follow, name="mlkit-follow", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise ServiceError when the replica can no longer do its work: Ray Serve replaces it then."""
        if self._failure is not None:
            what = f"the replica stopped following its table: {self._failure!r}"
            raise ServiceError(what, hint=RESTART) from self._failure
        if self._listener is not None and not self._listener.alive:
            raise ServiceError("the listener's thread ended", hint=RESTART)

    def stop(self) -> None:
        """Accept no more, answer what is in flight, withdraw the report."""
        self._stopping.set()
        self._thread.join(5.0)
        _close(self._grpc, self._listener)
        self.gateway.close()
        self._feedback.stop()
        self._tap.stop()
        self._write_evidence(now=True)
        self._files.withdraw(self._report.replica)

    def _follow(self) -> None:
        try:
            while not self._stopping.is_set():
                self._follow_keys()
                mark = self._read_mark()
                if mark != self._mark or (self._retry_at and time.monotonic() > self._retry_at):
                    self._mark, self._retry_at = mark, 0.0
                    self._step()
                elif time.time() - self._report.heartbeat > HEARTBEAT:
                    self._tell()
                self._write_evidence()
                self._stopping.wait(POLL_SECONDS)
        except BaseException as error:  # noqa: BLE001 - kept for check(), which tells Ray Serve
            _log.exception("the replica stopped following its table")
            self._failure = error

    def _step(self) -> None:
        """Bring settings, table, listener and proposal, in this order, to what the files say."""
        desired = self._files.desired()
        if desired is not None and desired.generation != self._report.generation:
            self._note(generation=desired.generation)
            self._take_settings(desired.settings)
        table = self._files.table()
        if table is not None and table.epoch > self.versions.epoch:
            self._take_table(table)
        if self._listener is None and (table is None or self.versions.active is not None):
            self._listen()
        proposal = self._files.proposal()
        if proposal is None or proposal.table.epoch <= self.versions.epoch:
            self._prepared = None
        elif proposal.ticket and proposal.ticket not in (self._report.prepared, self._report.refused):
            self._prepare(proposal)
        self._tell()

    def _follow_keys(self) -> None:
        """Let in whoever has a key in the file.

        A file that is gone lets nobody in; a damaged one leaves it at the keys before it, and lets nobody in when
        there were none.
        """
        path = self._settings.keys
        mark: _Mark = (_stat(Path(path)),) if path else ()
        if mark == self._keys_mark:
            return
        self._keys_mark, warning = mark, ""
        if not path:
            self.gateway.keys = None
        else:
            try:
                self.gateway.keys = Keyring(read_keys(Path(path)))
            except ServiceError as error:
                if mark == (None,) or self.gateway.keys is None:
                    self.gateway.keys = Keyring(())
                holds = "the keys before it still hold" if len(self.gateway.keys) else "nobody is let in"
                warning = f"API keys: {error.message}; {holds}; {error.hint}"
                _log.error("%s", warning)
        if warning != self._report.warning:
            self._note(warning=warning, heartbeat=0.0)  # the next turn tells it

    def _take_settings(self, settings: Settings) -> None:
        """Limits hold at once; another address is a new listener beside the old; other threads, a new session."""
        try:
            check_exposed(settings.host, settings.keys)
        except ServiceError as error:
            _log.error("settings are left as they are: %s", error.message)
            self._note(message=error.message, hint=error.hint)
            return
        old, self._settings = self._settings, settings
        self._follow_keys()
        self.gateway.settings = settings
        self._feedback.days = settings.log_days
        if self._listener is not None and _address(settings) != _address(old):
            before = self._grpc, self._listener
            self._listen()
            _close(*before)
        active = self.versions.active
        if active is not None and settings.threads != old.threads:
            self.versions.activate(self._load(active.table))

    def _take_table(self, table: RoutingTable) -> None:
        ready = self._prepared
        try:
            loaded = ready[1] if ready is not None and ready[0].table == table else self._load(table)
        except MlkitError as error:
            state = "serving" if self.versions.active is not None else "refused"
            self._note(state=state, message=error.message, hint=error.hint)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            return
        self._tap.follow(table)
        self.versions.activate(loaded)
        self._prepared = None
        variants = [model.variant for model in loaded.by_name.values()]
        told = tuple((variant.name, variant.version, variant.role) for variant in variants)
        self.gateway.telemetry.swapped(table.epoch, told)
        self._note(state="serving", epoch=table.epoch, message="", hint="", prepared="", refused="")

    def _prepare(self, proposal: Proposal) -> None:
        try:
            self._prepared = (proposal, self._load(proposal.table, remote_seconds=REMOTE_SECONDS))
        except MlkitError as error:
            self._prepared = None
            self._note(refused=proposal.ticket, prepared="", message=error.message, hint=error.hint)
        else:
            self._note(prepared=proposal.ticket, refused="", message="", hint="")

    def _load(self, table: RoutingTable, remote_seconds: float = 0.0) -> Loaded:
        active = self.versions.active
        reuse = () if active is None else tuple(active.by_name.values())
        return load_table(
            table,
            self._runtime,
            self._settings.threads,
            reuse,
            self.versions.tallies,
            remotes=self._remotes,
            remote_seconds=remote_seconds,
        )

    def _listen(self) -> None:
        host, grpc_port = self._settings.host, self._settings.grpc_port
        self._listener = Listener(self.gateway, host, self._settings.port)
        loop = self._listener.loop
        self._grpc = None if grpc_port is None else GrpcListener(self.gateway, host, grpc_port, loop)
        state = "waiting" if self.versions.active is None else "serving"
        self._note(port=self._listener.port, state=state)

    def _note(self, **changes: Any) -> None:
        self._report = dataclasses.replace(self._report, **changes)

    def _tell(self) -> None:
        self._note(heartbeat=time.time())
        if self._settings.replicas > 1:
            page = self.gateway.telemetry.page(self.gateway.in_flight)
            self._written(lambda: self._files.write_page(self._report.replica, page))
        self._written(lambda: self._files.write_report(self._report))

    def _write_evidence(self, *, now: bool = False) -> None:
        """Leave what was counted for whoever judges it; a disk that refuses it is asked again the next time."""
        clock = time.monotonic()
        if not now and clock < self._evidence_at:
            return
        self._evidence_at = clock + EVIDENCE_SECONDS
        tallies, name = self.versions.tallies, self._report.replica
        mark = tallies.mark
        if self.versions.active is None or mark == self._evidence_mark:
            return
        if self._written(lambda: self._files.write_evidence(name, tallies.document())):
            self._evidence_mark = mark

    def _written(self, write: Callable[[], None]) -> bool:
        """Whether the disk took it. A full disk is no reason to stop answering; it is logged once."""
        try:
            write()
        except ServiceError as error:
            if error.message != self._complaint:
                _log.error("%s", error.message)
            self._complaint = error.message
            return False
        self._complaint = ""
        return True

    def _neighbours(self) -> list[str]:
        """Metrics pages of the other live replicas, a few seconds old at most."""
        if self._settings.replicas == 1:
            return []
        others = [report.replica for report in self._files.reports() if report.replica != self._report.replica]
        return [page for page in map(self._files.page, others) if page]

    def _read_mark(self) -> _Mark:
        files = self._files
        return tuple(_stat(path) for path in (files.desired_path, files.table_path, files.proposal_path))


def _address(settings: Settings) -> tuple[object, ...]:
    """What listeners are made of; gRPC holds the limit on bodies itself."""
    grpc = settings.grpc_port
    return settings.host, settings.port, grpc, None if grpc is None else settings.max_body_bytes


def _close(grpc: GrpcListener | None, listener: Listener | None) -> None:
    """Let calls in flight end; gRPC first, which runs on the other's loop."""
    if grpc is not None:
        grpc.stop()
    if listener is not None:
        listener.stop()


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino
