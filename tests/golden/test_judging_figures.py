"""Figures of the judges for fixed evidence, to six digits: values, intervals, messages, and the traces that are kept.

Their error rates are shown in tests/property; here no figure changes unseen, nor a key of a trace on disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlflowkit.judging import gates, metrics
from mlflowkit.judging.gates import GateSpec
from mlflowkit.judging.metrics import LabelledPredictions, estimate, latency
from mlflowkit.judging.online.evidence import VariantCounts
from mlflowkit.judging.online.judge import MetricSpec
from mlflowkit.judging.paired_metrics import difference
from mlflowkit.judging.stats import Estimate, UndefinedMetricError
from tests.support.golden import Golden
from tests.support.online_evidence import (
    AS_GOOD,
    WORSE,
    Arms,
    agreeing,
    failing,
    graded,
    look,
    predicting,
    right,
    slow,
)


def rounded(value: Any) -> Any:
    """Floats to six digits."""
    if isinstance(value, Mapping):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value + 0.0:.6g}")
    return value


def classified(rows: int, classes: int, seed: int, skill: float, base: float = 0.5) -> LabelledPredictions:
    """Rows with tied scores, by inversion of a low-discrepancy sequence: the same on every machine."""
    place = np.arange(rows)
    actual = (place * 0.6180339887 % 1 < base).astype(int) if classes == 2 else (place * 7 + place // 5) % classes
    noise = np.stack([np.sin(12.9898 * (place + 1) * (column + seed)) for column in range(classes)], axis=1)
    logits = skill * np.eye(classes)[actual] + 1.3 * noise
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = np.round(scores * 20 + 0.5)
    scores /= scores.sum(axis=1, keepdims=True)
    return LabelledPredictions("classification", actual, scores.argmax(axis=1), scores)


def regressed(rows: int, seed: int, noise: float) -> LabelledPredictions:
    place = np.arange(rows)
    actual = np.sin(place * 1.7) * 3 + place * 0.02
    error = noise * np.exp(np.sin(78.233 * (place + 1) * seed)) - noise
    return LabelledPredictions("regression", actual, actual + error)


def exact(answers: LabelledPredictions) -> LabelledPredictions:
    scores = None if answers.scores is None else 0.9 * np.eye(answers.classes)[answers.actual] + 0.1 / answers.classes
    return LabelledPredictions(answers.task, answers.actual, answers.actual, scores)


SAMPLES = {
    "binary": (classified(83, 2, 1, 1.6), classified(83, 2, 4, 1.1)),
    "rare": (classified(120, 2, 2, 2.0, base=0.05), classified(120, 2, 5, 1.2, base=0.05)),
    "three": (classified(97, 3, 1, 1.4), classified(97, 3, 6, 1.0)),
    "regression": (regressed(71, 1, 0.4), regressed(71, 3, 0.5)),
    "exact binary": (exact(classified(40, 2, 1, 1.6)), classified(40, 2, 4, 1.1)),
    "exact three": (exact(classified(40, 3, 1, 1.6)), classified(40, 3, 4, 1.1)),
    "exact regression": (exact(regressed(30, 1, 0.4)), regressed(30, 3, 0.5)),
    "two rows": (classified(2, 2, 1, 1.6), classified(2, 2, 4, 1.1)),
    "one class": (classified(20, 2, 1, 1.6, base=0.0), classified(20, 2, 4, 1.1, base=0.0)),
}


def line(title: str, make: Any) -> str:
    try:
        figure: Estimate = make()
        wide, narrow = figure.at(0.95), figure.at(0.8)
    except UndefinedMetricError as error:
        return f"{title}: undefined: {error.message}"
    bounds = f"95 % [{wide.low:.6g}, {wide.high:.6g}], 80 % [{narrow.low:.6g}, {narrow.high:.6g}]"
    unit = f" {figure.unit}" if figure.unit else ""
    return f"{title} {figure.name} {figure.value:.6g}{unit} {bounds}, {figure.samples}, {figure.method}, {figure.basis}"


def test_estimates_and_paired_differences(golden: Golden) -> None:
    lines = []
    for title, (candidate, champion) in SAMPLES.items():
        for name in metrics.metrics_of(candidate.task, candidate.classes):
            lines.append(line(f"{title}, {name}", lambda c=candidate, n=name: estimate(n, c)))
            lines.append(line(f"{title}, {name} change", lambda c=candidate, d=champion, n=name: difference(n, c, d)))
    microseconds = 900 + 400 * np.exp(np.sin(12.9898 * np.arange(400)))
    for name in ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms"):
        for block in (1, 10):
            lines.append(line(f"blocks of {block}, {name}", lambda n=name, b=block: latency(n, microseconds, b)))
    golden("judging_estimates.txt", "\n".join(lines) + "\n")


def test_verdicts_of_gates(golden: Golden) -> None:
    candidate, champion = SAMPLES["binary"]
    lines = []
    for threshold in (0.4, 0.55, 0.6, 0.65, 0.7, 0.95, 1.0):
        spec = GateSpec(f"accuracy >= {threshold}", "accuracy", threshold, "min")
        lines.append(gates.judge(spec, estimate("accuracy", candidate)))
    for threshold in (0.01, 0.2, 0.3, 0.9):
        spec = GateSpec("brier", "brier", threshold, "max", confidence=0.9, allow_inconclusive=threshold == 0.2)
        lines.append(gates.judge(spec, estimate("brier", candidate)))
    for margin in (0.01, 0.2, 0.5):
        spec = GateSpec("no worse", "accuracy", -margin, "min", change=True, dry_run=margin == 0.2)
        lines.append(gates.judge(spec, difference("accuracy", candidate, champion)))
    slices = {f"part={k}": estimate("accuracy", candidate.take(np.arange(83) % 3 == k)) for k in range(3)}
    for threshold in (0.3, 0.6, 0.99):
        spec = GateSpec("slices", "accuracy", threshold, "min")
        lines += [*gates.judge_family(spec, slices), *gates.judge_family(spec, slices, size=9)]
    halves = {name: slices[name] for name in list(slices)[:2]}
    lines += gates.judge_family(GateSpec("halves", "accuracy", 0.6, "min"), halves)
    lines.append(gates.undecided_verdict(GateSpec("g", "f1", 0.5, "min"), gates.Outcome.ERROR, "no rows", "a=b"))
    golden("judging_gates.txt", "".join(f"{verdict_line(verdict)}\n" for verdict in lines))


def verdict_line(verdict: Any) -> str:
    figure = verdict.measurement
    bounds = "" if figure is None else f" [{figure.low:.6g}, {figure.high:.6g}] at {figure.confidence:.6g}"
    flags = f"{verdict.metric}, {verdict.direction} {verdict.threshold:.6g}, blocking {verdict.blocking}"
    return f"{verdict.gate} | {verdict.slice} | {flags}, change {verdict.change}{bounds} | {verdict.message}"


BLOCKS: Mapping[str, tuple[MetricSpec, Arms]] = {
    "two limits": (MetricSpec("q", "error_rate", margin=0.01, max=0.05), (failing(500, 10), failing(100, 3))),
    "accuracy, both": (MetricSpec("q", "accuracy", margin=0.03, min=0.7), (right(400, 0.9), right(90, 0.86))),
    "absolute error": (
        MetricSpec("q", "absolute_error", margin=0.1, max=2.0),
        (graded("absolute_error", 300, 1.0, 0.8), graded("absolute_error", 60, 1.05, 0.9)),
    ),
    "absolute error, at least": (
        MetricSpec("q", "absolute_error", min=1.0),
        (graded("absolute_error", 300, 1.0, 0.8), graded("absolute_error", 60, 0.9, 0.9)),
    ),
    "drift of many labels": (
        MetricSpec("q", "prediction_drift", max=0.1),
        (predicting(300, label_a=0.2, label_b=0.3, label_c=0.5), predicting(60, label_a=0.5, label_b=0.1, label_d=0.4)),
    ),
    "log loss, as good": (
        MetricSpec("q", "log_loss"),
        (graded("log_loss", 300, 0.5, 0.3), graded("log_loss", 60, 0.3, 0.3)),
    ),
    "latency, three limits": (
        MetricSpec("q", "latency_p90_ms", margin=3, ratio=1.3, max=30),
        (slow(300, 10), slow(60, 11)),
    ),
    "drift of labels": (
        MetricSpec("q", "prediction_drift", max=0.3),
        (predicting(300, 200, label_a=0.2, label_b=0.8), predicting(60, 50, label_a=0.3, label_b=0.6, label_c=0.1)),
    ),
    "drift, scores": (
        MetricSpec("q", "prediction_drift", max=0.3),
        (predicting(300, score_9=0.5, score_10=0.5), predicting(60, score_9=0.4, score_10=0.3, score_30=0.3)),
    ),
    "agreement in slices": (
        MetricSpec("q", "agreement", min=0.8, columns=("city", "term")),
        (VariantCounts(300), agreeing(90, city_a=0.95, city_b=0.9, term_x=0.6)),
    ),
    "agreement, margin": (MetricSpec("q", "agreement", margin=0.1), (VariantCounts(300), agreeing(60, city_a=0.97))),
}


def test_looks_at_a_rollout(golden: Golden) -> None:
    """Three tables, each looked at three times; a block grows from look to look."""
    lines = []
    for title, (spec, arms) in {**WORSE, **{f"{name}, good": case for name, case in AS_GOOD.items()}, **BLOCKS}.items():
        seen: dict[int, Arms] = {}
        traces: Mapping[str, Any] = {}
        for number in range(9):
            before = seen.get(number // 3, (VariantCounts(), VariantCounts()))
            seen[number // 3] = (before[0] + arms[0], before[1] + arms[1])
            (result,), traces = look([spec], seen, traces, level=0.1)
            measurement = result.verdict.measurement
            bounds = None if measurement is None else rounded([measurement.value, measurement.low, measurement.high])
            how = "" if measurement is None else f"{measurement.method}, {measurement.samples}, {measurement.unit}"
            evidence = rounded([result.evidence_worse, result.evidence_not_worse])
            lines.append(f"{title} {number}: {result.verdict.message} {bounds} {evidence} {list(result.samples)}")
        lines.append(f"{title}: {how} at {result.verdict.measurement and measurement.confidence:.6g}")
        lines.append(f"{title}: {result.verdict.direction} {result.verdict.threshold} {result.verdict.change}")
        lines.append(f"{title}: {rounded(traces)}")
    golden("judging_looks.txt", "\n".join(lines) + "\n")


def test_measurements_of_prometheus(golden: Golden) -> None:
    lines = []
    for low, high in ((None, 2.0), (1.0, None), (1.0, 2.0), (None, None)):
        for measured in (
            (),
            (1.0,),
            (2.0, 2.0),
            (1.0, 1.5, 2.0),
            (0.9, 0.9, 0.9, 2.1),
            (2.5, 2.5, 2.5),
            (2.5, math.nan),
        ):
            spec = MetricSpec("cpu", "prometheus", min=low, max=high, measured=measured)
            (result,), traces = look([spec], {}, {})
            assert traces == {}
            evidence = rounded([result.evidence_worse, result.evidence_not_worse])
            lines.append(f"{verdict_text(result.verdict)} {evidence} {list(result.samples)}")
    golden("judging_prometheus.txt", "\n".join(lines) + "\n")


def verdict_text(verdict: Any) -> str:
    return f"{verdict.gate} {verdict.metric} {verdict.direction} {verdict.threshold} {verdict.message}"
