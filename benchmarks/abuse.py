"""Clients that abuse a gateway, beside one that behaves: the gateway's memory, and the other's 99th percentile.

A gateway with everything on runs in a process of its own, without API keys. A well-behaved client sends a request every
10 ms, undisturbed and beside each attack, in turns within each round: endless trailers and heads, slow heads and slow
bodies on hundreds of connections, clients that never read their replies, feedback for requests that never were, idle
and half-open connections, requests that run ahead of their answers, gzip bombs. Bars: under every attack, gateway and
observer grow by at most 50 MB, and the well-behaved client's 99th percentile, counted from when each request was due,
is at most three times its undisturbed one of the same round (medians); none of its requests fails.

    python -m benchmarks.abuse --rounds 3 --seconds 4
"""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks import fuzz
from benchmarks.fuzz_requests import COLUMNS
from benchmarks.process import arguments, report, spread

MEMORY_BAR_MB, LATENCY_BAR = 50.0, 3.0
INTERVAL = 0.01
"""Seconds between two requests of the client that behaves."""
QUIET = "undisturbed"
ROW = {**dict.fromkeys(COLUMNS[:3], 1.0), **dict.fromkeys(COLUMNS[3:], "car")}
HOST = b"host: localhost\r\n"
POST = b"POST /predict HTTP/1.1\r\n" + HOST
CHUNKED = b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"


class Attack:
    """Attacks a port with ``threads`` threads until `stop`."""

    def __init__(self, act: Callable[[int, threading.Event], None], port: int, threads: int) -> None:
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(act, port), daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _repeat(self, act: Callable[[int, threading.Event], None], port: int) -> None:
        while not self._over.is_set():
            with suppress(OSError):
                act(port, self._over)
            self._over.wait(0.05)

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(20)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=2)


def endless(first: bytes, more: bytes) -> Callable[[int, threading.Event], None]:
    """Sends the same bytes until it is cut off."""

    def act(port: int, over: threading.Event) -> None:
        with connect(port) as connection:
            connection.sendall(first)
            while not over.wait(0.002):
                connection.sendall(more)

    return act


def dripping(first: bytes, drop: bytes, count: int) -> Callable[[int, threading.Event], None]:
    """Holds ``count`` connections, with a few bytes on each a second."""

    def act(port: int, over: threading.Event) -> None:
        with ExitStack() as stack:
            crowd = [stack.enter_context(connect(port)) for _ in range(count)]
            for connection in crowd:
                connection.sendall(first)
            while not over.wait(1.0):
                for connection in crowd:
                    with suppress(OSError):
                        connection.sendall(drop)

    return act


