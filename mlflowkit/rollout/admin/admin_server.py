"""Listeners of the admin application: one application per state folder, on the admin port of each running service.

Services without a port of their own (0) share one, which is reused after a restart if it is free, so that open pages
reconnect. The address of a service's page is in ``<service>/admin.json``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.service_state.records import ServiceFiles, process_started
from mlflowkit.serving.auth import check_exposed
from mlflowkit.serving.http.http_server import bind, start

if TYPE_CHECKING:
    from mlflowkit.rollout.admin.admin_app import AdminApp

POLL_SECONDS = 0.5
STOP_SECONDS = 3.0
MAX_CONNECTIONS = 256
MAX_HEAD_BYTES = 16 << 10
HEADER_SECONDS = 10.0
"""Deadline of a request's head, from the connection or the head's first byte."""
ADMIN_RECORD = "admin.json"
"""{endpoint, message, pid, started}: the page of a service, or the reason for having none."""
_log = logging.getLogger("mlflowkit.admin")


class AdminListener:
    """Serves an admin application, while its context is entered, on the admin ports of the services of ``state``.

    On another host than loopback, a service without API keys has no page; ``admin.json`` has the reason.
    """

    def __init__(self, state: Path, admin: AdminApp, *, host: str = "127.0.0.1") -> None:
        self._state = state
        self._admin = admin
        self._host = host
        self._listeners: dict[int, _Listener] = {}
        self._written: dict[str, dict[str, Any]] = {}
        self._last_errors: dict[str, str] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run_loop, name="mlkit-admin", daemon=True)

    def __enter__(self) -> AdminListener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the listeners and remove their ``admin.json`` records."""
        self._stopping.set()
        self._admin.close()
        self._thread.join(STOP_SECONDS)
        for listener in self._listeners.values():
            listener.stop()
        for service in self._written:
            files = ServiceFiles(self._state / "services" / service)
            record = _read_record(files)
            if record is not None and record["pid"] == os.getpid():
                files.delete(ADMIN_RECORD)

    def _run_loop(self) -> None:
        while True:
            for files in ServiceFiles.all(self._state):
                try:
                    self._serve(files)
                    self._admin.counter.update(files)
                    self._last_errors.pop(files.service, None)
                except (MlkitError, OSError) as error:  # a damaged file or a full disk: the other services continue
                    if self._last_errors.get(files.service) != str(error):
                        _log.warning("the admin page of %s: %s", files.service, error)
                    self._last_errors[files.service] = str(error)
            if self._stopping.wait(POLL_SECONDS):
                return

    def _serve(self, files: ServiceFiles) -> None:
        """Listen on the admin port of a running service and record the address."""
        desired = files.desired()
        if desired is None or not desired.up:
            return
        port = desired.settings.admin_port
        record = {"endpoint": "", "message": "", "pid": os.getpid(), "started": process_started(os.getpid())}
        try:
            check_exposed(self._host, desired.settings.keys)
            listener = self._listeners.get(port) or self._listen(port, files)
            host = f"[{self._host}]" if ":" in self._host else self._host
            record["endpoint"] = f"http://{host}:{listener.port}/services/{files.service}"
        except ServiceError as error:
            record["message"] = f"{error.message} ({error.hint})" if error.hint else error.message
        before = _read_record(files) or {"pid": 0, "endpoint": ""}
        listens = before["endpoint"] and before["pid"] != os.getpid()
        if listens and process_started(before["pid"]) == before["started"]:
            return  # another living process serves the page already
        if record != before:
            files.write_json(ADMIN_RECORD, record)
            self._written[files.service] = record

    def _listen(self, port: int, files: ServiceFiles) -> _Listener:
        """Listen on ``port``; for 0 on the previous port if it is free, or on another one. Raises ServiceError."""
        before = _read_record(files) if not port else None
        previous = (urlsplit(before["endpoint"]).port or 0) if before is not None else 0
        try:
            bound = bind(self._host, port or previous, setting="serve.admin_port", shared=False)
        except ServiceError:
            if port or not previous:
                raise
            bound = bind(self._host, 0, setting="serve.admin_port", shared=False)
        self._listeners[port] = _Listener(self._admin, bound)
        return self._listeners[port]


class _Listener:
    def __init__(self, admin: AdminApp, bound: socket.socket) -> None:
        import uvicorn

        self._socket = bound
        self.port: int = bound.getsockname()[1]
        config = uvicorn.Config(
            admin, http=_connection_class(HEADER_SECONDS), ws="none", lifespan="off", log_config=None, access_log=False,
            log_level="error", server_header=False, limit_concurrency=MAX_CONNECTIONS + 1, timeout_keep_alive=30,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name=f"mlkit-admin-{self.port}", daemon=True)
        start(self._thread, self._server, f"the admin page on port {self.port}")

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS)


def _connection_class(header_seconds: float) -> type:
    """uvicorn's protocol over h11 (which bounds heads and trailers), with a deadline for a request's head.

    Connections without a complete head are closed after ``header_seconds``, and the oldest of them at once where there
    are MAX_CONNECTIONS: who opens many and sends nothing keeps nobody out.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    waiting: dict[Any, asyncio.TimerHandle] = {}

    class AdminConnection(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()
            while len(self.connections) > MAX_CONNECTIONS and waiting:
                oldest = next(iter(waiting))
                oldest.give_up()
                self.connections.discard(oldest)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def give_up(self) -> None:
            self._forget()
            self.transport.abort()

        def _watch(self) -> None:
            """Start the deadline where the client owes a head, end it where it owes nothing."""
            owes = self.cycle is None or self.cycle.response_complete
            if not owes:
                self._forget()
            elif self not in waiting and not self.transport.is_closing():
                waiting[self] = self.loop.call_later(header_seconds, self.give_up)

        def _forget(self) -> None:
            if (timer := waiting.pop(self, None)) is not None:
                timer.cancel()

    return AdminConnection


def _read_record(files: ServiceFiles) -> dict[str, Any] | None:
    """The content of ``admin.json``; None if it is missing or damaged, and is then rewritten."""
    try:
        record = files.read_json(ADMIN_RECORD)
        urlsplit(record["endpoint"]).port  # noqa: B018 - raises for a damaged endpoint
    except (ServiceError, TypeError, KeyError, ValueError, AttributeError):
        return None
    return record if {"endpoint", "message", "pid", "started"} <= record.keys() else None
