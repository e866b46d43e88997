"""A gateway's paths: which door a path leads to, for which model and version, and by which method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mlflowkit.serving.protocol.http_error import Refusal

FIXED: Mapping[tuple[str, ...], str] = {
    ("predict",): "predict",
    ("metrics",): "metrics",
    ("openapi.json",): "openapi",
    ("v2",): "server",
    ("v2", "feedback"): "feedback",
    ("v2", "health", "live"): "live",
    ("v2", "health", "ready"): "ready",
    ("v2", "models", "stats"): "stats",
    ("v2", "repository", "index"): "index",
}
OF_MODEL: Mapping[tuple[str, ...], str] = {
    (): "model",
    ("ready",): "model-ready",
    ("infer",): "infer",
    ("stats",): "stats",
}
POSTED = frozenset({"predict", "infer", "index", "load", "feedback"})
"""Doors that take POST; the others take GET and HEAD."""


class Road(NamedTuple):
    """Where a path leads. ``model`` and ``version`` are "" where the path names none."""

    door: str
    model: str = ""
    version: str = ""

    def check_method(self, method: str) -> None:
        """Raise Refusal(405) for a method that the door does not take."""
        posted = self.door in POSTED
        if method != "POST" if posted else method not in ("GET", "HEAD"):
            allowed = "POST" if posted else "GET"
            raise Refusal(405, f"this path takes {allowed}", ((b"allow", allowed.encode()), (b"connection", b"close")))


def road_of(path: str) -> Road:
    """The road of a path. Raises Refusal(404).

    >>> road_of("/v2/models/lending/versions/7/infer")
    Road(door='infer', model='lending', version='7')
    """
    parts = tuple(path.rstrip("/").split("/")[1:])
    if parts in FIXED:
        return Road(FIXED[parts])
    if parts[:2] == ("v2", "models") and len(parts) > 2 and parts[2]:
        rest, version = parts[3:], ""
        if len(rest) >= 2 and rest[0] == "versions" and rest[1]:
            version, rest = rest[1], rest[2:]
        if rest in OF_MODEL:
            return Road(OF_MODEL[rest], parts[2], version)
    if parts[:3] == ("v2", "repository", "models") and len(parts) == 5 and parts[4] in ("load", "unload"):
        return Road("load", parts[3])
    raise Refusal(404, f"no such path: {path[:200]}; see GET /openapi.json")
