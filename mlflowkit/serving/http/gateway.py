"""The gateway: an ASGI application that answers for one service.

::

    GET  /v2                                        server metadata
    GET  /v2/health/live  /v2/health/ready
    GET  /v2/models/{m}[/versions/{v}]              model metadata, from the bundle's signature
    GET  /v2/models/{m}[/versions/{v}]/ready
    POST /v2/models/{m}[/versions/{v}]/infer        Open Inference Protocol v2, JSON or binary tensors
    GET  /v2/models[/{m}[/versions/{v}]]/stats      statistics
    POST /v2/repository/index                       what is loaded
    POST /predict                                   {"rows": [{column: value}]}
    POST /v2/feedback                               what turned out to be true, by request id
    GET  /openapi.json                              this list, exactly
    GET  /metrics                                   Prometheus

Errors are ``{"error": "..."}``. 400 the body is wrong · 401 no API key that is known ·
403 a key without the scope · 404 no such path, model or version · 405 · 408 the body came
too slowly (see `connection`) · 413 too many bytes or rows · 422 no finite answer for these values · 503 (with
Retry-After) no model yet, or too many requests waiting · 504 the deadline passed. Input, however wrong, is never
answered with 500.

The application is written against ASGI itself: a framework's routing and request objects cost more than the
model does. A small graph is run on the event loop, a large request in a thread (see `variants.INLINE_SECONDS`).
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import orjson

from mlflowkit.errors import MlkitError
from mlflowkit.service_state.records import Settings
from mlflowkit.serving.auth import Keyring, token_of
from mlflowkit.serving.auth import Scope as KeyScope
from mlflowkit.serving.feedback.intake import Intake
from mlflowkit.serving.feedback.intake import parse as parse_feedback
from mlflowkit.serving.http.openapi import openapi
from mlflowkit.serving.http.request_body import CLOSE, RETRY, Bodies, Receive
from mlflowkit.serving.http.routes import Road, road_of
from mlflowkit.serving.inference import metadata
from mlflowkit.serving.inference.answer_records import Mirror, Tap
from mlflowkit.serving.inference.dispatcher import Answer, Call, Dispatcher
from mlflowkit.serving.inference.gateway_metrics import CONTENT_TYPE, Telemetry, merge
from mlflowkit.serving.inference.router import affinity_key, parameter_key
from mlflowkit.serving.inference.variants import Model, Versions
from mlflowkit.serving.protocol.binary_tensors import HEADER, contents, header_length, split
from mlflowkit.serving.protocol.http_error import kind
from mlflowkit.serving.protocol.open_inference import (
    Query,
    Refusal,
    Schema,
    read_document,
    render_binary,
    render_infer,
    render_rows,
)
from mlflowkit.values import Json

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Any]
Headers = tuple[tuple[bytes, bytes], ...]

_JSON: Headers = ((b"content-type", b"application/json"),)
_INDEX_BYTES = 4096
OPEN_DOORS = frozenset({"live", "ready", "model-ready"})
"""Doors that ask for no API key: what is asked by whatever keeps the service running."""
SCOPE_OF: Mapping[str, KeyScope] = {"infer": "infer", "predict": "infer", "feedback": "feedback"}
"""The scope that a door asks for; another door takes any key."""
_log = logging.getLogger("mlflowkit.serving")


@dataclass(slots=True)
class Head:
    """What a request's headers say. ``json`` is the length of the JSON part before binary tensors, -1 without any."""

    call: Call
    length: int = -1
    json: int = -1
    token: bytes = b""
    coding: bytes = b""


