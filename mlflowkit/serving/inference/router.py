"""Assigns a variant to a request: a pure function of the routing table and the affinity key.

A key is mapped to [0, 1) by a hash keyed with the experiment's salt; each challenger owns an interval with a fixed
start and the width of its weight; the champion owns the rest. So assignment is sticky, raising a weight moves keys
from the champion only (monotone), and two experiments assign independently (different salts).

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
from mlflowkit.serving.protocol.http_error import bad_request
from mlflowkit.values import Affinity, RoutingTable

REDEPLOY = "deploy it again: mlkit run RECIPE --force deploy"
"""The hint for a damaged table or bundle."""
_SCALE = float(1 << 64)
_ROUNDING = 1e-9
"""Tolerated overlap of two intervals: 0.13 + 0.28 is a little more than 0.41."""


def position(salt: str, key: str) -> float:
    """The position of a key on [0, 1).

    >>> round(position("lending-1", "user-17"), 6)
    0.846842
    """
    secret = salt.encode()
    if len(secret) > 64:  # the limit on a BLAKE2b key
        secret = hashlib.blake2b(secret).digest()
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=secret).digest()
    return min(int.from_bytes(digest) / _SCALE, 1.0 - 2**-53)


class Router:
    """A routing table prepared for lookups. Raises ServiceError when its intervals overlap or leave [0, 1]."""

    def __init__(self, table: RoutingTable) -> None:
        self._salt = table.salt
        self.champion = table.champion.name
        challengers = [variant for variant in table.variants if variant.role == "challenger" and variant.weight > 0]
        challengers.sort(key=lambda variant: variant.start)
        self._starts = [variant.start for variant in challengers]
        self._ends = [variant.start + variant.weight for variant in challengers]
        self._names = [variant.name for variant in challengers]
        edges = [0.0, *(edge for pair in zip(self._starts, self._ends, strict=True) for edge in pair), 1.0]
        if any(right < left - _ROUNDING for left, right in itertools.pairwise(edges)):
            where = f"routing table {table.epoch} of {table.service}"
            raise ServiceError(f"{where} has shares that overlap or leave [0, 1]", hint=REDEPLOY)

    def assign(self, key: str) -> str:
        if not self._names:
            return self.champion
        point = position(self._salt, key)
        index = bisect_right(self._starts, point) - 1
        return self._names[index] if index >= 0 and point < self._ends[index] else self.champion


def is_mirrored(table: RoutingTable, shadow: str, sampling: float, key: str) -> bool:
    """Whether a request is mirrored to a shadow; sampled by key, independently of the split and of other shadows."""
    return sampling >= 1.0 or position(f"{table.salt}/{shadow}", key) < sampling


def affinity_key(affinity: Affinity, value: bytes) -> str:
    """The affinity key in a header's value; "" when it has none.

    >>> affinity_key(Affinity("cookie", "user"), b"a=1; user=ann")
    'ann'
    """
    text = value.decode("latin-1")
    if affinity.kind != "cookie":
        return text
    for part in text.split(";"):
        name, _, cookie = part.strip().partition("=")
        if name == affinity.name:
            return cookie
    return ""


def parameter_key(document: Mapping[str, Any], name: str) -> str:
    """The affinity key in a request's ``parameters``, "" for none. Raises RequestError(400) for a non-scalar.

    >>> parameter_key({"parameters": {"user": 7}, "inputs": []}, "user"), parameter_key({}, "user")
    ('7', '')
    """
    parameters = document.get("parameters")
    if type(parameters) not in (dict, type(None)):
        raise bad_request("parameters: an object is needed")
    value = (parameters or {}).get(name)
    if value is None:
        return ""
    if type(value) not in (str, int, bool, float):
        raise bad_request(f"parameters.{name}: a string, a number or a boolean is needed")
    return value if type(value) is str else json.dumps(value)
