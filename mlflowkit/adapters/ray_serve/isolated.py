"""Isolated variants: one Ray Serve deployment each, whose replicas own a listener that gateways connect to.

Serve supervises: it starts replicas, checks their health, replaces dead ones, reserves resources and scales. Requests
bypass it: a call by deployment handle took 5 ms and 3 ms of the caller's CPU time, a frame on a connection of our own
0.2 ms (ray 2.60, 2 cores). Each replica therefore publishes its address where gateways look it up::

    <service>/isolated/<digest>/<replica>.json   {"host", "port", "token", "pid", "node", "started"}

The record is readable by its owner only, because its token authorises connections; frames and handshake are
described in `wire`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import resource
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from mlflowkit.adapters.ray_serve import wire
from mlflowkit.errors import EngineError, MlkitError, ServiceError
from mlflowkit.ports import Session
from mlflowkit.service_state.records import GatewaySettings, ServiceFiles, process_started
from mlflowkit.values import Variant

MAX_CALL_SECONDS = 30.0
"""A call that runs longer makes its process unhealthy: Serve replaces it."""
MAX_CONNECTIONS = 128
"""Of gateways."""
MAX_STRANGERS = 32
"""Connections that have not proved yet that they know the token."""
HANDSHAKE_SECONDS = 5.0
MAX_HANDSHAKE_BYTES = 4096
TARGET_BUSY = 0.7
"""Share of the time that the autoscaler lets a process be busy."""
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED)
"""Failures to accept a connection after which others can be accepted."""
_log = logging.getLogger("mlflowkit.isolated")


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """Where one process of an isolated variant listens."""

    host: str
    port: int
    token: str
    pid: int
    node: str
    started: float

    def is_dead(self) -> bool:
        """Whether its process is known to have ended; never known of another machine's."""
        return self.node == socket.gethostname() and process_started(self.pid) != self.started


def _addresses(digest: str) -> str:
    return f"isolated/{digest[:16]}"


def read_addresses(files: ServiceFiles, digest: str) -> dict[str, ReplicaAddress]:
    """Addresses of a version's processes that are not known to be dead, by replica. Raises ServiceError."""
    addresses = {}
    for entry in files.list(f"{_addresses(digest)}/*.json"):
        address = files.read(entry.key, lambda value: ReplicaAddress(**value))
        if address is not None and not address.is_dead():
            addresses[entry.key.rpartition("/")[2].removesuffix(".json")] = address
    return addresses


def write_address(files: ServiceFiles, digest: str, replica: str, address: ReplicaAddress) -> None:
    """Publish the address of a process, readable by its owner only. Raises ServiceError."""
    content = json.dumps(asdict(address)).encode()
    files.write_bytes(f"{_addresses(digest)}/{replica}.json", content, private=True)


def delete_address(files: ServiceFiles, digest: str, replica: str) -> None:
    """Withdraw the address of a process."""
    files.delete(f"{_addresses(digest)}/{replica}.json")


def delete_addresses(files: ServiceFiles, digest: str) -> None:
    """Withdraw the addresses of all processes of a version."""
    files.delete(_addresses(digest))


