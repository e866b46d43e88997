"""What a controller meets at its edges: webhooks, Prometheus, evidence files, commands that come too late."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlflowkit.bundle import Bundle
from mlflowkit.cli.progress import describe
from mlflowkit.errors import ServiceError, UsageError
from mlflowkit.rollout import commands, requests, webhooks
from mlflowkit.rollout import state as states
from mlflowkit.rollout.evidence_reader import EvidenceReader, PrometheusPoller, query_instant
from mlflowkit.rollout.settings import Rollout, Webhook
from mlflowkit.rollout.state import Notify, Request
from mlflowkit.service_state import controller_lease, version_history
from mlflowkit.service_state.records import ReplicaReport, ServiceFiles, process_started, write_json
from mlflowkit.stages import deploy
from mlflowkit.values import Event, RoutingTable
from tests.support import rollout_drill as drill
from tests.support.gateways import InProcess
from tests.support.lending_bundle import table
from tests.support.waiting import wait_for


class Hook:
    """A real HTTP server; ``reply`` says with which status each request is answered, by its number."""

    def __init__(self, reply: Callable[[int], tuple[int, bytes]]) -> None:
        self.taken: list[tuple[dict[str, str], bytes]] = []
        taken = self.taken

        class Handler(BaseHTTPRequestHandler):
            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                taken.append(({name.lower(): value for name, value in self.headers.items()}, body))
                status, answer = reply(len(taken))
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_GET = _do

            def log_message(self, *arguments: Any) -> None:
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def hook() -> Iterator[Callable[..., Hook]]:
    made: list[Hook] = []

    def start(reply: Callable[[int], tuple[int, bytes]] = lambda number: (200, b"")) -> Hook:
        made.append(Hook(reply))
        return made[-1]

    yield start
    for one in made:
        one.server.shutdown()
        one.server.server_close()


class Clock:
    def __init__(self) -> None:
        self.now = 1_764_000_000.0

    def __call__(self) -> float:
        return self.now


def told(tmp_path: Path, *hooks: Webhook) -> ServiceFiles:
    """A service with one event that waits for each hook."""
    files = drill.set_up(tmp_path, drill.PLAN.model_copy(update={"webhooks": list(hooks)}))
    plan = Request.from_json(json.loads((files.folder / "request.json").read_bytes())).plan
    state = states.RolloutState("e1", "lending", plan, drill.CHAMPION, drill.CANDIDATE, phase="running")
    states.write(files, states.SavedRollout(state, ()))
    tell = Notify("started", "canary, step 1", "e1-started", 1_764_000_000.0, 0, 0.05)
    webhooks.enqueue(files, state, tell)
    webhooks.enqueue(files, state, tell)
    return files


def test_an_event_is_signed_fresh_at_every_attempt_and_told_once(
    tmp_path: Path, hook: Callable[..., Hook], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_KEY", "a-secret-key")
    taking = hook(lambda number: (503, b"") if number < 3 else (200, b""))
    files = told(tmp_path, Webhook(url=f"{taking.url}/x?token=hidden", secret_env="HOOK_KEY"))
    clock = Clock()
    courier = webhooks.WebhookSender(tmp_path, clock)
    for _ in range(6):
        courier.deliver()
        clock.now += 3.0
    assert len(taking.taken) == 3
    for headers, body in taking.taken:
        assert webhooks.verify(b"a-secret-key", body, headers, now=float(headers["x-mlkit-timestamp"]) + 10)
        assert not webhooks.verify(b"a-secret-key", body + b" ", headers, now=clock.now)
        assert not webhooks.verify(b"another", body, headers, now=clock.now)
        assert not webhooks.verify(b"a-secret-key", body, headers, now=clock.now + 1000)  # replayed later
        legacy = webhooks.legacy_signature(b"a-secret-key", body, headers["x-mlkit-timestamp"])
        assert headers["x-mlkit-signature"] == legacy
        assert headers["webhook-id"] == headers["x-mlkit-delivery"]
        assert headers["webhook-timestamp"] == headers["x-mlkit-timestamp"]
    assert len({headers["webhook-timestamp"] for headers, _ in taking.taken}) == 3
    assert {headers["x-mlkit-delivery"] for headers, _ in taking.taken} == {"e1-started-0"}
    body = json.loads(taking.taken[0][1])
    assert (body["event"], body["service"], body["candidate"], body["weight"]) == ("started", "lending", "2", 0.05)
    (delivery,) = webhooks.history(files)
    assert (delivery["ok"], delivery["attempts"], delivery["url"]) == (True, 3, f"{taking.url}/…")
    written = "".join(path.read_text() for path in tmp_path.rglob("*.json") if path.name != "request.json")
    assert "a-secret-key" not in written
    assert "a-secret-key" not in (files.folder / "request.json").read_text()


def test_a_secret_url_lies_nowhere(tmp_path: Path, hook: Callable[..., Hook], monkeypatch: pytest.MonkeyPatch) -> None:
    """Slack's secret is the path of the URL: given by url_env, no file has it, before, between and after attempts."""
    taking = hook(lambda number: (503, b"") if number == 1 else (200, b""))
    monkeypatch.setenv("HOOK_URL", f"{taking.url}/services/T0/hush?sig=hush")
    files = told(tmp_path, Webhook(url_env="HOOK_URL"), Webhook(url_env="NOBODY_SET_THIS"))
    clock = Clock()
    courier = webhooks.WebhookSender(tmp_path, clock)

    def written() -> str:
        return "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())

    assert "hush" not in written()
    for _ in range(3):
        courier.deliver()
        assert "hush" not in written()
        clock.now += 3.0
    assert len(taking.taken) == 2
    found = {one["id"]: one for one in webhooks.history(files)}
    assert (found["e1-started-0"]["ok"], found["e1-started-0"]["url"]) == (True, f"{taking.url}/…")
    assert "NOBODY_SET_THIS" in found["e1-started-1"]["error"]


