"""JSON of files that other programs, or attackers, may have written."""

from __future__ import annotations

import json
from typing import Any

Json = Any


def parse_json(content: bytes | str) -> Json:
    """``json.loads`` with ValueError as its only exception: deep nesting, which json reports as RecursionError, too.

    >>> parse_json(b'{"a": 1}')
    {'a': 1}
    >>> parse_json("[" * 100_000)
    Traceback (most recent call last):
    ValueError: it is nested too deeply
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
