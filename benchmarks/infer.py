"""POST /v2/models/lending/infer, one row, at 1, 16 and 64 connections: requests a second and latency.

Peers, in turns in the same run, with the same graph and the same body: plain uvicorn with ONNX Runtime (the limit of
this road; bars: at least 0.8 of its requests at 16 connections, at most twice its 99th percentile at 64), MLServer as
it comes (bar: at least 3 times it) and
without its pool of inference processes (``parallel_workers: 0``, its quickest setting for a model this small), LitServe
and BentoML, each installed on first use into an environment of its own under benchmarks/.cache. Ours is the gateway on
Ray Serve, one replica, with everything on: API keys, validation, a sticky split between two variants by a header,
metrics, the prediction log and whylogs profiles. The load generator is a process of its own (benchmarks.load).

    python -m benchmarks.infer --rounds 5 --seconds 2
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import mlflowkit as mk
from benchmarks.clients import make
from benchmarks.process import Spread, arguments, report, spread
from mlflowkit.adapters.ray_serve import RayServePlatform
from mlflowkit.bundle import Bundle, open_bundle
from mlflowkit.serving import auth
from mlflowkit.stages.deploy import ServeSection
from mlflowkit.values import Affinity, RoutingTable, Variant

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "lending.yaml"
OURS, PLAIN, MLSERVER = "mlkit gateway on Ray Serve", "uvicorn + ONNX Runtime", "MLServer"
MLSERVER_IN_PROCESS = "MLServer without its pool"
LITSERVE, BENTOML = "LitServe", "BentoML"
BAR, P99_BAR, MLSERVER_BAR = 0.8, 2.0, 3.0
PAUSE_SECONDS = 2.0
"""Before each measurement: what a server left for later (ours: log and profiles) must not fall into another's turn."""
BAR_CONNECTIONS, P99_CONNECTIONS = 16, 64
PATH = "/v2/models/lending/infer"


