"""What the replays of this folder share: a recipe that is run, rows that are sent one by one, single requests."""

from __future__ import annotations

import http.client
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MLKIT = (sys.executable, "-c", "from mlflowkit.cli import main; main()")
CONNECTIONS = 4


@dataclass(frozen=True)
class Row:
    """A request of one row: its id, by which its outcome is told later, and its body."""

    id: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def say(line: str) -> None:
    """Print a line at once, also into a file."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def call(url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:
    """One request on a connection of its own; the JSON of its reply, None where it has none."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)
    try:
        kind = {"content-type": "application/json"}
        method = "GET" if body is None else "POST"
        connection.request(method, parts.path, body, {**kind, **(headers or {})})
        reply = connection.getresponse()
        content = reply.read()
        return json.loads(content) if reply.status < 300 and content else None
    finally:
        connection.close()


class Sender:
    """Threads with a connection each that send rows to a service, and count what becomes of them.

    ``positive`` is the class whose answers are counted.
    """

    def __init__(self, endpoint: str, positive: str) -> None:
        self.parts = urlsplit(endpoint)
        self.work: queue.Queue[Row | None] = queue.Queue()
        self.lock = threading.Lock()
        self.positive = f'"label":{json.dumps(positive)}'.encode()
        self.answered = self.positives = self.failed = 0
        self.problem = ""
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(CONNECTIONS)]
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        """End when all is sent."""
        for _ in self.threads:
            self.work.put(None)
        for thread in self.threads:
            thread.join()

    def take_counts(self) -> tuple[int, int, int]:
        """Answered, answered with the positive class, and failed since the last call."""
        with self.lock:
            counts = self.answered, self.positives, self.failed
            self.answered = self.positives = self.failed = 0
            return counts

    def _run(self) -> None:
        connection = self._connect()
        while (item := self.work.get()) is not None:
            try:
                self._send(connection, item)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                connection = self._connect()
                with self.lock:
                    self.failed += 1
                    self.problem = repr(error)
            finally:
                self.work.task_done()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(str(self.parts.hostname), self.parts.port, timeout=10)

    def _send(self, connection: http.client.HTTPConnection, item: Row) -> None:
        headers = {"content-type": "application/json", "x-request-id": item.id, **item.headers}
        connection.request("POST", "/predict", item.body, headers)
        reply = connection.getresponse()
        content = reply.read()
        with self.lock:
            if reply.status == 200:
                self.answered += 1
                self.positives += content.count(self.positive)
            else:
                self.failed += 1
                self.problem = content.decode(errors="replace")[:300]


def run_recipe(recipe: Path, overrides: Sequence[str], state: Path) -> Mapping[str, Any]:
    """Run a recipe and return its service from `mlkit status`. Ends the program when the run fails."""
    command = ["run", str(recipe), *overrides, "--state", str(state)]
    say("$ mlkit " + " ".join(command))
    environment = {"OMP_NUM_THREADS": "1", **os.environ}  # the service, its clients and a training share the cores
    if subprocess.run([*MLKIT, *command], check=False, env=environment).returncode:
        raise SystemExit("the recipe did not run to its end: see above")
    status = subprocess.run([*MLKIT, "status", "--state", str(state), "--json"], check=True, capture_output=True)
    services: Sequence[Mapping[str, Any]] = json.loads(status.stdout)["services"]
    return next(service for service in services if service["service"] == recipe.stem)


def next_window(seconds: float) -> float:
    """When the next window of this length begins, on the monotonic clock: windows are at multiples of their length."""
    return time.monotonic() + seconds - time.time() % seconds


def wait_until(moment: float) -> None:
    """Sleep until a time of the monotonic clock, if it is not over; short waits are saved up."""
    left = moment - time.monotonic()
    if left > 0.02:
        time.sleep(left)
