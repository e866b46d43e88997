"""How often gates on time are wrong, over all looks: on quiet and on busy machines, and where load comes and goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mlflowkit.bench.sequential.sampling import LatencyBudget
from mlflowkit.stages.evaluation.gating import Gate, judge_time, rivals, undecided_times
from mlflowkit.stages.evaluation.gating import _gate_specs as specs_of
from mlflowkit.stages.evaluation.timing import PICKED, TimingEvidence
from mlflowkit.values import Outcome
from tests.support.chance import most
from tests.support.fake_machine import FakeMachine, Requests

pytestmark = pytest.mark.simulation

RUNS = 150
ERROR = 0.025
"""(1 - confidence) / 2: what the gate promises for a wrong PASSED and for a wrong FAILED."""
BUDGET = LatencyBudget(6.0, 80)
P99 = Gate(metric="latency_p99_ms", max=1.0)
RATIO = Gate(metric="latency_ratio", against="champion", max=1.5)

Load = Callable[[float], float]


def smooth(p99_ms: float) -> Requests:
    """Requests with this 99th percentile: log-normal with a standard deviation of a quarter."""
    scale = p99_ms / 1000 / np.exp(0.25 * 2.3263)
    return lambda generator, count: scale * np.exp(0.25 * generator.normal(size=count))


def rarely_slow(share: float) -> Requests:
    """Requests of which a share takes 8 ms, longer than a slice of the processor, and the others 0.3 ms."""
    return lambda generator, count: np.where(generator.random(count) < share, 8e-3, 3e-4)


def median_of(milliseconds: float) -> Requests:
    return lambda generator, count: milliseconds / 1000 * np.exp(0.25 * generator.normal(size=count))


def quiet(seed: int) -> Load:
    return lambda now: 0.0


def busy(seed: int) -> Load:
    return lambda now: 8.0


def in_gusts(seed: int) -> Load:
    """Eight busy processes for about half of the time, in gusts of 0.1 to 0.7 seconds."""
    generator = np.random.default_rng(10_000 + seed)
    changes = np.cumsum(generator.uniform(0.1, 0.7, size=2000))
    return lambda now: 8.0 * float(np.searchsorted(changes, now) % 2)


def outcomes(
    gate: Gate, graphs: dict[str, Requests], load: Callable[[int], Load], hidden: bool = False
) -> Counter[str]:
    counts: Counter[str] = Counter()
    evidence = TimingEvidence("a machine", budget=BUDGET, alike=frozenset(rivals([gate])))
    for seed in range(RUNS):
        machine = FakeMachine(load(seed), seed, hidden)
        rounds = machine.measure(
            {name: machine.source(requests) for name, requests in graphs.items()},
            lambda rounds: not undecided_times([gate], replace(evidence, rounds=rounds)),
            BUDGET,
        )
        verdict = judge_time(gate, next(specs_of(gate)), replace(evidence, rounds=rounds))
        counts[verdict.outcome] += 1
    return counts


@pytest.mark.parametrize("load", [quiet, in_gusts])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_graph_at_its_limit_is_seldom_called_anything(load: Callable[[int], Load], hidden: bool) -> None:
    """The worst case of both errors: the 99th percentile is the limit itself."""
    counts = outcomes(P99, {PICKED: smooth(1.0)}, load, hidden)
    assert counts[Outcome.PASSED] <= most(RUNS, ERROR)
    assert counts[Outcome.FAILED] <= most(RUNS, ERROR)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("load", [busy, in_gusts])
def test_no_load_makes_a_graph_within_its_limit_fail(load: Callable[[int], Load], hidden: bool) -> None:
    counts = outcomes(P99, {PICKED: smooth(0.8)}, load, hidden)
    assert counts[Outcome.FAILED] <= (0 if load is busy else most(RUNS, ERROR))


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("load", [quiet, busy, in_gusts])
def test_no_load_makes_a_graph_beyond_its_limit_pass(load: Callable[[int], Load], hidden: bool) -> None:
    """1.5 % of requests are slow, and an interruption hits them most of all: leaving out what was interrupted request
    by request would leave fast ones only."""
    counts = outcomes(P99, {PICKED: rarely_slow(0.015)}, load, hidden)
    assert counts[Outcome.PASSED] <= most(RUNS, ERROR)


@pytest.mark.parametrize("load", [quiet, busy, in_gusts])
def test_a_ratio_at_its_limit_is_seldom_called_anything(load: Callable[[int], Load]) -> None:
    counts = outcomes(RATIO, {PICKED: median_of(0.15), "champion": median_of(0.1)}, load)
    assert counts[Outcome.PASSED] <= most(RUNS, ERROR)
    assert counts[Outcome.FAILED] <= most(RUNS, ERROR)


@pytest.mark.parametrize("load", [quiet, busy, in_gusts])
def test_a_ratio_away_from_its_limit_is_decided_on_any_machine(load: Callable[[int], Load]) -> None:
    for slower, outcome in ((1.1, Outcome.PASSED), (2.0, Outcome.FAILED)):
        counts = outcomes(RATIO, {PICKED: median_of(0.1 * slower), "champion": median_of(0.1)}, load)
        assert counts[outcome] >= 0.95 * RUNS, counts
