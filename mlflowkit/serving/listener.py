"""A gateway's own HTTP listener: uvicorn with uvloop and httptools, on a SO_REUSEPORT socket, in its own thread.

Every replica on a machine binds the same port, and the kernel shares connections out among them; a replica that
dies takes only its own connections along. uvicorn has no deadline for receiving a request: `_protocol` adds one for
headers and one for bodies, and a limit on connections, so that clients that send slowly, or nothing, cannot hold a
replica's sockets for ever. A request that arrives in one piece, as nearly every one does, starts no clock.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlflowkit.errors import ServiceError

if TYPE_CHECKING:
    from mlflowkit.serving.gateway import Gateway

HEADER_SECONDS = 10.0
"""From the connection, or the first byte of a request, to the end of its headers."""
IDLE_SECONDS = 75.0
"""How long a connection without a request is kept."""
BACKLOG = 2048
MAX_CONNECTIONS = 4096
HEADER_BYTES = 64 << 10
"""Headers that arrive in several packets are read up to this size."""
_UPGRADE = re.compile(rb"(?<=\n)upgrade(?=[ \t]*:)", re.IGNORECASE)


def _closing(status: bytes, message: str) -> bytes:
    """A whole reply that is sent past the application, before the connection is closed."""
    body = json.dumps({"error": message}).encode()
    return b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )


TOO_SLOW = _closing(b"408 Request Timeout", "the body did not arrive in time")
TOO_LONG = _closing(b"431 Request Header Fields Too Large", f"headers of at most {HEADER_BYTES} bytes are read")
NOT_HTTP = _closing(b"400 Bad Request", "this is not a request of HTTP/1.1")


class Listener:
    """Serves a gateway on (host, port) from the moment it is made until `stop`.

    Raises ServiceError when the port cannot be had.
    """

    def __init__(self, gateway: Gateway, host: str, port: int, *, header_seconds: float = HEADER_SECONDS) -> None:
        self._socket = bind(host, port)
        self.port: int = self._socket.getsockname()[1]
        self.host = host
        self.loop: asyncio.AbstractEventLoop
        self._server = _server(gateway, header_seconds)
        self._thread = threading.Thread(target=self._serve, name=f"mlkit-http-{self.port}", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 30
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise ServiceError(f"the listener on {host}:{self.port} did not start")
            time.sleep(0.005)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self, seconds: float = 10.0) -> None:
        """Accept no more, let requests in flight end for up to ``seconds``, close."""
        self._server.should_exit = True
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(2.0)

    def _serve(self) -> None:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            self.loop = runner.get_loop()
            runner.run(self._server.serve(sockets=[self._socket]))


def bind(host: str, port: int) -> socket.socket:
    """A listening SO_REUSEPORT socket. Raises ServiceError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind((host, port))
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise ServiceError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="choose another: serve.port=0 takes a free one",
        ) from error
    found.setblocking(False)
    return found


def _server(gateway: Gateway, header_seconds: float) -> Any:
    import uvicorn

    config = uvicorn.Config(
        gateway,
        http=_protocol(header_seconds, lambda: gateway.settings.timeout_seconds),
        ws="none",
        loop="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(IDLE_SECONDS),
        timeout_graceful_shutdown=10,
        backlog=BACKLOG,
    )
    return uvicorn.Server(config)


def _protocol(header_seconds: float, body_seconds: Callable[[], float]) -> Any:
    """uvicorn's httptools protocol with deadlines for headers and bodies and a bound on connections."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Protocol(HttpToolsProtocol):
        """One connection. ``_clock`` runs while a request is due, beyond the packet that it began in."""

        _clock: Any = None
        _due = False
        _in_body = False
        _head_bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > MAX_CONNECTIONS:
                transport.abort()
                return
            self._clock = self.loop.call_later(header_seconds, transport.abort)

        def data_received(self, data: bytes) -> None:
            if not self._due and b"pgrade" in data:
                data = _without_upgrade(data)
            super().data_received(data)
            if self._due and not self._in_body:
                self._head_bytes += len(data)
                if self._head_bytes > HEADER_BYTES:
                    self._refuse(TOO_LONG)
                    return
            if self._due and self._clock is None:
                if self._in_body:
                    self._clock = self.loop.call_later(body_seconds(), self._too_slow)
                else:
                    self._clock = self.loop.call_later(header_seconds, self.transport.abort)

        def on_message_begin(self) -> None:
            self._due, self._in_body, self._head_bytes = True, False, 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_body = True
            self._stop_clock()
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._due = False
            self._stop_clock()
            super().on_message_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._due = False
            self._stop_clock()
            super().connection_lost(exc)

        def _stop_clock(self) -> None:
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None

        def _too_slow(self) -> None:
            """Answer 408 past the application, which learns that the client is gone."""
            if self.cycle.response_started:
                self.transport.close()
            else:
                self._refuse(TOO_SLOW)

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP is answered as every other error is. ``msg`` is uvicorn's sentence for it."""
            self._refuse(NOT_HTTP)

        def _refuse(self, reply: bytes) -> None:
            self.transport.write(reply)
            self.transport.close()

    return Protocol


def _without_upgrade(data: bytes) -> bytes:
    """The first request's head without its offer to change the protocol, which a server may decline by ignoring it.

    The parser would take what follows the head of a request with such an offer (Java's client makes one with every
    request over plain HTTP) for the other protocol, and the body would be lost. Lengths stay as they are.

    >>> _without_upgrade(b"POST / HTTP/1.1\\r\\nUpgrade: h2c\\r\\n\\r\\n\\nupgrade: 1")
    b'POST / HTTP/1.1\\r\\nx-grade: h2c\\r\\n\\r\\n\\nupgrade: 1'
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"x-grade", head) + end + rest
