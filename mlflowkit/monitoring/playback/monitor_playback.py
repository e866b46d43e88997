"""The monitor and the retraining policy over recorded or simulated windows: the real ones, in simulated time. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from mlflowkit.judging.shift.counts import WindowCounts
from mlflowkit.judging.shift.reference import Reference
from mlflowkit.monitoring.monitor_settings import MonitorSection, RetrainSection
from mlflowkit.monitoring.monitor_state import new_state, plan_digest
from mlflowkit.monitoring.monitor_view import AlertView
from mlflowkit.monitoring.retrain.retrain_inputs import situation_of, terms_of
from mlflowkit.monitoring.retrain.retrain_policy import RetrainDecision, RetrainFacts, decide_retrain
from mlflowkit.monitoring.view_builder import build_view
from mlflowkit.monitoring.window_step import StepInputs, step
from mlflowkit.values import Variant

DEFAULT_REARM = 2


@dataclass(frozen=True, slots=True)
class PlayedWindow:
    """What the monitor makes of a window. ``alerts`` are those that are active after it, ``new`` those that began.

    decision  what the policy of retraining says, which knows nothing of the data source here: "look at data" is where
              it would begin; None without a ``retrain`` section
    """

    start: float
    rows: int
    state: str
    alerts: tuple[AlertView, ...]
    new: tuple[AlertView, ...]
    decision: RetrainDecision | None = None

    @property
    def asks(self) -> bool:
        """Whether a retraining is asked for."""
        return self.decision is not None and self.decision.wanted


def play_monitor(
    service: str,
    champion: Variant,
    section: MonitorSection,
    retrain: RetrainSection | None,
    reference: Reference,
    windows: Iterable[WindowCounts],
) -> Iterator[PlayedWindow]:
    """What the monitor of a recipe makes of the windows of one version, oldest first; nothing is ever retrained."""
    inputs = StepInputs(section, reference, DEFAULT_REARM if retrain is None else retrain.rearm)
    state = new_state(service, champion, plan_digest(section))
    known: set[str] = set()
    for counts in windows:
        now = counts.start + counts.seconds + section.grace_seconds
        state = replace(step(state, counts, inputs, now), todo=())
        view = build_view(state, inputs, now, service=service)
        active = tuple(alert for alert in view.alerts if alert.state != "resolved")
        new = tuple(alert for alert in active if alert.id not in known)
        known = {alert.id for alert in active}
        decision = None
        if retrain is not None:
            situation = situation_of(view, champion, state.live)
            facts = RetrainFacts(
                now, service, champion.digest, champion.version, situation.alarms, situation.performance,
                healthy=situation.healthy,
            )  # fmt: skip
            decision = decide_retrain(facts, terms_of(retrain))
        yield PlayedWindow(counts.start, counts.total.rows, str(view.state), active, new, decision)