class IsolatedModel:
    """The Serve replica: one verified, warm bundle and the listener that answers for it."""

    def __init__(self, folder: str, variant: Mapping[str, Any], runtime: str, threads: int, memory: int | None) -> None:
        import ray
        from ray import serve

        from mlflowkit.serving.inference.variants import load_variant

        bind_replica_to_loopback()
        model = load_variant(replace(Variant(**variant), placement="colocated"), resolve_name(runtime)(), threads)
        if memory is not None:
            limit_memory(memory)
        self._server = FrameServer(model.session, model.variant.digest, ray.util.get_node_ip_address())
        replica = serve.get_replica_context().replica_id.unique_id
        self._published = ServiceFiles(Path(folder)), model.variant.digest, replica
        write_address(*self._published, self._server.address)

    def check_health(self) -> None:
        """Called by Serve; raises when the process must be replaced."""
        self._server.check()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve for `desired_replicas`: the mean number of running calls since the last call."""
        return {"busy": self._server.busy()}

    def __call__(self) -> None:
        """Unused: requests come to the listener."""

    def __del__(self) -> None:
        if hasattr(self, "_published"):
            delete_address(*self._published)


class FrameServer:
    """Answers frames with a session, one thread per connection, from construction until its process ends."""

    def __init__(self, session: Session, digest: str, host: str) -> None:
        self._session, self._digest = session, digest
        self._listener = socket.create_server((host, 0), backlog=MAX_CONNECTIONS)
        port, pid = self._listener.getsockname()[1], os.getpid()
        started = process_started(pid) or 0.0
        self.address = ReplicaAddress(host, port, secrets.token_hex(32), pid, socket.gethostname(), started)
        self._running: dict[int, float] = {}
        self._busy_seconds = 0.0
        self._last_busy = (time.monotonic(), 0.0)
        self._out_of_memory = False
        self._strangers: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, name="mlkit-isolated", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise ServiceError when a call hangs, memory ran out or the listener stopped."""
        now = time.monotonic()
        if any(now - start > MAX_CALL_SECONDS for start in list(self._running.values())):
            raise ServiceError(f"a call has been running for more than {MAX_CALL_SECONDS:g} s")
        if self._out_of_memory:
            raise ServiceError("the model ran out of the memory it may use")
        if not self._thread.is_alive():
            raise ServiceError("the listener's thread ended")

    def busy(self) -> float:
        """Mean number of running calls since this method was last called."""
        now = time.monotonic()
        busy = self._busy_seconds + sum(now - start for start in list(self._running.values()))
        last_time, last_busy = self._last_busy
        self._last_busy = now, busy
        return max(0.0, busy - last_busy) / max(now - last_time, 1e-3)

    def _accept(self) -> None:
        free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if error.errno not in _PASSING:
                    raise
                _log.warning("a connection is not accepted: %s", error)
                time.sleep(0.1)
                continue
            self._admit(connection)
            threading.Thread(target=self._serve, args=(connection, free), daemon=True).start()

    def _admit(self, connection: socket.socket) -> None:
        """Count a connection that has proved nothing yet; of too many, the oldest is cut off.

        So whoever opens many keeps no gateway out, which proves itself at once.
        """
        with self._lock:
            self._strangers[connection] = None
            if len(self._strangers) > MAX_STRANGERS:
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                with contextlib.suppress(OSError):  # its thread may have closed it
                    oldest.shutdown(socket.SHUT_RDWR)

    def _serve(self, connection: socket.socket, free: threading.BoundedSemaphore) -> None:
        try:
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    authentic = self._authenticate(connection)
                finally:
                    with self._lock:
                        self._strangers.pop(connection, None)
                if not authentic or not free.acquire(blocking=False):
                    return
                try:
                    connection.settimeout(None)
                    connection.sendall(wire.pack({"digest": self._digest}))
                    while (frame := _receive(connection)) is not None:
                        connection.sendall(self._answer(*frame))
                finally:
                    free.release()
        except (OSError, EngineError) as error:  # the gateway went away, or sent something else than a frame
            _log.info("connection closed: %s", error)

    def _authenticate(self, connection: socket.socket) -> bool:
        """Whether the other side proves that it knows the token, within HANDSHAKE_SECONDS in all."""
        deadline = time.monotonic() + HANDSHAKE_SECONDS
        opening = _receive(connection, MAX_HANDSHAKE_BYTES, deadline)
        if opening is None:
            return False
        theirs, ours = wire.nonce_of(wire.unpack(*opening)[0]), wire.new_nonce()
        proof = wire.prove(self.address.token, "model", theirs, ours)
        connection.sendall(wire.pack({"nonce": ours, "proof": proof}))
        reply = _receive(connection, MAX_HANDSHAKE_BYTES, deadline)
        expected = wire.prove(self.address.token, "gateway", theirs, ours)
        return reply is not None and wire.is_proof(wire.unpack(*reply)[0], expected)

    def _answer(self, head: bytes, body: bytes) -> bytes:
        thread, start = threading.get_ident(), time.monotonic()
        self._running[thread] = start
        try:
            _, inputs = wire.unpack(head, body)
            return wire.pack({}, self._session.run(inputs))
        except MlkitError as error:
            return wire.pack({"error": error.message})
        except MemoryError:
            self._out_of_memory = True
            return wire.pack({"error": "the model ran out of the memory it may use"})
        except Exception as error:  # noqa: BLE001 - a third-party runtime may raise anything
            _log.exception("the model failed")
            return wire.pack({"error": f"{type(error).__name__}: {error}"})
        finally:
            del self._running[thread]
            self._busy_seconds += time.monotonic() - start


