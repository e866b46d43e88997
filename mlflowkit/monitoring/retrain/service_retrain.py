"""Retraining and probation of one service, as its monitor calls them: a view in, a view out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from mlflowkit.judging.shift.counts import WindowCounts
from mlflowkit.monitoring.monitor_settings import MonitorSettings, seconds_of
from mlflowkit.monitoring.monitor_view import MonitorView, RetrainView
from mlflowkit.monitoring.retrain.live_quantiles import live_quantiles
from mlflowkit.monitoring.retrain.probation import Probation, ProbationReport
from mlflowkit.monitoring.retrain.retrain_driver import RetrainDeps, RetrainDriver, RetrainPlan, RetrainReport
from mlflowkit.monitoring.retrain.retrain_inputs import merged_overrides, situation_of, terms_of
from mlflowkit.monitoring.retrain.retrain_policy import RetrainDecision
from mlflowkit.monitoring.retrain.runner import Launcher, ProcessLauncher
from mlflowkit.monitoring.retrain.steady_clock import Moment, this_moment
from mlflowkit.service_state.records import ServiceFiles


@dataclass(frozen=True, slots=True)
class RetrainOutcome:
    """What the monitor shows: ``view`` for its record, ``sentences`` for its log of decisions. ``asks_person`` tells
    that a person has to look, with the reason; "" otherwise."""

    view: RetrainView
    sentences: tuple[str, ...] = ()
    asks_person: str = ""


class ServiceRetrain:
    """Retraining of one service while its controller holds the lease. `tick` may be called as often as one likes."""

    def __init__(
        self,
        files: ServiceFiles,
        settings: MonitorSettings,
        *,
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
        runs: Callable[[], str] = lambda: "",
        launcher: Launcher | None = None,
        clock: Callable[[], Moment] = this_moment,
    ) -> None:
        self.files = files
        self.settings = settings
        self._driver: RetrainDriver | None = None
        self._version = ""
        section, rollback = settings.retrain, settings.monitor.rollback
        if section is not None and settings.recipe:
            plan = RetrainPlan(
                terms_of(section), settings.recipe, merged_overrides(settings.overrides, section.overrides)
            )
            deps = RetrainDeps(
                launcher or ProcessLauncher(), guard, clock, runs,
                lambda columns: live_quantiles(files, self._version, columns),
            )  # fmt: skip
            self._driver = RetrainDriver(files, plan, deps)
        seconds = 0.0 if rollback is None else seconds_of(rollback.probation)
        self._probation = Probation(files, seconds, guard=guard, clock=clock) if seconds else None

    def tick(self, view: MonitorView, live: WindowCounts | None = None) -> RetrainOutcome:
        """Decide and act by the monitor's view. ``live`` are counts of the windows that the alarms are about, in the
        cells of the champion's reference. Raises MlkitError; the next tick goes on."""
        table = self.files.table()
        if table is None:
            return RetrainOutcome(RetrainView())
        self._version = table.champion.version
        trial = self._probation.tick() if self._probation is not None else ProbationReport()
        finding = trial.finding
        situation = situation_of(
            view, table.champion, live, probation=None if finding is None else finding.outcome,
            probation_message="" if finding is None else finding.message,
        )  # fmt: skip
        if self._driver is None:
            report = RetrainReport("off", RetrainDecision("none", ""))
            if finding is not None and finding.outcome == "FAILED":
                report = RetrainReport("off", RetrainDecision("rollback", finding.message))
        else:
            report = self._driver.tick(situation)
        shadowed = trial.phase in ("running", "going back")
        if report.decision.kind == "rollback" and self._probation is not None and shadowed:
            self._probation.go_back(report.decision.reason)
        return _outcome(report, trial, self._driver is not None)


def _outcome(report: RetrainReport, trial: ProbationReport, retrains: bool) -> RetrainOutcome:
    state = report.state
    if trial.phase in ("running", "going back") and state in ("off", "idle"):
        state = "probation"
    reason = report.decision.reason or (trial.finding.message if trial.finding is not None else "")
    view = RetrainView(state, reason, report.episode, report.budget_left if retrains else None, tuple(report.runs))
    asks = report.decision.reason if report.decision.kind == "ask a person" else ""
    return RetrainOutcome(view, (*trial.sentences, *report.sentences), asks)
