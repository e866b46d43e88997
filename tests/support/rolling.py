"""A rollout driven observation by observation through the policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlflowkit.judging.online.judge import MetricResult
from mlflowkit.rollout import policy
from mlflowkit.rollout.policy import PolicyCommand
from mlflowkit.rollout.settings import Rollout
from mlflowkit.rollout.state import (
    Action,
    Notify,
    Phase,
    Request,
    SetTable,
    StepCounts,
)
from mlflowkit.values import Measurement, Outcome, RoutingTable, Variant, Verdict

CHAMPION = Variant("champion", "1", "d1", "/bundles/1")
CANDIDATE = Variant("challenger", "2", "d2", "/bundles/2", role="challenger", weight=0.0)
TABLE = RoutingTable("lending", 7, (CHAMPION,))
ERRORS = {"metric": "error_rate", "margin": 0.01}
PLENTY = StepCounts(champion=10_000, challenger=10_000)


def finding(outcome: Outcome, name: str = "error_rate") -> MetricResult:
    measured = Measurement(name, 0.03, 0.01, 0.05, samples=100)
    verdict = Verdict(name, outcome, f"{name} is +3 points", name, measured, change=True)
    return MetricResult(name, verdict, 1.5 if outcome == Outcome.FAILED else 0.2, 0.0, (100, 100))


def estimate(value: float, name: str = "error_rate", threshold: float = 0.01, **more: Any) -> MetricResult:
    """An INCONCLUSIVE difference of a metric with a limit."""
    measured = Measurement(name, value, value - 0.1, value + 0.1, samples=100)
    verdict = Verdict(name, Outcome.INCONCLUSIVE, f"{name} {value:+g}", name, measured, threshold, "max", change=True)
    return MetricResult(name, replace(verdict, **more), 0.2, 0.0, (100, 100))


PASSED, FAILED, OPEN = (finding(outcome) for outcome in (Outcome.PASSED, Outcome.FAILED, Outcome.INCONCLUSIVE))


class Rolling:
    """A rollout, driven by looks; a table that is decided is live at once."""

    def __init__(
        self, strategy: str = "canary", table: RoutingTable = TABLE, candidate: Variant = CANDIDATE, **plan: Any
    ) -> None:
        plan.setdefault("metrics", [ERRORS])
        limits = {"min_samples": 100, "bake_seconds": 10.0, "max_seconds": 100.0}
        rollout = Rollout.model_validate({"strategy": strategy, **limits, **plan})
        request = Request("e1", "lending", candidate, rollout, 0.0, origin={"name": "lending", "run": "run1"})
        self.now = 1000.0
        self.state = policy.begin(request, table, now=self.now)
        self.tables: list[RoutingTable] = [table]
        self.actions: list[Action] = []
        self.look()
        if self.state.phase == "preparing":
            self.look()

    def look(
        self,
        *findings: MetricResult,
        after: float = 0.0,
        counts: StepCounts = PLENTY,
        command: PolicyCommand | None = None,
    ) -> Phase:
        self.now += after
        self.state, actions = policy.advance(self.state, findings, counts, command, self.now)
        self.actions += actions
        self.tables += [action.table for action in actions if isinstance(action, SetTable)]
        return self.state.phase

    def say(self, kind: Any, *findings: MetricResult, **more: Any) -> Phase:
        return self.look(*findings, command=PolicyCommand(kind, **more))

    def end(self) -> Phase:
        """Look until nothing is on its way any more."""
        while self.state.phase in ("promoting", "rolling_back"):
            self.look()
        return self.state.phase

    @property
    def shares(self) -> dict[str, float]:
        return {variant.name: variant.weight for variant in self.tables[-1].variants}

    @property
    def events(self) -> list[str]:
        return [action.event for action in self.actions if isinstance(action, Notify)]
