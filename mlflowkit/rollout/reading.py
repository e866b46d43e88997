"""Reads what the files of a service say, for `mlflowkit.rollout.view`. Standard library and pydantic only.

A file that is damaged is one of the snapshot's problems; the rest is shown all the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mlflowkit.errors import MlkitError
from mlflowkit.judging.evidence import Evidence, merge
from mlflowkit.rollout import state as states
from mlflowkit.rollout.view import NOTHING, Sample, ServiceView, Snapshot, sample, view
from mlflowkit.serving.files import ServiceFiles, process_started, read_json
from mlflowkit.values import Json

T = TypeVar("T")

INCIDENTS = 50
"""Incidents that are shown; older ones stay in their files."""
RATE_SECONDS = 10.0
"""Requests a second are a mean over at most about this long."""
FRESH_SECONDS = 0.25
"""A view this young is shown again instead of reading the files once more."""


@dataclass
class _Reader:
    """Reads one file after the other and keeps what was wrong with them."""

    problems: list[str] = field(default_factory=list)

    def get(self, read: Callable[[], T], default: T) -> T:
        try:
            return read()
        except MlkitError as error:
            self.problems.append(error.message)
            return default

    def json(self, path: Path) -> Json:
        return self.get(lambda: read_json(path), None)

    def folder(self, path: Path) -> dict[str, Json]:
        """The documents of a folder by name without suffix, in the order of their names."""
        files = sorted(path.glob("*.json")) if path.is_dir() else []
        found = {file.stem: self.json(file) for file in files if not file.name.startswith(".")}
        return {name: value for name, value in found.items() if value is not None}

    def evidence(self, path: Path) -> list[Evidence]:
        found = []
        for name, value in self.folder(path).items():
            try:
                found.append(Evidence.from_json(value))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                self.problems.append(f"{path / name}.json is damaged: {error!r}")
        return found


def snapshot(files: ServiceFiles, now: float | None = None) -> Snapshot:
    """What the files of a service say now."""
    reader = _Reader()
    table = reader.get(files.table, None)
    saved = reader.get(lambda: states.read(files.folder / "rollout.json"), None)
    rollout = None if saved is None else saved.state
    parts = reader.evidence(files.folder / "evidence")
    incidents = reader.folder(files.folder / "incidents")
    admin = reader.json(files.folder / "admin.json")
    return Snapshot(
        service=files.service,
        time=time.time() if now is None else now,
        desired=reader.get(files.desired, None),
        table=table,
        reports=reader.get(files.reports, ()),
        rollout=rollout,
        evidence=NOTHING if table is None else merge(table.experiment, parts),
        trial=NOTHING if rollout is None else merge(rollout.experiment, parts),
        disagreements=reader.folder(files.folder / "disagreements"),
        incidents=tuple(reversed(list(incidents.values())))[:INCIDENTS],
        incident_count=len(incidents),
        admin=admin["endpoint"] if admin is not None and process_started(admin["pid"]) == admin["started"] else "",
        problems=tuple(reader.problems),
    )


class Watch:
    """The services of a state folder, read when asked; requests a second come from what was read before.

    May be asked by several threads.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._samples: dict[str, list[Sample]] = {}
        self._latest: dict[str, tuple[float, ServiceView]] = {}

    def views(self) -> tuple[ServiceView, ...]:
        """Every service of the state folder, by name."""
        return tuple(self._view(files) for files in ServiceFiles.all(self._state))

    def view(self, service: str) -> ServiceView | None:
        """One service; None when there is none of that name."""
        files = next((files for files in ServiceFiles.all(self._state) if files.service == service), None)
        return None if files is None else self._view(files)

    def _view(self, files: ServiceFiles) -> ServiceView:
        with self._lock:
            read, shown = self._latest.get(files.service, (-FRESH_SECONDS, None))
            if shown is not None and time.monotonic() - read < FRESH_SECONDS:
                return shown
            found = snapshot(files)
            samples = self._samples.setdefault(files.service, [])
            while len(samples) > 1 and found.time - samples[1].time >= RATE_SECONDS:
                samples.pop(0)
            shown = view(found, samples[0] if samples else None)
            samples.append(sample(found))
            self._latest[files.service] = (time.monotonic(), shown)
            return shown
