"""Reads what the files of a service say, for `mlflowkit.rollout.admin.build_view`. Standard library and pydantic only.

A file that is damaged is one of the snapshot's problems; the rest is shown all the same.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.judging.online.evidence import Evidence, merge
from mlflowkit.rollout import state as states
from mlflowkit.rollout.admin.build_view import comparison_from_json, incident_from_json, sample, view
from mlflowkit.rollout.admin.view_models import NOTHING, Controller, Sample, ServiceView, Snapshot
from mlflowkit.service_state import controller_lease, version_history
from mlflowkit.service_state.records import ReplicaReport, ServiceFiles, read_json
from mlflowkit.values import Json, RoutingTable

T = TypeVar("T")

INCIDENTS = 50
"""Incidents that are shown; older ones stay in their files."""
RATE_SECONDS = 10.0
"""Requests a second are a mean over at most about this long."""
SHOWN = {"time", "candidate", "reason"}
"""What an incident has at least, or its record is damaged."""
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

    def made(self, path: Path, make: Callable[[str, Json], T], last: int | None = None) -> dict[str, T]:
        """What ``make`` makes of the (last) documents of a folder, by name."""
        found = {}
        for name, value in list(self.folder(path).items())[-last if last else None :]:
            try:
                found[name] = make(name, value)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                self.problems.append(f"{path / name}.json is damaged: {error!r}")
        return found


def snapshot(files: ServiceFiles, now: float | None = None) -> Snapshot:
    """What the files of a service say now."""
    reader = _Reader()
    table = reader.get(files.table, None)
    saved = reader.get(lambda: states.read(files.folder / "rollout.json"), None)
    rollout = None if saved is None else saved.state
    parts = reader.made(files.folder / "evidence", lambda _, value: Evidence.from_json(value)).values()
    incidents = files.folder / "incidents"
    webhooks = files.folder / "webhooks"
    told: tuple[Mapping[str, Json], ...] = reader.get(lambda: deliveries(files), ())
    now = time.time() if now is None else now
    reports: tuple[ReplicaReport, ...] = reader.get(files.reports, ())
    reader.problems += dict.fromkeys(report.warning for report in reports if report.warning)  # once for all replicas
    return Snapshot(
        service=files.service,
        time=now,
        desired=reader.get(files.desired, None),
        table=table,
        reports=reports,
        rollout=rollout,
        evidence=NOTHING if table is None else merge(table.experiment, parts),
        trial=NOTHING if rollout is None else merge(rollout.experiment, parts),
        comparisons=reader.made(files.folder / "disagreements", lambda _, value: comparison_from_json(value)),
        incidents=tuple(reversed(reader.made(incidents, incident_from_json, INCIDENTS).values())),
        incident_count=_count(incidents),
        admin=reader.get(files.admin_page, ""),
        previous=reader.get(lambda: previous(files, table), ""),
        controller=reader.get(lambda: controller(files.folder.parent.parent, now), None),
        webhooks=tuple(reversed(told)),
        waiting_webhooks=_count(webhooks),
        problems=tuple(reader.problems),
    )


def deliveries(files: ServiceFiles) -> tuple[Mapping[str, Json], ...]:
    """What became of the last events that were told to hooks, newest last. Raises ServiceError."""
    path = files.folder / "webhooks.json"
    found = read_json(path) or []
    if not isinstance(found, list) or not all(isinstance(one, dict) and "id" in one for one in found):
        raise ServiceError(f"{path} is damaged: a list of deliveries is expected", hint=f"remove {path}")
    return tuple(found)


def records(files: ServiceFiles, most: int = INCIDENTS) -> list[Json]:
    """The last incidents as they were written, newest first. One that is damaged is left out."""
    found = _Reader().folder(files.folder / "incidents")
    return [value for value in reversed(found.values()) if isinstance(value, dict) and value.keys() >= SHOWN][:most]


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*.json")) if folder.is_dir() else 0


def previous(files: ServiceFiles, table: RoutingTable | None) -> str:
    """The version that a service would go back to; "" when none is known. Raises ServiceError."""
    found = None if table is None else version_history.previous(files, table.champion.digest)
    return "" if found is None else found.variant.version


def controller(state: Path, now: float) -> Controller | None:
    """Who controls the rollouts of a state folder; None before anybody did. Raises ServiceError."""
    holder = controller_lease.read(state)
    return None if holder is None else Controller(not holder.gone(now), holder.fence, holder.pid, holder.seen)


class Tally:
    """Counts ends of rollouts and deliveries of webhooks as they happen, for metrics: since it was made, no earlier."""

    def __init__(self) -> None:
        self.ended: Counter[tuple[str, str, str]] = Counter()
        """By service, strategy and phase."""
        self.delivered: Counter[tuple[str, str]] = Counter()
        """By service and ``ok`` or ``failed``."""
        self._seen: dict[str, set[str]] = {}
        self._marks: dict[Path, int] = {}
        self._phases: dict[str, tuple[str, bool]] = {}

    def note(self, files: ServiceFiles) -> None:
        """Look at a service, and count what is new since the last look. Raises ServiceError for a damaged file."""
        if self._changed(files.folder / "rollout.json"):
            saved = states.read(files.folder / "rollout.json")
            if saved is not None:
                self._note_phase(files.service, saved.state)
        if self._changed(files.folder / "webhooks.json"):
            first = files.service not in self._seen
            known = self._seen.setdefault(files.service, set())
            found = {one["id"]: bool(one.get("ok")) for one in deliveries(files)}
            if not first:
                self.delivered.update(
                    (files.service, "ok" if ok else "failed") for id, ok in found.items() if id not in known
                )
            self._seen[files.service] = set(found)

    def _note_phase(self, service: str, state: states.RolloutState) -> None:
        before = self._phases.get(service)
        self._phases[service] = (state.experiment, state.ended)
        if state.ended and before is not None and before != (state.experiment, True):
            self.ended[service, state.strategy, state.phase] += 1

    def _changed(self, path: Path) -> bool:
        try:
            mark = path.stat().st_mtime_ns
        except FileNotFoundError:
            mark = 0
        known, self._marks[path] = self._marks.get(path, -1), mark
        return known != mark


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
