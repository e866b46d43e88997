"""Deliver events to webhooks: one signed POST per event, retried outside the controller's loop.

The body is JSON, UTF-8, signed as the bytes that are sent. Every event has the message as ``text`` too, by which Slack
and what is compatible with it shows it. Of a rollout::

    {"id", "event", "service", "experiment", "strategy", "step", "weight", "champion", "candidate", "message", "text",
     "time"}

Of a monitor, where ``event`` is alert.firing or alert.resolved::

    {"id", "event", "service", "version", "episode", "severity", "alerts", "columns", "message", "text", "time"}

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
``<service>/webhooks.json``. Neither has a URL, which may be a secret: a delivery names the place of its hook in the
plan of its rollout or in another record, and results show scheme, host and port only. Keys, and URLs given as
``url_env``, are never stored: they are read from the controller's environment when sending.

An attempt ends after DELIVERY_SECONDS in all, however slowly the receiver answers, and runs in a thread of its own, at
most SERVICE_THREADS at a time for one service: a receiver cannot hold up the events of others.
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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.rollout import outbound
from mlflowkit.rollout import state as states
from mlflowkit.rollout.state import Notify, RolloutState
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system.digests import digest_json
from mlflowkit.values import Json

TOLERANCE_SECONDS = 300.0
DELIVERY_SECONDS = 10.0
"""Of one attempt in all."""
THREADS, SERVICE_THREADS = 16, 2
"""Attempts at a time, of all services and of one."""
MAX_ATTEMPTS = 8
MAX_HISTORY = 100
POLL_SECONDS = 0.2
JOIN_SECONDS = 5.0
RETRY_SECONDS = 5.0
_log = logging.getLogger("mlflowkit.rollout")
RETRYABLE_STATUS = frozenset((408, 429, *range(500, 600)))


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for hook number ``hook`` of an experiment's plan, or for the hook at ``place`` in the control record
    ``record``, as long as that has the same ``digest``.

    ``url`` and ``secret_env`` (the key's environment variable) are those of a delivery of the format before, which has
    no ``hook``, and "" in a new one.
    """

    id: str
    url: str
    secret_env: str
    event: str
    body: str
    due: float
    attempts: int = 0
    error: str = ""
    experiment: str = ""
    hook: int = -1
    record: str = ""
    place: Sequence[str | int] = ()
    digest: str = ""


@dataclass(frozen=True, slots=True)
class OutgoingEvent:
    """An event for the hooks of a control record. ``key`` identifies it, so that it is sent once.

    record, place  the record that has the list of hooks, and the keys under which
    """

    key: str
    event: str
    time: float
    body: Mapping[str, Json]
    record: str
    place: tuple[str, ...]


class _NeverSentError(Exception):
    """A delivery cannot be sent, now or later."""


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
        "text": f"{state.service}: {notification.message}",
        "time": notification.time,
    }
    delivered = {delivery["id"] for delivery in history(files)}
    for number, hook in enumerate(state.plan.webhooks):
        id = f"{notification.key}-{number}"
        name = f"webhooks/{id}.json"
        if notification.event in hook.events and id not in delivered and not files.exists(name):
            delivery = Delivery(
                id, "", "", notification.event, json.dumps({**body, "id": id}), notification.time,
                experiment=state.experiment, hook=number,
            )  # fmt: skip
            files.write_json(name, asdict(delivery))


def enqueue_event(files: ServiceFiles, event: OutgoingEvent) -> None:
    """Queue an event for every hook of its record, once."""
    delivered = {delivery["id"] for delivery in history(files)}
    for number, hook in enumerate(_look_up(files.read_json(event.record), event.place) or ()):
        id = f"{event.key}-{number}"
        name = f"webhooks/{id}.json"
        if id not in delivered and not files.exists(name):
            delivery = Delivery(
                id, "", "", event.event, json.dumps({**event.body, "id": id, "event": event.event}), event.time,
                record=event.record, place=(*event.place, number), digest=digest_json(hook),
            )  # fmt: skip
            files.write_json(name, asdict(delivery))


def _look_up(value: Json, place: Sequence[str | int]) -> Json:
    """What is in a JSON value under keys and indices; None for nothing."""
    for part in place:
        if isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def history(files: ServiceFiles) -> list[dict[str, Json]]:
    """Results of the last deliveries, newest last: {id, event, url, time, ok, status, attempts, error}."""
    return files.read_json("webhooks.json") or []


