"""Mirroring to shadows and the road to isolated versions, with real bundles and sockets, without Ray."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.adapters.ray_serve import isolated, wire
from mlflowkit.adapters.ray_serve.isolated import FrameServer, write_address
from mlflowkit.adapters.ray_serve.remote import RayRemoteModels
from mlflowkit.bundle import Bundle, Signature, TensorSpec
from mlflowkit.errors import EngineError, ServiceError
from mlflowkit.graphs.candidates import Engine
from mlflowkit.ports import RemoteModels, Runtime, Session
from mlflowkit.service_state.records import Desired, GatewaySettings, ServiceFiles
from mlflowkit.serving.http.gateway import Gateway
from mlflowkit.serving.http.http_server import HttpServer
from mlflowkit.serving.inference import shadow as mirroring
from mlflowkit.serving.inference.answer_records import MirrorRecord, Record
from mlflowkit.serving.inference.batching import LostError
from mlflowkit.serving.inference.counters import VariantCounter
from mlflowkit.serving.inference.data_plane import DataPlane
from mlflowkit.serving.inference.gateway_metrics import Telemetry
from mlflowkit.serving.inference.router import is_mirrored
from mlflowkit.serving.inference.shadow import ShadowMirror, translate
from mlflowkit.serving.inference.variants import Versions, load_table
from mlflowkit.serving.protocol.http_error import RequestError
from mlflowkit.serving.protocol.input_schema import Schema
from mlflowkit.values import RoutingTable, Variant
from tests.support.lending_bundle import ROWS, expected
from tests.support.waiting import wait_for

Arrays = Mapping[str, np.ndarray]


class Kept:
    """A tap that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.mirrored: list[MirrorRecord] = []

    def answered(self, record: Record) -> None:
        self.records.append(record)

    def compared(self, mirrored: MirrorRecord) -> None:
        self.mirrored.append(mirrored)

    def refused(self, version: str, error: RequestError) -> None:
        pass


class Mirroring:
    """A gateway in this process that mirrors to the shadows of its table."""

    def __init__(self, *, deadline: float = 5.0) -> None:
        self.tap = Kept()
        self.versions = Versions()
        mirror = ShadowMirror(self.versions, self.tap, deadline=deadline)
        telemetry = Telemetry("lending", "test")
        self.plane = DataPlane(GatewaySettings("lending"), self.versions, telemetry, self.tap, mirror)
        self.listener = HttpServer(Gateway(self.plane), "127.0.0.1", 0)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.listener.port}", timeout=20)

    def swap(
        self, epoch: int, *variants: Variant, runtime: Runtime | None = None, remotes: RemoteModels | None = None
    ) -> None:
        table = RoutingTable("lending", epoch, variants, experiment="e", salt="salt")
        self.versions.activate(load_table(table, runtime or OnnxRuntime(), 1, remotes=remotes))

    def counter(self, name: str) -> VariantCounter:
        assert self.versions.active is not None
        return self.versions.active.counters[name]

    def ask(self, count: int) -> list[str]:
        """Ask; every answer must be the champion's. Returns the ids."""
        ids = []
        for _ in range(count):
            reply = self.client.post("/predict", json={"rows": ROWS})
            assert (reply.status_code, reply.headers["x-mlkit-variant"]) == (200, "champion")
            ids.append(reply.headers["x-mlkit-request-id"])
        return ids

    def close(self) -> None:
        self.client.close()
        self.listener.stop()
        self.plane.close()


@pytest.fixture
def mirroring_gateway() -> Iterator[Mirroring]:
    world = Mirroring()
    yield world
    world.close()


def variant(name: str, bundle: Bundle, role: str = "champion", **more: object) -> Variant:
    weight = 1.0 if role == "champion" else 0.0
    result = Variant(name, bundle.manifest.version, bundle.manifest.identity, str(bundle.path), weight=weight)
    return replace(result, role=role, **more)  # type: ignore[arg-type]


class Planned:
    """Loads graphs with ONNX Runtime; sessions of one bundle go through ``plan`` first."""

    def __init__(self, of: Bundle, plan: Callable[[Arrays], None]) -> None:
        self._of, self._plan = of, plan

    def load(self, model: Path, *, threads: int = 1, engine: Engine | None = None) -> Session:
        session = OnnxRuntime().load(model, threads=threads, engine=engine)
        return PlannedSession(session, self._plan) if model.parent == self._of.path else session


