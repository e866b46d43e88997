"""Verdicts of gates: an interval is compared with a threshold, purely, and the message states the numbers.

A gate at confidence c uses the two-sided interval at c: PASSED when the whole interval is on the right side of the
threshold, FAILED when all of it is on the wrong side, else INCONCLUSIVE. A single bound decides, so PASSED and FAILED
are each wrong with probability (1 - c) / 2 at most: 2.5 % at the default of 0.95.

Slices of a gate are one family: a wrong PASSED (or a wrong FAILED) occurs anywhere in it with probability (1 - c) / 2
at most, by Holm's step-down procedure (Scandinavian Journal of Statistics 1979) on the intervals: with r slices
undecided each is assessed at confidence 1 - (1 - c) / r, until no more are decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mlflowkit.judging.stats import Estimate, UndefinedMetricError
from mlflowkit.values import Measurement, Outcome, Verdict

Direction = Literal["min", "max"]

SEVERITY = (Outcome.PASSED, Outcome.INCONCLUSIVE, Outcome.ERROR, Outcome.FAILED)


@dataclass(frozen=True, slots=True)
class GateSpec:
    """A gate's condition: ``metric`` at or above (min), or at or below (max), ``threshold``.

    With ``change`` the metric is a difference, candidate minus champion, and the threshold is minus the margin
    where more is better (direction min) or plus the margin where less is (direction max).
    """

    gate: str
    metric: str
    threshold: float
    direction: Direction
    confidence: float = 0.95
    change: bool = False
    allow_inconclusive: bool = False
    dry_run: bool = False
    members: str = "slices"
    """What a family of this gate consists of."""

    def blocks(self, outcome: Outcome) -> bool:
        """Whether the gate counts when it ends in this outcome."""
        return not (self.dry_run or (self.allow_inconclusive and outcome is Outcome.INCONCLUSIVE))

    def consequence(self, outcome: Outcome) -> str:
        """A remark for the message where a gate that did not pass does not block."""
        if outcome is Outcome.PASSED or self.blocks(outcome):
            return ""
        return " (dry run: reported only)" if self.dry_run else " (allowed by the gate)"


def assess(measurement: Measurement, threshold: float, direction: Direction) -> Outcome:
    """Compare an interval with a threshold.

    >>> assess(Measurement("roc_auc", 0.74, 0.69, 0.79, samples=1479), 0.70, "min")
    <Outcome.INCONCLUSIVE: 'INCONCLUSIVE'>
    >>> assess(Measurement("latency_p99_ms", 1.0, 0.9, 1.2, samples=2000), 5.0, "max")
    <Outcome.PASSED: 'PASSED'>
    """
    if math.isnan(measurement.low) or math.isnan(measurement.high):
        return Outcome.ERROR
    if direction == "min":
        passed, failed = measurement.low >= threshold, measurement.high < threshold
    else:
        passed, failed = measurement.high <= threshold, measurement.low > threshold
    return Outcome.PASSED if passed else Outcome.FAILED if failed else Outcome.INCONCLUSIVE


def judge(spec: GateSpec, estimate: Estimate) -> Verdict:
    """The verdict on one estimate.

    >>> from mlflowkit.judging.stats import wilson
    >>> accuracy = Estimate("accuracy", 0.9, 500, lambda c: wilson(450, 500, c), "Wilson", basis="500 rows")
    >>> judge(GateSpec("accuracy >= 0.85", "accuracy", 0.85, "min"), accuracy).message
    'accuracy 0.9 [0.871, 0.923] on 500 rows: lower bound 0.871 >= min 0.85: PASSED'
    """
    return judge_family(spec, {"": estimate})[0]


def judge_family(spec: GateSpec, estimates: Mapping[str, Estimate], *, size: int | None = None) -> tuple[Verdict, ...]:
    """One verdict a slice (``column=value``), in the given order, corrected for their number (Holm).

    ``size`` is the number to correct for where it is larger: it includes members without an estimate.
    """
    size = max(size or 0, len(estimates))
    members = {name: _FamilyMember(spec, estimate, size) for name, estimate in estimates.items()}
    undecided = _apply_holm(members, Outcome.PASSED)
    rest = {name: member for name, member in members.items() if not member.decided}
    undecided = max(undecided, _apply_holm(rest, Outcome.FAILED))
    return tuple(member.verdict(name, undecided, size) for name, member in members.items())


def undecided_verdict(spec: GateSpec, outcome: Outcome, reason: str, slice_name: str = "") -> Verdict:
    """A verdict without a measurement: INCONCLUSIVE where the rows do not suffice, ERROR where something is broken,
    PASSED where there is nothing to compare with, or PASSED or FAILED where the value is known."""
    where = f" ({slice_name})" if slice_name else ""
    message = f"{spec.metric}{where}: {reason}: {outcome}{spec.consequence(outcome)}"
    return _verdict(spec, outcome, message, slice_name)


def _verdict(
    spec: GateSpec, outcome: Outcome, message: str, slice_name: str, measurement: Measurement | None = None
) -> Verdict:
    gate, metric, threshold, direction = spec.gate, spec.metric, spec.threshold, spec.direction
    blocking = spec.blocks(outcome)
    return Verdict(gate, outcome, message, metric, measurement, threshold, direction, blocking, slice_name, spec.change)


def is_blocking(verdict: Verdict) -> bool:
    """Whether this verdict keeps a bundle from being blessed."""
    return verdict.blocking and verdict.outcome is not Outcome.PASSED


def blessed(verdicts: Iterable[Verdict]) -> bool:
    """Whether no verdict is blocking.

    >>> blessed([])
    True
    """
    return not any(is_blocking(verdict) for verdict in verdicts)


def worst_blocking(verdicts: Iterable[Verdict]) -> Outcome:
    """The worst outcome of a blocking verdict: FAILED before ERROR before INCONCLUSIVE; PASSED when there is none."""
    outcomes = [verdict.outcome for verdict in verdicts if is_blocking(verdict)]
    return max(outcomes, key=SEVERITY.index, default=Outcome.PASSED)


@dataclass
class _FamilyMember:
    """One member of a family during Holm's procedure."""

    spec: GateSpec
    estimate: Estimate
    undecided: int
    outcome: Outcome = Outcome.INCONCLUSIVE

    @property
    def decided(self) -> bool:
        return self.outcome is not Outcome.INCONCLUSIVE

    def assess(self, undecided: int) -> Outcome:
        """The outcome with the interval corrected for ``undecided`` members."""
        try:
            return assess(self.measure(undecided), self.spec.threshold, self.spec.direction)
        except UndefinedMetricError:
            return Outcome.INCONCLUSIVE  # verdict() states the reason

    def measure(self, undecided: int) -> Measurement:
        return self.estimate.at(1 - (1 - self.spec.confidence) / undecided)

    def verdict(self, name: str, undecided: int, size: int) -> Verdict:
        spec = self.spec
        try:
            measurement = self.measure(self.undecided if self.decided else max(undecided, 1))
        except UndefinedMetricError as error:
            return undecided_verdict(spec, Outcome.INCONCLUSIVE, error.message, name)
        message = _message(spec, self.estimate, measurement, self.outcome, name, size)
        return _verdict(spec, self.outcome, message, name, measurement)


