"""The conditions under which the present step of a rollout ends. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlflowkit.judging.online.judge import MetricResult, MetricSpec
from mlflowkit.rollout.state import RolloutState
from mlflowkit.values import Outcome

MIRRORED_METRICS = ("agreement", "kappa")
"""Metrics that only a step which mirrors requests can measure."""


def metric_specs(state: RolloutState, measured: Sequence[Sequence[float]] = ()) -> tuple[MetricSpec, ...]:
    """The plan's metrics in the judges' form. ``measured`` has the values of each Prometheus query in turn."""
    values = iter(measured)
    specs = []
    for number, metric in enumerate(state.plan.metrics):
        same = [other for other in state.plan.metrics[:number] if other.metric == metric.metric]
        specs.append(
            MetricSpec(
                name=f"{metric.metric} {len(same) + 1}" if same else metric.metric,
                metric=metric.metric,
                margin=metric.margin,
                ratio=metric.ratio,
                min=metric.min,
                max=metric.max,
                columns=tuple(metric.columns),
                role=metric.role,
                measured=tuple(next(values, ())) if metric.metric == "prometheus" else (),
            )
        )
    return tuple(specs)


def points_to_worse(finding: MetricResult) -> bool:
    """Whether a metric is undecided while its estimate is beyond its limit and the evidence leans to that side, as it
    does not after a handful of requests.

    A limit that allows no harm at all (no limit, or a margin of 0) is left out: of two equal versions, one is always
    estimated to be worse.
    """
    verdict = finding.verdict
    if verdict.outcome != Outcome.INCONCLUSIVE:
        return False
    if verdict.metric == "prometheus":  # measurements in a row, without an interval
        return finding.evidence_worse > 0
    estimate, threshold = verdict.measurement, verdict.threshold
    if estimate is None or threshold is None or math.isnan(estimate.value) or (verdict.change and threshold == 0):
        return False
    beyond = estimate.value < threshold if verdict.direction == "min" else estimate.value > threshold
    return beyond and finding.evidence_worse > finding.evidence_not_worse


@dataclass(frozen=True, slots=True)
class PendingConditions:
    """Conditions that the present step does not meet yet; approvals excluded.

    requests      (variant, requests so far) of each variant below ``min_samples``
    bake_seconds  seconds of baking left
    objectives    metrics still to PASS: in the last step, and in the last one that can measure them
    held_by       metrics that hold the step, since they point to worse
    """

    requests: tuple[tuple[str, int], ...]
    min_samples: int
    bake_seconds: float
    objectives: tuple[str, ...]
    held_by: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        """Whether the step can end."""
        return self.shown and not self.objectives and not self.held_by

    @property
    def shown(self) -> bool:
        """Whether the step has its requests and has baked."""
        return not self.requests and self.bake_seconds <= 0

    def __str__(self) -> str:
        """The first unmet condition."""
        if self.requests:
            return " and ".join(
                f"{count} of {self.min_samples} requests of the {name}" for name, count in self.requests
            )
        if self.bake_seconds > 0:
            return f"{self.bake_seconds:.0f} s more to bake"
        if self.held_by:
            return f"{', '.join(self.held_by)}, which {'points' if len(self.held_by) == 1 else 'point'} to worse"
        return f"{', '.join(self.objectives)} to be shown" if self.objectives else "nothing"


def pending_conditions(state: RolloutState) -> PendingConditions:
    """The conditions under which the present step would end, as far as they are not met."""
    step, counts = state.steps[state.step], state.counts
    min_samples = step.min_samples or 1
    requests = [("challenger", counts.challenger), *([("champion", counts.champion)] if step.weight < 100 else [])]
    missing = tuple((name, count) for name, count in requests if count < min_samples)
    baking = max(0.0, (step.bake_seconds or 0.0) - state.elapsed)
    held_by = tuple(finding.name for finding in state.findings if points_to_worse(finding))
    return PendingConditions(missing, min_samples, baking, _open_objectives(state), held_by)


def _open_objectives(state: RolloutState) -> tuple[str, ...]:
    """Objectives that have not PASSED and that no later step can decide."""
    if state.plan.promote == "never":
        return ()
    later = state.steps[state.step + 1 :]
    passed = {finding.name for finding in state.findings if finding.verdict.outcome == Outcome.PASSED}
    last = not later
    last_mirrored = state.steps[state.step].weight == 0 and all(step.weight > 0 for step in later)
    return tuple(
        spec.name
        for spec in metric_specs(state)
        if spec.role == "objective"
        and spec.name not in passed
        and (last or (last_mirrored and spec.metric in MIRRORED_METRICS))
    )
