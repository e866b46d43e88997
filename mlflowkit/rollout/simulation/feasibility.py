"""Whether a plan can end well at all: how long its steps take at a rate of requests, and how long the proof does.

A step is over when enough requests were seen and it has baked; the last one when, besides, every objective was shown
to hold. The first is arithmetic; the second is measured by playing a few challengers that are as good as the champion
without deadlines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlflowkit.rollout.settings import Rollout, Step
from mlflowkit.rollout.simulation.scenarios import Scenario
from mlflowkit.rollout.simulation.simulator import End, Rehearsal, Spread, one, samples_seconds, spread

PILOTS = 9
"""Challengers that are played without deadlines."""
LIFTED = 1e12
"""Seconds that a step may take in those plays."""
PROOF_REQUESTS = 4_000_000
"""Requests after which a proof that has not come counts as not coming."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """What one step takes. ``feasible`` is whether it can be over before its deadline, on average."""

    step: int
    weight: float
    min_samples: int
    samples_seconds: float
    bake_seconds: float
    max_seconds: float
    feasible: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Proof:
    """When every objective is shown to hold for a challenger that is as good as the champion.

    metric      the objective that takes longest; "" where there is none to show
    tried       requests of the challenger by then; None where most plays never got there
    seconds     of the last step by then
    in_time     share of the plays whose last step would have ended before its deadline
    """

    metric: str
    tried: Spread | None
    seconds: Spread | None
    in_time: float
    sentence: str


def step_times(plan: Rollout, rate: float) -> tuple[StepTime, ...]:
    """How long each step takes at a rate of requests a second."""
    return tuple(_step_time(plan, index, step, rate) for index, step in enumerate(plan.sequence))


def _step_time(plan: Rollout, index: int, step: Step, rate: float) -> StepTime:
    seconds = samples_seconds(plan, index, rate)
    bake, most, least = step.bake_seconds or 0.0, step.max_seconds or math.inf, step.min_samples or 1
    feasible = seconds <= most and bake <= most
    share = f"{step.weight:g} %" if step.weight else f"{100 * (step.sampling or 1.0):g} % mirrored"
    at = f"at {rate:g} requests a second and {share}, {least:,} of each variant take {span(seconds)}"
    if not seconds <= most:
        text = f"{at}, and max_seconds is {most:g}: every rollout ends at its deadline; {_remedy(step, rate, seconds)}"
    elif not bake <= most:
        text = f"it bakes for {span(bake)}, and max_seconds is {most:g}: every rollout ends at its deadline"
    else:
        text = at + (f"; it bakes for {span(bake)}" if bake > seconds else "")
    return StepTime(index + 1, step.weight, least, seconds, bake, most, feasible, f"step {index + 1}: {text}")


def _remedy(step: Step, rate: float, seconds: float) -> str:
    """What to write instead."""
    fits = math.floor((step.min_samples or 1) * (step.max_seconds or 0.0) / seconds * 0.8)
    fewer = f"min_samples: {fits} or " if fits >= 1 else ""
    return f"write {fewer}max_seconds: {math.ceil(1.25 * seconds / 60) * 60}"


def proof(plan: Rollout, alike: Scenario, *, seed: int = 0, done: Callable[[int], None] = lambda count: None) -> Proof:
    """Play `PILOTS` challengers that are as good as the champion, without deadlines. ``alike`` is the A/A scenario."""
    objectives = [metric.metric for metric in plan.metrics if metric.role == "objective"]
    if not objectives or plan.promote == "never":
        return Proof("", None, None, 1.0, "nothing has to be shown: the last step ends as the others do")
    lifted = plan.model_copy(
        update={"steps": [step.model_copy(update={"max_seconds": LIFTED}) for step in plan.sequence]}
    )
    until = PROOF_REQUESTS / alike.world.rate
    played = []
    for number in range(PILOTS):
        played.append(one(lifted, alike, seed + 1_000_003, number, keep=True, until=until))
        done(number + 1)
    return _proof(plan, played)


def _proof(plan: Rollout, played: Sequence[Rehearsal]) -> Proof:
    last = len(plan.sequence) - 1
    most = plan.sequence[last].max_seconds or math.inf
    shown = [one for one in played if one.end == End.PROMOTED]
    spans = [one.seconds - _began(one, last) for one in shown]
    in_time = sum(seconds <= most for seconds in spans) / len(played)
    metric = _slowest(plan, shown or played)
    tried, seconds = spread([one.tried for one in shown]), spread(spans)
    if len(shown) * 2 < len(played) or tried is None or seconds is None:
        text = (
            f"{metric} of a challenger as good as the champion is not shown to hold within {PROOF_REQUESTS:,} "
            f"requests: no rollout is promoted; {_looser(plan, metric)}"
        )
        return Proof(metric, None, None, in_time, f"step {last + 1}: {text}")
    text = (
        f"that {metric} holds is shown after {tried.median:,.0f} requests of the challenger, {span(seconds.median)} "
        f"into the step (median of {len(played)} challengers as good as the champion)"
    )
    if in_time < 1:
        missed = len(played) - round(in_time * len(played))
        text += f"; max_seconds is {most:g}: {missed} of {len(played)} end at the deadline; {_looser(plan, metric)}"
    return Proof(metric, tried, seconds, in_time, f"step {last + 1}: {text}")


def _began(played: Rehearsal, last: int) -> float:
    """When the last step began: at the last look of the one before."""
    return max((sight.seconds for sight in played.path if sight.step < last), default=0.0)


def _slowest(plan: Rollout, played: Sequence[Rehearsal]) -> str:
    """The objective that was the last to be shown, in most plays."""
    objectives = {metric.metric for metric in plan.metrics if metric.role == "objective"}
    votes: dict[str, int] = {}
    for one_played in played:
        missing = {
            name: max((sight.seconds for sight in one_played.path if sight.evidence[name][1] < 1), default=0.0)
            for name in (one_played.path[-1].evidence if one_played.path else ())
            if name.split(" ")[0] in objectives
        }
        if missing:
            slowest = max(missing, key=lambda name: missing[name])
            votes[slowest] = votes.get(slowest, 0) + 1
    return max(votes, key=lambda name: votes[name]) if votes else ""


def _looser(plan: Rollout, metric: str) -> str:
    found = next((one for one in plan.metrics if one.metric == metric.split(" ")[0]), None)
    if found is not None and found.metric == "agreement":
        return "mirror longer, lower its min, or make it a guardrail"
    if found is not None and not found.margin and not found.ratio and found.min is None and found.max is None:
        return "without a margin it has to be better: so an A/B test asks, for a canary give it one"
    return "give it a wider margin or the step more time, or make it a guardrail"


def span(seconds: float) -> str:
    """A span of time.

    >>> span(4.6), span(75), span(7384), span(1e6)
    ('5 s', '1 min 15 s', '2 h 03 min', '12 days')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    if seconds < 2 * 86_400:
        return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"
    return f"{seconds / 86_400:.0f} days"
