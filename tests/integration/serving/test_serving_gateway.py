"""The gateway over the wire, in this process: doors, bad input, limits, deadlines, metrics."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest

from mlflowkit.bundle import Bundle
from tests.support.gateways import InProcess
from tests.support.lending_bundle import CATEGORIES, LABELS, NUMERIC, ROWS, expected, table
from tests.support.waiting import wait_for

HUGE = b'{"inputs": [{"name": "numeric", "shape": [99999999999999, 3], "datatype": "FP32", "data": []}]}'


def tensors(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "name": "numeric",
            "shape": [len(rows), len(NUMERIC)],
            "datatype": "FP32",
            "data": [row[column] for row in rows for column in NUMERIC],
        },
        {
            "name": "categorical",
            "shape": [len(rows), len(CATEGORIES)],
            "datatype": "BYTES",
            "data": [row[column] for row in rows for column in CATEGORIES],
        },
    ]


def test_health_and_metadata_follow_the_protocol(served: InProcess, first: Bundle) -> None:
    get = served.client.get
    assert get("/v2/health/live").json() == {"live": True}
    assert get("/v2/health/ready").json() == {"ready": True}
    assert get("/v2").json()["name"] == "mlflowkit"
    version = first.manifest.version
    for path in ("/v2/models/lending", f"/v2/models/lending/versions/{version}"):
        model = get(path).json()
        assert model["versions"] == [version]
        assert model["inputs"][0] == {
            "name": "numeric",
            "datatype": "FP32",
            "shape": [-1, 3],
            "parameters": {"columns": list(NUMERIC)},
        }
        assert [tensor["name"] for tensor in model["outputs"]] == ["label", "probabilities"]
        assert get(f"{path}/ready").json() == {"name": "lending", "ready": True}


def test_both_doors_answer_what_onnx_runtime_alone_answers(served: InProcess, first: Bundle) -> None:
    truth = expected(first.path, ROWS)
    reply = served.client.post("/v2/models/lending/infer", json={"id": "q7", "inputs": tensors(ROWS)})
    assert reply.status_code == 200
    assert reply.headers["x-mlkit-variant"] == "champion"
    assert reply.headers["x-mlkit-version"] == first.manifest.version
    body = reply.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("lending", first.manifest.version, "q7")
    outputs = {output["name"]: output for output in body["outputs"]}
    assert outputs["label"]["data"] == truth["label"]
    assert outputs["probabilities"]["shape"] == [2, 2]
    np.testing.assert_allclose(np.reshape(outputs["probabilities"]["data"], (2, 2)), truth["probabilities"], rtol=1e-6)
    people = served.client.post("/predict", json={"rows": ROWS}).json()["predictions"]
    assert [row["label"] for row in people] == truth["label"]
    shares = [[row["probabilities"][label] for label in LABELS] for row in people]
    np.testing.assert_allclose(shares, truth["probabilities"], rtol=1e-6)


def test_a_request_keeps_the_id_that_its_client_gave(served: InProcess) -> None:
    given = served.client.post("/predict", json={"rows": ROWS}, headers={"x-request-id": "abc-1"})
    assert given.headers["x-mlkit-request-id"] == given.json()["id"] == "abc-1"


def test_a_generated_request_id_is_not_to_be_guessed_from_earlier_ones(served: InProcess) -> None:
    made = [served.client.get("/v2").headers["x-mlkit-request-id"] for _ in range(300)]
    assert {len(request_id) for request_id in made} == {24}
    for part in (slice(0, 12), slice(12, 24)):  # 48 random bits: two of 300 are equal once in six billion runs
        assert len({request_id[part] for request_id in made}) == 300


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v2/models/lending/infer", b"{", 400),
        ("POST", "/v2/models/lending/infer", b"", 400),
        ("POST", "/v2/models/lending/infer", b"\xff\xfe\x00", 400),
        ("POST", "/v2/models/lending/infer", b"[" * 100_000, 400),
        ("POST", "/v2/models/lending/infer", b'{"inputs":' * 50_000, 400),
        ("POST", "/v2/models/lending/infer", b'{"inputs": [{"name": "numeric", "data": [NaN]}]}', 400),
        ("POST", "/v2/models/lending/infer", b'{"inputs": [{"name": "numeric", "data": [1e999]}]}', 400),
        ("POST", "/v2/models/lending/infer", HUGE, 413),
        ("POST", "/predict", b'{"rows": {}}', 400),
        ("POST", "/predict", b'{"rows": [], "rowz": 1}', 400),
        ("POST", "/v2/models/lendin/infer", b"{}", 404),
        ("POST", "/v2/models/lending/versions/7/infer", b"{}", 404),
        ("GET", "/v2/models/lendin", b"", 404),
        ("GET", "/v2/models/lendin/ready", b"", 404),
        ("GET", "/v2/models", b"", 404),
        ("GET", "/v2/models//infer", b"", 404),
        ("GET", "/../../etc/passwd", b"", 404),
        ("GET", "/predict", b"", 405),
        ("GET", "/v2/models/lending/infer", b"", 405),
        ("POST", "/metrics", b"", 405),
        ("DELETE", "/v2/models/lending", b"", 405),
    ],
)  # fmt: skip
def test_bad_requests_are_answered_with_a_4xx_and_an_error(
    served: InProcess, method: str, path: str, body: bytes, status: int
) -> None:
    reply = served.client.request(method, path, content=body)
    assert reply.status_code == status
    assert list(reply.json()) == ["error"]
    assert reply.json()["error"]


def test_a_wrong_column_is_named_with_its_nearest(served: InProcess) -> None:
    row = {**ROWS[0], "incme": 1}
    error = served.client.post("/predict", json={"rows": [ROWS[0], row]}).json()["error"]
    assert "row 1" in error
    assert "incme" in error
    assert "Did you mean income?" in error


def test_unseen_categories_are_answered_and_counted(served: InProcess, first: Bundle) -> None:
    def count() -> float:
        found = [line for line in served.client.get("/metrics").text.splitlines() if line.startswith("mlkit_unseen")]
        return sum(float(line.split()[-1]) for line in found if 'column="purpose"' in line and "_total" in line)

    before = count()
    row = {**ROWS[0], "purpose": "spaceship"}
    reply = served.client.post("/predict", json={"rows": [row, ROWS[0]]})
    assert reply.status_code == 200
    truth = expected(first.path, [row])["probabilities"][0]
    assert list(reply.json()["predictions"][0]["probabilities"].values()) == pytest.approx(truth, rel=1e-5)
    assert count() == before + 1
    assert reply.headers["x-mlkit-unseen-categories"] == '{"purpose": 1}'
    assert reply.json()["notes"] == {"unseen_categories": {"purpose": 1}}
    seen = served.client.post("/predict", json={"rows": ROWS})
    assert "x-mlkit-unseen-categories" not in seen.headers
    assert "notes" not in seen.json()


def test_no_finite_answer_is_422_and_names_the_row(served: InProcess) -> None:
    reply = served.client.post("/predict", json={"rows": [ROWS[0], {**ROWS[0], "debt": -5.0}]})
    assert reply.status_code == 422
    assert "row 1" in reply.json()["error"]


def test_metrics_count_requests_by_door_and_code(served: InProcess, first: Bundle) -> None:
    def value(sample: str) -> float:
        for line in served.client.get("/metrics").text.splitlines():
            if line.startswith(sample.split("{")[0]) and all(
                part in line for part in sample.strip("}").split("{")[1].split(",")
            ):
                return float(line.split()[-1])
        return 0.0

    sample = 'mlkit_requests_total{door="predict",code="400"}'
    before = value(sample)
    served.client.post("/predict", content=b"{")
    assert value(sample) == before + 1
    assert value('mlkit_request_seconds_count{door="predict"}') > 0
    assert value(f'mlkit_model_version{{role="champion",version="{first.manifest.version}"}}') in (0.0, 1.0)
    assert value('mlkit_build_info{service="lending"}') == 1


def test_an_oversized_body_is_refused_whether_announced_or_not(served: InProcess) -> None:
    body = b'{"rows": ["' + b"x" * (1 << 20) + b'"]}'
    assert served.client.post("/predict", content=body).status_code == 413
    chunks = (body[start : start + 65536] for start in range(0, len(body), 65536))
    assert served.client.post("/predict", content=chunks).status_code == 413
    assert served.client.post("/predict", json={"rows": ROWS}).status_code == 200


def test_a_body_that_never_ends_is_given_up(served: InProcess) -> None:
    with socket.create_connection(("127.0.0.1", served.listener.port), timeout=10) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        reply = slow.recv(4096)
    assert reply.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("sent", [b"", b"POST /predict HTTP/1.1\r\nhost: localhost\r\nx-slow"])
def test_headers_that_never_end_are_cut_off(served: InProcess, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.listener.port), timeout=10) as slow:
        slow.sendall(sent)
        try:
            got = slow.recv(4096)
        except ConnectionResetError:
            got = b""
    assert got == b""
    assert served.client.get("/v2/health/live").status_code == 200


def test_what_is_not_http_is_refused(served: InProcess) -> None:
    with socket.create_connection(("127.0.0.1", served.listener.port), timeout=10) as odd:
        odd.sendall(b"\x16\x03\x01 not http at all\r\n\r\n")
        assert odd.recv(4096).startswith(b"HTTP/1.1 400")


def test_without_a_model_the_service_is_alive_but_not_ready(start: Callable[..., InProcess], first: Bundle) -> None:
    empty = start()
    assert empty.client.get("/v2/health/live").status_code == 200
    for reply in (empty.client.get("/v2/health/ready"), empty.client.post("/predict", json={"rows": ROWS})):
        assert reply.status_code == 503
        assert reply.headers["retry-after"]
    empty.swap(table(1, first))
    assert empty.client.post("/predict", json={"rows": ROWS}).status_code == 200


class Held:
    """A session that waits until it is let go: a real session with a door in front."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()

    def run(self, inputs: Any) -> Any:
        self.entered.release()
        self.gate.wait(20)
        return self.inner.run(inputs)


