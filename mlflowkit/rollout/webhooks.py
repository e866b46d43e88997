"""Deliver rollout events to webhooks: one signed POST per event, retried outside the controller's loop.

The body is JSON, UTF-8, signed as the bytes that are sent::

    {"id", "event", "service", "experiment", "strategy", "step", "weight", "champion", "candidate", "message", "time"}

Every attempt has the headers of Standard Webhooks (https://www.standardwebhooks.com), so its libraries verify it. The
key is ``whsec_`` + base64 as they expect, or any other text, whose UTF-8 bytes are then the secret::

    webhook-id:        the event's id, the same for every attempt
    webhook-timestamp: seconds since the epoch, of this attempt
    webhook-signature: v1,<base64 of HMAC-SHA256(key, id + "." + timestamp + "." + body)>, if the hook has a key

The same values as ``x-mlkit-delivery``, ``x-mlkit-timestamp`` and ``x-mlkit-signature``
(v1=<hex of HMAC-SHA256(key, timestamp + "." + body)>) are deprecated.

A receiver computes the signature over the received bytes, compares in constant time, and rejects timestamps more than
five minutes off and ids that it has processed (`verify` does all but the last). A status of 200 to 299 accepts the
event; 408, 429, 5xx and connection failures are retried after 1, 2, 4, ... 64 s; any other status is final.

Pending deliveries are ``<service>/webhooks/*.json``; the results of the last hundred are in
``<service>/webhooks.json``. Keys are never stored: they are read from the controller's environment when signing.
"""

from __future__ import annotations

import base64
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
from mlflowkit.rollout.state import Notify, RolloutState
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.values import Json

TOLERANCE_SECONDS = 300.0
TIMEOUT_SECONDS = 5.0
MAX_ATTEMPTS = 8
MAX_HISTORY = 100
POLL_SECONDS = 0.2
RETRY_SECONDS = 5.0
_log = logging.getLogger("mlflowkit.rollout")
RETRYABLE_STATUS = frozenset((408, 429, *range(500, 600)))


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one hook. ``secret_env`` is the key's environment variable, "" without a key."""

    id: str
    url: str
    secret_env: str
    event: str
    body: str
    due: float
    attempts: int = 0
    error: str = ""


def sign(key: bytes, body: bytes, *, id: str, timestamp: str) -> str:
    """The header ``webhook-signature``. Raises ValueError for a ``whsec_`` key that is not base64.

    >>> sign(b"key", b"{}", id="event-1", timestamp="1764000000")[:12]
    'v1,3IAAhP0bj'
    """
    if key.startswith(b"whsec_"):
        key = base64.b64decode(key.removeprefix(b"whsec_"), validate=True)
    content = f"{id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


