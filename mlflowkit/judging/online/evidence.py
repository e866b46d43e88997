"""What was counted of each variant of an experiment: cumulative, mergeable, JSON. Everything online is judged by it.

Each gateway replica and each of its observers counts for itself, from the moment at which a routing table came in
until another one did. Counts are kept by the table's epoch, so that what is compared was always measured at the same
time and under the same weights. `merge` adds counts of several writers; it is associative and commutative, so the
order in which files are read does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from mlflowkit.values import Json

LATENCY_GROWTH = 1.02
"""Each latency bin is this much wider than the one before: a quantile read from bins is at most 2 % off."""
SCORE_BINS = 50
"""Bins of equal width over [0, 1] for the score of a binary classifier."""


def latency_bin(seconds: float) -> int:
    """The bin of a latency; bin b holds microseconds in [1.02^b, 1.02^(b+1)), bin 0 also all below one.

    >>> latency_bin(0.0), latency_bin(0.001), round(bin_seconds(latency_bin(0.001)), 5)
    (0, 348, 0.00098)
    """
    microseconds = seconds * 1e6
    return int(math.log(microseconds) / _LOG_GROWTH) if microseconds > 1.0 else 0


def bin_seconds(index: int) -> float:
    """The lower edge of a latency bin, in seconds."""
    return LATENCY_GROWTH**index / 1e6


_LOG_GROWTH = math.log(LATENCY_GROWTH)


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, sum and sum of squares of a quantity."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """NaN when nothing was counted."""
        return self.total / self.count if self.count else math.nan


@dataclass(frozen=True, slots=True)
class VariantCounts:
    """What was counted of one variant under one routing table.

    requests     well-formed requests that the router gave it (overrides by testers apart); of a shadow, the mirrored
                 requests that it was asked
    errors       those of them that it failed: raised, too late, no finite answer, or its circuit was open. A client
                 was answered all the same, by the champion: what is judged is the variant, not the outcome
    latency      its answers by latency bin: seconds from the request's headers to its answer
    predictions  its answered rows by class ("label:good"), by score bin ("score:17"; binary tasks) or, for a
                 regression, by the tenth of the champion's own first predictions ("decile:3")
    agreement    a shadow's rows compared with the champion's answer to the same row: {"": all, "column=value": slice};
                 a row counts 1 when the two agree
    difference   a shadow's score (or prediction) minus the champion's on the same row
    quality      from feedback, by metric: "accuracy", "log_loss", "absolute_error", "squared_error"; a row each
    mirrored     requests that a shadow was to answer; those that it was not given in time are in ``dropped``
    """

    requests: int = 0
    errors: int = 0
    rows: int = 0
    latency: Mapping[int, int] = field(default_factory=dict)
    predictions: Mapping[str, int] = field(default_factory=dict)
    agreement: Mapping[str, Moments] = field(default_factory=dict)
    difference: Moments = Moments()
    quality: Mapping[str, Moments] = field(default_factory=dict)
    mirrored: int = 0
    dropped: int = 0

    def __add__(self, other: VariantCounts) -> VariantCounts:
        return VariantCounts(
            self.requests + other.requests,
            self.errors + other.errors,
            self.rows + other.rows,
            _sum(self.latency, other.latency, 0),
            _sum(self.predictions, other.predictions, 0),
            _sum(self.agreement, other.agreement, Moments()),
            self.difference + other.difference,
            _sum(self.quality, other.quality, Moments()),
            self.mirrored + other.mirrored,
            self.dropped + other.dropped,
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """Counts of an experiment by epoch of the routing table and name of the variant."""

    experiment: str
    epochs: Mapping[int, Mapping[str, VariantCounts]] = field(default_factory=dict)

    def of(self, variant: str, epochs: Iterable[int] | None = None) -> VariantCounts:
        """All that was counted of a variant, under the given tables or all."""
        found = VariantCounts()
        for epoch, variants in self.epochs.items():
            if (epochs is None or epoch in epochs) and variant in variants:
                found = found + variants[variant]
        return found

    def to_json(self) -> Json:
        """JSON of the evidence; zeros and empty maps are left out."""
        return {
            "experiment": self.experiment,
            "epochs": {
                str(epoch): {name: _counts_json(counts) for name, counts in variants.items()}
                for epoch, variants in self.epochs.items()
            },
        }

    @classmethod
    def from_json(cls, value: Json) -> Evidence:
        """The evidence that `to_json` gave. Raises KeyError, TypeError or ValueError for anything else.

        >>> counts = VariantCounts(requests=3, latency={348: 3}, agreement={"": Moments(3, 2.0, 2.0)})
        >>> evidence = Evidence("e1", {7: {"shadow": counts}})
        >>> Evidence.from_json(evidence.to_json()) == evidence
        True
        """
        epochs = {
            int(epoch): {name: _counts(counts) for name, counts in variants.items()}
            for epoch, variants in value["epochs"].items()
        }
        return cls(value["experiment"], epochs)


def merge(experiment: str, parts: Iterable[Evidence]) -> Evidence:
    """The sum of what several writers counted of one experiment; parts of others are left out."""
    epochs: dict[int, dict[str, VariantCounts]] = {}
    for part in parts:
        if part.experiment == experiment:
            for epoch, variants in part.epochs.items():
                here = epochs.setdefault(epoch, {})
                for name, counts in variants.items():
                    here[name] = here[name] + counts if name in here else counts
    return Evidence(experiment, epochs)


def _sum(left: Mapping, right: Mapping, zero: object) -> Mapping:  # type: ignore[type-arg]
    if not right:
        return left
    found = dict(left)
    for key, value in right.items():
        found[key] = found.get(key, zero) + value
    return found


def _counts_json(counts: VariantCounts) -> Json:
    found: dict[str, Json] = {}
    for part in fields(counts):
        value = getattr(counts, part.name)
        if isinstance(value, Moments):
            if value.count:
                found[part.name] = _moments_json(value)
        elif isinstance(value, Mapping):
            if value:
                found[part.name] = {
                    str(key): _moments_json(item) if isinstance(item, Moments) else item for key, item in value.items()
                }
        elif value:
            found[part.name] = value
    return found


def _moments_json(moments: Moments) -> Json:
    return [moments.count, moments.total, moments.squares]


def _counts(value: Mapping[str, Json]) -> VariantCounts:
    found: dict[str, Json] = dict(value)
    if "latency" in found:
        found["latency"] = {int(index): count for index, count in found["latency"].items()}
    for name in ("agreement", "quality"):
        if name in found:
            found[name] = {key: Moments(*moments) for key, moments in found[name].items()}
    if "difference" in found:
        found["difference"] = Moments(*found["difference"])
    return VariantCounts(**found)