class PlannedSession:
    def __init__(self, session: Session, plan: Callable[[Arrays], None]) -> None:
        self._session, self._plan = session, plan

    def run(self, inputs: Arrays) -> Arrays:
        self._plan(inputs)
        return self._session.run(inputs)


# ---------------------------------------------------------------------------------------------------------- shadows


def test_each_shadow_answers_the_requests_that_its_sampling_takes(
    mirroring_gateway: Mirroring, first: Bundle, second: Bundle
) -> None:
    world = mirroring_gateway
    world.swap(
        1, variant("champion", first), variant("whole", second, "shadow"),
        variant("part", second, "shadow", sampling=0.3),
    )  # fmt: skip
    ids = world.ask(60)
    table = world.versions.active.table  # type: ignore[union-attr]
    part = {number for number in ids if is_mirrored(table, "part", 0.3, number)}
    assert 0 < len(part) < 60
    wait_for(lambda: len(world.tap.mirrored) == 60 + len(part))
    assert {one.record.id for one in world.tap.mirrored if one.shadow == "part"} == part
    truth, other = (expected(bundle.path, ROWS)["probabilities"] for bundle in (second, first))
    for one in world.tap.mirrored:
        assert one.error == ""
        assert one.answers is not None
        np.testing.assert_allclose(one.answers["probabilities"], truth, rtol=1e-5)
        np.testing.assert_allclose(one.record.answers["probabilities"], other, rtol=1e-5)
        assert one.version == second.manifest.version
    whole, some = world.counter("whole"), world.counter("part")
    assert (whole.mirrored, whole.dropped, whole.requests, whole.rows, whole.errors) == (60, 0, 60, 120, 0)
    assert (some.mirrored, some.requests) == (len(part), len(part))
    assert sum(whole.latency) == 0


def test_a_hung_shadow_is_counted_and_costs_nothing_else(
    first: Bundle, second: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirroring, "MAX_QUEUED", 8)
    monkeypatch.setattr(mirroring, "PAUSE_SECONDS", 0.01)
    release, hang = threading.Event(), threading.Event()
    world = Mirroring(deadline=0.05)
    try:
        runtime = Planned(second, lambda inputs: (hang.is_set() and release.wait()) or None)
        world.swap(1, variant("champion", first), variant("shadow", second, "shadow"), runtime=runtime)
        hang.set()
        world.ask(1)
        counter = world.counter("shadow")
        wait_for(lambda: counter.errors == 1)
        assert world.tap.mirrored[0].answers is None
        assert world.tap.mirrored[0].error == "no answer within 0.05 s"
        monkeypatch.setattr(mirroring, "PAUSE_SECONDS", 60.0)  # until the next failure
        world.ask(40)
        wait_for(lambda: counter.dropped > 0)
        assert counter.mirrored == 41
        assert counter.requests - counter.errors == 0
        assert world.tap.mirrored[-1].error in ("the call before has not come back", "no answer within 0.05 s")
    finally:
        release.set()
        world.close()


def test_a_bad_row_is_the_only_one_without_a_shadows_answer(
    mirroring_gateway: Mirroring, first: Bundle, second: Bundle
) -> None:
    def picky(inputs: Arrays) -> None:
        if (inputs["numeric"] == 13).any():
            raise EngineError("thirteen")

    world = mirroring_gateway
    runtime = Planned(second, picky)
    world.swap(1, variant("champion", first), variant("shadow", second, "shadow"), runtime=runtime)

    def ask(age: int) -> str:
        reply = world.client.post("/predict", json={"rows": [{**ROWS[0], "age": age}]})
        assert reply.status_code == 200
        return reply.headers["x-mlkit-request-id"]

    ids = {age: ask(age) for age in range(10, 20)}
    wait_for(lambda: len(world.tap.mirrored) == 10)
    assert {one.record.id: one.error for one in world.tap.mirrored if one.error} == {ids[13]: "thirteen"}


