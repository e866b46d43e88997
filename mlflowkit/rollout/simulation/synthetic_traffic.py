"""Synthetic traffic: random evidence of two variants with known behaviour.

A `Behaviour` describes a variant; a `SyntheticWorld` is two of them and their traffic. `SyntheticTraffic` draws what
the gateway, its observers and the feedback join would count, as the same cumulative `Evidence`. It is seeded and has no
clock: time passes in `SyntheticTraffic.advance`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from mlflowkit.errors import UsageError
from mlflowkit.judging.online.evidence import (
    LATENCY_GROWTH,
    SCORE_BINS,
    Evidence,
    Moments,
    PairMoments,
    VariantCounts,
    bin_seconds,
    latency_bin,
)
from mlflowkit.rollout.simulation.synthetic_answers import AnswerPairs
from mlflowkit.values import RoutingTable

if TYPE_CHECKING:
    import numpy as np

CHAMPION = "champion"
QUALITY = ("accuracy", "log_loss", "absolute_error", "squared_error")
"""Metrics measured by feedback."""
SLICES: Mapping[str, float] = {"most": 0.9, "few": 0.1}
"""Values of every column in synthetic traffic, with their shares."""
TAIL = 0.9
"""The quantile from which on latencies belong to the tail."""

Shares = Mapping[Any, float]
"""A distribution: shares that sum to 1."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The behaviour of a variant.

    latency      share of answers by latency bin
    predictions  a distribution of keys for each way of counting predictions
    quality      mean of each feedback metric
    agreement    share of mirrored rows on which it agrees with the champion, by value of `SLICES`
    pairs        how far its answers are from the champion's in a sample of pairs of requests: to the same row, and to
                 another one (see `serving.observer.paired_answers`); `synthetic_answers` makes it
    """

    error_rate: float = 0.01
    latency: Shares = field(default_factory=lambda: lognormal(0.005, 0.020))
    predictions: tuple[Shares, ...] = ()
    quality: Mapping[str, float] = field(default_factory=dict)
    agreement: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(SLICES, 0.995))
    pairs: AnswerPairs = ()


@dataclass(frozen=True, slots=True)
class SyntheticWorld:
    """Two variants and their traffic: ``rate`` requests per second, of one row each.

    feedback  share of answers with feedback, after an exponentially distributed time of mean ``delay`` seconds
    """

    rate: float = 50.0
    champion: Behaviour = field(default_factory=Behaviour)
    challenger: Behaviour = field(default_factory=Behaviour)
    feedback: float = 0.2
    delay: float = 60.0


@dataclass(frozen=True, slots=True)
class TrafficSplit:
    """The part of a routing table that traffic depends on: the challenger's share, or mirroring if ``shadow``."""

    epoch: int
    weight: float
    shadow: bool = False
    sampling: float = 1.0
    challenger: str = "challenger"

    @classmethod
    def of(cls, table: RoutingTable, challenger: str) -> TrafficSplit:
        """The split of a table with that challenger. Raises StopIteration if the table does not have it."""
        variant = next(variant for variant in table.variants if variant.name == challenger)
        shadow = variant.role == "shadow"
        return cls(table.epoch, 0.0 if shadow else variant.weight, shadow, variant.sampling, challenger)


def lognormal(median: float, p99: float) -> Shares:
    """A log-normal latency distribution, in seconds, between a microsecond and a minute.

    Raises UsageError unless 0 < median < p99.

    >>> shares = lognormal(0.005, 0.020)
    >>> round(quantile(shares, 0.5), 4), round(quantile(shares, 0.99), 3)
    (0.005, 0.02)
    """
    if not 0 < median < p99:
        problem = f"latencies with median {1e3 * median:g} ms and 99th percentile {1e3 * p99:g} ms do not exist"
        raise UsageError(problem, hint="give the median first and a larger 99th percentile: --latency-ms 5,20")
    normal = NormalDist(math.log(median), math.log(p99 / median) / NormalDist().inv_cdf(0.99))
    below = [normal.cdf(math.log(bin_seconds(index))) for index in range(1, latency_bin(60.0) + 2)]
    shares = [after - before for before, after in zip([0.0, *below], below, strict=False)]
    return normalised({index: share for index, share in enumerate(shares) if share > 1e-9})


