"""Verdicts: an interval is held against a threshold, purely, and the numbers are put into words.

A gate at confidence c looks at the two-sided interval at c. It says PASSED when the whole interval is on the right
side of the threshold, FAILED when the whole interval is on the wrong side, else INCONCLUSIVE. One bound decides, so
either of PASSED and FAILED is said wrongly with probability (1 - c) / 2 at most: 2.5 % at the default of 0.95.

Slices of a gate are one family: the probability of a wrong PASSED (or of a wrong FAILED) anywhere in it is
(1 - c) / 2 at most, by Holm's step-down procedure (Scandinavian Journal of Statistics 1979), carried out on the
intervals: with r slices undecided each is looked at with confidence 1 - (1 - c) / r, until no more are decided.
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
class Question:
    """What a gate asks: is ``metric`` at or above (min), or at or below (max), ``threshold``?

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


def assess(measurement: Measurement, threshold: float, direction: Direction) -> Outcome:
    """Hold an interval against a threshold.

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


def judge(question: Question, estimate: Estimate) -> Verdict:
    """The verdict on one estimate.

    >>> from mlflowkit.judging.stats import wilson
    >>> accuracy = Estimate("accuracy", 0.9, 500, lambda c: wilson(450, 500, c), "Wilson", basis="500 rows")
    >>> judge(Question("accuracy >= 0.85", "accuracy", 0.85, "min"), accuracy).message
    'accuracy 0.9 [0.871, 0.923] on 500 rows: lower bound 0.871 >= min 0.85: PASSED'
    """
    return judge_family(question, {"": estimate})[0]


def judge_family(
    question: Question, estimates: Mapping[str, Estimate], *, size: int | None = None
) -> tuple[Verdict, ...]:
    """One verdict a slice (``column=value``), in the order given, corrected for their number (Holm).

    ``size`` is the number corrected for where it is larger: members that were to be judged and had no estimate.
    """
    size = max(size or 0, len(estimates))
    made = {name: _Judged(question, estimate, size) for name, estimate in estimates.items()}
    pending = _holm(made, Outcome.PASSED)
    pending = max(pending, _holm({name: one for name, one in made.items() if not one.decided}, Outcome.FAILED))
    return tuple(one.verdict(name, pending, size) for name, one in made.items())


def no_answer(question: Question, outcome: Outcome, why: str, slice_name: str = "") -> Verdict:
    """A verdict without a measurement: INCONCLUSIVE where the rows cannot say, ERROR where something is broken,
    PASSED where there is nothing to compare with."""
    where = f" ({slice_name})" if slice_name else ""
    return Verdict(
        gate=question.gate,
        outcome=outcome,
        message=f"{question.metric}{where}: {why}: {outcome}{_consequence(question, outcome)}",
        metric=question.metric,
        threshold=question.threshold,
        direction=question.direction,
        blocking=_blocking(question, outcome),
        slice=slice_name,
        change=question.change,
    )


def bars(verdict: Verdict) -> bool:
    """Whether this verdict keeps a bundle from being blessed."""
    return verdict.blocking and verdict.outcome is not Outcome.PASSED


def blessed(verdicts: Iterable[Verdict]) -> bool:
    """Whether no verdict bars the way.

    >>> blessed([])
    True
    """
    return not any(bars(verdict) for verdict in verdicts)


def worst(verdicts: Iterable[Verdict]) -> Outcome:
    """The worst outcome that bars the way: FAILED before ERROR before INCONCLUSIVE; PASSED when none does."""
    outcomes = [verdict.outcome for verdict in verdicts if bars(verdict)]
    return max(outcomes, key=SEVERITY.index, default=Outcome.PASSED)


def _blocking(question: Question, outcome: Outcome) -> bool:
    allowed = question.allow_inconclusive and outcome is Outcome.INCONCLUSIVE
    return not (question.dry_run or allowed)


def _consequence(question: Question, outcome: Outcome) -> str:
    if outcome is Outcome.PASSED:
        return ""
    if question.dry_run:
        return " (dry run: reported only)"
    return " (allowed by the gate)" if not _blocking(question, outcome) else ""


class _Judged:
    """One member of a family while Holm's procedure runs."""

    def __init__(self, question: Question, estimate: Estimate, size: int) -> None:
        self.question = question
        self.estimate = estimate
        self.outcome = Outcome.INCONCLUSIVE
        self.pending = size

    @property
    def decided(self) -> bool:
        return self.outcome is not Outcome.INCONCLUSIVE

    def look(self, pending: int) -> Outcome:
        """The outcome with the interval corrected for ``pending`` members."""
        try:
            return assess(self.measure(pending), self.question.threshold, self.question.direction)
        except UndefinedMetricError:
            return Outcome.INCONCLUSIVE  # verdict() puts the reason into words

    def measure(self, pending: int) -> Measurement:
        return self.estimate.at(1 - (1 - self.question.confidence) / pending)

    def verdict(self, name: str, pending: int, size: int) -> Verdict:
        question = self.question
        try:
            measurement = self.measure(self.pending if self.decided else max(pending, 1))
        except UndefinedMetricError as error:
            return no_answer(question, Outcome.INCONCLUSIVE, error.message, name)
        return Verdict(
            gate=question.gate,
            outcome=self.outcome,
            message=_in_words(question, self.estimate, measurement, self.outcome, name, size),
            metric=question.metric,
            measurement=measurement,
            threshold=question.threshold,
            direction=question.direction,
            blocking=_blocking(question, self.outcome),
            slice=name,
            change=question.change,
        )


