"""WhyLabs' API for profiles, version 0: ask for an address, then put the profile there. Standard library only.

The requests are those of whylogs 1.6.4 (``whylogs.api.writer.whylabs_client``), whose own writer needs five more
packages, retries inside and logs the address that it writes to::

    POST <endpoint>/v0/organizations/<org>/log/async/<dataset>   {"datasetTimestamp": <ms>, "segmentTags": []}
         X-API-Key, X-WhyLabs-File-Extension: BIN                -> 200 {"id", "uploadUrl", ...}
    PUT  <uploadUrl>   Content-Type: application/octet-stream    -> 200

WhyLabs' service has ended; its platform is open source, and is chosen by WHYLABS_API_ENDPOINT. The organisation is the
end of a key (``<id>.<secret>:<org>``), or WHYLABS_ORG_ID.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import quote, urlsplit

from mlflowkit.errors import ServiceError

ENDPOINT = "https://api.whylabsapp.com"
ENDPOINT_VARIABLE, ORGANISATION_VARIABLE = "WHYLABS_API_ENDPOINT", "WHYLABS_ORG_ID"
SECONDS = 30.0
"""Deadline of one request in all."""
MAX_REPLY = 1 << 16


class SendRequest(Protocol):
    """Sends an HTTP request; returns the status and at most ``limit`` bytes of the body. Raises OSError, ValueError."""

    def __call__(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], *, seconds: float, limit: int
    ) -> tuple[int, bytes]: ...


class WhylabsUploads:
    """Uploads profiles. No message of an error has the key, or the address of an upload, which is a secret too."""

    def __init__(self, send: SendRequest, environment: Mapping[str, str] = os.environ) -> None:
        self._send = send
        self._environment = environment

    def open(self, dataset: str, key: str, timestamp: float) -> tuple[str, str]:
        """Ask for an upload of data of a time, in seconds since the epoch: (id, address). Raises ServiceError."""
        endpoint = self._environment.get(ENDPOINT_VARIABLE) or ENDPOINT
        organisation = key.partition(":")[2] or self._environment.get(ORGANISATION_VARIABLE, "")
        if not organisation:
            raise ServiceError(
                "the WhyLabs API key names no organisation",
                hint=f"a key is ID.SECRET:ORGANISATION; or set {ORGANISATION_VARIABLE} where services are started",
            )
        path = f"/v0/organizations/{quote(organisation, safe='')}/log/async/{quote(dataset, safe='')}"
        body = json.dumps({"datasetTimestamp": round(timestamp * 1000), "segmentTags": []}).encode()
        headers = {
            "accept": "application/json",
            "content-type": "application/json",
            "x-api-key": key,
            "x-whylabs-file-extension": "BIN",
            "user-agent": "mlflowkit",
        }
        status, reply = self._request("POST", endpoint.rstrip("/") + path, body, headers, (key,))
        if status != 200:
            hint = (
                "the key is not valid, or does not permit this dataset: make another in WhyLabs"
                if status in (401, 403)
                else ""
            )
            raise ServiceError(f"WhyLabs at {_place(endpoint)} refused a POST: HTTP {status}: {reply[:300]}", hint=hint)
        try:
            upload = json.loads(reply)
            id, url = str(upload["id"]), str(upload["uploadUrl"])
        except (ValueError, KeyError, TypeError) as error:
            raise ServiceError(f"{_place(endpoint)} gave no address for an upload: {error!r}") from None
        return id, url

    def put(self, url: str, profile: bytes) -> str:
        """Put a profile at an address that `open` returned; again replaces it.

        Returns why the address is refused for good, "" where the profile was taken. Raises ServiceError.
        """
        headers = {"content-type": "application/octet-stream"}
        status, text = self._request("PUT", url, profile, headers, (url, urlsplit(url).query))
        if status == 200:
            return ""
        reason = f"{_place(url)} refused a PUT: HTTP {status}: {text[:300]}"
        if 400 <= status < 500 and status not in (408, 429):
            return reason
        raise ServiceError(f"WhyLabs at {reason}")

    def _request(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str], secrets: tuple[str, ...]
    ) -> tuple[int, str]:
        """The status and the body of a reply, without the secrets. Raises ServiceError without a reply."""
        try:
            status, reply = self._send(method, url, body, headers, seconds=SECONDS, limit=MAX_REPLY)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = _masked(str(error), secrets)
            raise ServiceError(f"WhyLabs at {_place(url)} does not answer: {type(error).__name__}: {reason}") from None
        return status, _masked(reply.decode("utf-8", "replace").strip(), secrets)


def _masked(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        text = text.replace(secret, "…") if secret else text
    return text


def _place(url: str) -> str:
    """Scheme and host of a URL."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return "…"
