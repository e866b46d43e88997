"""Generated bad requests against a gateway replica: no answer of 500 or above but 503, no crash, bounded memory, and
right answers to the good requests among them.

    python -m benchmarks.fuzz --requests 100000
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from benchmarks.fuzz_requests import COLUMNS, LIMIT, SERVICE, Generator, Request, good, http
from mlflowkit import bundle as bundles
from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.service_state.records import Desired, GatewaySettings, ServiceFiles
from mlflowkit.values import Lineage, RoutingTable, Variant

TIMEOUT = 1.0
"""Seconds that the gateway waits for a body."""
MEMORY_MB = 100.0
STATUS = {
    "OK": 200, "INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "UNIMPLEMENTED": 405, "RESOURCE_EXHAUSTED": 413,
    "OUT_OF_RANGE": 422, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504,
}  # fmt: skip
"""HTTP's status for each of gRPC's; any other is a 500."""
CLOSED = 0
"""The gateway closed the connection without an answer."""


@dataclass
class Outcome:
    """What came of a run. ``wrong`` has the first requests whose answer is not allowed."""

    requests: int = 0
    seconds: float = 0.0
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[tuple[Request, int, bytes]] = field(default_factory=list)
    growth_mb: float = 0.0
    alive: bool = True

    @property
    def failed(self) -> bool:
        return bool(self.wrong) or not self.alive or self.growth_mb > MEMORY_MB


def make_bundle(folder: Path) -> bundles.Bundle:
    """log1p of three numbers (a number below -1 has no finite answer), and whether a text is a certain one."""
    nodes = [
        helper.make_node("Add", ["numeric", "one"], ["shifted"]),
        helper.make_node("Log", ["shifted"], ["logs"]),
        helper.make_node("LabelEncoder", ["categorical"], ["codes"], domain="ai.onnx.ml",
                         keys_strings=["36 months", "car"], values_floats=[1.0, 2.0], default_float=0.0),
        helper.make_node("Concat", ["logs", "codes"], ["features"], axis=1),
        helper.make_node("ReduceSum", ["features", "axis"], ["prediction"], keepdims=0),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "fuzz",
        [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, [None, 3]),
         helper.make_tensor_value_info("categorical", TensorProto.STRING, [None, 2])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, [None])],
        [numpy_helper.from_array(np.float32(1), "one"), numpy_helper.from_array(np.array([1]), "axis")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    signature = Signature(
        task="regression",
        inputs=(
            TensorSpec(name="numeric", datatype="FP32", shape=(-1, 3), columns=COLUMNS[:3]),
            TensorSpec(name="categorical", datatype="BYTES", shape=(-1, 2), columns=COLUMNS[3:]),
        ),
        outputs=(TensorSpec(name="prediction", datatype="FP32", shape=(-1,)),),
    )
    folder.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")
    (folder / "signature.json").write_text(signature.model_dump_json())
    return bundles.write(
        folder, name=SERVICE, lineage=Lineage("", False, "", ""), policy="", run="", blessed=True, created=0.0
    )


@contextmanager
def target(folder: Path) -> Iterator[tuple[psutil.Process, int, int]]:
    """A replica's process and its two ports."""
    made = make_bundle(folder / "bundle")
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(int(probe.getsockname()[1]))
    files = ServiceFiles(folder / "services" / SERVICE)
    files.folder.mkdir(parents=True)
    settings = GatewaySettings(
        SERVICE, port=ports[0], grpc_port=ports[1], max_body_bytes=LIMIT, timeout_seconds=TIMEOUT, max_rows=4096
    )
    files.write_desired(Desired(1, True, settings))
    variant = Variant("champion", made.manifest.version, made.manifest.identity, str(made.path))
    files.write_table(RoutingTable(SERVICE, 1, (variant,)))
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "benchmarks.fuzz_target", str(files.folder)]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[1])
    try:
        _await(ports[0], process, folder / "log")
        yield psutil.Process(process.pid), ports[0], ports[1]
    finally:
        process.terminate()
        process.wait(20)