def _holm(members: Mapping[str, _Judged], outcome: Outcome) -> int:
    """Decide for ``outcome`` whoever Holm's procedure allows; returns how many are left undecided by it."""
    size = pending = max((member.pending for member in members.values()), default=0)
    while pending:
        found = [one for one in members.values() if not one.decided and one.look(pending) is outcome]
        for one in found:
            one.outcome, one.pending = outcome, pending
        if not found:
            break
        pending = max(size - sum(one.outcome is outcome for one in members.values()), 1)
        if all(one.decided for one in members.values()):
            break
    return pending


def _in_words(
    question: Question, estimate: Estimate, measurement: Measurement, outcome: Outcome, name: str, size: int
) -> str:
    lower = question.direction == "min"
    bound, other = (measurement.low, measurement.high) if lower else (measurement.high, measurement.low)
    shown = _numbers(measurement.value, measurement.low, measurement.high, question.threshold)
    value, low, high, threshold = shown
    near, far = (
        (f"lower bound {low}", f"upper bound {high}") if lower else (f"upper bound {high}", f"lower bound {low}")
    )
    right, wrong, beyond = (">=", "<", "<=") if lower else ("<=", ">", ">=")
    limit = f"{threshold} (the margin)" if question.change else f"{question.direction} {threshold}"
    unit = f" {estimate.unit}" if estimate.unit else ""
    subject = f"{question.metric}{' minus champion' if question.change else ''}"
    where = f" where {name}" if name else ""
    text = f"{subject} {value}{unit} [{low}, {high}] on {estimate.basis}{where}: "
    if outcome is Outcome.PASSED:
        text += f"{near} {right} {limit}"
    elif outcome is Outcome.FAILED:
        text += f"{far} {wrong} {limit}"
    else:
        text += f"{near} {wrong} {limit} {beyond} {far}"
    text += f": {outcome}{_consequence(question, outcome)}"
    if size > 1:
        text += f"; interval at {measurement.confidence:.2%}, corrected for {size} slices (Holm)"
    if outcome is Outcome.INCONCLUSIVE:
        text += f"; {_wanted(measurement, question.threshold, bound, other, 'requests' if unit else 'rows')}"
    return text


def _wanted(measurement: Measurement, threshold: float, bound: float, other: float, things: str) -> str:
    """How many more rows would decide, were the value what it seems: intervals shrink with the root of their number."""
    gap = measurement.value - threshold
    half = abs(measurement.value - (bound if (gap > 0) == (bound < measurement.value) else other))
    if gap == 0 or half == 0 or (half / gap) ** 2 > 100:
        return f"the value is so near the threshold that more {things} would hardly decide"
    more = measurement.samples * ((half / gap) ** 2 - 1)
    digits = max(len(str(math.ceil(more))) - 2, 0)
    return f"about {math.ceil(more / 10**digits) * 10**digits:,} more {things} would decide"


def _numbers(*values: float) -> list[str]:
    """Numbers in three significant digits, or as many as it takes to tell different ones apart."""
    for digits in range(3, 17):
        texts = [f"{value:.{digits}g}" for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts
