"""The credentials that lakectl keeps: of ``LAKECTL_...`` variables, else of its file ``~/.lakectl.yaml``.

They are sent to no other server than the one that they are for, whatever URL a recipe names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from mlflowkit.errors import DataError
from mlflowkit.system.text import shell_word

MAX_BYTES = 1 << 20
KEYS = {
    "server.endpoint_url": "LAKECTL_SERVER_ENDPOINT_URL",
    "credentials.access_key_id": "LAKECTL_CREDENTIALS_ACCESS_KEY_ID",
    "credentials.secret_access_key": "LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY",
}
"""Keys of the file, and the variables that come before them."""


def config_file() -> Path:
    """The file of lakectl."""
    return Path(os.environ.get("LAKECTL_CONFIG_FILE") or Path.home() / ".lakectl.yaml").expanduser()


def lakectl_credentials(url: str) -> tuple[str, str]:
    """The access key id and the secret for the server at a URL.

    Raises DataError where there are none, or those of another server, without any part of them.
    """
    path = config_file()
    keys = _read(path)
    keys |= {name: value for name, variable in KEYS.items() if (value := os.environ.get(variable, "").strip())}
    missing = [name for name in KEYS if not keys.get(name)]
    if missing:
        message = f"the connection to {url} names no access_key and secret, and lakectl has no {missing[0]} ({path})"
        raise DataError(message, hint="lakectl config, or access_key: {env: NAME} and secret: {env: NAME}")
    endpoint, user, password = (keys[name] for name in KEYS)
    if _server(endpoint) != _server(url):
        message = f"the credentials of lakectl ({path}) are for {_server(endpoint)[1]}, and the connection is to {url}"
        raise DataError(message, hint="name access_key: {env: NAME} and secret: {env: NAME} in the connection")
    return user, password


def _server(url: str) -> tuple[str, str]:
    """The scheme and the host of a URL, without user information."""
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.netloc.rpartition("@")[2].lower()


def _read(path: Path) -> dict[str, str]:
    """The texts of the file by dotted key; none where there is no file. Raises DataError."""
    import yaml

    try:
        with path.open("rb") as stream:
            content = yaml.load(stream.read(MAX_BYTES), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        message = f"lakectl's file {path} cannot be read: {type(error).__name__}"
        raise DataError(message, hint=f"ls -l {shell_word(path)}; lakectl config writes it anew") from None
    keys = {}
    for name in KEYS:
        section, _, key = name.partition(".")
        values = content.get(section) if isinstance(content, Mapping) else None
        value = values.get(key) if isinstance(values, Mapping) else None
        if isinstance(value, str):
            keys[name] = value.strip()
    return keys
