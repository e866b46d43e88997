"""Isolated variants: a Ray Serve deployment each, whose replicas own their listener, and how a gateway reaches them.

Serve supervises: it starts replicas, checks their health, replaces the dead, sets resources aside and scales. The
requests do not pass through it: a call by deployment handle took 5 ms and 3 ms of the caller's processor time where a
frame on a connection of our own takes 0.2 (ray 2.60, 2 cores). So each replica leaves a report where gateways find it::

    <service>/isolated/<digest>/<replica>.json   {"host", "port", "token", "pid", "node", "started"}

readable by its owner only, because the token in it is what opens a connection. Frames are described in `wire`.
"""

from __future__ import annotations

import hmac
import importlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit.adapters.ray_serve import wire
from mlflowkit.errors import EngineError, MlkitError, ServiceError
from mlflowkit.service_state.records import Settings, process_started, read_json
from mlflowkit.serving.auth import write_private
from mlflowkit.values import Variant

if TYPE_CHECKING:
    from mlflowkit.ports import Session

HUNG_SECONDS = 30.0
"""A call that runs longer than this makes its process unhealthy: Serve replaces it."""
MAX_CONNECTIONS = 128
HANDSHAKE_SECONDS = 5.0
_log = logging.getLogger("mlflowkit.isolated")


@dataclass(frozen=True, slots=True)
class Report:
    """Where one process of an isolated variant listens."""

    host: str
    port: int
    token: str
    pid: int
    node: str
    started: float

    def dead(self) -> bool:
        """Whether its process is known to be gone; one on another machine never is."""
        return self.node == socket.gethostname() and process_started(self.pid) != self.started


def reports_path(folder: Path, digest: str) -> Path:
    """Where the processes of a version leave their reports; ``folder`` is the service's."""
    return folder / "isolated" / digest[:16]


def read_reports(folder: Path, digest: str) -> dict[str, Report]:
    """Reports of a version's processes that are not known to be dead, by replica. Raises ServiceError."""
    path = reports_path(folder, digest)
    found = {}
    for file in sorted(path.glob("*.json")) if path.is_dir() else ():
        value = read_json(file)
        if value is not None:
            try:
                report = Report(**value)
            except TypeError as error:
                raise ServiceError(f"{file} is damaged: {error}", hint=f"remove {file}") from error
            if not report.dead():
                found[file.stem] = report
    return found


class IsolatedModel:
    """What Serve keeps alive: one verified, warm bundle and the listener that answers for it."""

    def __init__(self, folder: str, variant: Mapping[str, Any], runtime: str, threads: int, memory: int | None) -> None:
        import ray
        from ray import serve

        from mlflowkit.adapters.ray_serve.loopback import keep_to_loopback
        from mlflowkit.serving.inference.variants import load_variant

        keep_to_loopback()
        module, _, name = runtime.partition(":")
        loader = getattr(importlib.import_module(module), name)()
        model = load_variant(replace(Variant(**variant), placement="colocated"), loader, threads)
        if memory is not None:
            limit_memory(memory)
        self._server = Server(model.session, model.variant.digest, ray.util.get_node_ip_address())
        replica = serve.get_replica_context().replica_id.unique_id
        self._report = reports_path(Path(folder), model.variant.digest) / f"{replica}.json"
        write_report(self._report, self._server.report)

    def check_health(self) -> None:
        """Called by Serve; raises when the process must be replaced."""
        self._server.check()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `replicas_wanted` decides by: the share of the time, since it was last asked, in which a call ran."""
        return {"busy": self._server.busy()}

    def __call__(self) -> None:
        """Nothing comes this way: requests come to the listener."""

    def __del__(self) -> None:
        if hasattr(self, "_report"):
            self._report.unlink(missing_ok=True)


def write_report(path: Path, report: Report) -> None:
    """Leave a report where only its owner reads it. Raises ServiceError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.parent.chmod(0o700)
    write_private(path, json.dumps(asdict(report)).encode())


