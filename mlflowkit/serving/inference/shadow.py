"""Mirroring: answered requests go on to shadows, in batches, behind queues that drop and count.

A shadow has one call in flight, with a deadline, and a queue that is bounded in requests and bytes. What does not fit
is dropped and counted; a shadow that fails or hangs is left alone for a moment, while its queue fills up and drops. So
the worst that a shadow can do to the event loop is a few microseconds a request. A colocated shadow runs in a
thread of its own, under the same interpreter lock as the champion: `isolated` is the placement for shadows.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from mlflowkit.errors import EngineError, MlkitError
from mlflowkit.serving.inference.answer_records import Mirrored, Record, Tap
from mlflowkit.serving.inference.batching import LostError, ask_together, settle
from mlflowkit.serving.inference.counters import Tally
from mlflowkit.serving.inference.router import mirrored
from mlflowkit.serving.inference.variants import Loaded, Model, Versions
from mlflowkit.serving.protocol.open_inference import Refusal, Schema, finite

if TYPE_CHECKING:
    from mlflowkit.ports import Session

    Inputs = Mapping[str, np.ndarray]

GATHER_SECONDS = 0.01
"""How long requests gather after the first of a batch: a shadow's answer is nobody's to wait for."""
MAX_QUEUED = 2048
"""Requests that may wait for one shadow."""
MAX_BYTES = 64 << 20
"""Bytes of tensors that may wait for one shadow."""
MAX_ROWS = 256
"""Rows of a batch; one request may have more."""
DEADLINE_SECONDS = 2.0
"""A batch that takes longer counts as failed."""
PAUSE_SECONDS = 0.25
"""How long a shadow that answered nothing of a batch is left alone."""
_log = logging.getLogger("mlflowkit.serving")


@dataclass(slots=True)
class _Waiting:
    record: Record
    source: Model
    tally: Tally
    size: int


class ShadowMirror:
    """A `records.Mirror` over the shadows of whatever table ``versions`` points at. Lives on one event loop.

    Each request that the shadow's sampling takes counts as mirrored in its tally, and one that the queue does not take
    as dropped. One that the shadow was asked counts among its requests, and among its errors when it had no answer;
    its latency is not tallied, because a batch's is no request's.
    """

    def __init__(self, versions: Versions, tap: Tap, *, deadline: float = DEADLINE_SECONDS) -> None:
        self._versions = versions
        self._tap = tap
        self._deadline = deadline
        self._active: Loaded | None = None
        self._lanes: list[tuple[_Lane, Tally]] = []

    def offer(self, record: Record) -> None:
        """Queue a request for each shadow that takes it. Returns at once, never raises."""
        active = self._versions.active
        if active is None:
            return
        if active is not self._active:
            self._follow(active)
        for lane, tally in self._lanes:
            variant = lane.shadow.variant
            if variant.sampling < 1.0 and not mirrored(active.table, variant.name, variant.sampling, record.id):
                continue
            tally.mirrored += 1
            source = active.by_name.get(record.answered)
            if source is None or not lane.take(record, source, tally):
                tally.dropped += 1

    def _follow(self, active: Loaded) -> None:
        """Keep the lanes of shadows that stay, so that what waits for them is not lost; close the others."""
        before = {lane.key: lane for lane, _ in self._lanes}
        self._active, self._lanes = active, []
        for shadow in active.shadows:
            lane = before.pop(_key(shadow), None) or _Lane(shadow, self._tap, self._deadline)
            lane.shadow = shadow
            self._lanes.append((lane, active.tallies[shadow.variant.name]))
        for gone in before.values():
            gone.close()


def _key(model: Model) -> tuple[str, int]:
    return model.variant.name, id(model.session if model.remote is None else model.remote)


class _Lane:
    """One shadow's queue, and the task that empties it; there is none while the queue is empty."""

    def __init__(self, shadow: Model, tap: Tap, deadline: float) -> None:
        self.shadow = shadow
        self.key = _key(shadow)
        self._tap = tap
        self._deadline = deadline
        self._queue: deque[_Waiting] = deque()
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._thread = _Thread(shadow.session) if shadow.remote is None else None

    def take(self, record: Record, source: Model, tally: Tally) -> bool:
        """Whether there was room for a record."""
        size = 0
        for array in record.inputs.values():
            size += array.nbytes
        if len(self._queue) >= MAX_QUEUED or self._bytes + size > MAX_BYTES:
            return False
        self._queue.append(_Waiting(record, source, tally, size))
        self._bytes += size
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._empty())
        return True

    def close(self) -> None:
        """Drop what waits; a call in flight may end."""
        while self._queue:
            self._queue.popleft().tally.dropped += 1
        self._bytes = 0
        if self._thread is not None:
            self._thread.stop()

    async def _empty(self) -> None:
        try:
            while self._queue:
                await asyncio.sleep(GATHER_SECONDS)
                batch = self._next()
                if batch and not await self._ask(batch):
                    await asyncio.sleep(PAUSE_SECONDS)
        finally:
            self._task = None

    def _next(self) -> list[_Waiting]:
        """The next batch: records in their order whose tensors are those of one signature."""
        batch: list[_Waiting] = []
        rows = 0
        while self._queue:
            first = self._queue[0]
            if batch and (
                rows + first.record.rows > MAX_ROWS
                or first.source.bundle.signature is not batch[0].source.bundle.signature
            ):
                break
            batch.append(self._queue.popleft())
            rows += first.record.rows
            self._bytes -= first.size
        return batch

    async def _ask(self, batch: list[_Waiting]) -> bool:
        """Ask the shadow a batch and hand on what it says; returns whether it answered any of it."""
        begin = time.perf_counter()
        answers: list[Inputs | EngineError]
        try:
            parts = self._parts(batch)
            asking = ask_together(self._run, parts, [one.record.rows for one in batch])
            answers = await asyncio.wait_for(asking, self._deadline)
        except TimeoutError:
            answers = [LostError(f"no answer within {self._deadline:g} s")] * len(batch)
        except EngineError as error:
            answers = [error] * len(batch)
        except Exception as error:  # noqa: BLE001 - a fault of ours costs this batch, not those that wait behind it
            _log.exception("shadow %s", self.shadow.variant.name)
            answers = [EngineError(repr(error))] * len(batch)
        seconds = time.perf_counter() - begin
        version = self.shadow.variant.version
        answered = False
        for one, answer in zip(batch, answers, strict=True):
            found, error_ = _judge(answer)
            one.tally.rows += one.record.rows if found is not None else 0
            one.tally.errors += found is None
            one.tally.requests += 1
            answered = answered or found is not None
            self._tap.compared(Mirrored(one.record, self.shadow.variant.name, version, seconds, found, error_))
        return answered

    def _parts(self, batch: list[_Waiting]) -> list[Inputs]:
        source, target = batch[0].source.schema, self.shadow.schema
        if source.signature == target.signature:
            return [one.record.inputs for one in batch]
        return [translate(one.record.inputs, source, target) for one in batch]

    async def _run(self, inputs: Inputs, rows: int) -> Inputs:
        remote, thread = self.shadow.remote, self._thread
        try:
            if remote is not None:
                return await remote.run(inputs, rows)
            if thread is None:
                raise LostError("the shadow has no process")
            return await thread.run(inputs)
        except Refusal as refusal:
            raise LostError(refusal.message) from refusal
        except EngineError:
            raise
        except MlkitError as error:
            raise EngineError(error.message) from error


