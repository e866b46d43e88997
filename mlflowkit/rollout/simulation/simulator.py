"""Simulate rollouts: the production policy and judges over synthetic or recorded traffic in simulated time.

Only the traffic is approximated. `simulate_once` runs one rollout from its request to its end; `simulate_many` repeats
a scenario with independent seeds, and `Summary` aggregates the outcomes.

One look (evaluation of all metrics) costs a millisecond, so looks are rarer than in production: a hundred in the
plan's minimum duration, and in longer steps one after each 4 % more of the elapsed time. The judges are valid at every
look, so fewer looks do not raise the error rates; detection is at most one look later.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Protocol
from zlib import crc32

from mlflowkit.errors import UsageError
from mlflowkit.judging.online.evidence import Evidence
from mlflowkit.judging.online.judge import judge
from mlflowkit.judging.stats import wilson
from mlflowkit.rollout import conditions, policy
from mlflowkit.rollout.settings import Rollout
from mlflowkit.rollout.simulation.scenarios import Scenario
from mlflowkit.rollout.simulation.synthetic_traffic import SyntheticTraffic, TrafficSplit
from mlflowkit.rollout.state import LIVE_PHASES, Request, RolloutState, SetTable
from mlflowkit.values import Outcome, RoutingTable, Variant

CONFIDENCE = 0.95
"""Of the intervals of outcome shares."""
MIN_LOOKS = 100
"""Looks within a plan's minimum duration."""
INTERVAL_GROWTH = 0.04
"""Relative growth of a step's elapsed time between looks."""
MIN_INTERVAL = 1.0
"""Minimum seconds between looks."""


class SimulationEnd(StrEnum):
    """The outcome of a simulated rollout."""

    PROMOTED = "promoted"
    FAILED = "failed"
    """Rolled back because a metric FAILED."""
    DEADLINE = "deadline"
    """Rolled back because the step timed out inconclusive."""
    KEPT = "kept"
    """Kept as a lasting shadow."""
    UNDECIDED = "undecided"
    """The traffic ended before a decision."""


