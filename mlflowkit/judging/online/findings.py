"""From what the limits of a question said to its finding: the outcome, the interval that is shown, the words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from mlflowkit.judging.online.questions import Finding, Limit, Question, Reading, Task
from mlflowkit.values import Measurement, Outcome, Verdict

IN_A_ROW = 3
"""Measurements in a row that decide on a metric that is measured elsewhere."""


_MORE_IS_BETTER = ("accuracy", "agreement")

BEYOND = 1000.0
"""An end of an interval that is so many times larger than what it is about says that little was seen, and no more."""


def finding(question: Question, tasks: Sequence[Task], readings: Sequence[Reading]) -> Finding:
    """The question fails where one limit does, and passes where all do."""
    harms = [max(one.harm, 0.0) / math.log(1 / task.harm_level) for task, one in zip(tasks, readings, strict=True)]
    proofs = [max(one.proof, 0.0) / math.log(1 / task.proof_level) for task, one in zip(tasks, readings, strict=True)]
    harm, proof = max(harms), min(proofs)
    outcome = Outcome.FAILED if harm >= 1 else Outcome.PASSED if proof >= 1 else Outcome.INCONCLUSIVE
    reading = readings[harms.index(harm) if harm >= 1 else proofs.index(proof)]
    direction, threshold = _threshold(question, reading.limit)
    measurement = _cut(reading.measurement, outcome, direction, threshold)
    verdict = Verdict(
        gate=question.name,
        outcome=outcome,
        message=_message(replace(reading, measurement=measurement), outcome, direction),
        metric=question.metric,
        measurement=None if math.isnan(measurement.value) else measurement,
        threshold=threshold,
        direction=direction,
        slice=reading.slice,
        change=reading.limit.kind in ("margin", "ratio"),
    )
    return Finding(question.name, verdict, harm, proof, reading.samples)


def measured_elsewhere(question: Question) -> Finding:
    """A Prometheus query: no statistics, no level. `IN_A_ROW` measurements beyond a bound fail, as many within pass."""
    last = question.measured[-IN_A_ROW:]
    low = -math.inf if question.min is None else question.min
    high = math.inf if question.max is None else question.max
    beyond = _run(question.measured, lambda value: not low <= value <= high)
    within = _run(question.measured, lambda value: low <= value <= high)
    outcome = Outcome.FAILED if beyond >= IN_A_ROW else Outcome.PASSED if within >= IN_A_ROW else Outcome.INCONCLUSIVE
    limits = " and ".join(f"{name} {_short(value)}" for name, value in _bounds(question))
    if not last or math.isnan(last[-1]):
        text = f"{question.name}: no measurement"
    elif beyond:
        text = f"{question.name} {_short(last[-1])} beyond {limits}, {beyond} in a row (failed from {IN_A_ROW} on)"
    else:
        text = f"{question.name} {_short(last[-1])} within {limits}, {within} in a row (passed from {IN_A_ROW} on)"
    verdict = Verdict(
        gate=question.name,
        outcome=outcome,
        message=f"{text}: {outcome}",
        metric=question.metric,
        threshold=_bounds(question)[0][1] if _bounds(question) else None,
        direction=_bounds(question)[0][0] if _bounds(question) else "max",
    )
    return Finding(question.name, verdict, beyond / IN_A_ROW, within / IN_A_ROW, (0, len(question.measured)))


def _bounds(question: Question) -> list[tuple[Literal["min", "max"], float]]:
    found: list[tuple[Literal["min", "max"], float]] = []
    if question.min is not None:
        found.append(("min", question.min))
    if question.max is not None:
        found.append(("max", question.max))
    return found


def _run(values: Sequence[float], holds: Callable[[float], bool]) -> int:
    """How many of the newest values in a row are numbers for which it holds."""
    length = 0
    for value in reversed(values):
        if math.isnan(value) or not holds(value):
            break
        length += 1
    return length


def _cut(measurement: Measurement, outcome: Outcome, direction: str, threshold: float) -> Measurement:
    """The interval without what the decision excludes: the e-process that decided has seen more than the interval.

    Not where a failure is past, and the measurement is within its limit again.
    """
    if math.isnan(measurement.value) or outcome is Outcome.INCONCLUSIVE:
        return measurement
    above = (outcome is Outcome.FAILED) == (direction == "max")
    if (measurement.value < threshold) if above else (measurement.value > threshold):
        return measurement
    if above:
        low = max(measurement.low, threshold)
        return replace(measurement, low=low, high=max(measurement.high, low))
    high = min(measurement.high, threshold)
    return replace(measurement, low=min(measurement.low, high), high=high)


def _threshold(question: Question, limit: Limit) -> tuple[Literal["min", "max"], float]:
    """What the measurement is held against, in the metric's own direction."""
    if limit.kind in ("min", "max"):
        return ("min" if limit.kind == "min" else "max"), limit.value
    if question.metric in _MORE_IS_BETTER:
        return "min", -limit.value
    return "max", limit.value


def _message(reading: Reading, outcome: Outcome, direction: str) -> str:
    """The numbers in words, as the gates put them."""
    measurement, limit = reading.measurement, reading.limit
    first, second = reading.samples
    where = f" where {reading.slice}" if reading.slice else ""
    things = "requests" if measurement.name == "error_rate" or measurement.name.startswith("latency_") else "rows"
    counts = f"{second:,}/{first:,} {things}" if limit.kind in ("margin", "ratio") else f"{second:,} {things}"
    if math.isnan(measurement.value):
        return f"{measurement.name}{where}: too little seen yet, {counts}: {outcome}"
    unit = f" {measurement.unit}" if measurement.unit else ""
    plus = "+" if limit.kind == "margin" else ""
    low, high = told_ends(measurement.value, measurement.low, measurement.high, limit.value, measurement.unit)
    shown = f"{measurement.value + 0.0:{plus}.3g}{unit} {_interval(low, high)}"
    worse, better = ("<", ">=") if direction == "min" else (">", "<=")
    sign = {Outcome.FAILED: worse, Outcome.PASSED: better}.get(outcome, "undecided against")
    minus = "-" if direction == "min" and limit.kind == "margin" and limit.value else ""
    return (
        f"{measurement.name} {shown}{where} {sign} {limit.kind} {minus}{_short(limit.value)} after {counts}: {outcome}"
    )


def told_ends(
    value: float, low: float | None, high: float | None, threshold: float | None, unit: str = ""
) -> tuple[float | None, float | None]:
    """The ends of an interval that are worth telling a person; None for one that is infinite or absurdly far away.

    A latency quantile of a few requests is bounded by the ends of the histogram only.

    >>> told_ends(0.48, 0.09, 2.18e6, 2.0, "x")
    (0.09, None)
    """
    far = BEYOND * max(1.0, abs(value), abs(threshold or 0.0))
    near = 1 / BEYOND if unit == "x" else -far
    return (
        low if low is not None and low >= near else None,
        high if high is not None and high <= far else None,
    )


def _interval(low: float | None, high: float | None) -> str:
    """An interval in words; an end that is None is left out."""
    if low is not None and high is not None:
        return f"[{_short(low)}, {_short(high)}]"
    if low is not None:
        return f"(at least {_short(low)})"
    return "(no bounds yet)" if high is None else f"(at most {_short(high)})"


def _short(value: float) -> str:
    """A number in three digits; adding 0 makes minus zero zero."""
    return f"{value + 0.0:.3g}"
