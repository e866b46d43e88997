"""One request and its reply on a connection: ASGI, for an application that answers in one message."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Generator, Iterable, MutableMapping
from types import coroutine as generator_coroutine
from typing import TYPE_CHECKING, Any

from mlflowkit.serving.http.replies import SERVER_ERROR, STATUS

if TYPE_CHECKING:
    from mlflowkit.serving.http.connection import Connection

JOINED_WRITE_BYTES = 64 << 10
"""A body of at most this size is copied behind its head for a single write."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_log = logging.getLogger("mlflowkit.serving")


class Exchange:
    """A request that is read and answered. ``complete`` says that its reply was written."""

    __slots__ = (
        "body", "complete", "connection", "disconnected", "expects_continue", "head", "keep_alive", "more_body",
        "scope", "task", "unread", "waiter",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, scope: dict[str, Any], *, keep_alive: bool, expects_continue: bool
    ) -> None:
        self.connection = connection
        self.scope = scope
        self.keep_alive = keep_alive
        self.expects_continue = expects_continue
        self.body: bytes | bytearray = b""
        self.more_body = True
        self.unread = self.disconnected = self.complete = False
        self.waiter: asyncio.Future[None] | None = None
        self.head: tuple[int, Iterable[tuple[bytes, bytes]]] = (500, ())
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

    async def run(self, app: Callable[..., Any]) -> None:
        """Answer as a task, which is pending until now."""
        self.connection.load.pending -= 1
        await self.answer(app)

    async def answer(self, app: Callable[..., Any]) -> None:
        """Call the application; a failure ends this connection only."""
        connection = self.connection
        try:
            await app(self.scope, self.receive, self.send)
            if not self.complete and not self.disconnected:
                raise RuntimeError("the application ended without a reply")
        except Exception:  # noqa: BLE001 - logged; ends this connection only
            _log.exception("%s %s", self.scope["method"], self.scope["path"])
            if not self.complete and not self.disconnected:
                connection.transport.write(SERVER_ERROR)
            connection.close()
        finally:
            if self.task is not None:
                connection.tasks.discard(self.task)

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

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Keep the head; write it together with the body, which comes in one message (ASGI)."""
        if message["type"] == "http.response.start":
            self.head = (message["status"], message["headers"])
            return
        connection = self.connection
        if connection.writable is not None and not self.disconnected:
            await connection.writable
        if self.disconnected:
            return
        if message.get("more_body"):
            raise RuntimeError("a reply is sent in one message")
        body = message["body"]
        head = self._render_head()
        self.complete = True
        if len(body) <= JOINED_WRITE_BYTES:
            connection.transport.write(head + body)
        else:
            connection.transport.writelines((head, body))
        if self.waiter is not None:
            self.wake()
        connection.reply_written(self)

    def _render_head(self) -> bytes:
        status, headers = self.head
        parts = [STATUS[status]]
        closes = False
        for name, value in headers:
            if b"\n" in value or b"\r" in value:
                raise RuntimeError(f"header {name.decode()} contains a line break")
            if name == b"connection" and value == b"close":
                closes = True
                self.keep_alive = False
            parts += (name, b": ", value, b"\r\n")
        if not self.keep_alive and not closes:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        return b"".join(parts)


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