def hold(running: InProcess, monkeypatch: pytest.MonkeyPatch) -> Held:
    """Make every request of ``running`` one that goes to a thread and waits there."""
    model = running.versions.active.champion  # type: ignore[union-attr]
    held = Held(model.session)
    object.__setattr__(model, "session", held)
    object.__setattr__(model, "inline_rows", 0)
    return held


def test_a_request_beyond_its_deadline_is_504_and_the_next_one_is_served(
    start: Callable[..., InProcess], first: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(timeout_seconds=0.3)
    running.swap(table(1, first))
    held = hold(running, monkeypatch)
    assert running.client.post("/predict", json={"rows": ROWS}).status_code == 504
    held.gate.set()
    assert running.client.post("/predict", json={"rows": ROWS}).status_code == 200


def test_a_full_queue_is_503_with_retry_after_and_keeps_its_promises(
    start: Callable[..., InProcess], first: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(max_queue=2)
    running.swap(table(1, first))
    held = hold(running, monkeypatch)
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(running.client.post("/predict", json={"rows": ROWS}).status_code))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: running.plane.in_flight >= 2, 10, "two requests in flight")
    refused = running.client.post("/predict", json={"rows": ROWS})
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert running.client.get("/v2/health/ready").status_code == 200
    held.gate.set()
    for thread in threads:
        thread.join(10)
    assert codes == [200, 200]