class Server:
    """Answers frames with a session, a thread a connection, from the moment it is made. Ends with its process."""

    def __init__(self, session: Session, digest: str, host: str) -> None:
        self._session = session
        self._digest = digest
        self._listener = socket.create_server((host, 0), backlog=MAX_CONNECTIONS)
        pid = os.getpid()
        self.report = Report(
            host, self._listener.getsockname()[1], secrets.token_hex(32), pid, socket.gethostname(),
            process_started(pid) or 0.0,
        )  # fmt: skip
        self._running: dict[int, float] = {}
        self._spent = 0.0
        self._asked = (time.monotonic(), 0.0)
        self._starved = False
        self._thread = threading.Thread(target=self._accept, name="mlkit-isolated", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise ServiceError when a call does not come back, memory ran out or nothing listens any more."""
        now = time.monotonic()
        if any(now - begin > HUNG_SECONDS for begin in list(self._running.values())):
            raise ServiceError(f"a call has been running for more than {HUNG_SECONDS:g} s")
        if self._starved:
            raise ServiceError("the model wanted more memory than it may have")
        if not self._thread.is_alive():
            raise ServiceError("the listener's thread ended")

    def busy(self) -> float:
        """Calls that ran on average since this was last asked."""
        now = time.monotonic()
        spent = self._spent + sum(now - begin for begin in list(self._running.values()))
        before, then = self._asked
        self._asked = now, spent
        return max(0.0, spent - then) / max(now - before, 1e-3)

    def _accept(self) -> None:
        free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        while True:
            connection, _ = self._listener.accept()
            if not free.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection, free), daemon=True).start()

    def _serve(self, connection: socket.socket, free: threading.BoundedSemaphore) -> None:
        try:
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.settimeout(HANDSHAKE_SECONDS)
                if not self._admitted(connection):
                    return
                connection.settimeout(None)
                while (frame := _receive(connection)) is not None:
                    connection.sendall(self._answer(*frame))
        except (OSError, EngineError) as error:  # the gateway went away, or what came is no frame
            _log.info("connection closed: %s", error)
        finally:
            free.release()

    def _admitted(self, connection: socket.socket) -> bool:
        """Whether the first frame has the token; what comes before it is kept short."""
        frame = _receive(connection, limit=4096)
        if frame is None:
            return False
        head, _ = wire.unpack(*frame)
        admitted = hmac.compare_digest(str(head.get("token", "")), self.report.token)
        if admitted:
            connection.sendall(wire.pack({"digest": self._digest}))
        return admitted

    def _answer(self, head: bytes, body: bytes) -> bytes:
        me, begin = threading.get_ident(), time.monotonic()
        self._running[me] = begin
        try:
            _, inputs = wire.unpack(head, body)
            return wire.pack({}, self._session.run(inputs))
        except MlkitError as error:
            return wire.pack({"error": error.message})
        except MemoryError:
            self._starved = True
            return wire.pack({"error": "the model wanted more memory than it may have"})
        except Exception as error:  # noqa: BLE001 - a runtime of someone else's; told as what it is
            _log.exception("the model failed")
            return wire.pack({"error": f"{type(error).__name__}: {error}"})
        finally:
            del self._running[me]
            self._spent += time.monotonic() - begin


def _receive(connection: socket.socket, limit: int = wire.MAX_BODY) -> tuple[bytes, bytes] | None:
    """Head and body of the next frame; None when the connection ends before it. Raises EngineError beyond ``limit``."""
    prefix = _exactly(connection, wire.PREFIX.size)
    if prefix is None:
        return None
    head, body = wire.sizes(bytes(prefix))
    if head + body > limit:
        raise EngineError(f"a frame of {head + body} bytes is too long here")
    first, rest = _exactly(connection, head), _exactly(connection, body)
    return None if first is None or rest is None else (bytes(first), rest)  # type: ignore[return-value]


def _exactly(connection: socket.socket, size: int) -> bytearray | None:
    found = bytearray(size)
    view = memoryview(found)
    while view:
        count = connection.recv_into(view)
        if count == 0:
            return None
        view = view[count:]
    return found


def application(folder: Path, variant: Variant, runtime: str, settings: Settings) -> Any:
    """A Serve application that runs one version in processes of its own."""
    from ray import serve

    cpus = settings.isolated_cpus
    scaling: dict[str, Any] = {"num_replicas": settings.isolated_replicas}
    if settings.isolated_max_replicas > settings.isolated_replicas:
        scaling = {
            "num_replicas": "auto",
            "autoscaling_config": {
                "min_replicas": settings.isolated_replicas,
                "max_replicas": settings.isolated_max_replicas,
                "upscale_delay_s": 5,
                "downscale_delay_s": 60,
                "policy": {"policy_function": f"{__name__}:replicas_wanted"},
            },
        }
    deployment = serve.deployment(
        name="model",
        **scaling,
        ray_actor_options={"num_cpus": cpus, "num_gpus": settings.isolated_gpus},
        health_check_period_s=2,
        health_check_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=2,
        max_ongoing_requests=1,
        max_queued_requests=1,
        max_constructor_retry_count=3,
    )(IsolatedModel)
    threads, memory = max(1, round(cpus)), None
    if settings.isolated_memory_mb is not None:
        memory = int(settings.isolated_memory_mb * (1 << 20))
    elif not settings.isolated_gpus:  # a driver of GPUs maps more than it takes
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return deployment.bind(str(folder), asdict(variant), runtime, threads, memory)


def limit_memory(more: int) -> None:
    """Refuse this process more than ``more`` bytes of data beyond what it has: its allocations fail, nobody else's.

    The machine's last resort would otherwise choose a process, and could choose a gateway.
    """
    import resource

    status = Path("/proc/self/status").read_text()
    data = int(status.partition("VmData:")[2].split()[0]) << 10
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = data + more
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def replicas_wanted(context: Any) -> tuple[int, dict[str, Any]]:
    """Serve's autoscaling policy: as many processes as keep each busy for at most 0.7 of the time."""
    busy = context.aggregated_metrics.get("busy", {}).values()
    wanted = -(-sum(busy) // 0.7)
    low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return int(min(max(wanted, low), high)), {}


def listening(report: Report, digest: str) -> str:
    """Why a process cannot be asked; "" when it can. Waits for at most HANDSHAKE_SECONDS."""
    try:
        with socket.create_connection((report.host, report.port), HANDSHAKE_SECONDS) as connection:
            connection.sendall(wire.pack({"token": report.token}))
            frame = _receive(connection, limit=4096)
            head = {} if frame is None else wire.unpack(*frame)[0]
    except (OSError, EngineError) as error:
        return str(error)
    return "" if head.get("digest") == digest else "another version answers there"
