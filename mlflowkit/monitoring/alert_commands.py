"""Acknowledgements and silences: records that `mlkit monitor ack` writes and the monitor carries out.

``<service>/monitor/commands/<id>.json`` is an `AlertCommand`; it is removed once its effect is in the record that
readers see (``monitor/view.json``), and its reply in ``<service>/answers/<id>.json``.
"""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import asdict, dataclass
from typing import Literal

from mlflowkit.errors import ServiceError
from mlflowkit.service_state.records import ServiceFiles

COMMANDS = "monitor/commands"
_log = logging.getLogger("mlflowkit.monitoring")


@dataclass(frozen=True, slots=True)
class AlertCommand:
    """Acknowledge or silence the alert or episode ``target`` until a time."""

    id: str
    kind: Literal["ack", "silence"]
    target: str
    until: float
    time: float = 0.0


def submit(files: ServiceFiles, kind: Literal["ack", "silence"], target: str, seconds: float) -> AlertCommand:
    """Write a command for the monitor, which takes it within a second."""
    now = time.time()
    command = AlertCommand(f"{time.time_ns():020d}-{secrets.token_hex(4)}", kind, target, now + seconds, now)
    files.write_json(f"{COMMANDS}/{command.id}.json", asdict(command))
    return command


def pending(files: ServiceFiles) -> tuple[AlertCommand, ...]:
    """Commands that are not carried out yet, oldest first. A damaged one is removed, and told in the log."""
    commands = []
    for entry in files.list(f"{COMMANDS}/*.json"):
        try:
            commands.append(AlertCommand(**files.read_json(entry.key)))
        except (ServiceError, TypeError) as error:
            _log.error("%s is damaged and was removed: %s", files.location(entry.key), error)
            files.delete(entry.key)
    return tuple(commands)


def remove(files: ServiceFiles, command: AlertCommand) -> None:
    """Remove a command that was carried out."""
    files.delete(f"{COMMANDS}/{command.id}.json")
