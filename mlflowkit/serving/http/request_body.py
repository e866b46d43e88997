"""Reads request bodies, bounded: each in bytes (413), and all that are being read together (503).

Their time is bounded by the listener, which need not start a clock for a body that is there already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mlflowkit.serving.protocol.binary_tensors import ALIGNMENT, Buffer
from mlflowkit.serving.protocol.http_error import Refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

RETRY = ((b"retry-after", b"1"),)
CLOSE = ((b"connection", b"close"),)
_DRAIN_BYTES = 64 << 20
_DRAIN_SECONDS = 2.0


class Bodies:
    """The bodies that one gateway is reading."""

    def __init__(self) -> None:
        self._buffered = 0

    async def read(self, receive: Receive, length: int, limit: int, header: int = 0) -> Buffer:
        """A whole body of at most ``limit`` bytes. Raises Refusal.

        ``length`` is what its headers announce, -1 for nothing. A body in several pieces is put together so that its
        byte ``header``, where binary tensors begin, is aligned: they need not be copied then.
        """
        if length > limit:
            await drain(receive)
            raise Refusal(413, f"the body has {length} bytes; at most {limit} are read", CLOSE)
        message = await receive()
        if not message.get("more_body"):
            return _checked(message, limit)
        return await self._chunks(receive, message, limit, header)

    async def _chunks(self, receive: Receive, message: Message, limit: int, header: int) -> Buffer:
        begin = -header % ALIGNMENT
        found = bytearray(begin)
        size = 0
        try:
            while True:
                if message["type"] == "http.disconnect":
                    raise _gone()
                chunk = message.get("body", b"")
                size += len(chunk)
                self._buffered += len(chunk)
                if size > limit:
                    if message.get("more_body"):
                        await drain(receive)
                    raise Refusal(413, f"the body has more than {limit} bytes; at most {limit} are read", CLOSE)
                if self._buffered > max(8 * limit, 64 << 20):
                    raise Refusal(503, "too many large requests are being read already", (*RETRY, *CLOSE))
                found += chunk
                if not message.get("more_body"):
                    return memoryview(found)[begin:]
                message = await receive()
        finally:
            self._buffered -= size


def _checked(message: Message, limit: int) -> bytes:
    if message["type"] == "http.disconnect":
        raise _gone()
    body: bytes = message.get("body", b"")
    if len(body) > limit:
        raise Refusal(413, f"the body has {len(body)} bytes; at most {limit} are read", CLOSE)
    return body


def _gone() -> Refusal:
    return Refusal(408, "the body did not arrive in time, or the client went away", CLOSE)


async def drain(receive: Receive) -> None:
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