def bundle_of(folder: Path) -> Bundle:
    """The blessed bundle of recipes/lending.yaml, made for the occasion."""
    answer = mk.run(RECIPE, until="package", state=folder).answer
    if answer["bundle"] is None:
        raise RuntimeError(f"no bundle was made: {answer['status']}; {[one['message'] for one in answer['verdicts']]}")
    return open_bundle(Path(answer["bundle"]), blessed=True)


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
def gateway(bundle: Bundle, folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Our service with its local Ray, and the headers of a client that it knows; both are stopped afterwards."""
    key, token = auth.make_key(("infer",), "benchmark")
    auth.write_keys(folder / "keys.json", [key])
    platform = RayServePlatform(folder)
    section = ServeSection.model_validate(
        {"service": "lending", "port": 0, "auth": {"keys": str(folder / "keys.json")},
         "routing": {"affinity": "header", "name": "x-user"}}
    )  # fmt: skip
    try:
        endpoint = platform.ensure(section)
        platform.publish(split(bundle, 1, 0.5))
        yield f"{endpoint}{PATH}", (f"authorization: Bearer {token}", "x-user: ann")
    finally:
        platform.down()


def split(bundle: Bundle, epoch: int, weight: float) -> RoutingTable:
    """The bundle as champion and as challenger with ``weight``, dealt out by the header x-user."""
    same = (bundle.manifest.version, bundle.manifest.identity, str(bundle.path))
    variants = (
        Variant("champion", *same, weight=1.0 - weight),
        Variant("challenger", *same, role="challenger", weight=weight),
    )
    return RoutingTable(
        "lending", epoch, variants, experiment="bench", salt="bench", affinity=Affinity("header", "x-user")
    )


@contextmanager
def plain(bundle: Bundle) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.infer_plain", str(bundle.model), str(port)]
    with running(command, ROOT, {}):
        yield f"http://127.0.0.1:{port}{PATH}"


@contextmanager
def mlserver(bundle: Bundle, folder: Path, *, pool: bool = True) -> Iterator[str]:
    """MLServer, with its pool of inference processes as by default, or without."""
    home = make("mlserver")
    place = folder / f"mlserver-{'pool' if pool else 'in-process'}"
    place.mkdir()
    ports = [free_port() for _ in range(3)]
    settings = {
        "host": "127.0.0.1",
        "http_port": ports[0],
        "grpc_port": ports[1],
        "metrics_port": ports[2],
        "debug": False,
        **({} if pool else {"parallel_workers": 0}),
    }
    model = {
        "name": "lending",
        "implementation": "infer_mlserver.OnnxModel",
        "parameters": {"uri": str(bundle.model)},
    }
    (place / "settings.json").write_text(json.dumps(settings))
    (place / "model-settings.json").write_text(json.dumps(model))
    with running([str(home / "bin" / "mlserver"), "start", "."], place, {"PYTHONPATH": str(ROOT / "benchmarks")}):
        yield f"http://127.0.0.1:{ports[0]}{PATH}"


@contextmanager
def litserve(bundle: Bundle, folder: Path) -> Iterator[str]:
    port = free_port()
    script = str(ROOT / "benchmarks" / "infer_litserve.py")
    home = make("litserve")
    with running([str(home / "bin" / "python"), script, str(bundle.model), str(port)], folder, {}):
        yield f"http://127.0.0.1:{port}{PATH}"


@contextmanager
def bentoml(bundle: Bundle, folder: Path) -> Iterator[str]:
    port = free_port()
    home = make("bentoml")
    command = [str(home / "bin" / "bentoml"), "serve", "infer_bentoml:Lending", "--host", "127.0.0.1"]
    settings = {"MODEL": str(bundle.model), "BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOME": str(folder / "bento")}
    with running([*command, "--port", str(port)], ROOT / "benchmarks", settings):
        yield f"http://127.0.0.1:{port}{PATH}"


@contextmanager
def running(command: list[str], cwd: Path, env: dict[str, str]) -> Iterator[None]:
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **env}, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what its workers left
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_answer(url: str, body: bytes, headers: Sequence[str] = (), seconds: float = 60.0) -> Any:
    """The first answer of a server, once it has one."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            more = dict(header.split(": ", 1) for header in headers)
            asked = urllib.request.Request(url, body, {"content-type": "application/json", **more})
            with urllib.request.urlopen(asked, timeout=10) as reply:
                return json.loads(reply.read())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def load(url: str, body: Path, connections: int, seconds: float, headers: Sequence[str] = ()) -> dict[str, float]:
    """One measurement by a load generator of its own. Raises RuntimeError when a request failed."""
    command = [sys.executable, "-m", "benchmarks.load", url, str(body), str(connections), str(seconds), *headers]
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
                time.sleep(PAUSE_SECONDS)
                found = measure(url, count)
                if number:
                    results.setdefault((name, count), []).append(found)
    return results


def table(results: dict[tuple[str, int], list[dict[str, float]]]) -> list[dict[str, Any]]:
    rows = []
    for (name, count), found in sorted(results.items(), key=lambda item: (item[0][1], item[0][0] != OURS)):
        peers = results[PLAIN, count]
        ours = results[OURS, count]
        rows.append(
            {
                "server": name,
                "connections": count,
                "requests": spread([one["per_second"] for one in found], "/s"),
                "p50": spread([one["p50_us"] for one in found], "µs"),
                "p99": spread([one["p99_us"] for one in found], "µs"),
                "of plain": quotient(found, peers),
                "p99 to plain": quotient(found, peers, figure="p99_us"),
                "ours to it": quotient(ours, found),
            }
        )
    return rows


def quotient(left: list[dict[str, float]], right: list[dict[str, float]], figure: str = "per_second") -> Spread:
    """A figure of one server (requests a second) as a multiple of another's, round by round."""
    return spread([a[figure] / b[figure] for a, b in zip(left, right, strict=True)], "x")


def main() -> None:
    parser = arguments(__doc__ or "", rounds=5)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--connections", default="1,16,64", help="numbers of connections")
    parser.add_argument(
        "--peers",
        default="mlserver,mlserver-in-process,litserve,bentoml",
        help="which to install and measure beside ours",
    )
    options = parser.parse_args()
    peers = {
        "mlserver": (MLSERVER, mlserver),
        "mlserver-in-process": (MLSERVER_IN_PROCESS, partial(mlserver, pool=False)),
        "litserve": (LITSERVE, litserve),
        "bentoml": (BENTOML, bentoml),
    }
    with tempfile.TemporaryDirectory(prefix="mlkit-infer-") as place, ExitStack() as stack:
        folder = Path(place)
        bundle = bundle_of(folder / "state")
        body = body_of(bundle)
        (folder / "body.json").write_bytes(body)
        ours, headers = stack.enter_context(gateway(bundle, folder / "state"))
        urls = {OURS: ours, PLAIN: stack.enter_context(plain(bundle))}
        for peer in filter(None, options.peers.split(",")):
            name, start = peers[peer]
            urls[name] = stack.enter_context(start(bundle, folder))
        same_answers({name: await_answer(url, body, headers) for name, url in urls.items()})

        def measure(url: str, count: int) -> dict[str, float]:
            return load(url, folder / "body.json", count, options.seconds, headers if url == ours else ())

        connections = [int(count) for count in options.connections.split(",")]
        rows = table(rounds_of(urls, measure, options.rounds, connections))
    report(f"POST {PATH}, one row; ours with keys, a sticky split, log and profiles", rows, options.out)
    raise SystemExit(judged(rows))


def judged(rows: list[dict[str, Any]]) -> int:
    """Print how ours stands to the bars; 1 when it misses one."""
    missed = 0
    for row in rows:
        if row["server"] == OURS:
            share, late = row["of plain"].median, row["p99 to plain"].median
            missed |= row["connections"] == BAR_CONNECTIONS and share < BAR
            missed |= row["connections"] == P99_CONNECTIONS and late > P99_BAR
            bars = f"bars: at least {BAR} at {BAR_CONNECTIONS}, p99 at most {P99_BAR:g}x at {P99_CONNECTIONS}"
            print(f"  {row['connections']} connections: {share:.2f} of {PLAIN}, p99 {late:.2f}x its; {bars}")
        elif row["server"] == MLSERVER:
            missed |= row["ours to it"].median < MLSERVER_BAR
            print(
                f"  {row['connections']} connections: {row['ours to it'].median:.2f}x MLServer; bar: {MLSERVER_BAR:g}x"
            )
        elif row["server"] == MLSERVER_IN_PROCESS:
            print(f"  {row['connections']} connections: {row['ours to it'].median:.2f}x {MLSERVER_IN_PROCESS}")
    return int(missed)


if __name__ == "__main__":
    main()
