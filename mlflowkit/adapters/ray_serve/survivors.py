"""Gateways that go on answering while their Ray is started again, and how they are ended afterwards. Imports no Ray.

A gateway replica owns its listener and needs no Ray to answer. So when Ray, the reconciler or the supervisor ends, its
processes are spared: they share the service's port with those that follow (SO_REUSEPORT). Once these serve, the old
ones are told to finish their requests and end; what is left then is killed.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path

from mlflowkit.adapters.ray_serve import ownership
from mlflowkit.adapters.ray_serve.isolated import read_addresses
from mlflowkit.adapters.ray_serve.ownership import ProcessKey
from mlflowkit.errors import ServiceError
from mlflowkit.service_state.records import RETIRED, ReplicaReport, ServiceFiles, process_started

DRAIN_SECONDS = 15.0
"""How long a retired gateway may take to finish its requests."""
_log = logging.getLogger("mlflowkit.reconciler")


def answering(state: Path, members: Collection[ProcessKey]) -> set[ProcessKey]:
    """The ``members`` that answer requests of a service that is to be up, with the processes that these started."""
    named: set[ProcessKey] = set()
    for files in _services(state):
        with contextlib.suppress(ServiceError):  # a damaged record names nobody
            desired = files.desired()
            if desired is not None and desired.up:
                named |= {(report.pid, report.started) for report in _local(files)}
                for variant in () if (table := files.table()) is None else table.variants:
                    if variant.placement == "isolated":
                        addresses = read_addresses(files, variant.digest).values()
                        named |= {(address.pid, address.started) for address in addresses}
    roots = {pid for pid, started in named & set(members)}
    family = ownership.descendants(roots)
    return {(pid, started) for pid, started in members if pid in family}


def _services(state: Path) -> tuple[ServiceFiles, ...]:
    try:
        return ServiceFiles.all(state)
    except ServiceError:
        return ()


def _local(files: ServiceFiles) -> list[ReplicaReport]:
    return [report for report in files.reports() if report.node == socket.gethostname()]


class Retirement:
    """Ends the survivors of an earlier Ray once the gateways of the present one serve in their place."""

    def __init__(self, state: Path, survivors: Collection[ProcessKey], finished: Callable[[], None]) -> None:
        self._state, self._survivors, self._finished = state, set(survivors), finished
        self._deadline: float | None = None
        self.done = not survivors

    def advance(self) -> None:
        """Take the next step that is due; returns at once. Propagates ServiceError of a damaged record."""
        if self.done:
            return
        if self._deadline is None:
            if not all(self._replaced(files) for files in _services(self._state)):
                return
            for files in _services(self._state):
                names = [report.replica for report in _local(files) if self._is_old(report)]
                if names:
                    files.write_json(RETIRED, {"replicas": names})
            self._deadline = time.monotonic() + DRAIN_SECONDS
        alive = {(pid, started) for pid, started in self._survivors if process_started(pid) == started}
        gateways = {(report.pid, report.started) for files in _services(self._state) for report in _local(files)}
        if alive & gateways and time.monotonic() < self._deadline:
            return
        ownership.kill(alive)
        for files in _services(self._state):
            files.delete(RETIRED)
        self.done = True
        self._finished()
        _log.info("the gateways of the Ray before have ended")

    def _is_old(self, report: ReplicaReport) -> bool:
        return (report.pid, report.started) in self._survivors

    def _replaced(self, files: ServiceFiles) -> bool:
        """Whether the service has as many gateways of the present Ray as it is to have, all with its table."""
        desired, table = files.desired(), files.table()
        if desired is None or not desired.up:
            return True
        epoch = 0 if table is None else table.epoch
        ready = ("serving",) if table is not None else ("serving", "waiting")
        fresh = [report for report in files.reports() if not self._is_old(report)]
        return sum(report.state in ready and report.epoch >= epoch for report in fresh) >= desired.settings.replicas