def raw(running: InProcess, *pieces: bytes) -> bytes:
    """What a plain socket is answered until the gateway closes, or is silent for half a second."""
    with socket.create_connection(("127.0.0.1", running.listener.port)) as connection:
        connection.settimeout(0.5)
        found = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            while part := connection.recv(65536):
                found += part
        except (TimeoutError, ConnectionError):
            pass
        return found


@pytest.mark.parametrize("offer", ["h2c", "websocket"])
def test_an_offer_to_change_the_protocol_is_ignored(served: InProcess, offer: str) -> None:
    headers = {"connection": "Upgrade", "Upgrade": offer}
    for _ in range(3):
        reply = served.client.post("/predict", content=orjson.dumps({"rows": ROWS}), headers=headers)
        assert (reply.status_code, len(reply.json().get("predictions", ()))) == (200, len(ROWS))


def test_headers_without_end_are_not_kept(served: InProcess) -> None:
    reply = raw(served, b"GET /v2 HTTP/1.1\r\n", *[b"x-more: " + b"a" * 8000 + b"\r\n"] * 2000)
    assert reply.startswith(b"HTTP/1.1 431 ") or reply == b""  # the close may overtake the reply: we go on sending
    assert served.client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00", b"GET /v2 HTTP/1.1\r\ncontent-length: -1\r\n\r\n"])
def test_what_is_not_http_is_told_in_json(served: InProcess, sent: bytes) -> None:
    head, _, body = raw(served, sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert "error" in orjson.loads(body)


def test_every_refusal_has_a_request_id(served: InProcess) -> None:
    reply = served.client.post("/predict", content=b"{}", headers={"content-encoding": "br", "x-request-id": "q9"})
    assert (reply.status_code, reply.headers["x-mlkit-request-id"]) == (415, "q9")
    reply = served.client.post("/predict", json={"rows": ROWS}, headers={"content-encoding": "Identity"})
    assert reply.status_code == 200
    assert served.client.get("/v2", headers={"x-request-id": "a\tb"}).headers["x-mlkit-request-id"] != "a\tb"
