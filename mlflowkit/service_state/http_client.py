"""A minimal HTTP client for a gateway. Standard library only, because ``mlkit status`` must start fast."""

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
    max_bytes: int | None = None,
    hint: str = "mlkit status; mlkit up RECIPE serves the last deploy again",
) -> tuple[int, Any]:
    """Send a request; return (status, document). A body that is not JSON is returned as text.

    Raises ServiceError when ``endpoint`` is not a URL, nothing answers there (with the ``hint``), or the answer has
    more than ``max_bytes``.
    """
    scheme, host, port, prefix = _split_url(endpoint)
    connection_type = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
    connection = connection_type(host, port, timeout=timeout)
    try:
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        content_type = {} if data is None else {"content-type": "application/json"}
        connection.request(method, prefix + path, data, {**content_type, **(headers or {})})
        response = connection.getresponse()
        content = response.read(None if max_bytes is None else max_bytes + 1)
        if max_bytes is not None and len(content) > max_bytes:
            raise ServiceError(f"{endpoint}{path} answers with more than {max_bytes:,} bytes", hint=hint)
        try:
            return response.status, json.loads(content)
        except (ValueError, RecursionError):
            return response.status, content.decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise ServiceError(f"nothing answers at {endpoint}: {error}", hint=hint) from error
    finally:
        connection.close()


def _split_url(endpoint: str) -> tuple[str, str, int | None, str]:
    """Split a service's URL into scheme, host, port and path. Raises ServiceError when it is invalid."""
    invalid = ServiceError(f"{endpoint!r} is not the URL of a service", hint="such as http://127.0.0.1:8080")
    try:
        parts = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}", scheme="http")
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError as error:
        raise invalid from error
    if parts.scheme not in ("http", "https") or not host:
        raise invalid
    return parts.scheme, host, port, parts.path.rstrip("/")


def ready(endpoint: str, *, timeout: float = 2.0) -> bool:
    """Return whether a gateway answers at ``endpoint`` and has a model loaded."""
    try:
        return request(endpoint, "GET", "/v2/health/ready", timeout=timeout)[0] == 200
    except ServiceError:
        return False
