"""What a rollout does next: a pure function of what is known. No clock, no I/O; the controller carries the actions out.

::

    pending ── preparing ── running ──────────── promoting ── promoted
                               │ ╲ paused           (kept: a shadow that stays)
                               │ ╲ awaiting_approval
                               └──────────────── rolling_back ── rolled_back | aborted

A state in which a table was decided (preparing, promoting, rolling_back) is advanced again once every replica answers
by it; the policy never decides on a table that is not live.

The rules, in this order, at every look:

1. A finding that FAILED takes the candidate's traffic away, also while a person is asked or the rollout is paused.
   So does a candidate that answers almost nothing (see `hopeless`), whatever it is judged by.
2. What a person said: abort and rollback end it, pause holds it, promote goes on without waiting.
3. A step is over when both variants were seen ``min_samples`` times, ``bake_seconds`` have passed, and a person said
   so where that is asked for. The last one needs every objective PASSED as well.
4. A step that is not over after ``max_seconds`` ends the rollout: nothing was shown, so nothing is changed.

Time is summed up between looks and a clock that goes back adds nothing, so neither deadlines nor baking can be skipped
by it. Pauses and waiting for a person do not count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mlflowkit.judging.online.evidence import Evidence
from mlflowkit.judging.online.judge import Finding, Question
from mlflowkit.rollout.settings import EventName, Rollout, Step
from mlflowkit.rollout.state import (
    LIVE,
    Action,
    Counts,
    Look,
    Phase,
    Promote,
    Reading,
    Request,
    RollBack,
    RolloutState,
    SetTable,
    Tell,
    remember,
)
from mlflowkit.values import Outcome, RoutingTable, Variant

LOOK_SECONDS = 1.0
"""Seconds between looks that the history keeps."""
HOPELESS_REQUESTS = 20
HOPELESS_SHARE = 0.9
"""A candidate that failed this share of at least so many requests, while the champion failed less than half of its
own, is taken out whatever it is judged by. Of a candidate as good as a champion that fails 10 % of its requests, one
in 10^15 is."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a person told the controller, or (failed) what the controller could not do.

    promote goes on to the next step without waiting, from the last step to promotion, and with ``full`` there at once.
    remove takes a lasting shadow, ``variant``, out of the table. overtaken: somebody else published a table; it holds.
    """

    kind: Literal["promote", "pause", "resume", "abort", "rollback", "remove", "failed", "overtaken"]
    reason: str = ""
    full: bool = False
    variant: str = ""


def begin(request: Request, table: RoutingTable, *, now: float, fence: int = 0) -> RolloutState:
    """The state of a rollout that was just asked for, of a service that answers by ``table``."""
    shadows = tuple(variant for variant in table.variants if variant.role == "shadow")
    return RolloutState(
        experiment=request.id,
        service=request.service,
        plan=request.plan,
        champion=replace(table.champion, weight=1.0),
        candidate=replace(request.candidate, name=_name(request, shadows)),
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
    )


def go_back(
    table: RoutingTable, previous: Variant, *, id: str, reason: str, now: float, origin: Mapping[str, str]
) -> tuple[RolloutState, tuple[Action, ...]]:
    """Back to an earlier champion at once, where no rollout is running: the present one is turned down.

    ``origin`` is where ``previous`` came from.
    """
    shadows = tuple(variant for variant in table.variants if variant.role == "shadow")
    state = RolloutState(
        experiment=id, service=table.service, plan=Rollout(), champion=_crowned(previous), candidate=table.champion,
        epoch=table.epoch, begun=now, step_started=now, clock=now, others=shadows, salt=id, affinity=table.affinity,
        override_header=table.override_header, origin=origin,
    )  # fmt: skip
    state, (swap, blame) = _turn_down(state, reason or "rollback by a person", "rolled_back", "person")
    return state, (swap, Promote(state.champion, state.candidate), blame)


def advance(
    state: RolloutState,
    findings: Sequence[Finding] = (),
    counts: Counts = Counts(),  # noqa: B008 - frozen
    command: Command | None = None,
    now: float = 0.0,
) -> tuple[RolloutState, tuple[Action, ...]]:
    """The state after one look, and what is to be done, in order.

    ``findings`` are what the judges say now, of the questions in `questions`; ``counts`` are of the present step
    (see `count`). An ended rollout does not change any more.
    """
    if state.ended:
        return state, ()
    state = _timed(state, now)
    if command is not None and command.kind == "overtaken":
        state = _noted(replace(state, phase="aborted", ending="aborted", reason=command.reason, finished=now), now=True)
        return state, (_tell(state, "aborted", command.reason),)
    if command is not None and command.kind == "failed":
        return _turn_down(state, command.reason, "rolled_back", "policy")
    if state.phase == "pending":
        return _ended_by(state, command) or _enter(state, 0)
    if state.phase == "preparing":
        state = replace(state, phase="running", elapsed=0.0, step_started=now)
        return _ended_by(state, command) or (state, (_tell(state, "started", _where(state)),))
    if state.phase == "promoting":
        return _promoted(state)
    if state.phase == "rolling_back":
        return _turned_down(state)
    return _look(_seen(state, findings, counts), command)


def questions(state: RolloutState, measured: Sequence[Sequence[float]] = ()) -> tuple[Question, ...]:
    """The metrics of the plan as the judges take them. ``measured`` are the values of each Prometheus query in turn."""
    values = iter(measured)
    found = []
    for number, metric in enumerate(state.plan.metrics):
        same = [other for other in state.plan.metrics[:number] if other.metric == metric.metric]
        found.append(
            Question(
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
    return tuple(found)


def count(state: RolloutState, evidence: Evidence) -> Counts:
    """Requests under the tables of the present step; of a shadow, those that it was given."""
    champion = evidence.of(state.champion.name, state.step_epochs)
    challenger = evidence.of(state.candidate.name, state.step_epochs)
    mirrored = max(0, challenger.mirrored - challenger.dropped)
    taken = challenger.requests if state.steps[state.step].weight > 0 else mirrored
    return Counts(champion.requests, taken, champion.errors, challenger.errors)


def hopeless(counts: Counts) -> bool:
    """Whether the candidate answers almost nothing that it is asked, and the champion does.

    >>> hopeless(Counts(champion=400, challenger=20, challenger_errors=20)), hopeless(Counts(400, 19, 0, 19))
    (True, False)
    """
    if counts.challenger < HOPELESS_REQUESTS or counts.challenger_errors < HOPELESS_SHARE * counts.challenger:
        return False
    return counts.champion_errors * 2 < counts.champion or counts.champion == 0


def table(state: RolloutState) -> RoutingTable:
    """The table of a state: a function of its phase, step and epoch only."""
    candidate, champion = state.candidate, state.champion
    others = tuple(variant for variant in state.others if variant.digest != candidate.digest)
    if state.phase in ("promoting", "promoted"):
        variants: tuple[Variant, ...] = (_crowned(candidate), *others)
    elif state.phase in LIVE or state.phase == "preparing":
        step = state.steps[state.step]
        share = step.weight / 100
        if share > 0:
            taking = replace(candidate, role="challenger", weight=share, start=0.0)
            variants = (replace(champion, weight=1.0 - share), taking, *others)
        else:
            mirrored = replace(candidate, role="shadow", weight=0.0, start=0.0, sampling=step.sampling or 1.0)
            variants = (champion, mirrored, *others)
    else:
        variants = (champion, *others)
    return RoutingTable(
        state.service, state.epoch, variants, state.experiment, state.salt, state.affinity, state.override_header,
        state.fence,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- one look


def _look(state: RolloutState, command: Command | None) -> tuple[RolloutState, tuple[Action, ...]]:
    failed = [finding for finding in state.findings if finding.verdict.outcome == Outcome.FAILED]
    if failed:
        return _turn_down(state, "; ".join(map(_said, failed)), "rolled_back", "policy")
    if hopeless(state.counts):
        bad, all_of = state.counts.challenger_errors, state.counts.challenger
        return _turn_down(state, f"it failed {bad} of {all_of} requests", "rolled_back", "policy")
    ended = _ended_by(state, command)
    if ended is not None:
        return ended
    told: tuple[Action, ...] = ()
    if command is not None and command.kind == "promote":
        return _go_on(replace(state, by="person", reason=command.reason), full=command.full)
    if command is not None and command.kind == "pause" and state.phase != "paused":
        state = replace(state, phase="paused", reason=command.reason)
        told = (_tell(state, "paused", command.reason or "paused by a person"),)
    elif command is not None and command.kind == "resume" and state.phase == "paused":
        state = replace(state, phase="running", reason="")
    elif command is not None and command.kind == "remove":
        return _without(state, command.variant)
    if state.phase == "paused":
        return state, told
    return _decide(state)


def _without(state: RolloutState, shadow: str) -> tuple[RolloutState, tuple[Action, ...]]:
    """With one lasting shadow less; the step goes on under another table."""
    others = tuple(variant for variant in state.others if variant.name != shadow)
    if others == state.others:
        return state, ()
    epoch = state.epoch + 1
    state = replace(
        state, others=others, epoch=epoch, step_epochs=(*state.step_epochs, epoch), epochs=(*state.epochs, epoch)
    )
    return state, (SetTable(table(state)),)


def _decide(state: RolloutState) -> tuple[RolloutState, tuple[Action, ...]]:
    step = state.steps[state.step]
    if not waits(state).over:
        if state.elapsed >= (step.max_seconds or math.inf) and state.phase == "running":
            return _deadline(state, step)
        return replace(state, phase="running"), ()
    last = state.step == len(state.steps) - 1
    if step.approval or (last and state.plan.promote == "manual"):
        if state.phase == "awaiting_approval":
            return state, ()
        state = replace(state, phase="awaiting_approval")
        return state, (_tell(state, "paused", "waits for `mlkit rollout promote`"),)
    return _go_on(state)


@dataclass(frozen=True, slots=True)
class Wait:
    """What a step still waits for, a person's word apart.

    requests  (variant, how many were seen) of those that were seen too rarely
    least     how many of each are to be seen
    seconds   of baking that are left
    unshown   objectives that are still to be shown to hold; only the last step needs them
    """

    requests: tuple[tuple[str, int], ...]
    least: int
    seconds: float
    unshown: tuple[str, ...]

    @property
    def over(self) -> bool:
        """Whether there is nothing to wait for."""
        return not self.requests and self.seconds <= 0 and not self.unshown

    def __str__(self) -> str:
        """What it waits for first."""
        if self.requests:
            return " and ".join(f"{seen} of {self.least} requests of the {name}" for name, seen in self.requests)
        if self.seconds > 0:
            return f"{self.seconds:.0f} s more to bake"
        return f"{', '.join(self.unshown)} to be shown" if self.unshown else "nothing"


def waits(state: RolloutState) -> Wait:
    """What the present step still waits for."""
    step, counts = state.steps[state.step], state.counts
    least = step.min_samples or 1
    arms = [("challenger", counts.challenger), *([("champion", counts.champion)] if step.weight < 100 else [])]
    unshown: tuple[str, ...] = ()
    if state.step == len(state.steps) - 1 and state.plan.promote != "never":
        passed = {finding.name for finding in state.findings if finding.verdict.outcome == Outcome.PASSED}
        unshown = tuple(one.name for one in questions(state) if one.role == "objective" and one.name not in passed)
    short = tuple((name, seen) for name, seen in arms if seen < least)
    return Wait(short, least, max(0.0, (step.bake_seconds or 0.0) - state.elapsed), unshown)


def _deadline(state: RolloutState, step: Step) -> tuple[RolloutState, tuple[Action, ...]]:
    if state.plan.promote == "never":
        return _keep(state)
    reason = f"step {state.step + 1} took {step.max_seconds:g} s and still waits for {waits(state)}"
    return _turn_down(state, reason, "rolled_back", "policy")


def _go_on(state: RolloutState, *, full: bool = False) -> tuple[RolloutState, tuple[Action, ...]]:
    """To the next step, or to the end after the last."""
    if not full and state.step < len(state.steps) - 1:
        return _enter(state, state.step + 1)
    if state.plan.promote == "never" and state.by != "person":
        return _keep(state)
    state = replace(state, phase="promoting", epoch=state.epoch + 1)
    return state, (SetTable(table(state)), Promote(_crowned(state.candidate), state.champion))


def _enter(state: RolloutState, number: int) -> tuple[RolloutState, tuple[Action, ...]]:
    epoch = state.epoch + 1
    state = replace(
        state, step=number, epoch=epoch, step_epochs=(epoch,), epochs=(*state.epochs, epoch), elapsed=0.0,
        step_started=state.clock, counts=Counts(), by="policy", reason="",
        phase="preparing" if state.phase == "pending" else "running",
    )  # fmt: skip
    if state.phase == "preparing":
        return state, (SetTable(table(state)),)
    return state, (SetTable(table(state)), _tell(state, "step", _where(state)))


def _keep(state: RolloutState) -> tuple[RolloutState, tuple[Action, ...]]:
    """A shadow whose rollout is over stays in the table as it is."""
    state = replace(state, phase="kept", finished=state.clock, reason="it stays as a shadow")
    return state, (_tell(state, "promoted", f"{state.candidate.name} stays as a shadow"),)


def _ended_by(state: RolloutState, command: Command | None) -> tuple[RolloutState, tuple[Action, ...]] | None:
    if command is None or command.kind not in ("abort", "rollback"):
        return None
    ending: Literal["aborted", "rolled_back"] = "aborted" if command.kind == "abort" else "rolled_back"
    return _turn_down(state, command.reason or f"{command.kind} by a person", ending, "person")


def _turn_down(
    state: RolloutState, reason: str, ending: Literal["rolled_back", "aborted"], by: Literal["policy", "person"]
) -> tuple[RolloutState, tuple[Action, ...]]:
    if state.phase == "rolling_back":
        return state, ()
    state = replace(state, phase="rolling_back", ending=ending, reason=reason, by=by, epoch=state.epoch + 1)
    return state, (SetTable(table(state)), RollBack(state.candidate, reason, state.clock, state.findings))


def _turned_down(state: RolloutState) -> tuple[RolloutState, tuple[Action, ...]]:
    state = replace(state, phase=state.ending, finished=state.clock)
    state = _noted(state, now=True)
    return state, (_tell(state, state.ending, state.reason),)


def _promoted(state: RolloutState) -> tuple[RolloutState, tuple[Action, ...]]:
    state = replace(state, phase="promoted", finished=state.clock)
    state = _noted(state, now=True)
    return state, (_tell(state, "promoted", f"version {state.candidate.version} is the champion"),)


# ------------------------------------------------------------------------------------------------------ small things


def _timed(state: RolloutState, now: float) -> RolloutState:
    passed = max(0.0, now - state.clock) if state.phase == "running" else 0.0
    return replace(state, clock=now, elapsed=state.elapsed + passed)


def _seen(state: RolloutState, findings: Sequence[Finding], counts: Counts) -> RolloutState:
    return _noted(replace(state, findings=tuple(findings), counts=counts))


def _noted(state: RolloutState, *, now: bool = False) -> RolloutState:
    """With this look in its history, if the last one is a while ago or something FAILED."""
    last = state.history[-1] if state.history else None
    same = last is not None and (last.step, last.phase) == (state.step, state.phase)
    failed = any(finding.verdict.outcome == Outcome.FAILED for finding in state.findings)
    if not now and not failed and same and last is not None and abs(state.clock - last.time) < LOOK_SECONDS:
        return state
    look = Look(state.clock, state.step, state.weight, state.phase, tuple(map(_reading, state.findings)))
    return replace(state, history=remember(state.history, look))


def _reading(finding: Finding) -> Reading:
    found = finding.verdict.measurement
    value, low, high = (math.nan,) * 3 if found is None else (found.value, found.low, found.high)
    champion, challenger = finding.samples
    return Reading(
        finding.name, finding.verdict.outcome, finding.harm, finding.proof, value, low, high, champion, challenger
    )


def _said(finding: Finding) -> str:
    return finding.verdict.message or f"{finding.name} FAILED"


def _where(state: RolloutState) -> str:
    """Which step a rollout is at, in words."""
    step = state.steps[state.step]
    share = f"at {step.weight:g} %" if step.weight else f"mirroring {(step.sampling or 1.0) * 100:g} %"
    return f"{state.strategy}, step {state.step + 1} of {len(state.steps)} {share}"


def _tell(state: RolloutState, event: EventName, message: str) -> Tell:
    key = f"{state.experiment}-{event}-{state.step}-{state.epoch}-{state.phase}"
    if state.phase == "paused":  # a person may pause one step twice; waiting for approval is told once
        key += f"-{round(1000 * state.clock)}"
    return Tell(event, message, key, state.clock, state.step, state.weight)


def _crowned(candidate: Variant) -> Variant:
    """The candidate as champion: in the gateway's own process, with all that no challenger takes."""
    return replace(
        candidate, name="champion", role="champion", weight=1.0, start=0.0, sampling=1.0, placement="colocated"
    )


def _name(request: Request, shadows: Sequence[Variant]) -> str:
    """The candidate's name: its own for a shadow that is to stay, challenger for what is to take over."""
    if request.plan.promote == "never":
        return f"shadow-{request.candidate.version}"
    return "challenger"


def where(state: RolloutState) -> str:
    """A rollout in a few words, as `mlkit status` shows it.

    >>> from mlflowkit.rollout.settings import Rollout
    >>> plan = Rollout(strategy="canary", steps=[5, 50])
    >>> variant = Variant("challenger", "2", "d", "b", role="challenger")
    >>> where(RolloutState("e", "lending", plan, variant, variant, phase="running", step=1))
    'canary, step 2 of 2 at 50 %'
    """
    if state.phase == "running":
        return _where(state)
    if state.phase in LIVE:
        return f"{_where(state)}, {_WORDS[state.phase]}"
    return f"{state.strategy}, {_WORDS[state.phase]}"


_WORDS: dict[Phase, str] = {
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
