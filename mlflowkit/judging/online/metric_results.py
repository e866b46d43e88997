"""Combines the results of a metric's limits into one result: outcome, displayed interval, message."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mlflowkit.judging.online.metric_specs import Limit, LimitTask, MetricSpec
from mlflowkit.values import Json, Measurement, Outcome, Verdict

CONSECUTIVE_MEASUREMENTS = 3
"""Consecutive Prometheus measurements that decide."""
FAR_BOUND_FACTOR = 1000.0
"""A bound further away than this multiple of the value or threshold is not displayed: there are too few samples yet."""
_SHARES = ("error_rate", "accuracy", "agreement", "prediction_drift")
_MORE_IS_BETTER = ("accuracy", "agreement", "kappa")


@dataclass(frozen=True, slots=True)
class MetricResult:
    """The result of one metric at one look.

    verdict             FAILED: shown to be worse than allowed. PASSED: shown not to be. INCONCLUSIVE: neither yet. Its
                        measurement is the difference (challenger minus champion; the ratio of a ratio limit; the value
                        itself of min and max) with its confidence sequence, of the limit that decides; None at first
    evidence_worse      evidence that the metric is worse than allowed, as a share of what the level requires: FAILED
                        from 1 on
    evidence_not_worse  evidence that it is not, on the same scale: PASSED from 1 on
    samples             observations of the champion and of the challenger
    """

    name: str
    verdict: Verdict
    evidence_worse: float
    evidence_not_worse: float
    samples: tuple[int, int]


@dataclass(frozen=True, slots=True)
class LimitResult:
    """The result of one limit: log evidence that it is violated (the largest so far) and that it holds, the estimate,
    and the trace to keep for the next look."""

    limit: Limit
    evidence_worse: float
    evidence_not_worse: float
    measurement: Measurement
    samples: tuple[int, int]
    trace: Mapping[str, Json]
    slice: str = ""


def combine_limits(spec: MetricSpec, tasks: Sequence[LimitTask], results: Sequence[LimitResult]) -> MetricResult:
    """FAILED where any limit failed, PASSED where all limits passed."""
    pairs = list(zip(tasks, results, strict=True))
    worse = [max(result.evidence_worse, 0.0) / math.log(1 / task.worse_level) for task, result in pairs]
    not_worse = [max(result.evidence_not_worse, 0.0) / math.log(1 / task.not_worse_level) for task, result in pairs]
    most_worse, least_not_worse = max(worse), min(not_worse)
    failed = most_worse >= 1
    outcome = Outcome.FAILED if failed else Outcome.PASSED if least_not_worse >= 1 else Outcome.INCONCLUSIVE
    decisive = results[worse.index(most_worse) if failed else not_worse.index(least_not_worse)]
    direction, threshold = _threshold(spec, decisive.limit)
    measurement = _truncate(decisive.measurement, outcome, direction, threshold)
    verdict = Verdict(
        gate=spec.name,
        outcome=outcome,
        message=_message(replace(decisive, measurement=measurement), outcome, direction)
        + (_few_keys(tasks[0]) if outcome is Outcome.INCONCLUSIVE else ""),
        metric=spec.metric,
        measurement=None if math.isnan(measurement.value) else measurement,
        threshold=threshold,
        direction=direction,
        slice=decisive.slice,
        change=decisive.limit.kind in ("margin", "ratio"),
    )
    return MetricResult(spec.name, verdict, most_worse, least_not_worse, decisive.samples)


def judge_prometheus(spec: MetricSpec) -> MetricResult:
    """Judge a Prometheus query without statistics: `CONSECUTIVE_MEASUREMENTS` beyond a bound fail, within it pass."""
    low = -math.inf if spec.min is None else spec.min
    high = math.inf if spec.max is None else spec.max
    beyond = _streak(spec.measured, lambda value: not low <= value <= high)
    within = _streak(spec.measured, lambda value: low <= value <= high)
    required = CONSECUTIVE_MEASUREMENTS
    outcome = Outcome.FAILED if beyond >= required else Outcome.PASSED if within >= required else Outcome.INCONCLUSIVE
    bounds: list[tuple[Literal["min", "max"], float]] = []
    if spec.min is not None:
        bounds.append(("min", spec.min))
    if spec.max is not None:
        bounds.append(("max", spec.max))
    limits = " and ".join(f"{kind} {_short(value)}" for kind, value in bounds)
    last = spec.measured[-1] if spec.measured else math.nan
    if math.isnan(last):
        text = f"{spec.name}: no measurement"
    elif beyond:
        text = f"{spec.name} {_short(last)} beyond {limits}, {beyond} in a row (failed from {required} on)"
    else:
        text = f"{spec.name} {_short(last)} within {limits}, {within} in a row (passed from {required} on)"
    verdict = Verdict(
        gate=spec.name,
        outcome=outcome,
        message=f"{text}: {outcome}",
        metric=spec.metric,
        threshold=bounds[0][1] if bounds else None,
        direction=bounds[0][0] if bounds else "max",
    )
    return MetricResult(spec.name, verdict, beyond / required, within / required, (0, len(spec.measured)))


def _streak(values: Sequence[float], holds: Callable[[float], bool]) -> int:
    """How many of the newest consecutive values are numbers for which ``holds`` is true."""
    length = 0
    for value in reversed(values):
        if math.isnan(value) or not holds(value):
            break
        length += 1
    return length


def _truncate(measurement: Measurement, outcome: Outcome, direction: str, threshold: float) -> Measurement:
    """The interval without the side that the decision excludes (the deciding e-process is sharper than the interval);
    unchanged where a past failure stands and the value is within its limit again."""
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


def _threshold(spec: MetricSpec, limit: Limit) -> tuple[Literal["min", "max"], float]:
    """The threshold of a limit, in the metric's own direction."""
    if limit.kind in ("min", "max"):
        return ("min" if limit.kind == "min" else "max"), limit.value
    return ("min", -limit.value) if spec.metric in _MORE_IS_BETTER else ("max", limit.value)


