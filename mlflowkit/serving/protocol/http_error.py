"""What a request that cannot be served is told, and the words in which it is told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from mlflowkit.errors import nearest

_JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
}


class Refusal(Exception):
    """An answer to a request that cannot be served as it was asked. Not a fault of ours: status is 4xx or 503."""

    def __init__(self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


def kind(value: Any) -> str:
    """What a JSON value is, in words.

    >>> kind(None), kind([]), kind(True)
    ('null', 'a list', 'a boolean')
    """
    return "null" if value is None else _JSON_NAMES.get(type(value), type(value).__name__)


def show(value: Any) -> str:
    """A value as JSON, cut to 60 characters."""
    text = orjson.dumps(value, default=repr, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS).decode()
    return text if len(text) <= 60 else text[:57] + "..."


def listing(names: Iterable[Any]) -> str:
    """Names, the first forty of them."""
    names = list(names)
    shown = ", ".join(str(name) for name in names[:40])
    return shown if len(names) <= 40 else f"{shown}, ... ({len(names)} in all)"


def suggestion(name: Any, allowed: Iterable[Any]) -> str:
    """``. Did you mean ...?`` for a name that is nearly an allowed one, else ""."""
    close = nearest(str(name)[:80], map(str, allowed))
    return f". Did you mean {close}?" if close else ""
