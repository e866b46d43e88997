"""Rehearses a rollout: the same policy and the same judges as in service, with synthetic traffic and simulated time.

Nothing is approximated but the traffic. A `Rehearsal` is one rollout from its request to its end; `rehearse` plays
many with seeds of their own, and `Summary` says what came of them.

One look costs a millisecond, so looks are rarer than in service, where there is one a second or more: a hundred in the
time that a plan takes at least, and in a step that lasts longer each after 4 % more of its time. The judges hold at
every look, so fewer looks make no error likelier; what is found is found up to one look later.
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
from mlflowkit.judging.online.judge import Finding, judge
from mlflowkit.judging.stats import wilson
from mlflowkit.rollout import policy
from mlflowkit.rollout.settings import Rollout
from mlflowkit.rollout.simulation.scenarios import Scenario
from mlflowkit.rollout.simulation.synthetic_traffic import Split, Traffic
from mlflowkit.rollout.state import LIVE, Request, RolloutState, SetTable
from mlflowkit.values import Outcome, RoutingTable, Variant

CONFIDENCE = 0.95
"""Of the intervals around shares of rollouts."""
LOOKS = 100
"""Looks in the time that a plan takes at least."""
GROWTH = 0.04
"""A step that lasts is looked at again after so much more of its time."""
SERVICE_LOOK = 1.0
"""Seconds between two looks, at least."""


class End(StrEnum):
    """What a rollout came to."""

    PROMOTED = "promoted"
    FAILED = "failed"
    """Rolled back because a metric FAILED."""
    DEADLINE = "deadline"
    """Rolled back because nothing was shown in time."""
    KEPT = "kept"
    """A shadow that stays."""
    UNDECIDED = "undecided"
    """The traffic ended first."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """One rollout from its beginning to its end.

    by        the metric that failed it, "" when none did
    step      the step, from 0, that it ended in
    seconds   how long it took
    requests  of clients during it; ``tried`` those that the challenger was given, mirrored ones included; ``exposed``
              those whose client it answered (or was to answer)
    reason    what the policy said
    path      every look, where it was asked for
    """

    end: End
    by: str
    step: int
    seconds: float
    requests: int
    tried: int
    exposed: int
    looks: int
    reason: str = ""
    path: tuple[Sight, ...] = ()


@dataclass(frozen=True, slots=True)
class Sight:
    """One look: what had been asked by then, and the evidence (harm, proof) of each metric; 1 is the boundary."""

    step: int
    seconds: float
    tried: int
    requests: int
    weight: float
    evidence: Mapping[str, tuple[float, float]]


class Source(Protocol):
    """Where the counts of a rehearsal come from. Time begins at 0."""

    requests: int
    tried: int
    exposed: int

    def flow(self, split: Split, seconds: float) -> None:
        """Let time pass under a table."""
        ...

    def evidence(self, experiment: str) -> Evidence:
        """All that was counted until now."""
        ...

    def epochs(self, decided: Sequence[int]) -> Sequence[int]:
        """The tables of the evidence that belong to tables of the plan, oldest first."""
        ...


def judged(plan: Rollout) -> Rollout:
    """The plan as it is rehearsed: without Prometheus queries, whose answers nobody can foresee.

    Raises UsageError for a strategy without judgement, and where nothing is left to judge by.
    """
    if plan.strategy == "direct":
        raise UsageError(
            "serve.rollout is direct: a new version takes over at once, there is nothing to rehearse",
            hint="try another one: +rollout=canary (or ab, shadow, blue_green), or write serve: {rollout: ...}",
        )
    metrics = [metric for metric in plan.metrics if metric.metric != "prometheus"]
    if not metrics:
        what = "only by Prometheus queries, which cannot be foreseen" if plan.metrics else "by nothing"
        raise UsageError(
            f"serve.rollout is judged {what}",
            hint="add a metric: serve.rollout.metrics='[{metric: error_rate, margin: 0.01}]'",
        )
    return plan.model_copy(update={"metrics": metrics})


def look_seconds(plan: Rollout, rate: float) -> float:
    """Seconds between looks: `LOOKS` in the time that the plan takes at least, not more than one a second."""
    whole = math.fsum(
        min(max(step.bake_seconds or 0.0, samples_seconds(plan, index, rate)), step.max_seconds or math.inf)
        for index, step in enumerate(plan.sequence)
    )
    return max(SERVICE_LOOK, whole / LOOKS)


def samples_seconds(plan: Rollout, index: int, rate: float) -> float:
    """Seconds in which a step has seen its ``min_samples`` of both variants, on average."""
    step = plan.sequence[index]
    weight = step.weight / 100
    slowest = min(weight, 1 - weight) if 0 < weight < 1 else 1.0 if weight else (step.sampling or 1.0)
    return (step.min_samples or 1) / (rate * slowest)


def opening(plan: Rollout, salt: str = "rehearsal") -> RolloutState:
    """The state of a rollout that was just asked for, of a service with one version."""
    champion = Variant("champion", "champion", "champion", "")
    candidate = Variant("challenger", "candidate", "candidate", "", role="challenger")
    table = RoutingTable("rehearsal", 0, (champion,))
    return policy.begin(Request(salt, "rehearsal", candidate, plan, 0.0), table, now=0.0)


def play(
    plan: Rollout, source: Source, every: float, *, until: float = math.inf, keep: bool = False, salt: str = "rehearsal"
) -> Rehearsal:
    """Play one rollout to its end, or to the end of the traffic at ``until``.

    Tables are live at once, and who is asked for approval gives it at once. ``keep`` keeps every look.
    """
    state, split, now, looks = opening(plan, salt), None, 0.0, 0
    questions = policy.questions(state)
    path: list[Sight] = []
    while not state.ended:
        if state.phase == "running" and split is not None:
            if now >= until:
                return _ended(state, source, now, looks, path)
            wait = _wait(state, every, until - now)
            source.flow(split, wait)
            now, looks = now + wait, looks + 1
            evidence = source.evidence(state.experiment)
            findings, traces = judge(
                questions, evidence, champion=state.champion.name, challenger=state.candidate.name,
                epochs=source.epochs(state.epochs), level=plan.level, traces=state.traces,
            )  # fmt: skip
            state = replace(state, traces=traces)
            if keep:
                path.append(_sight(state.step, now, source, split, findings))
            counts = policy.count(replace(state, step_epochs=tuple(source.epochs(state.step_epochs))), evidence)
            state, actions = policy.advance(state, findings, counts, None, now)
        else:
            approval = policy.Command("promote") if state.phase == "awaiting_approval" else None
            state, actions = policy.advance(state, state.findings, state.counts, approval, now)
        if state.phase in LIVE or state.phase == "preparing":
            tables = [action.table for action in actions if isinstance(action, SetTable)]
            split = Split.of(tables[-1], state.candidate.name) if tables else split
    return _ended(state, source, now, looks, path)


MOMENT = 1e-7
"""Seconds. A clock that has run for years still tells them apart."""


def _wait(state: RolloutState, every: float, left: float) -> float:
    """Seconds to the next look: never beyond the step's deadline, nor beyond the end of the traffic, but for a moment.

    What is left may be less than what a clock that far on can tell apart: without the moment it would stand still.
    """
    deadline = (state.steps[state.step].max_seconds or math.inf) - state.elapsed
    wait = min(max(every, GROWTH * state.elapsed), left)
    return max(min(wait, deadline) if deadline > 0 else wait, MOMENT)


def _sight(step: int, now: float, source: Source, split: Split, findings: Sequence[Finding]) -> Sight:
    evidence = {finding.name: (finding.harm, finding.proof) for finding in findings}
    return Sight(step, now, source.tried, source.requests, split.weight, evidence)


def _ended(state: RolloutState, source: Source, now: float, looks: int, path: Sequence[Sight]) -> Rehearsal:
    failed = [finding.name for finding in state.findings if finding.verdict.outcome == Outcome.FAILED]
    by = failed[0] if failed else "almost no answers" if policy.hopeless(state.counts) else ""
    if state.phase == "promoted":
        end, by = End.PROMOTED, ""
    elif state.phase == "kept":
        end, by = End.KEPT, ""
    elif state.phase == "rolled_back":
        end = End.FAILED if by else End.DEADLINE
    else:
        end, by = End.UNDECIDED, ""
    counted = source.requests, source.tried, source.exposed
    return Rehearsal(end, by, state.step, now, *counted, looks, state.reason, tuple(path))


# --------------------------------------------------------------------------------------------------------------- many


def rehearse(
    plan: Rollout,
    scenario: Scenario,
    rollouts: int,
    *,
    seed: int = 0,
    workers: int = 1,
    done: Callable[[int], None] = lambda count: None,
) -> tuple[Rehearsal, ...]:
    """Play a scenario so many times. The result depends on the plan, the scenario and the seed only.

    ``done`` is told how many are over. With several workers as many processes share the work.
    """
    if workers <= 1:
        found = []
        for number in range(rollouts):
            found.append(one(plan, scenario, seed, number))
            done(number + 1)
        return tuple(found)
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        found = []
        chunk = max(1, rollouts // (8 * workers))
        for played in pool.map(partial(one, plan, scenario, seed), range(rollouts), chunksize=chunk):
            found.append(played)
            done(len(found))
    return tuple(found)


def one(
    plan: Rollout, scenario: Scenario, seed: int, number: int, *, keep: bool = False, until: float = math.inf
) -> Rehearsal:
    """Play a scenario once: the rollout of that number."""
    import numpy as np

    random = np.random.default_rng([seed, crc32(scenario.name.encode()), number])
    measured = {metric.metric for metric in plan.metrics}
    columns = dict.fromkeys(column for metric in plan.metrics for column in metric.columns)
    traffic = Traffic(scenario.world, random, measured, columns)
    return play(plan, traffic, look_seconds(plan, scenario.world.rate), keep=keep, until=until)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 90th percentile of a figure over rollouts."""

    median: float
    p90: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of a scenario's rollouts. Spreads are None where no rollout had that end.

    harmful     whether the challenger truly is beyond a limit of the plan: only then is failing it right
    failed      how many were rolled back because a metric FAILED; ``share`` with its Wilson interval is that of all.
                Of a challenger within its limits it is the false-rollback rate, of another one the power
    by          how often each metric was the one
    found_*     of those that failed: requests that the challenger had been given, of all clients, and seconds
    exposed     requests of clients that the challenger was given, over all rollouts
    promoted_seconds  of those that were promoted (or kept)
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
    """Deadlines by number of the step, from 1."""
    looks: float
    """Looks of a rollout, on average."""