def idle(port: int, over: threading.Event) -> None:
    """Holds connections that ask for nothing: half of them have asked once."""
    with ExitStack() as stack:
        for number in range(400):
            connection = stack.enter_context(connect(port))
            if number % 2:
                connection.sendall(b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n")
        over.wait(5.0)


def never_reading(port: int, over: threading.Event) -> None:
    """Asks for large replies and reads none of them."""
    request = b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n"
    with ExitStack() as stack:
        for _ in range(10):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.settimeout(0.2)
            connection.connect(("127.0.0.1", port))
            with suppress(OSError):
                connection.sendall(request * 60)
        over.wait(5.0)


def feedback(port: int, over: threading.Event) -> None:
    """Sends feedback for requests that never were."""
    items = [{"id": f"{number:024x}", "label": "good"} for number in range(500)]
    body = json.dumps({"feedback": items}).encode()
    head = b"POST /v2/feedback HTTP/1.1\r\n" + HOST + b"content-type: application/json\r\n"
    with connect(port) as connection:
        while not over.is_set():
            connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            connection.recv(65536)
            over.wait(0.1)


def pipelining(port: int, over: threading.Event) -> None:
    """Sends thousands of requests without reading an answer."""
    with connect(port) as connection:
        connection.sendall((b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n") * 5000)
        over.wait(0.5)


def bombs(port: int, over: threading.Event) -> None:
    """Sends 256 MiB of zeros in one."""
    with connect(port) as connection:
        connection.sendall(POST + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(BOMB) + BOMB)
        connection.recv(65536)
        over.wait(0.2)


BOMB = gzip.compress(bytes(256 << 20), 1)
ATTACKS: dict[str, tuple[Callable[[int, threading.Event], None], int]] = {
    "endless trailers": (endless(CHUNKED, b"a: b\r\n" * 2000), 2),
    "endless heads": (endless(b"GET /v2 HTTP/1.1\r\n", b"a: b\r\n" * 2000), 2),
    "slow heads": (dripping(b"GET /v2 HTTP/1.1\r\nx-slow: ", b"a", 500), 1),
    "slow bodies": (dripping(POST + b"content-length: 1000\r\n\r\n", b" ", 500), 1),
    "replies never read": (never_reading, 2),
    "feedback flood": (feedback, 2),
    "idle and half-open": (idle, 3),
    "pipelined without reading": (pipelining, 2),
    "gzip bombs": (bombs, 2),
}


def behave(port: int, seconds: float) -> dict[str, float]:
    """One request every INTERVAL on one connection: the 99th percentile in ms, from when each was due, and failures."""
    body, latencies, failed = json.dumps({"rows": [ROW]}), [], 0
    connection = http.client.HTTPConnection("localhost", port, timeout=5)
    begin = time.perf_counter()
    for number in range(int(seconds / INTERVAL)):
        due = begin + number * INTERVAL
        time.sleep(max(0.0, due - time.perf_counter()))
        try:
            connection.request("POST", "/predict", body, {"content-type": "application/json"})
            reply = connection.getresponse()
            reply.read()
            failed += reply.status != 200
        except OSError:
            connection.close()
            failed += 1
        latencies.append(1e3 * (time.perf_counter() - due))
    latencies.sort()
    return {"p50": latencies[len(latencies) // 2], "p99": latencies[int(len(latencies) * 0.99)], "failed": failed}


def memory_mb(process: psutil.Process) -> float:
    """Resident memory of the gateway and its observer."""
    total = 0.0
    for member in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += member.memory_info().rss / 2**20
    return total


def measure(name: str, process: psutil.Process, port: int, seconds: float) -> dict[str, float]:
    """The client's figures beside one attack, and how much the memory grew at most."""
    before, peak, over = memory_mb(process), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peak[0] = max(peak[0], memory_mb(process))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    attack = None if name == QUIET else Attack(ATTACKS[name][0], port, ATTACKS[name][1])
    try:
        command = [sys.executable, "-m", "benchmarks.abuse", "--client", str(port), "--seconds", str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    finally:
        if attack is not None:
            attack.stop()
        over.set()
        watcher.join()
    figures: dict[str, float] = json.loads(done.stdout)
    return {**figures, "growth": max(0.0, peak[0] - before)}


def table(results: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    quiet = results[QUIET]
    return [
        {
            "attack": name,
            "p50": spread([result["p50"] for result in rounds], "ms"),
            "p99": spread([result["p99"] for result in rounds], "ms"),
            "to undisturbed": spread([a["p99"] / b["p99"] for a, b in zip(rounds, quiet, strict=True)], "x"),
            "growth": spread([result["growth"] for result in rounds], "MB"),
            "failed": int(sum(result["failed"] for result in rounds)),
        }
        for name, rounds in results.items()
    ]


def judged(rows: list[dict[str, Any]]) -> int:
    """Print the worst figures beside their bars; 1 when one is missed."""
    growth = max(row["growth"].high for row in rows)
    slowest = max(row["to undisturbed"].median for row in rows)
    failed = sum(row["failed"] for row in rows)
    print(f"  memory grew by at most {growth:.0f} MB; bar: {MEMORY_BAR_MB:g} MB")
    print(f"  p99 was at most {slowest:.1f} times the undisturbed one; bar: {LATENCY_BAR:g}")
    print(f"  {failed} requests of the well-behaved client failed; bar: 0")
    return int(growth > MEMORY_BAR_MB or slowest > LATENCY_BAR or failed > 0)


def main() -> None:
    parser = arguments(__doc__ or "", rounds=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--client", type=int, default=0, help="only behave, towards this port")
    options = parser.parse_args()
    if options.client:
        print(json.dumps(behave(options.client, options.seconds)))
        return
    with tempfile.TemporaryDirectory(prefix="mlkit-abuse-") as place, fuzz.target(Path(place)) as (process, port, _):
        measure(QUIET, process, port, options.seconds)  # warm, not counted
        results: dict[str, list[dict[str, float]]] = {}
        for _ in range(options.rounds):
            for name in (QUIET, *ATTACKS):
                results.setdefault(name, []).append(measure(name, process, port, options.seconds))
                time.sleep(1.0)
    rows = table(results)
    report("A well-behaved client beside abusive ones, one gateway", rows, options.out)
    raise SystemExit(judged(rows))


if __name__ == "__main__":
    main()
