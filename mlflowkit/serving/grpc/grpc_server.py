"""The gRPC front end of the data plane: GRPCInferenceService of the Open Inference Protocol, and its server.

What HTTP carries in headers, gRPC carries in metadata: the API key (``authorization`` or ``x-api-key``),
``x-request-id``, the affinity header and the override header. A reply's trailing metadata names variant and version, as
HTTP's headers do. Errors map to gRPC status codes with the same message; a malformed message is INVALID_ARGUMENT.

Runs on the HTTP server's event loop, where the data plane lives, with grpc.aio on a SO_REUSEPORT port of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from mlflowkit.errors import ServiceError
from mlflowkit.serving.grpc.message_codec import (
    SERVICE,
    config_reply,
    infer_reply,
    messages,
    metadata_reply,
    parse_message,
    to_document,
    to_parameters,
)  # fmt: skip
from mlflowkit.serving.inference import metadata
from mlflowkit.serving.inference.data_plane import DataPlane, RequestHead, internal_error_message
from mlflowkit.serving.inference.router import parameter_key
from mlflowkit.serving.protocol.http_error import RequestError, bad_request
from mlflowkit.serving.protocol.responses import answer_notes, note_headers

T = TypeVar("T")
MAX_CONCURRENT_STREAMS = 1024
"""Concurrent calls over one connection; more wait at the client."""
IDLE_MILLISECONDS = 300_000
_START_SECONDS = 30.0
GRPC_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    413: "RESOURCE_EXHAUSTED",
    422: "OUT_OF_RANGE",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""The gRPC status code for each HTTP status of a RequestError."""
ENDPOINTS = {
    "ServerLive": "live",
    "ServerReady": "ready",
    "ModelReady": "model-ready",
    "ServerMetadata": "server",
    "ModelMetadata": "model",
    "ModelConfig": "config",
    "ModelInfer": "infer",
    "ModelStatistics": "stats",
    "RepositoryIndex": "index",
    "RepositoryModelLoad": "load",
    "RepositoryModelUnload": "load",
}
"""The data plane's endpoint for each unary method."""
_METADATA_KEYS = frozenset({"authorization", "x-api-key", "x-request-id"})
_log = logging.getLogger("mlflowkit.serving")

Metadata = Iterable[tuple[str, Any]]
Trailer = tuple[tuple[str, str], ...]