def _message(result: LimitResult, outcome: Outcome, direction: str) -> str:
    measurement, limit = result.measurement, result.limit
    first, second = result.samples
    where = f" where {result.slice}" if result.slice else ""
    noun = "requests" if measurement.name == "error_rate" or measurement.name.startswith("latency_") else "rows"
    counts = f"{second:,}/{first:,} {noun}" if limit.kind in ("margin", "ratio") else f"{second:,} {noun}"
    if math.isnan(measurement.value):
        return f"{measurement.name}{where}: too few samples yet, {counts}: {outcome}"
    unit = f" {measurement.unit}" if measurement.unit else ""
    plus = "+" if limit.kind == "margin" else ""
    possible = possible_bounds(measurement.name, limit.kind == "margin", measurement.low, measurement.high)
    bounds = displayable_bounds(measurement.value, *possible, limit.value, measurement.unit)
    estimate = f"{measurement.value + 0.0:{plus}.3g}{unit} {_interval(*bounds)}"
    worse, better = ("<", ">=") if direction == "min" else (">", "<=")
    sign = {Outcome.FAILED: worse, Outcome.PASSED: better}.get(outcome, "undecided against")
    minus = "-" if direction == "min" and limit.kind == "margin" and limit.value else ""
    threshold = f"{limit.kind} {minus}{_short(limit.value)}"
    return f"{measurement.name} {estimate}{where} {sign} {threshold} after {counts}: {outcome}"


def _few_keys(task: LimitTask) -> str:
    """What the challenger's requests are worth where few affinity keys carry them; "" where they do not."""
    if task.spec.metric == "error_rate" or task.spec.metric.startswith("latency_"):
        return ""
    sketches = [challenger.keys for _, _, challenger in task.arms]
    requests = sum(sketch.requests for sketch in sketches)
    effective = sum(sketch.effective(sketch.requests) for sketch in sketches)
    if requests < 2 * effective or not requests:
        return ""
    return f"; few affinity keys carry the traffic: {requests:,} requests are worth about {max(effective, 1):,.0f}"


def possible_bounds(
    metric: str, difference: bool, low: float | None, high: float | None
) -> tuple[float | None, float | None]:
    """The bounds of a metric, or of a ``difference`` of two of its values, without what is impossible; None is endless.

    The confidence sequence of a few samples may exceed what a metric can be.

    >>> possible_bounds("agreement", False, 0.894, 1.11), possible_bounds("error_rate", True, 0.01, 5.58)
    ((0.894, 1.0), (0.01, 1.0))
    >>> possible_bounds("log_loss", False, -0.2, None)
    (0.0, None)
    """
    least, most = -math.inf if difference else 0.0, math.inf
    if metric in _SHARES:
        least, most = -1.0 if difference else 0.0, 1.0
    elif metric == "kappa":
        least, most = -1.0, 1.0
    lower, upper = max(-math.inf if low is None else low, least), min(math.inf if high is None else high, most)
    return (lower if math.isfinite(lower) else None, upper if math.isfinite(upper) else None)


def displayable_bounds(
    value: float, low: float | None, high: float | None, threshold: float | None, unit: str = ""
) -> tuple[float | None, float | None]:
    """The bounds of an interval that inform a reader; None for one that is infinite or absurdly far away.

    A latency quantile of a few requests is bounded by the ends of the histogram only.

    >>> displayable_bounds(0.48, 0.09, 2.18e6, 2.0, "x")
    (0.09, None)
    """
    far = FAR_BOUND_FACTOR * max(1.0, abs(value), abs(threshold or 0.0))
    near = 1 / FAR_BOUND_FACTOR if unit == "x" else -far
    return (low if low is not None and low >= near else None, high if high is not None and high <= far else None)


def _interval(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"[{_short(low)}, {_short(high)}]"
    if low is not None:
        return f"(at least {_short(low)})"
    return "(no bounds yet)" if high is None else f"(at most {_short(high)})"


def _short(value: float) -> str:
    """Three significant digits, all of a large number's; adding 0 turns -0.0 into 0.0.

    >>> _short(1000.0), _short(0.12345), _short(-0.0)
    ('1,000', '0.123', '0')
    """
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value + 0.0:.3g}"
