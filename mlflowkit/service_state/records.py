"""The control records by which the processes of a service meet: small JSON documents, typed here.

Each has one writer, or is written under a lock (`ServiceFiles.lock`) or on a condition (`ServiceFiles.create_json`).
They are read and written through `ports.ControlRecords` only; `control_records` chooses the storage, by default files
(`file_records`), so a key is a path in the state folder::

    controller.json         controller_lease.Holder: who controls the rollouts of this state
    services/<service>/
      service.json        Desired: the target state; written by the platform
      observed.json       ReconciledState: the result of reconciling it
      table.json          RoutingTable: the table that replicas answer with; written by publish()
      proposal.json       Proposal: a RoutingTable that replicas should prepare
      evidence/           judging.online.evidence.Evidence: <replica>.json by a gateway, <replica>.observer.json by its
                          observer, feedback.json by the join of feedback with the prediction log
      feedback.json       what the join counted and left out: {experiment, counters, withheld: {API key: share}}
      disagreements/      shadow reports: <shadow>.json over all replicas; <replica>/<shadow>.json of one replica
      tenths/             decile edges of a champion's predictions (for drift of a regression), by its digest
      request.json        rollout.state.Request: a rollout requested by a deploy, until the controller has taken it
      rollout.json        rollout.state.SavedRollout: written by the controller that holds the lease
      commands/           operator commands to the controller, a record each
      answers/            replies to commands and requests, for an hour
      champions.json      earlier champions, for a rollback
      failed.json         rejected versions, which are not deployed again
      incidents/          a record for each rollback, in JSON and in Markdown
      monitor/settings.json  monitoring.monitor_settings.MonitorSettings: what is monitored; written by a deploy
      monitor/states/        <version>.json: what the monitor has counted and decided of a version; written by the
                             controller's process
      monitor/commands/      acknowledgements and silences for the monitor, a record each
      monitor/requests.json  what gateways counted in the last hours, for burn rates; by the controller's process
      monitor/view.json      monitoring.monitor_view.MonitorView: what the CLI, the page and the metrics show
      monitor/alertmanager.json  alerts as Alertmanager was sent them, and when; by the controller's process
      monitor/whylabs.json   how far profiles are uploaded to WhyLabs, and the upload under way
      monitor/evidently.json time and fault of Evidently's last report
      monitor/episodes/      <id>.json, monitoring.retrain.episodes.Episode: what an alarm led to; by the monitor
      monitor/attempts/      the claim of a retraining's process, made once, and its result; written by that process
      monitor/probation.json monitoring.retrain.probation.ProbationState: a promoted version and the one before it
      monitor/retrain_request.json  a person's request for a retraining; removed by the monitor when it took it
      webhooks/           events to be delivered; webhooks.json: results of the last deliveries
      admin.json          address of the admin page, written by the controller's process
      isolated/<digest>/  addresses of the processes of an isolated variant, readable by their owner only
      isolated.json       status of each isolated variant in Ray Serve, written by the reconciler
      delivery.json       delivery.gitops.delivery_follower.FollowStatus: what was read of a delivery.yaml and done
                          about it; by `mlkit serve`
      draining.json       the service is about to stop; by `mlkit serve`
      retired.json        replicas of an earlier Ray that are to finish their requests and end; by the reconciler
      replicas/<id>.json  ReplicaReport of a replica; written by it, at least every HEARTBEAT_SECONDS
      replicas/<id>.prom  its metrics, when there are several replicas

These are no control records and stay files, whatever the storage of the records::

    services/<service>/
      predictions/        the prediction log, Parquet segments: appended, large, read by column
      feedback/           feedback as received, segments of JSON lines: appended and synced by line
      monitor/logs/       the logs of retrainings: appended, bounded
      join.sqlite         the index that joins feedback with the log: a database of one process, rebuilt from both
      profiles/           <version>/<window>.<writer>.<sequence>.pane, counts and profiles of live traffic, each written
                          once; answered.<writer>.<number>.ledger, the rows that a gateway answered, memory-mapped
      monitor/evidently.html  Evidently's report of logged rows
      keys.json           hashed API keys that came in the environment: secrets of this machine, read like `--keys FILE`
    ray/                  the Ray cluster of this machine: cluster.json, its log, its token; meaningless on another
    receipts/             the cache of runs with nothing to do: local, and only a shortcut

Only the standard library is imported: ``mlkit status`` and a run in which everything is reused read these records.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlflowkit.errors import ServiceError, StoreError
from mlflowkit.service_state.file_records import FileRecords
from mlflowkit.system.files import replace_file
from mlflowkit.system.machine import process_ticks
from mlflowkit.system.text import shell_word
from mlflowkit.values import Json, RoutingTable

if TYPE_CHECKING:
    from mlflowkit.ports import ControlRecords, RecordEntry

T = TypeVar("T")

HEARTBEAT_SECONDS = 2.0
"""Longest time between two reports of a replica."""
DELIVERY = "delivery.json"
"""What follows a service's delivery.yaml has read and done; absent where nothing follows one."""
DRAINING = "draining.json"
"""There while the service is about to stop: replicas answer, and say that they are not ready."""
RETIRED = "retired.json"
"""The record that names replicas which are to end."""
STALE_SECONDS = 15.0
"""Age of a report after which the replica counts as gone."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Settings of a gateway, from ``serve`` of the recipe; ``port`` is never 0 here."""

    service: str
    host: str = "127.0.0.1"
    port: int = 8080
    replicas: int = 1
    threads: int = 1
    max_body_bytes: int = 8 << 20
    max_rows: int = 65_536
    timeout_seconds: float = 10.0
    max_queue: int = 256
    grpc_port: int | None = None
    """None for no gRPC; never 0 here."""
    admin_port: int = 0
    """Port of the admin page, on loopback; 0 takes a free one."""
    keys: str = ""
    """File of hashed API keys; "" requires none."""
    isolated_replicas: int = 1
    isolated_max_replicas: int = 1
    isolated_cpus: float = 0.5
    isolated_gpus: float = 0.0
    isolated_memory_mb: float | None = None
    isolated_max_batch: int = 64
    log: bool = True
    log_sampling: float = 1.0
    log_days: float = 7.0
    log_mb: float = 1024.0
    profile: bool = True
    """Whether answered rows are counted and profiled for monitoring."""
    pane_seconds: float = 300.0
    """Length of the windows in which they are counted: whole seconds, 1 at least."""
    profile_days: float = 62.0
    """How long the counts are kept; the profiler's sketches are kept as long as the log."""
    segments: tuple[str, ...] = ()
    """Columns whose most frequent values are counted apart, too."""
    unknown_columns: str = "error"
    """error or ignore: what happens to columns of a request that the model does not know."""
    missing_columns: str = "error"
    """error or null: what happens to columns that a request does not have."""
    feedback_mb: float = 1024.0
    """Largest size of the feedback as received, and of its index, each in MiB."""
    feedback_max_share: float = 0.5
    """Largest share of a variant's labels from one API key that may also send requests."""
    allowed_hosts: tuple[str, ...] = ()
    """Names in the Host header that are served besides this machine's own, where no API keys are asked for."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "allowed_hosts", tuple(self.allowed_hosts))  # JSON has lists
        object.__setattr__(self, "segments", tuple(self.segments))
        object.__setattr__(self, "pane_seconds", float(max(1, round(self.pane_seconds))))

    @property
    def endpoint(self) -> str:
        """The URL for clients; loopback for a wildcard address."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(
            self.host, f"[{self.host}]" if ":" in self.host else self.host
        )
        return f"http://{host}:{self.port}"

    @property
    def grpc_endpoint(self) -> str:
        """``host:port`` of the gRPC server; "" when there is none."""
        if self.grpc_port is None:
            return ""
        return f"{self.endpoint.removeprefix('http://').rpartition(':')[0]}:{self.grpc_port}"


