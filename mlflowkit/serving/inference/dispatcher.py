"""From a call to an answer, whatever door the call came through: route, parse, run, and once more by the champion.

A request that the split gave to a challenger which then fails (raises, is late, has no finite answer, or its circuit
is open) is answered by the champion. The challenger is charged with the failure all the same: variants are judged by
the requests that they were given, not by those that they chose to answer.
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
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from mlflowkit.errors import MlkitError
from mlflowkit.service_state.records import Settings
from mlflowkit.serving.inference.answer_records import How, Mirror, NoTap, Record, Tap
from mlflowkit.serving.inference.batching import LostError
from mlflowkit.serving.inference.gateway_metrics import Telemetry
from mlflowkit.serving.inference.variants import Loaded, Model, Versions
from mlflowkit.serving.protocol.open_inference import Query, Refusal, Schema, finite

if TYPE_CHECKING:
    import numpy as np

    from mlflowkit.ports import Session

    _Ran = tuple[Mapping[str, np.ndarray], float]

CHALLENGER_SHARE = 0.5
"""Share of a request's time that a challenger may use up; the rest is the champion's."""
_log = logging.getLogger("mlflowkit.serving")
RETRY = ((b"retry-after", b"1"),)


@dataclass(slots=True)
class Call:
    """One request to be answered. ``parse`` makes the query of a schema and raises Refusal; it may be asked twice.

    ``key`` is what the split goes by, "" for the request's id; ``override`` names a variant, ``version`` a version.
    ``begin`` is time.perf_counter() when the request's headers were there.
    """

    id: str
    parse: Callable[[Schema], Query]
    begin: float
    key: str = ""
    override: str = ""
    version: str = ""


@dataclass(slots=True)
class Answer:
    """What a call came to. ``failed`` names the challenger that failed it first; "" when none did."""

    model: Model
    query: Query
    answers: Mapping[str, np.ndarray]
    failed: str = ""


class Failure(Exception):
    """A model that did not answer a well-formed query; ``refusal`` is what its client would be told."""

    def __init__(self, reason: str, refusal: Refusal) -> None:
        super().__init__(reason)
        self.refusal = refusal


class _Lane:
    """The threads that run one colocated model, so that one that never returns holds up nobody else's.

    A call is pending until its thread returns, which may be long after its time was up.
    """

    __slots__ = ("__weakref__", "_deadlines", "pool", "seconds", "workers")

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.pool = ThreadPoolExecutor(workers, "mlkit-infer")
        self.seconds = 0.0
        """What a run took lately: an average in which each weighs a tenth."""
        self._deadlines: dict[Future[_Ran], float] = {}

    @property
    def pending(self) -> int:
        """Calls that wait for a thread or are in one."""
        return len(self._deadlines)

    @property
    def stuck(self) -> bool:
        """Whether every thread is held by a call whose time is up: nobody knows when the next one is free."""
        if self.pending < self.workers:
            return False
        now = time.monotonic()  # threads end calls meanwhile, hence the list
        return sum(deadline < now for deadline in list(self._deadlines.values())) >= self.workers

    @property
    def wait(self) -> float:
        """Seconds that one more call is expected to wait for its turn."""
        return self.seconds * max(0, self.pending - self.workers + 1) / self.workers

    async def run(self, session: Session, inputs: Mapping[str, np.ndarray], seconds: float) -> _Ran:
        """Answers, and how long they took. Raises TimeoutError after ``seconds``."""
        running = self.pool.submit(_timed, session, inputs)
        self._deadlines[running] = time.monotonic() + seconds
        running.add_done_callback(self._returned)
        found = await asyncio.wait_for(asyncio.wrap_future(running), seconds)
        self.seconds += (found[1] - self.seconds) * (0.1 if self.seconds else 1.0)
        return found

    def _returned(self, running: Future[_Ran]) -> None:
        """Said by its thread, or by the loop of a call that was given up before a thread began it."""
        del self._deadlines[running]


class Dispatcher:
    """Answers calls with what ``versions`` points at. Lives on one event loop.

    ``waiting`` counts the calls that wait for a thread or another process; a call that is answered on the event loop
    waits for nothing.
    """

    def __init__(
        self,
        settings: Settings,
        versions: Versions,
        telemetry: Telemetry,
        tap: Tap | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self.settings = settings
        self.versions = versions
        self.telemetry = telemetry
        telemetry.versions = versions
        self.tap: Tap = tap or NoTap()
        self.mirror: Mirror = mirror or NoTap()
        self.waiting = 0
        self._lanes: WeakKeyDictionary[Session, _Lane] = WeakKeyDictionary()

    def active(self) -> Loaded:
        """What the pointer points at. Raises Refusal(503) when there is nothing yet."""
        found = self.versions.active
        if found is None:
            raise Refusal(503, f"{self.settings.service} has no model yet", RETRY)
        return found

    def route(self, call: Call, active: Loaded) -> tuple[Model, How]:
        """The model that a call goes to, and why. Raises Refusal(404) for a version or variant that is not there."""
        if call.version:
            model = active.by_version.get(call.version)
            if model is None:
                raise Refusal(
                    404,
                    f"no version {call.version[:80]!r} of {self.settings.service} here; "
                    f"loaded: {', '.join(active.by_version)}",
                )
            return model, "version"
        if call.override:
            model = active.by_name.get(call.override)
            if model is None:
                raise Refusal(404, f"no variant {call.override[:80]!r} here; there is {', '.join(active.by_name)}")
            return model, "override"
        return active.by_name[active.router.assign(call.key or call.id)], "hash"

    async def answer(self, call: Call) -> Answer:
        """Answer a call. Raises Refusal."""
        active = self.active()
        asked, how = self.route(call, active)
        model, error = asked, ""
        try:
            query = self._parse(call, asked, active, how)
            answers, ran = await self._ask(asked, query, self._left(call, asked, how))
        except Failure as failure:
            again = how == "hash" and asked is not active.champion
            self._charge(call, asked, active, how, fallback=again)
            if not again:
                raise failure.refusal from failure
            model, error = active.champion, str(failure)
            query = call.parse(model.schema)
            answers, ran = await self._instead(call, model, query)
        now, seconds = time.time(), time.perf_counter() - call.begin
        if how == "hash" and not error:
            active.tallies[asked.variant.name].answered(seconds, query.rows)
        telemetry = self.telemetry
        telemetry.of(model.variant.name, model.variant.version).answer(seconds, query.rows, ran, now)
        if query.unseen:
            telemetry.unseen(query.unseen)
        record = Record(
            now, call.id, call.key, active.table.experiment, active.table.epoch, asked.variant.name,
            asked.variant.version, model.variant.name, how, seconds, query.rows, query.inputs, answers, error,
        )  # fmt: skip
        self.tap.answered(record)
        if active.shadows and how == "hash":
            self.mirror.offer(record)
        return Answer(model, query, answers, asked.variant.name if error else "")

    def _charge(self, call: Call, model: Model, active: Loaded, how: How, *, fallback: bool) -> None:
        """Count a request that a model failed."""
        if how == "hash":
            active.tallies[model.variant.name].failed()
        served = self.telemetry.of(model.variant.name, model.variant.version)
        served.fail(time.perf_counter() - call.begin)
        served.fallbacks += fallback

    async def _instead(self, call: Call, champion: Model, query: Query) -> _Ran:
        """The champion's answer to what a challenger failed. Raises Refusal."""
        try:
            return await self._ask(champion, query, self._left(call, champion, "hash"))
        except Failure as failure:
            self.telemetry.of(champion.variant.name, champion.variant.version).fail(time.perf_counter() - call.begin)
            raise failure.refusal from failure

    @staticmethod
    def _parse(call: Call, model: Model, active: Loaded, how: How) -> Query:
        """The query as a model takes it.

        Raises Refusal for a request that is wrong, and Failure for one that only this challenger, whose inputs are
        others than the champion's, cannot take: clients of a service know its champion's inputs.
        """
        try:
            return call.parse(model.schema)
        except Refusal as refusal:
            if how != "hash" or model.bundle.signature == active.champion.bundle.signature:
                raise
            call.parse(active.champion.schema)
            raise Failure(f"it takes other inputs: {refusal.message}", refusal) from refusal

    async def _ask(self, model: Model, query: Query, seconds: float) -> _Ran:
        """Answers of one model, all finite, and how long its graph took. Raises Failure."""
        breaks = model.variant.role != "champion"
        if breaks and not model.breaker.allows(time.monotonic()):
            raise Failure("its circuit is open", Refusal(503, f"{model.variant.name} keeps failing", RETRY))
        try:
            found = await self._run(model, query, seconds)
            for name, array in found[0].items():
                finite(array, name)
        except Refusal as refusal:  # no finite answer for these values, or no room: neither breaks a circuit
            raise Failure(refusal.message, refusal) from refusal
        except TimeoutError as error:
            model.breaker.failed(time.monotonic())
            late = f"no answer within {self.settings.timeout_seconds:g} s; fewer rows take less"
            raise Failure("late", Refusal(504, late)) from error
        except LostError as error:  # its process is gone, and comes back
            model.breaker.failed(time.monotonic())
            raise Failure(error.message, Refusal(503, error.message, RETRY)) from error
        except MlkitError as error:
            model.breaker.failed(time.monotonic())
            raise Failure(error.message, Refusal(500, error.message)) from error
        except Exception as error:
            model.breaker.failed(time.monotonic())
            _log.exception("%s %s", model.variant.name, model.variant.version)
            raise Failure(repr(error), Refusal(500, "the model failed; the server's log says why")) from error
        if breaks:
            model.breaker.succeeded()
        return found

    async def _run(self, model: Model, query: Query, seconds: float) -> _Ran:
        """Answers and seconds. Raises Refusal(503) when there is no room, TimeoutError, or whatever the model does."""
        if model.remote is None and query.rows <= model.inline_rows:
            return _timed(model.session, query.inputs)
        if self.waiting >= self.settings.max_queue:
            raise Refusal(503, f"{self.waiting} requests are waiting already", RETRY)
        self.waiting += 1
        try:
            if model.remote is not None:
                begin = time.perf_counter()
                answers = await asyncio.wait_for(model.remote.run(query.inputs, query.rows), seconds)
                return answers, time.perf_counter() - begin
            lane = self._lanes.get(model.session)
            if lane is None:
                workers = max(2, (os.cpu_count() or 2) // self.settings.threads)
                lane = self._lanes[model.session] = _Lane(workers)
            if lane.stuck:
                raise Refusal(503, f"{model.variant.name} is held up by earlier requests", RETRY)
            if lane.wait > seconds:
                retry = ((b"retry-after", b"%d" % math.ceil(lane.wait)),)
                raise Refusal(503, f"an answer would take {lane.wait:.1f} s; {seconds:.1f} s are left", retry)
            return await lane.run(model.session, query.inputs, seconds)
        finally:
            self.waiting -= 1

    def _left(self, call: Call, model: Model, how: How) -> float:
        """Seconds that a model may take, so that the champion has time to answer what a challenger does not."""
        whole = self.settings.timeout_seconds
        if how == "hash" and model.variant.role != "champion":
            whole *= CHALLENGER_SHARE
        return max(0.0, whole - (time.perf_counter() - call.begin))

    def close(self) -> None:
        """Let the threads go. Requests in them are answered first, but those of a thread that never returns."""
        for lane in self._lanes.values():
            lane.pool.shutdown(wait=False, cancel_futures=True)


def _timed(session: Session, inputs: Mapping[str, np.ndarray]) -> _Ran:
    begin = time.perf_counter()
    return session.run(inputs), time.perf_counter() - begin
