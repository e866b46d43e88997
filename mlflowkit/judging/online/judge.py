"""Judges a challenger against the concurrent champion, at any look. Numbers in, findings out; no clock, no I/O.

What is promised, over all looks and whatever they are followed by:

- a challenger that is within all its limits is said to have FAILED any of them with probability ``level`` at most: each
  question tests with an equal part of it (and each limit of a question with an equal part of that);
- a challenger that is beyond some limit is said to have PASSED all of them with probability ``level`` at most: each
  limit is tested with the whole of it, as every one must pass.

Rates (error_rate, accuracy, agreement) are judged by e-processes that are exact, latency quantiles by ones that are
exact within an epoch up to the width of a bin, other means asymptotically; see `mlflowkit.judging.online.sequential`.

A question without any limit asks for a margin of 0: FAILED means shown to be worse than the champion, PASSED shown to
be better. That is the question of an A/B test.

FAILED stays, once it is said. PASSED is what the evidence says now, and is taken back where later evidence says less.

Requests are taken to be independent. Under sticky routing one user's requests share their fate, and a few heavy users
can make two equal arms look different; where users send many requests each, ask for a margin that is larger than what
a few of them can move. Rows of one request are not taken to be independent: quality, agreement and predictions count
as many observations as there were requests.

What is asked and found is in `questions`, each family of metrics in a file of its own (`rates`, `agreement`, `means`,
`latency`, `drift`), and what it comes to in `findings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mlflowkit.judging.online import sequential
from mlflowkit.judging.online.agreement import agreement
from mlflowkit.judging.online.drift import drift
from mlflowkit.judging.online.evidence import Evidence, VariantCounts
from mlflowkit.judging.online.findings import finding, measured_elsewhere
from mlflowkit.judging.online.latency import latency
from mlflowkit.judging.online.means import mean
from mlflowkit.judging.online.questions import Finding, Question, Reading, Task, limits_of
from mlflowkit.judging.online.rates import rate
from mlflowkit.values import Json

__all__ = ["Finding", "Question", "judge"]

FAMILIES: Mapping[str, Callable[[Task], Reading]] = {
    "error_rate": rate,
    "accuracy": rate,
    "agreement": agreement,
    "log_loss": mean,
    "absolute_error": mean,
    "squared_error": mean,
    "prediction_drift": drift,
    "latency_p50_ms": latency,
    "latency_p90_ms": latency,
    "latency_p95_ms": latency,
    "latency_p99_ms": latency,
}
"""How each metric is judged; a Prometheus query is measured elsewhere."""


def judge(
    questions: Sequence[Question],
    evidence: Evidence,
    *,
    champion: str,
    challenger: str,
    epochs: Sequence[int],
    level: float,
    traces: Mapping[str, Json],
) -> tuple[tuple[Finding, ...], Mapping[str, Json]]:
    """Findings in the order of the questions, and the traces to hand in at the next look.

    ``epochs`` are the routing tables of this rollout under which both variants were measured, oldest first; what was
    counted under different ones is never pooled as if it were one sample. ``level`` bounds the chance that any
    question says FAILED of a challenger that is within its limits, over all looks; it is shared out among them.
    ``traces`` is JSON that belongs to the judges: what a test remembers between looks, by question; {} at first.
    """
    epochs_of = [evidence.epochs.get(epoch, {}) for epoch in epochs]
    nothing = VariantCounts()
    arms = [
        (epoch, variants.get(champion, nothing), variants.get(challenger, nothing))
        for epoch, variants in zip(epochs, epochs_of, strict=True)
    ]
    tested = sum(question.metric != "prometheus" for question in questions)
    findings, kept = [], {}
    made: dict[int, sequential.Array] = {}
    for question in questions:
        if question.metric == "prometheus":
            findings.append(measured_elsewhere(question))
            continue
        limits = limits_of(question)
        before = traces.get(question.name, {})
        share = level / tested / len(limits)
        tasks = [Task(question, limit, arms, before.get(limit.kind, {}), share, level, made) for limit in limits]
        readings = [FAMILIES[question.metric](task) for task in tasks]
        findings.append(finding(question, tasks, readings))
        kept[question.name] = {task.limit.kind: one.trace for task, one in zip(tasks, readings, strict=True)}
    return tuple(findings), kept