@dataclass(frozen=True, slots=True)
class Desired:
    """The target state of a service. ``generation`` grows with every change."""

    generation: int
    up: bool
    settings: GatewaySettings


@dataclass(frozen=True, slots=True)
class ReconciledState:
    """The result of reconciling a generation; ``state`` is starting, running, stopping, stopped or failed."""

    generation: int
    state: str
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """The state of one gateway replica.

    state     starting, waiting (for a first table), serving, or refused (its table cannot be loaded)
    epoch     of the active table; 0 before the first
    prepared  ticket of the proposal that is loaded and warm; "" when there is none
    refused   ticket of the proposal that was refused, with ``message`` and ``hint``; "" when there is none
    warning   a fault that does not stop the replica, and its effect; "" for none
    """

    replica: str
    pid: int
    node: str
    started: float
    generation: int = 0
    port: int = 0
    state: str = "starting"
    epoch: int = 0
    prepared: str = ""
    refused: str = ""
    message: str = ""
    hint: str = ""
    heartbeat: float = 0.0
    warning: str = ""

    def live(self, now: float) -> bool:
        """Whether the report is recent and, on this machine, its process exists."""
        if now - self.heartbeat > STALE_SECONDS:
            return False
        return self.node != socket.gethostname() or process_started(self.pid) == self.started


