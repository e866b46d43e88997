"""Counts of each variant of an experiment: cumulative, mergeable, JSON. All online judging is based on them.

Each gateway replica and each of its observers counts on its own, from the moment a routing table arrived until the
next one did. Counts are kept by the table's epoch, so that compared counts were always taken at the same time and under
the same weights. `merge` is associative and commutative: the order in which files are read does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from mlflowkit.judging.online.key_sketch import KeySketch
from mlflowkit.values import Json

LATENCY_GROWTH = 1.02
"""Ratio of consecutive latency bins' widths: a quantile read from bins is at most 2 % off."""
SCORE_BINS = 50
"""Bins of equal width over [0, 1] for the score of a binary classifier."""
_LOG_GROWTH = math.log(LATENCY_GROWTH)


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
class PairMoments:
    """Moments of pairs of mirrored requests: of D, how far the answers to the same row are ``apart``, and of E, how far
    they are by ``chance``, to independent rows (see `serving.observer.paired_answers`)."""

    pairs: int = 0
    apart: float = 0.0
    chance: float = 0.0
    apart_squares: float = 0.0
    chance_squares: float = 0.0
    products: float = 0.0

    def __add__(self, other: PairMoments) -> PairMoments:
        return PairMoments(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    def excess(self, kappa: float) -> float:
        """The mean of D - (1 - kappa) E: above 0 where the answers are less alike than that kappa."""
        return (self.apart - (1 - kappa) * self.chance) / self.pairs

    def variance(self, kappa: float) -> float:
        """The variance of one observation of D - (1 - kappa) E."""
        share = 1 - kappa
        squares = self.apart_squares - 2 * share * self.products + share * share * self.chance_squares
        return max(squares - self.pairs * self.excess(kappa) ** 2, 0.0) / max(self.pairs - 1, 1)


@dataclass(frozen=True, slots=True)
class VariantCounts:
    """Counts of one variant under one routing table.

    requests     well-formed requests routed to it (testers' overrides excluded); of a shadow, the mirrored requests
    errors       requests that it failed: an exception, a timeout, no finite answer, or an open circuit. The client got
                 the champion's answer all the same: the variant is judged, not the response
    latency      its answers by latency bin: seconds from the request's headers to its answer
    predictions  its answered rows by class ("label:good"), by score bin ("score:17"; binary tasks) or, for a
                 regression, by decile of the champion's first predictions ("decile:3")
    agreement    a shadow's rows compared with the champion's answer to the same row: {"": all, "column=value": slice};
                 a row counts 1 when the two agree
    difference   a shadow's score (or prediction) minus the champion's on the same row
    quality      from feedback, by metric: "accuracy", "log_loss", "absolute_error", "squared_error"; a row each
    mirrored     requests meant for a shadow; ``dropped`` counts those that were not delivered in time
    pairs        a shadow's answers and the champion's to the same rows and to others, for kappa
    keys         how often affinity keys repeat among its requests

    ``request_predictions``, ``request_agreement`` and ``request_quality`` count the same by requests: each is one
    observation, the mean over its rows, so that neither the size of a batch nor how alike its rows are matters. Counts
    of older versions lack them, as do those of simulated requests of one row.
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
    pairs: PairMoments = PairMoments()
    request_predictions: Mapping[str, float] = field(default_factory=dict)
    request_agreement: Mapping[str, Moments] = field(default_factory=dict)
    request_quality: Mapping[str, Moments] = field(default_factory=dict)
    keys: KeySketch = field(default_factory=KeySketch)

    def __add__(self, other: VariantCounts) -> VariantCounts:
        return VariantCounts(
            self.requests + other.requests,
            self.errors + other.errors,
            self.rows + other.rows,
            _add_maps(self.latency, other.latency),
            _add_maps(self.predictions, other.predictions),
            _add_maps(self.agreement, other.agreement),
            self.difference + other.difference,
            _add_maps(self.quality, other.quality),
            self.mirrored + other.mirrored,
            self.dropped + other.dropped,
            self.pairs + other.pairs,
            _add_maps(self.request_predictions, other.request_predictions),
            _add_maps(self.request_agreement, other.request_agreement),
            _add_maps(self.request_quality, other.request_quality),
            self.keys + other.keys,
        )

    def predicted(self, prefix: str) -> tuple[Mapping[str, float], float]:
        """Counts by the predictions of a prefix ("label:"), and how many observations one of these counts is."""
        if self.request_predictions:
            return {name: count for name, count in self.request_predictions.items() if name.startswith(prefix)}, 1.0
        rows = {name: float(count) for name, count in self.predictions.items() if name.startswith(prefix)}
        return rows, self.clusters_per_row

    def graded(self, metric: str) -> tuple[Moments, float]:
        """Moments of a metric from feedback, and how many observations one of their counts is."""
        by_request = self.request_quality.get(metric)
        return (self.quality.get(metric, Moments()), self.clusters_per_row) if by_request is None else (by_request, 1.0)

    def agreeing(self, name: str) -> tuple[Moments, float]:
        """Moments of a slice's agreement, and how many observations one of their counts is."""
        by_request = self.request_agreement.get(name)
        if by_request is None:
            return self.agreement.get(name, Moments()), self.mirrored_clusters_per_row
        return by_request, 1.0

    @property
    def clusters_per_row(self) -> float:
        """Answered requests a row, at most 1: exact for requests of equal size only, for counts by rows."""
        requests = self.requests - self.errors
        return requests / self.rows if self.rows > requests > 0 else 1.0

    @property
    def mirrored_clusters_per_row(self) -> float:
        """Mirrored requests that the shadow answered, a compared row, at most 1."""
        requests = self.mirrored - self.dropped - self.errors
        rows = self.agreement.get("", Moments()).count
        return requests / rows if rows > requests > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """Counts of an experiment by epoch of the routing table and name of the variant."""

    experiment: str
    epochs: Mapping[int, Mapping[str, VariantCounts]] = field(default_factory=dict)

    def of(self, variant: str, epochs: Iterable[int] | None = None) -> VariantCounts:
        """The sum of a variant's counts over the given epochs (None: all)."""
        total = VariantCounts()
        for epoch, variants in self.epochs.items():
            if (epochs is None or epoch in epochs) and variant in variants:
                total = total + variants[variant]
        return total

    def to_json(self) -> Json:
        """The evidence as JSON; zeros and empty maps are left out."""
        epochs = {
            str(epoch): {name: _counts_to_json(counts) for name, counts in variants.items()}
            for epoch, variants in self.epochs.items()
        }
        return {"experiment": self.experiment, "epochs": epochs}

    @classmethod
    def from_json(cls, value: Json) -> Evidence:
        """The evidence that `to_json` returned. Raises KeyError, TypeError or ValueError for anything else.

        >>> counts = VariantCounts(requests=3, latency={348: 3}, agreement={"": Moments(3, 2.0, 2.0)})
        >>> evidence = Evidence("e1", {7: {"shadow": counts}})
        >>> Evidence.from_json(evidence.to_json()) == evidence
        True
        """
        epochs = {
            int(epoch): {name: _counts_from_json(counts) for name, counts in variants.items()}
            for epoch, variants in value["epochs"].items()
        }
        return cls(value["experiment"], epochs)


def merge(experiment: str, parts: Iterable[Evidence]) -> Evidence:
    """The sum of several writers' counts of one experiment; parts of other experiments are left out."""
    epochs: dict[int, dict[str, VariantCounts]] = {}
    for part in parts:
        if part.experiment == experiment:
            for epoch, variants in part.epochs.items():
                epochs[epoch] = dict(_add_maps(epochs.get(epoch, {}), variants))
    return Evidence(experiment, epochs)


def _add_maps(left: Mapping, right: Mapping) -> Mapping:  # type: ignore[type-arg]  # values only have to add up
    if not right:
        return left
    total = dict(left)
    for key, value in right.items():
        total[key] = total[key] + value if key in total else value
    return total


def _to_json(value: object) -> Json:
    if isinstance(value, Moments):
        return [value.count, value.total, value.squares]
    if isinstance(value, KeySketch):
        return value.to_json()
    if isinstance(value, PairMoments):
        return [getattr(value, part.name) for part in fields(value)]
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    return value


def _counts_to_json(counts: VariantCounts) -> Json:
    values = {part.name: getattr(counts, part.name) for part in fields(counts)}
    return {
        name: _to_json(value)
        for name, value in values.items()
        if value and value not in (Moments(), PairMoments(), KeySketch())
    }


def _counts_from_json(value: Mapping[str, Json]) -> VariantCounts:
    counts: dict[str, Json] = dict(value)
    if "latency" in counts:
        counts["latency"] = {int(index): count for index, count in counts["latency"].items()}
    for name in ("agreement", "quality", "request_agreement", "request_quality"):
        if name in counts:
            counts[name] = {key: Moments(*moments) for key, moments in counts[name].items()}
    if "keys" in counts:
        counts["keys"] = KeySketch.from_json(counts["keys"])
    if "pairs" in counts:
        counts["pairs"] = PairMoments(*counts["pairs"])
    if "difference" in counts:
        counts["difference"] = Moments(*counts["difference"])
    return VariantCounts(**counts)
