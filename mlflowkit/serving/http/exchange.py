"""One request and its reply on a connection."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine, Generator, MutableMapping
from functools import lru_cache
from types import coroutine as generator_coroutine
from typing import TYPE_CHECKING, Any

from mlflowkit.serving.http.replies import SERVER_ERROR, STATUS
from mlflowkit.serving.protocol.binary_tensors import Buffer

if TYPE_CHECKING:
    from mlflowkit.serving.http.connection import Connection
    from mlflowkit.serving.http.gateway import Gateway

JOINED_WRITE_BYTES = 64 << 10
"""A body of at most this size is copied behind its head for a single write."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE = (b"connection", b"close")
_log = logging.getLogger("mlflowkit.serving")


class Exchange:
    """A request that is read and answered; a `request_body.HttpRequest`. ``complete``: its reply was written."""

    __slots__ = (
        "body", "complete", "connection", "disconnected", "expects_continue", "headers", "keep_alive", "method",
        "more_body", "raw_path", "task", "unread", "waiter",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        method: str,
        raw_path: bytes,
        headers: list[tuple[bytes, bytes]],
        keep_alive: bool,
        expects_continue: bool,
    ) -> None:
        self.connection = connection
        self.method = method
        self.raw_path = raw_path
        self.headers = headers
        self.keep_alive = keep_alive
        self.expects_continue = expects_continue
        self.body: bytes | bytearray = b""
        self.more_body = True
        self.unread = self.disconnected = self.complete = False
        self.waiter: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None

    def add_body(self, part: bytes) -> int:
        """Append a part of the body and wake `receive`; returns how many bytes wait to be read."""
        if self.body:
            self.body = bytearray(self.body) if type(self.body) is bytes else self.body
            self.body += part
        else:
            self.body = part
        self.wake()
        return len(self.body)

    def wake(self) -> None:
        """Wake `receive`: body bytes, the end of the body or a disconnect arrived."""
        self.unread = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def run(self, gateway: Gateway) -> None:
        """Answer as a task, which is pending until now."""
        self.connection.load.pending -= 1
        await self.answer(gateway)

    async def answer(self, gateway: Gateway) -> None:
        """Have the request answered and write the reply; a failure ends this connection only."""
        connection = self.connection
        try:
            status, body, headers, request_id = await gateway.respond(self)
            if connection.writable is not None and not self.disconnected:
                await connection.writable
            if not self.disconnected:
                self._write(status, body, headers, request_id)
        except Exception:  # noqa: BLE001 - logged; ends this connection only
            _log.exception("%s %s", self.method, self.raw_path)
            if not self.complete and not self.disconnected:
                connection.transport.write(SERVER_ERROR)
            connection.close()
        finally:
            if self.task is not None:
                connection.tasks.discard(self.task)

    def whole_body(self) -> bytes | bytearray | None:
        """The body, if all of it has arrived and none was received; None otherwise."""
        if self.more_body or not self.unread or self.disconnected:
            return None
        self.unread = False
        body, self.body = self.body, b""
        return body

    async def receive(self) -> MutableMapping[str, Any]:
        """The body bytes since the last call (ASGI)."""
        connection = self.connection
        if self.expects_continue and not connection.transport.is_closing():
            connection.transport.write(_CONTINUE)
            self.expects_continue = False
        if not self.disconnected and not self.complete:
            connection.resume_reading()
            if not self.unread:
                self.waiter = connection.loop.create_future()
                await self.waiter
            self.unread = False
        if self.disconnected or self.complete:
            return {"type": "http.disconnect"}
        body, self.body = self.body, b""
        return {"type": "http.request", "body": bytes(body), "more_body": self.more_body}

    def _write(self, status: int, body: Buffer, headers: tuple[tuple[bytes, bytes], ...], request_id: bytes) -> None:
        """Write head and body, in one piece unless the body is large."""
        transport = self.connection.transport
        fields, closes = _render_fields(headers)
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            fields += b"connection: close\r\n"
        head = b"%sx-mlkit-request-id: %s\r\ncontent-length: %d\r\n\r\n" % (fields, request_id, len(body))
        self.complete = True
        if self.method == "HEAD":
            transport.write(STATUS[status] + head)
        elif len(body) <= JOINED_WRITE_BYTES:
            transport.write(b"".join((STATUS[status], head, body)))
        else:
            transport.writelines((STATUS[status] + head, body))
        self.connection.reply_written(self)


@lru_cache(maxsize=256)
def _render_fields(headers: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, bool]:
    """Header lines, and whether they ask to close. Raises RuntimeError for a line break within one.

    >>> _render_fields(((b"allow", b"GET"), (b"connection", b"close")))
    (b'allow: GET\\r\\nconnection: close\\r\\n', True)
    """
    for name, value in headers:
        if b"\n" in value or b"\r" in value:
            raise RuntimeError(f"header {name.decode()} contains a line break")
    return b"".join(b"%s: %s\r\n" % pair for pair in headers), _CLOSE in headers


def start_eagerly(coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> asyncio.Task[None] | None:
    """Run a coroutine until it first waits; it then continues as a task, which is returned. None when it completed.

    Equals `asyncio.eager_task_factory` of Python 3.12. On 3.11, code that asks for the current task (as
    `asyncio.timeout` does) must not run before the first wait.
    """
    if sys.version_info >= (3, 12):
        task = asyncio.Task(coroutine, loop=loop, eager_start=True)
        return None if task.done() else task
    try:
        awaited = coroutine.send(None)
    except StopIteration:
        return None

    async def remainder() -> None:
        await _resume(coroutine, awaited)

    return loop.create_task(remainder())


@generator_coroutine
def _resume(coroutine: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    """The rest of a started coroutine that waits for the future ``awaited``."""
    while True:
        try:
            try:
                value = yield awaited
            except BaseException as error:  # noqa: BLE001 - cancellation is passed on too
                awaited = coroutine.throw(error)
            else:
                awaited = coroutine.send(value)
        except StopIteration:
            return