def summarize_state(reports: Sequence[ReplicaReport], *, table: bool, serving: bool) -> str:
    """Summarise a service: "refused: <why>", serving, waiting (for a first table), starting or down.

    ``table`` tells whether it has a routing table. The caller decides whether it is ``serving``: a caller that can
    query the gateway knows better than the reports.

    >>> summarize_state([], table=True, serving=False)
    'down'
    """
    refused = next((report for report in reports if report.state == "refused"), None)
    if refused is not None:
        return f"refused: {refused.message}"
    if serving:
        return "serving"
    if reports:
        return "starting" if table else "waiting"
    return "down"


@dataclass(frozen=True, slots=True)
class Proposal:
    """A table to prepare. The ticket distinguishes proposals of the same epoch.

    With ticket "" the reconciler starts the table's isolated variants, and gateways wait for the ticket.
    """

    ticket: str
    table: RoutingTable


def control_records(state: Path) -> ControlRecords:
    """The control records of a state folder: the only choice of their storage."""
    return FileRecords(state)


class ServiceFiles:
    """The control records of one service, by the names in the table above.

    ``folder`` holds what is no control record. Every method raises ServiceError: for a record that is damaged, with its
    location, and when the storage fails.
    """

    def __init__(self, folder: Path, records: ControlRecords | None = None) -> None:
        self.folder = folder
        self.state = folder.parent.parent
        self.records = control_records(self.state) if records is None else records
        self._prefix = f"{folder.relative_to(self.state).as_posix()}/"

    @staticmethod
    def all(state: Path) -> tuple[ServiceFiles, ...]:
        """List the services of a state folder by name."""
        records = control_records(state)
        names = sorted(entry.key.split("/")[1] for entry in records.list("services/*/service.json"))
        return tuple(ServiceFiles(state / "services" / name, records) for name in names)

    @property
    def service(self) -> str:
        return self.folder.name

    # ------------------------------------------------------------------------------------------------- any record

    def location(self, name: str) -> str:
        """Where a person finds a record, for messages."""
        return self.records.location(self._prefix + name)

    def read(self, name: str, parse: Callable[[Json], T]) -> T | None:
        """Read and parse a record; None when there is none."""
        value = self.read_json(name)
        try:
            return None if value is None else parse(value)
        except (TypeError, KeyError, AttributeError) as error:
            place = self.location(name)
            raise ServiceError(
                f"{place} is damaged: {error!r}", hint=f"rm {shell_word(place)}, and run again"
            ) from error

    def read_json(self, name: str) -> Json:
        """Read a record of JSON; None when there is none."""
        record = self.records.get(self._prefix + name)
        return None if record is None else _parse_json(record.value, self.location(name))

    def write_json(self, name: str, value: Json, *, durable: bool = True) -> None:
        """Write a record of JSON."""
        self.write_bytes(name, _json_bytes(value), durable=durable)

    def create_json(self, name: str, value: Json) -> None:
        """Write a record of JSON that must not exist yet. Raises ConflictError."""
        self.records.put_if(self._prefix + name, _json_bytes(value), None)

    def read_bytes(self, name: str) -> bytes | None:
        """Read a record; None when there is none."""
        record = self.records.get(self._prefix + name)
        return None if record is None else record.value

    def write_bytes(self, name: str, content: bytes, *, durable: bool = True, private: bool = False) -> None:
        """Write a record."""
        self.records.put(self._prefix + name, content, durable=durable, private=private)

    def exists(self, name: str) -> bool:
        return bool(self.list(name))

    def delete(self, name: str) -> None:
        """Remove a record, or all below a folder, if there is any."""
        self.records.delete(self._prefix + name)

    def list(self, pattern: str) -> tuple[RecordEntry, ...]:
        """The records whose name matches a pattern, sorted; their ``key`` is the name in this service."""
        entries = self.records.list(self._prefix + pattern)
        return tuple(replace(entry, key=entry.key.removeprefix(self._prefix)) for entry in entries)

    def watch(self, names: Iterable[str], known: Mapping[str, str], timeout: float) -> Mapping[str, str]:
        """Wait until versions differ from the ``known`` ones (as returned), or for ``timeout`` seconds."""
        return self.records.watch([self._prefix + name for name in names], known, timeout)

    def lock(self, name: str) -> AbstractContextManager[None]:
        """An advisory lock of this service; it ends with the process."""
        return self.records.lock(self._prefix + name)

    # ---------------------------------------------------------------------------------------------- typed records

    def desired(self) -> Desired | None:
        return self.read(
            "service.json",
            lambda value: Desired(value["generation"], value["up"], GatewaySettings(**value["settings"])),
        )

    def observed(self) -> ReconciledState | None:
        return self.read("observed.json", lambda value: ReconciledState(**value))

    def table(self) -> RoutingTable | None:
        return self.read("table.json", lambda value: self._here(RoutingTable.from_json(value)))

    def proposal(self) -> Proposal | None:
        return self.read(
            "proposal.json",
            lambda value: Proposal(value["ticket"], self._here(RoutingTable.from_json(value["table"]))),
        )

    def _here(self, table: RoutingTable) -> RoutingTable:
        """The table with bundles of this state folder where it has them, also after it was copied or moved."""
        objects, variants = self.state.resolve() / "objects", []
        for variant in table.variants:
            parts = Path(variant.bundle).parts
            own = objects.joinpath(*parts[-2:])
            moved = parts[-3:-2] == ("objects",) and Path(variant.bundle) != own and own.is_dir()
            variants.append(replace(variant, bundle=str(own)) if moved else variant)
        return replace(table, variants=tuple(variants))

    def reports(self) -> tuple[ReplicaReport, ...]:
        """Read the reports of live replicas, oldest first."""
        now = time.time()
        names = [entry.key for entry in self.list("replicas/*.json")]
        reports = [self.read(name, lambda value: ReplicaReport(**value)) for name in names]
        live = [report for report in reports if report and report.live(now)]
        return tuple(sorted(live, key=lambda report: (report.started, report.replica)))

    def isolated_status(self) -> Mapping[str, Mapping[str, str]]:
        """Ray Serve's ``state`` and ``message`` of each isolated variant that runs, by digest."""
        return self.read("isolated.json", dict) or {}

    def write_desired(self, desired: Desired) -> None:
        self.write_json("service.json", asdict(desired))

    def write_observed(self, observed: ReconciledState) -> None:
        self.write_json("observed.json", asdict(observed))

    def write_table(self, table: RoutingTable) -> None:
        self.write_json("table.json", asdict(table))

    def write_proposal(self, proposal: Proposal) -> None:
        self.write_json("proposal.json", asdict(proposal))

    def write_report(self, report: ReplicaReport) -> None:
        """Write a replica's report, not durably: it is stale in seconds anyway."""
        self.write_json(f"replicas/{report.replica}.json", asdict(report), durable=False)

    def write_metrics_page(self, replica: str, page: bytes) -> None:
        """Write a replica's metrics for the replica that is scraped."""
        self.write_bytes(f"replicas/{replica}.prom", page, durable=False)

    def metrics_page(self, replica: str) -> str:
        """Read a replica's metrics; "" when there are none yet."""
        return (self.read_bytes(f"replicas/{replica}.prom") or b"").decode()

    def remove_replica(self, replica: str) -> None:
        """Remove a replica's report and metrics."""
        for suffix in ("json", "prom"):
            self.delete(f"replicas/{replica}.{suffix}")

    def write_evidence(self, writer: str, document: bytes) -> None:
        """Write a writer's evidence (see judging.online.evidence), a few times a second and not durably."""
        self.write_bytes(f"evidence/{writer}.json", document, durable=False)

    def admin_url(self) -> str:
        """URL of the service's admin page; "" when the process that serves it is gone. Raises ServiceError."""

        def live_endpoint(record: Json) -> str:
            return str(record["endpoint"]) if process_started(record["pid"]) == record["started"] else ""

        return self.read("admin.json", live_endpoint) or ""


def read_json(path: Path) -> Any:
    """Read a JSON file that is no control record; None when there is none. Raises ServiceError."""
    try:
        return _parse_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServiceError(f"{path} cannot be read: {error.strerror}", hint=f"ls -ld {shell_word(path)}") from error


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """Replace a JSON file that is no control record. Raises ServiceError when the disk refuses it."""
    try:
        replace_file(path, _json_bytes(value), durable=durable)
    except StoreError as error:
        raise ServiceError(error.message, hint=error.hint) from error


def _parse_json(content: bytes, location: str) -> Json:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ServiceError(
            f"{location} is not JSON: {error}", hint=f"rm {shell_word(location)}, and run again"
        ) from error


def _json_bytes(value: object) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode()


def process_started(pid: int) -> float | None:
    """Start time of a process in the unit of the state files (see `process_ticks`); None when it is gone."""
    ticks = process_ticks(pid)
    return None if ticks is None else float(ticks)
