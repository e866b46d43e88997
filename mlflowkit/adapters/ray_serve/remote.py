"""The gateway's client of isolated variants: its own connections to their processes, with adaptive batching.

A session never waits for an absent process: calls then fail at once, and the gateway falls back to the champion. A
process that does not answer in time loses its connection and is retried with exponential back-off.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mlflowkit.adapters.ray_serve import wire
from mlflowkit.adapters.ray_serve.isolated import (
    MAX_HANDSHAKE_BYTES,
    ReplicaAddress,
    read_addresses,
    unreachable_reason,
)
from mlflowkit.errors import EngineError, ServiceError
from mlflowkit.service_state.records import GatewaySettings, ServiceFiles
from mlflowkit.serving.inference.batching import Batcher, LostError
from mlflowkit.values import Variant

REFRESH_SECONDS = 1.0
"""How often a session looks for new processes."""
RECONNECT_SECONDS = 0.2
"""How often it looks while it has none."""
CONNECT_SECONDS = 2.0
MAX_BACKOFF = 30.0
CALL_SHARE = 0.5
"""Share of a request's deadline that one call may take; the rest is left for the champion's fallback answer."""


class RayRemoteModels:
    """ports.RemoteModels over the addresses in a service's folder."""

    def __init__(self, folder: Path) -> None:
        self._files = ServiceFiles(folder)

    def connect(self, service: str, variant: Variant, seconds: float = 0.0) -> IsolatedSession:
        """A session with an isolated variant. Raises ServiceError when no process answers within ``seconds``.

        With 0 seconds it does not wait: calls fail until a process is up.
        """
        desired = self._files.desired()
        settings = GatewaySettings(service) if desired is None else desired.settings
        deadline = time.monotonic() + seconds
        reason = "no process has started"
        while seconds:
            for address in read_addresses(self._files, variant.digest).values():
                reason = unreachable_reason(address, variant.digest)
                if not reason:
                    return IsolatedSession(self._files, variant, settings)
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{variant.name} {variant.version} of {service} is not up in its own process: {reason}",
                    hint="mlkit status; serve.isolated.cpus may be more than this machine has left",
                )
            time.sleep(0.1)
        return IsolatedSession(self._files, variant, settings)


class IsolatedSession:
    """ports.RemoteSession with one isolated variant. Its connections close when the session is garbage-collected."""

    def __init__(self, files: ServiceFiles, variant: Variant, settings: GatewaySettings) -> None:
        seconds = settings.timeout_seconds * CALL_SHARE
        self._pool = _ConnectionPool(files, variant, settings.isolated_max_batch, seconds)

    async def run(self, inputs: Mapping[str, np.ndarray], rows: int) -> Mapping[str, np.ndarray]:
        """Answers by output name. Raises EngineError (LostError when no process answers in time)."""
        pool = self._pool
        if pool.maintenance is None:
            pool.maintenance = asyncio.get_running_loop().create_task(_maintain(weakref.ref(self), pool))
        if not pool.refreshed.is_set():
            await pool.refreshed.wait()
        if not pool.open:
            raise pool.no_connection()
        return await pool.batcher.run(inputs, rows)


async def _maintain(session: weakref.ref[IsolatedSession], pool: _ConnectionPool) -> None:
    """Refresh the connections for as long as the session is referenced."""
    try:
        while session() is not None:
            await pool.refresh()
            pool.refreshed.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(pool.lost.wait(), REFRESH_SECONDS if pool.open else RECONNECT_SECONDS)
            pool.lost.clear()
    finally:
        pool.close()


