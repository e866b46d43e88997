"""Decide the next step of a rollout: a pure function of state, verdicts, counts, command and time.

No clock and no I/O; the controller executes the returned actions::

    pending ── preparing ── running ──────────── promoting ── promoted
                               │ ╲ paused           (kept: a lasting shadow)
                               │ ╲ awaiting_approval
                               └──────────────── rolling_back ── rolled_back | aborted

In preparing, promoting and rolling_back a new table is on its way; `advance` is called again once every replica serves
it. The policy never decides on a table that is not live.

Rules, in order, at every observation:

1. A FAILED metric starts a rollback, also while paused or awaiting approval. So does an unresponsive candidate (see
   `is_unresponsive`), whatever its metrics are.
2. Operator commands: abort and rollback end the rollout, pause holds it, promote skips the waiting.
3. A step ends when both variants have ``min_samples`` requests, ``bake_seconds`` have passed and any required approval
   is given. The last step also needs every objective PASSED, and the last one that mirrors requests every objective
   that only mirrored requests can show.
4. An INCONCLUSIVE metric that points to worse (its estimate is beyond its limit, and the evidence leans there) holds
   the step: no more clients get the candidate until more requests have shown that it is within its limit.
5. A step that exceeds ``max_seconds``, or is held for ``max_hold_seconds``, is rolled back: nothing was shown, so
   nothing changes.

Elapsed time is summed between observations, and a clock that goes backwards adds nothing, so a clock change can skip
neither deadlines nor baking. Pauses and approval waits do not count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mlflowkit.judging.compatibility import breaking_changes, summarize_changes
from mlflowkit.judging.coverage import rollout_warnings
from mlflowkit.judging.online.evidence import Evidence
from mlflowkit.judging.online.judge import MetricResult
from mlflowkit.rollout.conditions import PendingConditions, pending_conditions
from mlflowkit.rollout.settings import EventName, Rollout
from mlflowkit.rollout.state import (
    LIVE_PHASES,
    Action,
    MetricReading,
    Notify,
    Observation,
    Phase,
    Promote,
    Request,
    RollBack,
    RolloutState,
    SetTable,
    StepCounts,
    append_observation,
)
from mlflowkit.values import Outcome, RoutingTable, Variant

HISTORY_SECONDS = 1.0
"""Minimum seconds between observations in the history."""
UNRESPONSIVE_REQUESTS = 20
UNRESPONSIVE_SHARE = 0.9
"""A candidate that failed this share of at least that many requests, while the champion failed less than half of its
own, is rolled back. A candidate as good as a champion with a 10 % error rate meets this with probability 1e-15."""

Decision = tuple[RolloutState, tuple[Action, ...]]
"""The next state, and the actions to execute in order."""


@dataclass(frozen=True, slots=True)
class PolicyCommand:
    """An operator command, or an event that the controller reports (failed, overtaken).

    promote     skip the waiting: to the next step, or from the last one to promotion; with ``full`` always promotion
    remove      take the lasting shadow ``variant`` out of the table
    failed      the controller could not publish the table
    overtaken   another writer published a table, which stays
    """

    kind: Literal["promote", "pause", "resume", "abort", "rollback", "remove", "failed", "overtaken"]
    reason: str = ""
    full: bool = False
    variant: str = ""


def begin(request: Request, table: RoutingTable, *, now: float, fence: int = 0) -> RolloutState:
    """The initial state of a requested rollout of a service that serves ``table``."""
    shadows = tuple(variant for variant in table.variants if variant.role == "shadow")
    name = f"shadow-{request.candidate.version}" if request.plan.promote == "never" else "challenger"
    return RolloutState(
        experiment=request.id,
        service=request.service,
        plan=request.plan,
        champion=replace(table.champion, weight=1.0),
        candidate=replace(request.candidate, name=name),
        fence=fence,
        epoch=table.epoch,
        begun=now,
        step_started=now,
        clock=now,
        others=tuple(variant for variant in shadows if variant.digest != request.candidate.digest),
        salt=request.id,
        affinity=request.affinity,
        override_header=request.override_header,
        origin=request.origin,
        signature_changes=request.signature_changes,
    )


def roll_back_to(
    table: RoutingTable, previous: Variant, *, id: str, reason: str, now: float, origin: Mapping[str, str],
    by: Literal["person", "monitor"] = "person", cause: str = "",
) -> Decision:  # fmt: skip
    """Replace the champion with an earlier one, of origin ``origin``, while no rollout is running.

    With the cause "drift" the champion's version is not blocked.
    """
    shadows = tuple(
        variant for variant in table.variants if variant.role == "shadow" and variant.digest != previous.digest
    )
    state = RolloutState(
        experiment=id, service=table.service, plan=Rollout(), champion=_as_champion(previous),
        candidate=table.champion, epoch=table.epoch, begun=now, step_started=now, clock=now, others=shadows, salt=id,
        affinity=table.affinity, override_header=table.override_header, origin=origin,
    )  # fmt: skip
    state, (swap, rejection) = _start_rollback(state, reason or f"rollback by a {by}", "rolled_back", by)
    if isinstance(rejection, RollBack):
        rejection = replace(rejection, cause=cause)
    return state, (swap, Promote(state.champion, state.candidate), rejection)


def advance(
    state: RolloutState,
    findings: Sequence[MetricResult] = (),
    counts: StepCounts = StepCounts(),  # noqa: B008 - frozen
    command: PolicyCommand | None = None,
    now: float = 0.0,
) -> Decision:
    """The state after one observation, and the actions to execute in order.

    An ended rollout no longer changes.

    Args:
        findings: the judges' current results for `conditions.metric_specs`.
        counts: requests in the present step (see `count_requests`).
    """
    if state.ended:
        return state, ()
    passed = max(0.0, now - state.clock) if state.phase == "running" else 0.0
    state = replace(state, clock=now, elapsed=state.elapsed + passed)
    if command is not None and command.kind == "overtaken":
        state = replace(state, phase="aborted", ending="aborted", reason=command.reason, finished=now)
        return _with_observation(state, force=True), (_notify(state, "aborted", command.reason),)
    if command is not None and command.kind == "failed":
        return _start_rollback(state, command.reason, "rolled_back", "policy")
    if state.phase == "pending":
        return _end_on_command(state, command) or _enter_step(state, 0)
    if state.phase == "preparing":
        state = replace(state, phase="running", elapsed=0.0, step_started=now)
        started = _notify(state, "started", _describe_step(state) + _describe_breaking(state))
        return _end_on_command(state, command) or (state, (started,))
    if state.phase == "promoting":
        return _finish(state, "promoted", f"version {state.candidate.version} is the champion")
    if state.phase == "rolling_back":
        return _finish(state, state.ending, state.reason)
    return _observe(_with_observation(replace(state, findings=tuple(findings), counts=counts)), command)


def count_requests(state: RolloutState, evidence: Evidence) -> StepCounts:
    """Requests under the tables of the present step; for a shadow, mirrored requests that were not dropped."""
    champion = evidence.of(state.champion.name, state.step_epochs)
    challenger = evidence.of(state.candidate.name, state.step_epochs)
    mirrored = max(0, challenger.mirrored - challenger.dropped)
    requests = challenger.requests if state.steps[state.step].weight > 0 else mirrored
    return StepCounts(champion.requests, requests, champion.errors, challenger.errors)


def is_unresponsive(counts: StepCounts) -> bool:
    """Whether the candidate fails almost every request while the champion does not.

    >>> is_unresponsive(StepCounts(champion=400, challenger=20, challenger_errors=20))
    True
    >>> is_unresponsive(StepCounts(champion=400, challenger=19, challenger_errors=19))
    False
    """
    if counts.challenger < UNRESPONSIVE_REQUESTS or counts.challenger_errors < UNRESPONSIVE_SHARE * counts.challenger:
        return False
    return counts.champion_errors * 2 < counts.champion or counts.champion == 0


def routing_table(state: RolloutState) -> RoutingTable:
    """The routing table of a state; depends on its phase, step and epoch only."""
    candidate, champion = state.candidate, state.champion
    shadows = tuple(variant for variant in state.others if variant.digest != candidate.digest)
    if state.phase in ("promoting", "promoted"):
        variants: tuple[Variant, ...] = (_as_champion(candidate), *shadows)
    elif state.phase in LIVE_PHASES or state.phase == "preparing":
        step = state.steps[state.step]
        share = step.weight / 100
        if share > 0:
            challenger = replace(candidate, role="challenger", weight=share, start=0.0)
            variants = (replace(champion, weight=1.0 - share), challenger, *shadows)
        else:
            mirrored = replace(candidate, role="shadow", weight=0.0, start=0.0, sampling=step.sampling or 1.0)
            variants = (champion, mirrored, *shadows)
    else:
        variants = (champion, *shadows)
    return RoutingTable(
        state.service, state.epoch, variants, state.experiment, state.salt, state.affinity, state.override_header,
        state.fence,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- one observation


def _observe(state: RolloutState, command: PolicyCommand | None) -> Decision:
    failed = [finding for finding in state.findings if finding.verdict.outcome == Outcome.FAILED]
    if failed:
        reason = "; ".join(finding.verdict.message or f"{finding.name} FAILED" for finding in failed)
        return _start_rollback(state, reason, "rolled_back", "policy")
    if is_unresponsive(state.counts):
        errors, requests = state.counts.challenger_errors, state.counts.challenger
        return _start_rollback(state, f"it failed {errors} of {requests} requests", "rolled_back", "policy")
    ended = _end_on_command(state, command)
    if ended is not None:
        return ended
    kind = "" if command is None else command.kind
    reason = "" if command is None else command.reason
    if command is not None and kind == "promote":
        return _finish_step(replace(state, by="person", reason=reason), full=command.full)
    if command is not None and kind == "remove":
        return _remove_shadow(state, command.variant)
    actions: tuple[Action, ...] = ()
    if kind == "pause" and state.phase != "paused":
        state = replace(state, phase="paused", reason=reason)
        actions = (_notify(state, "paused", reason or "paused by a person"),)
    elif kind == "resume" and state.phase == "paused":
        state = replace(state, phase="running", reason="")
    return (state, actions) if state.phase == "paused" else _decide_step(state)


def _remove_shadow(state: RolloutState, shadow: str) -> Decision:
    """Remove one lasting shadow; the step continues under a new table."""
    others = tuple(variant for variant in state.others if variant.name != shadow)
    if others == state.others:
        return state, ()
    epoch = state.epoch + 1
    state = replace(
        state, others=others, epoch=epoch, step_epochs=(*state.step_epochs, epoch), epochs=(*state.epochs, epoch)
    )
    return state, (SetTable(routing_table(state)),)


def _decide_step(state: RolloutState) -> Decision:
    step = state.steps[state.step]
    pending = pending_conditions(state)
    state = _with_hold(state, pending)
    if not pending.met:
        held = state.elapsed - (state.elapsed if state.held_from is None else state.held_from)
        if state.elapsed >= (step.max_seconds or math.inf) and state.phase == "running":
            if state.plan.promote == "never":
                return _keep_shadow(state)
            reason = f"step {state.step + 1} took {step.max_seconds:g} s and still waits for {pending}"
            return _start_rollback(state, reason, "rolled_back", "policy")
        if held > 0 and held >= (state.plan.max_hold_seconds or math.inf):
            reason = f"step {state.step + 1} was held for {held:.0f} s by {pending}"
            return _start_rollback(state, reason, "rolled_back", "policy")
        return replace(state, phase="running"), ()
    last = state.step == len(state.steps) - 1
    if step.approval or (last and state.plan.promote == "manual"):
        if state.phase == "awaiting_approval":
            return state, ()
        state = replace(state, phase="awaiting_approval")
        return state, (_notify(state, "paused", "waits for `mlkit rollout promote`"),)
    return _finish_step(state)


def _with_hold(state: RolloutState, pending: PendingConditions) -> RolloutState:
    """The state with the beginning of its hold: when all but metrics that point to worse let the step end."""
    if not (pending.shown and pending.held_by):
        return state if state.held_from is None else replace(state, held_from=None)
    return replace(state, held_from=state.elapsed) if state.held_from is None else state


def _finish_step(state: RolloutState, *, full: bool = False) -> Decision:
    """Enter the next step, or promote (or keep) the candidate after the last one."""
    if not full and state.step < len(state.steps) - 1:
        return _enter_step(state, state.step + 1)
    if state.plan.promote == "never" and state.by != "person":
        return _keep_shadow(state)
    state = replace(state, phase="promoting", epoch=state.epoch + 1)
    return state, (SetTable(routing_table(state)), Promote(_as_champion(state.candidate), state.champion))


def _enter_step(state: RolloutState, number: int) -> Decision:
    epoch = state.epoch + 1
    state = replace(
        state, step=number, epoch=epoch, step_epochs=(epoch,), epochs=(*state.epochs, epoch), elapsed=0.0,
        step_started=state.clock, counts=StepCounts(), by="policy", reason="", held_from=None,
        phase="preparing" if state.phase == "pending" else "running",
    )  # fmt: skip
    if state.phase == "preparing":
        return state, (SetTable(routing_table(state)),)
    return state, (SetTable(routing_table(state)), _notify(state, "step", _describe_step(state)))


def _keep_shadow(state: RolloutState) -> Decision:
    """End the rollout; its shadow stays in the table."""
    state = replace(state, phase="kept", finished=state.clock, reason="it stays as a shadow")
    return state, (_notify(state, "promoted", f"{state.candidate.name} stays as a shadow"),)


def _end_on_command(state: RolloutState, command: PolicyCommand | None) -> Decision | None:
    if command is None or command.kind not in ("abort", "rollback"):
        return None
    ending: Literal["aborted", "rolled_back"] = "aborted" if command.kind == "abort" else "rolled_back"
    return _start_rollback(state, command.reason or f"{command.kind} by a person", ending, "person")


def _start_rollback(
    state: RolloutState,
    reason: str,
    ending: Literal["rolled_back", "aborted"],
    by: Literal["policy", "person", "monitor"],
) -> Decision:
    """Give all traffic to the champion and reject the candidate's version."""
    if state.phase == "rolling_back":
        return state, ()
    state = replace(state, phase="rolling_back", ending=ending, reason=reason, by=by, epoch=state.epoch + 1)
    rejection = RollBack(state.candidate, reason, state.clock, state.findings)
    return state, (SetTable(routing_table(state)), rejection)


