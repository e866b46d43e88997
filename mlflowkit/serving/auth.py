"""API keys: generated once, stored as hashes, checked in constant time.

A token is ``mlk_<id>_<secret>``. The key file holds hashes, never a token::

    {"keys": [{"id": "5f0c2a91", "sha256": "<of the secret>", "scopes": ["infer"], "created": 1764e6, "note": "web"}]}

A secret has 256 random bits, so it is hashed once, without salt or stretching: those protect human-chosen passwords.
The id selects the hash; hashes are compared in constant time, also for an unknown id, so that neither the duration nor
the reply reveals which ids exist.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mlflowkit.errors import ServiceError, StoreError, UsageError
from mlflowkit.serving.protocol.http_error import CLOSE, RequestError
from mlflowkit.system.files import disk_errors, make_folder, private_opener, replace_file
from mlflowkit.system.text import shell_word

Scope = Literal["infer", "feedback", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_TOKEN = re.compile(rb"mlk_([0-9a-f]{8})_([A-Za-z0-9_-]{16,128})")
_UNKNOWN_KEY_HASH = hashlib.sha256(b"").digest()
_CHALLENGE = ((b"www-authenticate", b'Bearer realm="mlflowkit"'), *CLOSE)
_HINT = "mlkit key create --keys FILE makes such a file"


@dataclass(frozen=True, slots=True)
class Key:
    """One stored key. ``created`` is seconds since the epoch; ``sha256`` is of the secret, in hex."""

    id: str
    sha256: str
    scopes: tuple[Scope, ...]
    created: float
    note: str = ""


class Keyring:
    """Keys prepared for checking.

    >>> key, token = make_key(["infer"], now=0.0)
    >>> ring = Keyring([key])
    >>> ring.check(token.encode(), "infer")
    >>> ring.check(token.encode(), "admin")
    Traceback (most recent call last):
    mlflowkit.serving.protocol.http_error.RequestError: this API key has the scope infer; admin is needed here
    """

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = {key.id.encode(): (bytes.fromhex(key.sha256), frozenset(key.scopes)) for key in keys}

    def __len__(self) -> int:
        return len(self._keys)

    def check(self, token: bytes, scope: Scope | None) -> None:
        """Raise RequestError (401, 403) unless the token belongs to a key with this scope.

        None stands for any scope but metrics, and every key may read metrics.
        """
        if not token:
            message = "an API key is needed: send it as authorization: Bearer KEY, or as x-api-key: KEY"
            raise RequestError(401, message, _CHALLENGE)
        parts = _TOKEN.fullmatch(token)
        entry = self._keys.get(parts[1]) if parts is not None else None
        digest, scopes = entry or (_UNKNOWN_KEY_HASH, frozenset[Scope]())
        same = hmac.compare_digest(hashlib.sha256(b"" if parts is None else parts[2]).digest(), digest)
        if entry is None or not same:
            message = "this API key is not known here: it is mistyped, revoked, or of another service"
            raise RequestError(401, message, _CHALLENGE)
        allowed = scopes - {"metrics"} if scope is None else scope == "metrics" or scope in scopes
        if not allowed:
            has, needed = ", ".join(sorted(scopes)), "another one" if scope is None else scope
            raise RequestError(403, f"this API key has the scope {has}; {needed} is needed here", CLOSE)

    def scopes(self, token: bytes) -> tuple[str, frozenset[Scope]]:
        """The id and the scopes of a key whose token was checked; ("", nothing) for one that is gone meanwhile."""
        parts = _TOKEN.fullmatch(token)
        entry = None if parts is None else self._keys.get(parts[1])
        return ("", frozenset()) if parts is None or entry is None else (parts[1].decode(), entry[1])


def bearer_token(name: bytes, value: bytes) -> bytes:
    """The token in an ``authorization`` or ``x-api-key`` header; empty for another scheme than Bearer.

    >>> bearer_token(b"authorization", b"Bearer mlk_1"), bearer_token(b"authorization", b"Basic YTpi")
    (b'mlk_1', b'')
    """
    if name == b"x-api-key":
        return value.strip()
    return value[7:].strip() if value[:7].lower() == b"bearer " else b""


def is_loopback(host: str) -> bool:
    """Whether ``host`` is reachable from this machine only. A name other than localhost is not trusted to be.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "gpu-7")]
    [True, True, True, False, False]
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


UNAUTHENTICATED = "MLKIT_UNAUTHENTICATED"
"""Environment variable; 1 where the platform in front is the only one that reaches the service and checks callers
itself, as SageMaker does: it sends no key and a Host of its own."""


