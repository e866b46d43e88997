"""The version manager: what it refuses, what it keeps, and that a swap leaves nobody behind."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from mlflowkit import bundle
from mlflowkit.adapters.onnxruntime import OnnxRuntime, OnnxSession
from mlflowkit.bundle import Bundle
from mlflowkit.errors import BundleError, EngineError, MlkitError, ServiceError
from mlflowkit.graphs.candidates import Engine
from mlflowkit.judging.online.evidence import Evidence
from mlflowkit.service_state.records import Desired, GatewaySettings, Proposal, ReplicaReport, ServiceFiles
from mlflowkit.serving.inference.variants import load_table
from mlflowkit.serving.replica import Replica
from mlflowkit.values import Lineage, RoutingTable, Variant
from tests.support.gateways import InProcess
from tests.support.lending_bundle import ROWS, expected, make_bundle, table
from tests.support.waiting import wait_for


def rewrite(folder: Path, **changes: str) -> Bundle:
    """A bundle whose file was replaced before it was blessed: its digests agree, its content does not."""
    for name, text in changes.items():
        (folder / "evidence" / f"{name}.json").write_text(text)
    return bundle.write(
        folder, name="lending", lineage=Lineage("c", False, "d", "r"), policy="p", run="r", blessed=True, created=0.0
    )


def test_a_version_is_served_only_if_blessed_intact_and_the_one_meant(tmp_path: Path) -> None:
    runtime = OnnxRuntime()
    unblessed = make_bundle(tmp_path / "unblessed", blessed=False)
    with pytest.raises(BundleError, match="not blessed"):
        load_table(table(1, unblessed), runtime, 1)
    tampered = make_bundle(tmp_path / "tampered")
    (tampered.path / "model.onnx").write_bytes((tampered.path / "model.onnx").read_bytes() + b"\0")
    with pytest.raises(BundleError, match=r"model.onnx was altered"):
        load_table(table(1, tampered), runtime, 1)
    other = make_bundle(tmp_path / "other")
    lying = RoutingTable("lending", 1, (Variant("champion", "v", "0" * 64, str(other.path)),))
    with pytest.raises(BundleError, match="the routing table asks for"):
        load_table(lying, runtime, 1)
    with pytest.raises(BundleError, match="missing"):
        load_table(table(1, other.model_copy(update={"path": tmp_path / "nowhere"})), runtime, 1)


def test_a_version_that_fails_its_warm_up_is_refused(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "wrong")
    sample = json.loads((made.path / "evidence" / "sample.json").read_text())
    sample["outputs"]["probabilities"][0] = [0.5, 0.5]
    wrong = rewrite(made.path, sample=json.dumps(sample))
    with pytest.raises(ServiceError, match="not what it was when they were packaged"):
        load_table(table(1, wrong), OnnxRuntime(), 1)
    stray = rewrite(made.path, sample=json.dumps({"rows": [{"age": 1}], "outputs": {}}))
    with pytest.raises(ServiceError, match="fails its warm-up"):
        load_table(table(1, stray), OnnxRuntime(), 1)


def test_a_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "broken")
    (made.path / "model.onnx").write_bytes(b"not a graph")
    broken = rewrite(made.path)
    with pytest.raises(EngineError):
        load_table(table(1, broken), OnnxRuntime(), 1)


def test_a_graph_without_a_promised_output_is_refused(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "short")
    model = onnx.load(made.path / "model.onnx")
    del model.graph.output[0]
    onnx.save(model, made.path / "model.onnx")
    with pytest.raises(ServiceError, match="no output label"):
        load_table(table(1, rewrite(made.path)), OnnxRuntime(), 1)


def test_tables_that_this_gateway_cannot_honour_are_refused(first: Bundle, second: Bundle) -> None:
    champion = table(1, first).variants[0]
    other = Variant("b", second.manifest.version, second.manifest.identity, str(second.path), "challenger", 0.5)

    def refusal(*variants: Variant) -> str:
        with pytest.raises(ServiceError) as caught:
            load_table(RoutingTable("lending", 1, variants), OnnxRuntime(), 1)
        return caught.value.message

    assert "2 champions" in refusal(champion, replace(other, role="champion"))
    assert "0 champions" in refusal(other)
    assert "two variants of one name: champion, champion" in refusal(champion, replace(other, name="champion"))
    overlapping = replace(other, name="c", start=0.4, weight=0.2)
    assert "shares that overlap" in refusal(champion, other, overlapping)
    assert "shares that overlap" in refusal(champion, replace(other, start=0.7))


def test_a_swap_under_load_fails_no_request_and_frees_the_version_before(
    start: Callable[..., InProcess], first: Bundle, second: Bundle
) -> None:
    running = start()
    running.swap(table(1, first))
    old = weakref.ref(running.versions.active.champion.session)  # type: ignore[union-attr]
    truth = {made.manifest.version: expected(made.path, ROWS)["probabilities"][0] for made in (first, second)}
    seen: list[tuple[int, str, float]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            reply = running.client.post("/predict", json={"rows": ROWS})
            body = reply.json()
            share = body["predictions"][0]["probabilities"]["bad"] if reply.status_code == 200 else -1.0
            seen.append((reply.status_code, body.get("model_version", ""), share))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for epoch in range(2, 8):
        before = len(seen)
        running.swap(table(epoch, (first, second)[epoch % 2 == 0]))
        wait_for(lambda before=before: len(seen) > before + 20)  # type: ignore[misc]
    running.swap(table(8, second))
    stop.set()
    for thread in threads:
        thread.join()
    assert {code for code, _, _ in seen} == {200}
    assert {version for _, version, _ in seen} == set(truth)
    assert all(share == pytest.approx(truth[version][0], rel=1e-5) for _, version, share in seen)
    gc.collect()
    assert old() is None


def service(tmp_path: Path, **settings: object) -> ServiceFiles:
    files = ServiceFiles(tmp_path / "services" / "lending")
    files.write_desired(Desired(1, True, GatewaySettings("lending", port=free_port(), **settings)))  # type: ignore[arg-type]
    return files


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def report(files: ServiceFiles, done: Callable[[ReplicaReport], bool]) -> ReplicaReport:
    """The replica's report, once it satisfies ``done``."""
    return wait_for(lambda: next((found for found in files.reports() if done(found)), None))


