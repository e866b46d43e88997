"""A small HTTP client for a gateway, on the standard library: ``mlkit status`` must start in no time."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from mlflowkit.errors import ServiceError


def request(
    endpoint: str,
    method: str,
    path: str,
    body: Any = None,
    *,
    timeout: float = 30.0,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Any]:
    """(status, document) of one request; the document is the text itself where it is not JSON.

    Raises ServiceError when ``endpoint`` is no URL, or nothing answers there.
    """
    scheme, host, port, prefix = _parts(endpoint)
    kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
    connection = kind(host, port, timeout=timeout)
    try:
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        kind_of = {} if data is None else {"content-type": "application/json"}
        connection.request(method, prefix + path, data, {**kind_of, **(headers or {})})
        reply = connection.getresponse()
        return reply.status, _document(reply.read())
    except (OSError, http.client.HTTPException) as error:
        raise ServiceError(
            f"nothing answers at {endpoint}: {error}", hint="mlkit status; mlkit up RECIPE serves the last deploy again"
        ) from error
    finally:
        connection.close()


def _parts(endpoint: str) -> tuple[str, str, int | None, str]:
    """Scheme, host, port and path of a service's URL. Raises ServiceError for what is none."""
    wrong = ServiceError(f"{endpoint!r} is not the URL of a service", hint="such as http://127.0.0.1:8080")
    try:
        parts = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}", scheme="http")
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError as error:
        raise wrong from error
    if parts.scheme not in ("http", "https") or not host:
        raise wrong
    return parts.scheme, host, port, parts.path.rstrip("/")


def ready(endpoint: str, *, timeout: float = 2.0) -> bool:
    """Whether a gateway answers at ``endpoint`` and has a model."""
    try:
        return request(endpoint, "GET", "/v2/health/ready", timeout=timeout)[0] == 200
    except ServiceError:
        return False


def _document(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")
