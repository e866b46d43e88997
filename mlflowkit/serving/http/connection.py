"""One HTTP connection of a gateway's listener: uvicorn's httptools protocol, with deadlines, bounds and less work.

What is added to uvicorn: deadlines for headers and for bodies, a bound on connections and on headers, errors in the
gateway's own form, and refusal of requests when too many wait. What is left out: replies in several parts (a gateway's
are whole, so head and body leave in one write), checks of headers that the gateway made itself, and trailers of
lifespan and websockets.

**Overload.** A request that is read is a task, and a loop that is behind has many tasks that have not begun. They are
counted here, where a request's headers are complete, together with those that wait for a thread or another process:
when there are ``max_queue``, a POST is answered with 503 and Retry-After from here, at a tenth of the cost of a task,
and its body is dropped as it comes. So those that were let in are answered in time, and memory does not grow.

**At once.** A request that came whole in one packet, as the first in its turn of the loop, is answered from where it
was read, without a task: that saves a turn of the loop, which is felt where there are few clients. The others of the
turn wait as tasks, where they count.
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
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlflowkit.serving.http.gateway import Gateway

HEADER_BYTES = 64 << 10
"""Headers that arrive in several packets are read up to this size."""
MAX_CONNECTIONS = 4096
HIGH_WATER = 256 << 10
"""Bytes of a body that wait to be taken before no more are read from the connection."""
ONE_WRITE = 64 << 10
"""A body of at most this size leaves in one piece with its head; a larger one is not copied for that."""
DROPPED_BYTES = 64 << 10
"""A refused body of at most this size is read and dropped; for a larger one the connection is closed."""
_UPGRADE = re.compile(rb"(?<=\n)upgrade(?=[ \t]*:)", re.IGNORECASE)
_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}
_log = logging.getLogger("mlflowkit.serving")


def _closing(status: int, message: str) -> bytes:
    """A whole reply that is sent past the application, before the connection is closed."""
    body = json.dumps({"error": message}).encode()
    head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    return _STATUS[status] + head + body


TOO_SLOW = _closing(408, "the body did not arrive in time")
TOO_LONG = _closing(431, f"headers of at most {HEADER_BYTES} bytes are read")
NOT_HTTP = _closing(400, "this is not a request of HTTP/1.1")
FAILED = _closing(500, "the server failed; its log says why")
_BUSY = (
    _STATUS[503]
    + b"content-type: application/json\r\nretry-after: 1\r\nx-mlkit-request-id: %s\r\n%scontent-length: %d\r\n\r\n%s"
)


class Load:
    """What the connections of one listener share: how many requests were read and have not begun to be answered."""

    __slots__ = ("_turn", "arriving", "gateway", "header_seconds", "paths")

    def __init__(self, gateway: Gateway, header_seconds: float) -> None:
        self.gateway = gateway
        self.header_seconds = header_seconds
        self.arriving = 0
        self.paths: dict[bytes, tuple[str, bytes, bytes]] = {}
        self._turn = -1.0

    @property
    def full(self) -> bool:
        """Whether as many requests wait as may."""
        dispatcher = self.gateway.dispatcher
        return self.arriving + dispatcher.waiting >= dispatcher.settings.max_queue

    def at_once(self, turn: float) -> bool:
        """Whether a request may be answered from where it was read.

        ``turn`` is the loop's time, which libuv takes once a turn, in whole milliseconds.
        """
        first, self._turn = turn != self._turn, turn
        return first and not self.arriving

    def busy(self, *, close: bool) -> bytes:
        """The reply to a request that there is no room for."""
        body = b'{"error":"%d requests are waiting already"}' % (self.arriving + self.gateway.dispatcher.waiting)
        number = self.gateway.call("", 0.0).id.encode()
        return _BUSY % (number, b"connection: close\r\n" if close else b"", len(body), body)

    def path(self, url: bytes) -> tuple[str, bytes, bytes]:
        """Path, raw path and query of a URL. Raises what httptools raises for one that is none."""
        found = self.paths.get(url)
        if found is None:
            parsed = httptools.parse_url(url)
            raw: bytes = parsed.path
            path = raw.decode("ascii")
            found = (urllib.parse.unquote(path) if "%" in path else path, raw, parsed.query or b"")
            if len(self.paths) < 64:
                self.paths[url] = found
        return found


class Exchange:
    """One request and its reply, in the place of uvicorn's RequestResponseCycle."""

    __slots__ = (
        "body",
        "connection",
        "disconnected",
        "expects",
        "head",
        "keep_alive",
        "more_body",
        "news",
        "response_complete",
        "response_started",
        "scope",
        "task",
        "waiter",
    )

    def __init__(self, connection: Connection, scope: dict[str, Any], *, keep_alive: bool, expects: bool) -> None:
        self.connection = connection
        self.scope = scope
        self.keep_alive = keep_alive
        self.expects = expects
        self.body: bytes | bytearray = b""
        self.more_body = True
        self.news = False
        self.waiter: asyncio.Future[None] | None = None
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self.head: tuple[int, Iterable[tuple[bytes, bytes]]] = (500, ())
        self.task: asyncio.Task[None] | None = None

    @property
    def message_event(self) -> Exchange:
        """What uvicorn sets when the connection is lost."""
        return self

    def set(self) -> None:
        """Something came that `receive` waits for."""
        self.news = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def run(self, app: Callable[..., Any]) -> None:
        """Have the application answer, as a task that has begun."""
        self.connection.load.arriving -= 1
        await self.answer(app)

    async def answer(self, app: Callable[..., Any]) -> None:
        """Have the application answer."""
        connection = self.connection
        try:
            await app(self.scope, self.receive, self.send)
            if not self.response_complete and not self.disconnected:
                raise RuntimeError("the application ended without a reply")
        except Exception:  # noqa: BLE001 - the application logs its own; whatever else it is ends this connection only
            _log.exception("%s %s", self.scope["method"], self.scope["path"])
            if not self.response_started:
                connection.transport.write(FAILED)
            connection.transport.close()
        finally:
            if self.task is not None:
                connection.tasks.discard(self.task)

    async def receive(self) -> MutableMapping[str, Any]:
        """What came of the body since the last call (ASGI)."""
        connection = self.connection
        if self.expects and not connection.transport.is_closing():
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.expects = False
        if not self.disconnected and not self.response_complete:
            connection.flow.resume_reading()
            if not self.news:
                self.waiter = connection.loop.create_future()
                await self.waiter
            self.news = False
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = self.body, b""
        return {"type": "http.request", "body": bytes(body), "more_body": self.more_body}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Keep the head; write it with the body, which comes whole (ASGI)."""
        if message["type"] == "http.response.start":
            self.head = (message["status"], message["headers"])
            return
        connection = self.connection
        if connection.flow.write_paused and not self.disconnected:
            await connection.flow.drain()
        if self.disconnected:
            return
        if message.get("more_body"):
            raise RuntimeError("replies are sent whole")
        body = message["body"]
        head = self._head()
        self.response_started = True
        if len(body) <= ONE_WRITE:
            connection.transport.write(head + body)
        else:
            connection.transport.writelines((head, body))
        self.response_complete = True
        self.set()
        if not self.keep_alive:
            connection.transport.close()
        connection.on_response_complete()

    def _head(self) -> bytes:
        status, headers = self.head
        parts = [_STATUS[status]]
        closes = False
        for name, value in headers:
            if b"\n" in value or b"\r" in value:
                raise RuntimeError(f"header {name.decode()} would end in the middle")
            if name == b"connection" and value == b"close":
                closes = True
                self.keep_alive = False
            parts += (name, b": ", value, b"\r\n")
        if not self.keep_alive and not closes:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        return b"".join(parts)


class Connection(HttpToolsProtocol):
    """One connection. ``_clock`` runs while a request is due, beyond the packet that it began in."""

    load: Load
    cycle: Any
    pipeline: deque[Any]
    _fresh: Exchange | None = None
    _clock: Any = None
    _due = False
    _in_body = False
    _dropping = False
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._clock = self.loop.call_later(self.load.header_seconds, transport.abort)

    def data_received(self, data: bytes) -> None:
        if not self._due and b"pgrade" in data:
            data = without_upgrade(data)
        super().data_received(data)
        if self._fresh is not None:
            self._begin_fresh(self._fresh)
        if not self._due:
            return
        if not self._in_body:
            self._head_bytes += len(data)
            if self._head_bytes > HEADER_BYTES:
                self._refuse(TOO_LONG)
                return
        if self._clock is None:
            if self._in_body:
                seconds = self.load.gateway.settings.timeout_seconds
                self._clock = self.loop.call_later(seconds, self._too_slow)
            else:
                self._clock = self.loop.call_later(self.load.header_seconds, self.transport.abort)

    def on_message_begin(self) -> None:
        self._due, self._in_body, self._head_bytes = True, False, 0
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._stop_clock()
        if self.transport.is_closing():
            self._dropping = True
            return
        parser, load = self.parser, self.load
        method = parser.get_method()
        before = self.cycle
        idle = before is None or before.response_complete
        keep_alive = parser.should_keep_alive() and parser.get_http_version() != "1.0"
        if idle and load.full and method == b"POST":
            self._drop(keep_alive)
            return
        path, raw, query = load.path(self.url)
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
        self.cycle = Exchange(self, scope, keep_alive=keep_alive, expects=self.expect_100_continue)
        if idle:
            self._fresh = self.cycle
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft(self.cycle)

    def on_body(self, body: bytes) -> None:
        exchange = self.cycle
        if self._dropping or exchange.response_complete:
            return
        if exchange.body:
            exchange.body = bytearray(exchange.body) if type(exchange.body) is bytes else exchange.body
            exchange.body += body
        else:
            exchange.body = body
        if len(exchange.body) > HIGH_WATER:
            self.flow.pause_reading()
        exchange.set()

    def on_message_complete(self) -> None:
        self._due = False
        self._stop_clock()
        if self._dropping:
            self._dropping = False
            self.on_response_complete()
            return
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.set()

    def on_response_complete(self) -> None:
        """The reply is written: begin with the next request, or wait for one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.pipeline:
            self._begin(self.pipeline.pop())
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._due = False
        self._stop_clock()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered as every other error is. ``msg`` is uvicorn's sentence for it."""
        self._refuse(NOT_HTTP)

    def _begin_fresh(self, exchange: Exchange) -> None:
        """Begin with a request at the end of the packet in which its headers ended."""
        self._fresh = None
        load = self.load
        whole = not exchange.more_body and len(exchange.body) <= load.gateway.settings.max_body_bytes
        if not whole or not load.at_once(self.loop.time()):
            self._begin(exchange)
            return
        exchange.task = begun(exchange.answer(self.app), self.loop)
        if exchange.task is not None:
            self.tasks.add(exchange.task)

    def _begin(self, exchange: Exchange) -> None:
        self.load.arriving += 1
        exchange.task = self.loop.create_task(exchange.run(self.app))
        self.tasks.add(exchange.task)

    def _drop(self, keep_alive: bool) -> None:
        """Answer a request that there is no room for, and forget its body."""
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        small = length.isdigit() and int(length) <= DROPPED_BYTES
        close = not (keep_alive and small) or self.expect_100_continue or self.flow.write_paused
        self._dropping = True
        self.load.gateway.telemetry.overloaded()
        self.transport.write(self.load.busy(close=close))
        if close:
            self.transport.close()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _too_slow(self) -> None:
        """Answer 408 past the application, which learns that the client is gone."""
        if self._dropping or self.cycle.response_started:
            self.transport.close()
        else:
            self._refuse(TOO_SLOW)

    def _refuse(self, reply: bytes) -> None:
        self.transport.write(reply)
        self.transport.close()


