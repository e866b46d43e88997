"""A load generator in a process of its own: the same request again and again over keep-alive connections.

    python -m benchmarks.load URL BODY_FILE CONNECTIONS SECONDS [HEADER...]

Prints {"requests", "errors", "seconds", "per_second", "p50_us", "p99_us"} as JSON. Closed loop: each connection sends
its next request when it has the reply to the last, so latencies are those at that load and not at a given rate.
It speaks just enough HTTP to need a third of the CPU that the quickest server needs: content-length, no chunks.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import uvloop


class Connection(asyncio.Protocol):
    """One keep-alive connection that is never idle."""

    def __init__(self, request: bytes, latencies: list[float], errors: list[bytes]) -> None:
        self.request = request
        self.latencies = latencies
        self.errors = errors
        self.buffer = b""
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        at = head.index(b"content-length:") + 15
        stop = head.find(b"\r", at)
        length = int(head[at : stop if stop > 0 else None])
        if len(self.buffer) < end + 4 + length:
            return
        self.latencies.append(time.perf_counter() - self.sent)
        if not self.buffer.startswith(b"HTTP/1.1 200"):
            self.errors.append(self.buffer[:300])
        self.buffer = b""
        self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self.errors.append(repr(error).encode())


async def drive(url: str, body: bytes, connections: int, seconds: float, headers: list[str]) -> dict[str, float]:
    """Load ``url`` for ``seconds`` after a warm-up of a tenth of that."""
    parts = urlsplit(url)
    more = "".join(f"{header}\r\n" for header in headers)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n{more}\r\n"
    )
    request = head.encode() + body
    latencies: list[float] = []
    errors: list[bytes] = []
    loop = asyncio.get_running_loop()
    opened = [
        await loop.create_connection(lambda: Connection(request, latencies, errors), parts.hostname, parts.port)
        for _ in range(connections)
    ]
    await asyncio.sleep(seconds / 10)
    latencies.clear()
    begin = time.perf_counter()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - begin
    found = sorted(latencies)
    for transport, _ in opened:
        transport.abort()
    if errors:
        sys.stderr.write(errors[0].decode(errors="replace") + "\n")
    return {
        "requests": len(found),
        "errors": len(errors),
        "seconds": took,
        "per_second": len(found) / took,
        "p50_us": 1e6 * found[len(found) // 2] if found else 0.0,
        "p99_us": 1e6 * found[int(len(found) * 0.99)] if found else 0.0,
    }


def main() -> None:
    url, body, connections, seconds, *headers = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(drive(url, Path(body).read_bytes(), int(connections), float(seconds), headers))
        print(json.dumps(found))


if __name__ == "__main__":
    main()
