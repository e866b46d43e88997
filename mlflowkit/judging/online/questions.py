"""What judges are asked and what they say: questions with their limits, readings of limits, findings. Values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mlflowkit.judging.online import sequential
from mlflowkit.judging.online.evidence import VariantCounts
from mlflowkit.values import Json, Measurement, Verdict


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
             is the difference (challenger minus champion; the ratio where that is asked; the value itself for a bound)
             with its confidence sequence, of the limit that decides; None while there is none
    harm     evidence that it is worse than allowed, as a share of what the level asks for: FAILED from 1 on
    proof    evidence that it is not, on the same scale: PASSED from 1 on
    samples  observations of the champion and of the challenger
    """

    name: str
    verdict: Verdict
    harm: float
    proof: float
    samples: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a question. ``kind`` "margin" or "ratio" compares with the champion, "min" or "max" with a value."""

    kind: Literal["margin", "ratio", "min", "max"]
    value: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What one limit said: log evidence of harm (the largest so far) and of its absence, and the measurement."""

    limit: Limit
    harm: float
    proof: float
    measurement: Measurement
    samples: tuple[int, int]
    trace: Mapping[str, Json]
    slice: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """A limit to judge: what was counted by epoch (champion, challenger), what was remembered, and the levels."""

    question: Question
    limit: Limit
    arms: Sequence[tuple[int, VariantCounts, VariantCounts]]
    trace: Mapping[str, Json]
    harm_level: float
    proof_level: float
    histograms: dict[int, sequential.Array]
    """Cumulative histograms that another question has made at this look, by the identity of the mapping."""

    def below(self, histogram: Mapping[int, int]) -> sequential.Array:
        """`sequential.counts_below`, made once a look."""
        if id(histogram) not in self.histograms:
            self.histograms[id(histogram)] = sequential.counts_below(histogram)
        return self.histograms[id(histogram)]

    @property
    def confidence(self) -> float:
        """Of intervals: made at 1 - ``harm_level``, and cut off where a decision, itself right or wrong, cuts them."""
        return 1 - self.harm_level - self.proof_level


def limits_of(question: Question) -> tuple[Limit, ...]:
    """The limits of a question, each to be judged; of one without, a margin of 0."""
    given: list[Limit] = []
    kinds: tuple[Literal["margin", "ratio", "min", "max"], ...] = ("margin", "ratio", "min", "max")
    for kind in kinds:
        value = getattr(question, kind)
        if value is not None:
            given.append(Limit(kind, float(value)))
    return tuple(given) or (Limit("margin", 0.0),)
