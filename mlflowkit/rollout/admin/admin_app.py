"""The admin surface: pages, their JSON, events, metrics, and the commands of `mlkit rollout`, as one ASGI application.

It runs in the controller's process, apart from the gateways, and reads and writes files only: a page that is slow
costs no answer, and a gateway that is down is still shown. What it renders pages with is handed in.

Who may ask:

- A name in the Host header that is not of loopback (or of the address listened on) is refused: a page of another site
  whose name was made to point here (DNS rebinding) reads nothing.
- A command has to be JSON, which no form can send and no script of another origin without asking first, and what the
  browser says of its origin has to be this one (CSRF).
- With API keys on, everything of a service wants one with the scope admin: as ``authorization: Bearer KEY``, as
  ``x-api-key: KEY``, or in a browser as the password that it asks for.
- Pages load nothing from elsewhere and run no script but ours: the Content-Security-Policy says so to the browser.
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
from mlflowkit.rollout.admin.snapshot import Tally, Watch
from mlflowkit.rollout.admin.view_models import Command, ServiceView
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.serving import auth
from mlflowkit.serving.protocol.http_error import Refusal
from mlflowkit.values import Json

EVENT_SECONDS = 1.0
"""A page hears of changes at most this often."""
KEEPALIVE_SECONDS = 15.0
"""Silence on a stream of events after which a comment is sent, so that nobody on the way thinks it dead."""
ANSWER_SECONDS = 2.0
"""How long a command waits for the controller's answer; without one it stays asked."""
MAX_BODY = 4096
MAX_REASON = 500
COMMANDS: tuple[Command, ...] = get_args(Command)
SECURITY = {
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
    """A file that pages load from here."""

    content: bytes
    kind: str


@dataclass(frozen=True, slots=True)
class Pages:
    """What makes HTML of views: the services of a state folder, one service, and the files that both load."""

    services: Callable[[Sequence[ServiceView]], str]
    service: Callable[[ServiceView], str]
    assets: Mapping[str, Asset]


class Admin:
    """The admin surface of a state folder, an ASGI application. `close` ends its streams of events."""

    def __init__(self, state: Path, pages: Pages, *, host: str = "127.0.0.1") -> None:
        self.tally = Tally()
        self._state = state
        self._pages = pages
        self._watch = Watch(state)
        self._keys = _Keys()
        self._closing = threading.Event()
        routes = [
            Route("/", self._index),
            Route("/services/{service}", self._service),
            Route("/assets/{name}", self._asset),
            Route("/metrics", self._metrics),
            Route("/api/services", self._views),
            Route("/api/services/{service}", self._view),
            Route("/api/services/{service}/events", self._events),
            Route("/api/services/{service}/rollout/{command}", self._command, methods=["POST"]),
        ]
        errors = {404: _not_found, 405: _not_found, Refusal: _refused, MlkitError: _failed}
        self._app: ASGIApp = Guard(Starlette(routes=routes, exception_handlers=errors), host)  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def close(self) -> None:
        """End the streams of events; a listener that waits for its connections can then stop."""
        self._closing.set()

    async def _index(self, request: Request) -> Response:
        return HTMLResponse(self._pages.services(await self._allowed(request)))

    async def _service(self, request: Request) -> Response:
        return HTMLResponse(self._pages.service(await self._one(request)))

    async def _asset(self, request: Request) -> Response:
        asset = self._pages.assets.get(request.path_params["name"])
        if asset is None:
            raise Refusal(404, "no such file")
        return Response(asset.content, media_type=asset.kind)

    async def _metrics(self, request: Request) -> Response:
        return Response(
            rollout_metrics.page(await self._allowed(request), self.tally), media_type=rollout_metrics.CONTENT_TYPE
        )

    async def _views(self, request: Request) -> Response:
        return JSONResponse({"services": [view.to_json() for view in await self._allowed(request)]})

    async def _view(self, request: Request) -> Response:
        return JSONResponse((await self._one(request)).to_json())

    async def _events(self, request: Request) -> Response:
        view = await self._one(request)
        return StreamingResponse(self._changes(view), media_type="text/event-stream")

    async def _changes(self, view: ServiceView) -> AsyncIterator[str]:
        """An event now, and one whenever the view is another than before."""
        seen: ServiceView | None = None
        quiet = time.monotonic()
        while not self._closing.is_set():
            shown = replace(view, time=0.0)
            if shown != seen:
                seen, quiet = shown, time.monotonic()
                phase = None if view.rollout is None else view.rollout.phase
                yield f"event: change\ndata: {json.dumps({'epoch': view.epoch, 'phase': phase})}\n\n"
            elif time.monotonic() - quiet > KEEPALIVE_SECONDS:
                quiet = time.monotonic()
                yield ": still here\n\n"
            await asyncio.sleep(EVENT_SECONDS)
            latest = await run_in_threadpool(self._watch.view, view.service)
            if latest is None:
                return
            view = latest

    async def _command(self, request: Request) -> Response:
        _check_origin(request)
        view = await self._one(request)
        command = request.path_params["command"]
        if command not in COMMANDS:
            raise Refusal(404, f"no command {command[:40]!r}; there is {', '.join(COMMANDS)}")
        told = _told(await _body(request))
        files = ServiceFiles(self._state / "services" / view.service)
        return await run_in_threadpool(_say, files, command, told)

    async def _one(self, request: Request) -> ServiceView:
        """The service that a path names. Raises Refusal when there is none, or the key does not reach it.

        Without a key, a name that is none looks like one that is: both ask for a key where any service does.
        """
        name = request.path_params["service"]
        view = await run_in_threadpool(self._watch.view, name)
        if view is None:
            there = ", ".join(one.service for one in await self._allowed(request))
            raise Refusal(404, f"no service {name[:80]!r} here; there is {there or 'none'}")
        await run_in_threadpool(self._keys.check, ServiceFiles(self._state / "services" / name), _token(request))
        return view

    async def _allowed(self, request: Request) -> tuple[ServiceView, ...]:
        """The services that a key reaches. Raises Refusal when it reaches none of several."""
        views = await run_in_threadpool(self._watch.views)
        reached, refusals = [], []
        for view in views:
            files = ServiceFiles(self._state / "services" / view.service)
            try:
                await run_in_threadpool(self._keys.check, files, _token(request))
                reached.append(view)
            except Refusal as refusal:
                refusals.append(refusal)
        if refusals and not reached:
            raise refusals[0]
        return tuple(reached)


class _Keys:
    """Checks tokens against the key file of a service, which is read again when it changed."""

    def __init__(self) -> None:
        self._rings: dict[Path, tuple[int, auth.Keyring]] = {}

    def check(self, files: ServiceFiles, token: bytes) -> None:
        """Raise Refusal unless the token may administer the service, ServiceError when its keys cannot be read."""
        desired = files.desired()
        if desired is None or not desired.settings.keys:
            return
        path = Path(desired.settings.keys)
        changed = path.stat().st_mtime_ns if path.exists() else 0
        known = self._rings.get(path)
        if known is None or known[0] != changed:
            known = self._rings[path] = (changed, auth.Keyring(auth.read(path)))
        known[1].check(token, "admin")


class Guard:
    """Refuses requests for another host, and gives every reply the headers of SECURITY."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY)
            await send(message)

        named = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(named) == 1 and self._mine(named[0]):
            await self._app(scope, receive, secured)
        else:
            reply = _problem(HTTPStatus.MISDIRECTED_REQUEST, "this is the admin page of this machine, by its own name")
            await reply(scope, receive, secured)

    def _mine(self, named: str) -> bool:
        host = named.rpartition(":")[0] if not named.endswith("]") and ":" in named else named
        host = host.removeprefix("[").removesuffix("]")
        return auth.loopback(host) or host.lower() == self._host.lower()


def _token(request: Request) -> bytes:
    """The API key of a request, as the gateway takes it or as a browser sends a password; empty when there is none."""
    for name in ("authorization", "x-api-key"):
        found = auth.token_of(name.encode(), request.headers.get(name, "").encode("latin-1"))
        if found:
            return found
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _check_origin(request: Request) -> None:
    """Raise Refusal for a command that a page of another origin may have sent."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "none")
    if (origin is not None and origin != f"http://{request.headers['host']}") or site not in ("same-origin", "none"):
        raise Refusal(403, "this command comes from a page of another origin")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "a command is JSON: send content-type: application/json")


