"""An open-loop client in a process of its own: requests at times fixed beforehand, whatever the replies do.

    python -m benchmarks.steady URL BODY_FILE RATE SECONDS OUT [--retries N] [--users N] [--header 'name: value']...
        [--mix BODY_FILE SHARE]...

A request's latency counts from the time at which it was due, so a server that stalls is charged with every request that
it kept waiting (no coordinated omission). A connection that breaks before a reply came is opened anew and, with
``--retries``, the request is sent again: it is idempotent. OUT is {"start": seconds since the epoch, "lines": [[seconds
since the start, seconds it took, status, variant], ...]}; status 0 is a request that got no reply. ``--users`` deals
out an x-user header; ``--mix`` sends another body for a share of the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

DEADLINE = 15.0
PAUSE = 0.1
"""Before a request is sent again."""


class Client:
    """Keep-alive connections, used one request at a time each; as many as there are requests in flight."""

    def __init__(self, options: argparse.Namespace) -> None:
        parts = urlsplit(options.url)
        self.host, self.port = parts.hostname or "", parts.port or 80
        self.body = Path(options.body).read_bytes()
        self.mix = [(Path(file).read_bytes(), float(share)) for file, share in options.mix]
        self.chance = random.Random(0)
        self.start = 0.0
        more = "".join(f"{header}\r\n" for header in options.header)
        self.head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n{more}"
        self.options = options
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.lines: list[tuple[float, float, int, str]] = []

    async def one(self, number: int, start: float, due: float) -> None:
        user = f"x-user: user-{number % self.options.users}\r\n" if self.options.users else ""
        body = self.choose()
        request = f"{self.head}{user}content-length: {len(body)}\r\n\r\n".encode() + body
        status, variant = 0, ""
        for _ in range(1 + self.options.retries):
            try:
                async with asyncio.timeout(DEADLINE):
                    status, variant = await self.ask(request)
                break
            except (OSError, EOFError, TimeoutError, ValueError):
                self.close_idle()  # the next try is on a connection of its own, when a dying process let go of its port
                await asyncio.sleep(PAUSE)
        self.lines.append((due - start, time.perf_counter() - due, status, variant))

    def close_idle(self) -> None:
        """Let go of connections that may lead to the same dead process."""
        while self.idle:
            self.idle.pop()[1].close()

    def choose(self) -> bytes:
        """The body of the next request."""
        place = self.chance.random()
        for body, share in self.mix:
            if place < share:
                return body
            place -= share
        return self.body

    async def ask(self, request: bytes) -> tuple[int, str]:
        connection = self.idle.pop() if self.idle else await asyncio.open_connection(self.host, self.port)
        reader, writer = connection
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            await reader.readexactly(int(fields["content-length"]))
        except BaseException:
            writer.close()
            raise
        if fields.get("connection") == "close":
            writer.close()
        else:
            self.idle.append(connection)
        return int(head.split(" ", 2)[1]), fields.get("x-mlkit-variant", "")

    async def run(self) -> None:
        rate, count = self.options.rate, int(self.options.rate * self.options.seconds)
        start = time.perf_counter() + 0.2
        self.start = time.time() + 0.2
        running = set()
        for number in range(count):
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.ensure_future(self.one(number, start, due))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("body")
    parser.add_argument("rate", type=float)
    parser.add_argument("seconds", type=float)
    parser.add_argument("out", type=Path)
    parser.add_argument("--retries", type=int, default=0)
    parser.add_argument("--users", type=int, default=0)
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--mix", action="append", nargs=2, default=[])
    client = Client(parser.parse_args())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(client.run())
    client.options.out.write_text(json.dumps({"start": client.start, "lines": client.lines}))


if __name__ == "__main__":
    main()
