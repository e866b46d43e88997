"""The durable side of a service: small JSON files in the state folder, each with one writer, or a lock (`lock`).

::

    <state>/services/<service>/
      service.json        Desired: what should run; written by the platform
      observed.json       Observed: what the steward made of it
      table.json          RoutingTable: what replicas answer with; written by publish()
      proposal.json       Proposal: a RoutingTable that replicas should get ready to answer with
      evidence/           judging.online.evidence.Evidence: <replica>.json by a gateway, <replica>.observer.json by its
                          observer, feedback.json by the join of feedback with the prediction log
      predictions/        the prediction log: Parquet segments, each renamed into place when it is whole
      feedback/           feedback as it came: segments of JSON lines
      join.sqlite         the index by which feedback and the log are joined; made anew from both where it is gone
      disagreements/      <shadow>.json: what all replicas saw of a shadow; <replica>/<shadow>.json: what one saw
      tenths/             by a champion's digest, the tenths of its predictions that drift of a regression is told by
      profiles/           <version>/<window>.<replica>.profile: whylogs profiles of live traffic
      request.json        rollout.state.Request: a rollout that a deploy asks for, until the controller has taken it
      rollout.json        rollout.state.Saved: written by the controller that holds the lease
      commands/           what people told the controller, a file each
      answers/            what became of commands and requests, for an hour
      champions.json      versions that answered, to go back to
      failed.json         versions that were turned down, not tried again unasked
      incidents/          a record for each rollback, in JSON and in Markdown
      webhooks/           events that are still to be told; webhooks.json: what became of the last ones
      admin.json          where the admin page is, written by the controller's process
      keys.json           hashed API keys that came in the environment, readable by their owner only
      isolated/<digest>/  where the processes of an isolated variant listen, readable by their owner only
      isolated.json       what Ray Serve says of each isolated variant, written by the steward
      replicas/<id>.json  ReplicaReport: what one replica does; written by it, at least every HEARTBEAT seconds
      replicas/<id>.prom  its metrics, where there are several

A file is replaced whole (temporary name, fsync, rename), so a reader sees the old or the new one, never half.
Only the standard library is imported: ``mlkit status`` and a run in which everything is reused read these files.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mlflowkit.errors import ServiceError, StoreError
from mlflowkit.system.files import replace_file
from mlflowkit.system.machine import process_ticks
from mlflowkit.values import RoutingTable

T = TypeVar("T")

HEARTBEAT = 2.0
"""Seconds between reports of a replica that has nothing new to say."""
STALE = 15.0
"""Seconds without a report after which a replica counts as gone."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a gateway obeys, from ``serve`` of the recipe; ``port`` is never 0 here."""

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
    """None serves no gRPC; never 0 here."""
    admin_port: int = 0
    """Port of the admin page, on loopback; 0 takes a free one."""
    keys: str = ""
    """File of hashed API keys; "" asks for none."""
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

    @property
    def endpoint(self) -> str:
        """The URL that clients use; a wildcard address is reached through loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(
            self.host, f"[{self.host}]" if ":" in self.host else self.host
        )
        return f"http://{host}:{self.port}"

    @property
    def grpc_endpoint(self) -> str:
        """``host:port`` of the service's gRPC; "" when it serves none."""
        if self.grpc_port is None:
            return ""
        return f"{self.endpoint.removeprefix('http://').rpartition(':')[0]}:{self.grpc_port}"


@dataclass(frozen=True, slots=True)
class Desired:
    """What should run. ``generation`` grows with every change."""

    generation: int
    up: bool
    settings: Settings


@dataclass(frozen=True, slots=True)
class Observed:
    """What the steward made of a generation: running, stopped or failed."""

    generation: int
    state: str
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What one gateway replica does now.

    state     starting, waiting (no table yet), serving, or refused (its table cannot be loaded)
    epoch     of the table that it answers with; 0 before the first
    prepared  ticket of the proposal that is loaded and warm; "" when there is none
    refused   ticket of the proposal that was refused, with ``message`` and ``hint``; "" when none was
    warning   what is wrong though it answers, and what holds meanwhile; "" for nothing
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
        """Whether the replica reported lately and, on this machine, its process is there."""
        if now - self.heartbeat > STALE:
            return False
        return self.node != socket.gethostname() or process_started(self.pid) == self.started


