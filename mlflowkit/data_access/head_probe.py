"""One request that tells which version a moving reference stands for now. Standard library only: a run with nothing to
do makes it, and imports no client of a vendor for it."""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mlflowkit.values import Json

TIMEOUT_SECONDS = 5.0
MAX_ANSWER = 1 << 20


@dataclass(frozen=True, slots=True)
class HeadProbe:
    """A GET of JSON, of which ``field`` (dotted) is compared with ``value``. Secrets are references only."""

    url: str
    field: str
    value: str
    user: Mapping[str, str | None] | None = None
    """``{env: NAME}`` or ``{file: PATH}`` of the user; with ``password`` the request has basic authentication."""
    password: Mapping[str, str | None] | None = None
    bearer: Mapping[str, str | None] | None = None

    def to_json(self) -> dict[str, Json]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> HeadProbe:
        """Raises TypeError for what `to_json` does not write."""
        return cls(**value)


def current_version(probe: HeadProbe, folder: Path, timeout: float = TIMEOUT_SECONDS) -> str:
    """What a moving reference stands for now; "" when there is no answer that says so. Never raises.

    ``folder`` is what the paths of secret files are relative to.
    """
    parts = urlsplit(probe.url)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    try:
        headers = {"Accept": "application/json", **_authorization(probe, folder)}
        if parts.scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.netloc, timeout=timeout, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            value: Json = json.loads(response.read(MAX_ANSWER)) if response.status == 200 else {}
        finally:
            connection.close()
        for name in probe.field.split("."):
            value = value[name]
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return value if isinstance(value, str) else ""


def _authorization(probe: HeadProbe, folder: Path) -> dict[str, str]:
    if probe.bearer is not None:
        return {"Authorization": f"Bearer {_secret(probe.bearer, folder)}"}
    if probe.user is not None and probe.password is not None:
        pair = f"{_secret(probe.user, folder)}:{_secret(probe.password, folder)}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}


def _secret(reference: Mapping[str, str | None], folder: Path) -> str:
    """As `connections.CredentialReference.read`, which says what is wrong with one; here that is a ValueError."""
    if name := reference.get("env"):
        return os.environ[name].strip("\r\n")
    path = folder / Path(str(reference.get("file"))).expanduser()
    with path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ValueError("readable by others")
        return stream.read(65536).decode().strip("\r\n")
