"""Evidence of a rollout whose truth is plain, and the judges looking at it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlflowkit.judging.online.evidence import Evidence, Moments, VariantCounts, latency_bin
from mlflowkit.judging.online.judge import MetricResult, MetricSpec, judge
from mlflowkit.values import Outcome

Arms = tuple[VariantCounts, VariantCounts]
ERRORS = MetricSpec("errors", "error_rate", margin=0.005)
FAILED, PASSED, INCONCLUSIVE = Outcome.FAILED, Outcome.PASSED, Outcome.INCONCLUSIVE


def look(
    specs: Sequence[MetricSpec], epochs: Mapping[int, Arms], traces: Mapping[str, Any], level: float = 0.05
) -> tuple[tuple[MetricResult, ...], Mapping[str, Any]]:
    """One look; traces go through JSON, as a controller keeps them."""
    evidence = Evidence("e", {epoch: {"champion": one, "challenger": two} for epoch, (one, two) in epochs.items()})
    results, after = judge(
        specs,
        evidence,
        champion="champion",
        challenger="challenger",
        epochs=sorted(epochs),
        level=level,
        traces=json.loads(json.dumps(traces, allow_nan=False)),
    )
    return results, after


def looks(spec: MetricSpec, epochs: Sequence[Arms], blocks: int = 20, level: float = 0.05) -> MetricResult:
    """The result after each epoch's counts came in evenly, in ``blocks`` looks."""
    seen: dict[int, Arms] = {}
    traces: Mapping[str, Any] = {}
    result = None
    for epoch, arms in enumerate(epochs):
        seen[epoch] = (VariantCounts(), VariantCounts())
        for _ in range(blocks):
            seen[epoch] = (seen[epoch][0] + arms[0], seen[epoch][1] + arms[1])
            (result,), traces = look([spec], seen, traces, level)
    assert result is not None
    return result


def failing(requests: int, errors: int) -> VariantCounts:
    return VariantCounts(requests, errors, requests)


def graded(metric: str, count: int, mean: float, spread: float = 0.0) -> VariantCounts:
    moments = Moments(count, count * mean, count * (mean * mean + spread * spread))
    return VariantCounts(count, 0, count, quality={metric: moments})


def right(count: int, share: float) -> VariantCounts:
    return graded("accuracy", count, share, math.sqrt(share * (1 - share)))


def slow(count: int, milliseconds: float) -> VariantCounts:
    """Latencies in even steps from a half to one and a half of it."""
    latency: dict[int, int] = {}
    for index in range(count):
        place = latency_bin(milliseconds / 1000 * (0.5 + (index + 0.5) / count))
        latency[place] = latency.get(place, 0) + 1
    return VariantCounts(count, 0, count, latency)


def predicting(rows: int, requests: int | None = None, **shares: float) -> VariantCounts:
    counts = {name.replace("_", ":"): round(rows * share) for name, share in shares.items()}
    return VariantCounts(rows if requests is None else requests, 0, rows, predictions=counts)


def agreeing(count: int, **slices: float) -> VariantCounts:
    """A shadow's rows, evenly divided among slices ``column=value``, that agree with the champion as often as said."""
    each = count / len(slices)
    found = {name.replace("_", "="): Moments(round(each), each * share, each * share) for name, share in slices.items()}
    same = sum(moments.total for moments in found.values())
    return VariantCounts(rows=count, mirrored=count, agreement={"": Moments(count, same, same), **found})


WORSE: Mapping[str, tuple[MetricSpec, Arms]] = {
    "error_rate": (ERRORS, (failing(950, 9), failing(50, 4))),
    "error_rate, no margin": (MetricSpec("q", "error_rate"), (failing(950, 9), failing(50, 2))),
    "error_rate max": (MetricSpec("q", "error_rate", max=0.02), (failing(950, 9), failing(50, 3))),
    "accuracy": (MetricSpec("q", "accuracy", margin=0.02), (right(950, 0.9), right(50, 0.8))),
    "accuracy min": (MetricSpec("q", "accuracy", min=0.85), (right(950, 0.9), right(50, 0.74))),
    "log_loss": (
        MetricSpec("q", "log_loss", margin=0.02),
        (graded("log_loss", 950, 0.4, 0.3), graded("log_loss", 50, 0.6, 0.3)),
    ),
    "squared_error max": (
        MetricSpec("q", "squared_error", max=1.0),
        (graded("squared_error", 950, 1.0, 2.0), graded("squared_error", 50, 2.0, 2.0)),
    ),
    "latency ratio": (MetricSpec("q", "latency_p99_ms", ratio=1.2), (slow(950, 10), slow(50, 16))),
    "latency margin": (MetricSpec("q", "latency_p50_ms", margin=2), (slow(950, 10), slow(50, 16))),
    "latency max": (MetricSpec("q", "latency_p95_ms", max=18), (slow(950, 10), slow(50, 16))),
    "labels": (
        MetricSpec("q", "prediction_drift", max=0.1),
        (predicting(900, label_bad=0.1, label_good=0.9), predicting(50, label_bad=0.4, label_good=0.6)),
    ),
    "scores": (
        MetricSpec("q", "prediction_drift", max=0.1),
        (predicting(900, score_9=0.5, score_10=0.5), predicting(50, score_9=0.1, score_10=0.3, score_40=0.6)),
    ),
    "agreement": (MetricSpec("q", "agreement", min=0.95), (VariantCounts(950), agreeing(50, city_a=0.8))),
}

AS_GOOD: Mapping[str, tuple[MetricSpec, Arms]] = {
    "error_rate": (MetricSpec("q", "error_rate", margin=0.02), (failing(4000, 40), failing(200, 2))),
    "error_rate, no margin": (MetricSpec("q", "error_rate"), (failing(4000, 120), failing(200, 1))),
    "error_rate max": (MetricSpec("q", "error_rate", max=0.05), (failing(950, 9), failing(100, 1))),
    "accuracy": (MetricSpec("q", "accuracy", margin=0.05), (right(4000, 0.9), right(200, 0.9))),
    "log_loss": (
        MetricSpec("q", "log_loss", margin=0.1),
        (graded("log_loss", 950, 0.4, 0.3), graded("log_loss", 50, 0.4, 0.3)),
    ),
    "latency ratio": (MetricSpec("q", "latency_p99_ms", ratio=1.5), (slow(4000, 10), slow(200, 10))),
    "latency max": (MetricSpec("q", "latency_p99_ms", max=20), (slow(950, 10), slow(100, 10))),
    "labels": (
        MetricSpec("q", "prediction_drift", max=0.2),
        (predicting(4000, label_bad=0.1, label_good=0.9), predicting(200, label_bad=0.1, label_good=0.9)),
    ),
    "agreement": (MetricSpec("q", "agreement", min=0.9), (VariantCounts(950), agreeing(100, city_a=0.99))),
}