def summarise(scenario: str, violated: bool, played: Sequence[Rehearsal]) -> Summary:
    """Count and sum up the rollouts of one scenario; at least one."""
    failed = [one for one in played if one.end == End.FAILED]
    good = [one for one in played if one.end in (End.PROMOTED, End.KEPT)]
    late = [one for one in played if one.end == End.DEADLINE]
    low, high = wilson(len(failed), len(played), CONFIDENCE)
    return Summary(
        scenario=scenario,
        harmful=violated,
        rollouts=len(played),
        promoted=len(good),
        failed=len(failed),
        deadline=len(late),
        undecided=len(played) - len(failed) - len(good) - len(late),
        share=len(failed) / len(played),
        low=low,
        high=high,
        by=dict(Counter(one.by for one in failed).most_common()),
        found_tried=spread([one.tried for one in failed]),
        found_requests=spread([one.requests for one in failed]),
        found_seconds=spread([one.seconds for one in failed]),
        exposed=spread([one.exposed for one in played]) or Spread(0.0, 0.0),
        promoted_seconds=spread([one.seconds for one in good]),
        stuck=dict(sorted(Counter(one.step + 1 for one in late).items())),
        looks=math.fsum(one.looks for one in played) / len(played),
    )


def spread(values: Sequence[float]) -> Spread | None:
    """Median and 90th percentile, values that occurred; None of nothing.

    >>> spread([3, 1, 2]), spread([])
    (Spread(median=2.0, p90=3.0), None)
    """
    ordered = sorted(values)
    if not ordered:
        return None
    return Spread(*(float(ordered[math.ceil(q * len(ordered)) - 1]) for q in (0.5, 0.9)))
