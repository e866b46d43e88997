"""Adaptive batching: while one call is in flight, calls gather for the next. No timer: an idle model runs at once.

Pure asyncio and NumPy; the function that runs a batch is passed in. After D. Crankshaw et al., "Clipper: A Low-Latency
Online Prediction Serving System" (NSDI 2017), section 4.3; here a batch is the calls that arrived while the model was
busy.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mlflowkit.errors import EngineError
from mlflowkit.serving.protocol.http_error import RETRY, RequestError

T = TypeVar("T")
Inputs = Mapping[str, np.ndarray]
Outputs = Mapping[str, np.ndarray]
Run = Callable[[Inputs, int], Awaitable[Outputs]]
MAX_WAITING = 1024
"""Limit on the calls that wait for one model in one process; more are refused."""


class LostError(EngineError):
    """The model's process is gone, or too late: retrying with smaller batches is pointless."""


@dataclass(slots=True)
class _PendingCall:
    inputs: Inputs
    rows: int
    outputs: asyncio.Future[Outputs]


class Batcher:
    """Gathers calls into batches of at most ``max_rows`` rows for ``run_batch``. Lives on one event loop.

    ``max_in_flight`` limits the concurrent calls of ``run_batch`` and may change at any time. A waiting call whose
    caller is cancelled is left out of the batch. A call with more rows than ``max_rows`` is a batch of its own.
    """

    def __init__(
        self, run_batch: Run, *, max_rows: int, max_waiting: int = MAX_WAITING, max_in_flight: int = 1
    ) -> None:
        self.max_in_flight = max_in_flight
        self._run_batch = run_batch
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._waiting: deque[_PendingCall] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()

    async def run(self, inputs: Inputs, rows: int) -> Outputs:
        """Outputs of one call, ``rows`` long each. Raises EngineError; RequestError(503) when the queue is full."""
        if len(self._waiting) >= self._max_waiting:
            raise RequestError(503, f"{self._max_waiting} requests wait for this model already", RETRY)
        call = _PendingCall(inputs, rows, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        self.dispatch()
        return await call.outputs

    def dispatch(self) -> None:
        """Start batches of the waiting calls while ``max_in_flight`` allows."""
        while self._waiting and len(self._in_flight) < self.max_in_flight:
            batch = self._next_batch()
            if batch:
                task = asyncio.get_running_loop().create_task(self._run(batch))
                self._in_flight.add(task)
                task.add_done_callback(self._finished)

    def fail(self, error: EngineError) -> None:
        while self._waiting:
            resolve(self._waiting.popleft().outputs, error)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self.dispatch()

    def _next_batch(self) -> list[_PendingCall]:
        """The next batch: calls in order, as long as their tensors have one layout and their rows fit."""
        batch: list[_PendingCall] = []
        rows, batch_layout = 0, None
        while self._waiting:
            call = self._waiting[0]
            if not call.outputs.done():
                layout = [(name, array.dtype, array.shape[1:]) for name, array in call.inputs.items()]
                if batch and (layout != batch_layout or rows + call.rows > self._max_rows):
                    break
                batch.append(call)
                rows, batch_layout = rows + call.rows, layout
            self._waiting.popleft()
        return batch

    async def _run(self, batch: list[_PendingCall]) -> None:
        try:
            results = await run_batched(self._run_batch, [call.inputs for call in batch], [call.rows for call in batch])
        except BaseException as error:
            for call in batch:
                resolve(call.outputs, error if isinstance(error, Exception) else LostError("the gateway is stopping"))
            if not isinstance(error, Exception):
                raise
        else:
            for call, result in zip(batch, results, strict=True):
                resolve(call.outputs, result)


def resolve(future: asyncio.Future[T], outcome: T | Exception) -> None:
    """Set a future's result or exception, unless it was cancelled meanwhile."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


async def run_batched(run: Run, parts: Sequence[Inputs], rows: Sequence[int]) -> list[Outputs | EngineError]:
    """Run several parts as one batch; returns outputs or an EngineError for each part.

    A batch that fails is retried by halves, so that one bad part fails alone; after a LostError, all parts fail.
    """
    try:
        return list(split_rows(await run(concatenate(parts), sum(rows)), rows))
    except LostError as error:
        return [error] * len(parts)
    except EngineError as error:
        if len(parts) == 1:
            return [error]
    middle = len(parts) // 2
    left = await run_batched(run, parts[:middle], rows[:middle])
    return left + await run_batched(run, parts[middle:], rows[middle:])


def concatenate(parts: Sequence[Inputs]) -> Inputs:
    """Concatenate the tensors of several calls by rows; their layouts must be equal.

    >>> concatenate([{"x": np.zeros((1, 2))}, {"x": np.ones((2, 2))}])["x"].shape
    (3, 2)
    """
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def split_rows(outputs: Outputs, rows: Sequence[int]) -> list[Outputs]:
    """Each call's rows of a batch's outputs, as views. Raises EngineError when the row counts differ."""
    total = sum(rows)
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != total:
            size = "a single value" if array.ndim == 0 else f"{len(array)} rows"
            raise EngineError(f"output {name} has {size} for {total} rows")
    if len(rows) == 1:
        return [outputs]
    spans = zip(rows, itertools.accumulate(rows), strict=True)
    return [{name: array[end - count : end] for name, array in outputs.items()} for count, end in spans]
