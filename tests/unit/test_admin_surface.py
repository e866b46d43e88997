"""The admin surface from outside: who may ask, what a command does, what is answered, where it listens."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest

from mlflowkit.report.rollout.rollout_page import admin_listener, page_renderers
from mlflowkit.rollout import commands
from mlflowkit.rollout.admin import admin_app, admin_server
from mlflowkit.rollout.admin.admin_app import MAX_BODY, SECURITY_HEADERS, AdminApp
from mlflowkit.rollout.admin.admin_server import AdminListener
from mlflowkit.rollout.commands import CommandReply
from mlflowkit.service_state.records import ServiceFiles, process_started, read_json, write_json
from mlflowkit.serving import auth
from tests.support.rollout_world import RolloutWorld
from tests.support.waiting import wait_for

JSON = {"content-type": "application/json"}
PAUSE = "/api/services/lending/rollout/pause"


T = TypeVar("T")


def admin_record(state: Path, service: str = "lending") -> dict[str, Any]:
    """Where the page of a service is, once somebody says so."""
    path = ServiceFiles(state / "services" / service).folder / "admin.json"
    found: dict[str, Any] = wait_for(lambda: read_json(path))
    return found


@dataclass
class Reply:
    code: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(endpoint: str, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
    """One request; ``host`` among the headers takes the place of the real one."""
    parts = urlsplit(endpoint)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host="host" in names, skip_accept_encoding=True)
        for name, value in names.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        reply = connection.getresponse()
        return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())
    finally:
        connection.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> RolloutWorld:
    return RolloutWorld(tmp_path_factory.mktemp("state")).controlled().begin().run(60)


@pytest.fixture(scope="module")
def endpoint(world: RolloutWorld) -> Iterator[str]:
    with admin_listener(world.state):
        yield admin_record(world.state)["endpoint"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/services/lending", "text/html"),
        ("/api/services", "application/json"),
        ("/api/services/lending", "application/json"),
        ("/metrics", "text/plain"),
        ("/assets/page.css", "text/css"),
        ("/assets/page.js", "text/javascript"),
    ],
)
def test_everything_is_answered_with_headers_that_keep_a_browser_safe(endpoint: str, path: str, kind: str) -> None:
    reply = ask(endpoint, "GET", path)
    assert reply.code == 200
    assert reply.headers["content-type"].startswith(kind)
    assert SECURITY_HEADERS.items() <= reply.headers.items()
    policy = reply.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy


def test_api_tells_what_the_page_shows(endpoint: str, world: RolloutWorld) -> None:
    body = ask(endpoint, "GET", "/api/services/lending").json
    assert body["rollout"]["phase"] == "running"
    assert [variant["name"] for variant in body["variants"]] == ["champion", "challenger"]
    assert body["admin"] == endpoint
    assert ask(endpoint, "GET", "/api/services").json["services"][0]["service"] == "lending"


@pytest.mark.parametrize("path", ["/services/nothing", "/api/services/nothing", "/assets/../page.py", "/x"])
def test_what_is_not_there_is_404_in_json(endpoint: str, path: str) -> None:
    reply = ask(endpoint, "GET", path)
    assert reply.code == 404
    assert reply.json["error"]
    assert SECURITY_HEADERS.items() <= reply.headers.items()


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "localhost.x:1"]
)
def test_name_that_was_made_to_point_here_reads_nothing(endpoint: str, host: str) -> None:
    reply = ask(endpoint, "GET", "/api/services", host=host)
    assert reply.code in (400, 421)
    assert b"lending" not in reply.body


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1", "[::1]:80"])
def test_names_of_this_machine_are_answered(endpoint: str, host: str) -> None:
    assert ask(endpoint, "GET", "/api/services", host=host).code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({**JSON, "origin": "http://evil.example"}, 403),
        ({**JSON, "origin": "null"}, 403),
        ({**JSON, "origin": "http://127.0.0.1:1"}, 403),
        ({**JSON, "sec-fetch-site": "cross-site"}, 403),
        ({**JSON, "sec-fetch-site": "same-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({}, 415),
    ],
)
def test_command_of_another_origin_is_refused_and_leaves_nothing(
    endpoint: str, world: RolloutWorld, headers: dict[str, str], code: int
) -> None:
    assert ask(endpoint, "POST", PAUSE, b"{}", **headers).code == code
    assert commands.pending(world.files) == ()


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        (PAUSE, b"{", 400),
        (PAUSE, b"[]", 400),
        (PAUSE, b'{"reason": 3}', 400),
        (PAUSE, b'{"reason": "a", "other": 1}', 400),
        (PAUSE, b'{"full": 1}', 400),
        (PAUSE, b"[" * MAX_BODY, 400),
        (PAUSE, json.dumps({"reason": "x" * 501}).encode(), 400),
        (PAUSE, b" " * (MAX_BODY + 1), 413),
        ("/api/services/lending/rollout/explode", b"{}", 404),
        ("/api/services/nothing/rollout/pause", b"{}", 404),
        (PAUSE, b'{"variant": "nobody"}', 409),
    ],
)
def test_command_that_makes_no_sense_is_refused_with_the_reason(
    endpoint: str, world: RolloutWorld, path: str, body: bytes, code: int
) -> None:
    reply = ask(endpoint, "POST", path, body, **JSON)
    assert reply.code == code
    assert reply.json["error"]
    assert commands.pending(world.files) == ()


def test_commands_are_posted_only(endpoint: str) -> None:
    assert ask(endpoint, "GET", PAUSE).code == 405
    assert ask(endpoint, "POST", "/services/lending", b"{}", **JSON).code == 405


def test_command_is_left_as_the_command_line_leaves_it_and_answered_by_the_controller(
    endpoint: str, world: RolloutWorld
) -> None:
    def control() -> None:
        [left] = wait_for(lambda: commands.pending(world.files))
        seen.append(left)
        commands.write_reply(
            world.files, CommandReply(left.id, ok=len(seen) == 1, message=f"heard {left.command}", hint="rest")
        )

    seen: list[commands.OperatorCommand] = []
    for code, words in ((200, "heard promote"), (409, "heard promote")):
        controller = threading.Thread(target=control)
        controller.start()
        body = json.dumps({"reason": "it is good", "full": True}).encode()
        reply = ask(endpoint, "POST", "/api/services/lending/rollout/promote", body, **JSON, origin=endpoint[:-17])
        controller.join()
        assert reply.code == code, reply.body
        assert words in reply.body.decode()
    assert (seen[0].command, seen[0].reason, seen[0].full) == ("promote", "it is good", True)
    assert commands.pending(world.files) == ()


def test_command_that_nobody_answers_stays_asked(endpoint: str, world: RolloutWorld) -> None:
    reply = ask(endpoint, "POST", PAUSE, b"", **JSON)
    assert reply.code == 202
    [left] = commands.pending(world.files)
    assert (left.id, left.command) == (reply.json["id"], "pause")
    commands.write_reply(world.files, CommandReply(left.id, ok=True, message=""))


def test_events_say_that_something_changed_and_end_when_the_page_goes(tmp_path: Path) -> None:
    world = RolloutWorld(tmp_path).begin()
    with admin_listener(tmp_path):
        parts = urlsplit(admin_record(tmp_path)["endpoint"])
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        connection.request("GET", "/api/services/lending/events")
        reply = connection.getresponse()
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.readline() == b"event: change\n"
        assert json.loads(reply.readline().removeprefix(b"data: ")) == {"epoch": world.table.epoch, "phase": "running"}
        world.run(10)
        lines = [reply.readline() for _ in range(3)]
        assert b"event: change\n" in lines
        begin = time.monotonic()
    assert time.monotonic() - begin < 10
    connection.close()


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[tuple[str, str, str]]:
    """The endpoint of a service with keys beside one without, a key that may administer, and one that may only ask."""
    admin, token = auth.make_key(["admin"])
    user, other = auth.make_key(["infer", "feedback"])
    auth.write_keys(tmp_path / "keys.json", [admin, user])
    RolloutWorld(tmp_path, settings={"keys": str(tmp_path / "keys.json")}).begin()
    RolloutWorld(tmp_path, "open")
    with admin_listener(tmp_path):
        yield admin_record(tmp_path)["endpoint"], token, other


def test_service_with_keys_wants_one_with_the_scope_admin(keyed: tuple[str, str, str]) -> None:
    endpoint, token, other = keyed
    basic = base64.b64encode(f"me:{token}".encode()).decode()
    for path in ("/services/lending", "/api/services/lending", "/api/services/lending/events"):
        refused = ask(endpoint, "GET", path)
        assert refused.code == 401
        assert refused.headers["www-authenticate"].startswith("Basic ")
        assert ask(endpoint, "GET", path, authorization=f"Bearer {other}").code == 403
        assert ask(endpoint, "GET", path, authorization="Basic %%%").code == 401
    for good in ({"authorization": f"Bearer {token}"}, {"x-api-key": token}, {"authorization": f"Basic {basic}"}):
        assert ask(endpoint, "GET", "/api/services/lending", **good).code == 200
    assert ask(endpoint, "POST", PAUSE, b"{}", **JSON).code == 401
    assert ask(endpoint, "GET", "/assets/page.css").code == 200


def test_lists_and_metrics_leave_out_what_the_key_does_not_reach(keyed: tuple[str, str, str]) -> None:
    endpoint, token, _ = keyed
    for path in ("/", "/api/services", "/metrics"):
        assert b"lending" not in ask(endpoint, "GET", path).body
        assert b"lending" in ask(endpoint, "GET", path, **{"x-api-key": token}).body
    assert "lending" not in ask(endpoint, "GET", "/api/services/nothing").json["error"]


def test_event_stream_ends_when_its_key_is_revoked(tmp_path: Path) -> None:
    key, token = auth.make_key(["admin"])
    path = tmp_path / "keys.json"
    auth.write_keys(path, [key])
    RolloutWorld(tmp_path, settings={"keys": str(path)}).begin()
    with admin_listener(tmp_path):
        parts = urlsplit(admin_record(tmp_path)["endpoint"])
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        connection.request("GET", "/api/services/lending/events", headers={"x-api-key": token})
        reply = connection.getresponse()
        assert reply.readline() == b"event: change\n"
        auth.write_keys(path, [])
        while line := reply.readline():  # times out after 30 s if the stream goes on
            assert not line.startswith(b": keep-alive")
        connection.close()


def test_half_open_connections_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_server, "MAX_CONNECTIONS", 20)
    RolloutWorld(tmp_path).begin()
    with admin_listener(tmp_path):
        endpoint = admin_record(tmp_path)["endpoint"]
        parts = urlsplit(endpoint)
        held = []
        for _ in range(60):
            half = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30)
            half.sendall(b"GET / HTTP/1.1\r\nhost: ")
            held.append(half)
        for _ in range(5):
            assert ask(endpoint, "GET", "/api/services").code == 200
        for half in held:
            half.close()


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nhost: x", b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\nGET"]
)
def test_head_that_does_not_come_closes_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(admin_server, "HEADER_SECONDS", 0.3)
    RolloutWorld(tmp_path).begin()
    with admin_listener(tmp_path):
        parts = urlsplit(admin_record(tmp_path)["endpoint"])
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60) as half:
            half.sendall(sent)
            with contextlib.suppress(ConnectionResetError):
                while half.recv(65536):  # times out if it stays open
                    pass


def test_command_whose_body_does_not_come_is_408(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_app, "BODY_SECONDS", 0.2)
    RolloutWorld(tmp_path).begin()
    with admin_listener(tmp_path):
        parts = urlsplit(admin_record(tmp_path)["endpoint"])
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30) as slow:
            head = (
                f"POST {PAUSE} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 9\r\n"
            )
            slow.sendall(f"{head}\r\n{{".encode())
            assert slow.recv(4096).startswith(b"HTTP/1.1 408")


def test_key_that_was_revoked_is_refused_at_once(tmp_path: Path) -> None:
    key, token = auth.make_key(["admin"])
    path = tmp_path / "keys.json"
    auth.write_keys(path, [key])
    RolloutWorld(tmp_path, settings={"keys": str(path)})
    with admin_listener(tmp_path):
        endpoint = admin_record(tmp_path)["endpoint"]
        assert ask(endpoint, "GET", "/api/services/lending", **{"x-api-key": token}).code == 200
        auth.write_keys(path, [])
        os.utime(path, ns=(1, 1))
        assert ask(endpoint, "GET", "/api/services/lending", **{"x-api-key": token}).code == 401
        path.unlink()
        gone = ask(endpoint, "GET", "/api/services/lending", **{"x-api-key": token})
        assert gone.code == 503
        assert token not in gone.body.decode()


def test_nothing_listens_beyond_loopback_without_keys(tmp_path: Path) -> None:
    RolloutWorld(tmp_path)
    with AdminListener(tmp_path, AdminApp(tmp_path, page_renderers(), host="0.0.0.0"), host="0.0.0.0"):
        record = admin_record(tmp_path)
    assert record["endpoint"] == ""
    assert "no API keys" in record["message"]


def test_services_share_a_free_port_and_have_their_own_where_they_ask_for_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    RolloutWorld(tmp_path, "one")
    RolloutWorld(tmp_path, "two")
    RolloutWorld(tmp_path, "own", settings={"admin_port": port})
    with admin_listener(tmp_path):
        places = {name: urlsplit(admin_record(tmp_path, name)["endpoint"]) for name in ("one", "two", "own")}
    assert places["one"].port == places["two"].port
    assert places["own"].port == port
    assert all(place.path == f"/services/{name}" for name, place in places.items())
    assert not (tmp_path / "services" / "one" / "admin.json").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"endpoint": 3}'])
def test_damaged_place_of_the_page_is_written_anew(tmp_path: Path, content: str) -> None:
    path = RolloutWorld(tmp_path).files.folder / "admin.json"
    path.write_text(content)
    with admin_listener(tmp_path):
        wait_for(lambda: path.read_text().startswith("{\n") and read_json(path)["endpoint"])
        assert ask(read_json(path)["endpoint"], "GET", "/").code == 200


def test_port_that_is_taken_is_told_and_had_as_soon_as_it_is_free(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        RolloutWorld(tmp_path, settings={"admin_port": port})
        with admin_listener(tmp_path):
            record = admin_record(tmp_path)
            assert record["endpoint"] == ""
            assert f":{port}" in record["message"]
            taken.close()
            wait_for(lambda: admin_record(tmp_path)["endpoint"])
            assert ask(admin_record(tmp_path)["endpoint"], "GET", "/").code == 200


def test_page_keeps_its_port_over_a_restart_and_the_place_of_another_process_is_left(tmp_path: Path) -> None:
    world = RolloutWorld(tmp_path)
    path = world.files.folder / "admin.json"
    with admin_listener(tmp_path):
        first = admin_record(tmp_path)
    write_json(path, {**first, "pid": 0, "started": 0.0})  # as a process that was killed leaves it
    with admin_listener(tmp_path):
        second = wait_for(lambda: found if (found := admin_record(tmp_path))["pid"] else None)
        assert second["endpoint"] == first["endpoint"]
    other = {**first, "pid": 1, "started": process_started(1)}
    write_json(path, other)
    RolloutWorld(tmp_path, "zz")  # comes after it, by name
    with admin_listener(tmp_path):
        assert admin_record(tmp_path, "zz")["endpoint"]
    assert read_json(path) == other
