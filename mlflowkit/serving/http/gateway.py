"""The HTTP front end of the data plane: an ASGI application for one service.

::

    GET  /v2                                        server metadata
    GET  /v2/health/live  /v2/health/ready
    GET  /v2/models/{m}[/versions/{v}]              model metadata, from the bundle's signature
    GET  /v2/models/{m}[/versions/{v}]/ready
    POST /v2/models/{m}[/versions/{v}]/infer        Open Inference Protocol v2, JSON or binary tensors
    GET  /v2/models[/{m}[/versions/{v}]]/stats      statistics
    POST /v2/repository/index                       loaded versions
    POST /predict                                   {"rows": [{column: value}]}
    POST /invocations                               rows, tensors or CSV, as SageMaker sends them
    GET  /ping  /-/healthz                          readiness, for SageMaker and for KubeRay
    POST /v2/feedback                               ground truth, by request id
    GET  /v2/delivery                               what is served and tried, for the delivery.yaml that is followed
    GET  /openapi.json  /docs                       the OpenAPI document of these endpoints, and a page of it
    GET  /metrics                                   Prometheus

Errors are ``{"error": "..."}``. 400 malformed body · 401 no valid API key · 403 a key without the scope, or a page of
another origin · 404 no such path, model or version · 405 · 408 body too slow (see `connection`) · 413 too many bytes or
rows · 415 a content type that is not read · 421 a foreign Host · 422 no finite answer for these values · 503 (with
Retry-After) no model yet, or too many requests waiting · 504 deadline passed. Malformed input is never answered with
500.

`Gateway.respond` is what our own listener calls; the application is also one of ASGI, for Ray Serve's proxy. Neither
takes a framework: its routing and request objects cost more than the model does. A small graph
runs on the event loop, a large request in a thread (see `variants.INLINE_SECONDS`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

import orjson

from mlflowkit.errors import ServiceError
from mlflowkit.service_state.records import GatewaySettings
from mlflowkit.serving.auth import is_fronted
from mlflowkit.serving.feedback.intake import Intake, feedback_source
from mlflowkit.serving.feedback.intake import parse as parse_feedback
from mlflowkit.serving.http.browser_guard import BrowserGuard
from mlflowkit.serving.http.compression import (
    MIN_REPLY_BYTES,
    accepts_gzip,
    check_encoding,
    decode_body,
    encode_reply,
)
from mlflowkit.serving.http.docs_page import HEADERS as DOCS_HEADERS
from mlflowkit.serving.http.docs_page import docs_page
from mlflowkit.serving.http.openapi import openapi
from mlflowkit.serving.http.request_body import HttpRequest, Receive, RequestBodyReader
from mlflowkit.serving.http.routes import Route, match_raw
from mlflowkit.serving.inference import metadata
from mlflowkit.serving.inference.data_plane import DataPlane, RequestHead, internal_error_message
from mlflowkit.serving.inference.dispatcher import InferenceAnswer
from mlflowkit.serving.inference.gateway_metrics import CONTENT_TYPE, merge_pages
from mlflowkit.serving.inference.router import parameter_key
from mlflowkit.serving.protocol.binary_tensors import Buffer, binary_inputs, read_document, split_body
from mlflowkit.serving.protocol.csv_rows import content_kind, csv_rows
from mlflowkit.serving.protocol.http_error import RequestError, bad_request, json_type
from mlflowkit.serving.protocol.responses import answer_notes, note_headers, render_infer, render_rows
from mlflowkit.values import Json

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Any]
Headers = tuple[tuple[bytes, bytes], ...]
Reply = tuple[int, bytes, Headers]

_JSON: Headers = ((b"content-type", b"application/json"),)
_PLAIN: Headers = ((b"content-type", b"text/plain"),)
_GZIP: Headers = ((b"content-encoding", b"gzip"), (b"vary", b"accept-encoding"))
_INDEX_BYTES = 4096
_log = logging.getLogger("mlflowkit.serving")


class Gateway:
    """Answers HTTP requests through a data plane.

    ``other_pages`` returns the metrics pages of the other replicas on the same port. ``feedback`` stores the items of
    `POST /v2/feedback`; None answers that endpoint with 404. ``delivery`` reads the record of what follows a
    delivery.yaml; None, and no record, answer `GET /v2/delivery` with 404.
    """

    def __init__(
        self,
        plane: DataPlane,
        other_pages: Callable[[], Iterable[str]] = tuple,
        feedback: Intake | None = None,
        delivery: Callable[[], Json] = lambda: None,
    ) -> None:
        self.plane = plane
        self._delivery = delivery
        self.other_pages = other_pages
        self.feedback = feedback
        self._body_reader = RequestBodyReader()
        self._guard: tuple[GatewaySettings | None, BrowserGuard] = (None, BrowserGuard(""))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3). Lifespan events are acknowledged; websockets are closed."""
        if scope["type"] != "http":
            await _handle_non_http(scope, receive, send)
            return
        status, body, headers, request_id = await self.respond(_AsgiRequest(scope, receive))
        own = ((b"x-mlkit-request-id", request_id), (b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": [*headers, *own]})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def respond(self, request: HttpRequest) -> tuple[int, Buffer, Headers, bytes]:
        """Status, body and headers of the reply to a request, and the request's id. Never raises for a request."""
        begin = time.perf_counter()
        plane = self.plane
        plane.in_flight += 1
        endpoint, request_id = "other", ""
        try:
            head = plane.read_headers(request.headers, begin)
            request_id = head.call.id
            route = match_raw(request.raw_path)
            endpoint = route.endpoint
            if plane.keys is not None:
                plane.authorize(endpoint, head.token)
            elif not is_fronted():
                self._browser_guard().check(request.method, request.headers)
            route.check_method(request.method)
            if endpoint == "infer" or endpoint == "predict":
                status, body, headers = await self._infer(request, route, head)
            elif endpoint == "invocations":
                status, body, headers = await self._invoke(request, head)
            elif endpoint == "feedback":
                status, body, headers = await self._take_feedback(request, head)
            elif endpoint == "index":
                status, body, headers = await self._index(request, head.body_length)
            else:
                status, body, headers = self._answer_get(route)
            if head.accept_encoding and len(body) >= MIN_REPLY_BYTES and accepts_gzip(head.accept_encoding):
                body, headers = await encode_reply(body), (*headers, *_GZIP)
        except RequestError as error:
            status, body = error.status, _render_error(error.message)
            headers = (*_JSON, *error.headers)
        except Exception as error:  # noqa: BLE001 - outermost handler: logged with its traceback, answered as 500
            _log.exception("request %s", request_id)
            status, body, headers = 500, _render_error(internal_error_message(error)), _JSON
        finally:
            plane.in_flight -= 1
        plane.telemetry.record_request(endpoint, status, time.perf_counter() - begin)
        return status, body, headers, request_id.encode("latin-1")

    def _browser_guard(self) -> BrowserGuard:
        """The checks on requests without a key, for the settings of now."""
        settings = self.plane.settings
        if self._guard[0] is not settings:
            self._guard = (settings, BrowserGuard(settings.host, settings.allowed_hosts))
        return self._guard[1]

    async def _infer(self, request: HttpRequest, route: Route, head: RequestHead) -> Reply:
        """Read, parse, run and render an infer or predict request."""
        plane, call = self.plane, head.call
        settings = plane.settings
        plane.check_load()
        if route.endpoint == "infer":
            plane.check_model_name(route.model)
        max_rows, columns = settings.max_rows, plane.columns
        body = await self._read_body(request, head, max(head.json_length, 0))
        call.version = route.version
        if head.json_length >= 0 and route.endpoint == "infer":
            front, tail = split_body(body, head.json_length)
            document = read_document(front)
            raw = binary_inputs(document.get("inputs"), tail)
            call.parse = lambda schema: schema.infer(document, limit=max_rows, raw=raw, columns=columns)
        else:
            document = read_document(body)
            if route.endpoint == "infer":
                call.parse = lambda schema: schema.infer(document, limit=max_rows, columns=columns)
            else:
                call.parse = lambda schema: schema.rows(document, limit=max_rows, columns=columns)
        active = plane.versions.active
        if active is not None and active.affinity_parameter:
            call.key = parameter_key(document, active.affinity_parameter)
        return self._render(route.endpoint, await plane.dispatcher.answer(call), call.id)

    async def _invoke(self, request: HttpRequest, head: RequestHead) -> Reply:
        """Answer rows, tensors or CSV, by content type and content. Raises RequestError(415) for any other."""
        plane, call = self.plane, head.call
        plane.check_load()
        header = content_kind(request.headers)
        max_rows, columns = plane.settings.max_rows, plane.columns
        body = await self._read_body(request, head)
        if header is not None:
            call.parse = lambda schema: schema.rows(
                {"rows": csv_rows(body, schema.signature, header=header, limit=max_rows)},
                limit=max_rows,
                columns=columns,
            )
            return self._render("predict", await plane.dispatcher.answer(call), call.id)
        document = read_document(body)
        if tensors := "inputs" in document:
            call.parse = lambda schema: schema.infer(document, limit=max_rows, columns=columns)
        else:
            call.parse = lambda schema: schema.rows(document, limit=max_rows, columns=columns)
        active = plane.versions.active
        if active is not None and active.affinity_parameter:
            call.key = parameter_key(document, active.affinity_parameter)
        return self._render("infer" if tensors else "predict", await plane.dispatcher.answer(call), call.id)

    async def _read_body(self, request: HttpRequest, head: RequestHead, header: int = 0) -> Buffer:
        """The whole body, decompressed; see `RequestBodyReader.read`."""
        limit, encoding = self.plane.settings.max_body_bytes, head.content_encoding
        if encoding:
            check_encoding(encoding)
        body = await self._body_reader.read(request, head.body_length, limit, header)
        return await decode_body(body, encoding, limit) if encoding else body

    async def _take_feedback(self, request: HttpRequest, head: RequestHead) -> Reply:
        """Store ground truth of earlier requests; 202 once it is on disk."""
        if self.feedback is None:
            raise RequestError(404, "no feedback is taken here")
        self.plane.check_load()
        settings = self.plane.settings
        body = await self._read_body(request, head)
        source = feedback_source(self.plane.keys, head.token)
        items = parse_feedback(read_document(body), limit=settings.max_rows, source=source)
        await self.feedback.accept(items)
        return 202, orjson.dumps({"accepted": len(items)}), _JSON

    def _render(self, endpoint: str, answer: InferenceAnswer, request_id: str) -> Reply:
        model, query = answer.model, answer.query
        service, version = self.plane.settings.service, model.variant.version
        names = {"model": service, "version": version, "id": query.id or request_id}
        headers: Headers = model.response_headers
        if answer.fallback_from:
            headers = (*headers, (b"x-mlkit-fallback-from", answer.fallback_from.encode()))
        if notes := answer_notes(query):
            headers = (*headers, *note_headers(notes))
        if endpoint == "predict":
            return 200, render_rows(model.schema, query, answer.outputs, **names), headers
        body, binary_headers = render_infer(model.schema, query, answer.outputs, **names)
        if binary_headers:
            headers = (*binary_headers, *(pair for pair in headers if pair[0] != b"content-type"))
        return 200, body, headers

    async def _index(self, request: HttpRequest, length: int) -> Reply:
        """The repository's index; every loaded version is ready, so the request's ``ready`` changes nothing."""
        body = await self._body_reader.read(request, length, _INDEX_BYTES)
        if body and type(ready := read_document(body).get("ready", False)) is not bool:
            raise bad_request(f"ready: {json_type(ready)}; true or false is expected")
        return _render_json(metadata.index(self.plane.settings.service, self.plane.versions.active))

    def _answer_get(self, route: Route) -> Reply:
        """Answer the endpoints that read no body: health, metadata, statistics, metrics, and load (refused)."""
        plane, endpoint = self.plane, route.endpoint
        service = plane.settings.service
        if endpoint == "metrics":
            pages = (plane.telemetry.render(plane.in_flight - 1).decode(), *self.other_pages())
            return 200, merge_pages(pages), ((b"content-type", CONTENT_TYPE),)
        if endpoint == "delivery":
            return self._delivery_record()
        if endpoint == "load":
            plane.check_model_name(route.model)
            raise metadata.load_not_allowed()
        if endpoint == "live":
            return _render_json({"live": True})
        if endpoint in ("ready", "healthz", "model-ready"):
            plane.check_draining()
        if endpoint == "healthz":
            plane.dispatcher.active()
            return 200, b"success", _PLAIN
        if endpoint == "ready":
            plane.dispatcher.active()
            return _render_json({"ready": True})
        if endpoint == "server":
            return _render_json(metadata.server(service))
        if endpoint == "stats":
            return _render_json(plane.statistics(route.model, route.version))
        if endpoint in ("openapi", "docs"):
            document = openapi(service, plane.versions.active, plane.settings)
            page = endpoint == "docs"
            return (200, docs_page(document, plane.settings.endpoint), DOCS_HEADERS) if page else _render_json(document)
        model = plane.find_model(route.model, route.version)
        if endpoint == "config":
            return _render_json(metadata.config(service, model, plane.settings.max_rows), model.response_headers)
        if endpoint == "model-ready":
            return _render_json({"name": service, "ready": True}, model.response_headers)
        return _render_json(metadata.model(plane.dispatcher.active(), model), model.response_headers)

    def _delivery_record(self) -> Reply:
        try:
            record = self._delivery()
        except (ServiceError, KeyError, TypeError) as error:
            _log.warning("the record of the delivery.yaml cannot be read: %r", error)
            raise RequestError(503, "what follows the delivery.yaml left a record that cannot be read") from error
        if record is None:
            raise RequestError(404, "this service follows no delivery.yaml: mlkit serve --delivery FILE does")
        return _render_json(record)


def _render_json(document: Json, headers: Headers = _JSON) -> Reply:
    return 200, orjson.dumps(document), headers


def _render_error(message: str) -> bytes:
    return orjson.dumps({"error": message})


async def _handle_non_http(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1003})
        return
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


class _AsgiRequest:
    """A request of an ASGI server."""

    __slots__ = ("headers", "method", "raw_path", "receive")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.receive = receive

    def whole_body(self) -> None:
        """Nothing: an ASGI server does not say whether the body is there."""
