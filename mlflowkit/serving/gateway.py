"""The gateway: an ASGI application that answers for one service.

::

    GET  /v2                                        server metadata
    GET  /v2/health/live  /v2/health/ready
    GET  /v2/models/{m}[/versions/{v}]              model metadata, from the bundle's signature
    GET  /v2/models/{m}[/versions/{v}]/ready
    POST /v2/models/{m}[/versions/{v}]/infer        Open Inference Protocol v2, JSON
    POST /predict                                   {"rows": [{column: value}]}
    GET  /metrics                                   Prometheus

Errors are ``{"error": "..."}``. 400 the body is wrong · 401 no API key that is known ·
403 a key without the scope · 404 no such path, model or version · 405 · 408 the body came
too slowly (see `listener`) · 413 too many bytes or rows · 422 no finite answer for these values · 503 (with
Retry-After) no model yet, or too many requests waiting · 504 the deadline passed. Input, however wrong, is never
answered with 500.

The application is written against ASGI itself: a framework's routing and request objects cost more than the
model does. A small graph is run on the event loop, a large request in a thread (see `variants.INLINE_SECONDS`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

import orjson

import mlflowkit
from mlflowkit.bundle import Tensor
from mlflowkit.errors import MlkitError
from mlflowkit.serving.auth import Keyring, token_of
from mlflowkit.serving.auth import Scope as KeyScope
from mlflowkit.serving.dispatch import Answer, Call, Dispatcher
from mlflowkit.serving.files import Settings
from mlflowkit.serving.protocol import Query, Refusal, Schema, read_document, render_infer, render_rows
from mlflowkit.serving.records import Mirror, Tap
from mlflowkit.serving.router import affinity_key, parameter_key
from mlflowkit.serving.telemetry import CONTENT_TYPE, Telemetry, merge
from mlflowkit.serving.variants import Model, Versions
from mlflowkit.values import Json

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

_JSON: Headers = ((b"content-type", b"application/json"),)
_RETRY: Headers = ((b"retry-after", b"1"),)
_CLOSE: Headers = ((b"connection", b"close"),)
_DRAIN_BYTES = 64 << 20
_DRAIN_SECONDS = 2.0
OPEN_DOORS = frozenset({"live", "ready", "model-ready"})
"""Doors that ask for no API key: what is asked by whatever keeps the service running."""
SCOPE_OF: Mapping[str, KeyScope] = {"infer": "infer", "predict": "infer", "feedback": "feedback"}
"""The scope that a door asks for; another door takes any key."""
_log = logging.getLogger("mlflowkit.serving")


class Gateway:
    """Answers requests with what ``versions`` points at.

    ``settings`` may be replaced at any time and holds from the next request on. ``neighbours`` gives the metrics pages
    of the other replicas on the same port. ``keys`` may be replaced at any time too; None asks for no API key.
    """

    def __init__(
        self,
        settings: Settings,
        versions: Versions,
        telemetry: Telemetry,
        neighbours: Callable[[], Iterable[str]] = tuple,
        tap: Tap | None = None,
        mirror: Mirror | None = None,
        keys: Keyring | None = None,
    ) -> None:
        self.keys = keys
        self.neighbours = neighbours
        self.versions = versions
        self.telemetry = telemetry
        self.dispatcher = Dispatcher(settings, versions, telemetry, tap, mirror)
        self.in_flight = 0
        self._buffered = 0
        self._prefix = f"{os.getpid():x}-{time.time_ns() & 0xFFFFFFFF:x}-"
        self._count = itertools.count(1)
        self._roads: dict[str, tuple[str, str, str]] = {}

    @property
    def settings(self) -> Settings:
        return self.dispatcher.settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self.dispatcher.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3). Lifespan events are acknowledged; websockets are refused by closing."""
        if scope["type"] != "http":
            await _not_http(scope, receive, send)
            return
        begin = time.perf_counter()
        self.in_flight += 1
        door, number = "other", ""
        try:
            call, length, token = self._head(scope["headers"], begin)
            number = call.id
            road = self._roads.get(scope["path"]) or self._road(scope["path"])
            door = road[0]
            if self.keys is not None:
                self.authorize(door, token)
            if door in ("infer", "predict"):
                status, body, headers = await self._answer(scope, receive, road, call, length)
            else:
                status, body, headers = self._look(scope["method"], road)
        except Refusal as refusal:
            status, body = refusal.status, _error(refusal.message)
            headers = (*_JSON, *refusal.headers)
        except Exception as error:  # noqa: BLE001 - the last wall: logged with its traceback, answered as 500
            _log.exception("request %s", number)
            status, body, headers = 500, _error(_ours(error)), _JSON
        finally:
            self.in_flight -= 1
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    *headers,
                    (b"x-mlkit-request-id", number.encode("latin-1")),
                    (b"content-length", b"%d" % len(body)),
                ],
            }
        )
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
        self.telemetry.answered(door, status, time.perf_counter() - begin)

    def _head(self, headers: list[tuple[bytes, bytes]], begin: float) -> tuple[Call, int, bytes]:
        """A call with its id (the client's own, when it is printable and short), key and override; the body's length;
        the API key.

        Without the affinity's header or cookie, a call is dealt by its id.
        """
        active = self.versions.active
        affinity = b"" if active is None else active.affinity_header
        testers = b"" if active is None else active.override_header
        number, key, override, length, token = "", "", "", -1, b""
        for name, value in headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"x-request-id" and 0 < len(value) <= 128 and (text := value.decode("latin-1")).isprintable():
                number = text if text.isascii() else ""
            elif name in (b"authorization", b"x-api-key"):
                token = token_of(name, value) or token
            if name == affinity and active is not None:
                key = affinity_key(active.table.affinity, value)
            elif name == testers:
                override = value.decode("latin-1")
        return Call(number or f"{self._prefix}{next(self._count):x}", _unparsed, begin, key, override), length, token

    def authorize(self, door: str, token: bytes) -> None:
        """Raise Refusal (401, 403) unless the token may use a door. Health is everybody's; see `auth.Keyring.check`."""
        if self.keys is None or door in OPEN_DOORS:
            return
        try:
            self.keys.check(token, SCOPE_OF.get(door))
        except Refusal as refusal:
            self.telemetry.refused(refusal.status)
            raise

    @staticmethod
    def _check_coding(headers: list[tuple[bytes, bytes]]) -> None:
        """Raise Refusal for a body that is not plain JSON."""
        for name, value in headers:
            if name == b"inference-header-content-length":
                raise Refusal(400, "the binary tensor extension is not served; send JSON", _CLOSE)
            if name == b"content-encoding" and value.lower() not in (b"", b"identity"):
                raise Refusal(
                    400, f"content-encoding {value[:40].decode('latin-1')} is not served; send plain JSON", _CLOSE
                )

    async def _answer(
        self, scope: Scope, receive: Receive, road: tuple[str, str, str], call: Call, length: int
    ) -> tuple[int, bytes, Headers]:
        """Read, parse, run and render an infer or predict request."""
        settings = self.settings
        if scope["method"] != "POST":
            raise _wrong_method("POST")
        self._check_coding(scope["headers"])
        if self.in_flight > settings.max_queue:
            raise Refusal(503, f"{settings.max_queue} requests are waiting already", (*_RETRY, *_CLOSE))
        self._check_name(road)
        document = read_document(await self._body(receive, length))
        door, _, call.version = road
        active = self.versions.active
        if active is not None and active.affinity_parameter:
            call.key = parameter_key(document, active.affinity_parameter)
        rows = settings.max_rows
        if door == "infer":
            call.parse = lambda schema: schema.infer(document, limit=rows)
        else:
            call.parse = lambda schema: schema.rows(document, limit=rows)
        answer = await self.dispatcher.answer(call)
        stamp = answer.model.stamp
        if answer.failed:
            stamp = (*stamp, (b"x-mlkit-fallback-from", answer.failed.encode()))
        return 200, self._render(door, answer, call.id), stamp

    def _render(self, door: str, answer: Answer, number: str) -> bytes:
        model, query = answer.model, answer.query
        names = {"model": self.settings.service, "version": model.variant.version, "id": query.id or number}
        if door == "infer":
            return render_infer(model.schema, query, answer.answers, **names)
        return render_rows(model.schema, answer.answers, **names)

    async def _body(self, receive: Receive, length: int) -> bytes:
        """The request's body, bounded in bytes (413) and over all requests together (503).

        Its time is bounded by the listener, which need not start a clock for a body that is there already.
        """
        limit = self.settings.max_body_bytes
        if length > limit:
            await _drain(receive)
            raise Refusal(413, f"the body has {length} bytes; at most {limit} are read", _CLOSE)
        message = await receive()
        if not message.get("more_body"):
            return self._checked(message, limit)
        return await self._chunks(receive, message, limit)

    @staticmethod
    def _checked(message: MutableMapping[str, Any], limit: int) -> bytes:
        if message["type"] == "http.disconnect":
            raise _gone()
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise Refusal(413, f"the body has {len(body)} bytes; at most {limit} are read", _CLOSE)
        return body

    async def _chunks(self, receive: Receive, message: MutableMapping[str, Any], limit: int) -> bytes:
        chunks: list[bytes] = []
        size = 0
        try:
            while True:
                if message["type"] == "http.disconnect":
                    raise _gone()
                chunk = message.get("body", b"")
                chunks.append(chunk)
                size += len(chunk)
                self._buffered += len(chunk)
                if size > limit:
                    if message.get("more_body"):
                        await _drain(receive)
                    raise Refusal(413, f"the body has more than {limit} bytes; at most {limit} are read", _CLOSE)
                if self._buffered > max(8 * limit, 64 << 20):
                    raise Refusal(503, "too many large requests are being read already", (*_RETRY, *_CLOSE))
                if not message.get("more_body"):
                    return b"".join(chunks)
                message = await receive()
        finally:
            self._buffered -= size

    def _check_name(self, road: tuple[str, str, str]) -> None:
        """Raise Refusal(404) for a path that names another model."""
        door, name, _ = road
        if door != "predict" and name != self.settings.service:
            raise Refusal(404, f"no model {name[:80]!r} here; this service has {self.settings.service}")

    def _model(self, road: tuple[str, str, str]) -> Model:
        """The model that a path names, the champion without a version. Raises Refusal: 404, or 503 with none yet."""
        self._check_name(road)
        active = self.dispatcher.active()
        if not road[2]:
            return active.champion
        return self.dispatcher.route(Call("", _unparsed, 0.0, version=road[2]), active)[0]

    def _road(self, path: str) -> tuple[str, str, str]:
        """(door, model, version) of a path. Raises Refusal(404)."""
        parts = tuple(path.rstrip("/").split("/")[1:])
        fixed = {
            ("predict",): "predict",
            ("metrics",): "metrics",
            ("v2",): "server",
            ("v2", "health", "live"): "live",
            ("v2", "health", "ready"): "ready",
        }
        road: tuple[str, str, str] | None = None
        if parts in fixed:
            road = (fixed[parts], "", "")
        elif parts[:2] == ("v2", "models") and len(parts) > 2:
            road = _model_road(parts[2:])
        if road is None:
            raise Refusal(404, f"no such path: {path[:200]}; see GET /v2", ())
        if road[1] in ("", self.settings.service) and not road[2] and len(self._roads) < 64:
            self._roads[path] = road
        return road

    def _look(self, method: str, road: tuple[str, str, str]) -> tuple[int, bytes, Headers]:
        """Answer what needs no body: health, metadata, metrics."""
        if method not in ("GET", "HEAD"):
            raise _wrong_method("GET")
        door = road[0]
        if door == "metrics":
            pages = (self.telemetry.page(self.in_flight - 1).decode(), *self.neighbours())
            return 200, merge(pages), ((b"content-type", CONTENT_TYPE),)
        if door == "live":
            return 200, orjson.dumps({"live": True}), _JSON
        if door == "ready":
            self.dispatcher.active()
            return 200, orjson.dumps({"ready": True}), _JSON
        if door == "server":
            server = {"name": "mlflowkit", "version": mlflowkit.__version__, "extensions": []}
            return 200, orjson.dumps({**server, "models": [self.settings.service]}), _JSON
        model = self._model(road)
        if door == "model-ready":
            ready: Json = {"name": self.settings.service, "ready": True}
            return 200, orjson.dumps(ready), model.stamp
        return 200, orjson.dumps(self._metadata(model)), model.stamp

    def _metadata(self, model: Model) -> Json:
        active = self.dispatcher.active()
        signature = model.bundle.signature
        return {
            "name": self.settings.service,
            "versions": list(active.by_version),
            "platform": "onnx_onnxruntime",
            "inputs": [_tensor(tensor) for tensor in signature.inputs],
            "outputs": [_tensor(tensor) for tensor in signature.outputs],
            "parameters": {
                "version": model.variant.version,
                "identity": model.variant.digest,
                "task": signature.task,
                "classes": list(signature.classes),
            },
        }

    def close(self) -> None:
        """Let the threads go; requests in them are answered first."""
        self.dispatcher.close()


