"""Reads request bodies within limits: bytes of each (413), and bytes of all that are being read together (503).

The listener bounds the time, because a body that arrived with its headers needs no timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from mlflowkit.serving.protocol.binary_tensors import ALIGNMENT, Buffer
from mlflowkit.serving.protocol.http_error import CLOSE, RETRY, RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class HttpRequest(Protocol):
    """A request whose head has been read. ``receive`` returns the next part of the body (a message of ASGI)."""

    method: str
    raw_path: bytes
    headers: list[tuple[bytes, bytes]]

    @property
    def receive(self) -> Receive: ...
    def whole_body(self) -> bytes | bytearray | None:
        """The body, if all of it has arrived and none was received; None otherwise."""


_DRAIN_BYTES = 64 << 20
_DRAIN_SECONDS = 2.0


class RequestBodyReader:
    """Reads the bodies of one gateway's requests and counts the bytes buffered for incomplete ones."""

    def __init__(self) -> None:
        self._buffered = 0

    async def read(self, request: HttpRequest, length: int, limit: int, header: int = 0) -> Buffer:
        """A whole body of at most ``limit`` bytes. Raises RequestError.

        ``length`` is the announced content length, -1 for none. A body that arrives in several chunks is assembled so
        that its byte ``header``, where binary tensors begin, is aligned: they need not be copied then.
        """
        receive = request.receive
        if length > limit:
            await drain(receive)
            raise RequestError(413, f"the body has {length} bytes; at most {limit} are read", CLOSE)
        body = request.whole_body()
        if body is None:
            message = await receive()
            if message.get("more_body"):
                return await self._assemble(receive, message, limit, header)
            if message["type"] == "http.disconnect":
                raise _disconnected()
            body = message.get("body", b"")
        if len(body) > limit:
            raise RequestError(413, f"the body has {len(body)} bytes; at most {limit} are read", CLOSE)
        return body

    async def _assemble(self, receive: Receive, message: Message, limit: int, header: int) -> Buffer:
        begin = -header % ALIGNMENT
        buffer = bytearray(begin)
        size = 0
        try:
            while True:
                if message["type"] == "http.disconnect":
                    raise _disconnected()
                chunk = message.get("body", b"")
                size += len(chunk)
                self._buffered += len(chunk)
                if size > limit:
                    if message.get("more_body"):
                        await drain(receive)
                    raise RequestError(413, f"the body has more than {limit} bytes; at most {limit} are read", CLOSE)
                if self._buffered > max(8 * limit, 64 << 20):
                    raise RequestError(503, "too many large requests are being read already", (*RETRY, *CLOSE))
                buffer += chunk
                if not message.get("more_body"):
                    return memoryview(buffer)[begin:]
                message = await receive()
        finally:
            self._buffered -= size


def _disconnected() -> RequestError:
    return RequestError(408, "the body did not arrive in time, or the client disconnected", CLOSE)


async def drain(receive: Receive) -> None:
    """Discard more of a body for a moment, so that a client that is still sending gets to read the reply."""
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
