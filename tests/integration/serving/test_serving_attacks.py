"""Attacks on the HTTP door: smuggling, trailers, heads that must not be served, clients that hold on."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import orjson
import pytest

from mlflowkit.bundle import Bundle
from mlflowkit.serving.auth import Keyring, make_key
from mlflowkit.serving.http import connection as listener
from mlflowkit.serving.http import server_load
from tests.support.gateways import InProcess
from tests.support.lending_bundle import ROWS, table
from tests.support.waiting import wait_for

BODY = orjson.dumps({"rows": ROWS})
LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
CHUNKED = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n%s\r\n%x\r\n%s\r\n0\r\n"


def head(more: bytes = b"", *, length: int = len(BODY)) -> bytes:
    return b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n%s\r\n" % (length, more)


def connect(running: InProcess) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", running.listener.port), timeout=20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def replies(connection: socket.socket) -> Iterator[tuple[int, dict[str, str], bytes]]:
    """Status, headers and body of every reply, until the gateway closes."""
    found = b""
    while True:
        while b"\r\n\r\n" not in found:
            part = connection.recv(65536)
            if not part:
                assert not found, found
                return
            found += part
        lines, _, found = found.partition(b"\r\n\r\n")
        status, *fields = lines.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        length = int(headers["content-length"])
        while len(found) < length:
            found += connection.recv(65536)
        body, found = found[:length], found[length:]
        yield int(status.split()[1]), headers, body


def exchange(running: InProcess, *packets: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """All replies to packets that are read one by one, and then to a request that asks to close."""
    with connect(running) as connection:
        for packet in (*packets, LIVE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")):
            with suppress(ConnectionError):
                connection.sendall(packet)
            settle(running)
        return list(replies(connection))


def settle(running: InProcess) -> None:
    """Another connection has been answered, twice: what was sent before on the first one has been read."""
    for _ in range(2):
        assert running.client.get("/v2/health/live").status_code == 200


@pytest.fixture
def guarded(start: Callable[..., InProcess], first: Bundle) -> InProcess:
    running = start()
    running.swap(table(1, first))
    return running


OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"


@pytest.mark.parametrize("cut", [40, 75, 110, 140], ids=str)
def test_an_upgrade_offer_in_two_packets_is_declined_and_the_body_is_a_body(guarded: InProcess, cut: int) -> None:
    sent = head(OFFER)
    answers = exchange(guarded, sent[:cut], sent[cut:], BODY)
    assert [status for status, _, _ in answers] == [200, 200]
    assert len(orjson.loads(answers[0][2])["predictions"]) == len(ROWS)


def test_a_body_that_looks_like_a_request_is_never_answered(guarded: InProcess) -> None:
    for offer in (
        OFFER,
        b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n",
        b"CONNECTION: upgrade\r\nUPGRADE: x\r\n",
    ):
        sent = head(offer, length=len(LIVE))
        for packets in ((sent[:40], sent[40:], LIVE), (sent, LIVE), (sent + LIVE,), (LIVE + sent, LIVE)):
            answers = exchange(guarded, *packets)
            before = len(packets) == 2 and packets[0].startswith(b"GET")
            assert [status for status, _, _ in answers] == [*([200] if before else []), 400, 200], (offer, packets)
            assert b"the body is not JSON" in answers[-2][2]


def test_pipelined_upgrade_offers_and_chunks_are_answered_in_order(guarded: InProcess) -> None:
    chunked = CHUNKED % (OFFER, len(BODY), BODY) + b"\r\n"
    answers = exchange(guarded, (head(OFFER) + BODY) * 3 + LIVE + chunked + LIVE)
    assert [status for status, _, _ in answers] == [200] * 7
    rows = [len(orjson.loads(body).get("predictions", ())) for _, _, body in answers]
    assert rows == [2, 2, 2, 0, 2, 0, 0]


def test_a_trailer_is_never_a_header(guarded: InProcess) -> None:
    trailers = b"x-request-id: stolen\r\nx-mlkit-variant: nobody\r\ncontent-encoding: gzip\r\nx-api-key: k\r\n\r\n"
    for piece in (len(trailers), 1):
        packets = [trailers[begin : begin + piece] for begin in range(0, len(trailers), piece)]
        with connect(guarded) as one:
            for packet in (CHUNKED % (b"", len(BODY), BODY), *packets):
                one.sendall(packet)
            status, headers, _ = next(replies(one))
        assert status == 200
        assert headers["x-mlkit-request-id"] != "stolen"


def test_trailers_are_bounded_in_bytes_and_number(guarded: InProcess) -> None:
    begin = CHUNKED % (b"", len(BODY), BODY)
    many = b"".join(b"t%d: v\r\n" % number for number in range(300)) + b"\r\n"
    assert exchange(guarded, begin, many)[0][0] == 431
    assert exchange(guarded, begin + many)[0][0] == 431
    assert [status for status, _, _ in exchange(guarded, begin, many[-90:])] == [200, 200]
    assert exchange(guarded, begin, b"t: ", *[b"x" * 30_000] * 4)[0][0] == 431
    long_extension = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n5;a="
    assert exchange(guarded, long_extension, *[b"x" * 30_000] * 4)[0][0] == 431


def memory() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_endless_trailers_take_no_memory(guarded: InProcess) -> None:
    before, sent = memory(), 0
    with connect(guarded) as one:
        one.sendall(
            b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
        )
        with suppress(ConnectionError):
            while sent < 40 << 20:
                sent += one.send(b"a: b\r\n" * 10_000)
    assert sent < 16 << 20, "it was read to its end"  # what the kernel's buffers hold is sent, whoever reads it
    assert memory() - before < 30 << 20
    settle(guarded)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nhost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n", 400),
        (b"GET /v2 HTTP/2.0\r\nhost: localhost\r\n\r\n", 505),
        (b"GET /v2 HTTP/1.2\r\nhost: localhost\r\n\r\n", 400),
        (b"GET /v2\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost:80\r\n\r\n", 405),
        (head(b"transfer-encoding: chunked\r\n") + BODY, 400),
        (b"POST /predict HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400),
        (CHUNKED.replace(b"chunked", b"gzip, chunked") % (b"", len(BODY), BODY) + b"\r\n", 501),
        (CHUNKED % (b"Transfer-Encoding: chunked\r\n", len(BODY), BODY) + b"\r\n", 400),
        (CHUNKED.replace(b"chunked", b"gzip") % (b"Transfer-Encoding: chunked\r\n", len(BODY), BODY) + b"\r\n", 501),
        (b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 300 + b"\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\nhost: localhost\r\na: " + b"b" * 70_000 + b"\r\n\r\n", 431),
    ],
)
def test_a_head_that_may_be_read_in_two_ways_is_refused_and_closed(
    guarded: InProcess, sent: bytes, status: int
) -> None:
    answers = exchange(guarded, sent)
    assert [code for code, _, _ in answers] == [status]
    assert answers[0][1]["connection"] == "close"
    assert orjson.loads(answers[0][2])["error"]
    assert [code for code, _, _ in exchange(guarded, LIVE + sent)] == [200, status]


def test_a_large_head_is_refused_however_it_is_cut_into_packets(guarded: InProcess) -> None:
    large = b"GET /v2 HTTP/1.1\r\nhost: localhost\r\na: " + b"b" * 70_000 + b"\r\n\r\n"
    for cut in (1, 100, 20_000, 69_000):
        assert [status for status, _, _ in exchange(guarded, LIVE + large[:cut], large[cut:])] == [200, 431]
    allowed = large.replace(b"b" * 70_000, b"b" * 60_000)
    assert [status for status, _, _ in exchange(guarded, LIVE + allowed[:20_000], allowed[20_000:])] == [200, 200, 200]


def test_http_1_0_needs_no_host_and_is_closed(guarded: InProcess) -> None:
    [(status, headers, _)] = exchange(guarded, b"GET /v2 HTTP/1.0\r\n\r\n")
    assert (status, headers["connection"]) == (200, "close")


def test_a_refusal_waits_for_the_answers_before_it(guarded: InProcess) -> None:
    answers = exchange(guarded, head() + BODY + LIVE + b"nonsense\r\n\r\n" + LIVE)
    assert [status for status, _, _ in answers] == [200, 200, 400]


def test_requests_that_run_ahead_of_their_answers_are_bounded(guarded: InProcess) -> None:
    answers = exchange(guarded, LIVE * 400)
    *served, refused = [status for status, _, _ in answers]
    assert (set(served), refused) == ({200}, 503)
    assert listener.MAX_PIPELINED < len(served) < 400
    settle(guarded)


def test_empty_lines_keep_no_connection_open(guarded: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "IDLE_SECONDS", 1.0)
    with connect(guarded) as one:
        one.sendall(LIVE)
        answers = replies(one)
        assert next(answers)[0] == 200
        one.settimeout(0.1)
        for _ in range(1000):
            try:
                one.sendall(b"\r\n")
                if not one.recv(1):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            raise AssertionError("still open")


def test_who_never_reads_is_cut_off(guarded: InProcess) -> None:
    big = orjson.dumps({"rows": ROWS * 4000})
    with ExitStack() as stack:
        for _ in range(4):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", guarded.listener.port))
            one.settimeout(0.5)
            with suppress(OSError):  # the gateway stops reading while nobody reads its replies
                one.sendall((head(length=len(big)) + big) * 40)
        settle(guarded)
        wait_for(lambda: len(guarded.listener._server.server_state.connections) <= 1, 60, "the connections' end")
    settle(guarded)


def test_one_client_cannot_take_every_connection(guarded: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_load, "MAX_CONNECTIONS", 20)
    monkeypatch.setattr(server_load, "MAX_CLIENT_CONNECTIONS", 10)
    with ExitStack() as stack:
        crowd = [stack.enter_context(connect(guarded)) for _ in range(40)]
        for one in crowd:
            with suppress(ConnectionError):
                one.sendall(LIVE)
        wait_for(lambda: len(guarded.listener._server.server_state.connections) == 10)
        other = stack.enter_context(socket.socket())
        other.bind(("127.0.0.2", 0))
        other.connect(("127.0.0.1", guarded.listener.port))
        other.sendall(LIVE)
        assert next(replies(other))[0] == 200
    wait_for(lambda: not guarded.listener._server.server_state.connections)


def test_where_all_connections_are_taken_an_idle_one_makes_room(
    guarded: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_load, "MAX_CONNECTIONS", 10)
    with ExitStack() as stack:
        for _ in range(10):
            one = stack.enter_context(connect(guarded))
            one.sendall(LIVE)
            assert next(replies(one))[0] == 200
        one = stack.enter_context(connect(guarded))
        one.sendall(LIVE)
        assert next(replies(one))[0] == 200


@pytest.mark.parametrize(
    "path", ["/v2/models/lending%2fready", "/v2%2Fhealth/live", "/v2/models/lending%2Fversions/1/ready"]
)
def test_an_encoded_slash_is_no_slash(guarded: InProcess, path: str) -> None:
    sent = LIVE.replace(b"/v2/health/live", path.encode())
    assert [status for status, _, _ in exchange(guarded, sent)] == [404, 200]
    spelled = LIVE.replace(b"/v2/health/live", b"/v2/models/%6cending/ready")
    assert [status for status, _, _ in exchange(guarded, spelled)] == [200, 200]


POST = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "evil.example:8080"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": ""}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "Text/Plain; charset=utf-8"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"host": "Models.Example.org", "origin": "https://models.example.org"}, 200),
        ({"content-type": "application/octet-stream"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_a_browser_cannot_be_made_to_use_a_gateway_without_keys(
    start: Callable[..., InProcess], first: Bundle, headers: dict[str, str], status: int
) -> None:
    running = start(allowed_hosts=["models.example.org"])
    running.swap(table(1, first))
    reply = running.client.post("/predict", content=BODY, headers={**POST, **headers})
    assert (reply.status_code, "error" in reply.json()) == (status, status != 200)
    reply = running.client.get("/metrics", headers=headers)
    assert reply.status_code == (421 if status == 421 else 200)


def test_with_keys_a_page_has_nothing_to_send_and_any_host_is_served(
    start: Callable[..., InProcess], first: Bundle
) -> None:
    running = start()
    running.swap(table(1, first))
    key, token = make_key(["infer"])
    running.plane.keys = Keyring((key,))
    foreign = {"host": "evil.example", "origin": "http://evil.example", "content-type": "text/plain"}
    assert running.client.post("/predict", content=BODY, headers=foreign).status_code == 401
    assert running.client.post("/predict", content=BODY, headers={**foreign, "x-api-key": token}).status_code == 200