class _Thread:
    """Runs one session in one daemon thread, so that one that never returns keeps no process from ending."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._stuck: asyncio.Future[Inputs] | None = None
        threading.Thread(target=self._work, name="mlkit-shadow", daemon=True).start()

    async def run(self, inputs: Inputs) -> Inputs:
        """Answers by output name. Raises EngineError, LostError while an earlier call has not come back."""
        if self._stuck is not None and not self._stuck.done():
            raise LostError("the call before has not come back")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Inputs] = loop.create_future()
        self._stuck = answer

        def job() -> None:
            outcome: Inputs | Exception
            try:
                outcome = self._session.run(inputs)
            except MlkitError as error:
                outcome = error
            except Exception as error:  # noqa: BLE001 - a runtime of someone else's; told as what it is
                outcome = EngineError(f"{type(error).__name__}: {error}")
            loop.call_soon_threadsafe(settle, answer, outcome)

        self._jobs.put(job)
        return await asyncio.shield(answer)

    def stop(self) -> None:
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def _judge(answer: Inputs | EngineError) -> tuple[Inputs | None, str]:
    """The answers when all of them are finite, otherwise None and why not."""
    if isinstance(answer, EngineError):
        return None, answer.message
    try:
        for name, array in answer.items():
            finite(array, name)
    except Refusal as refusal:
        return None, refusal.message
    return answer, ""


def translate(inputs: Inputs, source: Schema, target: Schema) -> Inputs:
    """The tensors that another model takes, put together column by column. Raises EngineError where one is missing."""
    found = {}
    for tensor in target.signature.inputs:
        if not tensor.columns:
            same = source.tensors.get(tensor.name)
            if same is None or same.datatype != tensor.datatype or same.shape != tensor.shape:
                raise EngineError(f"the request has no tensor {tensor.name} such as this version takes")
            found[tensor.name] = inputs[tensor.name]
            continue
        cells = []
        for column in tensor.columns:
            if column not in source.columns:
                raise EngineError(f"the request has no column {column}, which this version takes")
            given, place = source.columns[column]
            if (given.datatype == "BYTES") != (tensor.datatype == "BYTES"):
                raise EngineError(f"column {column} is {given.datatype} in the request and {tensor.datatype} here")
            cells.append(inputs[given.name][:, place])
        stacked = np.stack(cells, axis=1)
        found[tensor.name] = stacked if tensor.datatype == "BYTES" else stacked.astype(_DTYPES[tensor.datatype])
    return found


_DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}
