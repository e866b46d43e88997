"""A gateway's own HTTP server: uvicorn's server on uvloop, on a SO_REUSEPORT socket, in its own thread.

Every replica on a machine binds the same port and the kernel distributes connections among them; a replica that dies
loses only its own connections. Limits of one connection: see `connection`.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from mlflowkit.errors import ServiceError

if TYPE_CHECKING:
    from mlflowkit.serving.http.gateway import Gateway

HEADER_SECONDS = 10.0
"""Deadline for a request's headers, from the connection or the request's first byte."""
BACKLOG = 2048
SWITCH_SECONDS = 0.0005
"""How long a thread may keep the interpreter's lock while another waits; 5 ms by default."""


class HttpServer:
    """Serves a gateway on (host, port) from construction until `stop`. Raises ServiceError when it cannot bind."""

    def __init__(self, gateway: Gateway, host: str, port: int, *, header_seconds: float = HEADER_SECONDS) -> None:
        self._socket = bind(host, port)
        self.port: int = self._socket.getsockname()[1]
        self.host = host
        self.loop: asyncio.AbstractEventLoop
        self._server = _uvicorn_server(gateway, header_seconds)
        self._thread = threading.Thread(target=self._serve, name=f"mlkit-http-{self.port}", daemon=True)
        start(self._thread, self._server, f"the listener on {host}:{self.port}")

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self, seconds: float = 10.0) -> None:
        """Stop accepting, let requests in flight finish for up to ``seconds``, close."""
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


def prepare_interpreter() -> None:
    """Keep the interpreter's pauses short in a process that serves: for the whole process, once it has loaded.

    What is loaded by then is taken out of garbage collection: a full collection that visits every module of Ray and
    NumPy takes a tenth of a second. The other threads of the process hand the interpreter's lock back sooner.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    sys.setswitchinterval(SWITCH_SECONDS)


def start(thread: threading.Thread, server: Any, name: str) -> None:
    """Start the thread of a uvicorn server and wait until it listens. Raises ServiceError."""
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise ServiceError(f"{name} did not start", hint="mlkit down, then mlkit up RECIPE")
        time.sleep(0.005)


def bind(host: str, port: int, *, setting: str = "serve.port", shared: bool = True) -> socket.socket:
    """A listening socket, with SO_REUSEPORT if ``shared``. Raises ServiceError that names the port's ``setting``."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        problem, hint = error.strerror or error, f"choose another: {setting}=0 takes a free one"
        raise ServiceError(f"cannot listen on {host}:{port}: {problem}", hint=hint) from error
    listener.setblocking(False)
    return listener


def _uvicorn_server(gateway: Gateway, header_seconds: float) -> Any:
    import uvicorn

    from mlflowkit.serving.http.connection import connection_class

    # log_level: a warning for each malformed request would let anybody fill the disk
    config = uvicorn.Config(
        gateway, http=connection_class(gateway, header_seconds), ws="none", loop="none", lifespan="off",
        interface="asgi3", log_config=None, log_level="error", access_log=False, server_header=False, date_header=False,
        proxy_headers=False, timeout_graceful_shutdown=10, backlog=BACKLOG,
    )  # fmt: skip
    return uvicorn.Server(config)
