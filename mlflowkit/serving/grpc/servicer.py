"""The gateway's gRPC door: GRPCInferenceService of the Open Inference Protocol, answered by the same dispatcher.

What HTTP has in headers, gRPC has in metadata: the API key (``authorization`` or ``x-api-key``), ``x-request-id``, the
affinity's header and the tester's. A reply's trailing metadata names variant and version as HTTP's headers do. A
refusal is told by its status code, with the same sentence; a message that is none is INVALID_ARGUMENT.

It runs on the HTTP listener's event loop, where the dispatcher lives.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from mlflowkit.serving.grpc.message_codec import document_of, infer_reply, metadata_reply, parameters_of, read
from mlflowkit.serving.grpc.messages import SERVICE, messages
from mlflowkit.serving.http.gateway import Gateway, Head, our_fault
from mlflowkit.serving.inference import metadata as describe
from mlflowkit.serving.inference.router import parameter_key
from mlflowkit.serving.protocol.http_error import Refusal

CODES = {
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
"""gRPC's status for each of HTTP's that a refusal has."""
_NAMES = frozenset({"authorization", "x-api-key", "x-request-id"})
_log = logging.getLogger("mlflowkit.serving")

Metadata = Iterable[tuple[str, Any]]
Answers = Callable[[Any, Head], Awaitable[tuple[Any, tuple[tuple[str, str], ...]]]]
_NOTHING: tuple[tuple[str, str], ...] = ()


class GrpcService:
    """The methods of the service, for one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def handlers(self) -> Any:
        """What a server of gRPC takes. Messages are parsed here, so that what is none can be told in words."""
        import grpc

        unary = {
            "ServerLive": ("live", self._live),
            "ServerReady": ("ready", self._ready),
            "ModelReady": ("model-ready", self._model_ready),
            "ServerMetadata": ("server", self._server),
            "ModelMetadata": ("model", self._model),
            "ModelInfer": ("infer", self._infer),
            "ModelStatistics": ("stats", self._statistics),
            "RepositoryIndex": ("index", self._index),
            "RepositoryModelLoad": ("load", self._change),
            "RepositoryModelUnload": ("load", self._change),
        }
        methods = {
            name: grpc.stream_unary_rpc_method_handler(self._method(f"{name}Request", door, answer))
            for name, (door, answer) in unary.items()
        }
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _method(self, kind: str, door: str, answer: Answers) -> Callable[[Any, Any], Awaitable[bytes]]:
        """A method: it reads one message, in time, and answers it or tells why not.

        To gRPC it takes a stream of messages, which is the same on the wire: one message may be waited for with a
        deadline then, and a client that never sends its own does not stay for ever.
        """

        async def method(_: Any, context: Any) -> bytes:
            gateway, begin = self.gateway, time.perf_counter()
            status = 499  # unless it is answered: the client went away
            gateway.in_flight += 1
            try:
                head = gateway.head(self._headers(context.invocation_metadata()), begin)
                if gateway.keys is not None:
                    gateway.authorize(door, head.token)
                if door == "infer":
                    gateway.check_load()
                data = await self._receive(context)
                reply, trailer = await answer(read(kind, data), head)
                context.set_trailing_metadata((("x-mlkit-request-id", head.call.id), *trailer))
                told = bytes(reply.SerializeToString())
                status = 200
                return told
            except Refusal as refusal:
                status = refusal.status
                await context.abort(_code(status), refusal.message)
            except Exception as error:  # noqa: BLE001 - the last wall: logged with its traceback, told as INTERNAL
                _log.exception("gRPC %s", kind)
                status = 500
                await context.abort(_code(status), our_fault(error))
            finally:
                gateway.in_flight -= 1
                gateway.telemetry.answered("grpc", status, time.perf_counter() - begin)
            raise AssertionError("abort raises")

        return method

    async def _receive(self, context: Any) -> bytes:
        import grpc

        try:
            async with asyncio.timeout(self.gateway.settings.timeout_seconds):
                data = await context.read()
        except TimeoutError as error:
            raise Refusal(408, "the message did not arrive in time") from error
        if data is grpc.aio.EOF:
            raise Refusal(400, "a message is expected")
        return bytes(data)

    def _headers(self, metadata: Metadata) -> list[tuple[bytes, bytes]]:
        """The metadata that HTTP has in headers."""
        active = self.gateway.versions.active
        more = () if active is None else (active.affinity_header.decode(), active.override_header.decode())
        return [
            (name.encode(), value if isinstance(value, bytes) else value.encode("latin-1", "replace"))
            for name, value in metadata
            if name in _NAMES or name in more
        ]

    async def _infer(self, request: Any, head: Head) -> tuple[Any, tuple[tuple[str, str], ...]]:
        gateway, call = self.gateway, head.call
        gateway.check_name(request.model_name)
        document, raw = document_of(request)
        rows = gateway.settings.max_rows
        call.version = request.model_version
        call.parse = lambda schema: schema.infer(document, limit=rows, raw=raw)
        active = gateway.versions.active
        if active is not None and active.affinity_parameter:
            given = {"parameters": parameters_of(request.parameters)}
            call.key = parameter_key(given, active.affinity_parameter)
        answer = await gateway.dispatcher.answer(call)
        model, query = answer.model, answer.query
        name, version = gateway.settings.service, model.variant.version
        reply = infer_reply(model.schema, query, answer.answers, model=name, version=version, id=query.id or call.id)
        failed = (("x-mlkit-fallback-from", answer.failed),) if answer.failed else ()
        return reply, (("x-mlkit-variant", model.variant.name), ("x-mlkit-version", version), *failed)

    async def _live(self, request: Any, head: Head) -> tuple[Any, tuple[tuple[str, str], ...]]:
        return messages().ServerLiveResponse(live=True), _NOTHING

    async def _ready(self, request: Any, head: Head) -> tuple[Any, tuple[tuple[str, str], ...]]:
        return messages().ServerReadyResponse(ready=self.gateway.versions.active is not None), _NOTHING

    async def _model_ready(self, request: Any, head: Head) -> tuple[Any, tuple[tuple[str, str], ...]]:
        self.gateway.model(request.name, request.version)
        return messages().ModelReadyResponse(ready=True), _NOTHING

    async def _server(self, request: Any, head: Head) -> tuple[Any, tuple[tuple[str, str], ...]]:
        told = describe.server(self.gateway.settings.service)
        reply = messages().ServerMetadataResponse(
            name=told["name"], version=told["version"], extensions=told["extensions"]
        )
        return reply, _NOTHING

    async def _model(self, request: Any, head: Head) -> tuple[Any, tuple[tuple[str, str], ...]]:
        model = self.gateway.model(request.name, request.version)
        versions = list(self.gateway.dispatcher.active().by_version)
        name = self.gateway.settings.service
        return metadata_reply(name, versions, describe.PLATFORM, model.bundle.signature), _NOTHING

    async def _statistics(self, request: Any, head: Head) -> tuple[Any, tuple[tuple[str, str], ...]]:
        told = self.gateway.statistics(request.name, request.version)
        return messages().ModelStatisticsResponse(**told), _NOTHING

    async def _index(self, request: Any, head: Head) -> tuple[Any, tuple[tuple[str, str], ...]]:
        told = describe.index(self.gateway.settings.service, self.gateway.versions.active)
        return messages().RepositoryIndexResponse(models=told), _NOTHING

    async def _change(self, request: Any, head: Head) -> tuple[Any, tuple[tuple[str, str], ...]]:
        self.gateway.check_name(request.model_name)
        raise describe.refuse_change()

    async def _stream(self, _: Any, context: Any) -> None:
        await context.abort(_code(501), "streams of requests are not served; ModelInfer answers one")


def _code(status: int) -> Any:
    import grpc

    return grpc.StatusCode[CODES.get(status, "UNKNOWN")]