def _apply_holm(members: Mapping[str, _FamilyMember], outcome: Outcome) -> int:
    """Set ``outcome`` on all members for which Holm's procedure allows it; return how many it leaves undecided."""
    size = undecided = max((member.undecided for member in members.values()), default=0)
    while undecided:
        decided = [member for member in members.values() if not member.decided and member.assess(undecided) is outcome]
        for member in decided:
            member.outcome, member.undecided = outcome, undecided
        if not decided:
            break
        undecided = max(size - sum(member.outcome is outcome for member in members.values()), 1)
        if all(member.decided for member in members.values()):
            break
    return undecided


def _message(
    spec: GateSpec, estimate: Estimate, measurement: Measurement, outcome: Outcome, slice_name: str, size: int
) -> str:
    is_min = spec.direction == "min"
    value, low, high, threshold = _format_distinct(measurement.value, measurement.low, measurement.high, spec.threshold)
    lower, upper = f"lower bound {low}", f"upper bound {high}"
    near, far = (lower, upper) if is_min else (upper, lower)
    right, wrong, beyond = (">=", "<", "<=") if is_min else ("<=", ">", ">=")
    limit = f"{threshold} (the margin)" if spec.change else f"{spec.direction} {threshold}"
    comparison = {Outcome.PASSED: f"{near} {right} {limit}", Outcome.FAILED: f"{far} {wrong} {limit}"}.get(
        outcome, f"{near} {wrong} {limit} {beyond} {far}"
    )
    unit = f" {estimate.unit}" if estimate.unit else ""
    subject = f"{spec.metric}{' minus champion' if spec.change else ''}"
    where = f" where {slice_name}" if slice_name else ""
    text = f"{subject} {value}{unit} [{low}, {high}] on {estimate.basis}{where}: {comparison}"
    text += f": {outcome}{spec.consequence(outcome)}"
    if size > 1:
        text += f"; interval at {measurement.confidence:.2%}, corrected for {size} {spec.members} (Holm)"
    if outcome is Outcome.INCONCLUSIVE:
        text += f"; {_samples_needed(measurement, spec, 'requests' if unit else 'rows')}"
    return text


def _samples_needed(measurement: Measurement, spec: GateSpec, noun: str) -> str:
    """How many more samples would decide if the value is right: intervals shrink with the root of their number."""
    bounds = (measurement.low, measurement.high) if spec.direction == "min" else (measurement.high, measurement.low)
    gap = measurement.value - spec.threshold
    half = abs(measurement.value - bounds[0 if (gap > 0) == (bounds[0] < measurement.value) else 1])
    if gap == 0 or half == 0 or (half / gap) ** 2 > 100:
        return f"the value is so near the threshold that more {noun} would hardly decide"
    more = measurement.samples * ((half / gap) ** 2 - 1)
    digits = max(len(str(math.ceil(more))) - 2, 0)
    return f"about {math.ceil(more / 10**digits) * 10**digits:,} more {noun} would decide"


def _format_distinct(*values: float) -> list[str]:
    """Three significant digits, or as many as it takes to distinguish different numbers."""
    for digits in range(3, 17):
        texts = [f"{value:.{digits}g}" for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts
