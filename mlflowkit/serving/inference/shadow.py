"""Mirroring: answered requests are forwarded to shadows in batches, through queues that drop and count.

A shadow has one call in flight, with a deadline, and a queue bounded in requests and bytes. What does not fit is
dropped and counted; a shadow that fails or hangs is paused while its queue fills up and drops. So a shadow costs the
event loop a few microseconds a request at most. A colocated shadow runs in a thread of its own, under the same
interpreter lock as the champion: `isolated` is the placement for shadows.
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

import numpy as np

from mlflowkit.errors import EngineError, MlkitError
from mlflowkit.ports import Session
from mlflowkit.serving.inference.answer_records import MirrorRecord, Record, RecordSink
from mlflowkit.serving.inference.batching import LostError, resolve, run_batched
from mlflowkit.serving.inference.counters import VariantCounter
from mlflowkit.serving.inference.router import is_mirrored
from mlflowkit.serving.inference.variants import ActiveTable, LoadedModel, Versions
from mlflowkit.serving.protocol.http_error import RequestError
from mlflowkit.serving.protocol.input_schema import Schema
from mlflowkit.serving.protocol.json_tensors import DTYPES
from mlflowkit.serving.protocol.responses import require_finite

Tensors = Mapping[str, np.ndarray]
GATHER_SECONDS = 0.01
"""How long requests gather after the first of a batch: no client waits for a shadow."""
MAX_QUEUED = 2048
"""Requests that may wait for one shadow."""
MAX_BYTES = 64 << 20
"""Bytes of tensors that may wait for one shadow."""
MAX_ROWS = 256
"""Rows of a batch; one request may have more."""
DEADLINE_SECONDS = 2.0
"""A batch that takes longer counts as failed."""
PAUSE_SECONDS = 0.25
"""How long a shadow is paused after a batch of which it answered nothing."""
_log = logging.getLogger("mlflowkit.serving")


@dataclass(slots=True)
class _QueuedRequest:
    record: Record
    source: LoadedModel
    counter: VariantCounter
    size: int


class ShadowMirror:
    """An `answer_records.RequestMirror` over the shadows of the active table. Lives on one event loop.

    A request that the shadow's sampling selects counts as mirrored in its counter, and as dropped when the queue does
    not take it. A request that the shadow ran counts among its requests, and among its errors when it failed; its
    latency is not counted, because a batch's latency is not a request's.
    """

    def __init__(self, versions: Versions, sink: RecordSink, *, deadline: float = DEADLINE_SECONDS) -> None:
        self._versions = versions
        self._sink = sink
        self._deadline = deadline
        self._active: ActiveTable | None = None
        self._queues: list[tuple[_ShadowQueue, VariantCounter]] = []

    def offer(self, record: Record) -> None:
        """Queue a request for each shadow that samples it. Returns at once, never raises."""
        active = self._versions.active
        if active is None:
            return
        if active is not self._active:
            self._apply_table(active)
        for queue, counter in self._queues:
            variant = queue.shadow.variant
            if variant.sampling < 1.0 and not is_mirrored(active.table, variant.name, variant.sampling, record.id):
                continue
            counter.record_key(record.key)
            counter.mirrored += 1
            source = active.by_name.get(record.answered)
            if source is None or not queue.put(record, source, counter):
                counter.dropped += 1

    def _apply_table(self, active: ActiveTable) -> None:
        """Keep the queues of shadows that stay, with their requests; close the others."""
        previous = {queue.key: queue for queue, _ in self._queues}
        self._active, self._queues = active, []
        for shadow in active.shadows:
            queue = previous.pop(_shadow_key(shadow), None) or _ShadowQueue(shadow, self._sink, self._deadline)
            queue.shadow = shadow
            self._queues.append((queue, active.counters[shadow.variant.name]))
        for removed in previous.values():
            removed.close()


def _shadow_key(model: LoadedModel) -> tuple[str, int]:
    return model.variant.name, id(model.session if model.remote is None else model.remote)


class _ShadowQueue:
    """One shadow's queue, and the task that drains it; there is no task while the queue is empty."""

    def __init__(self, shadow: LoadedModel, sink: RecordSink, deadline: float) -> None:
        self.shadow = shadow
        self.key = _shadow_key(shadow)
        self._sink = sink
        self._deadline = deadline
        self._queue: deque[_QueuedRequest] = deque()
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._thread = _SessionThread(shadow.session) if shadow.remote is None else None

    def put(self, record: Record, source: LoadedModel, counter: VariantCounter) -> bool:
        """Queue a record; False when it does not fit."""
        size = sum(array.nbytes for array in record.inputs.values())
        if len(self._queue) >= MAX_QUEUED or self._bytes + size > MAX_BYTES:
            return False
        self._queue.append(_QueuedRequest(record, source, counter, size))
        self._bytes += size
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())
        return True

    def close(self) -> None:
        """Drop the queued requests; a call in flight may finish."""
        while self._queue:
            self._queue.popleft().counter.dropped += 1
        self._bytes = 0
        if self._thread is not None:
            self._thread.stop()

    async def _drain(self) -> None:
        try:
            while self._queue:
                await asyncio.sleep(GATHER_SECONDS)
                batch = self._next_batch()
                if batch and not await self._run_batch(batch):
                    await asyncio.sleep(PAUSE_SECONDS)
        finally:
            self._task = None

    def _next_batch(self) -> list[_QueuedRequest]:
        """The next batch: requests in order, as long as they were parsed for one signature."""
        batch: list[_QueuedRequest] = []
        rows = 0
        while self._queue:
            first = self._queue[0]
            same = not batch or first.source.bundle.signature is batch[0].source.bundle.signature
            if batch and (rows + first.record.rows > MAX_ROWS or not same):
                break
            batch.append(self._queue.popleft())
            rows += first.record.rows
            self._bytes -= first.size
        return batch

    async def _run_batch(self, batch: list[_QueuedRequest]) -> bool:
        """Run a batch on the shadow and record its results; returns whether it answered any request."""
        begin = time.perf_counter()
        results: list[Tensors | EngineError]
        try:
            inputs = [item.record.inputs for item in batch]
            source, target = batch[0].source.schema, self.shadow.schema
            if source.signature != target.signature:
                inputs = [translate(tensors, source, target) for tensors in inputs]
            running = run_batched(self._run, inputs, [item.record.rows for item in batch])
            results = await asyncio.wait_for(running, self._deadline)
        except TimeoutError:
            results = [LostError(f"no answer within {self._deadline:g} s")] * len(batch)
        except EngineError as error:
            results = [error] * len(batch)
        except Exception as error:  # noqa: BLE001 - a bug here costs this batch, not the queued requests
            _log.exception("shadow %s", self.shadow.variant.name)
            results = [EngineError(repr(error))] * len(batch)
        seconds = time.perf_counter() - begin
        variant = self.shadow.variant
        answered = False
        for item, result in zip(batch, results, strict=True):
            outputs, reason = _check_result(result)
            counter = item.counter
            counter.rows += item.record.rows if outputs is not None else 0
            counter.errors += outputs is None
            counter.requests += 1
            answered = answered or outputs is not None
            self._sink.compared(MirrorRecord(item.record, variant.name, variant.version, seconds, outputs, reason))
        return answered

    async def _run(self, inputs: Tensors, rows: int) -> Tensors:
        remote, thread = self.shadow.remote, self._thread
        try:
            if remote is not None:
                return await remote.run(inputs, rows)
            if thread is None:
                raise LostError("the shadow has no process")
            return await thread.run(inputs)
        except RequestError as error:
            raise LostError(error.message) from error
        except EngineError:
            raise
        except MlkitError as error:
            raise EngineError(error.message) from error


