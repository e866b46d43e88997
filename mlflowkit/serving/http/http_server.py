"""A gateway's own HTTP listener: uvicorn with uvloop and httptools, on a SO_REUSEPORT socket, in its own thread.

Every replica on a machine binds the same port, and the kernel shares connections out among them; a replica that
dies takes only its own connections along. What one connection may do, and for how long, says `connection`.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from mlflowkit.errors import ServiceError

if TYPE_CHECKING:
    from mlflowkit.serving.http.gateway import Gateway

HEADER_SECONDS = 10.0
"""From the connection, or the first byte of a request, to the end of its headers."""
IDLE_SECONDS = 75.0
"""How long a connection without a request is kept."""
BACKLOG = 2048


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
                raise ServiceError(
                    f"the listener on {host}:{self.port} did not start", hint="mlkit down, then mlkit up RECIPE"
                )
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

    from mlflowkit.serving.http.connection import connections

    config = uvicorn.Config(
        gateway,
        http=connections(gateway, header_seconds),
        ws="none",
        loop="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="error",  # a warning for whatever is no HTTP would let anybody fill the disk
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(IDLE_SECONDS),
        timeout_graceful_shutdown=10,
        backlog=BACKLOG,
    )
    return uvicorn.Server(config)