def _await(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if Wire(port).ask(Request("control", http(good())))[0] == 200:
                return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the gateway did not start:\n{log.read_text()}")
        time.sleep(0.05)


class Wire:
    """One client: a connection that is kept while the gateway keeps it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None
        self._rest = b""

    def ask(self, request: Request) -> tuple[int, bytes]:
        """(status, body); CLOSED when the connection ended without an answer. Raises OSError when none can be had."""
        fresh = request.breaks or self._socket is None
        if fresh:
            self.close()
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        try:
            try:
                self._socket.sendall(request.data)
                if request.breaks and not request.stalls:
                    self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has refused already: the answer is there to be read
            return self._answer(request)
        except (ConnectionError, TimeoutError):
            self.close()
            return CLOSED, b""
        finally:
            if request.breaks:
                self.close()

    def _answer(self, request: Request) -> tuple[int, bytes]:
        assert self._socket is not None
        while b"\r\n\r\n" not in self._rest:
            part = self._socket.recv(65536)
            if not part:
                raise ConnectionError
            self._rest += part
        head, _, body = self._rest.partition(b"\r\n\r\n")
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = 0 if request.data.startswith(b"HEAD") else int(lines[b"content-length"])
        while len(body) < length:
            part = self._socket.recv(65536)
            if not part:
                raise ConnectionError
            body += part
        self._rest = body[length:]
        if lines.get(b"connection") == b"close":
            self.close()
        return int(head.split(b" ", 2)[1]), body[:length]

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._rest = None, b""


class Calls:
    """A gRPC client that sends whatever bytes it is given."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def ask(self, request: Request) -> tuple[int, bytes]:
        call = self._channel.unary_unary(f"/inference.GRPCInferenceService/{request.method}")
        try:
            return 200, call(request.data, timeout=30)
        except grpc.RpcError as error:
            return STATUS.get(error.code().name, 500), str(error.details()).encode()

    def close(self) -> None:
        self._channel.close()


def allowed(request: Request, status: int, body: bytes, right: bytes) -> bool:
    """Whether an answer is one that the request may have."""
    if request.good:
        return (status == 200 and json.loads(body)["outputs"] == json.loads(right)["outputs"]) or status == 503
    if status == CLOSED:
        return request.breaks
    return status < 500 or status in (501, 503, 505)


def run(port: int, grpc_port: int, requests: int, seed: int, clients: int = 8) -> Outcome:
    """Send ``requests`` generated requests from several clients at once, and a few that stall."""
    outcome, lock = Outcome(), threading.Lock()
    right = Wire(port).ask(Request("control", http(good())))[1]

    def note(request: Request, status: int, body: bytes) -> None:
        with lock:
            outcome.requests += 1
            outcome.statuses[request.kind, status] += 1
            if not allowed(request, status, body, right) and len(outcome.wrong) < 10:
                outcome.wrong.append((request, status, body[:500]))

    def client(number: int) -> None:
        generate, wire, calls = Generator(seed * 1000 + number), Wire(port), Calls(grpc_port)
        for _ in range(requests // clients):
            request = generate()
            note(request, *(calls if request.method else wire).ask(request))
        wire.close()
        calls.close()

    def stall(number: int) -> None:
        request = Generator(seed * 1000 + clients + number, 0.5 if requests >= 10_000 else 0.0).stalled()
        note(request, *Wire(port).ask(request))

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients + 64) as pool:
        slow = pool.map(stall, range(min(64, requests // 50)))
        list(pool.map(client, range(clients)))
        list(slow)
    outcome.seconds = time.perf_counter() - begin
    return outcome


def fuzz(requests: int, seed: int) -> Outcome:
    """A whole run against a new replica: memory is compared after a tenth of the requests and after all."""
    with tempfile.TemporaryDirectory(prefix="mlkit-fuzz-") as place, target(Path(place)) as (process, port, grpc_port):
        run(port, grpc_port, max(200, requests // 10), seed + 1)
        before = process.memory_info().rss
        outcome = run(port, grpc_port, requests, seed)
        outcome.growth_mb = (process.memory_info().rss - before) / 2**20
        outcome.alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        log = (Path(place) / "log").read_text()
        if "Traceback" in log:
            at = log.index("Traceback")
            outcome.wrong.append((Request("log", b""), 500, log[max(0, at - 300) : at + 3000].encode()))
        return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write JSON here")
    options = parser.parse_args()
    outcome = fuzz(options.requests, options.seed)
    kinds = sorted({kind for kind, _ in outcome.statuses})
    statuses = sorted({status for _, status in outcome.statuses})
    print(f"{outcome.requests} requests in {outcome.seconds:.0f} s; memory {outcome.growth_mb:+.1f} MB")
    print(f"{'kind':14}" + "".join(f"{status or 'closed':>8}" for status in statuses))
    for kind in kinds:
        print(f"{kind:14}" + "".join(f"{outcome.statuses[kind, status] or '':>8}" for status in statuses))
    for request, status, body in outcome.wrong:
        print(f"WRONG {request.kind} {request.method} {status} {body!r}\n  {request.data[:1500]!r}")
    if not outcome.alive:
        print("WRONG the replica died")
    if options.out is not None:
        counts = [{"kind": kind, "status": status, "count": n} for (kind, status), n in outcome.statuses.items()]
        figures = {"requests": outcome.requests, "seconds": outcome.seconds, "growth_mb": outcome.growth_mb}
        options.out.write_text(json.dumps({**figures, "wrong": len(outcome.wrong), "counts": counts}, indent=1))
    raise SystemExit(int(outcome.failed))


if __name__ == "__main__":
    main()