class _SessionThread:
    """Runs one session in one daemon thread, so that a run that never returns does not block process exit."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._last: asyncio.Future[Tensors] | None = None
        threading.Thread(target=self._work, name="mlkit-shadow", daemon=True).start()

    async def run(self, inputs: Tensors) -> Tensors:
        """Outputs by name. Raises EngineError; LostError while the previous call has not returned."""
        if self._last is not None and not self._last.done():
            raise LostError("the call before has not come back")
        loop = asyncio.get_running_loop()
        outputs: asyncio.Future[Tensors] = loop.create_future()
        self._last = outputs

        def job() -> None:
            outcome: Tensors | Exception
            try:
                outcome = self._session.run(inputs)
            except MlkitError as error:
                outcome = error
            except Exception as error:  # noqa: BLE001 - any error of the runtime, with its type
                outcome = EngineError(f"{type(error).__name__}: {error}")
            loop.call_soon_threadsafe(resolve, outputs, outcome)

        self._jobs.put(job)
        return await asyncio.shield(outputs)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def stop(self) -> None:
        self._jobs.put(None)


def _check_result(result: Tensors | EngineError) -> tuple[Tensors | None, str]:
    """The outputs when all of them are finite, otherwise None and the reason."""
    if isinstance(result, EngineError):
        return None, result.message
    try:
        for name, array in result.items():
            require_finite(array, name)
    except RequestError as error:
        return None, error.message
    return result, ""


def translate(inputs: Tensors, source: Schema, target: Schema) -> Tensors:
    """Rearrange a request's columns into another model's tensors. Raises EngineError where one is missing."""
    translated: dict[str, np.ndarray] = {}
    for tensor in target.signature.inputs:
        if not tensor.columns:
            same = source.tensors.get(tensor.name)
            if same is None or same.datatype != tensor.datatype or same.shape != tensor.shape:
                raise EngineError(f"the request has no tensor {tensor.name} such as this version takes")
            translated[tensor.name] = inputs[tensor.name]
            continue
        cells = []
        for column in tensor.columns:
            if column not in source.columns:
                raise EngineError(f"the request has no column {column}, which this version takes")
            origin, index = source.columns[column]
            if (origin.datatype == "BYTES") != (tensor.datatype == "BYTES"):
                raise EngineError(f"column {column} is {origin.datatype} in the request and {tensor.datatype} here")
            if source.signature.texts.tokens.get(column) != target.signature.texts.tokens.get(column):
                raise EngineError(
                    f"the text of {column} is read otherwise by this version, and requests hold it as read"
                )
            cells.append(inputs[origin.name][:, index])
        stacked = np.stack(cells, axis=1)
        translated[tensor.name] = stacked if tensor.datatype == "BYTES" else stacked.astype(DTYPES[tensor.datatype])
    return translated
