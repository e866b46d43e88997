"""Elimination stops the best candidate no more often than promised, and stops worse ones; the Pareto front holds.

Chance that a test fails when all is well: 0, as all seeds are fixed. The bounds leave room for other random numbers,
since Bonferroni over looks and opponents keeps the actual error rate far below `early_stopping.ERROR`.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.optimization import early_stopping
from mlflowkit.optimization.early_stopping import eliminate, looks
from mlflowkit.optimization.objective import CandidateFigures
from mlflowkit.optimization.pareto import Point, pareto_front

pytestmark = pytest.mark.simulation

SAME = Point({"metric": (0.0, 0.0), "size": (1.0, 1.0), "memory": (1.0, 1.0)})


def simulated(seed: int, pace: dict[str, float], rounds: int = 100, *, weather: float = 0.15) -> dict[str, np.ndarray]:
    """Latencies in microseconds [rounds, 50]: heavy tails, and weather of several rounds that strikes all."""
    random = np.random.default_rng(seed)
    steps = random.normal(0, weather, size=rounds)
    common = np.zeros(rounds)
    for index in range(1, rounds):
        common[index] = 0.8 * common[index - 1] + steps[index]
    found = {}
    for name, factor in pace.items():
        own = random.normal(0, weather / 3, size=rounds)
        tail = np.where(random.random((rounds, 50)) < 0.02, random.exponential(2.0, (rounds, 50)), 0.0)
        found[name] = factor * np.exp(common + own)[:, None] * (20 * random.gamma(30, 1 / 30, (rounds, 50)) + 40 * tail)
    return found


def stopped(blocks: dict[str, np.ndarray], objective: str) -> set[str]:
    """Who is stopped, over all looks."""
    gone: set[str] = set()
    at = looks(len(next(iter(blocks.values()))))
    for done in at:
        alive = {name: CandidateFigures(taken[:done]) for name, taken in blocks.items() if name not in gone}
        rest = dict.fromkeys(alive, SAME)
        gone |= {one.name for one in eliminate(alive, rest, objective, eligible=list(alive), looks=len(at))}
    return gone


@pytest.mark.parametrize("objective", ["latency_p50", "latency_p99", "throughput"])
def test_of_candidates_that_are_alike_the_first_is_stopped_no_more_often_than_the_error_rate(objective: str) -> None:
    runs, names = 150, [f"c{index}" for index in range(6)]
    wrong = sum("c0" in stopped(simulated(seed, dict.fromkeys(names, 1.0)), objective) for seed in range(runs))
    most = early_stopping.ERROR + 3 * (early_stopping.ERROR * (1 - early_stopping.ERROR) / runs) ** 0.5
    assert wrong / runs <= most


def test_the_best_is_kept_and_those_that_are_half_as_fast_are_stopped_early() -> None:
    pace = {"best": 1.0, "near": 1.03, "slow": 1.5, "slower": 2.0}
    runs = [stopped(simulated(seed, pace), "latency_p50") for seed in range(60)]
    assert sum("best" in one for one in runs) / len(runs) <= early_stopping.ERROR
    assert sum({"slow", "slower"} <= one for one in runs) / len(runs) >= 0.9


def test_a_slower_candidate_that_is_better_in_anything_is_not_dominated() -> None:
    blocks = simulated(3, {"fast": 1.0, "small": 3.0})
    figures = {name: CandidateFigures(taken) for name, taken in blocks.items()}
    small = Point({**SAME.bounds, "size": (0.2, 0.2)})
    both = ["fast", "small"]
    (known,) = eliminate(figures, {"fast": SAME, "small": small}, "latency_p50", eligible=both, looks=1)
    assert (known.name, known.dominated) == ("small", False)
    assert "it cannot be picked" in known.reason
    assert not eliminate(figures, {"fast": SAME, "small": small}, "size", eligible=both, looks=1)
    (gone,) = eliminate(figures, {"fast": SAME, "small": SAME}, "latency_p50", eligible=both, looks=1)
    assert (gone.name, gone.by, gone.dominated) == ("small", "fast", True)
    assert "times that of fast" in gone.reason
    assert not eliminate(figures, dict.fromkeys(both, SAME), "latency_p50", eligible=["small"], looks=1)
    assert not eliminate(figures, dict.fromkeys(both, SAME), "latency_p50", eligible=both, spared=["small"], looks=1)


def test_looks_come_before_the_last_round_and_further_and_further_apart() -> None:
    for rounds in (1, 10, 11, 40, 100, 1000):
        found = looks(rounds)
        assert list(found) == sorted(set(found))
        assert all(early_stopping.FIRST_LOOK <= one < rounds for one in found)
    assert len(looks(1000)) <= 10


# ------------------------------------------------------------------------------------------------------------ front

BOUNDS = st.tuples(st.integers(0, 6), st.integers(0, 3)).map(lambda pair: (float(pair[0]), float(sum(pair))))
POINTS = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=2),
    st.fixed_dictionaries({"latency": BOUNDS, "metric": BOUNDS, "size": BOUNDS}).map(Point),
    min_size=1,
    max_size=8,
)


@given(POINTS)
def test_domination_is_a_strict_partial_order(points: dict[str, Point]) -> None:
    found = list(points.values())
    for one in found:
        assert not one.dominates(one)
        for other in found:
            assert not (one.dominates(other) and other.dominates(one))
            for third in found:
                assert not (one.dominates(other) and other.dominates(third)) or one.dominates(third)


@given(POINTS, st.randoms(use_true_random=False))
def test_the_front_is_never_empty_and_whatever_is_not_on_it_is_dominated_by_one_that_is(
    points: dict[str, Point], random: object
) -> None:
    found = pareto_front(points)
    assert found
    for name, point in points.items():
        assert (name in found) != any(points[other].dominates(point) for other in found)
    names = list(points)
    random.shuffle(names)  # type: ignore[attr-defined]
    assert set(pareto_front({name: points[name] for name in names})) == set(found)


@given(POINTS)
@settings(max_examples=50)
def test_what_is_added_moves_onto_the_front_or_is_dominated(points: dict[str, Point]) -> None:
    best = Point({"latency": (-2.0, -1.0), "metric": (-2.0, -1.0), "size": (-2.0, -1.0)})
    assert pareto_front({**points, "best": best}) == ["best"]
