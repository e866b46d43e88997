"""Uploads each closed window's merged profile to WhyLabs once, in order.

The record ``monitor/whylabs.json`` has the end of the last uploaded window of each version, and the upload under way.
An upload is opened, recorded, and then put at its address: after a crash the same profile is put at the same address,
which replaces it, instead of being uploaded again (whylogs#1083). The address is good for a few minutes and is in a
file that only its owner can read; the API key is in none.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

from mlflowkit.errors import ServiceError
from mlflowkit.monitoring.monitor_settings import WhylabsExport, read_settings
from mlflowkit.monitoring.monitor_view import MonitorView, WindowView, read_view
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.serving.observer.panes import read_profiles
from mlflowkit.system import failpoint
from mlflowkit.system.log_once import LogOnce
from mlflowkit.values import Json

RECORD = "monitor/whylabs.json"
MAX_VERSIONS = 20
"""Versions whose last upload is remembered."""
_log = logging.getLogger("mlflowkit.monitoring")


class ProfileUploads(Protocol):
    """Where profiles are uploaded."""

    def open(self, dataset: str, key: str, timestamp: float) -> tuple[str, str]:
        """Ask for an upload of data of a time: (id, address). Raises ServiceError."""
        ...

    def put(self, url: str, profile: bytes) -> str:
        """Put a profile at an address, again replaces it; why the address is refused, or "". Raises ServiceError."""
        ...


class StampingProfiler(Protocol):
    """A profiler whose profiles are merged, and carry the time of their data."""

    def merge(self, profiles: Sequence[bytes]) -> bytes:
        """Merge one or more profiles."""
        ...

    def stamp(self, profile: bytes, time: float) -> bytes:
        """The profile with the time of its data, in seconds since the epoch."""
        ...


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """An upload that was opened and may have been put."""

    version: str
    start: float
    end: float
    id: str
    url: str


@dataclass(frozen=True, slots=True)
class UploadCursor:
    """How far profiles of a dataset are uploaded: by version, the end of the last window."""

    dataset: str = ""
    ends: Mapping[str, float] = field(default_factory=dict)
    pending: PendingUpload | None = None

    def next_window(self, view: MonitorView) -> WindowView | None:
        """The first window that is not uploaded; that of a pending upload before others."""
        after = self.ends.get(view.version, 0.0)
        windows = sorted(view.windows, key=lambda window: window.start)
        return next((window for window in windows if window.start >= after), None)

    def done(self, version: str, end: float) -> UploadCursor:
        """The cursor after a window."""
        others = {name: value for name, value in self.ends.items() if name != version}
        return replace(self, ends=dict([*others.items(), (version, end)][-MAX_VERSIONS:]), pending=None)

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Json, dataset: str) -> UploadCursor:
        """The cursor that `to_json` returned; a new one for another dataset, where there is none, or it is damaged."""
        try:
            ends = {str(version): float(end) for version, end in value["ends"].items()}
            pending = None if value["pending"] is None else PendingUpload(**value["pending"])
            return cls(dataset, ends, pending) if value["dataset"] == dataset else cls(dataset)
        except (TypeError, KeyError, ValueError, AttributeError):
            return cls(dataset)


class WhylabsExporter:
    """Uploads the profiles of each service whose settings name a dataset. ``profiler`` is made at the first upload."""

    name = "whylabs"

    def __init__(
        self,
        uploads: ProfileUploads,
        profiler: Callable[[], StampingProfiler],
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._uploads = uploads
        self._profiler = profiler
        self._environment = environment
        self._gaps = LogOnce(_log)

    def export(self, files: ServiceFiles, now: float) -> None:
        """Upload every window that is closed and not uploaded. Raises ServiceError or DataError at the first fault."""
        settings = read_settings(files)
        target = None if settings is None else settings.monitor.export.whylabs
        view = read_view(files)
        if target is None or view is None:
            return
        for _ in view.windows:
            cursor = UploadCursor.from_json(files.read_json(RECORD), target.dataset)
            window = cursor.next_window(view)
            if window is None:
                return
            self._upload(files, target, view.version, window, cursor)

    def _upload(
        self, files: ServiceFiles, target: WhylabsExport, version: str, window: WindowView, cursor: UploadCursor
    ) -> None:
        end = window.start + window.seconds
        stored = read_profiles(files.folder / "profiles", version, window.start, end)
        parts = [part for start in sorted(stored) for part in stored[start]]
        if not parts:
            if window.rows:
                self._gaps.error(f"{files.service}: a window of {window.rows:,} rows has no profile for WhyLabs")
            files.write_json(RECORD, cursor.done(version, end).to_json())
            return
        profiler = self._profiler()
        profile = profiler.stamp(profiler.merge(parts), window.start)
        pending = cursor.pending
        if pending is None or (pending.version, pending.start, pending.end) != (version, window.start, end):
            id, url = self._uploads.open(target.dataset, self._key(target), window.start)
            pending = PendingUpload(version, window.start, end, id, url)
            files.write_json(RECORD, replace(cursor, pending=pending).to_json())
        failpoint.hit("whylabs.opened")
        refusal = self._uploads.put(pending.url, profile)
        if refusal:  # an address is good for a few minutes: the next attempt asks for another one
            files.write_json(RECORD, replace(cursor, pending=None).to_json())
            raise ServiceError(f"WhyLabs did not take the profile of a window: {refusal}")
        failpoint.hit("whylabs.put")
        files.write_json(RECORD, cursor.done(version, end).to_json())

    def _key(self, target: WhylabsExport) -> str:
        key = self._environment.get(target.key_env, "")
        if not key:
            raise ServiceError(
                f"the controller's environment has no {target.key_env} with the WhyLabs API key",
                hint=f"set {target.key_env} where services are started: mlkit down, then mlkit up RECIPE",
            )
        return key
