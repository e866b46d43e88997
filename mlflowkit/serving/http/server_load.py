"""What the connections of one server share: how many requests wait, how many connections a client has, deadlines."""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections import Counter
from typing import TYPE_CHECKING

from mlflowkit.serving.http.replies import OVERLOAD

if TYPE_CHECKING:
    from mlflowkit.serving.http.connection import Connection
    from mlflowkit.serving.http.gateway import Gateway

MAX_CONNECTIONS = 4096
MAX_CLIENT_CONNECTIONS = MAX_CONNECTIONS // 2
"""Limit on the connections of one client address (of one /64 network, for IPv6)."""
NEVER = math.inf
"""A deadline that does not come."""
SWEEP_SECONDS = 0.2
EAGER_AT_ONCE = 4
"""Requests of one millisecond that are answered where they were read; the rest become tasks, which can be counted."""


class ServerLoad:
    """Shared by the connections of one server, on its loop. ``pending`` counts requests read and not started.

    A timer for each step of each request would cost more than parsing it: a connection sets ``deadline``, and all
    are looked at together every SWEEP_SECONDS.
    """

    def __init__(self, gateway: Gateway, header_seconds: float) -> None:
        self.gateway = gateway
        self.plane = gateway.plane
        self.header_seconds = header_seconds
        self.pending = self._begun = 0
        self._time = -1.0
        self.connections: set[Connection] = set()
        self._clients: Counter[str] = Counter()
        self._sweeping = False

    def admit(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> bool:
        """Count a connection. False when its client has too many, or all have and nobody's is idle."""
        if len(self.connections) >= MAX_CONNECTIONS and not self._close_idle():
            return False
        connection.network = network = client_network(connection.peer)
        if self._clients[network] >= MAX_CLIENT_CONNECTIONS:
            return False
        self._clients[network] += 1
        self.connections.add(connection)
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(SWEEP_SECONDS, self._sweep, loop)
        return True

    def forget(self, connection: Connection) -> None:
        """Take a closed connection out of the counts, if it was admitted."""
        if connection not in self.connections:
            return
        self.connections.remove(connection)
        self._clients[connection.network] -= 1
        if not self._clients[connection.network]:
            del self._clients[connection.network]

    @property
    def full(self) -> bool:
        """Whether as many requests wait as may."""
        dispatcher = self.plane.dispatcher
        return self.pending + dispatcher.waiting >= dispatcher.settings.max_queue

    def can_start_eagerly(self, loop_time: float) -> bool:
        """Whether a request may be answered without a task: no other waits, and few were begun in this millisecond.

        ``loop_time`` has whole milliseconds, as libuv counts them.
        """
        if self.pending:
            return False
        if loop_time != self._time:
            self._time, self._begun = loop_time, 0
        self._begun += 1
        return self._begun <= EAGER_AT_ONCE

    def overload_reply(self, *, close: bool) -> bytes:
        waiting = self.pending + self.plane.dispatcher.waiting
        body = b'{"error":"%d requests are waiting already"}' % waiting
        request_id = self.plane.new_call(0.0).id.encode()
        return OVERLOAD % (request_id, b"connection: close\r\n" if close else b"", len(body), body)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        late = [one for one in self.connections if one.deadline <= now or one.write_deadline <= now]
        for connection in late:
            connection.expire(now)
        if self.connections:
            loop.call_later(SWEEP_SECONDS, self._sweep, loop)
        else:
            self._sweeping = False

    def _close_idle(self) -> bool:
        """Close an idle connection of the client that has the most; False when it has none."""
        network, _ = self._clients.most_common(1)[0]
        idle = next((one for one in self.connections if one.network == network and one.idle), None)
        if idle is None:
            return False
        idle.abort()
        self.forget(idle)
        return True


def client_network(peer: object) -> str:
    """The address of a peer, by which its connections are counted.

    >>> client_network(("192.0.2.7", 80)), client_network(("2001:db8:1:2:3::7", 80, 0, 0)), client_network("")
    ('192.0.2.7', '2001:db8:1:2::/64', '')
    """
    if not isinstance(peer, tuple) or not peer:
        return ""
    host = str(peer[0])
    if ":" not in host:
        return host
    try:
        return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))
    except ValueError:
        return host
