"""One HTTP connection of a gateway: uvicorn's httptools protocol, with deadlines, limits and less work per request.

Added to uvicorn: deadlines for headers and bodies, limits on connections and headers, errors in the gateway's format,
and refusal of requests under overload. Left out: replies in several parts (a gateway's are complete, so head and body
leave in one write), validation of headers that the gateway built itself, and lifespan and websocket handling.

**Overload.** A parsed request is a task, and a loop that lags has many tasks that have not started. They are counted
when a request's headers are complete, together with the requests that wait for a thread or another process: at
``max_queue``, a POST is answered here with 503 and Retry-After, at a tenth of the cost of a task, and its body is
discarded. So admitted requests are answered in time, and memory does not grow.

**Eager start.** A request that arrived complete in one packet, as the first of its loop iteration, is answered
directly, without a task: that saves a loop iteration, which matters with few clients. The other requests of the
iteration become tasks, where they count as waiting.
"""

from __future__ import annotations

import asyncio
import http
import json
import logging
import re
import sys
import urllib.parse
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, MutableMapping
from functools import lru_cache
from types import coroutine as generator_coroutine
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlflowkit.serving.inference.data_plane import DataPlane

MAX_HEADER_BYTES = 64 << 10
"""Limit on headers that arrive in several packets."""
MAX_CONNECTIONS = 4096
HIGH_WATER_BYTES = 256 << 10
"""Unread body bytes at which the connection stops reading."""
JOINED_WRITE_BYTES = 64 << 10
"""A body of at most this size is copied behind its head for a single write."""
MAX_DISCARD_BYTES = 64 << 10
"""A refused body of at most this size is read and discarded; for a larger one the connection is closed."""
_UPGRADE = re.compile(rb"(?<=\n)upgrade(?=[ \t]*:)", re.IGNORECASE)
_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}
_log = logging.getLogger("mlflowkit.serving")


def _final_reply(status: int, message: str) -> bytes:
    """A complete error reply, sent without the application before the connection is closed."""
    body = json.dumps({"error": message}).encode()
    head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    return _STATUS[status] + head + body


BODY_TIMEOUT_REPLY = _final_reply(408, "the body did not arrive in time")
HEADERS_TOO_LARGE_REPLY = _final_reply(431, f"headers of at most {MAX_HEADER_BYTES} bytes are read")
NOT_HTTP_REPLY = _final_reply(400, "this is not a request of HTTP/1.1")
SERVER_ERROR_REPLY = _final_reply(500, "the server failed; its log says why")
_OVERLOAD_REPLY = (
    _STATUS[503]
    + b"content-type: application/json\r\nretry-after: 1\r\nx-mlkit-request-id: %s\r\n%scontent-length: %d\r\n\r\n%s"
)


class ServerLoad:
    """Shared by the connections of one server. ``pending`` counts requests that were read and have not started."""

    __slots__ = ("_iteration", "header_seconds", "pending", "plane")

    def __init__(self, plane: DataPlane, header_seconds: float) -> None:
        self.plane = plane
        self.header_seconds = header_seconds
        self.pending = 0
        self._iteration = -1.0

    @property
    def full(self) -> bool:
        dispatcher = self.plane.dispatcher
        return self.pending + dispatcher.waiting >= dispatcher.settings.max_queue

    def can_start_eagerly(self, loop_time: float) -> bool:
        """Whether a request may be answered without a task: the first of its loop iteration, with none pending."""
        # libuv updates the loop's time once an iteration, in whole milliseconds
        first, self._iteration = loop_time != self._iteration, loop_time
        return first and not self.pending

    def overload_reply(self, *, close: bool) -> bytes:
        body = b'{"error":"%d requests are waiting already"}' % (self.pending + self.plane.dispatcher.waiting)
        request_id = self.plane.new_call(0.0).id.encode()
        return _OVERLOAD_REPLY % (request_id, b"connection: close\r\n" if close else b"", len(body), body)