def normalised(counts: Mapping[Any, float]) -> Shares:
    """Counts as shares of their sum, which must not be 0."""
    total = math.fsum(counts.values())
    return {key: value / total for key, value in counts.items()}


def quantile(latency: Shares, q: float) -> float:
    """The q-quantile of binned latencies, in seconds: the lower edge of its bin."""
    total = 0.0
    for index in sorted(latency):
        total += latency[index]
        if total >= q:
            return bin_seconds(index)
    return bin_seconds(max(latency))


def slower(latency: Shares, factor: float, beyond: float = 0.0) -> Shares:
    """Multiply the latencies above the quantile ``beyond`` by ``factor``.

    >>> base = lognormal(0.005, 0.020)
    >>> tail = slower(base, 2.0, beyond=TAIL)
    >>> round(quantile(tail, 0.5) / quantile(base, 0.5), 2), round(quantile(tail, 0.99) / quantile(base, 0.99), 2)
    (1.0, 2.0)
    """
    steps = math.log(factor) / math.log(LATENCY_GROWTH)
    bins = math.floor(steps)
    fraction = steps - bins
    slowed: dict[int, float] = {}
    total = 0.0
    for index in sorted(latency):
        share = latency[index]
        moved = min(share, max(0.0, total + share - beyond))
        total += share
        for target, amount in ((index, share - moved), (index + bins, moved * (1 - fraction)),
                               (index + bins + 1, moved * fraction)):  # fmt: skip
            if amount > 0:
                slowed[max(target, 0)] = slowed.get(max(target, 0), 0.0) + amount
    return slowed


def binary_predictions(positive: float, shift: float = 0.0) -> tuple[Shares, ...]:
    """Labels and scores of a binary classifier with a share of ``positive + shift`` positive predictions.

    Scores are two halves of a Beta distribution, on either side of 0.5. Raises UsageError unless the share is in
    (0, 1).

    >>> labels, scores = binary_predictions(0.2, 0.05)
    >>> round(labels["label:yes"], 3), round(sum(scores[f"score:{i}"] for i in range(25, 50)), 3)
    (0.25, 0.25)
    """
    upper = positive + shift
    if not (0 < positive < 1 and 0 < upper < 1):
        hint = "give smaller ones: --positive 0.2 --scenario prediction-shift=0.05"
        raise UsageError(f"a share of {positive:g} of positive answers cannot grow by {shift:g}", hint=hint)
    middle = [(index + 0.5) / SCORE_BINS for index in range(SCORE_BINS)]
    density = [x ** (4 * positive - 1) * (1 - x) ** (3 - 4 * positive) for x in middle]
    half = SCORE_BINS // 2
    low, high = math.fsum(density[:half]), math.fsum(density[half:])
    scores = [share * ((1 - upper) / low if i < half else upper / high) for i, share in enumerate(density)]
    labels = {"label:yes": upper, "label:no": 1 - upper}
    return labels, {f"score:{index}": share for index, share in enumerate(scores)}


def decile_predictions(shift: float = 0.0) -> tuple[Shares, ...]:
    """Regression predictions by decile of the reference, with a share ``shift`` moved from the lowest to the highest.

    Raises UsageError unless 0 <= shift <= 0.9.

    >>> [round(share, 2) for share in decile_predictions(0.15)[0].values()]
    [0.0, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.25]
    """
    if not 0 <= shift <= 0.9:
        raise UsageError(f"a share of {shift:g} of the predictions cannot move", hint="--scenario prediction-shift=0.1")
    shares = {f"decile:{index}": 0.1 - min(0.1, max(0.0, shift - index / 10)) for index in range(9)}
    return ({**shares, "decile:9": 0.1 + shift},)


