"""What is kept of answered rows: the prediction log and the live profiles, each written by a thread of its own."""

from __future__ import annotations

from pathlib import Path

from mlflowkit.bundle import Signature
from mlflowkit.service_state.records import Settings
from mlflowkit.serving.observer.background_worker import Worker
from mlflowkit.serving.observer.frames import Batch
from mlflowkit.serving.observer.live_profile import LiveProfiles
from mlflowkit.serving.observer.prediction_log import LogWriter, logged, logged_shadow


class Keeping:
    """Logs and profiles one replica's rows as ``settings`` say; `follow` when they changed."""

    def __init__(self, folder: Path, replica: str, profiler: str, settings: Settings) -> None:
        self.settings = settings
        self._profiler = profiler
        self._log = LogWriter(folder / "predictions", replica, days=settings.log_days, megabytes=settings.log_mb)
        self._profiles = LiveProfiles(folder / "profiles", replica, profiler, days=settings.log_days)
        self._log_worker = Worker("log", self._log.tick, self._log.roll)
        self._profile_worker = Worker("profile", self._profiles.tick, self._profiles.close)

    def follow(self, settings: Settings) -> None:
        """Keep as much, and as long, as these settings say."""
        self.settings = settings
        self._log.days, self._log.megabytes = settings.log_days, settings.log_mb
        self._profiles.days = settings.log_days

    def answered(self, batch: Batch, signature: Signature) -> None:
        """Log and profile answered rows; only what the split gave a variant, and it answered itself, is profiled."""
        settings, head = self.settings, batch.head
        if not settings.log and not settings.profile:
            return
        whole = logged(batch, signature)
        if settings.log:
            rows = whole
            if settings.log_sampling < 1.0:
                rows = logged(batch, signature, sampling=settings.log_sampling)
            self._log_worker.offer(lambda: self._log.add(rows), size=rows.nbytes, rows=rows.num_rows)
        if settings.profile and self._profiler and head.how == "hash" and head.answered == head.variant:
            when = float(batch.times[0])
            self._profile_worker.offer(
                lambda: self._profiles.add(whole, head.version, when), size=whole.nbytes, rows=whole.num_rows
            )

    def shadowed(self, batch: Batch, signature: Signature) -> None:
        """Log rows that a shadow answered too."""
        rows = logged_shadow(batch, signature, sampling=self.settings.log_sampling)
        self._log_worker.offer(lambda: self._log.add(rows), size=rows.nbytes, rows=rows.num_rows)

    def counters(self) -> dict[str, int]:
        """Rows that were kept, and rows that were not; all of it only grows."""
        return {
            "log_rows": self._log.written,
            "log_dropped": self._log.dropped + self._log_worker.dropped,
            "profile_rows": self._profiles.profiled,
            "profile_dropped": self._profiles.dropped + self._profile_worker.dropped,
        }

    def close(self) -> None:
        """Write down what waits, for some seconds."""
        self._log_worker.stop(5.0)
        self._profile_worker.stop(10.0)