class Gateway:
    """Answers requests with what ``versions`` points at.

    ``settings`` may be replaced at any time and holds from the next request on. ``neighbours`` gives the metrics pages
    of the other replicas on the same port. ``keys`` may be replaced at any time too; None asks for no API key.
    ``feedback`` keeps what `POST /v2/feedback` says; None answers that with 404.
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
        self.feedback: Intake | None = None
        self.neighbours = neighbours
        self.versions = versions
        self.telemetry = telemetry
        self.dispatcher = Dispatcher(settings, versions, telemetry, tap, mirror)
        self.in_flight = 0
        self._bodies = Bodies()
        self._prefix = f"{os.getpid():x}-{time.time_ns() & 0xFFFFFFFF:x}-"
        self._count = itertools.count(1)
        self._roads: dict[str, Road] = {}

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
            head = self.head(scope["headers"], begin)
            number = head.call.id
            road = self._roads.get(scope["path"]) or self._road(scope["path"])
            door = road.door
            if self.keys is not None:
                self.authorize(door, head.token)
            road.check_method(scope["method"])
            if door == "infer" or door == "predict":
                status, body, headers = await self._answer(receive, road, head)
            elif door == "feedback":
                status, body, headers = await self._take_feedback(receive, head)
            elif door == "index":
                status, body, headers = await self._index(receive, head.length)
            else:
                status, body, headers = self._look(road)
        except Refusal as refusal:
            status, body = refusal.status, _error(refusal.message)
            headers = (*_JSON, *refusal.headers)
        except Exception as error:  # noqa: BLE001 - the last wall: logged with its traceback, answered as 500
            _log.exception("request %s", number)
            status, body, headers = 500, _error(our_fault(error)), _JSON
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

    def head(self, headers: Iterable[tuple[bytes, bytes]], begin: float) -> Head:
        """What the headers say: a call with its id, affinity key and override, and what its body is.

        Without the affinity's header or cookie, a call is dealt by its id.
        """
        head = Head(self.call("", begin))
        call = head.call
        active = self.versions.active
        affinity = b"" if active is None else active.affinity_header
        testers = b"" if active is None else active.override_header
        for name, value in headers:
            if name == b"content-length":
                head.length = int(value)
            elif name == HEADER:
                head.json = header_length(value)
            elif name == b"content-encoding":
                head.coding = value
            elif name == b"x-request-id":
                call.id = _request_id(value) or call.id
            elif name in (b"authorization", b"x-api-key"):
                head.token = token_of(name, value) or head.token
            if name == affinity and active is not None:
                call.key = affinity_key(active.table.affinity, value)
            elif name == testers:
                call.override = value.decode("latin-1")
        return head

    def call(self, number: str, begin: float) -> Call:
        """A call with the client's id for it, when that is printable and short, or with one of our own."""
        return Call(number or f"{self._prefix}{next(self._count):x}", _unparsed, begin)

    def authorize(self, door: str, token: bytes) -> None:
        """Raise Refusal (401, 403) unless the token may use a door. Health is everybody's; see `auth.Keyring.check`."""
        if self.keys is None or door in OPEN_DOORS:
            return
        try:
            self.keys.check(token, SCOPE_OF.get(door))
        except Refusal as refusal:
            self.telemetry.refused(refusal.status)
            raise

    def check_load(self) -> None:
        """Raise Refusal(503) when more requests wait than are let in. Before a body is read, for its memory's sake.

        Requests whose bodies are on their way do not count: slow senders must not keep others out.
        """
        if self.dispatcher.waiting >= self.settings.max_queue:
            raise Refusal(503, f"{self.settings.max_queue} requests are waiting already", (*RETRY, *CLOSE))

    def check_name(self, name: str) -> None:
        """Raise Refusal(404) for another model than this service's."""
        if name != self.settings.service:
            raise Refusal(404, f"no model {name[:80]!r} here; this service has {self.settings.service}")

    def model(self, name: str, version: str) -> Model:
        """The model of a name and a version, the champion for "". Raises Refusal: 404, or 503 with none yet."""
        self.check_name(name)
        active = self.dispatcher.active()
        if not version:
            return active.champion
        return self.dispatcher.route(Call("", _unparsed, 0.0, version=version), active)[0]

    async def _answer(self, receive: Receive, road: Road, head: Head) -> tuple[int, bytes, Headers]:
        """Read, parse, run and render an infer or predict request."""
        settings, call = self.settings, head.call
        if head.coding and head.coding.lower() != b"identity":
            coding = head.coding[:40].decode("latin-1")
            raise Refusal(400, f"content-encoding {coding} is not served; send the body as it is", CLOSE)
        self.check_load()
        if road.door == "infer":
            self.check_name(road.model)
        body = await self._bodies.read(receive, head.length, settings.max_body_bytes, max(head.json, 0))
        call.version = road.version
        rows = settings.max_rows
        if head.json >= 0 and road.door == "infer":
            front, tail = split(body, head.json)
            document = read_document(front)
            raw = contents(document.get("inputs"), tail)
            call.parse = lambda schema: schema.infer(document, limit=rows, raw=raw)
        else:
            document = read_document(body)
            if road.door == "infer":
                call.parse = lambda schema: schema.infer(document, limit=rows)
            else:
                call.parse = lambda schema: schema.rows(document, limit=rows)
        active = self.versions.active
        if active is not None and active.affinity_parameter:
            call.key = parameter_key(document, active.affinity_parameter)
        return self._render(road.door, await self.dispatcher.answer(call), call.id)

    async def _take_feedback(self, receive: Receive, head: Head) -> tuple[int, bytes, Headers]:
        """Keep what turned out to be true of earlier requests; 202 once the disk has it."""
        if self.feedback is None:
            raise Refusal(404, "no feedback is taken here")
        self.check_load()
        body = await self._bodies.read(receive, head.length, self.settings.max_body_bytes)
        items = parse_feedback(read_document(body), limit=self.settings.max_rows)
        await self.feedback.accept(items)
        return 202, orjson.dumps({"accepted": len(items)}), _JSON

    def _render(self, door: str, answer: Answer, number: str) -> tuple[int, bytes, Headers]:
        model, query = answer.model, answer.query
        names = {"model": self.settings.service, "version": model.variant.version, "id": query.id or number}
        stamp: Headers = model.stamp
        if answer.failed:
            stamp = (*stamp, (b"x-mlkit-fallback-from", answer.failed.encode()))
        if door == "predict":
            return 200, render_rows(model.schema, answer.answers, **names), stamp
        if not query.binary:
            return 200, render_infer(model.schema, query, answer.answers, **names), stamp
        body, headers = render_binary(model.schema, query, answer.answers, **names)
        return 200, body, (*headers, *(pair for pair in stamp if pair[0] != b"content-type"))

    def _road(self, path: str) -> Road:
        """The road of a path, kept for paths that every client asks. Raises Refusal(404)."""
        road = road_of(path)
        if road.model in ("", self.settings.service) and not road.version and len(self._roads) < 64:
            self._roads[path] = road
        return road

    async def _index(self, receive: Receive, length: int) -> tuple[int, bytes, Headers]:
        """The repository's index; everything in it is ready, so that the request's ``ready`` changes nothing."""
        body = await self._bodies.read(receive, length, _INDEX_BYTES)
        if body and type(ready := read_document(body).get("ready", False)) is not bool:
            raise Refusal(400, f"ready: {kind(ready)}; true or false is expected")
        return 200, orjson.dumps(metadata.index(self.settings.service, self.versions.active)), _JSON

    def _look(self, road: Road) -> tuple[int, bytes, Headers]:
        """Answer what needs no body: health, metadata, statistics, metrics."""
        door, service = road.door, self.settings.service
        if door == "metrics":
            pages = (self.telemetry.page(self.in_flight - 1).decode(), *self.neighbours())
            return 200, merge(pages), ((b"content-type", CONTENT_TYPE),)
        if door == "load":
            self.check_name(road.model)
            raise metadata.refuse_change()
        if door == "live":
            return _told({"live": True})
        if door == "ready":
            self.dispatcher.active()
            return _told({"ready": True})
        if door == "server":
            return _told(metadata.server(service))
        if door == "stats":
            return _told(self.statistics(road.model, road.version))
        if door == "openapi":
            return _told(openapi(service, self.versions.active, self.settings))
        model = self.model(road.model, road.version)
        if door == "model-ready":
            return _told({"name": service, "ready": True}, model.stamp)
        return _told(metadata.model(self.dispatcher.active(), model), model.stamp)

    def statistics(self, name: str, version: str) -> Json:
        """Statistics of one version, or of all that are loaded. Raises Refusal(404)."""
        active = self.versions.active
        if name:
            self.check_name(name)
        versions = (
            [self.model(name, version).variant.version] if version else [] if active is None else [*active.by_version]
        )
        return metadata.statistics(self.settings.service, self.telemetry, versions)

    def close(self) -> None:
        """Let the threads go; requests in them are answered first."""
        self.dispatcher.close()


def _told(document: Json, headers: Headers = _JSON) -> tuple[int, bytes, Headers]:
    return 200, orjson.dumps(document), headers


def _unparsed(schema: Schema) -> Query:
    raise Refusal(500, "a call without a body was asked for its query")


def _request_id(value: bytes) -> str:
    """The client's own id for its request; "" unless it is printable and short."""
    if not 0 < len(value) <= 128:
        return ""
    text = value.decode("latin-1")
    return text if text.isascii() and text.isprintable() else ""


def _error(message: str) -> bytes:
    return orjson.dumps({"error": message})


def our_fault(error: Exception) -> str:
    """What a client is told of a failure that is not its own."""
    return error.message if isinstance(error, MlkitError) else "the server failed; its log says why"


async def _not_http(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1003})
        return
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})