class WebhookSender:
    """Delivers queued events of all services from threads of its own while its context is entered."""

    def __init__(self, state: Path, clock: Callable[[], float] = time.time) -> None:
        self._state = state
        self._clock = clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlkit-webhooks", daemon=True)
        self._pool = ThreadPoolExecutor(THREADS, "mlkit-webhook")
        self._attempts: dict[tuple[str, str], Future[None]] = {}
        self._finishing = threading.Lock()

    def __enter__(self) -> WebhookSender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(JOIN_SECONDS)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def deliver(self) -> None:
        """Attempt every due delivery once and wait. A failed delivery is recorded, not raised."""
        while started := self._start():
            for attempt in wait(started).done:
                attempt.result()
        self._attempts.clear()

    def _start(self) -> list[Future[None]]:
        """Start the due attempts that are not made yet, as many as a service may have at a time."""
        started = []
        for files in ServiceFiles.all(self._state):
            running = sum(name == files.service and not it.done() for (name, _), it in self._attempts.items())
            for entry in files.list("webhooks/*.json"):
                key = files.service, entry.key
                if running >= SERVICE_THREADS or self._stopping.is_set():
                    break
                if key in self._attempts:
                    continue
                delivery = self._read(files, entry.key)
                if delivery is not None and self._clock() >= delivery.due:
                    self._attempts[key] = self._pool.submit(self._attempt, files, entry.key, delivery)
                    started.append(self._attempts[key])
                    running += 1
        return started

    def _run(self) -> None:
        last_error = ""
        while not self._stopping.wait(POLL_SECONDS):
            seconds = 0.0
            try:
                ended = {key: attempt for key, attempt in self._attempts.items() if attempt.done()}
                for key, attempt in ended.items():
                    del self._attempts[key]
                    attempt.result()
                self._start()
                last_error = ""
            except MlkitError as error:  # full disk: queued events stay and are retried
                if error.message != last_error:
                    _log.warning("webhooks: %s", error.message)
                last_error, seconds = error.message, RETRY_SECONDS
            except Exception:  # noqa: BLE001 - a bug here must not end the thread
                _log.exception("webhooks are not delivered")
                seconds = RETRY_SECONDS
            self._stopping.wait(seconds)

    @staticmethod
    def _read(files: ServiceFiles, name: str) -> Delivery | None:
        """A queued delivery; a damaged one is removed."""
        try:
            value = files.read_json(name)
            return None if value is None else Delivery(**value)
        except (ServiceError, TypeError) as damage:
            _log.error("%s is damaged and was removed: %s", files.location(name), damage)
            files.delete(name)
            return None

    def _attempt(self, files: ServiceFiles, name: str, delivery: Delivery) -> None:
        url, final = "", False
        try:
            url, secret_env = _target(files, delivery)
            status, error = self._post(delivery, url, secret_env)
        except _NeverSentError as reason:
            status, error, final = 0, str(reason), True
        attempts = delivery.attempts + 1
        ok = 200 <= status < 300
        if not ok and not final and (status == 0 or status in RETRYABLE_STATUS) and attempts < MAX_ATTEMPTS:
            due = self._clock() + 2.0 ** (attempts - 1)
            files.write_json(name, asdict(replace(delivery, attempts=attempts, due=due, error=error)), durable=False)
            return
        result = {"id": delivery.id, "event": delivery.event, "url": mask_url(url), "time": self._clock(),
                  "ok": ok, "status": status, "attempts": attempts, "error": error}  # fmt: skip
        with self._finishing:
            files.write_json("webhooks.json", [*history(files), result][-MAX_HISTORY:])
        files.delete(name)

    def _post(self, delivery: Delivery, url: str, secret_env: str) -> tuple[int, str]:
        """(status, error) of one attempt; status 0 without a response. Raises _NeverSentError."""
        body, timestamp = delivery.body.encode(), str(int(self._clock()))
        headers = {"content-type": "application/json", "user-agent": "mlflowkit"}
        headers |= {"webhook-id": delivery.id, "webhook-timestamp": timestamp}
        headers |= {"x-mlkit-delivery": delivery.id, "x-mlkit-timestamp": timestamp}  # deprecated
        if secret_env:
            key = _from_environment(secret_env, "to sign with").encode()
            try:
                headers["webhook-signature"] = sign(key, body, id=delivery.id, timestamp=timestamp)
            except ValueError as error:
                raise _NeverSentError(f"{secret_env} is no signing key: base64 must follow whsec_") from error
            headers["x-mlkit-signature"] = legacy_signature(key, body, timestamp)
        try:
            status, _ = outbound.request("POST", url, body, headers, seconds=DELIVERY_SECONDS)
            return status, "" if 200 <= status < 300 else f"HTTP {status}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            return 0, f"{type(error).__name__}: {str(error).replace(url, mask_url(url))}"


def _target(files: ServiceFiles, delivery: Delivery) -> tuple[str, str]:
    """(URL, the key's environment variable) of a delivery. Raises _NeverSentError."""
    if delivery.record:
        value = _look_up(files.read_json(delivery.record), delivery.place)
        if not isinstance(value, dict) or digest_json(value) != delivery.digest:
            raise _NeverSentError("the recipe's webhooks are other ones than when this event was queued")
        return _url(value.get("url"), value.get("url_env")), str(value.get("secret_env") or "")
    if delivery.hook < 0:
        return delivery.url, delivery.secret_env
    saved = states.read(files)
    state = None if saved is None else saved.state
    if state is None or state.experiment != delivery.experiment or delivery.hook >= len(state.plan.webhooks):
        raise _NeverSentError("another rollout has begun, and the URL of this one's hook is gone with it")
    hook = state.plan.webhooks[delivery.hook]
    return _url(hook.url, hook.url_env), hook.secret_env or ""


def _url(url: str | None, url_env: str | None) -> str:
    """The URL of a hook. Raises _NeverSentError."""
    address = url or _from_environment(url_env or "", "with the URL")
    if not address.startswith(("http://", "https://")):
        raise _NeverSentError(f"{url_env or 'the hook'} holds no URL: http:// or https:// is expected")
    return address


def _from_environment(name: str, purpose: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise _NeverSentError(f"the controller's environment has no {name} {purpose}")
    return value


def mask_url(url: str) -> str:
    """Scheme, host and port of a URL; the rest may be secret (a token in the query, Slack's in the path).

    >>> mask_url("https://me:pass@hooks.slack.com:8443/services/T0/B0/secret?sig=1"), mask_url("http://ci/")
    ('https://hooks.slack.com:8443/…', 'http://ci/')
    """
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "…"
    return f"{parts.scheme}://{parts.hostname or ''}{port}/{'…' if parts.path.strip('/') or parts.query else ''}"
