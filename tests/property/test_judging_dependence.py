"""Error rates of the rollout's judge where observations depend on one another: rows of batches, requests of users.

Both variants are the same, so FAILED may be said in at most a share `LEVEL` of the rollouts. Counts are made as the
gateway and the observer make them. Chance that a test fails when all is well: 0 on unchanged code, as seeds are fixed.
Of 100 rollouts of each case none failed; without the counts by requests 60 to 80 % did (batches of 100 rows), without
the sketch of keys up to 18 % (400 users).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from mlflowkit.bundle import Signature
from mlflowkit.judging.online.evidence import Evidence, Moments, VariantCounts
from mlflowkit.judging.online.judge import MetricSpec, judge
from mlflowkit.judging.online.key_sketch import CELLS, KeySketch, cell_of
from mlflowkit.serving.inference.counters import VariantCounter
from mlflowkit.serving.observer import shadow_comparison
from mlflowkit.values import Outcome

pytestmark = pytest.mark.simulation
LEVEL = 0.05
RUNS = 60
SIGNATURE = Signature(task="classification", inputs=(), outputs=(), classes=("good", "bad"))
DRIFT = MetricSpec("drift", "prediction_drift", max=0.1)
ACCURACY = MetricSpec("accuracy", "accuracy", margin=0.02)
LOSS = MetricSpec("loss", "log_loss", margin=0.05)
AGREEMENT = MetricSpec("agreement", "agreement", min=0.9)
Block = Callable[[np.random.Generator, int, int], VariantCounts]
"""(random, requests, arm) -> counts of an arm's requests."""


CELLS_OF = np.array([cell_of(f"user-{user}") for user in range(2000)])


def sketch_of(users: np.ndarray) -> KeySketch:
    """The sketch of these requests' users, as `VariantCounter.record_key` makes it."""
    cells = np.bincount(CELLS_OF[users, 0], CELLS_OF[users, 1], minlength=CELLS)
    return KeySketch(len(users), tuple(map(int, cells)))


def counts_of(scores: np.ndarray, request: np.ndarray, users: np.ndarray | None = None) -> VariantCounts:
    """Counts of answered rows whose label is right with their score as probability."""
    sizes = np.bincount(request)
    keys = KeySketch() if users is None else sketch_of(users)
    labels = np.where(scores > 0.5, "bad", "good").astype(object)
    answers = {"label": labels, "probabilities": np.stack([1 - scores, scores], axis=1)}
    right = labels == "good"
    losses = -np.log(np.clip(1 - scores, 1e-6, 1))
    means = np.bincount(request, losses) / sizes
    by_row, by_request = _moments(losses), _moments(means)
    return VariantCounts(
        requests=len(sizes),
        rows=len(scores),
        keys=keys,
        predictions=shadow_comparison.prediction_counts(SIGNATURE, answers),
        request_predictions=shadow_comparison.request_prediction_counts(SIGNATURE, answers, request),
        quality={"accuracy": shadow_comparison.moments(right.astype(float)), "log_loss": by_row},
        request_quality={"accuracy": shadow_comparison.request_moments(right, request), "log_loss": by_request},
        agreement={"": shadow_comparison.moments(right.astype(float))},
        request_agreement={"": shadow_comparison.request_moments(right, request)},
        mirrored=len(sizes),
    )


def _moments(values: np.ndarray) -> Moments:
    return Moments(len(values), float(values.sum()), float((values**2).sum()))


def failed(spec: MetricSpec, block: Block, *, looks: int, requests: int, weight: float = 0.5) -> int:
    """How many of `RUNS` rollouts fail."""
    count = 0
    for seed in range(RUNS):
        random = np.random.default_rng(seed)
        arms = [VariantCounts(), VariantCounts()]
        traces: Mapping[str, Any] = {}
        outcome = Outcome.INCONCLUSIVE
        for _ in range(looks):
            challengers = int(random.binomial(requests, weight))
            sizes = (requests - challengers, challengers)
            arms = [arm + block(random, size, index) for index, (arm, size) in enumerate(zip(arms, sizes, strict=True))]
            evidence = Evidence("e", {1: dict(zip(("champion", "challenger"), arms, strict=True))})
            (result,), traces = judge(
                [spec], evidence, champion="champion", challenger="challenger", epochs=(1,), level=LEVEL, traces=traces
            )
            outcome = result.verdict.outcome
            if outcome is Outcome.FAILED:
                count += 1
                break
    return count


