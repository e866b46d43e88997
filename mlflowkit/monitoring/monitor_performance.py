"""A version's performance: reads what its bundle, the join's index and the gateways' counts say, and has it judged."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.judging.online.evidence import Evidence
from mlflowkit.monitoring.monitor_settings import MonitorSection, seconds_of
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system.log_once import LogOnce

if TYPE_CHECKING:
    from mlflowkit.judging.performance.assess import Evidence as OwnErrors
    from mlflowkit.judging.performance.performance_findings import MetricFinding, PerformanceSettings
    from mlflowkit.judging.performance.realised import LabelledCohort
    from mlflowkit.judging.performance.request_history import RequestHistory
    from mlflowkit.judging.shift.counts import WindowCounts

REQUESTS = "monitor/requests.json"
"""The record of a service that holds its `RequestHistory`."""
HISTORY_SECONDS = 400 * 86_400.0
"""Age of the oldest cohort that is judged."""
_log = logging.getLogger("mlflowkit.monitor")


class PerformanceMonitoring:
    """The performance of one service's versions; one writer of `REQUESTS`."""

    def __init__(self, files: ServiceFiles) -> None:
        self._files = files
        self._once = LogOnce(_log)
        self._history: RequestHistory | None = None
        self._calibrators: dict[Path, OwnErrors | None] = {}

    def look_at_requests(self, version: str, now: float) -> None:
        """Add what the gateways counted since the last look. Faults are logged once, and the next look goes on."""
        from mlflowkit.judging.performance import request_history

        history = self._read_history()
        try:
            after = request_history.look(history, self._evidence(), self._variants(version), now)
            if after != history:
                self._files.write_json(REQUESTS, after.to_json(), durable=False)
            self._once.clear("requests")
        except MlkitError as error:
            self._once.error(f"{self._files.service}: requests are not counted: {error.message}", key="requests")
            return
        self._history = after

    def assess(
        self, section: MonitorSection, version: str, bundle: Path | None, windows: Sequence[WindowCounts], now: float
    ) -> tuple[MetricFinding, ...]:
        """The findings on a version that the recipe asks for; ``windows`` are its closed ones, in the order of time."""
        from mlflowkit.judging.performance.assess import PerformanceInputs, assess_performance

        settings = performance_settings(section)
        cohorts: tuple[LabelledCohort, ...] = ()
        fault = ""
        if settings.realised is not None or settings.estimated is not None:
            cohorts, fault = self._cohorts(section, version, now)
        evidence = None if bundle is None else self._own_errors(bundle)
        requests = self._read_history().parts
        inputs = PerformanceInputs(version, now, evidence, windows, cohorts, requests, fault)
        return assess_performance(settings, inputs)

    def assess_requests(self, section: MonitorSection, version: str, now: float) -> tuple[MetricFinding, ...]:
        """The findings on latency and errors alone: burn rates are of minutes, whatever a window is."""
        from mlflowkit.judging.performance.assess import PerformanceInputs, assess_performance

        settings = replace(performance_settings(section), estimated=None, realised=None)
        return assess_performance(settings, PerformanceInputs(version, now, requests=self._read_history().parts))

    def _cohorts(self, section: MonitorSection, version: str, now: float) -> tuple[tuple[LabelledCohort, ...], str]:
        """The cohorts of a version, a window long each (an hour, where windows are shorter), and why there are none."""
        from mlflowkit.serving.feedback.cohorts import read_cohorts
        from mlflowkit.serving.feedback.matured import period_seconds

        seconds = max(section.window_seconds, period_seconds(section.pane_seconds))
        since = (now - HISTORY_SECONDS) // seconds * seconds
        try:
            desired = self._files.desired()
            share = 1.0 if desired is None else desired.settings.feedback_max_share
            return read_cohorts(self._files.folder, version, since, now, seconds, max_share=share), ""
        except MlkitError as error:
            self._once.error(f"{self._files.service}: labels cannot be read: {error.message}", key="labels")
            return (), error.message

    def _own_errors(self, bundle: Path) -> OwnErrors | None:
        """What a bundle knows of its own errors; None for one without, also a damaged one, which is logged."""
        if bundle not in self._calibrators:
            self._calibrators[bundle] = self._load_own_errors(bundle)
        return self._calibrators[bundle]

    def _load_own_errors(self, path: Path) -> OwnErrors | None:
        from mlflowkit.bundle import open_bundle
        from mlflowkit.judging.performance.calibrator import EVIDENCE, Calibrator
        from mlflowkit.judging.performance.error_table import ErrorTable

        try:
            bundle = open_bundle(path)
            if not bundle.has(EVIDENCE):
                return None
            document = json.loads(bundle.read(EVIDENCE))
            kind = ErrorTable if document["task"] == "regression" else Calibrator
            return kind.from_json(document)
        except (MlkitError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._once.error(f"{self._files.service}: {path}: {EVIDENCE} cannot be read: {error}", key="calibrator")
            return None

    def _read_history(self) -> RequestHistory:
        from mlflowkit.judging.performance.request_history import RequestHistory

        if self._history is None:
            try:
                value = self._files.read_json(REQUESTS)
                self._history = RequestHistory() if value is None else RequestHistory.from_json(value)
            except (ServiceError, ValueError, KeyError, TypeError, AttributeError) as error:
                place = self._files.location(REQUESTS)
                self._once.error(f"{place} is damaged, burn rates begin anew: {error}", key="history")
                self._history = RequestHistory()
        return self._history

    def _evidence(self) -> dict[str, Evidence]:
        """The counts of each gateway; one that cannot be read counts when it can be again."""
        parts = {}
        for entry in self._files.list("evidence/*.json"):
            try:
                document = self._files.read_json(entry.key)
                if document is not None:
                    parts[entry.key] = Evidence.from_json(document)
            except (ServiceError, ValueError, KeyError, TypeError, AttributeError) as error:
                self._once.error(f"{self._files.location(entry.key)} cannot be read: {error!r}", key=entry.key)
        return parts

    def _variants(self, version: str) -> frozenset[str]:
        table = self._files.table()
        if table is None:
            return frozenset()
        return frozenset(item.name for item in table.variants if item.version == version and item.role != "shadow")


def performance_settings(section: MonitorSection) -> PerformanceSettings:
    """What a recipe asks of performance, latency and errors."""
    from mlflowkit.judging.performance.performance_findings import PerformanceSettings

    settings = PerformanceSettings(level=section.level)
    estimated, realised, latency = section.performance.estimated, section.performance.realised, section.latency
    if estimated is not None:
        settings = replace(settings, estimated=estimated.metric, max_drop=estimated.max_drop)
    if realised is not None:
        settings = replace(
            settings,
            realised=realised.metric,
            minimum=realised.min,
            maximum=realised.max,
            mature=seconds_of(realised.mature),
            min_labels=realised.min_labels,
        )
    if latency is not None:
        settings = replace(
            settings,
            p99_seconds=None if latency.p99_ms is None else latency.p99_ms / 1000,
            error_rate=latency.error_rate,
            budget_seconds=seconds_of(latency.budget),
        )
    return settings
