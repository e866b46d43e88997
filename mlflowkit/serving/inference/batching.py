"""Adaptive batching: while one call is in flight, calls gather for the next. No timer: an idle model is asked at once.

Pure asyncio and NumPy: whatever answers is handed in. Source of the idea: D. Crankshaw et al., "Clipper: A Low-Latency
Online Prediction Serving System" (NSDI 2017), section 4.3; here the batch is what came while the model was busy.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlflowkit.errors import EngineError
from mlflowkit.serving.protocol.http_error import Refusal

if TYPE_CHECKING:
    Inputs = Mapping[str, np.ndarray]
    Answers = Mapping[str, np.ndarray]
    Ask = Callable[[Inputs, int], Awaitable[Answers]]

MAX_WAITING = 1024
"""Calls that may wait for one model in one process; more are refused."""


class LostError(EngineError):
    """What was to answer is gone, or too late: there is no point in asking it the same in smaller parts."""


@dataclass(slots=True)
class _Call:
    inputs: Inputs
    rows: int
    answer: asyncio.Future[Answers]


class Batcher:
    """Gathers calls into batches of at most ``max_rows`` rows and hands them to ``ask``. Lives on one event loop.

    ``lanes`` is how many calls of ``ask`` may be in flight at once; it may be changed at any time. A call whose caller
    is cancelled while it waits is left out; one in flight is answered for the others. A call with more rows than
    ``max_rows`` goes alone.
    """

    def __init__(self, ask: Ask, *, max_rows: int, max_waiting: int = MAX_WAITING, lanes: int = 1) -> None:
        self.lanes = lanes
        self._ask = ask
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._waiting: deque[_Call] = deque()
        self._flying: set[asyncio.Task[None]] = set()

    async def run(self, inputs: Inputs, rows: int) -> Answers:
        """Answers of one call, ``rows`` long each. Raises EngineError, or Refusal(503) when too many calls wait."""
        if len(self._waiting) >= self._max_waiting:
            raise Refusal(503, f"{self._max_waiting} requests wait for this model already", ((b"retry-after", b"1"),))
        call = _Call(inputs, rows, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        self.pump()
        return await call.answer

    def pump(self) -> None:
        """Send what waits down the lanes that are free."""
        while self._waiting and len(self._flying) < self.lanes:
            batch = self._take()
            if batch:
                flight = asyncio.get_running_loop().create_task(self._carry(batch))
                self._flying.add(flight)
                flight.add_done_callback(self._landed)

    def fail(self, error: EngineError) -> None:
        """Give up on all that waits."""
        while self._waiting:
            settle(self._waiting.popleft().answer, error)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flying.discard(flight)
        self.pump()

    def _take(self) -> list[_Call]:
        """The next batch: calls in their order, as long as their tensors are alike and their rows fit."""
        batch: list[_Call] = []
        rows, alike = 0, None
        while self._waiting:
            call = self._waiting[0]
            if not call.answer.done():
                kind = _kind(call.inputs)
                if batch and (kind != alike or rows + call.rows > self._max_rows):
                    break
                batch.append(call)
                rows, alike = rows + call.rows, kind
            self._waiting.popleft()
        return batch

    async def _carry(self, batch: list[_Call]) -> None:
        try:
            answers = await ask_together(self._ask, [call.inputs for call in batch], [call.rows for call in batch])
        except BaseException as error:
            for call in batch:
                settle(call.answer, error if isinstance(error, Exception) else LostError("the gateway is stopping"))
            if not isinstance(error, Exception):
                raise
        else:
            for call, answer in zip(batch, answers, strict=True):
                settle(call.answer, answer)


def settle(future: asyncio.Future[Answers], outcome: Answers | Exception) -> None:
    """Give a future its outcome, unless whoever waited for it is gone."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


async def ask_together(ask: Ask, parts: Sequence[Inputs], rows: Sequence[int]) -> list[Answers | EngineError]:
    """Ask several parts with one call. What fails is asked again by halves, so that one bad part fails alone.

    A part's answer is its EngineError where it has none. A LostError is the answer of every part at once.
    """
    try:
        return list(split(await ask(join(parts), sum(rows)), rows))
    except LostError as error:
        return [error] * len(parts)
    except EngineError as error:
        if len(parts) == 1:
            return [error]
    middle = len(parts) // 2
    left = await ask_together(ask, parts[:middle], rows[:middle])
    return left + await ask_together(ask, parts[middle:], rows[middle:])


def join(parts: Sequence[Inputs]) -> Inputs:
    """Tensors of several calls one below the other; they must be alike but for their rows.

    >>> join([{"x": np.zeros((1, 2))}, {"x": np.ones((2, 2))}])["x"].shape
    (3, 2)
    """
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def split(answers: Answers, rows: Sequence[int]) -> list[Answers]:
    """Each call's share of the answers, as views. Raises EngineError when they do not have a row for each row asked."""
    total = sum(rows)
    for name, array in answers.items():
        if array.ndim == 0 or len(array) != total:
            found = "a single value" if array.ndim == 0 else f"{len(array)} rows"
            raise EngineError(f"output {name} has {found} for {total} rows")
    if len(rows) == 1:
        return [answers]
    shares: list[Answers] = []
    begin = 0
    for count in rows:
        end = begin + count
        shares.append({name: array[begin:end] for name, array in answers.items()})
        begin = end
    return shares


def _kind(inputs: Inputs) -> list[tuple[str, np.dtype, tuple[int, ...]]]:
    return [(name, array.dtype, array.shape[1:]) for name, array in inputs.items()]
