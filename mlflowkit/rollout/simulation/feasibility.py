"""Feasibility of a plan: how long its steps take at a request rate, and how long its objectives take to PASS.

The time until a step has enough requests and has baked is arithmetic. The time until the last step's objectives PASS is
measured by simulating a few challengers that are as good as the champion, without deadlines.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlflowkit.rollout.settings import Rollout, RolloutStep
from mlflowkit.rollout.simulation.scenarios import Scenario
from mlflowkit.rollout.simulation.simulator import (
    SimulatedRollout,
    SimulationEnd,
    Spread,
    samples_seconds,
    simulate_scenario,
    spread,
)

PILOT_ROLLOUTS = 9
"""Simulated rollouts without deadlines."""
NO_DEADLINE = 1e12
"""``max_seconds`` of those rollouts."""
MAX_REQUESTS = 4_000_000
"""Requests after which an objective that is still inconclusive counts as never passing."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Expected duration of one step. ``feasible``: whether it ends before its deadline on average."""

    step: int
    weight: float
    min_samples: int
    samples_seconds: float
    bake_seconds: float
    max_seconds: float
    feasible: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class TimeToPass:
    """Time until every objective PASSES for a challenger that is as good as the champion.

    metric      the slowest objective; "" without objectives
    tried       requests of the challenger by then; None if most rollouts never got there
    seconds     seconds of the last step by then
    in_time     share of the rollouts whose last step ends before its deadline
    """

    metric: str
    tried: Spread | None
    seconds: Spread | None
    in_time: float
    sentence: str


def step_times(plan: Rollout, rate: float) -> tuple[StepTime, ...]:
    """Expected duration of each step at ``rate`` requests per second."""
    return tuple(_step_time(plan, index, step, rate) for index, step in enumerate(plan.sequence))


def _step_time(plan: Rollout, index: int, step: RolloutStep, rate: float) -> StepTime:
    seconds = samples_seconds(plan, index, rate)
    bake, limit, samples = step.bake_seconds or 0.0, step.max_seconds or math.inf, step.min_samples or 1
    feasible = seconds <= limit and bake <= limit
    share = f"{step.weight:g} %" if step.weight else f"{100 * (step.sampling or 1.0):g} % mirrored"
    at = f"at {rate:g} requests a second and {share}, {samples:,} of each variant take {format_span(seconds)}"
    if not seconds <= limit:
        fits = math.floor(samples * limit / seconds * 0.8)
        fewer = f"min_samples: {fits} or " if fits >= 1 else ""
        remedy = f"write {fewer}max_seconds: {math.ceil(1.25 * seconds / 60) * 60}"
        text = f"{at}, and max_seconds is {limit:g}: every rollout ends at its deadline; {remedy}"
    elif not bake <= limit:
        text = f"it bakes for {format_span(bake)}, and max_seconds is {limit:g}: every rollout ends at its deadline"
    else:
        text = at + (f"; it bakes for {format_span(bake)}" if bake > seconds else "")
    return StepTime(index + 1, step.weight, samples, seconds, bake, limit, feasible, f"step {index + 1}: {text}")


def time_to_pass(
    plan: Rollout, alike: Scenario, *, seed: int = 0, done: Callable[[int], None] = lambda count: None
) -> TimeToPass:
    """Simulate `PILOT_ROLLOUTS` rollouts of ``alike``, the A/A scenario, without deadlines."""
    objectives = [metric.metric for metric in plan.metrics if metric.role == "objective"]
    if not objectives or plan.promote == "never":
        return TimeToPass("", None, None, 1.0, "no objective has to pass: the last step ends like the others")
    steps = [step.model_copy(update={"max_seconds": NO_DEADLINE}) for step in plan.sequence]
    unlimited, until = plan.model_copy(update={"steps": steps}), MAX_REQUESTS / alike.world.rate
    results = []
    for number in range(PILOT_ROLLOUTS):
        results.append(simulate_scenario(unlimited, alike, seed + 1_000_003, number, keep=True, until=until))
        done(number + 1)
    return _slowest_time(plan, results)


def _slowest_time(plan: Rollout, results: Sequence[SimulatedRollout]) -> TimeToPass:
    last = len(plan.sequence) - 1
    limit = plan.sequence[last].max_seconds or math.inf
    passed = [result for result in results if result.end == SimulationEnd.PROMOTED]
    began = [max((look.seconds for look in result.path if look.step < last), default=0.0) for result in passed]
    spans = [result.seconds - start for result, start in zip(passed, began, strict=True)]
    in_time = sum(seconds <= limit for seconds in spans) / len(results)
    metric = _slowest_objective(plan, passed or results)
    tried, seconds = spread([result.tried for result in passed]), spread(spans)
    remedy = _remedy_for_metric(plan, metric)
    if len(passed) * 2 < len(results) or tried is None or seconds is None:
        text = f"{metric} of a challenger as good as the champion does not pass within {MAX_REQUESTS:,} requests"
        text += f": no rollout is promoted; {remedy}"
        return TimeToPass(metric, None, None, in_time, f"step {last + 1}: {text}")
    text = (
        f"{metric} passes after {tried.median:,.0f} requests of the challenger, {format_span(seconds.median)} into the "
        f"step (median of {len(results)} challengers as good as the champion)"
    )
    if in_time < 1:
        missed = len(results) - round(in_time * len(results))
        text += f"; max_seconds is {limit:g}: {missed} of {len(results)} end at the deadline; {remedy}"
    return TimeToPass(metric, tried, seconds, in_time, f"step {last + 1}: {text}")


def _slowest_objective(plan: Rollout, results: Sequence[SimulatedRollout]) -> str:
    objectives = {metric.metric for metric in plan.metrics if metric.role == "objective"}
    votes: Counter[str] = Counter()
    for result in results:
        inconclusive_until = {
            name: max((look.seconds for look in result.path if look.evidence[name][1] < 1), default=0.0)
            for name in (result.path[-1].evidence if result.path else ())
            if name.split(" ")[0] in objectives
        }
        if inconclusive_until:
            votes[max(inconclusive_until, key=inconclusive_until.__getitem__)] += 1
    return votes.most_common(1)[0][0] if votes else ""


def _remedy_for_metric(plan: Rollout, name: str) -> str:
    metric = next((metric for metric in plan.metrics if metric.metric == name.split(" ")[0]), None)
    if metric is not None and metric.metric in ("agreement", "kappa"):
        return "mirror longer, lower its min, or make it a guardrail"
    if metric is not None and not metric.margin and not metric.ratio and metric.min is None and metric.max is None:
        return "without a margin it must be better than the champion, as in an A/B test; give a canary a margin"
    return "give it a wider margin or the step more time, or make it a guardrail"


def format_span(seconds: float) -> str:
    """A duration as text.

    >>> format_span(4.6), format_span(75), format_span(7384), format_span(1e6)
    ('5 s', '1 min 15 s', '2 h 03 min', '12 days')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    if seconds < 2 * 86_400:
        return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"
    return f"{seconds / 86_400:.0f} days"
