"""A gateway's gRPC listener: grpc.aio on the HTTP listener's event loop, on a SO_REUSEPORT port of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from mlflowkit.errors import ServiceError
from mlflowkit.serving.grpc.servicer import GrpcService
from mlflowkit.serving.http.gateway import Gateway

T = TypeVar("T")
STREAMS = 1024
"""Calls at once over one connection; more wait at the client."""
IDLE_MILLISECONDS = 300_000
_START_SECONDS = 30.0


class GrpcListener:
    """Serves a gateway's gRPC door on (host, port) from the moment it is made until `stop`.

    ``loop`` runs in another thread than the caller's. gRPC itself refuses a message of more than ``max_body_bytes`` (of
    the settings at this moment) with RESOURCE_EXHAUSTED, and a compressed one with UNIMPLEMENTED. Raises ServiceError
    when the port cannot be had.
    """

    def __init__(self, gateway: Gateway, host: str, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.host = host
        self._loop = loop
        self._server: Any = None
        self.port: int = self._on_loop(self._start(gateway, f"[{host}]" if ":" in host else host, port), _START_SECONDS)

    def stop(self, seconds: float = 10.0) -> None:
        """Accept no more, let calls in flight end for up to ``seconds``, close."""
        if not self._loop.is_closed():
            self._on_loop(self._server.stop(seconds), seconds + 5.0)

    def _on_loop(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    async def _start(self, gateway: Gateway, host: str, port: int) -> int:
        import grpc

        self._server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", gateway.settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.compression_enabled_algorithms_bitset", 1),  # a compressed message has no size until it is read
                ("grpc.max_concurrent_streams", STREAMS),
                ("grpc.max_connection_idle_ms", IDLE_MILLISECONDS),
            )
        )
        self._server.add_generic_rpc_handlers((GrpcService(gateway).handlers(),))
        try:
            found: int = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise ServiceError(
                f"gRPC cannot listen on {host}:{port}: {error}",
                hint="choose another: serve.grpc_port=0 takes a free one",
            ) from error
        await self._server.start()
        return found
