"""Judges a challenger against the concurrent champion, valid at any look. Counts in, results out; no clock, no I/O.

Guarantees, over all looks and any stopping rule:

- A challenger within all its limits gets FAILED on any of them with probability at most ``level``: the level is split
  equally among the metrics, and among the limits of a metric.
- A challenger beyond some limit gets PASSED on all of them with probability at most ``level``: each limit is tested at
  the whole level, as every limit must pass.

Rates (error_rate, accuracy, agreement) are judged by exact e-processes, latency quantiles by e-processes that are exact
within an epoch up to the width of a bin, other means asymptotically; see `mlflowkit.judging.online.sequential`.

A metric without any limit has a margin of 0: FAILED means shown to be worse than the champion, PASSED shown to be
better, as in an A/B test. FAILED is final. PASSED reflects the evidence so far and is withdrawn when it weakens.

A request is one observation of quality, agreement and predictions: the mean over its rows. Requests are assumed
independent, but for those of one affinity key: evidence for FAILED counts these as if they were alike (see
`mlflowkit.judging.online.key_sketch`), except of error_rate and latency. Evidence for PASSED does not: where few keys
carry the traffic, set a margin larger than what they can shift.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mlflowkit.judging.online import sequential
from mlflowkit.judging.online.chance import judge_kappa
from mlflowkit.judging.online.drift import judge_drift
from mlflowkit.judging.online.evidence import Evidence, VariantCounts
from mlflowkit.judging.online.latency import judge_latency
from mlflowkit.judging.online.means import judge_mean
from mlflowkit.judging.online.metric_results import LimitResult, MetricResult, combine_limits, judge_prometheus
from mlflowkit.judging.online.metric_specs import LimitTask, MetricSpec, limits_of
from mlflowkit.judging.online.rates import judge_agreement, judge_rate
from mlflowkit.values import Json

__all__ = ["MetricResult", "MetricSpec", "judge"]

METHODS: Mapping[str, Callable[[LimitTask], LimitResult]] = {
    "error_rate": judge_rate,
    "accuracy": judge_rate,
    "agreement": judge_agreement,
    "kappa": judge_kappa,
    "log_loss": judge_mean,
    "absolute_error": judge_mean,
    "squared_error": judge_mean,
    "prediction_drift": judge_drift,
    "latency_p50_ms": judge_latency,
    "latency_p90_ms": judge_latency,
    "latency_p95_ms": judge_latency,
    "latency_p99_ms": judge_latency,
}
"""The test of each metric; those of Prometheus go to `judge_prometheus`."""


def judge(
    specs: Sequence[MetricSpec],
    evidence: Evidence,
    *,
    champion: str,
    challenger: str,
    epochs: Sequence[int],
    level: float,
    traces: Mapping[str, Json],
) -> tuple[tuple[MetricResult, ...], Mapping[str, Json]]:
    """Judge each metric, and return the results in the order of ``specs`` and the traces for the next look.

    Args:
        epochs: Routing tables of this rollout under which both variants were measured, oldest first. Counts of
            different epochs are never pooled as one sample.
        level: Bound on the probability that any metric FAILED for a challenger within its limits, over all looks.
        traces: State of the tests between looks, by metric name; JSON, {} at the first look.
    """
    no_counts = VariantCounts()
    arms = []
    for epoch in epochs:
        variants = evidence.epochs.get(epoch, {})
        arms.append((epoch, variants.get(champion, no_counts), variants.get(challenger, no_counts)))
    tested = sum(spec.metric != "prometheus" for spec in specs)
    metric_results, next_traces = [], {}
    histograms: dict[int, sequential.Array] = {}
    for spec in specs:
        if spec.metric == "prometheus":
            metric_results.append(judge_prometheus(spec))
            continue
        limits = limits_of(spec)
        trace = traces.get(spec.name, {})
        share = level / tested / len(limits)
        tasks = [LimitTask(spec, limit, arms, trace.get(limit.kind, {}), share, level, histograms) for limit in limits]
        results = [METHODS[spec.metric](task) for task in tasks]
        metric_results.append(combine_limits(spec, tasks, results))
        next_traces[spec.name] = {task.limit.kind: result.trace for task, result in zip(tasks, results, strict=True)}
    return tuple(metric_results), next_traces
