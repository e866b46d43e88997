"""`RequestError`: why a request cannot be served, and how its message describes JSON values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import orjson

from mlflowkit.errors import closest_match

RETRY = ((b"retry-after", b"1"),)
CLOSE = ((b"connection", b"close"),)
_LOCATION = re.compile(r"(?:row \d+, column (.{1,64}?)|inputs\[(.{1,64}?)\](?:, value \d+)?): ")
"""The beginning of a message about a value: the column or the tensor that has it."""
_JSON_NAMES = {
    dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number",
}  # fmt: skip


class RequestError(Exception):
    """The reply to a request that cannot be served as sent: an HTTP status (4xx, or 5xx of the model) and a message.

    ``reason`` is the same for all requests with the same fault, whatever their values; "" for `refusal_reason`'s.
    """

    def __init__(
        self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = (), reason: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers
        self.reason = reason


def bad_request(message: str, reason: str = "") -> RequestError:
    """The error for a malformed request (400)."""
    return RequestError(400, message, reason=reason)


def refusal_reason(error: RequestError) -> tuple[str, bool]:
    """Why a request was refused, in words that do not depend on its values, and whether they hold a name that the
    client chose.

    >>> refusal_reason(bad_request("row 3, column age: a string; a number or null is expected"))
    ('value of column age', False)
    >>> refusal_reason(bad_request("row 0: column size is not known", "unknown column size"))
    ('unknown column size', True)
    >>> refusal_reason(RequestError(413, "70000 rows; at most 65536 are answered at once"))
    ('status 413', False)
    """
    if error.reason:
        return error.reason, error.reason.startswith("unknown")
    match = _LOCATION.match(error.message)
    if match is not None:
        return (f"value of column {match[1]}" if match[1] else f"value of input {match[2]}"), False
    return ("malformed request" if error.status == 400 else f"status {error.status}"), False


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
