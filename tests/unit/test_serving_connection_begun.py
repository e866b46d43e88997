"""A coroutine is begun where it is called, and goes on as a task only where it waits."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from mlflowkit.serving.http.exchange import start_eagerly


def test_what_never_waits_is_over_at_once_and_needs_no_task() -> None:
    seen = []

    async def quick() -> None:
        seen.append("done")

    async def test() -> None:
        assert start_eagerly(quick(), asyncio.get_running_loop()) is None
        assert seen == ["done"]

    uvloop.run(test())


@pytest.mark.parametrize("late", [False, True], ids=["waits", "is already there"])
def test_what_waits_goes_on_as_a_task_with_what_it_waited_for(late: bool) -> None:
    seen: list[object] = []

    async def test() -> None:
        loop = asyncio.get_running_loop()
        first: asyncio.Future[str] = loop.create_future()

        async def slow() -> None:
            seen.append(await first)
            await asyncio.sleep(0)
            async with asyncio.timeout(5):  # after the first wait there is a task to ask for
                seen.append("timeout")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(loop.create_future(), 0.001)
            seen.append("end")

        task = start_eagerly(slow(), loop)
        assert task is not None
        assert seen == []
        if not late:
            await asyncio.sleep(0.01)
        first.set_result("value")
        await task

    uvloop.run(test())
    assert seen == ["value", "timeout", "end"]


def test_an_error_is_the_callers_or_the_tasks() -> None:
    async def fails(waits: bool) -> None:
        if waits:
            await asyncio.sleep(0)
        raise KeyError("x")

    async def test() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(KeyError):
            start_eagerly(fails(False), loop)
        task = start_eagerly(fails(True), loop)
        assert task is not None
        with pytest.raises(KeyError):
            await task

    uvloop.run(test())


def test_cancelling_the_task_cancels_the_coroutine() -> None:
    seen = []

    async def waits() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            seen.append("ended")

    async def test() -> None:
        task = start_eagerly(waits(), asyncio.get_running_loop())
        assert task is not None
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    uvloop.run(test())
    assert seen == ["ended"]