def test_a_replica_follows_its_files(tmp_path: Path, first: Bundle, second: Bundle) -> None:
    from mlflowkit.service_state import http_client

    files = service(tmp_path)
    replica = Replica(files.folder, OnnxRuntime(), "r1")
    try:
        report(files, lambda found: found.state == "waiting")
        url = files.desired().settings.endpoint  # type: ignore[union-attr]
        assert not http_client.ready(url)
        files.write_table(table(1, first))
        report(files, lambda found: found.epoch == 1 and found.state == "serving")
        assert http_client.ready(url)

        files.write_proposal(Proposal("t1", table(2, second)))
        report(files, lambda found: found.prepared == "t1")
        assert (
            http_client.request(url, "POST", "/predict", {"rows": ROWS})[1]["model_version"] == first.manifest.version
        )
        files.write_table(table(2, second))
        report(files, lambda found: found.epoch == 2)
        assert (
            http_client.request(url, "POST", "/predict", {"rows": ROWS})[1]["model_version"] == second.manifest.version
        )

        files.write_proposal(Proposal("t2", table(3, make_bundle(tmp_path / "unblessed", blessed=False))))
        refused = report(files, lambda found: found.refused == "t2")
        assert "not blessed" in refused.message
        assert (
            http_client.request(url, "POST", "/predict", {"rows": ROWS})[1]["model_version"] == second.manifest.version
        )
        files.write_proposal(Proposal("t3", table(3, first)))
        report(files, lambda found: found.prepared == "t3" and not found.refused)

        moved = GatewaySettings("lending", port=free_port(), max_body_bytes=64)
        files.write_desired(Desired(2, True, moved))
        report(files, lambda found: found.generation == 2 and found.port == moved.port)
        assert http_client.request(moved.endpoint, "POST", "/predict", {"rows": ROWS})[0] == 413
        assert not http_client.ready(url)
        replica.check()
    finally:
        replica.stop()
    assert files.reports() == ()


def test_a_replica_whose_bundle_went_bad_stays_away_from_the_port_and_says_why(tmp_path: Path, second: Bundle) -> None:
    from mlflowkit.service_state import http_client

    bad = make_bundle(tmp_path / "bad")
    (bad.path / "signature.json").write_text("{}")
    files = service(tmp_path)
    files.write_table(table(4, bad))
    replica = Replica(files.folder, OnnxRuntime(), "r1")
    try:
        found = report(files, lambda found: found.state == "refused")
        assert "signature.json was altered" in found.message
        assert found.port == 0
        files.write_proposal(Proposal("t", table(5, second)))
        report(files, lambda found: found.prepared == "t")
        files.write_table(table(5, second))
        report(files, lambda found: found.state == "serving" and found.epoch == 5)
        assert http_client.ready(files.desired().settings.endpoint)  # type: ignore[union-attr]
    finally:
        replica.stop()