class SyntheticTraffic:
    """Random traffic. ``measured`` are the metrics to count for, ``columns`` the columns to slice agreement by.

    ``requests`` counts all requests, ``exposed`` those given to the challenger, ``tried`` those and the mirrored ones.
    """

    def __init__(
        self, world: SyntheticWorld, random: np.random.Generator, measured: Iterable[str], columns: Iterable[str] = ()
    ) -> None:
        self.world = world
        self.now = 0.0
        self.requests = self.exposed = self.tried = 0
        self._random = random
        self._measured, self._columns = frozenset(measured), tuple(columns)
        self._variants: dict[int, dict[str, _SyntheticVariant]] = {}

    def advance(self, split: TrafficSplit, seconds: float) -> None:
        """Generate the traffic of the next seconds under a split; feedback of earlier splits keeps arriving."""
        self.now += seconds
        variants = self._variants.get(split.epoch)
        if variants is None:
            variants = self._variants[split.epoch] = {
                name: _SyntheticVariant(behaviour, self.world, self._random, self._measured, self._columns)
                for name, behaviour in ((CHAMPION, self.world.champion), (split.challenger, self.world.challenger))
            }
        arrived = int(self._random.poisson(self.world.rate * seconds))
        self.requests += arrived
        assigned = int(self._random.binomial(arrived, split.weight)) if split.weight > 0 else 0
        start = self.now - seconds
        variants[CHAMPION].answer(arrived - assigned, start, seconds)
        if split.shadow:
            copies = int(self._random.binomial(arrived, split.sampling))
            variants[split.challenger].mirror(copies)
            self.tried += copies
        else:
            variants[split.challenger].answer(assigned, start, seconds)
            self.tried += assigned
            self.exposed += assigned
        for variants in self._variants.values():
            for variant in variants.values():
                variant.join(self.now)

    def evidence(self, experiment: str) -> Evidence:
        """The cumulative evidence."""
        epochs = {
            epoch: {name: variant.counts() for name, variant in variants.items()}
            for epoch, variants in self._variants.items()
        }
        return Evidence(experiment, epochs)

    def epochs(self, decided: Sequence[int]) -> Sequence[int]:
        """The epochs of the plan, which the evidence has as well."""
        return decided