def service_state(reports: Sequence[ReplicaReport], *, table: bool, serving: bool) -> str:
    """What a service does, in a word, from the reports of its replicas and whether it has a routing table.

    ``refused: `` and why, serving, waiting (for a first table), starting or down. Whether it is ``serving`` is for
    whoever asks to know: who may ask the gateway itself knows better than the reports.

    >>> service_state([], table=True, serving=False)
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
    """A table to get ready for. The ticket tells it from an earlier proposal of the same epoch.

    With ticket "" the steward starts what the table isolates, and gateways wait for the ticket.
    """

    ticket: str
    table: RoutingTable


@dataclass(frozen=True, slots=True)
class ServiceFiles:
    """The files of one service."""

    folder: Path
    desired_path: Path = field(init=False)
    observed_path: Path = field(init=False)
    table_path: Path = field(init=False)
    proposal_path: Path = field(init=False)
    replicas_path: Path = field(init=False)

    def __post_init__(self) -> None:
        for name, file in (
            ("desired_path", "service.json"),
            ("observed_path", "observed.json"),
            ("table_path", "table.json"),
            ("proposal_path", "proposal.json"),
            ("replicas_path", "replicas"),
        ):
            object.__setattr__(self, name, self.folder / file)

    @staticmethod
    def all(state: Path) -> tuple[ServiceFiles, ...]:
        """The services of a state folder, by name."""
        root = state / "services"
        found = sorted(root.iterdir()) if root.is_dir() else []
        return tuple(ServiceFiles(folder) for folder in found if (folder / "service.json").is_file())

    @property
    def service(self) -> str:
        return self.folder.name

    def desired(self) -> Desired | None:
        return _read(
            self.desired_path, lambda value: Desired(value["generation"], value["up"], Settings(**value["settings"]))
        )

    def observed(self) -> Observed | None:
        return _read(self.observed_path, lambda value: Observed(**value))

    def table(self) -> RoutingTable | None:
        return _read(self.table_path, RoutingTable.from_json)

    def proposal(self) -> Proposal | None:
        return _read(
            self.proposal_path, lambda value: Proposal(value["ticket"], RoutingTable.from_json(value["table"]))
        )

    def reports(self) -> tuple[ReplicaReport, ...]:
        """Reports of the replicas that are alive, oldest first."""
        now = time.time()
        files = sorted(self.replicas_path.glob("*.json")) if self.replicas_path.is_dir() else []
        found = [_read(file, lambda value: ReplicaReport(**value)) for file in files]
        return tuple(
            sorted((report for report in found if report and report.live(now)), key=lambda report: report.started)
        )

    def write_desired(self, desired: Desired) -> None:
        write_json(self.desired_path, asdict(desired))

    def write_observed(self, observed: Observed) -> None:
        write_json(self.observed_path, asdict(observed))

    def write_table(self, table: RoutingTable) -> None:
        write_json(self.table_path, asdict(table))

    def write_proposal(self, proposal: Proposal) -> None:
        write_json(self.proposal_path, asdict(proposal))

    def write_report(self, report: ReplicaReport) -> None:
        """Durability is not needed: a report is stale in seconds, so it is renamed into place without fsync."""
        write_json(self.replicas_path / f"{report.replica}.json", asdict(report), durable=False)

    def write_page(self, replica: str, page: bytes) -> None:
        """Leave a replica's metrics where the replica that is scraped finds them."""
        _replace(self.replicas_path / f"{replica}.prom", page, durable=False)

    def write_evidence(self, writer: str, document: bytes) -> None:
        """Replace what a writer counted (see judging.online.evidence); a few times a second, so without fsync."""
        _replace(self.folder / "evidence" / f"{writer}.json", document, durable=False)

    def admin_page(self) -> str:
        """Where the admin page of the service is; "" when the process that served it is gone. Raises ServiceError."""

        def made(told: Any) -> str:
            return str(told["endpoint"]) if process_started(told["pid"]) == told["started"] else ""

        return _read(self.folder / "admin.json", made) or ""

    def page(self, replica: str) -> str:
        """A replica's metrics; "" when it left none yet."""
        try:
            return (self.replicas_path / f"{replica}.prom").read_text()
        except FileNotFoundError:
            return ""

    def withdraw(self, replica: str) -> None:
        """Remove what a replica left."""
        for suffix in ("json", "prom"):
            (self.replicas_path / f"{replica}.{suffix}").unlink(missing_ok=True)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold an advisory lock of this service; released by the system when the process dies."""
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def read_json(path: Path) -> Any:
    """The document, or None when there is no file. Raises ServiceError when it is not JSON, or cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServiceError(f"{path} cannot be read: {error.strerror}", hint=f"ls -ld {path}") from error
    except ValueError as error:
        raise ServiceError(f"{path} is not JSON: {error}", hint=f"remove {path} and run again") from error


def _read(path: Path, make: Callable[[Any], T]) -> T | None:
    """What ``make`` makes of the document; None when there is no file. Raises ServiceError when it cannot."""
    value = read_json(path)
    try:
        return None if value is None else make(value)
    except (TypeError, KeyError, AttributeError) as error:
        raise ServiceError(f"{path} is damaged: {error!r}", hint=f"remove {path} and run again") from error


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """Replace a file by a document. Raises ServiceError when the disk does not take it."""
    _replace(path, json.dumps(value, indent=1, allow_nan=False).encode(), durable=durable)


def _replace(path: Path, content: bytes, *, durable: bool) -> None:
    try:
        replace_file(path, content, durable=durable)
    except StoreError as error:
        raise ServiceError(error.message, hint=error.hint) from error


def process_started(pid: int) -> float | None:
    """Start time of a process as the files of a service hold it (see `process_ticks`)."""
    ticks = process_ticks(pid)
    return None if ticks is None else float(ticks)
