"""Probation of a promoted version: the former champion answers a share of the requests, unseen, and comes back if it
is shown to be better on the same rows.

The decision is pure (`judge_probation`); `Probation` reads and writes ``services/<service>/monitor/probation.json``,
and commands the controller (`rollout.commands`), whose every action is durable and idempotent by the command's id. Only
paired evidence decides: the feedback about the rows that both versions answered (`serving.feedback.join`). A version
whose performance fell, but whose predecessor is no better on these rows, stays: the traffic changed, not the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Literal

from mlflowkit.errors import ServiceError
from mlflowkit.judging.online import sequential
from mlflowkit.judging.online.evidence import Evidence, Moments
from mlflowkit.judging.online.sequential import Stratum
from mlflowkit.monitoring.retrain.steady_clock import Moment, age, this_moment
from mlflowkit.rollout import commands
from mlflowkit.service_state import version_history
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.values import Json, Outcome, RoutingTable, Variant

RECORD = "monitor/probation.json"
PAIRED = "paired:"
"""Before a shadow's name in the evidence of feedback: see `serving.feedback.join.PAIRED`."""
SAMPLING = 0.05
"""Share of the requests that the former champion answers, too."""
MIN_PAIRS = 100
"""Requests that both answered, with feedback, before a mean is judged: it relies on the central limit theorem."""
LEVEL = 0.05
"""Probability that a version as good as the former one is rolled back, over the whole probation."""
MORE_IS_BETTER = ("accuracy",)
PREFERENCE = ("log_loss", "accuracy", "squared_error", "absolute_error")
"""Metrics of feedback; the first that there is decides, so that there is one test and one level."""
_SCALE = 0.25
"""Scale of the alternatives, in standard deviations of one difference."""

Phase = Literal["beginning", "running", "going back", "ended"]


@dataclass(frozen=True, slots=True)
class PairedFinding:
    """The champion against the former one on the same rows. FAILED: the champion is shown to be worse.

    PASSED: the former one is shown not to be better. ``value`` is the champion's mean minus the former one's.
    """

    outcome: Outcome
    metric: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    pairs: int = 0
    message: str = "no feedback about rows that both versions answered yet"


