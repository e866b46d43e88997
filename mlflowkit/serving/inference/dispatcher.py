"""From a call to an answer, for every front end: route, parse, run, and fall back to the champion.

A request that the split routed to a challenger which then fails (raises, is late, has no finite answer, or its circuit
is open) is answered by the champion. The failure counts against the challenger all the same: variants are judged by
the requests that were routed to them, not by those that they answered.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from mlflowkit.errors import MlkitError
from mlflowkit.ports import Session
from mlflowkit.service_state.records import GatewaySettings
from mlflowkit.serving.inference.answer_records import AssignedBy, NullSink, Record, RecordSink, RequestMirror
from mlflowkit.serving.inference.batching import LostError
from mlflowkit.serving.inference.gateway_metrics import Telemetry, VersionStats
from mlflowkit.serving.inference.variants import ActiveTable, LoadedModel, Versions
from mlflowkit.serving.protocol.http_error import RETRY, RequestError
from mlflowkit.serving.protocol.input_schema import Query, Schema
from mlflowkit.serving.protocol.responses import require_finite

_Outputs = Mapping[str, np.ndarray]
_TimedOutputs = tuple[_Outputs, float]
CHALLENGER_SHARE = 0.5
"""Share of a request's deadline that a challenger may use; the rest is reserved for the champion."""
_log = logging.getLogger("mlflowkit.serving")


@dataclass(slots=True)
class InferenceCall:
    """One request to be answered. ``parse`` returns the query for a schema or raises RequestError; may run twice.

    ``key`` is the affinity key, "" for the request's id; ``override`` names a variant, ``version`` a version.
    ``begin`` is time.perf_counter() when the request's headers were complete.
    """

    id: str
    parse: Callable[[Schema], Query]
    begin: float
    key: str = ""
    override: str = ""
    version: str = ""


@dataclass(slots=True)
class InferenceAnswer:
    """The outcome of a call. ``fallback_from`` names the challenger that failed first, "" for none."""

    model: LoadedModel
    query: Query
    outputs: _Outputs
    fallback_from: str = ""


class InferenceFailure(Exception):
    """A model did not answer a well-formed query; ``error`` is the client's reply if nothing else answers."""

    def __init__(self, reason: str, error: RequestError) -> None:
        super().__init__(reason)
        self.error = error


class _ModelThreadPool:
    """The threads of one colocated model, so that a run that never returns blocks no other model."""

    __slots__ = ("__weakref__", "_deadlines", "executor", "seconds", "workers")

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.executor = ThreadPoolExecutor(workers, "mlkit-infer")
        self.seconds = 0.0
        """Duration of a run: an exponential moving average with weight 0.1."""
        self._deadlines: dict[Future[_TimedOutputs], float] = {}

    @property
    def pending(self) -> int:
        """Calls whose thread has not returned, which may be long after their deadline."""
        return len(self._deadlines)

    @property
    def stuck(self) -> bool:
        """Whether every thread is occupied by a call past its deadline, so that no wait can be predicted."""
        if self.pending < self.workers:
            return False
        now = time.monotonic()  # threads end calls meanwhile, hence the list
        return sum(deadline < now for deadline in list(self._deadlines.values())) >= self.workers

    @property
    def expected_wait(self) -> float:
        """Seconds that one more call is expected to wait for a thread."""
        return self.seconds * max(0, self.pending - self.workers + 1) / self.workers

    async def run(self, session: Session, inputs: Mapping[str, np.ndarray], seconds: float) -> _TimedOutputs:
        """Outputs, and the duration of the run. Raises TimeoutError after ``seconds``."""
        running = self.executor.submit(_run_timed, session, inputs)
        self._deadlines[running] = time.monotonic() + seconds
        # Called by the thread, or by the loop of a call that was cancelled before a thread started it.
        running.add_done_callback(self._deadlines.pop)
        result = await asyncio.wait_for(asyncio.wrap_future(running), seconds)
        self.seconds += (result[1] - self.seconds) * (0.1 if self.seconds else 1.0)
        return result


class Dispatcher:
    """Answers calls with the table that ``versions`` points at. Lives on one event loop.

    ``waiting`` counts the calls that wait for a thread or another process; a call that runs on the event loop does
    not wait.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        versions: Versions,
        telemetry: Telemetry,
        sink: RecordSink | None = None,
        mirror: RequestMirror | None = None,
    ) -> None:
        self.settings = settings
        self.versions = versions
        self.telemetry = telemetry
        telemetry.versions = versions
        self.sink: RecordSink = sink or NullSink()
        self.mirror: RequestMirror = mirror or NullSink()
        self.waiting = 0
        self._pools: WeakKeyDictionary[Session, _ModelThreadPool] = WeakKeyDictionary()

    def active(self) -> ActiveTable:
        """The active table. Raises RequestError(503) when there is none yet."""
        active = self.versions.active
        if active is None:
            raise RequestError(503, f"{self.settings.service} has no model yet", RETRY)
        return active

    def route(self, call: InferenceCall, active: ActiveTable) -> tuple[LoadedModel, AssignedBy]:
        """The model for a call, and how it was assigned. Raises RequestError(404) for an unknown version or variant."""
        if call.version:
            model = active.by_version.get(call.version)
            if model is None:
                loaded, version = ", ".join(active.by_version), call.version[:80]
                raise RequestError(404, f"no version {version!r} of {self.settings.service} here; loaded: {loaded}")
            return model, "version"
        if call.override:
            model = active.by_name.get(call.override)
            if model is None:
                raise RequestError(404, f"no variant {call.override[:80]!r} here; there is {', '.join(active.by_name)}")
            return model, "override"
        return active.by_name[active.router.assign(call.key or call.id)], "hash"

    async def answer(self, call: InferenceCall) -> InferenceAnswer:
        """Answer a call. Raises RequestError."""
        active = self.active()
        assigned, how = self.route(call, active)
        model, error = assigned, ""
        try:
            query = self._parse(call, assigned, active, how)
            outputs, run_seconds = await self._run_checked(assigned, query, self._seconds_left(call, assigned, how))
        except InferenceFailure as failure:
            falls_back = how == "hash" and assigned is not active.champion
            if how == "hash":
                active.counters[assigned.variant.name].record_failure()
            self._record_failure(call, assigned).fallbacks += falls_back
            if not falls_back:
                self._count_refusal(assigned, failure.error, how)
                raise failure.error from failure
            model, error = active.champion, str(failure)
            query = call.parse(model.schema)
            try:
                outputs, run_seconds = await self._run_checked(model, query, self._seconds_left(call, model, how))
            except InferenceFailure as second:
                self._record_failure(call, model)
                self._count_refusal(model, second.error, how)
                raise second.error from second
        now, seconds = time.time(), time.perf_counter() - call.begin
        if how == "hash" and not error:
            counter = active.counters[assigned.variant.name]
            counter.record_key(call.key)  # before the answer, whose count tells a reader that there is something new
            counter.record_answer(seconds, query.rows)
        telemetry = self.telemetry
        telemetry.stats(model.variant.name, model.variant.version).record_answer(seconds, query.rows, run_seconds, now)
        if query.notes:
            telemetry.record_notes(query.notes)
        record = Record(
            now, call.id, call.key, active.table.experiment, active.table.epoch, assigned.variant.name,
            assigned.variant.version, model.variant.name, how, seconds, query.rows, query.inputs, outputs, error,
        )  # fmt: skip
        self.sink.answered(record)
        if active.shadows and how == "hash":
            self.mirror.offer(record)
        return InferenceAnswer(model, query, outputs, assigned.variant.name if error else "")

    def _record_failure(self, call: InferenceCall, model: LoadedModel) -> VersionStats:
        stats = self.telemetry.stats(model.variant.name, model.variant.version)
        stats.record_failure(time.perf_counter() - call.begin)
        return stats

    def _parse(self, call: InferenceCall, model: LoadedModel, active: ActiveTable, how: AssignedBy) -> Query:
        """Parse the query for a model.

        Raises RequestError for a malformed request, and InferenceFailure for a request that fits the champion's inputs
        but not this challenger's: clients of a service know its champion's inputs.
        """
        try:
            return call.parse(model.schema)
        except RequestError as error:
            champion = active.champion
            if how != "hash" or model.bundle.signature == champion.bundle.signature:
                self._count_refusal(model, error, how)
                raise
            try:
                call.parse(champion.schema)
            except RequestError as refusal:
                self._count_refusal(champion, refusal, how)
                raise
            raise InferenceFailure(f"it takes other inputs: {error.message}", error) from error

    def _count_refusal(self, model: LoadedModel, error: RequestError, how: AssignedBy) -> None:
        """Count a request that the split gave a model and that is the sender's fault: its inputs may have changed."""
        if how == "hash" and error.status < 500:
            self.sink.refused(model.variant.version, error)

    async def _run_checked(self, model: LoadedModel, query: Query, seconds: float) -> _TimedOutputs:
        """Finite outputs of one model and the duration of its run; keeps its circuit. Raises InferenceFailure."""
        breakable = model.variant.role != "champion"
        if breakable and not model.breaker.allows(time.monotonic()):
            error = RequestError(503, f"{model.variant.name} keeps failing", RETRY)
            raise InferenceFailure("its circuit is open", error)
        try:
            if model.remote is None and query.rows <= model.inline_rows:
                result = _run_timed(model.session, query.inputs)
            else:
                result = await self._run_elsewhere(model, query, seconds)
            for name, array in result[0].items():
                require_finite(array, name)
        except RequestError as refusal:  # not finite for these values, or no capacity: neither breaks a circuit
            raise InferenceFailure(refusal.message, refusal) from refusal
        except Exception as exception:
            model.breaker.record_failure(time.monotonic())
            raise self._to_failure(model, exception) from exception
        if breakable:
            model.breaker.record_success()
        return result

    def _to_failure(self, model: LoadedModel, error: Exception) -> InferenceFailure:
        if isinstance(error, TimeoutError):
            late = f"no answer within {self.settings.timeout_seconds:g} s; fewer rows take less"
            return InferenceFailure("late", RequestError(504, late))
        if isinstance(error, LostError):  # its process is restarting
            return InferenceFailure(error.message, RequestError(503, error.message, RETRY))
        if isinstance(error, MlkitError):
            return InferenceFailure(error.message, RequestError(500, error.message))
        _log.error("%s %s", model.variant.name, model.variant.version, exc_info=error)
        return InferenceFailure(repr(error), RequestError(500, "the model failed; the server's log says why"))

    async def _run_elsewhere(self, model: LoadedModel, query: Query, seconds: float) -> _TimedOutputs:
        """Outputs and run seconds, from a thread or another process.

        Raises RequestError(503) without capacity, TimeoutError, or the model's error.
        """
        if self.waiting >= self.settings.max_queue:
            raise RequestError(503, f"{self.waiting} requests are waiting already", RETRY)
        self.waiting += 1
        try:
            if model.remote is not None:
                begin = time.perf_counter()
                outputs = await asyncio.wait_for(model.remote.run(query.inputs, query.rows), seconds)
                return outputs, time.perf_counter() - begin
            pool = self._pools.get(model.session)
            if pool is None:
                workers = max(2, (os.cpu_count() or 2) // self.settings.threads)
                pool = self._pools[model.session] = _ModelThreadPool(workers)
            if pool.stuck:
                raise RequestError(503, f"{model.variant.name} is held up by earlier requests", RETRY)
            if pool.expected_wait > seconds:
                retry = ((b"retry-after", b"%d" % math.ceil(pool.expected_wait)),)
                message = f"an answer would take {pool.expected_wait:.1f} s; {seconds:.1f} s are left"
                raise RequestError(503, message, retry)
            return await pool.run(model.session, query.inputs, seconds)
        finally:
            self.waiting -= 1

    def _seconds_left(self, call: InferenceCall, model: LoadedModel, how: AssignedBy) -> float:
        """Seconds that a model may take; a challenger's leave the champion time for a fallback."""
        budget = self.settings.timeout_seconds
        if how == "hash" and model.variant.role != "champion":
            budget *= CHALLENGER_SHARE
        return max(0.0, budget - (time.perf_counter() - call.begin))

    def close(self) -> None:
        """Shut the thread pools down: running calls finish (a hung thread is abandoned), queued ones are cancelled."""
        for pool in self._pools.values():
            pool.executor.shutdown(wait=False, cancel_futures=True)


def _run_timed(session: Session, inputs: Mapping[str, np.ndarray]) -> _TimedOutputs:
    begin = time.perf_counter()
    return session.run(inputs), time.perf_counter() - begin
