"""Sends what monitors see to other systems, from threads of the controller's process: one thread for each system.

An exporter reads a service's records and is called again and again; what it has sent is in a record of its own, so that
a restart sends nothing twice. An exporter that raises is logged once, waits longer each time, and delays no other one,
nor the monitor.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from mlflowkit.errors import MlkitError
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system.log_once import LogOnce

POLL_SECONDS = 1.0
RETRY_SECONDS = 60.0
"""Longest wait after a failure; the first is POLL_SECONDS, and each is twice the one before."""
JOIN_SECONDS = 5.0
_log = logging.getLogger("mlflowkit.monitoring")


class ServiceExporter(Protocol):
    """Sends the news of one service to one system."""

    name: str

    def export(self, files: ServiceFiles, now: float) -> None:
        """Send what is new at ``now``, in seconds since the epoch. Raises any error: it is called again."""
        ...


class ExportLoop:
    """Calls exporters for all services of ``state`` while its context is entered.

    ``leads`` tells whether this process is the one that sends: another process may wait to take its place.
    """

    def __init__(
        self,
        state: Path,
        exporters: Sequence[ServiceExporter],
        *,
        leads: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.time,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._state = state
        self._leads = leads
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._stopping = threading.Event()
        self._errors = LogOnce(_log)
        self._threads = [
            threading.Thread(target=self._run, args=(exporter,), name=f"mlkit-export-{exporter.name}", daemon=True)
            for exporter in exporters
        ]

    def __enter__(self) -> ExportLoop:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; a request that is being sent ends with the process."""
        self._stopping.set()
        deadline = time.monotonic() + JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, exporter: ServiceExporter) -> None:
        waits: dict[str, tuple[float, float]] = {}
        while not self._stopping.wait(self._poll_seconds):
            try:
                services = ServiceFiles.all(self._state) if self._leads() else ()
            except MlkitError as error:
                self._errors.error(error.message, key=exporter.name)
                continue
            for files in services:
                seconds, due = waits.get(files.service, (0.0, 0.0))
                if time.monotonic() < due or self._stopping.is_set():
                    continue
                if self._export(exporter, files):
                    waits.pop(files.service, None)
                else:
                    seconds = min(RETRY_SECONDS, max(self._poll_seconds, 2 * seconds))
                    waits[files.service] = seconds, time.monotonic() + seconds

    def _export(self, exporter: ServiceExporter, files: ServiceFiles) -> bool:
        key = f"{exporter.name} {files.service}"
        try:
            exporter.export(files, self._clock())
        except MlkitError as error:
            hint = f" ({error.hint})" if error.hint else ""
            self._errors.error(f"{files.service}: {exporter.name}: {error.message}{hint}", key=key)
            return False
        except Exception as error:  # noqa: BLE001 - a fault of an exporter must not end its thread
            self._errors.error(
                f"{files.service}: {exporter.name}: {type(error).__name__}: {error}", key=key, exc_info=True
            )
            return False
        self._errors.clear(key)
        return True
