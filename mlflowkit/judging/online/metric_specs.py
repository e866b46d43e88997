"""Inputs of the online judges: a rollout's metrics with their limits, and one limit with its counts. Values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from mlflowkit.judging.online import quantiles, sequential
from mlflowkit.judging.online.evidence import VariantCounts
from mlflowkit.values import Json

LimitKind = Literal["margin", "ratio", "min", "max"]


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric of a rollout, identified by ``name``.

    ``margin``, ``ratio``, ``min`` and ``max`` mean what they mean in the recipe. ``measured`` holds the values of a
    metric that Prometheus measures, newest last, NaN where a query had no result.
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
class Limit:
    """One limit of a metric: "margin" and "ratio" compare with the champion, "min" and "max" with a fixed value."""

    kind: LimitKind
    value: float


@dataclass(frozen=True, slots=True)
class LimitTask:
    """One limit to judge: the counts (epoch, champion, challenger), the trace of the last look, and the two levels."""

    spec: MetricSpec
    limit: Limit
    arms: Sequence[tuple[int, VariantCounts, VariantCounts]]
    trace: Mapping[str, Json]
    worse_level: float
    not_worse_level: float
    histograms: dict[int, sequential.Array]
    """Cumulative histograms computed during this look, by the identity of the mapping; shared between tasks."""

    def below(self, histogram: Mapping[int, int]) -> sequential.Array:
        """`quantiles.counts_below`, computed once a look."""
        if id(histogram) not in self.histograms:
            self.histograms[id(histogram)] = quantiles.counts_below(histogram)
        return self.histograms[id(histogram)]

    @property
    def confidence(self) -> float:
        """Confidence of intervals: computed at 1 - ``worse_level``, then truncated by a decision that may be wrong."""
        return 1 - self.worse_level - self.not_worse_level


def limits_of(spec: MetricSpec) -> tuple[Limit, ...]:
    """The limits of a metric, each to be judged; a margin of 0 for a metric without any."""
    values = {kind: getattr(spec, kind) for kind in get_args(LimitKind)}
    return tuple(Limit(kind, float(value)) for kind, value in values.items() if value is not None) or (
        Limit("margin", 0.0),
    )