def test_what_waits_for_a_shadow_that_leaves_is_dropped_and_what_stays_is_not_lost(
    mirroring_gateway: Mirroring, first: Bundle, second: Bundle
) -> None:
    world = mirroring_gateway
    gate = threading.Event()
    busy = threading.Event()
    warm = threading.Event()

    def wait(inputs: Arrays) -> None:
        if warm.is_set():
            busy.set()
            gate.wait(20)

    runtime = Planned(second, wait)
    champion, leaves, stays = variant("champion", first), variant("leaves", second, "shadow"), None
    world.swap(1, champion, leaves, runtime=runtime)
    warm.set()
    world.ask(1)
    assert busy.wait(10)
    world.ask(5)
    before = world.counter("leaves")
    stays = variant("stays", first, "shadow")
    world.swap(2, champion, stays, runtime=runtime)
    world.ask(3)
    assert (before.mirrored, before.dropped) == (6, 5)
    gate.set()
    wait_for(lambda: before.requests == 1)
    wait_for(lambda: world.counter("stays").requests == 3)
    world.swap(3, champion, replace(stays, sampling=0.999999), runtime=runtime)
    world.ask(2)
    wait_for(lambda: len([one for one in world.tap.mirrored if one.shadow == "stays"]) == 5)


def test_inputs_are_put_together_anew_for_a_shadow_of_another_signature() -> None:
    def schema(*tensors: TensorSpec) -> Schema:
        output = TensorSpec(name="prediction", datatype="FP32", shape=(-1,))
        return Schema(Signature(task="regression", inputs=tensors, outputs=(output,)))

    numeric = TensorSpec(name="numeric", datatype="FP32", shape=(-1, 3), columns=("a", "b", "c"))
    words = TensorSpec(name="words", datatype="BYTES", shape=(-1, 1), columns=("w",))
    given = {"numeric": np.array([[1, 2, np.nan]], dtype=np.float32), "words": np.array([["x"]], dtype=object)}
    swapped = TensorSpec(name="n", datatype="FP64", shape=(-1, 2), columns=("c", "a"))
    text = TensorSpec(name="t", datatype="BYTES", shape=(-1, 1), columns=("w",))
    translated = translate(given, schema(numeric, words), schema(swapped, text))
    np.testing.assert_array_equal(translated["n"], [[np.nan, 1]])
    assert translated["n"].dtype == np.float64
    assert translated["t"].tolist() == [["x"]]
    lacking = schema(TensorSpec(name="n", datatype="FP32", shape=(-1, 1), columns=("d",)))
    with pytest.raises(EngineError, match="no column d"):
        translate(given, schema(numeric, words), lacking)
    other = schema(TensorSpec(name="n", datatype="FP32", shape=(-1, 1), columns=("w",)))
    with pytest.raises(EngineError, match="column w is BYTES in the request and FP32 here"):
        translate(given, schema(numeric, words), other)


# ----------------------------------------------------------------------------------------------- isolated versions


_NUMBERS = st.sampled_from([np.float32, np.float64, np.int64, np.int32, np.bool_, np.uint8])
_SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
_TENSORS = st.one_of(
    _NUMBERS.flatmap(lambda dtype: arrays.arrays(dtype, _SHAPES)),
    arrays.arrays(object, _SHAPES, elements=st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), _TENSORS, max_size=4))
def test_a_frame_brings_back_what_was_packed(tensors: dict[str, np.ndarray]) -> None:
    frame = wire.pack({"rows": 1}, {name: array.T for name, array in tensors.items()})
    head, body = wire.sizes(frame[:8])
    assert len(frame) == 8 + head + body
    _, decoded = wire.unpack(frame[8 : 8 + head], frame[8 + head :])
    assert list(decoded) == list(tensors)
    for name, array in tensors.items():
        assert decoded[name].dtype == array.dtype
        np.testing.assert_array_equal(decoded[name], array.T)


@given(st.binary(max_size=60), st.binary(max_size=20))
def test_what_is_no_frame_is_an_engine_error(head: bytes, body: bytes) -> None:
    try:
        wire.unpack(head, body)
    except EngineError:
        return


class Apart:
    """An isolated version that this process serves over a socket, and a service's folder that says where."""

    def __init__(self, folder: Path, bundle: Bundle, session: Session) -> None:
        self.files = ServiceFiles(folder / "services" / "lending")
        self.files.write_desired(
            Desired(1, True, GatewaySettings("lending", timeout_seconds=2.0, isolated_max_batch=16))
        )
        self.server = FrameServer(session, bundle.manifest.identity, "127.0.0.1")
        self.address_path = self.files.folder / "isolated" / bundle.manifest.identity[:16] / "r1.json"
        write_address(self.files, bundle.manifest.identity, "r1", self.server.address)
        self.variant = variant("challenger", bundle, "challenger", placement="isolated")
        self.remotes = RayRemoteModels(self.files.folder)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


