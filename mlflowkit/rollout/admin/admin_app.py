"""The admin ASGI application: pages, JSON API, events, metrics, and the commands of `mlkit rollout`.

It runs in the controller's process, apart from the gateways, and only reads and writes files: a slow page delays no
prediction, and a gateway that is down is still shown. The HTML renderers are injected, and so are the metrics of what
lies above rollouts.

Access control:

- The Host header must name loopback or the address listened on (protects against DNS rebinding).
- A command must be JSON, which no HTML form sends and no foreign script can without a CORS preflight, and the
  browser's origin headers must name this origin (protects against CSRF).
- With API keys enabled, everything of a service requires a key with the scope admin: as ``authorization: Bearer KEY``,
  as ``x-api-key: KEY``, or as the browser's basic-auth password.
- An event stream ends when its key is no longer valid. A key file that is missing or damaged rejects every request.
- A Content-Security-Policy allows pages no foreign resources and no scripts but ours.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlflowkit.errors import MlkitError, ServiceError, UsageError
from mlflowkit.rollout import commands
from mlflowkit.rollout.admin import rollout_metrics
from mlflowkit.rollout.admin.snapshot import EventCounter, ServiceMonitor
from mlflowkit.rollout.admin.view_models import ServiceView
from mlflowkit.rollout.commands import CommandKind
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.serving import auth
from mlflowkit.serving.protocol.http_error import CLOSE, RequestError
from mlflowkit.system.files import disk_errors, file_stamp
from mlflowkit.values import Json

EVENT_SECONDS = 1.0
"""Minimum interval between change events of a page."""
KEEPALIVE_SECONDS = 15.0
"""Idle seconds after which an event stream sends a comment, so that proxies keep the connection."""
REPLY_SECONDS = 2.0
"""Timeout for the controller's reply to a command; without one the command stays queued."""
MAX_STREAMS = 64
"""Event streams at a time, one for each open page."""
BODY_SECONDS = 10.0
"""Deadline of a command's body."""
MAX_BODY = 4096
MAX_REASON = 500
MONITOR_RECORD = "monitor/view.json"
"""What the monitor knows of a service; see monitoring.monitor_view."""
COMMANDS: tuple[CommandKind, ...] = get_args(CommandKind)
SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Asset:
    content: bytes
    kind: str


@dataclass(frozen=True, slots=True)
class Change:
    """What a page shows: ``content`` is compared with what was there before, ``data`` is sent when it has changed."""

    content: object
    data: Json


@dataclass(frozen=True, slots=True)
class Pages:
    """HTML renderers of the service list, of one service and of its monitor, and the static files that they load."""

    services: Callable[[Sequence[ServiceView]], str]
    service: Callable[[ServiceView], str]
    monitor: Callable[[ServiceFiles, Mapping[str, str]], str]
    """Of a service, with the query of the page's address."""
    assets: Mapping[str, Asset]