def _finish(state: RolloutState, phase: Literal["promoted", "rolled_back", "aborted"], message: str) -> Decision:
    """End the rollout now that its last table is live."""
    state = _with_observation(replace(state, phase=phase, finished=state.clock), force=True)
    return state, (_notify(state, phase, message),)


# ----------------------------------------------------------------------------------------------------------- helpers


def _with_observation(state: RolloutState, *, force: bool = False) -> RolloutState:
    """Append to the history if forced, a second has passed, step or phase changed, or a metric FAILED."""
    last = state.history[-1] if state.history else None
    same = last is not None and (last.step, last.phase) == (state.step, state.phase)
    failed = any(finding.verdict.outcome == Outcome.FAILED for finding in state.findings)
    if not force and not failed and same and last is not None and abs(state.clock - last.time) < HISTORY_SECONDS:
        return state
    observation = Observation(
        state.clock, state.step, state.weight, state.phase, tuple(map(_metric_reading, state.findings))
    )
    return replace(state, history=append_observation(state.history, observation))


def _metric_reading(finding: MetricResult) -> MetricReading:
    estimate = finding.verdict.measurement
    value, low, high = (math.nan,) * 3 if estimate is None else (estimate.value, estimate.low, estimate.high)
    return MetricReading(
        finding.name,
        finding.verdict.outcome,
        finding.evidence_worse,
        finding.evidence_not_worse,
        value,
        low,
        high,
        *finding.samples,
    )