@lru_cache(maxsize=64)
def parse_url(url: bytes) -> tuple[str, bytes, bytes]:
    """Path, raw path and query of a URL. Raises httptools' error for an invalid one."""
    parsed = httptools.parse_url(url)
    path = parsed.path.decode("ascii")
    return urllib.parse.unquote(path) if "%" in path else path, parsed.path, parsed.query or b""


class Exchange:
    """One request and its reply; replaces uvicorn's RequestResponseCycle."""

    __slots__ = (
        "body", "connection", "disconnected", "expects_continue", "head", "keep_alive", "more_body",
        "response_complete", "response_started", "scope", "task", "unread", "waiter",
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
        self.unread = self.disconnected = self.response_started = self.response_complete = False
        self.waiter: asyncio.Future[None] | None = None
        self.head: tuple[int, Iterable[tuple[bytes, bytes]]] = (500, ())
        self.task: asyncio.Task[None] | None = None

    @property
    def message_event(self) -> Exchange:
        """The event that uvicorn sets when the connection is lost."""
        return self

    def set(self) -> None:
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
            if not self.response_complete and not self.disconnected:
                raise RuntimeError("the application ended without a reply")
        except Exception:  # noqa: BLE001 - logged; ends this connection only
            _log.exception("%s %s", self.scope["method"], self.scope["path"])
            if not self.response_started:
                connection.transport.write(SERVER_ERROR_REPLY)
            connection.transport.close()
        finally:
            if self.task is not None:
                connection.tasks.discard(self.task)

    async def receive(self) -> MutableMapping[str, Any]:
        """The body bytes since the last call (ASGI)."""
        connection = self.connection
        if self.expects_continue and not connection.transport.is_closing():
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.expects_continue = False
        if not self.disconnected and not self.response_complete:
            connection.flow.resume_reading()
            if not self.unread:
                self.waiter = connection.loop.create_future()
                await self.waiter
            self.unread = False
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = self.body, b""
        return {"type": "http.request", "body": bytes(body), "more_body": self.more_body}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Keep the head; write it together with the body, which comes in one message (ASGI)."""
        if message["type"] == "http.response.start":
            self.head = (message["status"], message["headers"])
            return
        connection = self.connection
        if connection.flow.write_paused and not self.disconnected:
            await connection.flow.drain()
        if self.disconnected:
            return
        if message.get("more_body"):
            raise RuntimeError("a reply is sent in one message")
        body = message["body"]
        head = self._render_head()
        self.response_started = True
        if len(body) <= JOINED_WRITE_BYTES:
            connection.transport.write(head + body)
        else:
            connection.transport.writelines((head, body))
        self.response_complete = True
        self.set()
        if not self.keep_alive:
            connection.transport.close()
        connection.on_response_complete()

    def _render_head(self) -> bytes:
        status, headers = self.head
        parts = [_STATUS[status]]
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


class Connection(HttpToolsProtocol):
    """One connection. ``_deadline`` is scheduled while a request is incomplete after its first packet."""

    load: ServerLoad
    cycle: Any
    pipeline: deque[Any]
    _eager: Exchange | None = None
    _deadline: Any = None
    _incomplete = False
    _in_body = False
    _discarding = False
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._deadline = self.loop.call_later(self.load.header_seconds, transport.abort)

    def data_received(self, data: bytes) -> None:
        if not self._incomplete and b"pgrade" in data:
            data = without_upgrade(data)
        super().data_received(data)
        if self._eager is not None:
            self._start_eager(self._eager)
        if not self._incomplete:
            return
        if not self._in_body:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEADER_BYTES:
                self._reply_and_close(HEADERS_TOO_LARGE_REPLY)
                return
        if self._deadline is None:
            if self._in_body:
                seconds = self.load.plane.settings.timeout_seconds
                self._deadline = self.loop.call_later(seconds, self._body_timed_out)
            else:
                self._deadline = self.loop.call_later(self.load.header_seconds, self.transport.abort)

    def on_message_begin(self) -> None:
        self._incomplete, self._in_body, self._head_bytes = True, False, 0
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._cancel_deadline()
        if self.transport.is_closing():
            self._discarding = True
            return
        parser, load = self.parser, self.load
        method = parser.get_method()
        previous = self.cycle
        idle = previous is None or previous.response_complete
        keep_alive = parser.should_keep_alive() and parser.get_http_version() != "1.0"
        if idle and load.full and method == b"POST":
            self._refuse_overload(keep_alive)
            return
        path, raw, query = parse_url(self.url)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": parser.get_http_version(),
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": method.decode("ascii"),
            "root_path": "",
            "path": path,
            "raw_path": raw,
            "query_string": query,
            "headers": self.headers,
        }
        self.cycle = Exchange(self, scope, keep_alive=keep_alive, expects_continue=self.expect_100_continue)
        if idle:
            self._eager = self.cycle
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft(self.cycle)

    def on_body(self, body: bytes) -> None:
        exchange = self.cycle
        if self._discarding or exchange.response_complete:
            return
        if exchange.body:
            exchange.body = bytearray(exchange.body) if type(exchange.body) is bytes else exchange.body
            exchange.body += body
        else:
            exchange.body = body
        if len(exchange.body) > HIGH_WATER_BYTES:
            self.flow.pause_reading()
        exchange.set()

    def on_message_complete(self) -> None:
        self._incomplete = False
        self._cancel_deadline()
        if self._discarding:
            self._discarding = False
            self.on_response_complete()
            return
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.set()

    def on_response_complete(self) -> None:
        """After a reply: start the next pipelined request, or wait for one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.pipeline:
            self._start_task(self.pipeline.pop())
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._incomplete = False
        self._cancel_deadline()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP in the gateway's error format; ``msg`` is uvicorn's text."""
        self._reply_and_close(NOT_HTTP_REPLY)

    def _start_eager(self, exchange: Exchange) -> None:
        """Answer a request at the end of the packet that completed its headers, without a task if possible."""
        self._eager = None
        load = self.load
        complete = not exchange.more_body and len(exchange.body) <= load.plane.settings.max_body_bytes
        if not complete or not load.can_start_eagerly(self.loop.time()):
            self._start_task(exchange)
            return
        exchange.task = start_eagerly(exchange.answer(self.app), self.loop)
        if exchange.task is not None:
            self.tasks.add(exchange.task)

    def _start_task(self, exchange: Exchange) -> None:
        self.load.pending += 1
        exchange.task = self.loop.create_task(exchange.run(self.app))
        self.tasks.add(exchange.task)

    def _refuse_overload(self, keep_alive: bool) -> None:
        """Answer 503 and discard the body."""
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        small = length.isdigit() and int(length) <= MAX_DISCARD_BYTES
        close = not (keep_alive and small) or self.expect_100_continue or self.flow.write_paused
        self._discarding = True
        self.load.plane.telemetry.record_overload()
        self.transport.write(self.load.overload_reply(close=close))
        if close:
            self.transport.close()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _body_timed_out(self) -> None:
        """Answer 408 without the application, which sees a disconnect."""
        if self._discarding or self.cycle.response_started:
            self.transport.close()
        else:
            self._reply_and_close(BODY_TIMEOUT_REPLY)

    def _reply_and_close(self, reply: bytes) -> None:
        self.transport.write(reply)
        self.transport.close()


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


def connection_class(plane: DataPlane, header_seconds: float) -> type[Connection]:
    """The protocol class of one server's connections, which share a `ServerLoad`."""
    return type("Connection", (Connection,), {"load": ServerLoad(plane, header_seconds)})


def without_upgrade(data: bytes) -> bytes:
    """Mask the ``upgrade`` header of the first request's head, which declines the protocol upgrade.

    After a head with an upgrade offer (Java's client sends one with every request over plain HTTP), the parser would
    take the body for the other protocol and lose it. Lengths are unchanged.

    >>> without_upgrade(b"POST / HTTP/1.1\\r\\nUpgrade: h2c\\r\\n\\r\\n\\nupgrade: 1")
    b'POST / HTTP/1.1\\r\\nx-grade: h2c\\r\\n\\r\\n\\nupgrade: 1'
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"x-grade", head) + end + rest