def inputs(count: int) -> Arrays:
    return {
        "numeric": np.array([[20 + index, 1000.0, 5.0] for index in range(count)], dtype=np.float32),
        "categorical": np.array([["36 months", "car"]] * count, dtype=object),
    }


def test_calls_to_an_isolated_version_are_answered_in_batches_and_each_with_its_own(
    tmp_path: Path, first: Bundle
) -> None:
    session = OnnxRuntime().load(first.model)
    seen: list[int] = []
    counted = PlannedSession(session, lambda given: seen.append(len(given["numeric"])))
    apart = Apart(tmp_path, first, counted)
    truth = session.run(inputs(40))["probabilities"]

    async def test() -> None:
        remote = apart.remotes.connect("lending", apart.variant, 5.0)
        batch = inputs(40)
        parts = [{name: array[index : index + 1] for name, array in batch.items()} for index in range(40)]
        replies = await asyncio.gather(*(remote.run(part, 1) for part in parts))
        for index, answers in enumerate(replies):
            np.testing.assert_allclose(answers["probabilities"], truth[index : index + 1], rtol=1e-5)
            assert answers["label"].dtype == object
        assert sum(seen) == 40
        assert max(seen) == 16
        assert len(seen) < 10

    run(test)


def test_a_version_that_is_not_up_is_waited_for_only_when_that_was_asked(tmp_path: Path, first: Bundle) -> None:
    apart = Apart(tmp_path, first, OnnxRuntime().load(first.model))
    apart.address_path.rename(tmp_path / "away.json")
    with pytest.raises(ServiceError, match=r"is not up .* no process has started"):
        apart.remotes.connect("lending", apart.variant, 0.2)

    async def test() -> None:
        remote = apart.remotes.connect("lending", apart.variant)
        with pytest.raises(EngineError, match="no process has started"):
            await remote.run(inputs(1), 1)
        (tmp_path / "away.json").rename(apart.address_path)
        while True:
            try:
                answers = await remote.run(inputs(1), 1)
                break
            except EngineError:
                await asyncio.sleep(0.02)
        assert len(answers["label"]) == 1

    run(test)


def test_a_call_that_does_not_come_back_is_given_up_and_the_next_fails_at_once(tmp_path: Path, first: Bundle) -> None:
    release = threading.Event()
    stuck = PlannedSession(OnnxRuntime().load(first.model), lambda given: release.wait(30) and None)
    apart = Apart(tmp_path, first, stuck)

    async def test() -> None:
        remote = apart.remotes.connect("lending", apart.variant, 5.0)
        with pytest.raises(EngineError, match="no answer within 1 s"):
            await remote.run(inputs(1), 1)
        with pytest.raises(EngineError, match="has no process that answers: no answer within 1 s"):
            await remote.run(inputs(1), 1)

    run(test)
    release.set()


