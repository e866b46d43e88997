"""Where the local Ray of a state folder is. Imports no Ray: the variables must be set before it is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlflowkit.service_state.records import process_started, read_json


def running(state: Path) -> Mapping[str, str] | None:
    """Environment variables to reach the Ray that serves this state folder; None when none is up.

    They are what the serving platform keeps in ``<state>/ray/cluster.json``, ``RAY_ADDRESS`` among them.
    """
    record = read_json(state / "ray" / "cluster.json")
    if not isinstance(record, dict) or record.get("state") != "ready":
        return None
    steward = record["steward"]
    if process_started(steward["pid"]) != steward["started"]:
        return None
    environment: Mapping[str, str] = record["environment"]
    return environment if environment.get("RAY_ADDRESS") else None
