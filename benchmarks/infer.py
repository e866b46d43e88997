"""POST /v2/models/lending/infer, one row, at 1, 16 and 64 connections: requests a second and latency.

Peers, in turns in the same run, with the same graph and the same body: plain uvicorn with ONNX Runtime (the limit of
this road; bar: at least 0.5 of it at 16 connections) and MLServer (installed on first use into an environment of its
own under benchmarks/.cache). Ours is the gateway that `mlkit run` leaves behind: on Ray Serve, one replica. The load
generator is a process of its own (benchmarks.load).

    python -m benchmarks.infer --rounds 5 --seconds 2
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mlflowkit as mk
from benchmarks.process import CACHE, arguments, report, spread
from mlflowkit.adapters.ray_serve import RayServePlatform
from mlflowkit.bundle import Bundle, open_bundle
from mlflowkit.stages.deploy import ServeSection
from mlflowkit.values import RoutingTable, Variant

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "lending.yaml"
MLSERVER = ("mlserver==1.7.1", "onnxruntime==1.26.0")
OURS, PLAIN, PEER = "mlkit gateway on Ray Serve", "uvicorn + ONNX Runtime", "MLServer"
BAR = 0.5


def bundle_of(folder: Path) -> Bundle:
    """The blessed bundle of recipes/lending.yaml, made for the occasion."""
    answer = mk.run(RECIPE, until="package", state=folder).answer
    digest = next(step["digest"] for step in answer["steps"] if step["stage"] == "package")
    return open_bundle(folder / "objects" / digest / "bundle", blessed=True)


def body_of(bundle: Bundle) -> bytes:
    """The first sample row as an infer request."""
    row = json.loads((bundle.path / "evidence" / "sample.json").read_bytes())["rows"][0]
    inputs = []
    for tensor in bundle.signature.inputs:
        data: list[Any] = [row[column] for column in tensor.columns]
        if tensor.datatype != "BYTES":
            data = [None if value is None else float(value) for value in data]
        shape = [1, len(data)]
        inputs.append({"name": tensor.name, "shape": shape, "datatype": tensor.datatype, "data": data})
    return json.dumps({"inputs": inputs}).encode()


@contextmanager
def gateway(bundle: Bundle, folder: Path) -> Iterator[str]:
    """Our service with its local Ray; both are stopped afterwards."""
    platform = RayServePlatform(folder)
    try:
        endpoint = platform.ensure(ServeSection(service="lending", port=0))
        variant = Variant("champion", bundle.manifest.version, bundle.manifest.identity, str(bundle.path))
        platform.publish(RoutingTable("lending", 1, (variant,)))
        yield f"{endpoint}/v2/models/lending/infer"
    finally:
        platform.down()


@contextmanager
def plain(bundle: Bundle) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.infer_plain", str(bundle.model), str(port)]
    with running(command, ROOT, {}):
        yield f"http://127.0.0.1:{port}/v2/models/lending/infer"


@contextmanager
def mlserver(bundle: Bundle, folder: Path) -> Iterator[str]:
    """MLServer without its inference pool, which is its quicker setting for a model this small."""
    home = CACHE / "mlserver"
    if not (home / "bin" / "mlserver").exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([home / "bin" / "python", "-m", "pip", "install", "--quiet", *MLSERVER], check=True)
    ports = [free_port() for _ in range(3)]
    settings = {
        "host": "127.0.0.1",
        "http_port": ports[0],
        "grpc_port": ports[1],
        "metrics_port": ports[2],
        "parallel_workers": 0,
        "debug": False,
    }
    model = {
        "name": "lending",
        "implementation": "infer_mlserver.OnnxModel",
        "parameters": {"uri": str(bundle.model)},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    with running([str(home / "bin" / "mlserver"), "start", "."], folder, {"PYTHONPATH": str(ROOT / "benchmarks")}):
        yield f"http://127.0.0.1:{ports[0]}/v2/models/lending/infer"


@contextmanager
def running(command: list[str], cwd: Path, env: dict[str, str]) -> Iterator[None]:
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=cwd, env={**os.environ, **env}, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_answer(url: str, body: bytes, seconds: float = 60.0) -> Any:
    """The first answer of a server, once it has one."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            asked = urllib.request.Request(url, body, {"content-type": "application/json"})
            with urllib.request.urlopen(asked, timeout=10) as reply:
                return json.loads(reply.read())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def load(url: str, body: Path, connections: int, seconds: float) -> dict[str, float]:
    """One measurement by a load generator of its own. Raises RuntimeError when a request failed."""
    command = [sys.executable, "-m", "benchmarks.load", url, str(body), str(connections), str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    if found["errors"]:
        raise RuntimeError(f"{url}: {found['errors']} failed requests: {done.stderr}")
    return found


def same_answers(answers: dict[str, Any]) -> None:
    """All servers give the same probabilities for the row, or the comparison means nothing."""
    values = {
        name: next(o["data"] for o in answer["outputs"] if o["name"] in ("probabilities", "prediction"))
        for name, answer in answers.items()
    }
    first = values[OURS]
    for name, found in values.items():
        if any(abs(a - b) > 1e-5 for a, b in zip(first, found, strict=True)):
            raise RuntimeError(f"{name} answers {found}, {OURS} {first}")


def rounds_of(
    urls: dict[str, str], measure: Callable[[str, int], dict[str, float]], rounds: int, connections: list[int]
) -> dict[tuple[str, int], list[dict[str, float]]]:
    """Every server at every number of connections, in turns; the first round is not counted."""
    results: dict[tuple[str, int], list[dict[str, float]]] = {}
    for number in range(rounds + 1):
        for count in connections:
            for name, url in urls.items():
                found = measure(url, count)
                if number:
                    results.setdefault((name, count), []).append(found)
    return results


def table(results: dict[tuple[str, int], list[dict[str, float]]]) -> list[dict[str, Any]]:
    rows = []
    for (name, count), found in sorted(results.items(), key=lambda item: (item[0][1], item[0][0] != OURS)):
        peers = results[PLAIN, count]
        rows.append(
            {
                "server": name,
                "connections": count,
                "requests": spread([one["per_second"] for one in found], "/s"),
                "p50": spread([one["p50_us"] for one in found], "µs"),
                "p99": spread([one["p99_us"] for one in found], "µs"),
                "of plain": spread([a["per_second"] / b["per_second"] for a, b in zip(found, peers, strict=True)], "x"),
            }
        )
    return rows


def main() -> None:
    parser = arguments(__doc__ or "", rounds=5)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--connections", default="1,16,64", help="numbers of connections")
    parser.add_argument("--without-mlserver", action="store_true", help="leave the environment for MLServer alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlkit-infer-") as place, ExitStack() as stack:
        folder = Path(place)
        bundle = bundle_of(folder / "state")
        body = body_of(bundle)
        (folder / "body.json").write_bytes(body)
        urls = {OURS: stack.enter_context(gateway(bundle, folder / "state"))}
        urls[PLAIN] = stack.enter_context(plain(bundle))
        if not options.without_mlserver:
            urls[PEER] = stack.enter_context(mlserver(bundle, folder))
        same_answers({name: await_answer(url, body) for name, url in urls.items()})

        def measure(url: str, count: int) -> dict[str, float]:
            return load(url, folder / "body.json", count, options.seconds)

        connections = [int(count) for count in options.connections.split(",")]
        rows = table(rounds_of(urls, measure, options.rounds, connections))
    report("POST /v2/models/lending/infer, one row", rows, options.out)
    bar = next((row["of plain"] for row in rows if row["server"] == OURS and row["connections"] == 16), None)
    if bar is not None:
        print(f"  at 16 connections: {bar.median:.2f} of {PLAIN}; bar: at least {BAR}")
        if bar.median < BAR:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
