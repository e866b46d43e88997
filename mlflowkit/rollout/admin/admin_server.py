"""Where the admin surface listens: one application a state folder, on the admin port of each service that is up.

Services that ask for no port of their own (0) share one, which is kept over restarts while it is free, so that an open
page finds its way back. Where a service's page is stands in ``<service>/admin.json``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.service_state.records import ServiceFiles, process_started, read_json, write_json
from mlflowkit.serving.auth import check_exposed

if TYPE_CHECKING:
    from mlflowkit.rollout.admin.admin_app import Admin

POLL_SECONDS = 0.5
STOP_SECONDS = 3.0
MAX_CONNECTIONS = 256
ADMIN = "admin.json"
"""{endpoint, message, pid, started}: the page of a service, or why it has none."""
_log = logging.getLogger("mlflowkit.admin")


class AdminListener:
    """Serves an admin application while its context is entered, on the ports that the services of its state ask for.

    Beyond loopback a service without API keys has no page; ``admin.json`` says why.
    """

    def __init__(self, state: Path, admin: Admin, *, host: str = "127.0.0.1") -> None:
        self._state = state
        self._admin = admin
        self._host = host
        self._listeners: dict[int, _Listener] = {}
        self._told: dict[str, dict[str, Any]] = {}
        self._complaints: dict[str, str] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mlkit-admin", daemon=True)

    def __enter__(self) -> AdminListener:
        """Follow the services from now on; returns at once."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the listeners and withdraw what says where they are."""
        self._stopping.set()
        self._admin.close()
        self._thread.join(STOP_SECONDS)
        for listener in self._listeners.values():
            listener.stop()
        for service in self._told:
            path = self._state / "services" / service / ADMIN
            told = _place(path)
            if told is not None and told["pid"] == os.getpid():
                path.unlink(missing_ok=True)

    def _follow(self) -> None:
        while True:
            for files in ServiceFiles.all(self._state):
                try:
                    self._serve(files)
                    self._admin.tally.note(files)
                    self._complaints.pop(files.service, None)
                except (MlkitError, OSError) as error:  # a damaged file or a full disk; the other services go on
                    if self._complaints.get(files.service) != str(error):
                        _log.warning("the admin page of %s: %s", files.service, error)
                    self._complaints[files.service] = str(error)
            if self._stopping.wait(POLL_SECONDS):
                return

    def _serve(self, files: ServiceFiles) -> None:
        """Listen where a service that is up asks for it, and say so."""
        desired = files.desired()
        if desired is None or not desired.up:
            return
        wanted = desired.settings.admin_port
        told = {"endpoint": "", "message": "", "pid": os.getpid(), "started": process_started(os.getpid())}
        try:
            check_exposed(self._host, desired.settings.keys)
            listener = self._listeners.get(wanted) or self._listen(wanted, files)
            host = f"[{self._host}]" if ":" in self._host else self._host
            told["endpoint"] = f"http://{host}:{listener.port}/services/{files.service}"
        except ServiceError as error:
            told["message"] = f"{error.message} ({error.hint})" if error.hint else error.message
        before = _place(files.folder / ADMIN)
        if told != before and not _another(before):
            write_json(files.folder / ADMIN, told)
            self._told[files.service] = told

    def _listen(self, wanted: int, files: ServiceFiles) -> _Listener:
        before = _place(files.folder / ADMIN) if not wanted else None
        kept = _port(before["endpoint"]) if before is not None else 0
        listener = _Listener(self._admin, _bind(self._host, wanted, kept))
        self._listeners[wanted] = listener
        return listener


class _Listener:
    """uvicorn on one socket, in its own thread."""

    def __init__(self, admin: Admin, bound: socket.socket) -> None:
        import uvicorn

        self._socket = bound
        self.port: int = bound.getsockname()[1]
        config = uvicorn.Config(
            admin, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
            limit_concurrency=MAX_CONNECTIONS, timeout_keep_alive=30, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name=f"mlkit-admin-{self.port}", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 30
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise ServiceError(
                    f"the admin page on port {self.port} did not start",
                    hint="mlkit down, then mlkit up RECIPE; serve.admin_port=0 takes another port",
                )
            time.sleep(0.005)

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS)


def _place(path: Path) -> dict[str, Any] | None:
    """What ``admin.json`` says; None when there is none, or it was damaged: it is then written anew."""
    try:
        told = read_json(path)
    except ServiceError:
        return None
    good = isinstance(told, dict) and {"endpoint", "message", "pid", "started"} <= told.keys()
    return told if good and isinstance(told["endpoint"], str) else None


def _another(told: dict[str, Any] | None) -> bool:
    """Whether a living process other than this one says where the page is: it was there first."""
    if told is None or told["pid"] == os.getpid() or not told["endpoint"]:
        return False
    return bool(process_started(told["pid"]) == told["started"])


def _port(endpoint: str) -> int:
    """The port of an endpoint; 0 of none."""
    text = endpoint.partition("//")[2].partition("/")[0].rpartition(":")[2]
    return int(text) if text.isdigit() else 0


def _bind(host: str, wanted: int, kept: int) -> socket.socket:
    """A listening socket on the port that is wanted; for 0 on the one before, or a free one. Raises ServiceError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    failure: OSError | None = None
    for port in (wanted,) if wanted else dict.fromkeys((kept, 0)):
        found = socket.socket(family, socket.SOCK_STREAM)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, port))
            found.listen(128)
            return found
        except OSError as error:
            found.close()
            failure = error
    reason = "it" if failure is None else failure.strerror or str(failure)
    raise ServiceError(
        f"the admin page cannot listen on {host}:{wanted}: {reason}", hint="serve.admin_port=0 takes a free one"
    ) from failure
