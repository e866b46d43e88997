"""Judges a challenger against the concurrent champion, at any look. Numbers in, findings out; no clock, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mlflowkit.judging.evidence import Evidence
from mlflowkit.values import Json, Verdict


@dataclass(frozen=True, slots=True)
class Question:
    """One metric of a rollout as the judges take it. ``name`` tells it from the others.

    ``margin``, ``ratio``, ``min`` and ``max`` mean what they mean in the recipe; ``measured`` is the value of a metric
    that is measured elsewhere (a Prometheus query), newest last; NaN where there was none.
    """

    name: str
    metric: str
    margin: float | None = None
    ratio: float | None = None
    min: float | None = None
    max: float | None = None
    columns: tuple[str, ...] = ()
    role: Literal["objective", "guardrail"] = "objective"
    measured: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """What one metric said at one look.

    verdict  FAILED: shown to be worse than allowed. PASSED: shown not to be. INCONCLUSIVE: neither yet. Its measurement
             is the difference (challenger minus champion; the value itself for a bound) with its confidence sequence
    harm     evidence that it is worse than allowed, as a share of what the level asks for: FAILED from 1 on
    proof    evidence that it is not, on the same scale: PASSED from 1 on
    samples  observations of the champion and of the challenger
    """

    name: str
    verdict: Verdict
    harm: float
    proof: float
    samples: tuple[int, int]


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
    raise NotImplementedError
