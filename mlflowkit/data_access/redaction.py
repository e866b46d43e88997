"""Keeps secrets out of texts. Standard library only."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from itertools import permutations

HIDDEN_SECRET = "***"
SHORTEST = 4
"""Shorter values are not looked for: they stand in any text by chance."""
USER_INFO = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
"""User and password in a URL."""


def redact(text: str, secrets: Iterable[str]) -> str:
    """A text without secrets, their base64 (also of ``user:password``), and user information in URLs.

    >>> redact("GET https://me:hunter2@lake/ Basic bWU6aHVudGVyMg==", ["me", "hunter2"])
    'GET https://***@lake/ Basic ***'
    """
    text = USER_INFO.sub(HIDDEN_SECRET, text)
    for form in sorted(_forms([secret for secret in secrets if secret]), key=len, reverse=True):
        text = text.replace(form, HIDDEN_SECRET)
    return text


def _forms(secrets: Sequence[str]) -> set[str]:
    plain = [secret for secret in secrets if len(secret) >= SHORTEST]
    pairs = [f"{user}:{password}" for user, password in permutations(secrets, 2)]
    encoded = {base64.b64encode(text.encode()).decode() for text in (*plain, *pairs)}
    return {*plain, *encoded, *(text.rstrip("=") for text in encoded)}
