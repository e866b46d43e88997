"""One HTTP connection of a gateway: an asyncio protocol over httptools (llhttp, strict), with deadlines and limits.

uvicorn's server accepts connections and stops them gracefully; this takes the place of its protocol class. Replies are
complete, so head and body leave in one write; there is neither websocket nor any other upgrade.

**Limits.** A head has at most MAX_HEAD_BYTES and MAX_FIELDS; so have trailers, which are read and dropped: a field that
arrives after the body is never a header (RFC 9110, section 6.5.1), because what a proxy in front strips from the head
would come back through it. Heads, bodies, idle connections and unread replies have deadlines.

**Upgrades.** An offer of another protocol (Java's client sends ``Upgrade: h2c`` with every first request) is declined
as RFC 9110, section 7.8, allows. The parser ends at the head of such a request and would take its body for the other
protocol, so a new parser continues, from the same head without the offer: see `Connection._feed`.

**Eager start.** A request that has arrived completely is answered where it was read, without a task, if few are
(EAGER_AT_ONCE): that saves a loop iteration and a tenth of the work. The rest become tasks, which count as waiting.

**Overload.** Tasks that have not started are counted with the requests that wait for a thread or another process: at
``max_queue``, a POST is answered here with 503 and Retry-After, at a tenth of the cost of a task, and its body is
discarded. So admitted requests are answered in time, and memory does not grow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import httptools

from mlflowkit.serving.http import replies
from mlflowkit.serving.http.exchange import Exchange, start_eagerly
from mlflowkit.serving.http.replies import MAX_FIELDS, MAX_HEAD_BYTES, refusal
from mlflowkit.serving.http.server_load import NEVER, ServerLoad

if TYPE_CHECKING:
    from mlflowkit.serving.http.gateway import Gateway

IDLE_SECONDS = 75.0
"""How long a connection without a request is kept open."""
HIGH_WATER_BYTES = 256 << 10
"""Unread body bytes at which the connection stops reading."""
MAX_DISCARD_BYTES = 64 << 10
"""A refused body of at most this size is read and discarded; for a larger one the connection is closed."""
MAX_IGNORED_BYTES = 1 << 20
"""Limit on what a client still sends after the last reply; it is read, since a close would discard the reply."""
MAX_PIPELINED = 64
"""Limit on the requests of one connection that wait for the answer to an earlier one."""
MIN_READ_BYTES = 16 << 10
"""A client that reads less of its replies than this within a head's deadline is disconnected."""
_FRAMING = frozenset({b"host", b"transfer-encoding", b"expect"})
_OFFERS = frozenset({b"upgrade", b"http2-settings"})


@lru_cache(maxsize=64)
def parse_path(url: bytes) -> bytes:
    """The path of a URL, percent-encoded; nothing here takes a query. Raises httptools' error for an invalid URL."""
    path: bytes = httptools.parse_url(url).path
    path.decode("ascii")
    return path