async def _body(request: Request) -> Json:
    """The document of a command. Raises Refusal for none, or one that is too large."""
    content = b""
    try:
        async for chunk in request.stream():
            content += chunk
            if len(content) > MAX_BODY:
                raise Refusal(413, f"a command has at most {MAX_BODY} bytes")
        return json.loads(content or b"{}")
    except ClientDisconnect as error:
        raise Refusal(400, "the body ended early") from error
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {error}") from error


@dataclass(frozen=True, slots=True)
class _Told:
    """The body of a command; see `rollout.commands.Told`."""

    reason: str = ""
    full: bool = False
    variant: str = ""


def _told(body: Json) -> _Told:
    """What a command says beside its name. Raises Refusal for anything else."""
    kinds = {"reason": str, "full": bool, "variant": str}
    good = isinstance(body, dict) and all(isinstance(value, kinds.get(name, ())) for name, value in body.items())
    if not good or len(body.get("reason", "")) > MAX_REASON:
        raise Refusal(
            400, f'an object such as {{"reason": "..."}} is expected; a reason has at most {MAX_REASON} letters'
        )
    return _Told(**body)


def _say(files: ServiceFiles, command: Command, told: _Told) -> Response:
    """Leave a command for the controller, and tell what it made of it, if it says so soon."""
    effect = commands.effect(files, command, full=told.full, variant=told.variant)
    left = commands.say(files, command, told.reason, full=told.full, variant=told.variant)
    found = {"id": left.id, "service": files.service, "command": command}
    try:
        answer = commands.wait(files, left.id, ANSWER_SECONDS)
    except ServiceError:
        message = f"asked to {effect}; the controller has not answered yet"
        return JSONResponse({**found, "message": message}, HTTPStatus.ACCEPTED)
    if not answer.ok:
        return _problem(HTTPStatus.CONFLICT, answer.message, answer.hint)
    return JSONResponse({**found, "message": answer.message})


def _problem(code: int, message: str, hint: str = "") -> Response:
    reply = JSONResponse({"error": message, "hint": hint} if hint else {"error": message}, code)
    if code == HTTPStatus.UNAUTHORIZED:
        reply.headers["www-authenticate"] = 'Basic realm="mlflowkit: an API key with the scope admin", charset="UTF-8"'
    return reply


async def _refused(_: Request, refusal: Refusal) -> Response:
    return _problem(refusal.status, refusal.message)


async def _failed(_: Request, error: MlkitError) -> Response:
    code = HTTPStatus.CONFLICT if isinstance(error, UsageError) else HTTPStatus.SERVICE_UNAVAILABLE
    return _problem(code, error.message, error.hint)


async def _not_found(_: Request, error: Exception) -> Response:
    code = getattr(error, "status_code", 404)
    return _problem(code, "no such page" if code == HTTPStatus.NOT_FOUND else "this path takes another method")
