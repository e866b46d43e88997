"""More than can be answered: refused at once and in words, on a connection that stays; what was let in is answered."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import orjson
import pytest

from mlflowkit.bundle import Bundle
from tests.support.gateways import InProcess
from tests.support.lending_bundle import ROWS, table
from tests.support.waiting import wait_for

from .test_serving_gateway import Held, hold

BODY = orjson.dumps({"rows": ROWS})


def post(body: bytes = BODY, more: bytes = b"") -> bytes:
    return b"POST /predict HTTP/1.1\r\nhost: localhost\r\n%scontent-length: %d\r\n\r\n%s" % (more, len(body), body)


def reply(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next reply."""
    found = b""
    while b"\r\n\r\n" not in found:
        part = connection.recv(65536)
        assert part, found
        found += part
    head, _, body = found.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    assert len(body) == int(headers["content-length"])
    return int(lines[0].split()[1]), headers, body


def connect(running: InProcess, stack: ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_connection(("127.0.0.1", running.listener.port), timeout=10))


def _wait_in_loop(stopped: threading.Event, go_on: threading.Event) -> None:
    """Hold up the event loop until ``go_on``."""
    stopped.set()
    go_on.wait(10)


def test_a_burst_beyond_the_queue_is_refused_on_connections_that_stay(
    start: Callable[..., InProcess], first: Bundle
) -> None:
    running = start(max_queue=4)
    running.swap(table(1, first))
    with ExitStack() as stack:
        crowd = [connect(running, stack) for _ in range(200)]
        for one in crowd:
            one.sendall(post())
            assert reply(one)[0] == 200
        codes: Counter[int] = Counter()
        while 503 not in codes:  # a slow machine may read the burst in parts, each of which the queue holds
            stopped, go_on = threading.Event(), threading.Event()
            running.listener.loop.call_soon_threadsafe(_wait_in_loop, stopped, go_on)
            assert stopped.wait(10)
            for one in crowd:
                one.sendall(post())
            go_on.set()
            replies = [reply(one) for one in crowd]
            codes = Counter(status for status, _, _ in replies)
        assert codes.keys() == {200, 503}, codes
        assert codes[200] >= 4
        for status, headers, body in replies:
            assert headers["x-mlkit-request-id"]
            if status == 503:
                assert headers["retry-after"] == "1"
                assert "waiting already" in orjson.loads(body)["error"]
        assert len({headers["x-mlkit-request-id"] for _, headers, _ in replies}) == 200
        for one in crowd:
            one.sendall(post())
            assert reply(one)[0] == 200
    page = running.client.get("/metrics").text
    refused = next(line for line in page.splitlines() if line.startswith("mlkit_overload_refusals_total"))
    assert float(refused.split()[-1]) == codes[503]


@pytest.fixture
def full(start: Callable[..., InProcess], first: Bundle, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A gateway in which as many requests wait for a thread as may."""
    running = start(max_queue=2)
    running.swap(table(1, first))
    held: Held = hold(running, monkeypatch)
    with ExitStack() as stack:
        waiting = [connect(running, stack) for _ in range(2)]
        for one in waiting:
            one.sendall(post())
        wait_for(lambda: running.plane.dispatcher.waiting == 2)
        yield running
        held.gate.set()
        assert [reply(one)[0] for one in waiting] == [200, 200]


def test_a_refused_body_is_forgotten_and_the_connection_serves_on(full: InProcess) -> None:
    with ExitStack() as stack:
        one = connect(full, stack)
        head, body = post()[: -len(BODY)], BODY
        one.sendall(head + body[:10])
        assert reply(one)[0] == 503
        one.sendall(body[10:] + b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert reply(one)[0] == 200
        for _ in range(3):
            one.sendall(post())
            assert reply(one)[0] == 503


def test_a_refusal_closes_where_the_body_is_large_or_not_yet_sent(full: InProcess) -> None:
    with ExitStack() as stack:
        for more in (b"expect: 100-continue\r\n", b"connection: close\r\n"):
            one = connect(full, stack)
            one.sendall(post(more=more))
            status, headers, _ = reply(one)
            assert (status, headers["connection"]) == (503, "close")
            assert one.recv(1) == b""
        large = connect(full, stack)
        large.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n")
        status, headers, _ = reply(large)
        assert (status, headers["connection"]) == (503, "close")


def test_health_and_metrics_are_answered_when_it_is_full(full: InProcess) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/v2/models/lending"):
        assert full.client.get(path).status_code == 200


def test_slow_senders_keep_nobody_out(start: Callable[..., InProcess], first: Bundle) -> None:
    running = start(max_queue=2)
    running.swap(table(1, first))
    with ExitStack() as stack:
        slow = [connect(running, stack) for _ in range(6)]
        for number, one in enumerate(slow, 1):
            one.sendall(post()[:-10])
            wait_for(lambda number=number: running.plane.in_flight == number)  # type: ignore[misc]
        for _ in range(5):
            assert running.client.post("/predict", json={"rows": ROWS}).status_code == 200
        for one in slow:
            one.sendall(post()[-10:])
        assert [reply(one)[0] for one in slow] == [200] * 6


def test_pipelined_requests_are_answered_in_their_order(start: Callable[..., InProcess], first: Bundle) -> None:
    running = start()
    running.swap(table(1, first))
    with ExitStack() as stack:
        one = connect(running, stack)
        one.sendall(b"".join(post(more=b"x-request-id: r%d\r\n" % number) for number in range(8)))
        found = b""
        while found.count(b"HTTP/1.1 200") < 8 or not found.endswith(b"}"):
            found += one.recv(65536)
        ids = [line.split(b": ")[1] for line in found.split(b"\r\n") if line.startswith(b"x-mlkit-request-id")]
        assert ids == [b"r%d" % number for number in range(8)]


def test_what_would_wait_longer_than_its_deadline_is_refused_at_once(
    start: Callable[..., InProcess], first: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(timeout_seconds=5.0)
    running.swap(table(1, first))
    hold(running, monkeypatch).gate.set()
    assert running.client.post("/predict", json={"rows": ROWS}).status_code == 200
    held = hold(running, monkeypatch)
    with ExitStack() as stack:
        waiting = [connect(running, stack) for _ in range(20)]
        for one in waiting:
            one.sendall(post())
        wait_for(lambda: running.plane.dispatcher.waiting == 20)
        running.plane.dispatcher._pools[held].seconds = 2.0
        refused = running.client.post("/predict", json={"rows": ROWS})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 5
        held.gate.set()
        assert {reply(one)[0] for one in waiting} == {200}


def test_threads_that_do_not_return_keep_nobody_waiting_until_they_do(
    start: Callable[..., InProcess], first: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(timeout_seconds=0.3)
    running.swap(table(1, first))
    held = hold(running, monkeypatch)
    ask = partial(running.client.post, "/predict", json={"rows": ROWS})
    assert ask().status_code == 504
    lane = running.plane.dispatcher._pools[held]
    for number in range(2, lane.workers + 1):
        assert ask().status_code == 504
        assert lane.pending == number
    refused = ask()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "held up by earlier requests" in refused.json()["error"]
    held.gate.set()
    wait_for(lambda: lane.pending == 0)
    assert ask().status_code == 200
