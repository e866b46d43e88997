"""Which variant answers a request: a pure function of the routing table and a key. No state, no clock.

A key is placed on [0, 1) by a hash keyed with the experiment's salt; each challenger owns an interval that begins
where it always began and is as wide as its weight; the champion owns the rest. So a key stays where it is (sticky),
raising a weight takes keys from the champion only (monotone), and two experiments deal independently (their salts).

The hash is BLAKE2b with a digest of 8 bytes, read as a big-endian integer and divided by 2^64.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from mlflowkit.errors import ServiceError
from mlflowkit.serving.protocol.http_error import Refusal
from mlflowkit.values import Affinity, RoutingTable

REDEPLOY = "deploy it again: mlkit run RECIPE --force deploy"
"""What mends a table or a bundle that is damaged."""
_SCALE = float(1 << 64)
_ROUNDING = 1e-9
"""By how much two shares may overlap: 0.13 and 0.28 end a little beyond where 0.41 begins."""


def position(salt: str, key: str) -> float:
    """Where a key lies on [0, 1).

    >>> round(position("lending-1", "user-17"), 6)
    0.846842
    """
    secret = salt.encode()
    if len(secret) > 64:  # longer than BLAKE2b's key may be
        secret = hashlib.blake2b(secret).digest()
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=secret).digest()
    return min(int.from_bytes(digest) / _SCALE, 1.0 - 2**-53)


class Router:
    """A routing table made ready for asking. Raises ServiceError when its shares overlap or leave [0, 1]."""

    def __init__(self, table: RoutingTable) -> None:
        self._salt = table.salt
        self.champion = table.champion.name
        taking = sorted(
            (variant for variant in table.variants if variant.role == "challenger" and variant.weight > 0),
            key=lambda variant: variant.start,
        )
        self._starts = [variant.start for variant in taking]
        self._ends = [variant.start + variant.weight for variant in taking]
        self._names = [variant.name for variant in taking]
        self.shares = bool(taking)
        edges = [0.0, *(edge for pair in zip(self._starts, self._ends, strict=True) for edge in pair), 1.0]
        if any(right < left - _ROUNDING for left, right in itertools.pairwise(edges)):
            where = f"routing table {table.epoch} of {table.service}"
            raise ServiceError(f"{where} has shares that overlap or leave [0, 1]", hint=REDEPLOY)

    def assign(self, key: str) -> str:
        """Name of the variant that answers this key."""
        if not self.shares:
            return self.champion
        place = position(self._salt, key)
        index = bisect_right(self._starts, place) - 1
        return self._names[index] if index >= 0 and place < self._ends[index] else self.champion


def mirrored(table: RoutingTable, shadow: str, sampling: float, key: str) -> bool:
    """Whether a request is mirrored to a shadow: a share of the keys, independent of the split and of other shadows."""
    return sampling >= 1.0 or position(f"{table.salt}/{shadow}", key) < sampling


def affinity_key(affinity: Affinity, value: bytes) -> str:
    """The key in the header that an affinity reads; "" when there is none.

    >>> affinity_key(Affinity("cookie", "user"), b"a=1; user=ann")
    'ann'
    """
    text = value.decode("latin-1")
    if affinity.kind != "cookie":
        return text
    for part in text.split(";"):
        name, _, found = part.strip().partition("=")
        if name == affinity.name:
            return found
    return ""


def parameter_key(document: Mapping[str, Any], name: str) -> str:
    """The key in a request's ``parameters``; "" when it has none. Raises Refusal(400) for one that is no scalar.

    >>> parameter_key({"parameters": {"user": 7}, "inputs": []}, "user"), parameter_key({}, "user")
    ('7', '')
    """
    parameters = document.get("parameters")
    if parameters is None:
        return ""
    if type(parameters) is not dict:
        raise Refusal(400, "parameters: an object is needed")
    value = parameters.get(name)
    if value is None:
        return ""
    if type(value) not in (str, int, bool, float):
        raise Refusal(400, f"parameters.{name}: a string, a number or a boolean is needed")
    return value if type(value) is str else json.dumps(value)