def batches(size: int, every: int = 200, bad: float = 0.3) -> Block:
    """Requests of one row, and one in ``every`` of ``size`` rows that are all alike."""

    def draw(random: np.random.Generator, requests: int, arm: int) -> VariantCounts:
        sizes = np.where(random.random(requests) < 1 / every, size, 1)
        request = np.repeat(np.arange(requests), sizes)
        scores = np.where(random.random(requests) < bad, 0.9, random.random(requests) * 0.5)[request]
        return counts_of(scores, request)

    return draw


class Users:
    """Requests of users who stay with their variant; each has a rate of its own, Beta of concentration 2."""

    def __init__(self, users: int, tail: float | None, bad: float = 0.3, shift: float = 0.0) -> None:
        self.users, self.tail, self.bad, self.shift = users, tail, bad, shift
        self.drawn: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def draw(self, random: np.random.Generator, requests: int, arm: int) -> VariantCounts:
        if id(random) not in self.drawn:
            activity = random.pareto(self.tail, self.users) + 1 if self.tail else np.ones(self.users)
            rates = random.beta(2 * self.bad, 2 * (1 - self.bad), self.users)
            self.drawn = {id(random): (activity, rates)}
        activity, rates = self.drawn[id(random)]
        own = np.arange(self.users) % 2 == arm
        users = random.choice(np.flatnonzero(own), requests, p=activity[own] / activity[own].sum())
        rate = np.minimum(rates[users] + (self.shift if arm else 0.0), 1.0)
        bad = random.random(requests) < rate
        scores = np.where(bad, 0.9, random.random(requests) * 0.5)
        return counts_of(scores, np.arange(requests), users)


def test_the_sketch_of_a_gateway_is_that_of_the_simulation_and_estimates_the_repeats() -> None:
    users = np.random.default_rng(1).zipf(1.5, 5000) % 2000
    counter = VariantCounter()
    for user in users.tolist():
        counter.record_key(f"user-{user}")
    sketch = counter.counts().keys
    assert sketch == sketch_of(users)
    exact = float(np.square(np.bincount(users)).sum()) / len(users)
    assert sketch.repeats == pytest.approx(exact, rel=0.35)
    parts = [sketch_of(part) for part in np.array_split(users, 3)]
    assert parts[0] + parts[1] + parts[2] == sketch
    assert 0.6 < 1 / sketch_of(np.arange(2000)).repeats <= 1


@pytest.mark.parametrize("spec", [DRIFT, ACCURACY, LOSS, AGREEMENT], ids=lambda spec: spec.name)
@pytest.mark.parametrize(("size", "looks"), [(100, 20), (10_000, 8)])
def test_batches_of_equal_rows_do_not_fail_an_equal_challenger(spec: MetricSpec, size: int, looks: int) -> None:
    bad = 0.08 if spec is AGREEMENT else 0.3
    assert failed(spec, batches(size, bad=bad), looks=looks, requests=1000) <= LEVEL * RUNS


def test_rare_labels_in_batches_do_not_fail_an_equal_challenger() -> None:
    rare = MetricSpec("drift", "prediction_drift", max=0.01)
    assert failed(rare, batches(14, bad=0.02), looks=20, requests=500) <= LEVEL * RUNS


@pytest.mark.parametrize("spec", [DRIFT, ACCURACY, LOSS], ids=lambda spec: spec.name)
@pytest.mark.parametrize(("users", "tail"), [(400, 1.5), (2000, 1.5)])
def test_heavy_sticky_users_do_not_fail_an_equal_challenger(spec: MetricSpec, users: int, tail: float | None) -> None:
    assert failed(spec, Users(users, tail).draw, looks=20, requests=1000) <= LEVEL * RUNS


def test_a_shift_is_still_seen_through_batches_and_users() -> None:
    def shifted(random: np.random.Generator, requests: int, arm: int) -> VariantCounts:
        return batches(100, bad=0.6 if arm else 0.3)(random, requests, arm)

    assert failed(DRIFT, shifted, looks=10, requests=500) >= 0.95 * RUNS
    assert failed(DRIFT, Users(2000, None, shift=0.4).draw, looks=10, requests=1000) >= 0.9 * RUNS
