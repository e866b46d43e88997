"""Credentials for a registry, read where container tools keep them. No value is ever part of a message.

In this order: ``MLKIT_REGISTRY_USER`` and ``MLKIT_REGISTRY_TOKEN`` (or ``MLKIT_REGISTRY_PASSWORD``) for the host that
``MLKIT_REGISTRY`` names (and for no other), the file ``REGISTRY_AUTH_FILE``, ``$DOCKER_CONFIG/config.json``,
``~/.docker/config.json``, ``$XDG_RUNTIME_DIR/containers/auth.json``.
Their credential helpers are called as Docker calls them.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflowkit.errors import UsageError
from mlflowkit.system.text import shell_word

MAX_CONFIG_BYTES = 1 << 20
HELPER_SECONDS = 30.0
_HELPER = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class RegistryCredentials:
    """A user's name and password or token; the password is not shown."""

    user: str
    password: str = field(repr=False)


def registry_credentials(host: str, environment: Mapping[str, str] | None = None) -> RegistryCredentials | None:
    """The credentials for a registry's host, None where there are none. Raises UsageError for a damaged file."""
    environment = os.environ if environment is None else environment
    given = given_credentials(host, environment)
    if given is not None:
        return given
    for path in _files(environment):
        if path.is_file() and (present := _from_file(path, host)) is not None:
            return present
    return None


def given_credentials(host: str, environment: Mapping[str, str]) -> RegistryCredentials | None:
    """The credentials of the variables, for the host that ``MLKIT_REGISTRY`` names."""
    secret = environment.get("MLKIT_REGISTRY_TOKEN") or environment.get("MLKIT_REGISTRY_PASSWORD")
    if environment.get("MLKIT_REGISTRY") == host and secret:
        return RegistryCredentials(environment.get("MLKIT_REGISTRY_USER", "token"), secret)
    return None


def credentials_document(host: str, credentials: RegistryCredentials) -> str:
    """The credentials as a file of container tools says them (``auth.json``, Docker's ``config.json``)."""
    pair = f"{credentials.user}:{credentials.password}".encode()
    return json.dumps({"auths": {host: {"auth": base64.b64encode(pair).decode()}}})


def _files(environment: Mapping[str, str]) -> Iterator[Path]:
    if file := environment.get("REGISTRY_AUTH_FILE"):
        yield Path(file)
    home = Path(environment.get("HOME") or "/nonexistent")
    yield Path(environment.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"


def _from_file(path: Path, host: str) -> RegistryCredentials | None:
    damaged = UsageError(
        f"{path} is not a file of registry credentials", hint=f"rm {shell_word(path)}; docker login {host}"
    )
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_CONFIG_BYTES + 1)
        document = json.loads(content) if len(content) <= MAX_CONFIG_BYTES else None
    except OSError as error:
        hint = f"ls -l {shell_word(path)} shows its permissions"
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise damaged from error
    if not isinstance(document, dict):
        raise damaged
    hosts = (
        (host, f"https://{host}", f"https://{host}/v1/")
        if host != "docker.io"
        else ("https://index.docker.io/v1/", host)
    )
    helpers, entries = document.get("credHelpers"), document.get("auths")
    helper = helpers.get(host) if isinstance(helpers, dict) else None
    entry = next((entries[name] for name in hosts if name in entries), None) if isinstance(entries, dict) else None
    if isinstance(entry, dict) and entry.get("auth"):
        return _decode(entry["auth"], damaged)
    helper = helper or document.get("credsStore")
    return None if not isinstance(helper, str) else _from_helper(helper, hosts[0])


def _decode(value: Any, damaged: UsageError) -> RegistryCredentials:
    try:
        user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, ValueError, TypeError):
        raise damaged from None  # the cause would quote the secret
    if not colon:
        raise damaged
    return RegistryCredentials(user, password)


def _from_helper(name: str, host: str) -> RegistryCredentials | None:
    """What ``docker-credential-NAME get`` says; None where it knows no such host or is not installed."""
    if not _HELPER.fullmatch(name):
        return None
    try:
        process = subprocess.run(
            [f"docker-credential-{name}", "get"], input=host, capture_output=True, text=True, timeout=HELPER_SECONDS,
            check=False,
        )  # fmt: skip
        document = json.loads(process.stdout) if process.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None
    if not isinstance(document, dict) or not isinstance(document.get("Secret"), str):
        return None
    return RegistryCredentials(str(document.get("Username", "")), document["Secret"])
