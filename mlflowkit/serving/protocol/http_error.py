"""`RequestError`: why a request cannot be served, and how its message describes JSON values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from mlflowkit.errors import closest_match

RETRY = ((b"retry-after", b"1"),)
CLOSE = ((b"connection", b"close"),)
_JSON_NAMES = {
    dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number",
}  # fmt: skip


class RequestError(Exception):
    """The reply to a request that cannot be served as sent: an HTTP status (4xx, or 5xx of the model) and a message."""

    def __init__(self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


def bad_request(message: str) -> RequestError:
    """The error for a malformed request (400)."""
    return RequestError(400, message)


def json_type(value: Any) -> str:
    """Name the type of a JSON value.

    >>> json_type(None), json_type([]), json_type(True)
    ('null', 'a list', 'a boolean')
    """
    return "null" if value is None else _JSON_NAMES.get(type(value), type(value).__name__)


def short_json(value: Any) -> str:
    """A value as JSON, cut to 60 characters."""
    text = orjson.dumps(value, default=repr, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS).decode()
    return text if len(text) <= 60 else text[:57] + "..."


def join_names(names: Iterable[Any]) -> str:
    """The first forty names, separated by commas."""
    names = list(names)
    listed = ", ".join(str(name) for name in names[:40])
    return listed if len(names) <= 40 else f"{listed}, ... ({len(names)} in all)"


def suggestion(name: Any, allowed: Iterable[Any]) -> str:
    """``. Did you mean ...?`` for a name close to an allowed name, else ""."""
    close = closest_match(str(name)[:80], map(str, allowed))
    return f". Did you mean {close}?" if close else ""
