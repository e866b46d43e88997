"""Adaptive batching: what gathers, what is bounded, and who fails when a batch does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import numpy as np
import pytest

from mlflowkit.errors import EngineError
from mlflowkit.serving.inference.batching import Batcher, LostError, run_batched
from mlflowkit.serving.protocol.http_error import RequestError
from tests.support.waiting import wait_for_async

Arrays = Mapping[str, np.ndarray]


def column(*values: float, name: str = "x") -> Arrays:
    return {name: np.array(values, dtype=np.float32).reshape(-1, 1)}


class Doubler:
    """Doubles its input when ``gate`` is open; remembers the rows of each call, and fails as it is told."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails: Callable[[np.ndarray], Exception | None] = lambda values: None

    async def __call__(self, inputs: Arrays, rows: int) -> Arrays:
        (values,) = inputs.values()
        assert len(values) == rows
        self.calls.append(rows)
        await self.gate.wait()
        error = self.fails(values)
        if error is not None:
            raise error
        return {"y": values * 2}


def bad(values: np.ndarray) -> Exception | None:
    return EngineError("a row is negative") if (values < 0).any() else None


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


def test_calls_gather_while_one_is_in_flight_and_each_gets_its_own_rows() -> None:
    async def test() -> None:
        ask = Doubler()
        batcher = Batcher(ask, max_rows=8)
        ask.gate.clear()
        first = asyncio.ensure_future(batcher.run(column(1), 1))
        await wait_for_async(lambda: ask.calls == [1])
        rest = [asyncio.ensure_future(batcher.run(column(value, -value), 2)) for value in (2, 3, 4)]
        await asyncio.sleep(0)
        ask.gate.set()
        assert (await first)["y"].tolist() == [[2]]
        assert [(await one)["y"].ravel().tolist() for one in rest] == [[4, -4], [6, -6], [8, -8]]
        assert ask.calls == [1, 6]

    run(test)


def test_a_batch_has_at_most_max_rows_unless_one_call_has_more() -> None:
    async def test() -> None:
        ask = Doubler()
        batcher = Batcher(ask, max_rows=4)
        ask.gate.clear()
        calls = [asyncio.ensure_future(batcher.run(column(*range(rows)), rows)) for rows in (1, 3, 2, 9, 1)]
        await wait_for_async(lambda: bool(ask.calls))
        ask.gate.set()
        assert [len((await call)["y"]) for call in calls] == [1, 3, 2, 9, 1]
        assert ask.calls == [1, 3, 2, 9, 1]

    run(test)


def test_tensors_that_are_not_alike_go_apart() -> None:
    async def test() -> None:
        ask = Doubler()
        batcher = Batcher(ask, max_rows=8)
        ask.gate.clear()
        calls = [asyncio.ensure_future(batcher.run(column(1, name=name), 1)) for name in "xxyyx"]
        await wait_for_async(lambda: bool(ask.calls))
        ask.gate.set()
        await asyncio.gather(*calls)
        assert ask.calls == [1, 1, 2, 1]

    run(test)


def test_a_bad_row_fails_alone() -> None:
    async def test() -> None:
        ask = Doubler()
        ask.fails = bad
        batcher = Batcher(ask, max_rows=64)
        ask.gate.clear()
        calls = [asyncio.ensure_future(batcher.run(column(value), 1)) for value in (0, 1, 2, -3, 4, 5)]
        await wait_for_async(lambda: bool(ask.calls))
        ask.gate.set()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(one, EngineError) for one in found] == [False, False, False, True, False, False]

    run(test)


def test_what_is_lost_is_not_asked_again() -> None:
    async def test() -> None:
        ask = Doubler()
        ask.fails = lambda values: LostError("it died")
        found = await run_batched(ask, [column(1), column(2), column(3)], [1, 1, 1])
        assert [str(one) for one in found] == ["it died"] * 3
        assert ask.calls == [3]

    run(test)


def test_cancelled_callers_leave_the_others_their_answers() -> None:
    async def test() -> None:
        ask = Doubler()
        batcher = Batcher(ask, max_rows=8)
        ask.gate.clear()
        flying = asyncio.ensure_future(batcher.run(column(1), 1))
        await wait_for_async(lambda: ask.calls == [1])
        left, stays = (asyncio.ensure_future(batcher.run(column(value), 1)) for value in (2, 3))
        await asyncio.sleep(0)
        flying.cancel()
        left.cancel()
        await asyncio.sleep(0)
        ask.gate.set()
        assert (await stays)["y"].tolist() == [[6]]
        assert ask.calls == [1, 1]
        assert flying.cancelled()

    run(test)


def test_more_than_may_wait_is_refused_at_once() -> None:
    async def test() -> None:
        ask = Doubler()
        batcher = Batcher(ask, max_rows=1, max_waiting=3)
        ask.gate.clear()
        calls = [asyncio.ensure_future(batcher.run(column(1), 1)) for _ in range(4)]  # one flies, three wait
        await wait_for_async(lambda: bool(ask.calls))
        with pytest.raises(RequestError) as refused:
            await batcher.run(column(1), 1)
        assert refused.value.status == 503
        ask.gate.set()
        await asyncio.gather(*calls)

    run(test)


def test_answers_of_another_length_are_an_error_and_not_someone_elses_rows() -> None:
    async def short(inputs: Arrays, rows: int) -> Arrays:
        return {"y": np.zeros((rows - 1, 1))}

    async def test() -> None:
        (found,) = await run_batched(short, [column(1, 2, 3)], [3])
        assert isinstance(found, EngineError)
        assert "2 rows for 3 rows" in found.message

    run(test)


def test_without_a_lane_calls_wait_until_there_is_one_or_they_are_given_up() -> None:
    async def test() -> None:
        ask = Doubler()
        batcher = Batcher(ask, max_rows=8, max_in_flight=0)
        first, second = (asyncio.ensure_future(batcher.run(column(value), 1)) for value in (1, 2))
        await asyncio.sleep(0)
        assert ask.calls == []
        batcher.max_in_flight = 1
        batcher.dispatch()
        assert (await second)["y"].tolist() == [[4]]
        assert first.done()
        batcher.max_in_flight = 0
        lost = asyncio.ensure_future(batcher.run(column(3), 1))
        await asyncio.sleep(0)
        batcher.fail(LostError("gone"))
        with pytest.raises(LostError, match="gone"):
            await lost

    run(test)
