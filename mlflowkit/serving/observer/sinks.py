"""Sinks of answered rows: the prediction log and the live profiles, each written by a thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa

from mlflowkit.bundle import Signature
from mlflowkit.service_state.records import GatewaySettings
from mlflowkit.serving.observer.bundle_info import BundleInfo
from mlflowkit.serving.observer.frames import Batch
from mlflowkit.serving.observer.live_profile import LiveProfiles
from mlflowkit.serving.observer.pane_counts import CountingPlan, counting_plan
from mlflowkit.serving.observer.prediction_log import LogWriter, log_rows, sample_requests, shadow_log_rows
from mlflowkit.system.log_once import LogOnce

MAX_QUEUED_BYTES = 64 << 20
"""Bytes that may wait for the disk, or for the profiler; more are dropped."""
MAX_PLANS = 64
_log = logging.getLogger("mlflowkit.observer")


class BackgroundWorker:
    """A thread with a queue of bounded bytes: tasks that do not fit are dropped and counted.

    ``tick`` is called between tasks and at least four times a second, ``close`` once at the end.
    """

    def __init__(self, name: str, tick: Callable[[], None], close: Callable[[], None]) -> None:
        self.dropped = 0
        self._queue: queue.SimpleQueue[tuple[int, int, Callable[[], None]] | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._lock = threading.Lock()
        self._errors = LogOnce(_log)
        self._tick, self._close = tick, close
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, task: Callable[[], None], rows: pa.Table) -> None:
        """Queue a task that holds ``rows`` until it has run."""
        with self._lock:
            if self._queued_bytes > MAX_QUEUED_BYTES:
                self.dropped += rows.num_rows
                return
            self._queued_bytes += rows.nbytes
        self._queue.put((rows.nbytes, rows.num_rows, task))

    def stop(self, seconds: float) -> None:
        """Run what is queued, for up to ``seconds``."""
        self._queue.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=0.25)
            except queue.Empty:
                self._attempt(self._tick, 0)
                continue
            if item is None:
                self._close()
                return
            size, rows, task = item
            self._attempt(task, rows)
            with self._lock:
                self._queued_bytes -= size
            self._attempt(self._tick, 0)

    def _attempt(self, task: Callable[[], None], rows: int) -> None:
        try:
            task()
        except Exception as error:  # noqa: BLE001 - an error costs its rows, not the thread
            self.dropped += rows
            self._errors.error(f"the {self._thread.name} thread failed: {error!r}", exc_info=True)


class RecordSinks:
    """Logs and profiles one replica's rows as ``settings`` say."""

    def __init__(self, folder: Path, replica: str, profiler: str, settings: GatewaySettings) -> None:
        self.settings = settings
        self._log = LogWriter(folder / "predictions", replica, days=settings.log_days, megabytes=settings.log_mb)
        self._profiles = LiveProfiles(
            folder / "profiles", replica, profiler, days=settings.log_days, count_days=settings.profile_days
        )
        self._plans: dict[tuple[str, str, tuple[str, ...]], CountingPlan] = {}
        self._log_worker = BackgroundWorker("log", self._log.tick, self._log.roll)
        self._profile_worker = BackgroundWorker("profile", self._profiles.tick, self._profiles.close)

    def apply_settings(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self._log.days, self._log.megabytes = settings.log_days, settings.log_mb
        self._profiles.days, self._profiles.count_days = settings.log_days, settings.profile_days

    def answered(self, batch: Batch, info: BundleInfo) -> None:
        """Log answered rows, and profile those that the gateway has counted as answered."""
        settings, header = self.settings, batch.header
        profiled = header.is_evidence and header.pane_seconds > 0
        if not settings.log and not profiled:
            return
        rows = log_rows(batch, info.signature)
        if settings.log:
            sampled = sample_requests(rows, batch, settings.log_sampling)
            self._log_worker.submit(lambda: self._log.add(sampled), sampled)
        if profiled:
            plan, seconds = self._plan(header.version, info), header.pane_seconds
            request, times = batch.request, batch.times
            task = partial(self._profiles.add, rows, header.version, request, times, seconds, plan)
            self._profile_worker.submit(task, rows)

    def _plan(self, version: str, info: BundleInfo) -> CountingPlan:
        """What is counted of a version, prepared once for its bundle and the settings."""
        key = (version, info.digest, self.settings.segments)
        if key not in self._plans:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[key] = counting_plan(info.signature, info.monitoring, self.settings.segments, info.outliers)
        return self._plans[key]

    def shadowed(self, batch: Batch, signature: Signature) -> None:
        rows = sample_requests(shadow_log_rows(batch, signature), batch, self.settings.log_sampling)
        self._log_worker.submit(lambda: self._log.add(rows), rows)

    def counters(self) -> dict[str, int]:
        """Return the numbers of rows written and dropped; they only grow."""
        return {
            "log_rows": self._log.written,
            "log_dropped": self._log.dropped + self._log_worker.dropped,
            "profile_rows": self._profiles.profiled,
            "profile_dropped": self._profiles.dropped + self._profile_worker.dropped,
        }

    def close(self) -> None:
        """Write what is queued, for at most 15 seconds."""
        self._log_worker.stop(5.0)
        self._profile_worker.stop(10.0)
