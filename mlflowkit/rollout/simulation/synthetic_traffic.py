"""Synthetic traffic: what the variants of a rollout would be counted to do, from one look to the next.

A `Behaviour` is how a variant answers; a `World` is two of them and the traffic that they get. `Traffic` draws from a
world what the gateway, its observers and the feedback join would have counted, as the same cumulative `Evidence`.
Seeded and without a clock: time passes when it is told to.
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
    VariantCounts,
    bin_seconds,
    latency_bin,
)
from mlflowkit.values import RoutingTable

if TYPE_CHECKING:
    import numpy as np

CHAMPION = "champion"
QUALITY = ("accuracy", "log_loss", "absolute_error", "squared_error")
"""What feedback measures."""
SLICES: Mapping[str, float] = {"most": 0.9, "few": 0.1}
"""The values that a column has in synthetic traffic, with their shares: there is no other knowledge of it."""
TAIL = 0.9
"""A slow tail is what lies beyond this quantile."""

Shares = Mapping[Any, float]
"""A distribution: shares that sum to 1."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a variant answers.

    latency      share of its answers by latency bin
    predictions  a distribution of keys for each way in which predictions are counted
    quality      mean of each metric that feedback measures
    agreement    share of mirrored rows that it answers as the champion does, by value of `SLICES`
    """

    error_rate: float = 0.01
    latency: Shares = field(default_factory=lambda: lognormal(0.005, 0.020))
    predictions: tuple[Shares, ...] = ()
    quality: Mapping[str, float] = field(default_factory=dict)
    agreement: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(SLICES, 0.995))


@dataclass(frozen=True, slots=True)
class World:
    """Traffic and the two variants that answer it. Rates are requests a second, each of one row.

    feedback  share of the answers whose truth comes back; ``delay`` is the mean of how long that takes, in seconds,
              exponentially distributed
    """

    rate: float = 50.0
    champion: Behaviour = field(default_factory=Behaviour)
    challenger: Behaviour = field(default_factory=Behaviour)
    feedback: float = 0.2
    delay: float = 60.0


@dataclass(frozen=True, slots=True)
class Split:
    """The part of a routing table that traffic depends on: a share of [0, 1], or mirroring when ``shadow``."""

    epoch: int
    weight: float
    shadow: bool = False
    sampling: float = 1.0
    challenger: str = "challenger"
    """Its name in the table."""

    @classmethod
    def of(cls, table: RoutingTable, challenger: str) -> Split:
        """What a table gives to one of its variants. Raises StopIteration when it is not there."""
        variant = next(variant for variant in table.variants if variant.name == challenger)
        shadow = variant.role == "shadow"
        return cls(table.epoch, 0.0 if shadow else variant.weight, shadow, variant.sampling, challenger)


def lognormal(median: float, p99: float) -> Shares:
    """Latencies, in seconds, that are log-normal between a microsecond and a minute.

    Raises UsageError unless 0 < median < p99.

    >>> shares = lognormal(0.005, 0.020)
    >>> round(quantile(shares, 0.5), 4), round(quantile(shares, 0.99), 3)
    (0.005, 0.02)
    """
    if not 0 < median < p99:
        raise UsageError(
            f"latencies with median {1e3 * median:g} ms and 99th percentile {1e3 * p99:g} ms do not exist",
            hint="give the median first and a larger 99th percentile: --latency-ms 5,20",
        )
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
    """Latencies of which those beyond a quantile take ``factor`` times as long.

    >>> base = lognormal(0.005, 0.020)
    >>> tail = slower(base, 2.0, beyond=TAIL)
    >>> round(quantile(tail, 0.5) / quantile(base, 0.5), 2), round(quantile(tail, 0.99) / quantile(base, 0.99), 2)
    (1.0, 2.0)
    """
    steps = math.log(factor) / math.log(LATENCY_GROWTH)
    whole = math.floor(steps)
    part = steps - whole
    found: dict[int, float] = {}
    total = 0.0
    for index in sorted(latency):
        share = latency[index]
        moved = min(share, max(0.0, total + share - beyond))
        total += share
        for target, amount in ((index, share - moved), (index + whole, moved * (1 - part)),
                               (index + whole + 1, moved * part)):  # fmt: skip
            if amount > 0:
                found[max(target, 0)] = found.get(max(target, 0), 0.0) + amount
    return found


def binary_predictions(positive: float, shift: float = 0.0) -> tuple[Shares, ...]:
    """Labels and scores of a binary classifier that says yes to a share of the rows, ``shift`` more than it did.

    Scores are two halves of a Beta distribution, on either side of 0.5. Raises UsageError when the sum of both
    shares is not within (0, 1).

    >>> labels, scores = binary_predictions(0.2, 0.05)
    >>> round(labels["label:yes"], 3), round(sum(scores[f"score:{i}"] for i in range(25, 50)), 3)
    (0.25, 0.25)
    """
    upper = positive + shift
    if not (0 < positive < 1 and 0 < upper < 1):
        raise UsageError(
            f"a share of {positive:g} of positive answers cannot grow by {shift:g}",
            hint="give smaller ones: --positive 0.2 --scenario prediction-shift=0.05",
        )
    middle = [(index + 0.5) / SCORE_BINS for index in range(SCORE_BINS)]
    density = [x ** (4 * positive - 1) * (1 - x) ** (3 - 4 * positive) for x in middle]
    half = SCORE_BINS // 2
    low, high = math.fsum(density[:half]), math.fsum(density[half:])
    scores = [share * ((1 - upper) / low if i < half else upper / high) for i, share in enumerate(density)]
    labels = {"label:yes": upper, "label:no": 1 - upper}
    return labels, {f"score:{index}": share for index, share in enumerate(scores)}


def decile_predictions(shift: float = 0.0) -> tuple[Shares, ...]:
    """Predictions of a regression by tenth of the reference, of which ``shift`` moved from the lowest to the highest.

    Raises UsageError unless 0 <= shift <= 0.9.

    >>> [round(share, 2) for share in decile_predictions(0.15)[0].values()]
    [0.0, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.25]
    """
    if not 0 <= shift <= 0.9:
        raise UsageError(f"a share of {shift:g} of the predictions cannot move", hint="--scenario prediction-shift=0.1")
    shares = {f"decile:{index}": 0.1 - min(0.1, max(0.0, shift - index / 10)) for index in range(9)}
    return ({**shares, "decile:9": 0.1 + shift},)


class Traffic:
    """Draws what is counted while time passes. ``measured`` names the metrics for which counts are needed,
    ``columns`` those by whose values agreement is counted as well.

    ``requests`` counts all of them, ``exposed`` those that were given to the challenger, ``tried`` those and the
    mirrored ones.
    """

    def __init__(
        self, world: World, random: np.random.Generator, measured: Iterable[str], columns: Iterable[str] = ()
    ) -> None:
        self.world = world
        self.now = 0.0
        self.requests = self.exposed = self.tried = 0
        self._random = random
        self._measured, self._columns = frozenset(measured), tuple(columns)
        self._arms: dict[int, dict[str, _Arm]] = {}

    def flow(self, split: Split, seconds: float) -> None:
        """Let time pass under a table. Old tables' feedback keeps coming in."""
        self.now += seconds
        arms = self._arms.get(split.epoch)
        if arms is None:
            arms = self._arms[split.epoch] = {
                name: _Arm(behaviour, self.world, self._random, self._measured, self._columns)
                for name, behaviour in ((CHAMPION, self.world.champion), (split.challenger, self.world.challenger))
            }
        arrived = int(self._random.poisson(self.world.rate * seconds))
        self.requests += arrived
        taken = int(self._random.binomial(arrived, split.weight)) if split.weight > 0 else 0
        start = self.now - seconds
        arms[CHAMPION].answer(arrived - taken, start, seconds)
        if split.shadow:
            copies = int(self._random.binomial(arrived, split.sampling))
            arms[split.challenger].mirror(copies)
            self.tried += copies
        else:
            arms[split.challenger].answer(taken, start, seconds)
            self.tried += taken
            self.exposed += taken
        for kept in self._arms.values():
            for arm in kept.values():
                arm.join(self.now)

    def evidence(self, experiment: str) -> Evidence:
        """All that was counted until now."""
        epochs = {epoch: {name: arm.counts() for name, arm in arms.items()} for epoch, arms in self._arms.items()}
        return Evidence(experiment, epochs)

    def epochs(self, decided: Sequence[int]) -> Sequence[int]:
        """The tables of the evidence are those of the plan."""
        return decided


