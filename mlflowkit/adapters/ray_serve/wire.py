"""Frames that carry tensors between a gateway and an isolated model over TCP; no pickle, so nothing sent is executed.

A frame is the lengths of its head and body (two big-endian 32-bit integers), the head in JSON, and the concatenated
bodies of its tensors: numbers as in memory (little-endian, row-major), strings as a JSON list.
A connection begins with a handshake, in which gateway and isolated model prove to each other that they know a token,
which neither sends. The gateway opens with ``{"nonce": a}``; the model answers ``{"nonce": b, "proof": ...}``, the
gateway ``{"proof": ...}``, the model ``{"digest": ...}``. A proof is the HMAC-SHA256 of role and both nonces with the
token as key: whoever took over the port of a process that died learns nothing, and cannot answer in its place.

After that each frame ``{"rows": n, "tensors": [...]}`` is answered
by ``{"tensors": [...]}`` or ``{"error": sentence}``.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import orjson

from mlflowkit.errors import EngineError

PREFIX = struct.Struct(">II")
MAX_HEAD = 1 << 20
MAX_BODY = 1 << 30


def pack(head: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> bytes:
    """Encode a frame, prefix included."""
    entries: list[Any] = []
    bodies: list[bytes] = []
    for name, array in (tensors or {}).items():
        text = array.dtype.kind in "OUS"
        body = orjson.dumps(array.ravel().tolist()) if text else np.ascontiguousarray(array).tobytes()
        entries.append([name, "str" if text else array.dtype.str, array.shape, len(body)])
        bodies.append(body)
    encoded = orjson.dumps({**head, "tensors": entries} if tensors is not None else dict(head))
    return b"".join((PREFIX.pack(len(encoded), sum(map(len, bodies))), encoded, *bodies))


def sizes(prefix: bytes) -> tuple[int, int]:
    """Lengths of head and body. Raises EngineError beyond MAX_HEAD and MAX_BODY."""
    head, body = PREFIX.unpack(prefix)
    if head > MAX_HEAD or body > MAX_BODY:
        raise EngineError(f"a frame of {head} and {body} bytes is too long")
    return head, body


def unpack(head: bytes, body: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Decode a frame of `pack`; arrays are read-only views of the body. Raises EngineError for anything else.

    >>> frame = pack({"rows": 2}, {"x": np.array([[1.5], [2.5]]), "s": np.array([["a"], [""]], dtype=object)})
    >>> first, rest = sizes(frame[:8])
    >>> head, tensors = unpack(frame[8 : 8 + first], frame[8 + first :])
    >>> head["rows"], tensors["x"].tolist(), tensors["s"].tolist()
    (2, [[1.5], [2.5]], [['a'], ['']])
    """
    try:
        decoded = orjson.loads(head)
        tensors: dict[str, np.ndarray] = {}
        start = 0
        for name, dtype, shape, size in decoded.get("tensors", ()):
            content = memoryview(body)[start : start + size]
            start += size
            if dtype == "str":
                tensors[name] = np.array(orjson.loads(content), dtype=object).reshape(shape)
            else:
                tensors[name] = np.frombuffer(content, dtype=np.dtype(dtype)).reshape(shape)
    except (ValueError, TypeError, AttributeError) as error:
        raise EngineError(f"a frame cannot be read: {error}") from error
    return decoded, tensors


def new_nonce() -> str:
    return secrets.token_hex(16)


def prove(token: str, role: Literal["gateway", "model"], gateway_nonce: str, model_nonce: str) -> str:
    """The proof of one side.

    >>> prove("t", "model", "a", "b") == prove("t", "gateway", "a", "b")
    False
    """
    message = f"{role}:{gateway_nonce}:{model_nonce}".encode("utf-8", "replace")
    return hmac.new(token.encode(), message, hashlib.sha256).hexdigest()


def is_proof(head: Mapping[str, Any], expected: str) -> bool:
    """Whether a frame has the expected proof, whatever else it has in its place."""
    proof = head.get("proof")
    return isinstance(proof, str) and hmac.compare_digest(proof.encode("utf-8", "replace"), expected.encode())


def nonce_of(head: Mapping[str, Any]) -> str:
    """The nonce in a frame. Raises EngineError."""
    nonce = head.get("nonce")
    if not isinstance(nonce, str) or not 16 <= len(nonce) <= 128:
        raise EngineError("no nonce came where one is due")
    return nonce


class GatewaySide:
    """The gateway's part: send `opening`, then `reply` to what came, then `check` what came."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._nonce = new_nonce()

    @property
    def opening(self) -> dict[str, Any]:
        return {"nonce": self._nonce}

    def reply(self, head: Mapping[str, Any]) -> dict[str, Any]:
        """Raises EngineError when the other side does not know the token."""
        nonce = nonce_of(head)
        if not is_proof(head, prove(self._token, "model", self._nonce, nonce)):
            raise EngineError("what listens there does not know this version's token")
        return {"proof": prove(self._token, "gateway", self._nonce, nonce)}

    @staticmethod
    def check(head: Mapping[str, Any], digest: str) -> None:
        """Raises EngineError for another version."""
        if head.get("digest") != digest:
            raise EngineError("another version answers there")
