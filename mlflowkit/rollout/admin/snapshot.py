"""Read the records of a service for `mlflowkit.rollout.admin.build_view`. Standard library and pydantic only.

A damaged record becomes one of the snapshot's problems; everything else is still shown.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.judging.online.evidence import Evidence, merge
from mlflowkit.rollout import state as states
from mlflowkit.rollout.admin.build_view import build_service_view, request_sample
from mlflowkit.rollout.admin.parse_records import comparison_from_json, incident_from_json
from mlflowkit.rollout.admin.view_models import (
    NO_EVIDENCE,
    ControllerStatus,
    RequestSample,
    ServiceSnapshot,
    ServiceView,
)
from mlflowkit.service_state import controller_lease, version_history
from mlflowkit.service_state.records import ReplicaReport, ServiceFiles
from mlflowkit.system.text import format_count, shell_word
from mlflowkit.values import Json, RoutingTable

T = TypeVar("T")

MAX_INCIDENTS = 50
"""Incidents in a snapshot; older ones stay in their files."""
RATE_SECONDS = 10.0
"""Window of the mean request rate."""
REQUIRED_KEYS = {"time", "candidate", "reason"}
"""Keys without which an incident counts as damaged."""
CACHE_SECONDS = 0.25
"""A view of at most this age is returned again without reading the files."""


@dataclass
class _TolerantReader:
    """Reads the records of a service and collects their problems."""

    files: ServiceFiles
    problems: list[str] = field(default_factory=list)

    def get(self, read: Callable[[], T], default: T) -> T:
        try:
            return read()
        except MlkitError as error:
            self.problems.append(error.message)
            return default

    def json(self, name: str) -> Json:
        return self.get(lambda: self.files.read_json(name), None)

    def folder(self, folder: str) -> dict[str, Json]:
        """The readable JSON records of a folder, by name without suffix, sorted."""
        values = {name.removeprefix(f"{folder}/").removesuffix(".json"): self.json(name) for name in self.names(folder)}
        return {name: value for name, value in values.items() if value is not None}

    def parse_folder(self, folder: str, parse: Callable[[str, Json], T], last: int | None = None) -> dict[str, T]:
        """The parsed (last) JSON records of a folder, by name."""
        parsed = {}
        for name, value in list(self.folder(folder).items())[-last if last else None :]:
            try:
                parsed[name] = parse(name, value)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                place = self.files.location(f"{folder}/{name}.json")
                self.problems.append(f"{place} is damaged: {error!r}")
        return parsed

    def names(self, folder: str) -> Sequence[str]:
        nothing: Sequence[str] = ()
        return self.get(lambda: [entry.key for entry in self.files.list(f"{folder}/*.json")], nothing)


def read_snapshot(files: ServiceFiles) -> ServiceSnapshot:
    """Read all records of a service."""
    reader = _TolerantReader(files)
    table = reader.get(files.table, None)
    saved = reader.get(lambda: states.read(files), None)
    rollout = None if saved is None else saved.state
    parts = reader.parse_folder("evidence", lambda _, value: Evidence.from_json(value)).values()
    deliveries: tuple[Mapping[str, Json], ...] = reader.get(lambda: webhook_deliveries(files), ())
    now = time.time()
    reports: tuple[ReplicaReport, ...] = reader.get(files.reports, ())
    reader.problems += dict.fromkeys(report.warning for report in reports if report.warning)  # each once
    feedback: Mapping[str, Json] = reader.json("feedback.json") or {}
    reader.problems += feedback_problems(feedback)
    return ServiceSnapshot(
        service=files.service,
        time=now,
        desired=reader.get(files.desired, None),
        table=table,
        reports=reports,
        rollout=rollout,
        evidence=NO_EVIDENCE if table is None else merge(table.experiment, parts),
        rollout_evidence=NO_EVIDENCE if rollout is None else merge(rollout.experiment, parts),
        comparisons=reader.parse_folder("disagreements", lambda _, value: comparison_from_json(value)),
        incidents=tuple(reversed(reader.parse_folder("incidents", incident_from_json, MAX_INCIDENTS).values())),
        incident_count=len(reader.names("incidents")),
        admin=reader.get(files.admin_url, ""),
        previous=reader.get(lambda: previous_version(files, table), ""),
        controller=reader.get(lambda: controller_status(files.state, now), None),
        webhooks=tuple(reversed(deliveries)),
        waiting_webhooks=len(reader.names("webhooks")),
        feedback=dict(feedback.get("counters", {})),
        problems=tuple(reader.problems),
    )


def feedback_problems(status: Mapping[str, Json]) -> Iterator[str]:
    """What the join of feedback left out, from its status, in words.

    >>> list(feedback_problems({"counters": {"premature": 2}, "withheld": {}}))
    ['feedback: 2 items came before their request was answered, and do not count']
    """
    for key, share in status.get("withheld", {}).items():
        yield (
            f"feedback: API key {key} sent {share:.0%} of a variant's labels, more than serve.feedback.max_share: no "
            "verdict uses them. If it is your own backend's, give it a key for this alone: mlkit key create --keys "
            "FILE --scope feedback"
        )
    counters = status.get("counters", {})
    for name, text in (
        ("premature", "came before their request was answered, and do not count"),
        ("unmatched", "name a request that is not in the prediction log, and were dropped"),
        ("unknown", "have a label that is none of the model's classes"),
        ("mismatched", "have another number of rows, or of values, than their request was answered with"),
    ):
        if counters.get(name):
            yield f"feedback: {format_count(counters[name], 'item')} {text}"
    if counters.get("trimmed"):
        yield "feedback: the index is larger than serve.feedback.max_mb: its oldest entries were removed"


def webhook_deliveries(files: ServiceFiles) -> tuple[Mapping[str, Json], ...]:
    """Results of the last webhook deliveries, newest last. Raises ServiceError."""
    deliveries = files.read_json("webhooks.json") or []
    if not isinstance(deliveries, list) or not all(isinstance(item, dict) and "id" in item for item in deliveries):
        place = files.location("webhooks.json")
        raise ServiceError(f"{place} is damaged: a list of deliveries is expected", hint=f"rm -r {shell_word(place)}")
    return tuple(deliveries)


def incident_records(files: ServiceFiles, limit: int = MAX_INCIDENTS) -> list[Json]:
    """The JSON of the last incidents, newest first; damaged ones are skipped."""
    values = reversed(_TolerantReader(files).folder("incidents").values())
    return [value for value in values if isinstance(value, dict) and value.keys() >= REQUIRED_KEYS][:limit]


def previous_version(files: ServiceFiles, table: RoutingTable | None) -> str:
    """The version that a rollback returns to; "" if none is known. Raises ServiceError."""
    champion = None if table is None else version_history.previous_champion(files, table.champion.digest)
    return "" if champion is None else champion.variant.version


def controller_status(state: Path, now: float) -> ControllerStatus | None:
    """The holder of the controller lease of a state folder, if any. Raises ServiceError."""
    holder = controller_lease.read_holder(state)
    return None if holder is None else ControllerStatus(not holder.is_gone(now), holder.fence, holder.pid, holder.seen)


class EventCounter:
    """Counts ended rollouts and webhook deliveries since its creation, for metrics."""

    def __init__(self) -> None:
        self.ended: Counter[tuple[str, str, str]] = Counter()
        """By service, strategy and phase."""
        self.delivered: Counter[tuple[str, str]] = Counter()
        """By service and ``ok`` or ``failed``."""
        self._seen: dict[str, set[str]] = {}
        self._versions: dict[tuple[str, str], str] = {}
        self._phases: dict[str, tuple[str, bool]] = {}

    def update(self, files: ServiceFiles) -> None:
        """Count what is new in a service's files. Raises ServiceError for a damaged file."""
        if self._changed(files, states.RECORD):
            saved = states.read(files)
            if saved is not None:
                state, before = saved.state, self._phases.get(files.service)
                self._phases[files.service] = (state.experiment, state.ended)
                if state.ended and before is not None and before != (state.experiment, True):
                    self.ended[files.service, state.strategy, state.phase] += 1
        if self._changed(files, "webhooks.json"):
            results = {delivery["id"]: bool(delivery.get("ok")) for delivery in webhook_deliveries(files)}
            counted = self._seen.get(files.service, set(results))  # those of before this process are not counted
            new = [ok for id, ok in results.items() if id not in counted]
            self.delivered.update((files.service, "ok" if ok else "failed") for ok in new)
            self._seen[files.service] = set(results)

    def _changed(self, files: ServiceFiles, name: str) -> bool:
        version, key = "".join(entry.version for entry in files.list(name)), (files.service, name)
        before, self._versions[key] = self._versions.get(key), version
        return before != version


class ServiceMonitor:
    """The views of a state folder's services, with request rates from earlier reads. Thread-safe."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._samples: dict[str, list[RequestSample]] = {}
        self._latest: dict[str, tuple[float, ServiceView]] = {}

    def views(self) -> tuple[ServiceView, ...]:
        """All services, sorted by name."""
        return tuple(self._view(files) for files in ServiceFiles.all(self._state))

    def view(self, service: str) -> ServiceView | None:
        """One service; None if it does not exist."""
        files = next((files for files in ServiceFiles.all(self._state) if files.service == service), None)
        return None if files is None else self._view(files)

    def _view(self, files: ServiceFiles) -> ServiceView:
        with self._lock:
            read_at, view = self._latest.get(files.service, (-CACHE_SECONDS, None))
            if view is not None and time.monotonic() - read_at < CACHE_SECONDS:
                return view
            snapshot = read_snapshot(files)
            samples = self._samples.setdefault(files.service, [])
            while len(samples) > 1 and snapshot.time - samples[1].time >= RATE_SECONDS:
                samples.pop(0)
            view = build_service_view(snapshot, samples[0] if samples else None)
            samples.append(request_sample(snapshot))
            self._latest[files.service] = (time.monotonic(), view)
            return view