class Connection(asyncio.Protocol):
    """One connection, as uvicorn's server constructs it.

    ``deadline`` is for what the client owes (a head, a body, a next request), ``write_deadline`` for reading what was
    written; `ServerLoad` calls `expire` after either. ``writable`` is set while the client reads too slowly.
    """

    load: ServerLoad

    def __init__(self, config: Any, server_state: Any, app_state: object = None, _loop: Any = None) -> None:
        self.loop: asyncio.AbstractEventLoop = _loop or asyncio.get_event_loop()
        self.tasks: set[asyncio.Task[None]] = server_state.tasks
        self.transport: Any = None
        self.peer: object = None
        self.network = ""
        self.deadline = self.write_deadline = NEVER
        self.writable: asyncio.Future[None] | None = None
        self._served: set[Any] = server_state.connections
        self._parser = httptools.HttpRequestParser(self)
        self._pipeline: deque[Exchange] = deque()
        self._answering: Exchange | None = None
        self._reading: Exchange | None = None
        self._eager: Exchange | None = None
        self._last_reply = b""
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._codings: list[bytes] = []
        self._incomplete = self._in_body = self._discarding = self._upgrade = False
        self._deaf = self._read_paused = self._expects_continue = self._large = False
        self._hosts = self._head_bytes = self._trailers = self._unsent = self._ignored = 0

    @property
    def idle(self) -> bool:
        """Whether the client owes a next request, and no reply is due."""
        return self._answering is None and not self._incomplete

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.peer = transport.get_extra_info("peername")
        if not self.load.admit(self, self.loop):
            transport.abort()
            return
        self._served.add(self)
        self.deadline = self.loop.time() + self.load.header_seconds

    def connection_lost(self, exc: Exception | None) -> None:
        self._served.discard(self)
        self.load.forget(self)
        self._deaf, self.deadline, self.write_deadline = True, NEVER, NEVER
        if self._answering is not None:
            self._answering.disconnected = True
            self._answering.wake()
        self._pipeline.clear()
        self.resume_writing()

    def shutdown(self) -> None:
        """Close now, or after the reply that is due (called by uvicorn's graceful stop)."""
        if self._answering is None:
            self.close()
        else:
            self._answering.keep_alive = False

    def close(self) -> None:
        """Close when what was written has been read; a client that does not read it is cut off."""
        self._deaf, self.deadline = True, NEVER
        self.transport.close()
        if self.write_deadline == NEVER and self.transport.get_write_buffer_size():
            self._watch_writing()

    def _say_last(self, reply: bytes) -> None:
        """Write a reply and end the sending side; the client closes, or is late.

        Closing at once, with bytes unread that the client sent, would make the kernel discard the reply.
        """
        if self.transport.is_closing():
            return
        self.transport.write(reply)
        self.transport.write_eof()
        self._deaf, self.deadline = True, self.loop.time() + self.load.header_seconds
        if self._read_paused:
            self._read_paused = False
            self.transport.resume_reading()

    def abort(self) -> None:
        """Close now, without what the client has not read."""
        self._deaf = True
        self.transport.abort()

    def expire(self, now: float) -> None:
        """A deadline is over."""
        if self.write_deadline <= now:
            unsent = self.transport.get_write_buffer_size()
            if unsent and self._unsent - unsent < MIN_READ_BYTES:
                self.abort()
                return
            self._watch_writing()
        if self.deadline <= now:
            self._client_is_late()

    def pause_writing(self) -> None:
        self.writable = self.loop.create_future()
        self._watch_writing()

    def resume_writing(self) -> None:
        writable, self.writable = self.writable, None
        if writable is not None:
            if not self.transport.is_closing():
                self.write_deadline = NEVER
            if not writable.done():
                writable.set_result(None)

    def resume_reading(self) -> None:
        if self._read_paused and not self._deaf:
            self._read_paused = False
            self.transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._read_paused:
            self._read_paused = True
            self.transport.pause_reading()

    def _watch_writing(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self.write_deadline = self.loop.time() + self.load.header_seconds if self._unsent else NEVER

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._ignored += len(data)
            if self._ignored > MAX_IGNORED_BYTES:
                self.abort()
            return
        new = not self._incomplete
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._large = True
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(replies.NOT_HTTP)
        if self._eager is not None:
            self._start_eager(self._eager)
        if not self._incomplete or self._deaf:
            return
        if not self._in_body:
            self._large = True  # it began behind another message, whose end set the count back: its size is added up
        if self._head_bytes > MAX_HEAD_BYTES + (len(data) if new else 0):
            self._refuse(replies.TRAILERS_TOO_LARGE if self._in_body else replies.HEADERS_TOO_LARGE)
        elif self.deadline == NEVER:
            waits = self.load.plane.settings.timeout_seconds if self._in_body else self.load.header_seconds
            self.deadline = self.loop.time() + waits

    def _feed(self, data: bytes | memoryview) -> None:
        """Parse data, past every head that offers an upgrade. Raises httptools' error."""
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if self._deaf:
                    return
                head = self._head_without_offer()
                self._upgrade = False
                self._parser = httptools.HttpRequestParser(self)
                self._parser.feed_data(head)
                data = memoryview(data)[upgrade.args[0] :]

    def _head_without_offer(self) -> bytes:
        lines = [b"%s %s HTTP/%s" % (self._parser.get_method(), self._url, self._parser.get_http_version().encode())]
        lines += [b"%s: %s" % (name, value) for name, value in self._headers if name not in _OFFERS]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    # What the parser calls: url, header and body, as they arrive.
    def on_message_begin(self) -> None:
        self._end_parsing_if_deaf()
        self._incomplete, self._in_body, self._upgrade, self.deadline = True, False, False, NEVER
        self._hosts = self._trailers = 0
        self._url, self._headers, self._expects_continue = b"", [], False
        if self._codings:
            self._codings = []

    def _end_parsing_if_deaf(self) -> None:
        """Leave what else has arrived unread: there may be thousands of requests in one packet."""
        if self._deaf:
            raise ConnectionAbortedError

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._end_parsing_if_deaf()
        if self._in_body:  # a trailer, which is dropped
            self._trailers += 1
            if self._trailers > MAX_FIELDS:
                self._refuse(replies.TRAILERS_TOO_LARGE)
            return
        if len(self._headers) >= MAX_FIELDS:
            self._refuse(replies.HEADERS_TOO_LARGE)
            return
        name = name.lower()
        if name in _FRAMING:
            if name == b"host":
                self._hosts += 1
            elif name == b"transfer-encoding":
                self._codings.append(value)
            else:
                self._expects_continue = value.lower() == b"100-continue"
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._deaf:
            return
        parser, headers = self._parser, self._headers
        method, version = parser.get_method(), parser.get_http_version()
        reply = refusal(method, version, self._hosts, self._codings)
        if reply is not None:
            self._refuse(reply)
            return
        if self._large and self._head_size() > MAX_HEAD_BYTES:
            self._refuse(replies.HEADERS_TOO_LARGE)
            return
        if parser.should_upgrade():
            self._upgrade = True
            return
        self._in_body, self._head_bytes, self.deadline = True, 0, NEVER
        keep_alive = parser.should_keep_alive() and version == "1.1"
        load = self.load
        if method == b"POST" and self._answering is None and load.full:
            self._refuse_overload(keep_alive)
            return
        path = parse_path(self._url)
        exchange = Exchange(self, method.decode("ascii"), path, headers, keep_alive, self._expects_continue)
        self._reading = exchange
        if self._answering is None:
            self._answering = self._eager = exchange
        elif len(self._pipeline) < MAX_PIPELINED:
            self._pause_reading()
            self._pipeline.append(exchange)
        else:
            self._refuse(replies.TOO_MANY_PIPELINED)

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        exchange = self._reading
        if exchange is None or exchange.complete or self._discarding or self._deaf:
            return
        if exchange.add_body(body) > HIGH_WATER_BYTES:
            self._pause_reading()

    def on_message_complete(self) -> None:
        if self._upgrade or self._deaf:
            return
        self._incomplete, self._head_bytes, self.deadline = False, 0, NEVER
        exchange, self._reading = self._reading, None
        if self._discarding:
            self._discarding = False
            self._await_request()
        elif exchange is not None and not exchange.complete:
            exchange.more_body = False
            exchange.wake()
        elif exchange is not None:
            self._await_request()

    def reply_written(self, exchange: Exchange) -> None:
        """After a reply: start the next pipelined request, or wait for one."""
        self._answering = None
        if not exchange.keep_alive:
            self.close()
            return
        if self._pipeline:
            self._answering = self._pipeline.popleft()
            if not self._pipeline:
                self.resume_reading()
            self._start_task(self._answering)
        elif self._last_reply:
            self._say_last(self._last_reply)
        else:
            self.resume_reading()
            self._await_request()

    def _await_request(self) -> None:
        if self._answering is None and not self._incomplete and not self._deaf:
            self.deadline = self.loop.time() + IDLE_SECONDS

    def _head_size(self) -> int:
        """Bytes of the head that was parsed: what it arrived with may be a body, or other requests."""
        return len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)

    def _start_eager(self, exchange: Exchange) -> None:
        """Answer a request at the end of the packet that completed its headers, without a task if possible."""
        self._eager = None
        load = self.load
        complete = not exchange.more_body and len(exchange.body) <= load.plane.settings.max_body_bytes
        if not complete or not load.can_start_eagerly(self.loop.time()):
            self._start_task(exchange)
            return
        exchange.task = start_eagerly(exchange.answer(self.load.gateway), self.loop)
        if exchange.task is not None:
            self.tasks.add(exchange.task)

    def _start_task(self, exchange: Exchange) -> None:
        self.load.pending += 1
        exchange.task = self.loop.create_task(exchange.run(self.load.gateway))
        self.tasks.add(exchange.task)

    def _refuse_overload(self, keep_alive: bool) -> None:
        """Answer 503 and discard the body."""
        length = next((value for name, value in self._headers if name == b"content-length"), b"")
        small = length.isdigit() and int(length) <= MAX_DISCARD_BYTES
        close = not (keep_alive and small) or self._expects_continue or self.writable is not None
        self._discarding = True
        self.load.plane.telemetry.record_overload()
        reply = self.load.overload_reply(close=close)
        if close:
            self._say_last(reply)
        else:
            self.transport.write(reply)

    def _client_is_late(self) -> None:
        """Disconnect without a word where no request was begun or its head is incomplete; answer 408 for a body."""
        exchange = self._reading
        if self._deaf:
            self.abort()
        elif not (self._incomplete and self._in_body):
            if self.idle and self._headers:
                self.close()  # idle after a reply
            else:
                self.abort()
        elif self._discarding or exchange is None or exchange.complete:
            self.close()
        else:
            self._refuse(replies.BODY_TIMEOUT)

    def _refuse(self, reply: bytes) -> None:
        """Read no more; answer the request that is being read, after the replies that are due before it, and close."""
        if self._deaf:
            return
        self._deaf, self.deadline = True, NEVER
        exchange = self._reading
        if exchange is not None and exchange in self._pipeline:
            self._pipeline.remove(exchange)
        if self._discarding or (exchange is not None and exchange.complete):
            self.close()  # its reply has been written
        elif self._answering is None or self._answering is exchange:
            if exchange is not None:
                exchange.disconnected, self._eager = True, None
                exchange.wake()
            self._say_last(reply)
        else:
            self._last_reply = reply


def connection_class(gateway: Gateway, header_seconds: float) -> type[Connection]:
    """The protocol class of one server's connections, which share a `ServerLoad`."""
    return type("Connection", (Connection,), {"load": ServerLoad(gateway, header_seconds)})