@dataclass(frozen=True, slots=True)
class ProbationState:
    """A probation. ``id`` is the idempotency key of its commands; ``shadow`` the former champion in the table.

    worst  the largest evidence so far that the champion is worse: FAILED is final
    """

    id: str
    champion: str
    shadow: Variant
    begun: Moment
    seconds: float
    phase: Phase = "beginning"
    worst: float = 0.0
    reason: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> ProbationState:
        """The state that `asdict` gave. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(**{**value, "shadow": Variant(**value["shadow"]), "begun": Moment.from_json(value["begun"])})


@dataclass(frozen=True, slots=True)
class ProbationReport:
    """The state of the probation for the monitor: a finding while it runs, and what is new in sentences."""

    phase: str = ""
    finding: PairedFinding | None = None
    sentences: tuple[str, ...] = ()


def judge_probation(strata: Mapping[str, Moments], worst: float = 0.0) -> tuple[PairedFinding, float]:
    """Judge the differences champion minus former on the same rows, by metric, and the evidence to keep.

    Asymptotic, valid at every look (`sequential.mean_evidence`); the null hypothesis is that the champion is no worse.

    >>> judge_probation({"accuracy": Moments(400, -80.0, 100.0)})[0].outcome
    <Outcome.FAILED: 'FAILED'>
    >>> judge_probation({"accuracy": Moments(400, 0.0, 100.0)})[0].outcome
    <Outcome.INCONCLUSIVE: 'INCONCLUSIVE'>
    """
    metric = next((name for name in PREFERENCE if strata.get(name, Moments()).count), "")
    moments = strata.get(metric, Moments())
    if moments.count < MIN_PAIRS:
        message = f"{moments.count} of {MIN_PAIRS} requests with feedback that both versions answered"
        return PairedFinding(Outcome.INCONCLUSIVE, metric, pairs=moments.count, message=message), worst
    variance = max(moments.squares - moments.total * moments.mean, 0.0) / (moments.count - 1)
    if variance <= 0:  # the same answers: there is nothing to choose by
        equal = f"{metric}: no difference on {moments.count:,} requests"
        outcome = Outcome.PASSED if not moments.total else Outcome.INCONCLUSIVE
        return PairedFinding(outcome, metric, moments.mean, pairs=moments.count, message=equal), worst
    value, information = sequential.pool([Stratum(moments.mean, variance / moments.count)])
    scale = _SCALE * math.sqrt(variance)
    above, below = sequential.mean_evidence(value, information, 0.0, scale)
    worse, better = (below, above) if metric in MORE_IS_BETTER else (above, below)
    worst = max(worst, worse)
    radius = sequential.mean_radius(information, scale, LEVEL)
    needed = math.log(1 / LEVEL)
    outcome = Outcome.FAILED if worst >= needed else Outcome.PASSED if better >= needed else Outcome.INCONCLUSIVE
    message = (
        f"{metric} {value:+.3g} [{value - radius:.3g}, {value + radius:.3g}] against the former champion on the same "
        f"{moments.count:,} requests: {outcome}"
    )
    finding = PairedFinding(outcome, metric, value, value - radius, value + radius, moments.count, message)
    return finding, worst


class Probation:
    """The probation of one service's champion. `tick` is one round; it may be repeated, by any controller."""

    def __init__(
        self,
        files: ServiceFiles,
        seconds: float,
        *,
        sampling: float = SAMPLING,
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
        clock: Callable[[], Moment] = this_moment,
    ) -> None:
        self.files = files
        self.seconds = seconds
        self._sampling = sampling
        self._guard = guard
        self._clock = clock
        self._sentences: list[str] = []

    def tick(self) -> ProbationReport:
        """Begin a probation after a promotion, judge the one that runs, and end it."""
        table = self.files.table()
        if table is None or commands.running_rollout(self.files) is not None:
            return self._report("", None)
        state = self._read()
        if state is None or state.champion != table.champion.digest:
            state = self._replace(state, table)
        if state is None or state.phase == "ended":
            return self._report("", None)
        if state.phase == "beginning":
            return self._report(self._await_shadow(state, table).phase, None)
        if state.phase == "running" and all(variant.digest != state.shadow.digest for variant in table.variants):
            state = self._end(state, table, f"probation is over: {state.shadow.name} was taken out of the table")
            return self._report(state.phase, None)
        finding, worst = judge_probation(self._differences(state, table), state.worst)
        if worst != state.worst:
            state = self._write(replace(state, worst=worst))
        if finding.outcome is not Outcome.FAILED and age(state.begun, self._clock()) >= state.seconds:
            state = self._end(state, table, f"probation is over: {finding.message}")
        return self._report(state.phase, finding)

    def go_back(self, reason: str, cause: str = "performance") -> None:
        """Give the traffic back to the former champion: decided durably, then commanded."""
        state = self._read()
        if state is None or state.phase not in ("running", "going back"):
            raise ServiceError(f"{self.files.service} has no version in probation", hint="mlkit rollout status")
        if state.phase == "running":
            self._write(replace(state, phase="going back", reason=reason))
            self._sentences.append(f"rollback to version {state.shadow.version}: {reason}")
        commands.submit_rollback(self.files, f"monitor-back-{state.id}", reason, cause)

    # --------------------------------------------------------------------------------------------------------- steps

    def _replace(self, state: ProbationState | None, table: RoutingTable) -> ProbationState | None:
        """The probation of a new champion: over the one before it, if that was promoted over another version."""
        if state is not None:
            self._remove_shadow(state, table)
        history = version_history.champions(self.files)
        if not history or history[-1].variant.digest != table.champion.digest:
            return state  # a promotion that is not recorded yet
        former = version_history.previous_champion(self.files, table.champion.digest)
        back = state is not None and state.shadow.digest == table.champion.digest
        ended = replace(state, champion=table.champion.digest, phase="ended") if state is not None else None
        if former is None or back or age_of(history[-1].time, self._clock()) >= self.seconds:
            return self._write(ended) if ended is not None and state != ended else ended
        shadow = replace(
            former.variant, name=f"former-{former.variant.version}", role="shadow", weight=0.0, start=0.0,
            sampling=self._sampling,
        )  # fmt: skip
        id = f"{table.champion.digest[:16]}-{round(history[-1].time)}"
        self._sentences.append(
            f"version {table.champion.version} is in probation: version {shadow.version} answers "
            f"{self._sampling:.0%} of the requests too"
        )
        return self._write(ProbationState(id, table.champion.digest, shadow, self._clock(), self.seconds))

    def _await_shadow(self, state: ProbationState, table: RoutingTable) -> ProbationState:
        """Command the shadow, and wait until it is in the table."""
        if any(variant.digest == state.shadow.digest for variant in table.variants):
            return self._write(replace(state, phase="running", begun=self._clock()))
        commands.submit_shadow(self.files, f"monitor-shadow-{state.id}", state.shadow)
        reply = commands.read_reply(self.files, f"monitor-shadow-{state.id}")
        if reply is not None and not reply.ok:
            return self._end(state, table, f"no probation: {reply.message}")
        return state

    def _end(self, state: ProbationState, table: RoutingTable, reason: str) -> ProbationState:
        self._remove_shadow(state, table)
        self._sentences.append(reason)
        return self._write(replace(state, phase="ended", reason=reason))

    def _remove_shadow(self, state: ProbationState, table: RoutingTable) -> None:
        if any(variant.name == state.shadow.name and variant.role == "shadow" for variant in table.variants):
            commands.submit_removal(self.files, f"monitor-unshadow-{state.id}", state.shadow.name)

    def _differences(self, state: ProbationState, table: RoutingTable) -> Mapping[str, Moments]:
        """Champion minus former, by metric, from the feedback about requests that both answered."""
        try:
            evidence = self.files.read("evidence/feedback.json", Evidence.from_json)
        except ValueError:
            evidence = None
        if evidence is None or evidence.experiment != table.experiment:
            return {}
        return evidence.of(f"{PAIRED}{state.shadow.name}").quality

    # -------------------------------------------------------------------------------------------------------- record

    def _read(self) -> ProbationState | None:
        try:
            return self.files.read(RECORD, ProbationState.from_json)
        except ValueError as error:
            raise ServiceError(f"{self.files.location(RECORD)} is damaged: {error}", hint="mlkit status") from error

    def _write(self, state: ProbationState) -> ProbationState:
        with self._guard():
            self.files.write_json(RECORD, asdict(state))
        return state

    def _report(self, phase: str, finding: PairedFinding | None) -> ProbationReport:
        sentences, self._sentences = tuple(self._sentences), []
        return ProbationReport(phase, finding, sentences)


def age_of(wall: float, now: Moment) -> float:
    """Seconds since a time of the wall clock, never negative."""
    return max(0.0, now.wall - wall)
