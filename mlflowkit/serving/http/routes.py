"""Maps a gateway's URL paths to endpoints, with the model, version and method of each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

from mlflowkit.serving.protocol.http_error import CLOSE, RequestError

FIXED_ROUTES: Mapping[tuple[str, ...], str] = {
    ("predict",): "predict",
    ("invocations",): "invocations",
    ("ping",): "ready",
    ("-", "healthz"): "healthz",
    ("metrics",): "metrics",
    ("openapi.json",): "openapi",
    ("docs",): "docs",
    ("v2",): "server",
    ("v2", "delivery"): "delivery",
    ("v2", "feedback"): "feedback",
    ("v2", "health", "live"): "live",
    ("v2", "health", "ready"): "ready",
    ("v2", "models", "stats"): "stats",
    ("v2", "repository", "index"): "index",
}
MODEL_ROUTES: Mapping[tuple[str, ...], str] = {
    (): "model", ("ready",): "model-ready", ("infer",): "infer", ("stats",): "stats",
    ("config",): "config",
}  # fmt: skip
POST_ENDPOINTS = frozenset({"predict", "infer", "invocations", "index", "load", "feedback"})
"""Endpoints that take POST; the others take GET and HEAD."""


class Route(NamedTuple):
    """The target of a path. ``model`` and ``version`` are "" where the path names none."""

    endpoint: str
    model: str = ""
    version: str = ""

    def check_method(self, method: str) -> None:
        """Raise RequestError(405) for a method that the endpoint does not support."""
        posted = self.endpoint in POST_ENDPOINTS
        if method != "POST" if posted else method not in ("GET", "HEAD"):
            allowed = "POST" if posted else "GET"
            raise RequestError(405, f"this path takes {allowed}", ((b"allow", allowed.encode()), *CLOSE))


@lru_cache(maxsize=64)
def match_route(path: str) -> Route:
    """The route of a path, cached. Raises RequestError(404).

    >>> match_route("/v2/models/lending/versions/7/infer")
    Route(endpoint='infer', model='lending', version='7')
    """
    parts = tuple(path.rstrip("/").split("/")[1:])
    if parts in FIXED_ROUTES:
        return Route(FIXED_ROUTES[parts])
    if parts[:2] == ("v2", "models") and len(parts) > 2 and parts[2]:
        rest, version = parts[3:], ""
        if len(rest) >= 2 and rest[0] == "versions" and rest[1]:
            version, rest = rest[1], rest[2:]
        if rest in MODEL_ROUTES:
            return Route(MODEL_ROUTES[rest], parts[2], version)
    if parts[:3] == ("v2", "repository", "models") and len(parts) == 5 and parts[4] in ("load", "unload"):
        return Route("load", parts[3])
    raise RequestError(404, f"no such path: {path[:200]}; see GET /openapi.json")


@lru_cache(maxsize=64)
def match_raw(path: bytes) -> Route:
    """The route of a path as it was sent, percent-encoded. Raises RequestError(404).

    A slash divides only where it is one: to a proxy that allows paths by their prefix, ``lending%2Finfer`` is one
    segment, and it must be none other here.

    >>> match_raw(b"/v2/models/lend%69ng/ready").model
    'lending'
    """
    if b"%" not in path:
        return match_route(path.decode("latin-1"))
    parts = [unquote(part) for part in path.decode("latin-1").split("/")]
    if any("/" in part for part in parts):
        raise RequestError(404, "no such path: a slash within a name, which was sent as %2F; see GET /openapi.json")
    return match_route("/".join(parts))
