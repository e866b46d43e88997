"""The contract of a serving container: probes of SageMaker, KubeRay and Kubernetes, and invocations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.bundle import Bundle
from mlflowkit.errors import ServiceError
from mlflowkit.serving.auth import Keyring, check_exposed, make_key
from tests.support.gateways import InProcess
from tests.support.lending_bundle import ROWS, table

PROBES = ("/ping", "/-/healthz", "/v2/health/ready")
CSV = "age,income,debt,term,purpose\r\n41,52000,,36 months,car\r\n23,18000,900,60 months,\r\n"


def test_probes_say_503_before_a_model_200_with_one_and_503_while_draining(
    start: Callable[..., InProcess], first: Bundle
) -> None:
    running = start()
    assert [running.client.get(path).status_code for path in PROBES] == [503, 503, 503]
    running.swap(table(1, first))
    assert [running.client.get(path).status_code for path in PROBES] == [200, 200, 200]
    assert running.client.get("/-/healthz").text == "success"  # KubeRay's probe looks for this word
    running.plane.draining = True
    assert [running.client.get(path).status_code for path in PROBES] == [503, 503, 503]
    assert running.client.get("/v2/health/live").status_code == 200
    assert running.client.post("/predict", json={"rows": ROWS}).status_code == 200


def test_invocations_answer_rows_tensors_and_csv_alike(served: InProcess) -> None:
    wanted = served.client.post("/predict", json={"rows": ROWS}).json()["predictions"]
    rows = served.client.post("/invocations", json={"rows": ROWS})
    assert rows.json()["predictions"] == wanted
    tensors = {
        "inputs": [
            {"name": "numeric", "datatype": "FP32", "shape": [2, 3], "data": [41, 52000, None, 23, 18000, 900]},
            {
                "name": "categorical",
                "datatype": "BYTES",
                "shape": [2, 2],
                "data": ["36 months", "car", "60 months", ""],
            },
        ]
    }
    inferred = served.client.post("/invocations", json=tensors).json()
    label = next(output for output in inferred["outputs"] if output["name"] == "label")
    csv = served.client.post("/invocations", content=CSV, headers={"content-type": "text/csv"})
    assert csv.json()["predictions"] == wanted
    assert label["data"] == [row["label"] for row in wanted]
    bare = CSV.partition("\r\n")[2]
    header = {"content-type": "text/csv; charset=utf-8; header=absent"}
    assert served.client.post("/invocations", content=bare, headers=header).json()["predictions"] == wanted


@pytest.mark.parametrize(
    ("content", "kind", "status", "message"),
    [
        (b"x", "application/x-npy", 415, "application/json or text/csv"),
        (b"{}", "application/json", 400, "rows"),
        (b"[1]", "application/json", 400, "JSON object"),
        (b"", "text/csv", 400, "no columns"),
        (b"age,age\n1,2\n", "text/csv", 400, "twice"),
        (b"age,income\n1\n", "text/csv", 400, "line 2: 1 cells"),
        (CSV.replace("41", "old").encode(), "text/csv", 400, "line 2, column age: 'old' is no number"),
        (b'age,"income\n1,2', "text/csv", 400, "not CSV"),
        (b"\xff\xfe", "text/csv", 400, "UTF-8"),
        (CSV.replace("purpose", "colour").encode(), "text/csv", 400, "colour"),
        (b" " * (2 << 20), "text/csv", 413, ""),
    ],
)
def test_bad_invocations_are_refused_with_a_reason(
    served: InProcess, content: bytes, kind: str, status: int, message: str
) -> None:
    reply = served.client.post("/invocations", content=content, headers={"content-type": kind})
    assert (reply.status_code, message in reply.json()["error"]) == (status, True), reply.text


def test_more_rows_than_the_limit_are_413_in_csv_too(start: Callable[..., InProcess], first: Bundle) -> None:
    running = start(max_rows=1)
    running.swap(table(1, first))
    assert running.client.post("/invocations", content=CSV, headers={"content-type": "text/csv"}).status_code == 413


def test_probes_need_no_key_invocations_one_to_infer_and_a_metrics_key_reads_metrics_only(
    start: Callable[..., InProcess], first: Bundle
) -> None:
    running = start()
    running.swap(table(1, first))
    scraper, scraping = make_key(["metrics"])
    client, calling = make_key(["infer"])
    running.plane.keys = Keyring([scraper, client])
    assert [running.client.get(path).status_code for path in PROBES] == [200, 200, 200]

    def status(method: str, path: str, token: str, body: Any = None) -> int:
        return running.client.request(method, path, json=body, headers={"x-api-key": token}).status_code

    rows = {"rows": ROWS}
    assert status("POST", "/invocations", "", rows) == 401
    assert status("POST", "/invocations", calling, rows) == 200
    assert status("GET", "/metrics", "") == 401
    assert status("GET", "/metrics", scraping) == 200
    refused = [
        ("POST", "/invocations"),
        ("POST", "/predict"),
        ("GET", "/v2"),
        ("GET", "/openapi.json"),
        ("GET", "/v2/models/stats"),
    ]
    assert [status(method, path, scraping, rows if method == "POST" else None) for method, path in refused] == [403] * 5


def test_the_openapi_document_lists_the_contract(served: InProcess) -> None:
    paths = served.client.get("/openapi.json").json()["paths"]
    assert {"/ping", "/-/healthz", "/invocations"} <= paths.keys()
    assert set(paths["/invocations"]["post"]["requestBody"]["content"]) == {"application/json", "text/csv"}
    json.dumps(paths)


def test_an_open_listener_without_keys_is_served_only_where_a_platform_stands_in_front(
    start: Callable[..., InProcess], first: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running = start()
    running.swap(table(1, first))
    foreign = {"host": "10.0.0.7:8080"}
    with pytest.raises(ServiceError, match="no API keys"):
        check_exposed("0.0.0.0", "")
    assert running.client.get("/ping", headers=foreign).status_code == 421
    monkeypatch.setenv("MLKIT_UNAUTHENTICATED", "1")
    check_exposed("0.0.0.0", "")
    assert running.client.get("/ping", headers=foreign).status_code == 200