class _SyntheticVariant:
    def __init__(
        self, behaviour: Behaviour, world: SyntheticWorld, random: np.random.Generator, measured: frozenset[str],
        columns: tuple[str, ...],
    ) -> None:  # fmt: skip
        import numpy as np

        self._behaviour, self._world, self._random, self._columns = behaviour, world, random, columns
        self._requests = self._errors = self._rows = self._mirrored = 0
        latencies = [behaviour.latency] if any(name.startswith("latency") for name in measured) else []
        self._latency = [_KeyCounter(shares, random) for shares in latencies]
        predictions = list(behaviour.predictions) if "prediction_drift" in measured else []
        self._predictions = [_KeyCounter(shares, random) for shares in predictions]
        self._agrees = "agreement" in measured
        self._pair_sample = np.array(behaviour.pairs) if "kappa" in measured and behaviour.pairs else None
        self._pairs, self._odd = PairMoments(), 0
        self._agreement: dict[str, Moments] = {}
        self._quality: dict[str, Moments] = {name: Moments() for name in QUALITY if name in measured}
        self._pending: list[np.ndarray] = []
        self._changed = True
        self._counts = VariantCounts()

    def answer(self, requests: int, start: float, seconds: float) -> None:
        """Add split requests, spread evenly over a time span."""
        if requests:
            self._requests += requests
            answered = self._add_answers(requests)
            if self._quality and self._world.feedback:
                number = int(self._random.binomial(answered, self._world.feedback))
                answered_at = start + seconds * self._random.random(number)
                self._pending.append(answered_at + self._random.exponential(self._world.delay, number))

    def mirror(self, requests: int) -> None:
        """Add mirrored requests; their latency is not counted."""
        if requests:
            self._requests += requests
            self._mirrored += requests
            answered = self._add_answers(requests, timed=False)
            if self._agrees:
                self._compare(answered)
            if self._pair_sample is not None:
                self._add_pairs(answered)

    def join(self, now: float) -> None:
        """Add the feedback that has arrived by ``now``."""
        if not self._pending:
            return
        pending = [due[due > now] for due in self._pending]
        arrived = sum(map(len, self._pending)) - sum(map(len, pending))
        self._pending = [due for due in pending if len(due)]
        if arrived:
            self._changed = True
            for name in self._quality:
                self._quality[name] += self._draw_quality(name, arrived)

    def counts(self) -> VariantCounts:
        if self._changed:
            self._counts = VariantCounts(
                self._requests, self._errors, self._rows,
                latency=_merged(self._latency), predictions=_merged(self._predictions), agreement=dict(self._agreement),
                quality={name: moments for name, moments in self._quality.items() if moments.count},
                mirrored=self._mirrored, pairs=self._pairs,
            )  # fmt: skip
            self._changed = False
        return self._counts

    def _add_answers(self, requests: int, *, timed: bool = True) -> int:
        self._changed = True
        failed = int(self._random.binomial(requests, self._behaviour.error_rate))
        answered = requests - failed
        self._errors += failed
        self._rows += answered
        for counter in (*(self._latency if timed else ()), *self._predictions):
            counter.draw(answered)
        return answered

    def _compare(self, answered: int) -> None:
        few = int(self._random.binomial(answered, SLICES["few"]))
        rows = {"most": answered - few, "few": few}
        alike = {value: int(self._random.binomial(rows[value], self._behaviour.agreement[value])) for value in rows}
        self._add_agreement("", answered, sum(alike.values()))
        for column in self._columns:
            for value in rows:
                self._add_agreement(f"{column}={value}", rows[value], alike[value])

    def _add_pairs(self, answered: int) -> None:
        assert self._pair_sample is not None  # checked by the caller
        pairs, self._odd = divmod(self._odd + answered, 2)
        drawn = self._pair_sample[self._random.integers(0, len(self._pair_sample), pairs)]
        apart, chance = drawn[:, 0], drawn[:, 1]
        sums = (apart, chance, apart**2, chance**2, apart * chance)
        self._pairs = self._pairs + PairMoments(pairs, *(float(values.sum()) for values in sums))

    def _add_agreement(self, key: str, rows: int, alike: int) -> None:
        before = self._agreement.get(key, Moments())
        self._agreement[key] = before + Moments(rows, float(alike), float(alike))

    def _draw_quality(self, metric: str, rows: int) -> Moments:
        """Random feedback of ``rows`` rows: Bernoulli accuracy, exponential log loss, half-normal errors."""
        mean = self._behaviour.quality[metric]
        if metric == "accuracy":
            right = float(self._random.binomial(rows, mean))
            return Moments(rows, right, right)
        if metric == "log_loss":
            values = self._random.exponential(mean, rows)
        elif metric == "absolute_error":
            values = abs(self._random.normal(0.0, mean * math.sqrt(math.pi / 2), rows))
        else:
            values = self._random.normal(0.0, math.sqrt(mean), rows) ** 2
        return Moments(rows, float(values.sum()), float((values**2).sum()))


class _KeyCounter:
    """Cumulative random counts of a distribution's keys."""

    def __init__(self, shares: Shares, random: np.random.Generator) -> None:
        import numpy as np

        self._keys = list(shares)
        self._shares = np.fromiter(shares.values(), dtype=np.float64)
        self._shares /= self._shares.sum()
        self._counts = np.zeros(len(self._keys), dtype=np.int64)
        self._random = random

    def draw(self, number: int) -> None:
        if number:
            self._counts += self._random.multinomial(number, self._shares)

    def counts(self) -> dict[Any, int]:
        return {key: count for key, count in zip(self._keys, self._counts.tolist(), strict=True) if count}


def _merged(counters: Sequence[_KeyCounter]) -> dict[Any, int]:
    return {key: count for counter in counters for key, count in counter.counts().items()}