class AdminApp:
    """The admin ASGI application of a state folder."""

    def __init__(
        self,
        state: Path,
        pages: Pages,
        *,
        host: str = "127.0.0.1",
        more_metrics: Callable[[Sequence[str]], bytes] = lambda services: b"",
    ) -> None:
        """``more_metrics`` renders what follows the metrics of rollouts, of the services that a scraper may see."""
        self.counter = EventCounter()
        self._state = state
        self._pages = pages
        self._more_metrics = more_metrics
        self._monitor = ServiceMonitor(state)
        self._rings: dict[Path, tuple[object, auth.Keyring]] = {}
        self._streams = 0
        self._closing = threading.Event()
        routes = [
            Route("/", self._index),
            Route("/services/{service}", self._service),
            Route("/services/{service}/monitor", self._monitor_page),
            Route("/assets/{name}", self._asset),
            Route("/metrics", self._metrics),
            Route("/api/services", self._views),
            Route("/api/services/{service}", self._view),
            Route("/api/services/{service}/events", self._events),
            Route("/api/services/{service}/monitor", self._monitor_view),
            Route("/api/services/{service}/monitor/events", self._monitor_events),
            Route("/api/services/{service}/rollout/{command}", self._command, methods=["POST"]),
        ]
        errors = dict.fromkeys((404, 405, RequestError, MlkitError), _error_reply)
        self._app: ASGIApp = RequestGuard(Starlette(routes=routes, exception_handlers=errors), host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def close(self) -> None:
        """End all event streams, so that the listener can stop."""
        self._closing.set()

    async def _index(self, request: Request) -> Response:
        return HTMLResponse(self._pages.services(await self._authorized(request)))

    async def _service(self, request: Request) -> Response:
        return HTMLResponse(self._pages.service(await self._requested(request)))

    async def _asset(self, request: Request) -> Response:
        asset = self._pages.assets.get(request.path_params["name"])
        if asset is None:
            raise RequestError(404, "no such file")
        return Response(asset.content, media_type=asset.kind)

    async def _metrics(self, request: Request) -> Response:
        views = await self._authorized(request, "metrics")
        page = rollout_metrics.render_metrics(views, self.counter)
        more = await run_in_threadpool(self._more_metrics, [view.service for view in views])
        return Response(page + more, media_type=rollout_metrics.CONTENT_TYPE)

    async def _views(self, request: Request) -> Response:
        return JSONResponse({"services": [view.to_json() for view in await self._authorized(request)]})

    async def _view(self, request: Request) -> Response:
        return JSONResponse((await self._requested(request)).to_json())

    async def _monitor_page(self, request: Request) -> Response:
        files = await self._requested_files(request)
        return HTMLResponse(await run_in_threadpool(self._pages.monitor, files, dict(request.query_params)))

    async def _monitor_view(self, request: Request) -> Response:
        files = await self._requested_files(request)
        view = await run_in_threadpool(files.read_json, MONITOR_RECORD)
        if view is None:
            raise RequestError(404, f"service {files.service} is not monitored, or no window has been closed yet")
        return JSONResponse(view)

    async def _events(self, request: Request) -> Response:
        service = (await self._requested(request)).service

        def look() -> Change | None:
            view = self._monitor.view(service)
            if view is None:
                return None
            phase = None if view.rollout is None else view.rollout.phase
            return Change(replace(view, time=0.0), {"epoch": view.epoch, "phase": phase})

        return self._stream(request, service, look)

    async def _monitor_events(self, request: Request) -> Response:
        files = await self._requested_files(request)

        def look() -> Change:
            version = "".join(entry.version for entry in files.list(MONITOR_RECORD))
            return Change(version, {"monitor": version})

        return self._stream(request, files.service, look)

    def _stream(self, request: Request, service: str, look: Callable[[], Change | None]) -> Response:
        if self._streams >= MAX_STREAMS:
            raise RequestError(503, f"{MAX_STREAMS} pages follow the changes already")
        return StreamingResponse(self._changes(service, _token(request), look), media_type="text/event-stream")

    async def _changes(self, service: str, token: bytes, look: Callable[[], Change | None]) -> AsyncIterator[str]:
        """An event now, and one whenever what ``look`` returns has changed, while the key is valid."""
        self._streams += 1
        try:
            async for event in self._events_of(service, token, look):
                yield event
        finally:
            self._streams -= 1

    async def _events_of(self, service: str, token: bytes, look: Callable[[], Change | None]) -> AsyncIterator[str]:
        sent: object = None
        sent_at = time.monotonic()
        while not self._closing.is_set():
            try:
                latest = await run_in_threadpool(look)
            except MlkitError:
                return
            if latest is None:
                return
            if latest.content != sent:
                sent, sent_at = latest.content, time.monotonic()
                yield f"event: change\ndata: {json.dumps(latest.data)}\n\n"
            elif time.monotonic() - sent_at > KEEPALIVE_SECONDS:
                sent_at = time.monotonic()
                yield ": keep-alive\n\n"
            await asyncio.sleep(EVENT_SECONDS)
            try:
                await run_in_threadpool(self._check_key, service, token)
            except (RequestError, MlkitError):
                return

    async def _command(self, request: Request) -> Response:
        _check_origin(request)
        view = await self._requested(request)
        command = request.path_params["command"]
        if command not in COMMANDS:
            raise RequestError(404, f"no command {command[:40]!r}; there is {', '.join(COMMANDS)}")
        body = await _read_command(request)
        files = ServiceFiles(self._state / "services" / view.service)
        return await run_in_threadpool(_submit, files, command, body)

    async def _requested(self, request: Request) -> ServiceView:
        """The service in the request's path. Raises RequestError if it does not exist or the key is not valid for it.

        Without a valid key, unknown names are indistinguishable from existing ones if any service requires keys.
        """
        name = request.path_params["service"]
        view = await run_in_threadpool(self._monitor.view, name)
        if view is None:
            names = ", ".join(service.service for service in await self._authorized(request))
            raise RequestError(404, f"no service {name[:80]!r} here; there is {names or 'none'}")
        await run_in_threadpool(self._check_key, name, _token(request))
        return view

    async def _requested_files(self, request: Request) -> ServiceFiles:
        """The records of the service in the request's path. Raises RequestError as `_requested`."""
        return ServiceFiles(self._state / "services" / (await self._requested(request)).service)

    async def _authorized(self, request: Request, other: auth.Scope = "admin") -> tuple[ServiceView, ...]:
        """The services that the request's key is valid for: with the scope admin, or another one.

        Raises RequestError if it is valid for none.
        """
        views = await run_in_threadpool(self._monitor.views)
        authorized, errors = [], []
        for view in views:
            try:
                await run_in_threadpool(self._check_key, view.service, _token(request), other)
                authorized.append(view)
            except RequestError as error:
                errors.append(error)
        if errors and not authorized:
            raise errors[0]
        return tuple(authorized)

    def _check_key(self, service: str, token: bytes, other: auth.Scope = "admin") -> None:
        """Raise RequestError unless the token has the scope admin or another one.

        Raises ServiceError if the service's keys cannot be read.
        """
        desired = ServiceFiles(self._state / "services" / service).desired()
        if desired is None or not desired.settings.keys:
            return
        path = Path(desired.settings.keys)
        with disk_errors(path):
            stamp = file_stamp(path)
        cached = self._rings.get(path)
        if cached is None or cached[0] != stamp:
            self._rings.pop(path, None)
            cached = self._rings[path] = (stamp, auth.Keyring(auth.read_keys(path)))
        ring = cached[1]
        ring.check(token, other if other in ring.scopes(token)[1] else "admin")


class RequestGuard:
    """Rejects requests for another host, and adds SECURITY_HEADERS to every response."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        name = hosts[0] if len(hosts) == 1 else ""
        host = name.rpartition(":")[0] if not name.endswith("]") and ":" in name else name
        host = host.removeprefix("[").removesuffix("]")
        if name and (auth.is_loopback(host) or host.lower() == self._host.lower()):
            await self._app(scope, receive, secured)
        else:
            reply = _problem(HTTPStatus.MISDIRECTED_REQUEST, "this is the admin page of this machine, by its own name")
            await reply(scope, receive, secured)


def _token(request: Request) -> bytes:
    """The API key of a request, from the gateway's headers or basic auth; empty without one."""
    for name in ("authorization", "x-api-key"):
        token = auth.bearer_token(name.encode(), request.headers.get(name, "").encode("latin-1"))
        if token:
            return token
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _check_origin(request: Request) -> None:
    """Raise RequestError for a command that a page of another origin may have sent (CSRF)."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "none")
    if (origin is not None and origin != f"http://{request.headers['host']}") or site not in ("same-origin", "none"):
        raise RequestError(403, "this command comes from a page of another origin")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(415, "a command is JSON: send content-type: application/json")


async def _read_command(request: Request) -> _CommandBody:
    """The body of a command. Raises RequestError if it is malformed or too large."""
    content = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > MAX_BODY:
                    raise RequestError(413, f"a command has at most {MAX_BODY} bytes")
        return _CommandBody.model_validate(json.loads(content or b"{}"))
    except ValidationError as error:
        problem = f'an object such as {{"reason": "..."}} is expected; a reason has at most {MAX_REASON} characters'
        raise RequestError(400, problem) from error
    except TimeoutError as error:
        raise RequestError(408, f"the body did not arrive within {BODY_SECONDS:g} s", CLOSE) from error
    except ClientDisconnect as error:
        raise RequestError(400, "the body ended early") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {error}") from error


class _CommandBody(BaseModel):
    """The body of a command; see `rollout.commands.OperatorCommand`."""

    model_config = ConfigDict(strict=True, extra="forbid")
    reason: str = Field("", max_length=MAX_REASON)
    full: bool = False
    variant: str = ""


def _submit(files: ServiceFiles, kind: CommandKind, body: _CommandBody) -> Response:
    effect = commands.describe_effect(files, kind, full=body.full, variant=body.variant)
    command = commands.submit(files, kind, body.reason, full=body.full, variant=body.variant)
    response = {"id": command.id, "service": files.service, "command": kind}
    try:
        reply = commands.wait_for_reply(files, command.id, REPLY_SECONDS)
    except ServiceError:
        message = f"asked to {effect}; the controller has not answered yet"
        return JSONResponse({**response, "message": message}, HTTPStatus.ACCEPTED)
    if not reply.ok:
        return _problem(HTTPStatus.CONFLICT, reply.message, reply.hint)
    return JSONResponse({**response, "message": reply.message})


def _problem(code: int, message: str, hint: str = "") -> Response:
    reply = JSONResponse({"error": message, "hint": hint} if hint else {"error": message}, code)
    if code == HTTPStatus.UNAUTHORIZED:
        reply.headers["www-authenticate"] = 'Basic realm="mlflowkit: an API key with the scope admin", charset="UTF-8"'
    return reply


async def _error_reply(_: Request, error: Exception) -> Response:
    if isinstance(error, RequestError):
        return _problem(error.status, error.message)
    if isinstance(error, MlkitError):
        code = HTTPStatus.CONFLICT if isinstance(error, UsageError) else HTTPStatus.SERVICE_UNAVAILABLE
        return _problem(code, error.message, error.hint)
    status = getattr(error, "status_code", 404)
    return _problem(status, "no such page" if status == HTTPStatus.NOT_FOUND else "this path takes another method")