def _describe_step(state: RolloutState) -> str:
    step = state.steps[state.step]
    share = f"at {step.weight:g} %" if step.weight else f"mirroring {(step.sampling or 1.0) * 100:g} %"
    return f"{state.strategy}, step {state.step + 1} of {len(state.steps)} {share}"


def warnings(state: RolloutState) -> tuple[str, ...]:
    """What an operator should know about a rollout besides its verdicts."""
    changes = state.signature_changes
    texts = [f"breaks clients: {change.message}" if change.breaking else change.message for change in changes]
    if state.origin.get("gates") == "none":
        texts.append(f"no gate judged version {state.candidate.version}")
    return (*texts, *rollout_warnings(state.strategy, [metric.metric for metric in state.plan.metrics]))


def _describe_breaking(state: RolloutState) -> str:
    breaking = breaking_changes(state.signature_changes)
    return f"; it breaks clients: {summarize_changes(breaking)}" if breaking else ""


def _notify(state: RolloutState, event: EventName, message: str) -> Notify:
    key = f"{state.experiment}-{event}-{state.step}-{state.epoch}-{state.phase}"
    if state.phase == "paused":  # a step may be paused twice; waiting for approval is announced once
        key += f"-{round(1000 * state.clock)}"
    return Notify(event, message, key, state.clock, state.step, state.weight)