def is_fronted() -> bool:
    """Whether a platform in front of this process checks callers itself."""
    return os.environ.get(UNAUTHENTICATED) == "1"


def check_exposed(host: str, keys: str) -> None:
    """Raise ServiceError for a listener beyond loopback without API keys."""
    if not keys and not is_loopback(host) and not is_fronted():
        hint = "mlkit key create --keys keys.json, and in the recipe serve.auth.keys: keys.json"
        raise ServiceError(f"{host} is reached from other machines, and no API keys are asked for", hint=hint)


def make_key(scopes: Sequence[str], note: str = "", *, now: float | None = None) -> tuple[Key, str]:
    """Generate a key and its token, which is stored nowhere. Raises UsageError for an unknown scope or none."""
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        problem = f"scope {unknown[0]!r} is not known" if unknown else "a key needs a scope"
        raise UsageError(problem, hint=f"choose from {', '.join(SCOPES)}")
    identity, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    granted: tuple[Scope, ...] = tuple(scope for scope in SCOPES if scope in scopes)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return Key(identity, digest, granted, time.time() if now is None else now, note), f"mlk_{identity}_{secret}"


def parse_keys(text: str | bytes, source: str) -> tuple[Key, ...]:
    """Parse a key document. Raises ServiceError that names ``source`` and the problem, never a hash."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ServiceError(f"{source} is not JSON: {error}", hint=_HINT) from error
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ServiceError(f'{source}: an object {{"keys": [...]}} is expected', hint=_HINT)
    keys = tuple(_parse_key(value, f"{source}: keys[{index}]") for index, value in enumerate(entries))
    ids = [key.id for key in keys]
    duplicate = next((id for id in ids if ids.count(id) > 1), "")
    if duplicate:
        raise ServiceError(f"{source}: key {duplicate} is there twice", hint="remove one of them")
    return keys


def _parse_key(value: Any, where: str) -> Key:
    if not isinstance(value, dict) or not {"id", "sha256", "scopes"} <= value.keys():
        raise ServiceError(f"{where}: an object with id, sha256 and scopes is expected", hint=_HINT)
    identity, digest, scopes = value["id"], value["sha256"], value["scopes"]
    if not isinstance(identity, str) or not re.fullmatch(r"[0-9a-f]{8}", identity):
        raise ServiceError(f"{where}: id has eight hexadecimal digits", hint=_HINT)
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ServiceError(f"{where}: sha256 has 64 hexadecimal digits", hint=_HINT)
    if not isinstance(scopes, list) or not scopes or any(scope not in SCOPES for scope in scopes):
        raise ServiceError(f"{where}: scopes are some of {', '.join(SCOPES)}", hint=_HINT)
    created, note = value.get("created", 0.0), value.get("note", "")
    if isinstance(created, bool) or not isinstance(created, int | float) or not isinstance(note, str):
        raise ServiceError(f"{where}: created is a number of seconds, note is text", hint=_HINT)
    return Key(identity, digest, tuple(scopes), float(created), note)


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read a key file. Raises ServiceError when it is missing, unreadable or damaged."""
    try:
        return parse_keys(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise ServiceError(
            f"there is no file of API keys {path}", hint=f"mlkit key create --keys {shell_word(path)}"
        ) from error
    except OSError as error:
        hint = f"ls -ld {shell_word(path)} shows its permissions"
        raise ServiceError(f"{path} cannot be read: {error.strerror}", hint=hint) from error


def write_keys(path: Path, keys: Iterable[Key]) -> None:
    """Replace a key file; at every moment only its owner can read it. Raises ServiceError."""
    write_private(path, json.dumps({"keys": [asdict(key) for key in keys]}, indent=1).encode() + b"\n")


def write_private(path: Path, content: bytes) -> None:
    """Replace a file atomically by one that has mode 0600 from its creation. Raises ServiceError."""
    try:
        replace_file(path, content)
    except StoreError as error:
        raise ServiceError(error.message, hint=error.hint) from error


@contextmanager
def edit_keys(path: Path) -> Iterator[list[Key]]:
    """Yield a file's keys for in-place changes, written when the block succeeds. One writer at a time (a file lock)."""
    with disk_errors(path):
        make_folder(path.parent)
        lock = open(path.with_name(f".{path.name}.lock"), "w", opener=private_opener)  # noqa: SIM115  (closed below)
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = list(read_keys(path)) if path.exists() else []
        yield keys
        write_keys(path, keys)
