"""Starts the processes of attempts. They outlive this process; what they do is told by records only (see episodes)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Protocol

from mlflowkit.errors import ServiceError
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system.child_process import module_command, python_path
from mlflowkit.system.files import make_folder, private_opener

MODULE = "mlflowkit.processes.retrain_main"


class Launcher(Protocol):
    """Starts processes for attempts."""

    def start(self, files: ServiceFiles, id: str, attempt: str) -> None:
        """Start a process for an attempt; it ends at once where another one has claimed it. Raises ServiceError."""

    def ended(self, id: str, attempt: str) -> int | None:
        """Exit code of the process that this launcher started last for an attempt; None while it runs, or for none."""


class ProcessLauncher:
    """Starts ``python -m mlflowkit.processes.retrain_main`` in a session of its own.

    The environment is this process's: a recipe's secrets are found by their names, and are in no record.
    """

    def __init__(self) -> None:
        self._started: dict[tuple[str, str], subprocess.Popen[bytes]] = {}

    def start(self, files: ServiceFiles, id: str, attempt: str) -> None:
        log = files.folder / "monitor" / "logs" / f"{id}.{attempt}.start.log"
        try:
            make_folder(log.parent)
            with open(log, "wb", opener=private_opener) as stream:
                self._started[id, attempt] = subprocess.Popen(
                    module_command(MODULE, str(files.state), files.service, id, attempt),
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stream, start_new_session=True,
                    cwd=str(_working_folder(files.state)), env={**os.environ, **python_path()},
                )  # fmt: skip
        except OSError as error:
            raise ServiceError(f"no process could be started: {error}", hint="mlkit status") from error

    def ended(self, id: str, attempt: str) -> int | None:
        process = self._started.get((id, attempt))
        return None if process is None else process.poll()


def _working_folder(state: Path) -> Path:
    return state if state.is_dir() else Path("/")
