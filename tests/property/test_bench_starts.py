"""Error rates of comparisons whose processes are each faster or slower as a whole, as address layouts make them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.bench.analysis import quantile, quantile_interval, ratio_interval, started_ratio_interval
from mlflowkit.bench.pairwise import compare_all
from mlflowkit.errors import UsageError
from tests.support import chance

pytestmark = pytest.mark.simulation

AA_TRIALS = 1200
"""So many comparisons of equals tell 0.05 from 0.083 (see `chance`). Seeds are fixed: a test never fails by luck."""
BLOCKS, WIDTH, STARTS = 8, 50, 5
"""As the defaults of `mlkit bench` have it: 2,000 requests in five starts."""
PLACED = 0.018
"""Standard deviation of the log speed of processes of one graph: as found in 25 pairs of lending's."""
QUANTILES = (0.5, 0.95, 0.99)
Side = list[np.ndarray]


def sides(
    seed: int, *, starts: int = STARTS, placed: float = PLACED, ratio: float = 1.0, blocks: int = BLOCKS
) -> tuple[Side, Side]:
    """Two candidates: in each start both have the weather of their rounds, and each a place of its own in memory."""
    generator = np.random.default_rng(seed)
    found: tuple[Side, Side] = ([], [])
    for _ in range(starts):
        weather = np.exp(0.1 * generator.normal(size=(blocks, 1)))
        for side, factor in zip(found, (ratio, 1.0), strict=True):
            times = 30.0 * (1 + generator.gamma(2, 0.05, size=(blocks, WIDTH)))
            side.append(times * weather * factor * math.exp(placed * generator.normal()))
    return found


def shares(seeds: int, hit: Callable[[float, float], bool], q: float = 0.5, **world: float) -> float:
    hits = 0
    for seed in range(seeds):
        low, high = started_ratio_interval(*sides(seed, **world), q)  # type: ignore[arg-type]
        hits += hit(low, high)
    return hits / seeds


@pytest.mark.parametrize("q", QUANTILES)
@pytest.mark.parametrize("placed", [0.0, PLACED, 0.05])
def test_twins_are_told_apart_in_one_comparison_of_twenty(q: float, placed: float) -> None:
    """0.05 is promised; sound intervals fail the limit (0.083) in one of a million draws of seeds."""
    wrong = shares(AA_TRIALS, lambda low, high: not low <= 1 <= high, q, placed=placed) * AA_TRIALS
    assert round(wrong) <= chance.most(AA_TRIALS, 0.05)


def test_one_start_each_tells_twins_apart_nearly_always() -> None:
    """Why starts are repeated: requests of one process, however many, are all of that process."""
    assert shares(100, lambda low, high: not low <= 1 <= high, starts=1, blocks=40) >= 0.7


@pytest.mark.parametrize(("starts", "least"), [(5, 0.7), (10, 0.97)])
def test_a_planted_slowdown_of_five_percent_is_found_and_its_interval_holds_it(starts: int, least: float) -> None:
    assert shares(200, lambda low, high: low > 1, starts=starts, ratio=1.05) >= least
    assert round(700 * shares(700, lambda low, high: low <= 1.05 <= high, starts=starts, ratio=1.05)) >= chance.least(
        700, 0.95
    )


@pytest.mark.parametrize(("q", "least"), [(0.5, 0.9), (0.95, 0.9), (0.99, 0.88)])
def test_intervals_of_a_quantile_cover_what_the_next_process_is_like(q: float, least: float) -> None:
    """95 % intervals of one candidate's own quantile, over its starts."""
    truth = quantile(np.concatenate([blocks for seed in range(2000, 2400) for blocks in sides(seed)[0]]), q)
    covered = 0
    for seed in range(200):
        low, high = quantile_interval(np.concatenate(sides(seed)[0]), q, starts=STARTS)
        covered += low <= truth <= high
    assert covered / 200 >= least


def test_twins_are_called_different_more_rarely_still() -> None:
    """A verdict asks for more than an interval without 1: differences below five percent are called alike."""
    verdicts = []
    for seed in range(300):
        one, two = sides(seed)
        verdicts += [found.verdict for found in compare_all({"a": one, "b": two}, 0.5, batch=1, label="p50")]
    assert sum(verdict in ("faster", "slower") for verdict in verdicts) / 300 <= 0.05
    assert verdicts.count("alike") / 300 >= 0.6, "and not by never saying anything"


def test_of_several_twins_none_is_called_different_in_nineteen_comparisons_of_twenty() -> None:
    """All intervals of one command hold together."""
    wrong = 0
    for seed in range(700):
        first, second = sides(seed)
        third, fourth = sides(10_000 + seed)
        found = compare_all({"a": first, "b": second, "c": third, "d": fourth}, 0.5, batch=1, label="p50")
        wrong += any(not one.low <= 1 <= one.high for one in found)
    assert wrong <= chance.most(700, 0.05)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), q=st.sampled_from(QUANTILES), ratio=st.floats(0.2, 5), starts=st.integers(1, 6))
def test_ratios_scale_and_invert(seed: int, q: float, ratio: float, starts: int) -> None:
    one, two = sides(seed, starts=starts)
    low, high = started_ratio_interval(one, two, q)
    assert 0 < low <= high
    assert started_ratio_interval(two, one, q) == pytest.approx((1 / high, 1 / low))
    slower = [blocks * ratio for blocks in one]
    assert started_ratio_interval(slower, two, q) == pytest.approx((low * ratio, high * ratio))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), starts=st.integers(3, 6), order=st.randoms(use_true_random=False))
def test_the_order_of_starts_changes_nothing(seed: int, starts: int, order: object) -> None:
    one, two = sides(seed, starts=starts)
    places = list(range(starts))
    order.shuffle(places)  # type: ignore[attr-defined]
    shuffled = started_ratio_interval([one[i] for i in places], [two[i] for i in places], 0.5)
    assert shuffled == pytest.approx(started_ratio_interval(one, two, 0.5))


def test_fewer_than_three_starts_rest_on_their_blocks() -> None:
    one, two = sides(1, starts=2)
    paired = ratio_interval(np.concatenate(one), np.concatenate(two), 0.5)
    assert started_ratio_interval(one, two, 0.5) == paired


@pytest.mark.parametrize(
    ("later", "earlier", "said"),
    [(3, 4, "as many starts on both sides; there are 3 and 4")],
)
def test_starts_that_do_not_pair_are_refused(later: int, earlier: int, said: str) -> None:
    def some(count: int) -> Sequence[np.ndarray]:
        return sides(0, starts=count)[0]

    with pytest.raises(UsageError, match=said):
        started_ratio_interval(some(later), some(earlier), 0.5)
    uneven = [*some(4)[:3], some(4)[3][:2]]
    with pytest.raises(UsageError, match="as many blocks on both sides; there are 2 and 8"):
        started_ratio_interval(uneven, some(4), 0.5)