def test_a_url_of_the_recipe_is_not_repeated_in_queued_events_and_results(
    tmp_path: Path, hook: Callable[..., Hook]
) -> None:
    files = told(tmp_path, Webhook(url="http://me:hush@127.0.0.1:9/hush?hush=1"))
    queued = [path for path in (files.folder / "webhooks").iterdir() if path.suffix == ".json"]
    assert len(queued) == 1
    assert "hush" not in queued[0].read_text()
    assert queued[0].stat().st_mode & 0o077 == 0
    clock = Clock()
    courier = webhooks.WebhookSender(tmp_path, clock)
    for _ in range(webhooks.MAX_ATTEMPTS):
        courier.deliver()
        assert not any("hush" in path.read_text() for path in (files.folder / "webhooks").glob("*.json"))
        clock.now += 200.0
    (result,) = webhooks.history(files)
    assert (result["ok"], result["url"]) == (False, "http://127.0.0.1:9/…")
    assert "hush" not in json.dumps(result)


def test_an_event_that_the_release_before_queued_is_sent(tmp_path: Path, hook: Callable[..., Hook]) -> None:
    taking = hook()
    files = drill.set_up(tmp_path)
    old = {"id": "e0-x-0", "url": f"{taking.url}/a", "secret_env": "", "event": "started", "body": "{}", "due": 0.0,
           "attempts": 1, "error": "HTTP 503"}  # fmt: skip
    files.write_json("webhooks/e0-x-0.json", old)
    webhooks.WebhookSender(tmp_path, Clock()).deliver()
    assert len(taking.taken) == 1
    assert webhooks.history(files)[0]["attempts"] == 2