def legacy_signature(key: bytes, body: bytes, timestamp: str) -> str:
    """The deprecated header ``x-mlkit-signature``.

    >>> legacy_signature(b"key", b"{}", "1764000000")[:19]
    'v1=135a1a8c79ff2a07'
    """
    return "v1=" + hmac.new(key, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def verify(key: bytes, body: bytes, headers: Mapping[str, str], *, now: float) -> bool:
    """Whether a delivery was signed with ``key`` and is recent; header names in lower case.

    >>> headers = {"webhook-id": "event-1", "webhook-timestamp": "100"}
    >>> headers["webhook-signature"] = sign(b"key", b"{}", id="event-1", timestamp="100")
    >>> verify(b"key", b"{}", headers, now=130.0), verify(b"key", b"{}", headers, now=500.0)
    (True, False)
    """
    id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not timestamp.isascii() or not timestamp.isdigit() or abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    expected = sign(key, body, id=id, timestamp=timestamp)
    received = headers.get("webhook-signature", "").split()  # several while a key is rotated
    return any(hmac.compare_digest(expected.encode(), signature.encode()) for signature in received)


def enqueue(files: ServiceFiles, state: RolloutState, notification: Notify) -> None:
    """Queue an event for every hook of the plan that subscribed to it, once."""
    body = {
        "id": notification.key,
        "event": notification.event,
        "service": state.service,
        "experiment": state.experiment,
        "strategy": state.strategy,
        "step": notification.step + 1,
        "weight": notification.weight,
        "champion": state.champion.version,
        "candidate": state.candidate.version,
        "message": notification.message,
        "time": notification.time,
    }
    delivered = {delivery["id"] for delivery in history(files)}
    for number, hook in enumerate(state.plan.webhooks):
        id = f"{notification.key}-{number}"
        name = f"webhooks/{id}.json"
        if notification.event in hook.events and id not in delivered and not files.exists(name):
            content = json.dumps({**body, "id": id})
            delivery = Delivery(id, hook.url, hook.secret_env or "", notification.event, content, notification.time)
            files.write_json(name, asdict(delivery))


def history(files: ServiceFiles) -> list[dict[str, Json]]:
    """Results of the last deliveries, newest last: {id, event, url, time, ok, status, attempts, error}."""
    return files.read_json("webhooks.json") or []


class WebhookSender:
    """Delivers queued events of all services from its own thread while its context is entered."""

    def __init__(self, state: Path, clock: Callable[[], float] = time.time) -> None:
        self._state = state
        self._clock = clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlkit-webhooks", daemon=True)

    def __enter__(self) -> WebhookSender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(TIMEOUT_SECONDS + 1.0)

    def deliver(self) -> None:
        """Attempt every due delivery once. A failed delivery is recorded, not raised."""
        for files in ServiceFiles.all(self._state):
            for entry in files.list("webhooks/*.json"):
                if self._stopping.is_set():
                    return
                self._attempt(files, entry.key)

    def _run(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            try:
                self.deliver()
            except MlkitError as error:  # full disk: queued events stay and are retried
                _log.warning("webhooks: %s", error.message)
                self._stopping.wait(RETRY_SECONDS)
            except Exception:  # noqa: BLE001 - a bug here must not end the thread
                _log.exception("webhooks are not delivered")
                self._stopping.wait(RETRY_SECONDS)

    def _attempt(self, files: ServiceFiles, name: str) -> None:
        try:
            delivery = Delivery(**files.read_json(name))
        except (ServiceError, TypeError) as damage:
            _log.error("%s is damaged and was removed: %s", files.location(name), damage)
            files.delete(name)
            return
        if self._clock() < delivery.due:
            return
        status, error = self._post(delivery)
        attempts = delivery.attempts + 1
        ok = 200 <= status < 300
        if not ok and (status == 0 or status in RETRYABLE_STATUS) and attempts < MAX_ATTEMPTS:
            due = self._clock() + 2.0 ** (attempts - 1)
            files.write_json(name, asdict(replace(delivery, attempts=attempts, due=due, error=error)), durable=False)
            return
        result = {"id": delivery.id, "event": delivery.event, "url": _redact_url(delivery.url), "time": self._clock(),
                  "ok": ok, "status": max(0, status), "attempts": attempts, "error": error}  # fmt: skip
        files.write_json("webhooks.json", [*history(files), result][-MAX_HISTORY:])
        files.delete(name)

    def _post(self, delivery: Delivery) -> tuple[int, str]:
        """(status, error) of one attempt; status 0 without a response, -1 if it can never be sent."""
        body, timestamp = delivery.body.encode(), str(int(self._clock()))
        headers = {"content-type": "application/json", "user-agent": "mlflowkit"}
        headers |= {"webhook-id": delivery.id, "webhook-timestamp": timestamp}
        headers |= {"x-mlkit-delivery": delivery.id, "x-mlkit-timestamp": timestamp}  # deprecated
        if delivery.secret_env:
            key = os.environ.get(delivery.secret_env, "").encode()
            if not key:
                return -1, f"the controller's environment has no {delivery.secret_env} to sign with"
            try:
                headers["webhook-signature"] = sign(key, body, id=delivery.id, timestamp=timestamp)
            except ValueError:
                return -1, f"{delivery.secret_env} is no signing key: base64 must follow whsec_"
            headers["x-mlkit-signature"] = legacy_signature(key, body, timestamp)
        try:
            return _send(delivery.url, body, headers)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return 0, f"{type(error).__name__}: {error}"


def _send(url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, str]:
    """Send one POST; redirects are not followed, as the signature is meant for the configured host."""
    parts = urlsplit(url)
    scheme = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = scheme(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path, body, dict(headers))
        response = connection.getresponse()
        response.read(4096)
        return response.status, "" if 200 <= response.status < 300 else f"HTTP {response.status}"
    finally:
        connection.close()


def _redact_url(url: str) -> str:
    """The URL without user, password and query, which may be secret."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
