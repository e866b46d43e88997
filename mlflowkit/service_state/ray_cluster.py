"""Which Ray a process joins: the one that the environment variable RAY_ADDRESS names, or the one that serves a state
folder. Imports no Ray.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from mlflowkit.errors import EngineError
from mlflowkit.service_state.records import process_started, read_json

ADDRESS_SECONDS = 3.0
DEFAULT_PORT = 6379


def ray_environment(state: Path) -> Mapping[str, str] | None:
    """Environment variables for joining the Ray that serves this state folder; None when none is up.

    The serving platform writes them, RAY_ADDRESS among them, to ``<state>/ray/cluster.json``. They must be set before
    Ray is imported.
    """
    record = read_json(state / "ray" / "cluster.json")
    if not isinstance(record, dict) or record.get("state") != "ready":
        return None
    supervisor = record["steward"]
    if process_started(supervisor["pid"]) != supervisor["started"]:
        return None
    environment: Mapping[str, str] = record["environment"]
    return environment if environment.get("RAY_ADDRESS") else None


def check_address(address: str) -> None:
    """Raise EngineError when RAY_ADDRESS names a host and port where nothing answers. ``auto`` is left to Ray."""
    if not address or address in ("auto", "local"):
        return
    if address.startswith(("http://", "https://")):
        raise EngineError(
            f"RAY_ADDRESS names {address}, a dashboard; Ray's own address is needed",
            hint=f"export RAY_ADDRESS={urlsplit(address).hostname or 'HOST'}:{DEFAULT_PORT}, or unset RAY_ADDRESS",
        )
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname or "", parts.port or (10001 if parts.scheme == "ray" else DEFAULT_PORT)
        with socket.create_connection((host, port), ADDRESS_SECONDS):
            return
    except (OSError, ValueError) as error:
        raise EngineError(
            f"RAY_ADDRESS names {address}, where nothing answers ({error}): unset it, or start that cluster",
            hint=f"unset RAY_ADDRESS, or: ray start --head --port={DEFAULT_PORT}",
        ) from error