@dataclass(frozen=True, slots=True)
class SimulatedRollout:
    """The outcome of one simulated rollout.

    by        the metric that FAILED, or ""
    step      index of the last step
    seconds   simulated duration
    requests  client requests; ``tried`` is how many went to the challenger, mirrored ones included, ``exposed`` how
              many the challenger was to answer
    reason    the policy's reason
    waiting   what the last step waits for, where the traffic ended before a decision
    path      every look, if requested
    """

    end: SimulationEnd
    by: str
    step: int
    seconds: float
    requests: int
    tried: int
    exposed: int
    looks: int
    reason: str = ""
    waiting: str = ""
    path: tuple[LookRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class LookRecord:
    """One look: requests so far, and each metric's evidence (worse, not worse); 1 is the decision boundary."""

    step: int
    seconds: float
    tried: int
    requests: int
    weight: float
    evidence: Mapping[str, tuple[float, float]]


class TrafficSource(Protocol):
    """The traffic of a simulation. Time begins at 0."""

    requests: int
    tried: int
    exposed: int

    def advance(self, split: TrafficSplit, seconds: float) -> None:
        """Generate the traffic of the next seconds under a split."""

    def evidence(self, experiment: str) -> Evidence:
        """The cumulative evidence."""

    def epochs(self, decided: Sequence[int]) -> Sequence[int]:
        """Epochs of the evidence that belong to epochs of the plan, oldest first."""


def simulated_plan(plan: Rollout) -> Rollout:
    """The plan without Prometheus queries. Raises UsageError for the direct strategy and if no metric is left."""
    if plan.strategy == "direct":
        hint = "try another one: +rollout=canary (or ab, shadow, blue_green), or write serve: {rollout: ...}"
        problem = "serve.rollout is direct: a new version takes over at once, there is nothing to simulate"
        raise UsageError(problem, hint=hint)
    metrics = [metric for metric in plan.metrics if metric.metric != "prometheus"]
    if not metrics:
        has = "only Prometheus queries, which cannot be simulated" if plan.metrics else "no metrics"
        hint = "add a metric: serve.rollout.metrics='[{metric: error_rate, margin: 0.01}]'"
        raise UsageError(f"serve.rollout has {has}", hint=hint)
    return plan.model_copy(update={"metrics": metrics})


def analysis_interval(plan: Rollout, rate: float) -> float:
    """Seconds between looks: `MIN_LOOKS` in the plan's minimum duration, at most one per second."""
    duration = math.fsum(
        min(max(step.bake_seconds or 0.0, samples_seconds(plan, index, rate)), step.max_seconds or math.inf)
        for index, step in enumerate(plan.sequence)
    )
    return max(MIN_INTERVAL, duration / MIN_LOOKS)


def samples_seconds(plan: Rollout, index: int, rate: float) -> float:
    """Expected seconds until a step has ``min_samples`` requests of both variants."""
    step = plan.sequence[index]
    weight = step.weight / 100
    slowest = min(weight, 1 - weight) if 0 < weight < 1 else 1.0 if weight else (step.sampling or 1.0)
    return (step.min_samples or 1) / (rate * slowest)


def simulate_once(
    plan: Rollout, source: TrafficSource, interval: float, *, until: float = math.inf, keep: bool = False,
    done: Callable[[float], None] = lambda seconds: None,
) -> SimulatedRollout:  # fmt: skip
    """Simulate one rollout to its end, or to the end of the traffic at ``until``.

    Tables go live and approvals are given immediately. ``keep`` records every look in ``path``; ``done`` is called with
    the simulated seconds after each.
    """
    candidate = Variant("challenger", "candidate", "candidate", "", role="challenger")
    table = RoutingTable("rehearsal", 0, (Variant("champion", "champion", "champion", ""),))
    state = policy.begin(Request("rehearsal", "rehearsal", candidate, plan, 0.0), table, now=0.0)
    split, now, looks = None, 0.0, 0
    specs = conditions.metric_specs(state)
    path: list[LookRecord] = []
    while not state.ended:
        if state.phase == "running" and split is not None:
            if now >= until:
                return _outcome(state, source, now, looks, path)
            wait = _next_wait(state, interval, until - now)
            source.advance(split, wait)
            now, looks = now + wait, looks + 1
            done(now)
            evidence = source.evidence(state.experiment)
            findings, traces = judge(
                specs, evidence, champion=state.champion.name, challenger=state.candidate.name,
                epochs=source.epochs(state.epochs), level=plan.level, traces=state.traces,
            )  # fmt: skip
            state = replace(state, traces=traces)
            if keep:
                strengths = {find.name: (find.evidence_worse, find.evidence_not_worse) for find in findings}
                path.append(LookRecord(state.step, now, source.tried, source.requests, split.weight, strengths))
            step_epochs = tuple(source.epochs(state.step_epochs))
            counts = policy.count_requests(replace(state, step_epochs=step_epochs), evidence)
            state, actions = policy.advance(state, findings, counts, None, now)
        else:
            approval = policy.PolicyCommand("promote") if state.phase == "awaiting_approval" else None
            state, actions = policy.advance(state, state.findings, state.counts, approval, now)
        if state.phase in LIVE_PHASES or state.phase == "preparing":
            tables = [action.table for action in actions if isinstance(action, SetTable)]
            split = TrafficSplit.of(tables[-1], state.candidate.name) if tables else split
    return _outcome(state, source, now, looks, path)


MIN_WAIT = 1e-7
"""Minimum step of the clock; a float of years in seconds still resolves it."""


def _next_wait(state: RolloutState, interval: float, left: float) -> float:
    """Seconds to the next look, at most to the step's deadline and the end of the traffic, but at least MIN_WAIT."""
    deadline = (state.steps[state.step].max_seconds or math.inf) - state.elapsed
    wait = min(max(interval, INTERVAL_GROWTH * state.elapsed), left)
    return max(min(wait, deadline) if deadline > 0 else wait, MIN_WAIT)


def _outcome(
    state: RolloutState, source: TrafficSource, now: float, looks: int, path: Sequence[LookRecord]
) -> SimulatedRollout:
    failed = [finding.name for finding in state.findings if finding.verdict.outcome == Outcome.FAILED]
    by = failed[0] if failed else "almost no answers" if policy.is_unresponsive(state.counts) else ""
    rolled_back = SimulationEnd.FAILED if by else SimulationEnd.DEADLINE
    ends = {"promoted": SimulationEnd.PROMOTED, "kept": SimulationEnd.KEPT, "rolled_back": rolled_back}
    end = ends.get(state.phase, SimulationEnd.UNDECIDED)
    waiting = str(conditions.pending_conditions(state)) if end == SimulationEnd.UNDECIDED else ""
    return SimulatedRollout(
        end, by if end == SimulationEnd.FAILED else "", state.step, now, source.requests, source.tried,
        source.exposed, looks, state.reason, waiting, tuple(path),
    )  # fmt: skip


def simulate_many(
    plan: Rollout,
    scenario: Scenario,
    rollouts: int,
    *,
    seed: int = 0,
    start: int = 0,
    workers: int = 1,
    done: Callable[[int], None] = lambda count: None,
) -> tuple[SimulatedRollout, ...]:
    """Simulate a scenario ``rollouts`` times, from number ``start`` on; the result depends on plan, scenario and seed
    only.

    ``done`` is called with the number of finished simulations; ``workers`` is the number of processes.
    """
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    simulate, numbers, simulated = partial(simulate_scenario, plan, scenario, seed), range(start, rollouts), []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:  # starts processes when it is used
        chunk = max(1, rollouts // (8 * workers))
        results = map(simulate, numbers) if workers == 1 else pool.map(simulate, numbers, chunksize=chunk)
        for result in results:
            simulated.append(result)
            done(start + len(simulated))
    return tuple(simulated)


def simulate_scenario(
    plan: Rollout, scenario: Scenario, seed: int, number: int, *, keep: bool = False, until: float = math.inf
) -> SimulatedRollout:
    """Simulate the rollout with that number of a scenario."""
    import numpy as np

    random = np.random.default_rng([seed, crc32(scenario.name.encode()), number])
    measured = {metric.metric for metric in plan.metrics}
    columns = dict.fromkeys(column for metric in plan.metrics for column in metric.columns)
    traffic = SyntheticTraffic(scenario.world, random, measured, columns)
    return simulate_once(plan, traffic, analysis_interval(plan, scenario.world.rate), keep=keep, until=until)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 90th percentile over simulated rollouts."""

    median: float
    p90: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Outcomes of a scenario's simulated rollouts. A spread is None without a rollout of that outcome.

    harmful     whether the challenger truly violates a limit of the plan, so that FAILED is correct
    failed      rollouts rolled back by a FAILED metric; ``share`` of all with its Wilson interval is the
                false-rollback rate of a challenger within its limits, else the power
    by          FAILED rollouts by metric
    found_*     of FAILED rollouts: the challenger's requests, all requests, seconds
    exposed     client requests that the challenger was to answer, over all rollouts
    promoted_seconds  of promoted (or kept) rollouts
    """

    scenario: str
    harmful: bool
    rollouts: int
    promoted: int
    failed: int
    deadline: int
    undecided: int
    share: float
    low: float
    high: float
    by: Mapping[str, int]
    found_tried: Spread | None
    found_requests: Spread | None
    found_seconds: Spread | None
    exposed: Spread
    promoted_seconds: Spread | None
    stuck: Mapping[int, int]
    """Timed-out rollouts by step, from 1."""
    looks: float
    """Mean number of looks of a rollout."""


def summarise(scenario: str, violated: bool, results: Sequence[SimulatedRollout]) -> Summary:
    """Aggregate the simulated rollouts of one scenario; at least one."""
    failed = [result for result in results if result.end == SimulationEnd.FAILED]
    good = [result for result in results if result.end in (SimulationEnd.PROMOTED, SimulationEnd.KEPT)]
    late = [result for result in results if result.end == SimulationEnd.DEADLINE]
    low, high = wilson(len(failed), len(results), CONFIDENCE)
    return Summary(
        scenario=scenario,
        harmful=violated,
        rollouts=len(results),
        promoted=len(good),
        failed=len(failed),
        deadline=len(late),
        undecided=len(results) - len(failed) - len(good) - len(late),
        share=len(failed) / len(results),
        low=low,
        high=high,
        by=dict(Counter(result.by for result in failed).most_common()),
        found_tried=spread([result.tried for result in failed]),
        found_requests=spread([result.requests for result in failed]),
        found_seconds=spread([result.seconds for result in failed]),
        exposed=spread([result.exposed for result in results]) or Spread(0.0, 0.0),
        promoted_seconds=spread([result.seconds for result in good]),
        stuck=dict(sorted(Counter(result.step + 1 for result in late).items())),
        looks=math.fsum(result.looks for result in results) / len(results),
    )


def spread(values: Sequence[float]) -> Spread | None:
    """Median and 90th percentile (observed values); None without values.

    >>> spread([3, 1, 2]), spread([])
    (Spread(median=2.0, p90=3.0), None)
    """
    ordered = sorted(values)
    if not ordered:
        return None
    return Spread(*(float(ordered[math.ceil(q * len(ordered)) - 1]) for q in (0.5, 0.9)))
