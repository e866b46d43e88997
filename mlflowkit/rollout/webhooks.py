"""Tells others what a rollout does: one signed POST an event, tried again until it is taken, out of the loop's way.

The body is JSON, UTF-8, as sent byte for byte::

    {"id", "event", "service", "experiment", "strategy", "step", "weight", "champion", "candidate", "message", "time"}

Headers of every attempt::

    x-mlkit-delivery:  the event's id, the same at every attempt
    x-mlkit-timestamp: seconds since the epoch, of this attempt
    x-mlkit-signature: v1=<hex of HMAC-SHA256(key, timestamp + "." + body)>, where the hook has a key

A receiver computes the signature over the bytes that it got, compares in constant time, and refuses a timestamp that
is more than five minutes off and an id that it has had (`verify` does the first three). An answer of 200 to 299 takes
the event; 408, 429, 5xx and no answer are tried again after 1, 2, 4, ... 64 s; anything else is final.

What waits is ``<service>/webhooks/*.json``; what became of the last hundred is ``<service>/webhooks.json``. Neither
holds a key: a key is read from the controller's environment when it signs.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.rollout.settings import Webhook
from mlflowkit.rollout.state import RolloutState, Tell
from mlflowkit.service_state.records import ServiceFiles, read_json, write_json
from mlflowkit.values import Json

TOLERANCE_SECONDS = 300.0
TIMEOUT_SECONDS = 5.0
ATTEMPTS = 8
KEPT = 100
POLL_SECONDS = 0.2
RETRY_SECONDS = 5.0
_log = logging.getLogger("mlflowkit.rollout")
AGAIN = frozenset((408, 429, *range(500, 600)))


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one hook. ``secret_env`` names the key's environment variable; "" where there is none."""

    id: str
    url: str
    secret_env: str
    event: str
    body: str
    due: float
    attempts: int = 0
    error: str = ""


def sign(key: bytes, body: bytes, timestamp: str) -> str:
    """What ``x-mlkit-signature`` holds.

    >>> sign(b"key", b"{}", "1764000000")[:19]
    'v1=135a1a8c79ff2a07'
    """
    return "v1=" + hmac.new(key, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def verify(key: bytes, body: bytes, headers: Mapping[str, str], *, now: float) -> bool:
    """Whether a delivery was signed with ``key`` and is fresh; header names in lower case.

    >>> headers = {"x-mlkit-timestamp": "100", "x-mlkit-signature": sign(b"key", b"{}", "100")}
    >>> verify(b"key", b"{}", headers, now=130.0), verify(b"key", b"{}", headers, now=500.0)
    (True, False)
    """
    timestamp, signature = headers.get("x-mlkit-timestamp", ""), headers.get("x-mlkit-signature", "")
    if not timestamp.isascii() or not timestamp.isdigit() or abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    return hmac.compare_digest(sign(key, body, timestamp).encode(), signature.encode())


def enqueue(files: ServiceFiles, state: RolloutState, tell: Tell) -> None:
    """Leave an event for every hook of the plan that wants it. One that was left before is not left again."""
    body = {
        "id": tell.key,
        "event": tell.event,
        "service": state.service,
        "experiment": state.experiment,
        "strategy": state.strategy,
        "step": tell.step + 1,
        "weight": tell.weight,
        "champion": state.champion.version,
        "candidate": state.candidate.version,
        "message": tell.message,
        "time": tell.time,
    }
    known = {one["id"] for one in history(files)}
    for number, hook in enumerate(state.plan.webhooks):
        path = files.folder / "webhooks" / f"{tell.key}-{number}.json"
        if tell.event in hook.events and path.stem not in known and not path.exists():
            write_json(path, asdict(_delivery(path.stem, hook, tell.event, body, tell.time)))


def history(files: ServiceFiles) -> list[dict[str, Json]]:
    """What became of the last deliveries, newest last: {id, event, url, time, ok, status, attempts, error}."""
    return read_json(files.folder / "webhooks.json") or []


class Courier:
    """Delivers what waits in the services' folders, from a thread of its own, until it is left."""

    def __init__(self, state: Path, clock: Callable[[], float] = time.time) -> None:
        self._state = state
        self._clock = clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlkit-webhooks", daemon=True)

    def __enter__(self) -> Courier:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(TIMEOUT_SECONDS + 1.0)

    def deliver(self) -> None:
        """Try everything that is due once. A delivery's failure is recorded, never raised."""
        for files in ServiceFiles.all(self._state):
            folder = files.folder / "webhooks"
            for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
                if self._stopping.is_set():
                    return
                self._try(files, path)

    def _run(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            try:
                self.deliver()
            except MlkitError as error:  # a full disk: what waits stays, and is tried again
                _log.warning("webhooks: %s", error.message)
                self._stopping.wait(RETRY_SECONDS)
            except Exception:  # noqa: BLE001 - a fault of ours here must not end the thread; told with its traceback
                _log.exception("webhooks are not delivered")
                self._stopping.wait(RETRY_SECONDS)

    def _try(self, files: ServiceFiles, path: Path) -> None:
        try:
            waiting = Delivery(**read_json(path))
        except (ServiceError, TypeError) as damage:
            _log.error("%s is damaged and was removed: %s", path, damage)
            path.unlink(missing_ok=True)
            return
        if self._clock() < waiting.due:
            return
        status, error = self._post(waiting)
        attempts = waiting.attempts + 1
        ok = 200 <= status < 300
        again = not ok and (status == 0 or status in AGAIN) and attempts < ATTEMPTS
        if again:
            due = self._clock() + 2.0 ** (attempts - 1)
            write_json(path, asdict(replace(waiting, attempts=attempts, due=due, error=error)), durable=False)
            return
        self._record(files, waiting, ok, status, attempts, error)
        path.unlink(missing_ok=True)

    def _post(self, waiting: Delivery) -> tuple[int, str]:
        """(status, error) of one attempt; status 0 when there was no answer, -1 when it cannot be sent at all."""
        body, timestamp = waiting.body.encode(), str(int(self._clock()))
        headers = {"content-type": "application/json", "user-agent": "mlflowkit", "x-mlkit-delivery": waiting.id,
                   "x-mlkit-timestamp": timestamp}  # fmt: skip
        if waiting.secret_env:
            key = os.environ.get(waiting.secret_env)
            if not key:
                return -1, f"the controller's environment has no {waiting.secret_env} to sign with"
            headers["x-mlkit-signature"] = sign(key.encode(), body, timestamp)
        try:
            return _request(waiting.url, body, headers)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return 0, f"{type(error).__name__}: {error}"

    def _record(self, files: ServiceFiles, waiting: Delivery, ok: bool, status: int, attempts: int, error: str) -> None:
        one = {"id": waiting.id, "event": waiting.event, "url": _shown(waiting.url), "time": self._clock(), "ok": ok,
               "status": max(0, status), "attempts": attempts, "error": error}  # fmt: skip
        write_json(files.folder / "webhooks.json", [*history(files), one][-KEPT:])


def _delivery(id: str, hook: Webhook, event: str, body: Mapping[str, Json], due: float) -> Delivery:
    return Delivery(id, hook.url, hook.secret_env or "", event, json.dumps({**body, "id": id}), due)


def _request(url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, str]:
    """One POST; redirects are not followed, for the signature is meant for the hook's own host."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path, body, dict(headers))
        reply = connection.getresponse()
        reply.read(4096)
        return reply.status, "" if 200 <= reply.status < 300 else f"HTTP {reply.status}"
    finally:
        connection.close()


def _shown(url: str) -> str:
    """A hook's URL without what may be secret in it: user, password and query."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