class _ConnectionPool:
    """Connections to a variant's processes, each with at most one call in flight."""

    def __init__(self, files: ServiceFiles, variant: Variant, max_batch: int, call_seconds: float) -> None:
        self.open: dict[str, _Connection] = {}
        self.refreshed = asyncio.Event()
        self.lost = asyncio.Event()
        self.maintenance: asyncio.Task[None] | None = None
        self.batcher = Batcher(self._call, max_rows=max_batch, max_in_flight=0)
        self._files, self._variant, self._seconds = files, variant, call_seconds
        self._idle: list[_Connection] = []
        self._failures: dict[str, tuple[int, float]] = {}
        """By process: consecutive failures, and the time of the next attempt."""
        self._last_failure = "no process has started"

    def no_connection(self) -> LostError:
        """The error of calls while no process is connected."""
        variant = self._variant
        return LostError(f"{variant.name} {variant.version} has no process that answers: {self._last_failure}")

    async def refresh(self) -> None:
        """Connect to processes that are new or due for another attempt."""
        try:
            addresses = await asyncio.to_thread(read_addresses, self._files, self._variant.digest)
        except ServiceError as error:
            self._last_failure = error.message
            return
        for connection in [connection for connection in self._idle if connection.closed_by_peer]:
            self._idle.remove(connection)
            self._drop(connection, "it died")
        now = time.monotonic()
        self._failures = {name: failure for name, failure in self._failures.items() if name in addresses}
        for name, address in addresses.items():
            if name not in self.open and self._failures.get(name, (0, 0.0))[1] <= now:
                await self._connect(name, address)

    async def _connect(self, name: str, address: ReplicaAddress) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await _Connection.open(name, address, self._variant.digest)
        except (OSError, EngineError, TimeoutError, asyncio.IncompleteReadError) as error:
            self._record_failure(name, str(error) or "it does not accept connections")
            return
        self.open[name] = connection
        self._idle.append(connection)
        self.batcher.max_in_flight = len(self.open)
        self.batcher.dispatch()

    async def _call(self, inputs: Mapping[str, np.ndarray], rows: int) -> Mapping[str, np.ndarray]:
        if not self._idle:
            raise self.no_connection()
        connection = self._idle.pop()
        try:
            async with asyncio.timeout(self._seconds):
                head, answers = await connection.call(inputs, rows)
        except BaseException as error:
            reason = f"no answer within {self._seconds:g} s" if isinstance(error, TimeoutError) else "it died"
            self._drop(connection, reason)
            if isinstance(error, OSError | TimeoutError | asyncio.IncompleteReadError):
                raise self.no_connection() from error
            raise
        self._idle.append(connection)
        self._failures.pop(connection.name, None)
        if "error" in head:
            raise EngineError(str(head["error"]))
        return answers

    def _drop(self, connection: _Connection, reason: str) -> None:
        """Close a connection in an unknown state; when it was the last, fail the waiting calls."""
        connection.close()
        self.open.pop(connection.name, None)
        self._record_failure(connection.name, reason)
        self.batcher.max_in_flight = len(self.open)
        if not self.open:
            self.batcher.fail(self.no_connection())
        self.lost.set()

    def _record_failure(self, name: str, reason: str) -> None:
        self._last_failure = reason
        count = self._failures.get(name, (0, 0.0))[0] + 1
        self._failures[name] = count, time.monotonic() + min(MAX_BACKOFF, 0.5 * 2**count)

    def close(self) -> None:
        for connection in self.open.values():
            connection.close()
        self.open.clear()
        self.batcher.max_in_flight = 0
        self.batcher.fail(self.no_connection())


_Frame = tuple[dict[str, object], dict[str, np.ndarray]]


class _Connection:
    """One connection to one process."""

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.name, self._reader, self._writer = name, reader, writer

    @classmethod
    async def open(cls, name: str, address: ReplicaAddress, digest: str) -> _Connection:
        """Connect and authenticate. Raises OSError, IncompleteReadError or EngineError."""
        connection = cls(name, *await asyncio.open_connection(address.host, address.port, limit=1 << 20))
        try:
            side = wire.GatewaySide(address.token)
            connection._writer.write(wire.pack(side.opening))
            head, _ = await connection._read_frame(MAX_HANDSHAKE_BYTES)
            connection._writer.write(wire.pack(side.reply(head)))
            head, _ = await connection._read_frame(MAX_HANDSHAKE_BYTES)
            side.check(head, digest)
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def closed_by_peer(self) -> bool:
        return self._reader.at_eof()

    async def call(self, inputs: Mapping[str, np.ndarray], rows: int) -> _Frame:
        """Head and tensors of the answer. Raises OSError, IncompleteReadError or EngineError."""
        self._writer.write(wire.pack({"rows": rows}, inputs))
        await self._writer.drain()
        return await self._read_frame()

    async def _read_frame(self, limit: int = wire.MAX_BODY) -> _Frame:
        head_size, body_size = wire.sizes(await self._reader.readexactly(wire.PREFIX.size))
        if head_size + body_size > limit:
            raise EngineError(f"a frame of {head_size + body_size} bytes is too long here")
        head = await self._reader.readexactly(head_size)
        return wire.unpack(head, await self._reader.readexactly(body_size) if body_size else b"")

    def close(self) -> None:
        self._writer.close()