def _unparsed(schema: Schema) -> Query:
    raise Refusal(500, "a call without a body was asked for its query")


def _model_road(parts: tuple[str, ...]) -> tuple[str, str, str] | None:
    name, rest, version = parts[0], parts[1:], ""
    if not name:
        return None
    if len(rest) >= 2 and rest[0] == "versions" and rest[1]:
        version, rest = rest[1], rest[2:]
    doors = {(): "model", ("ready",): "model-ready", ("infer",): "infer"}
    return (doors[rest], name, version) if rest in doors else None


def _tensor(tensor: Tensor) -> Json:
    described: dict[str, Json] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    if tensor.columns:
        described["parameters"] = {"columns": list(tensor.columns)}
    return described


def _wrong_method(allowed: str) -> Refusal:
    return Refusal(405, f"this path takes {allowed}", ((b"allow", allowed.encode()), *_CLOSE))


def _gone() -> Refusal:
    return Refusal(408, "the body did not arrive in time, or the client went away", _CLOSE)


def _error(message: str) -> bytes:
    return orjson.dumps({"error": message})


def _ours(error: Exception) -> str:
    return error.message if isinstance(error, MlkitError) else "the server failed; its log says why"


async def _drain(receive: Receive) -> None:
    """Read on for a moment, so that a client that is still sending gets to read the reply."""
    size = 0
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while size < _DRAIN_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
    except TimeoutError:
        return


async def _not_http(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1003})
        return
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})
