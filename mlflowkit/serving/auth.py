"""API keys: made once, kept as hashes, checked in constant time.

A token is ``mlk_<id>_<secret>``. The file has what tells a right one, and no token::

    {"keys": [{"id": "5f0c2a91", "sha256": "<of the secret>", "scopes": ["infer"], "created": 1764e6, "note": "web"}]}

A secret has 256 random bits, so it is hashed once, without salt or stretching: those defend what people choose. The id
finds the hash; the hashes are compared in constant time, also for an id that nobody has, so that neither the time nor
the answer tells which ids there are.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mlflowkit.errors import ServiceError, StoreError, UsageError
from mlflowkit.system.files import disk_errors

if TYPE_CHECKING:
    from mlflowkit.serving.protocol.http_error import Refusal

Scope = Literal["infer", "feedback", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_TOKEN = re.compile(rb"mlk_([0-9a-f]{8})_([A-Za-z0-9_-]{16,128})")
_NOBODY = hashlib.sha256(b"").digest()
_CHALLENGE = ((b"www-authenticate", b'Bearer realm="mlflowkit"'), (b"connection", b"close"))
_CLOSE = ((b"connection", b"close"),)


@dataclass(frozen=True, slots=True)
class Key:
    """One key at rest. ``created`` is seconds since the epoch; ``sha256`` is of the secret, in hex."""

    id: str
    sha256: str
    scopes: tuple[Scope, ...]
    created: float
    note: str = ""


class Keyring:
    """Keys made ready for checking.

    >>> key, token = make(["infer"], now=0.0)
    >>> ring = Keyring([key])
    >>> ring.check(token.encode(), "infer")
    >>> ring.check(token.encode(), "admin")
    Traceback (most recent call last):
    mlflowkit.serving.protocol.http_error.Refusal: this API key has the scope infer; admin is needed here
    """

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = {key.id.encode(): (bytes.fromhex(key.sha256), frozenset(key.scopes)) for key in keys}

    def __len__(self) -> int:
        return len(self._keys)

    def check(self, token: bytes, scope: Scope | None) -> None:
        """Raise Refusal (401, 403) unless the token is a key's with this scope (any, for None)."""
        if not token:
            raise _refusal(
                401, "an API key is needed: send it as authorization: Bearer KEY, or as x-api-key: KEY", _CHALLENGE
            )
        parts = _TOKEN.fullmatch(token)
        known = self._keys.get(parts[1]) if parts is not None else None
        digest, scopes = known or (_NOBODY, frozenset[Scope]())
        same = hmac.compare_digest(hashlib.sha256(b"" if parts is None else parts[2]).digest(), digest)
        if known is None or not same:
            raise _refusal(
                401, "this API key is not known here: it is mistyped, revoked, or of another service", _CHALLENGE
            )
        if scope is not None and scope not in scopes:
            has = ", ".join(sorted(scopes))
            raise _refusal(403, f"this API key has the scope {has}; {scope} is needed here", _CLOSE)


def _refusal(status: int, message: str, headers: tuple[tuple[bytes, bytes], ...]) -> Refusal:
    from mlflowkit.serving.protocol.http_error import Refusal  # NumPy comes with it, and `mlkit key` needs none

    return Refusal(status, message, headers)


def token_of(name: bytes, value: bytes) -> bytes:
    """The token in an ``authorization`` or ``x-api-key`` header; empty for another scheme than Bearer.

    >>> token_of(b"authorization", b"Bearer mlk_1"), token_of(b"authorization", b"Basic YTpi")
    (b'mlk_1', b'')
    """
    if name == b"x-api-key":
        return value.strip()
    return value[7:].strip() if value[:7].lower() == b"bearer " else b""


def loopback(host: str) -> bool:
    """Whether only this machine reaches a listener on ``host``. A name other than localhost is not trusted to be.

    >>> loopback("127.0.0.1"), loopback("::1"), loopback("localhost"), loopback("0.0.0.0"), loopback("gpu-7")
    (True, True, True, False, False)
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposed(host: str, keys: str) -> None:
    """Raise ServiceError for a listener beyond loopback without API keys."""
    if not keys and not loopback(host):
        raise ServiceError(
            f"{host} is reached from other machines, and no API keys are asked for",
            hint="mlkit key create --keys keys.json, and in the recipe serve.auth.keys: keys.json",
        )


def make(scopes: Sequence[str], note: str = "", *, now: float | None = None) -> tuple[Key, str]:
    """A new key and its token, which is nowhere else. Raises UsageError for an unknown scope or none."""
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise UsageError(
            f"scope {unknown[0]!r} is not known" if unknown else "a key needs a scope",
            hint=f"choose from {', '.join(SCOPES)}",
        )
    identity, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    kept: tuple[Scope, ...] = tuple(scope for scope in SCOPES if scope in scopes)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return Key(identity, digest, kept, time.time() if now is None else now, note), f"mlk_{identity}_{secret}"


def parse(text: str | bytes, source: str) -> tuple[Key, ...]:
    """The keys of a document. Raises ServiceError that names ``source`` and what is wrong, never a hash."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ServiceError(f"{source} is not JSON: {error}", hint=_HINT) from error
    given = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(given, list):
        raise ServiceError(f'{source}: an object {{"keys": [...]}} is expected', hint=_HINT)
    keys = tuple(_key(value, f"{source}: keys[{place}]") for place, value in enumerate(given))
    twice = next((key.id for place, key in enumerate(keys) if key.id in [other.id for other in keys[:place]]), "")
    if twice:
        raise ServiceError(f"{source}: key {twice} is there twice", hint="remove one of them")
    return keys


_HINT = "mlkit key create --keys FILE makes such a file"


def _key(value: Any, where: str) -> Key:
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


def read(path: Path) -> tuple[Key, ...]:
    """The keys of a file. Raises ServiceError when it is missing, unreadable or damaged."""
    try:
        return parse(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise ServiceError(f"there is no file of API keys {path}", hint=f"mlkit key create --keys {path}") from error
    except OSError as error:
        raise ServiceError(
            f"{path} cannot be read: {error.strerror}", hint=f"check the permissions of {path}"
        ) from error


def write(path: Path, keys: Iterable[Key]) -> None:
    """Replace a file of keys so that only its owner reads it, at every moment. Raises ServiceError."""
    rows: list[Mapping[str, Any]] = [asdict(key) for key in keys]
    content = json.dumps({"keys": rows}, indent=1).encode() + b"\n"
    write_private(path, content)


def write_private(path: Path, content: bytes) -> None:
    """Replace a file by one of mode 0600 that was never anything else. Raises ServiceError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    except StoreError as error:
        raise ServiceError(error.message, hint=error.hint) from error


@contextmanager
def changing(path: Path) -> Iterator[list[Key]]:
    """The keys of a file, to be changed in place; written when the block ends well. One writer at a time."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = list(read(path)) if path.exists() else []
        yield keys
        write(path, keys)
