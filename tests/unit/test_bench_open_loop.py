"""Requests arrive when they were meant to, and what they waited for is theirs."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest

from mlflowkit.bench.analysis import quantile, summarise
from mlflowkit.bench.load.closed_loop import Callers
from mlflowkit.bench.load.open_loop import OpenLoad, arrivals, offer
from mlflowkit.bench.load.pattern import notes, pool_stretches
from mlflowkit.bench.measure import BLOCK, measure_blocks, timed_source
from mlflowkit.errors import UsageError


def load(latency: list[float], late: list[float], *, backlog: int = 0, callers: int = 1) -> OpenLoad:
    zeros = np.zeros(len(latency))
    return OpenLoad(np.array(latency), zeros, np.array(late), callers, 100.0, 100.0, backlog)


def test_constant_arrivals_are_evenly_spaced_and_random_ones_have_the_rate() -> None:
    assert arrivals(4, 5, "constant").tolist() == [0, 250_000_000, 500_000_000, 750_000_000, 1_000_000_000]
    drawn = arrivals(1000, 20_000, "poisson", seed=3)
    gaps = np.diff(drawn) / 1e6
    assert drawn[0] == 0
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1.0, rel=0.03)
    assert gaps.std() == pytest.approx(1.0, rel=0.05), "exponential: as spread as it is long"
    assert (arrivals(1000, 10, seed=1) == arrivals(1000, 10, seed=1)).all()
    assert (arrivals(1000, 10, seed=1) != arrivals(1000, 10, seed=2)).any()


def test_a_stall_is_in_the_latency_of_all_that_came_meanwhile() -> None:
    """A loop that waits for answers would have had one slow request of 200; a hundred came while it was slow."""

    def request(index: int) -> None:
        if index == 50:
            time.sleep(0.2)

    found = offer([request], arrivals(500, 200, "constant"))
    assert (found.latency_us > 1000).sum() >= 80
    assert found.latency_us[51] >= 195_000, "the next one waited for all but two milliseconds"
    assert found.queued_us[51] == pytest.approx(found.latency_us[51], rel=0.05)
    assert found.queued_us[:50].max() < 100_000


def test_one_stall_is_in_the_p99_of_an_open_loop_and_in_that_of_a_closed_one_it_is_not() -> None:
    """Coordinated omission: who asks again only when he was answered asks once while the server stalls."""

    def stalls(index: int) -> None:
        if index == 100:
            time.sleep(0.2)

    closed = measure_blocks({"closed": timed_source(stalls)}, 400, warm_up=1)["closed"].microseconds
    opened = offer([stalls], arrivals(800, 400, "constant")).latency_us
    assert closed.max() >= 200_000, "it did stall"
    assert quantile(closed, 0.99) < 20_000
    assert quantile(opened, 0.99) > 150_000
    assert quantile(opened, 0.50) < 20_000, "most were asked when it had caught up"


def test_four_callers_take_what_one_cannot() -> None:
    moments = arrivals(150, 60, "constant")
    alone = offer([lambda index: time.sleep(0.01)], moments)
    four = offer([lambda index: time.sleep(0.01)] * 4, moments)
    assert alone.saturated
    assert any("saturated" in words for words in notes([alone]))
    assert not four.saturated
    assert np.median(four.latency_us) < np.median(alone.latency_us) / 3
    assert alone.achieved < 101


def test_a_generator_that_fell_behind_is_no_open_loop() -> None:
    kept = load([100.0] * 100, [9.0] * 100)
    assert kept.open_loop
    assert notes([kept]) == []
    late = load([100.0] * 100, [11.0] * 100)
    assert not late.open_loop
    assert (
        "no open loop: the load generator itself was later than the requests took, by up to 11 µs" in notes([late])[0]
    )
    tail = load([100.0] * 98 + [200.0] * 2, [0.0] * 98 + [150.0] * 2)
    assert not tail.open_loop
    assert "by up to 150 µs" in notes([tail])[0]


def test_a_backlog_of_as_many_as_there_are_callers_is_none() -> None:
    assert not load([1.0] * 40, [0.0] * 40, backlog=4, callers=4).saturated
    assert load([1.0] * 40, [0.0] * 40, backlog=5, callers=4).saturated


def test_figures_are_json() -> None:
    pooled = pool_stretches([offer([lambda index: None], arrivals(2000, 50))])
    assert pooled["stretches"] == 1
    assert pooled["offered"] == pytest.approx(2000, rel=0.5)
    assert pooled["queued_p50_us"] <= pooled["queued_p99_us"]
    assert pooled["late_p50_us"] <= pooled["late_p99_us"]


def test_what_a_request_raises_ends_the_load() -> None:
    asked: list[int] = []

    def request(index: int) -> None:
        asked.append(index)
        if index == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        offer([request] * 2, arrivals(2000, 5000, "constant"))
    assert len(asked) < 50
    assert gc.isenabled()


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_no_load_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match="are no load"):
        arrivals(rate, 10)


def test_nobody_asking_is_refused() -> None:
    with pytest.raises(UsageError, match="loop needs a caller"):
        offer([], arrivals(1, 1))
    with pytest.raises(UsageError, match="loop needs a caller"):
        Callers.of([])
    with pytest.raises(UsageError, match="no arrivals 'bursts'"):
        arrivals(1, 1, "bursts")  # type: ignore[arg-type]


def test_callers_ask_at_once_and_each_request_is_asked_once() -> None:
    asked: list[int] = []
    together = threading.Barrier(3)

    def request(index: int) -> None:
        asked.append(index)
        if index < 3:
            together.wait(10)  # three at once, or never

    with Callers.of([request] * 3) as source:
        times = source(0, 11)
    assert sorted(asked) == list(range(11))
    assert len(times) == 11
    assert all(taken > 0 for taken in times)


def test_callers_are_a_source_like_any_other() -> None:
    with Callers.of([lambda index: time.sleep(0.0005)] * 4) as source:
        blocks = measure_blocks({"four": source}, BLOCK, warm_up=4)["four"].microseconds
    one, four = (summarise(blocks, 1, "latency_p50", callers=callers).throughput for callers in (1, 4))
    assert four == pytest.approx(4 * one)
    assert four < 4 / 0.0005, "no more than four callers who wait half a millisecond each"


def test_what_one_caller_raises_is_passed_on() -> None:
    def broken(index: int) -> None:
        raise ZeroDivisionError

    with Callers.of([broken, lambda index: None]) as source, pytest.raises(ZeroDivisionError):
        source(0, 4)