def test_an_event_whose_rollout_was_replaced_is_recorded_as_not_sent(tmp_path: Path, hook: Callable[..., Hook]) -> None:
    taking = hook()
    files = told(tmp_path, Webhook(url=taking.url))
    saved = states.read(files)
    assert saved is not None
    states.write(files, states.SavedRollout(replace(saved.state, experiment="e2"), ()))
    webhooks.WebhookSender(tmp_path, Clock()).deliver()
    assert taking.taken == []
    assert "another rollout" in webhooks.history(files)[0]["error"]


class Dripping:
    """A receiver that sends a byte now and then, for ever: no read of it times out. ``tls`` drips in the handshake."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.stopped = threading.Event()
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._drip, args=(connection,), daemon=True).start()

    def _drip(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.sendall(b"\x16\x03\x03\x3f\xff" if self.tls else b"HTTP/1.1 200 OK\r\nx-a: ")
                while not self.stopped.wait(0.05):
                    connection.sendall(b"a")
            except OSError:
                return

    tls = False


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_receiver_that_drips_is_given_up_and_holds_up_nobody(
    tmp_path: Path, hook: Callable[..., Hook], monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr(webhooks, "DELIVERY_SECONDS", 1.0)
    taking, dripping = hook(), Dripping()
    dripping.tls = scheme == "https"
    slow = told(tmp_path, *[Webhook(url=f"{scheme}://127.0.0.1:{dripping.port}")] * 5)
    plan = Rollout(webhooks=[Webhook(url=taking.url)])
    other = ServiceFiles(slow.folder.parent / "zebra")
    other.write_json("service.json", slow.read_json("service.json"))
    state = states.RolloutState("e1", "zebra", plan, drill.CHAMPION, drill.CANDIDATE, phase="running")
    states.write(other, states.SavedRollout(state, ()))
    webhooks.enqueue(other, state, Notify("started", "", "e1-started", 1_764_000_000.0, 0, 0.05))
    with webhooks.WebhookSender(tmp_path, Clock()):
        wait_for(lambda: dripping.connections > 0)
        wait_for(lambda: webhooks.history(other))
        assert all(one["ok"] for one in webhooks.history(other))
        name = "webhooks/e1-started-0.json"
        wait_for(lambda: (slow.read_json(name) or {}).get("attempts"))
        assert "no reply within" in slow.read_json(name)["error"]
    dripping.stopped.set()
    dripping.server.close()


def test_what_is_not_delivered_is_recorded(tmp_path: Path, hook: Callable[..., Hook]) -> None:
    refusing = hook(lambda number: (404, b""))
    files = told(
        tmp_path,
        Webhook(url=refusing.url),
        Webhook(url=refusing.url, secret_env="NOBODY_SET_THIS"),
        Webhook(url="http://127.0.0.1:9"),
        Webhook(url=refusing.url, events=["promoted"]),
    )
    clock = Clock()
    courier = webhooks.WebhookSender(tmp_path, clock)
    for _ in range(webhooks.MAX_ATTEMPTS):
        courier.deliver()
        clock.now += 200.0
    found = {one["id"]: one for one in webhooks.history(files)}
    assert found["e1-started-0"]["error"] == "HTTP 404"
    assert found["e1-started-0"]["attempts"] == 1
    assert "NOBODY_SET_THIS" in found["e1-started-1"]["error"]
    assert found["e1-started-2"]["attempts"] == webhooks.MAX_ATTEMPTS
    assert not any(one["ok"] for one in found.values())
    assert len(found) == 3
    assert len(refusing.taken) == 1  # what cannot be signed is not sent
    assert list((files.folder / "webhooks").glob("*.json")) == []


def test_a_hook_that_hangs_keeps_no_rollout_waiting(tmp_path: Path, hook: Callable[..., Hook]) -> None:
    release = threading.Event()

    def hang(number: int) -> tuple[int, bytes]:
        release.wait(20)
        return 200, b""

    hanging = hook(hang)
    plan = drill.PLAN.model_copy(update={"webhooks": [Webhook(url=hanging.url)]})
    files = drill.set_up(tmp_path, plan)
    with webhooks.WebhookSender(tmp_path):
        drill.control(tmp_path, 0.3)
        assert drill.ended(files) is not None
        release.set()
        wait_for(lambda: len(webhooks.history(files)) == 3)


def test_prometheus_is_asked_and_what_it_does_not_say_is_not_a_number(hook: Callable[..., Hook]) -> None:
    vector = {"resultType": "vector", "result": [{"metric": {}, "value": [1.0, "0.25"]}]}
    answers = [
        {"status": "success", "data": vector},
        {"status": "success", "data": {"resultType": "scalar", "result": [1.0, "3"]}},
        {"status": "success", "data": {"resultType": "vector", "result": []}},
        {"status": "error"},
    ]
    server = hook(lambda number: (200, json.dumps(answers[min(number, 4) - 1]).encode()))
    found = [query_instant(server.url, "up") for _ in range(4)]
    assert found[:2] == [0.25, 3.0]
    assert all(math.isnan(value) for value in found[2:])
    assert math.isnan(query_instant("http://127.0.0.1:9", "up"))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_prometheus_leads_nowhere_else(hook: Callable[..., Hook], status: int) -> None:
    """A redirect to a service of this machine (the metadata of a cloud, say) is not followed."""
    vector = {"resultType": "scalar", "result": [1.0, "7"]}
    secret = hook(lambda number: (200, json.dumps({"data": vector}).encode()))

    class Redirecting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("location", f"{secret.url}/api/v1/query")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    assert math.isnan(query_instant(f"http://127.0.0.1:{server.server_address[1]}", "up"))
    assert secret.taken == []
    server.shutdown()
    server.server_close()


def test_prometheus_is_no_file_and_does_not_drip(tmp_path: Path) -> None:
    (tmp_path / "api" / "v1").mkdir(parents=True)
    (tmp_path / "api" / "v1" / "query").write_text('{"data": {"resultType": "scalar", "result": [1, "7"]}}')
    for url in (f"file://{tmp_path}", "ftp://127.0.0.1", "data:text/plain,", "gopher://127.0.0.1"):
        assert math.isnan(query_instant(url, "up"))
    dripping = Dripping()
    assert math.isnan(query_instant(f"http://127.0.0.1:{dripping.port}", "up", timeout=1.0))
    dripping.stopped.set()
    dripping.server.close()


def test_the_values_of_a_query_come_in_without_waiting(hook: Callable[..., Hook]) -> None:
    vector = {"resultType": "vector", "result": [{"metric": {}, "value": [1.0, "7"]}]}
    server = hook(lambda number: (200, json.dumps({"data": vector}).encode()))
    metric = {"metric": "prometheus", "url": server.url, "query": 'errors{v="{version}"}', "max": 9}
    plan = Rollout.model_validate({"strategy": "canary", "metrics": [metric]})
    state = states.RolloutState("e1", "lending", plan, drill.CHAMPION, drill.CANDIDATE)
    asked = PrometheusPoller()
    assert asked.values(state) == ((),)
    assert wait_for(lambda: asked.values(state)[0]) == (7.0,)


def test_evidence_that_is_damaged_counts_as_it_last_could_be_read(tmp_path: Path) -> None:
    files = drill.set_up(tmp_path)
    files.write_table(RoutingTable("lending", 4, (drill.CHAMPION,), "e1"))
    drill.answer_requests(files, 0.0)
    folder = EvidenceReader(files)
    evidence, changed = folder.read("e1")
    assert (evidence.of("champion").requests, changed) == (1000, True)
    assert folder.read("e1")[1] is False
    (files.folder / "evidence" / "r1.json").write_text("{")
    (files.folder / "evidence" / "r2.json").write_text('{"experiment": "e1", "epochs": 3}')
    evidence, _ = folder.read("e1")
    assert evidence.of("champion").requests == 1000
    assert folder.damaged == {"evidence/r1.json", "evidence/r2.json"}


def test_one_rollout_at_a_time_and_a_failed_version_only_when_somebody_asks(tmp_path: Path) -> None:
    files = drill.set_up(tmp_path)
    held = controller_lease.acquire(tmp_path)
    assert held is not None
    one = drill.controller(files, held)
    one.step()
    other = Request("e2", "lending", replace(drill.CANDIDATE, digest="d3", version="3"), drill.PLAN, time.time())
    with pytest.raises(ServiceError, match="version 2 is already being rolled out") as refused:
        requests.check(files, other)
    assert "mlkit rollout abort lending" in refused.value.hint
    commands.submit(files, "rollback", "smells")
    one.step()
    assert drill.ended(files) is not None
    with pytest.raises(ServiceError, match="cools down"):
        requests.check(files, other)
    requests.check(files, replace(other, plan=other.plan.model_copy(update={"cooldown_seconds": 0.0})))
    same = replace(other, candidate=drill.CANDIDATE, plan=other.plan.model_copy(update={"cooldown_seconds": 0.0}))
    with pytest.raises(ServiceError, match="was rolled back: smells"):
        requests.check(files, same)
    (gone,) = version_history.forget_rejections(files, "2")
    assert gone.digest == "d2"
    requests.check(files, same)


def test_a_run_that_meets_its_version_in_another_rollout_says_so(tmp_path: Path) -> None:
    files, held = drill.set_up(tmp_path), controller_lease.acquire(tmp_path)
    assert held is not None
    one = drill.controller(files, held)
    for _ in range(3):
        one.step()
    events: list[Event] = []
    context: Any = SimpleNamespace(progress=events.append, run="run2")

    def run(**changes: Any) -> str:
        plan = Rollout.model_validate({**drill.PLAN.model_dump(mode="json"), **changes})
        spec = deploy.Spec(name="lending", serve=deploy.ServeSection(service="lending", rollout=plan))
        return str(deploy._roll_out(spec, context, files, replace(drill.CANDIDATE, name="champion"))["rollout"])

    assert run() == "canary, step 1 of 3 mirroring 100 %"
    assert [event.kind for event in events] == ["progress"]
    told = run(strategy="ab", steps=[50])
    assert told.startswith("canary, step 1 of 3 mirroring 100 %; ")
    assert "a canary rollout that was requested before; the ab of this recipe was not started" in told
    (warning,) = [event.message for event in events if event.kind == "warning"]
    assert warning in describe(Event("deploy", "warning", warning))
    assert "canary" in warning
    assert "the ab of this recipe" in warning
    assert "mlkit rollout abort lending, mlkit rollout forget lending 2, then run again" in warning
    assert "the canary of this recipe has other steps, metrics or limits" in run(steps=[10])


def test_a_request_that_waits_is_neither_replaced_nor_removed_by_another(tmp_path: Path) -> None:
    files = drill.set_up(tmp_path)
    waiting = (files.folder / "request.json").read_bytes()
    other = Request("e2", "lending", replace(drill.CANDIDATE, digest="d3", version="3"), drill.PLAN, time.time())
    with pytest.raises(ServiceError, match="another run has just requested a rollout of lending"):
        requests.begin(files, other)
    assert (files.folder / "request.json").read_bytes() == waiting


def test_a_command_that_was_said_to_a_rollout_that_has_ended_is_void(tmp_path: Path) -> None:
    """A rollback told while the rollout was being rolled back must not go back one version more."""
    files = drill.set_up(tmp_path)
    version_history.record_champion(files, replace(drill.CHAMPION, version="0", digest="d0"), {}, 0.0)
    version_history.record_champion(files, drill.CHAMPION, {}, 1.0)
    held = controller_lease.acquire(tmp_path)
    assert held is not None
    one = drill.controller(files, held)
    one.step()
    first, second = commands.submit(files, "rollback"), commands.submit(files, "rollback")
    for _ in range(3):
        one.step()
    early, late = commands.read_reply(files, first.id), commands.read_reply(files, second.id)
    assert early is not None
    assert late is not None
    assert (early.ok, late.ok) == (True, False)
    assert "is over" in late.message
    table = files.table()
    assert table is not None
    assert table.champion.digest == "d1"
    commands.submit(files, "rollback")  # said now, with no rollout running, it does go back
    one.step()
    table = files.table()
    assert table is not None
    assert table.champion.digest == "d0"
    with pytest.raises(UsageError, match="no version before the present one"):
        commands.submit(files, "rollback")


def test_damaged_requests_and_commands_end_no_rollout(tmp_path: Path) -> None:
    files = drill.set_up(tmp_path)
    held = controller_lease.acquire(tmp_path)
    assert held is not None
    one = drill.controller(files, held)
    one.step()
    (files.folder / "request.json").write_text("{")
    (files.folder / "commands").mkdir()
    (files.folder / "commands" / "1.json").write_text('{"id": 1}')
    one.step()
    assert not (files.folder / "request.json").exists()
    assert list((files.folder / "commands").glob("*.json")) == []
    while drill.ended(files) is None:
        drill.answer_requests(files, 0.3)
        one.step()


def test_a_version_that_gateways_refuse_is_turned_down_and_one_that_nobody_could_take_is_not(tmp_path: Path) -> None:
    files = drill.set_up(tmp_path)
    held = controller_lease.acquire(tmp_path)
    assert held is not None
    one = drill.controller(files, held)
    works = one.deps.platform

    def refuse(table: RoutingTable) -> None:
        if len(table.variants) > 1:
            raise ServiceError("lending refuses the new version: its graph does not load")
        works.publish(table)

    object.__setattr__(one.deps, "platform", SimpleNamespace(publish=refuse))
    for _ in range(3):
        with pytest.raises(ServiceError):
            one.step()  # no gateway is up: it is tried again
    assert drill.ended(files) is None
    started = process_started(os.getpid()) or 0.0
    files.write_report(
        ReplicaReport("r1", os.getpid(), socket.gethostname(), started, 1, 1, "serving", 4, heartbeat=time.time())
    )
    one.step()
    state = drill.ended(files)
    assert state is not None
    assert (state.phase, state.by) == ("rolled_back", "policy")
    assert "its graph does not load" in state.reason
    assert list(version_history.rejections(files)) == ["d2"]


def test_a_rollout_that_ends_meanwhile_does_not_hide_what_is_wrong_with_its_version(
    tmp_path: Path, start: Callable[..., InProcess], first: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, held = drill.set_up(tmp_path), controller_lease.acquire(tmp_path)
    assert held is not None
    candidate = replace(drill.CANDIDATE, digest=first.manifest.identity, bundle=str(first.path))
    plan = drill.PLAN.model_copy(update={"webhooks": []})
    write_json(files.folder / "request.json", Request("e1", "lending", candidate, plan, time.time()).to_json())
    one = drill.controller(files, held)
    one.step()
    running = start()
    running.swap(table(1, first))  # of no variant that is called challenger
    spec = deploy.Spec(name="", serve=deploy.ServeSection(service="lending"))
    submit = commands.submit

    def too_late(*arguments: Any) -> None:
        submit(files, "rollback", "smells")
        one.step()
        submit(*arguments)

    monkeypatch.setattr(commands, "submit", too_late)
    with pytest.raises(ServiceError, match="as it was packaged: HTTP 404") as caught:
        deploy._check_sample_rows(spec, SimpleNamespace(), files, running.url, first, None)  # type: ignore[arg-type]
    assert "not aborted: no rollout of lending is running" in caught.value.message
    assert caught.value.hint == "mlkit status"