def _as_champion(candidate: Variant) -> Variant:
    """The candidate as champion: colocated, without the challenger's weight, start and sampling."""
    return replace(
        candidate, name="champion", role="champion", weight=1.0, start=0.0, sampling=1.0, placement="colocated"
    )


def describe(state: RolloutState) -> str:
    """A short description of a rollout, as `mlkit status` shows it.

    >>> from mlflowkit.rollout.settings import Rollout
    >>> plan = Rollout(strategy="canary", steps=[5, 50])
    >>> variant = Variant("challenger", "2", "d", "b", role="challenger")
    >>> describe(RolloutState("e", "lending", plan, variant, variant, phase="running", step=1))
    'canary, step 2 of 2 at 50 %'
    """
    if state.phase == "running":
        return _describe_step(state)
    if state.phase in LIVE_PHASES:
        return f"{_describe_step(state)}, {_PHASE_TEXT[state.phase]}"
    return f"{state.strategy}, {_PHASE_TEXT[state.phase]}"


_PHASE_TEXT: dict[Phase, str] = {
    "pending": "asked for",
    "preparing": "loading the new version",
    "paused": "paused",
    "awaiting_approval": "waits for approval",
    "promoting": "promoting",
    "promoted": "promoted",
    "rolling_back": "rolling back",
    "rolled_back": "rolled back",
    "aborted": "aborted",
    "kept": "stays as a shadow",
}