class InferenceServicer:
    """The RPC methods of one gateway's data plane."""

    def __init__(self, plane: DataPlane) -> None:
        self.plane = plane

    def rpc_handlers(self) -> Any:
        """The generic handler for a gRPC server. Messages are parsed here, so that parse errors get a message."""
        import grpc

        methods = {
            name: grpc.stream_unary_rpc_method_handler(self._method(f"{name}Request", endpoint))
            for name, endpoint in ENDPOINTS.items()
        }
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _method(self, message_name: str, endpoint: str) -> Callable[[Any, Any], Awaitable[bytes]]:
        """An RPC method that reads one message within the deadline and answers it, or aborts with a status.

        Registered as stream-unary, which is the same on the wire: the read then has a deadline, and a client that
        never sends its message does not hold the call open.
        """

        async def method(_: Any, context: Any) -> bytes:
            plane, begin = self.plane, time.perf_counter()
            status = 499  # the client disconnected, unless overwritten below
            plane.in_flight += 1
            try:
                head = plane.read_headers(self._to_headers(context.invocation_metadata()), begin)
                if plane.keys is not None:
                    plane.authorize(endpoint, head.token)
                if endpoint == "infer":
                    plane.check_load()
                request = parse_message(message_name, await self._receive(context))
                trailer: Trailer = ()
                if endpoint == "infer":
                    reply, trailer = await self._infer(request, head)
                else:
                    reply = self._answer(endpoint, request)
                context.set_trailing_metadata((("x-mlkit-request-id", head.call.id), *trailer))
                payload = bytes(reply.SerializeToString())
                status = 200
                return payload
            except RequestError as error:
                status = error.status
                await context.abort(_status_code(status), error.message)
            except Exception as error:  # noqa: BLE001 - outermost handler: logged with its traceback, sent as INTERNAL
                _log.exception("gRPC %s", message_name)
                status = 500
                await context.abort(_status_code(status), internal_error_message(error))
            finally:
                plane.in_flight -= 1
                plane.telemetry.record_request("grpc", status, time.perf_counter() - begin)
            raise AssertionError("abort raises")

        return method

    async def _receive(self, context: Any) -> bytes:
        import grpc

        try:
            async with asyncio.timeout(self.plane.settings.timeout_seconds):
                data = await context.read()
        except TimeoutError as error:
            raise RequestError(408, "the message did not arrive in time") from error
        if data is grpc.aio.EOF:
            raise bad_request("a message is expected")
        return bytes(data)

    def _to_headers(self, pairs: Metadata) -> list[tuple[bytes, bytes]]:
        """The metadata that the data plane reads, as HTTP headers."""
        active = self.plane.versions.active
        extra = () if active is None else (active.affinity_header.decode(), active.override_header.decode())
        return [
            (name.encode(), value if isinstance(value, bytes) else value.encode("latin-1", "replace"))
            for name, value in pairs
            if name in _METADATA_KEYS or name in extra
        ]

    async def _infer(self, request: Any, head: RequestHead) -> tuple[Any, Trailer]:
        plane, call = self.plane, head.call
        plane.check_model_name(request.model_name)
        document, raw = to_document(request)
        max_rows = plane.settings.max_rows
        call.version = request.model_version
        columns = plane.columns
        call.parse = lambda schema: schema.infer(document, limit=max_rows, raw=raw, columns=columns)
        active = plane.versions.active
        if active is not None and active.affinity_parameter:
            call.key = parameter_key({"parameters": to_parameters(request.parameters)}, active.affinity_parameter)
        answer = await plane.dispatcher.answer(call)
        model, query = answer.model, answer.query
        name, version = plane.settings.service, model.variant.version
        reply = infer_reply(model.schema, query, answer.outputs, model=name, version=version, id=query.id or call.id)
        trailer: Trailer = (("x-mlkit-variant", model.variant.name), ("x-mlkit-version", version))
        if answer.fallback_from:
            trailer = (*trailer, ("x-mlkit-fallback-from", answer.fallback_from))
        if notes := answer_notes(query):
            trailer = (*trailer, *((name.decode(), text.decode()) for name, text in note_headers(notes)))
        return reply, trailer

    def _answer(self, endpoint: str, request: Any) -> Any:
        """The reply of a call that runs no model: health, metadata, statistics, and load (refused)."""
        plane, replies = self.plane, messages()
        service, active = plane.settings.service, plane.versions.active
        if endpoint == "load":
            plane.check_model_name(request.model_name)
            raise metadata.load_not_allowed()
        if endpoint == "live":
            return replies.ServerLiveResponse(live=True)
        if endpoint == "ready":
            return replies.ServerReadyResponse(ready=active is not None)
        if endpoint == "server":
            server = metadata.server(service)
            return replies.ServerMetadataResponse(**{key: server[key] for key in ("name", "version", "extensions")})
        if endpoint == "stats":
            return replies.ModelStatisticsResponse(**plane.statistics(request.name, request.version))
        if endpoint == "index":
            return replies.RepositoryIndexResponse(models=metadata.index(service, active))
        model = plane.find_model(request.name, request.version)
        if endpoint == "config":
            return config_reply(metadata.config(service, model, plane.settings.max_rows))
        if endpoint == "model-ready":
            return replies.ModelReadyResponse(ready=True)
        versions = list(plane.dispatcher.active().by_version)
        return metadata_reply(service, versions, metadata.PLATFORM, model.bundle.signature)

    async def _stream(self, _: Any, context: Any) -> None:
        await context.abort(_status_code(501), "streaming inference is not supported; call ModelInfer")


def _status_code(status: int) -> Any:
    import grpc

    return grpc.StatusCode[GRPC_STATUS.get(status, "UNKNOWN")]


class GrpcServer:
    """Serves a data plane over gRPC on (host, port) from construction until `stop`.

    ``loop`` runs in another thread than the caller's. gRPC itself refuses a message larger than ``max_body_bytes`` (of
    the settings at construction) with RESOURCE_EXHAUSTED, and a compressed message with UNIMPLEMENTED. Raises
    ServiceError when the port cannot be bound.
    """

    def __init__(self, plane: DataPlane, host: str, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.host = host
        self._loop = loop
        self._server: Any = None
        self.port: int = self._on_loop(self._start(plane, f"[{host}]" if ":" in host else host, port), _START_SECONDS)

    def stop(self, seconds: float = 10.0) -> None:
        """Stop accepting, let calls in flight finish for up to ``seconds``, close."""
        if not self._loop.is_closed():
            self._on_loop(self._server.stop(seconds), seconds + 5.0)

    def _on_loop(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    async def _start(self, plane: DataPlane, host: str, port: int) -> int:
        import grpc

        self._server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", plane.settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.compression_enabled_algorithms_bitset", 1),  # no compression: it would hide a message's size
                ("grpc.max_concurrent_streams", MAX_CONCURRENT_STREAMS),
                ("grpc.max_connection_idle_ms", IDLE_MILLISECONDS),
            )
        )
        self._server.add_generic_rpc_handlers((InferenceServicer(plane).rpc_handlers(),))
        try:
            bound_port: int = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            hint = "choose another: serve.grpc_port=0 takes a free one"
            raise ServiceError(f"gRPC cannot listen on {host}:{port}: {error}", hint=hint) from error
        await self._server.start()
        return bound_port