def _receive(
    connection: socket.socket, limit: int = wire.MAX_BODY, deadline: float | None = None
) -> tuple[bytes, bytes] | None:
    """Head and body of the next frame; None when the connection ends before it.

    Raises EngineError beyond ``limit``, and TimeoutError after a ``deadline``, of time.monotonic().
    """
    prefix = _receive_exactly(connection, wire.PREFIX.size, deadline)
    if prefix is None:
        return None
    head_size, body_size = wire.sizes(bytes(prefix))
    if head_size + body_size > limit:
        raise EngineError(f"a frame of {head_size + body_size} bytes is too long here")
    head = _receive_exactly(connection, head_size, deadline)
    body = _receive_exactly(connection, body_size, deadline)
    return None if head is None or body is None else (bytes(head), body)  # type: ignore[return-value]


def _receive_exactly(connection: socket.socket, size: int, deadline: float | None) -> bytearray | None:
    content = bytearray(size)
    view = memoryview(content)
    while view:
        if deadline is not None:  # a timeout of each read alone would let a byte a second go on for ever
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
        count = connection.recv_into(view)
        if count == 0:
            return None
        view = view[count:]
    return content


def application(folder: Path, variant: Variant, runtime: str, settings: GatewaySettings) -> Any:
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
                "policy": {"policy_function": f"{__name__}:desired_replicas"},
            },
        }
    deployment = serve.deployment(
        name="model", **scaling, ray_actor_options={"num_cpus": cpus, "num_gpus": settings.isolated_gpus},
        health_check_period_s=2, health_check_timeout_s=5, graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=2, max_ongoing_requests=1, max_queued_requests=1, max_constructor_retry_count=3,
    )(IsolatedModel)  # fmt: skip
    threads, memory = max(1, round(cpus)), None
    if settings.isolated_memory_mb is not None:
        memory = int(settings.isolated_memory_mb * (1 << 20))
    elif not settings.isolated_gpus:  # GPU drivers map far more memory than they use
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return deployment.bind(str(folder), asdict(variant), runtime, threads, memory)


def limit_memory(extra: int) -> None:
    """Limit this process to ``extra`` bytes of data beyond its present use, so that only its own allocations fail.

    The kernel's out-of-memory killer could otherwise choose a gateway.
    """
    status = Path("/proc/self/status").read_text()
    data = int(status.partition("VmData:")[2].split()[0]) << 10
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = data + extra
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def desired_replicas(context: Any) -> tuple[int, dict[str, Any]]:
    """Serve's autoscaling policy: enough processes that each is busy at most TARGET_BUSY of the time."""
    busy = context.aggregated_metrics.get("busy", {}).values()
    count = -(-sum(busy) // TARGET_BUSY)
    low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return int(min(max(count, low), high)), {}


def unreachable_reason(address: ReplicaAddress, digest: str) -> str:
    """Why a process does not serve ``digest``; "" when it does. Waits for at most HANDSHAKE_SECONDS."""
    try:
        with socket.create_connection((address.host, address.port), HANDSHAKE_SECONDS) as connection:
            side, deadline = wire.GatewaySide(address.token), time.monotonic() + HANDSHAKE_SECONDS
            connection.sendall(wire.pack(side.opening))
            if (frame := _receive(connection, MAX_HANDSHAKE_BYTES, deadline)) is None:
                return "it closes the connection"
            connection.sendall(wire.pack(side.reply(wire.unpack(*frame)[0])))
            if (frame := _receive(connection, MAX_HANDSHAKE_BYTES, deadline)) is None:
                return "it closes the connection"
            side.check(wire.unpack(*frame)[0], digest)
    except (OSError, EngineError) as error:
        return str(error)
    return ""


def bind_replica_to_loopback() -> None:
    """Where Ray keeps to loopback, make this replica's own gRPC server keep to it too.

    Serve opens one on every interface when the replica is created, checks no token there, and unpickles incoming
    requests (ray 2.60, ``ray/serve/_private/replica.py``); its address is not configurable.
    """
    import ray

    if ray.util.get_node_ip_address() != "127.0.0.1":
        return
    from ray.serve._private import replica

    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", "127.0.0.1"))