def begun(coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> asyncio.Task[None] | None:
    """Run a coroutine to its end, or until it first waits: then it goes on as a task, which is returned.

    As `asyncio.eager_task_factory` does from Python 3.12 on; before that, what asks for the current task
    (`asyncio.timeout` does) must not come before the first wait.
    """
    if sys.version_info >= (3, 12):
        task = asyncio.Task(coroutine, loop=loop, eager_start=True)
        return None if task.done() else task
    try:
        waited = coroutine.send(None)
    except StopIteration:
        return None
    return loop.create_task(_rest(coroutine, waited))


async def _rest(coroutine: Coroutine[Any, Any, None], waited: Any) -> None:
    await _Rest(coroutine, waited)


class _Rest:
    """The rest of a coroutine that waits for ``waited``: a future, which its task is still to take up."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waited: Any) -> None:
        self._coroutine = coroutine
        self._waited = waited

    def __await__(self) -> Generator[Any, Any, None]:
        waited = self._waited
        while True:
            try:
                try:
                    value = yield waited
                except BaseException as error:  # noqa: BLE001 - cancellation too is the coroutine's own
                    waited = self._coroutine.throw(error)
                else:
                    waited = self._coroutine.send(value)
            except StopIteration:
                return


def connections(gateway: Gateway, header_seconds: float) -> type[Connection]:
    """The protocol of one listener's connections, which share their `Load`."""
    return type("Connection", (Connection,), {"load": Load(gateway, header_seconds)})


def without_upgrade(data: bytes) -> bytes:
    """The first request's head without its offer to change the protocol, which a server may decline by ignoring it.

    The parser would take what follows the head of a request with such an offer (Java's client makes one with every
    request over plain HTTP) for the other protocol, and the body would be lost. Lengths stay as they are.

    >>> without_upgrade(b"POST / HTTP/1.1\\r\\nUpgrade: h2c\\r\\n\\r\\n\\nupgrade: 1")
    b'POST / HTTP/1.1\\r\\nx-grade: h2c\\r\\n\\r\\n\\nupgrade: 1'
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"x-grade", head) + end + rest