class _Arm:
    """One variant under one table."""

    def __init__(
        self, behaviour: Behaviour, world: World, random: np.random.Generator, measured: frozenset[str],
        columns: tuple[str, ...],
    ) -> None:  # fmt: skip
        self._behaviour, self._world, self._random, self._columns = behaviour, world, random, columns
        self._requests = self._errors = self._rows = self._mirrored = 0
        wanted = [behaviour.latency] if any(name.startswith("latency") for name in measured) else []
        self._latency = [_Counter(shares, random) for shares in wanted]
        wanted = list(behaviour.predictions) if "prediction_drift" in measured else []
        self._predictions = [_Counter(shares, random) for shares in wanted]
        self._agrees = "agreement" in measured
        self._agreement: dict[str, Moments] = {}
        self._quality: dict[str, Moments] = {name: Moments() for name in QUALITY if name in measured}
        self._pending: list[np.ndarray] = []
        self._changed = True
        self._counts = VariantCounts()

    def answer(self, requests: int, start: float, seconds: float) -> None:
        """Requests that the split gave it, spread evenly over a span of time."""
        if requests:
            self._requests += requests
            answered = self._answered(requests)
            self._await_feedback(answered, start, seconds)

    def mirror(self, requests: int) -> None:
        """Copies of requests that the champion answers; what a copy took is not counted."""
        if requests:
            self._requests += requests
            self._mirrored += requests
            answered = self._answered(requests, timed=False)
            if self._agrees:
                self._compare(answered)

    def join(self, now: float) -> None:
        """Take in the feedback that has come by now."""
        if not self._pending:
            return
        arrived = 0
        left = []
        for due in self._pending:
            late = due[due > now]
            arrived += len(due) - len(late)
            if len(late):
                left.append(late)
        self._pending = left
        if arrived:
            self._changed = True
            for name in self._quality:
                self._quality[name] += self._drawn_quality(name, arrived)

    def counts(self) -> VariantCounts:
        """What was counted of it."""
        if self._changed:
            self._counts = VariantCounts(
                self._requests, self._errors, self._rows,
                latency=_merged(self._latency), predictions=_merged(self._predictions), agreement=dict(self._agreement),
                quality={name: moments for name, moments in self._quality.items() if moments.count},
                mirrored=self._mirrored,
            )  # fmt: skip
            self._changed = False
        return self._counts

    def _answered(self, requests: int, *, timed: bool = True) -> int:
        self._changed = True
        failed = int(self._random.binomial(requests, self._behaviour.error_rate))
        answered = requests - failed
        self._errors += failed
        self._rows += answered
        for counter in (*(self._latency if timed else ()), *self._predictions):
            counter.draw(answered)
        return answered

    def _await_feedback(self, answered: int, start: float, seconds: float) -> None:
        if not self._quality or not self._world.feedback:
            return
        told = int(self._random.binomial(answered, self._world.feedback))
        if told:
            asked = start + seconds * self._random.random(told)
            self._pending.append(asked + self._random.exponential(self._world.delay, told))

    def _compare(self, answered: int) -> None:
        few = int(self._random.binomial(answered, SLICES["few"]))
        rows = {"most": answered - few, "few": few}
        alike = {value: int(self._random.binomial(rows[value], self._behaviour.agreement[value])) for value in rows}
        self._agree("", answered, sum(alike.values()))
        for column in self._columns:
            for value in rows:
                self._agree(f"{column}={value}", rows[value], alike[value])

    def _agree(self, key: str, rows: int, alike: int) -> None:
        before = self._agreement.get(key, Moments())
        self._agreement[key] = before + Moments(rows, float(alike), float(alike))

    def _drawn_quality(self, metric: str, rows: int) -> Moments:
        """Feedback on some rows: right or wrong; a log loss that is exponential; an error that is half-normal."""
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


class _Counter:
    """Cumulative counts of a distribution's keys."""

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
        """What was drawn of each key that was drawn at all."""
        return {key: count for key, count in zip(self._keys, self._counts.tolist(), strict=True) if count}


def _merged(counters: Sequence[_Counter]) -> dict[Any, int]:
    return {key: count for counter in counters for key, count in counter.counts().items()}
