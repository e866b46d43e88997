"""mlkit predict: what people give it, and what it asks."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.bundle import TextRule
from mlflowkit.features.cells import DEFAULT_MISSING
from tests.support.warm_commands import warm_command

COLUMNS = (("numeric", "FP32", ["age"]), ("categorical", "BYTES", ["city"]))


class _Service(ThreadingHTTPServer):
    """Keeps the rows that it is asked and answers each with its number; ``alien`` makes it another kind of server."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[Any] = []
        self.alien = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: _Service

    def do_GET(self) -> None:
        inputs = [{"name": n, "datatype": d, "shape": [-1, 1], "parameters": {"columns": c}} for n, d, c in COLUMNS]
        texts = TextRule(missing=DEFAULT_MISSING).model_dump(mode="json")
        model = {"inputs": inputs, "parameters": {"texts": texts}}
        self._reply({"models": ["people"]} if self.path == "/v2" else model)

    def do_POST(self) -> None:
        rows = json.loads(self.rfile.read(int(self.headers["content-length"])))["rows"]
        self.server.asked += rows
        predictions = [{"prediction": float(number)} for number, _ in enumerate(rows)]
        self._reply({"model_name": "people", "model_version": "1", "predictions": predictions})

    def _reply(self, document: Any) -> None:
        body = b"<html>hello</html>" if self.server.alien else json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@pytest.fixture
def service() -> Iterator[_Service]:
    with _Service() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def predict(*arguments: str | Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [*warm_command("mlflowkit.cli"), "predict", *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, timeout=60, env=dict(os.environ), check=False)


def test_a_csv_is_read_as_the_data_stage_reads_one(service: _Service) -> None:
    from pyarrow.csv import ConvertOptions

    assert set(ConvertOptions().null_values) == {"", *DEFAULT_MISSING}
    text = '\ufeffage,city\r\n1,"a\r\nb"\r\nNA,x\u2028y\r\n NaN ,null\r\n\r\n4,"p, q"\r\n'
    done = predict("--endpoint", service.url, given=text.encode())
    assert done.returncode == 0, done.stderr
    assert service.asked == [
        {"age": 1.0, "city": "a\r\nb"},
        {"age": None, "city": "x\u2028y"},
        {"age": None, "city": None},
        {"age": 4.0, "city": "p, q"},
    ]


def test_a_field_may_be_long(service: _Service) -> None:
    assert predict("--endpoint", service.url, given=b"age,city\n1," + b"x" * 200_000 + b"\n").returncode == 0
    assert len(service.asked[0]["city"]) == 200_000


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (b"age,city\n1e999,x\n", b"stdin:2: age: '1e999' is not a finite number"),
        (b"age,city\ninf,x\n", b"stdin:2: age: 'inf' is not a finite number"),
        (b"age,city\n1,x,y\n", b"stdin:2: 3 fields; the header has 2"),
        (b"age,age\n1,2\n", b"stdin:1: column 'age' occurs twice"),
        (b'age,city\n1,"x', b"stdin:2: not CSV"),
        (b"age,city\n1,\xff\n", b"stdin is not UTF-8"),
        (b'[{"age": NaN}]', b"use null for a missing value"),
        (b'[{"age": 1e999}]', b"use null for a missing value"),
        (b"[" * 100_000, b"stdin is not JSON"),
        (b"", b"there are no rows to predict"),
    ],
)
def test_wrong_rows_are_refused_with_a_sentence(service: _Service, given: bytes, told: bytes) -> None:
    done = predict("--endpoint", service.url, given=given)
    assert (done.returncode, done.stdout) == (2, b"")
    assert told in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"hint: " in done.stderr
    assert service.asked == []


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:99999", "http://[::1", "http://a..b", "ftp://127.0.0.1", ""])
def test_an_endpoint_that_is_no_url_is_told(endpoint: str) -> None:
    done = predict("--endpoint", endpoint, "--rows", "[{}]", "--state", "/nonexistent")
    assert done.returncode in (2, 3)
    assert b"Traceback" not in done.stderr
    assert b"hint: " in done.stderr


@pytest.mark.parametrize("given", [b"age,city\n1,x\n", b'[{"age": 1}]'])
def test_another_kind_of_server_is_told(service: _Service, given: bytes) -> None:
    service.alien = True
    done = predict("--endpoint", service.url, given=given)
    assert done.returncode == 3
    assert b"Traceback" not in done.stderr
    assert b"mlkit" in done.stderr