def split(epoch: int, one: Bundle, two: Bundle, weight: float, experiment: str = "e1") -> RoutingTable:
    challenger = Variant("b", two.manifest.version, two.manifest.identity, str(two.path), "challenger", weight)
    champion = replace(table(1, one).variants[0], weight=1.0 - weight)
    return RoutingTable("lending", epoch, (champion, challenger), experiment, experiment)


def evidence(files: ServiceFiles, done: Callable[[Evidence], bool]) -> Evidence:
    """What a replica wrote that it counted, once it satisfies ``done``."""
    path = files.folder / "evidence" / "r1.json"

    def look() -> Evidence | None:
        found = Evidence.from_json(json.loads(path.read_text())) if path.exists() else None
        return found if found is not None and done(found) else None

    return wait_for(look)


def test_weights_change_without_loading_and_evidence_is_kept_by_table_and_experiment(
    tmp_path: Path, first: Bundle, second: Bundle
) -> None:
    from mlflowkit.service_state import http_client

    loaded: list[Path] = []

    class Counting(OnnxRuntime):
        def load(self, model: Path, *, threads: int = 1, engine: Engine | None = None) -> OnnxSession:
            loaded.append(model)
            return super().load(model, threads=threads, engine=engine)

    files = service(tmp_path)
    files.write_table(split(1, first, second, 0.5))
    replica = Replica(files.folder, Counting(), "r1")
    try:
        report(files, lambda found: found.epoch == 1)
        url = files.desired().settings.endpoint  # type: ignore[union-attr]

        def ask(count: int) -> None:
            for _ in range(count):
                assert http_client.request(url, "POST", "/predict", {"rows": ROWS})[0] == 200

        def requests(found: Evidence, epoch: int) -> int:
            return sum(counts.requests for counts in found.epochs.get(epoch, {}).values())

        ask(20)
        one = evidence(files, lambda found: requests(found, 1) == 20)
        assert (one.experiment, set(one.epochs[1])) == ("e1", {"champion", "b"})
        assert sum(counts.rows for counts in one.epochs[1].values()) == 20 * len(ROWS)
        assert all(sum(counts.latency.values()) == counts.requests for counts in one.epochs[1].values())
        for epoch, weight in ((2, 0.9), (3, 0.0), (4, 1.0)):
            files.write_table(split(epoch, first, second, weight))
            report(files, lambda found, epoch=epoch: found.epoch == epoch)  # type: ignore[misc]
            ask(5)
        assert len(loaded) == 2
        whole = evidence(files, lambda found: requests(found, 4) == 5)
        assert {epoch: requests(whole, epoch) for epoch in whole.epochs} == {1: 20, 2: 5, 3: 5, 4: 5}
        assert (whole.of("b", [3]).requests, whole.of("b", [4]).requests) == (0, 5)

        files.write_proposal(Proposal("t", split(5, first, second, 0.1, "e2")))
        report(files, lambda found: found.prepared == "t")
        assert evidence(files, lambda found: True) == whole
        files.write_table(split(5, first, second, 0.1, "e2"))
        fresh = evidence(files, lambda found: found.experiment == "e2")
        assert set(fresh.epochs) == {5}
        ask(3)
    finally:
        replica.stop()
    assert requests(evidence(files, lambda found: True), 5) == 3
    assert len(loaded) == 2


def test_a_disk_that_takes_no_evidence_stops_no_answers(tmp_path: Path, first: Bundle) -> None:
    from mlflowkit.service_state import http_client

    files = service(tmp_path)
    (files.folder / "evidence").write_text("in the way")
    files.write_table(table(1, first))
    replica = Replica(files.folder, OnnxRuntime(), "r1")
    try:
        report(files, lambda found: found.state == "serving")
        url = files.desired().settings.endpoint  # type: ignore[union-attr]
        assert http_client.request(url, "POST", "/predict", {"rows": ROWS})[0] == 200
        replica.check()
        (files.folder / "evidence").unlink()
        found = evidence(files, lambda found: bool(found.epochs))
        assert found.of("champion").requests == 1
    finally:
        replica.stop()


def test_a_replica_needs_its_settings(tmp_path: Path) -> None:
    with pytest.raises(MlkitError, match=r"no service.json"):
        Replica(tmp_path, OnnxRuntime(), "r1")