def test_without_the_token_nothing_is_answered_and_the_token_is_its_owners(tmp_path: Path, first: Bundle) -> None:
    apart = Apart(tmp_path, first, OnnxRuntime().load(first.model))
    assert stat.S_IMODE(apart.address_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(apart.address_path.parent.stat().st_mode) == 0o700
    address = apart.server.address
    openings = (
        wire.pack({"token": "0" * 64}),
        wire.pack({"token": "é" * 64}),
        wire.pack({"token": "\0"}),
        wire.pack({"rows": 1}, inputs(1)),
        wire.PREFIX.pack(1 << 31, 1 << 31),
        wire.PREFIX.pack(100_000, 0),
        b"GET / HTTP/1.1\r\n\r\n",
        wire.pack({}),
    )
    for opening in openings:
        with socket.create_connection((address.host, address.port), 5) as connection:
            # The server may hang up before the opening is whole: that is an answer too.
            with contextlib.suppress(OSError):
                connection.sendall(opening)
                connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
    assert isolated.unreachable_reason(address, first.manifest.identity) == ""
    assert isolated.unreachable_reason(replace(address, token="x"), first.manifest.identity) != ""
    assert isolated.unreachable_reason(address, "other") == "another version answers there"


class Impostor:
    """Another user's program on the port of a process that died: it says what it is told, and keeps what it hears."""

    def __init__(self, *replies: dict[str, Any]) -> None:
        self.heard = b""
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.replies = replies
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.server.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(5)
                    for reply in self.replies:
                        self.heard += connection.recv(65536)
                        connection.sendall(wire.pack(reply))
                    self.heard += connection.recv(65536)


@pytest.mark.parametrize("replies", ["digest", "proof", "echo"])
def test_who_takes_over_a_port_learns_no_token_and_is_not_believed(tmp_path: Path, first: Bundle, replies: str) -> None:
    identity, nonce = first.manifest.identity, "a" * 32
    says = {
        "digest": ({"digest": identity}, {"digest": identity}),
        "proof": ({"nonce": nonce, "proof": "0" * 64}, {"digest": identity}),
        "echo": ({"nonce": nonce, "proof": wire.prove("guess", "model", nonce, nonce)}, {"digest": identity}),
    }
    apart = Apart(tmp_path, first, OnnxRuntime().load(first.model))
    impostor = Impostor(*says[replies])
    address = replace(apart.server.address, port=impostor.port)
    assert isolated.unreachable_reason(address, identity) != ""
    write_address(apart.files, identity, "r1", address)

    async def test() -> None:
        session = apart.remotes.connect("lending", apart.variant)
        with pytest.raises(LostError):
            await session.run(inputs(1), 1)

    run(test)
    impostor.server.close()
    assert impostor.heard
    assert address.token.encode() not in impostor.heard
    assert b"36 months" not in impostor.heard  # nor any row


def test_odd_handshakes_end_their_connection_and_nothing_else(
    tmp_path: Path, first: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    uncaught: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", uncaught.append)
    server = Apart(tmp_path, first, OnnxRuntime().load(first.model)).server
    good = {"nonce": "a" * 32}
    for opening, reply in (
        ({"nonce": "é" * 16}, {"proof": "é" * 64}),
        (good, {"proof": 5}),
        (good, {"proof": None}),
        (good, {"proof": ["a"]}),
        (good, {}),
        ({"nonce": 5}, {}),
        ({"nonce": ""}, {}),
        ({"token": server.address.token}, {}),
    ):
        with socket.create_connection((server.address.host, server.address.port), 5) as connection:
            connection.sendall(wire.pack(opening))
            with contextlib.suppress(OSError):
                connection.sendall(wire.pack(reply))
                connection.shutdown(socket.SHUT_WR)
            received = b""
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    received += part
            assert b"digest" not in received
    assert uncaught == []
    assert isolated.unreachable_reason(server.address, first.manifest.identity) == ""


def test_strangers_keep_no_gateway_out(tmp_path: Path, first: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """More connections that say nothing than there is room for, opened before and meanwhile."""
    monkeypatch.setattr(isolated, "HANDSHAKE_SECONDS", 30.0)
    server = Apart(tmp_path, first, OnnxRuntime().load(first.model)).server
    held = []
    for _ in range(2):
        for _ in range(isolated.MAX_CONNECTIONS):
            held.append(socket.create_connection((server.address.host, server.address.port), 5))
            held[-1].sendall(b"\0")
        assert isolated.unreachable_reason(server.address, first.manifest.identity) == ""
    for connection in held[: -isolated.MAX_STRANGERS]:  # cut off long before their handshake is late
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    for connection in held:
        connection.close()
    server.check()


def test_a_handshake_that_drips_ends_at_its_deadline(
    tmp_path: Path, first: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "HANDSHAKE_SECONDS", 0.5)
    server = Apart(tmp_path, first, OnnxRuntime().load(first.model)).server
    with socket.create_connection((server.address.host, server.address.port), 0.05) as slow:
        ended = False
        for _ in range(600):  # thirty seconds
            try:
                slow.sendall(b"\0" if not ended else b"")
                ended = slow.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
            if ended:
                break
        assert ended


def test_a_machine_without_descriptors_is_waited_for(tmp_path: Path, first: Bundle) -> None:
    server = Apart(tmp_path, first, OnnxRuntime().load(first.model)).server
    listener, failures = server._listener, [errno.EMFILE, errno.ECONNABORTED]

    class Failing:
        def accept(self) -> Any:
            if failures:
                raise OSError(failures.pop(), "no descriptor")
            return listener.accept()

    server._listener = Failing()  # type: ignore[assignment]
    for _ in range(3):
        assert isolated.unreachable_reason(server.address, first.manifest.identity) == ""
    assert failures == []
    server.check()


def test_a_gateway_without_a_way_to_isolated_versions_says_so(first: Bundle, second: Bundle) -> None:
    challenger = variant("challenger", second, "challenger", placement="isolated")
    with pytest.raises(ServiceError, match="is isolated"):
        load_table(RoutingTable("lending", 1, (variant("champion", first), challenger)), OnnxRuntime(), 1)
