"""From a call to an answer, whatever door the call came through: route, parse, run, and once more by the champion.

A request that the split gave to a challenger which then fails (raises, is late, has no finite answer, or its circuit
is open) is answered by the champion. The challenger is charged with the failure all the same: variants are judged by
the requests that they were given, not by those that they chose to answer.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflowkit.errors import MlkitError
from mlflowkit.serving.files import Settings
from mlflowkit.serving.protocol import Query, Refusal, Schema, finite
from mlflowkit.serving.records import How, Mirror, NoTap, Record, Tap
from mlflowkit.serving.telemetry import Telemetry
from mlflowkit.serving.variants import Loaded, Model, Versions

if TYPE_CHECKING:
    import numpy as np

CHALLENGER_SHARE = 0.5
"""Share of a request's time that a challenger may use up; the rest is the champion's."""
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


class Dispatcher:
    """Answers calls with what ``versions`` points at. Lives on one event loop."""

    def __init__(
        self, settings: Settings, versions: Versions, telemetry: Telemetry, tap: Tap | None = None,
        mirror: Mirror | None = None,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.versions = versions
        self.telemetry = telemetry
        self.tap: Tap = tap or NoTap()
        self.mirror: Mirror = mirror or NoTap()
        self._pool = ThreadPoolExecutor(max(2, (os.cpu_count() or 2) // settings.threads), "mlkit-infer")

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
                raise Refusal(
                    404, f"no variant {call.override[:80]!r} here; there is {', '.join(active.by_name)}"
                )  # fmt: skip
            return model, "override"
        return active.by_name[active.router.assign(call.key or call.id)], "hash"

    async def answer(self, call: Call) -> Answer:
        """Answer a call. Raises Refusal."""
        active = self.active()
        model, how = self.route(call, active)
        query = call.parse(model.schema)
        failed = error = ""
        champion = active.champion
        asked = model
        try:
            try:
                answers = await self._ask(model, query, self._left(call, model, how))
            except Failure as failure:
                if model is champion or how != "hash":
                    raise
                failed, error = model.variant.name, str(failure)
                model, query = champion, self._again(call, query, asked, champion)
                answers = await self._ask(champion, query, self._left(call, champion, how))
        except Failure as failure:
            if how == "hash":
                active.tallies[asked.variant.name].failed()
            raise failure.refusal from failure
        seconds = time.perf_counter() - call.begin
        if how == "hash":
            tally = active.tallies[asked.variant.name]
            tally.failed() if failed else tally.answered(seconds, query.rows)
        self.telemetry.rows(model.variant.version, query.rows, query.unseen)
        record = Record(
            time.time(), call.id, call.key, active.table.experiment, active.table.epoch, asked.variant.name,
            asked.variant.version, model.variant.name, how, seconds, query.rows, query.inputs, answers, error,
        )  # fmt: skip
        self.tap.answered(record)
        if active.shadows and how == "hash":
            self.mirror.offer(record)
        return Answer(model, query, answers, failed)

    async def _ask(self, model: Model, query: Query, seconds: float) -> Mapping[str, np.ndarray]:
        """Answers of one model, all finite. Raises Failure."""
        breaks = model.variant.role != "champion"
        if breaks and not model.breaker.allows(time.monotonic()):
            raise Failure("its circuit is open", Refusal(503, f"{model.variant.name} keeps failing", RETRY))
        try:
            answers = await self._run(model, query, seconds)
            for name, array in answers.items():
                finite(array, name)
        except Refusal as refusal:  # no finite answer: the champion's is the client's to know, and no broken circuit
            raise Failure(refusal.message, refusal) from refusal
        except TimeoutError as error:
            model.breaker.failed(time.monotonic())
            late = f"no answer within {self.settings.timeout_seconds:g} s; fewer rows take less"
            raise Failure("late", Refusal(504, late)) from error
        except MlkitError as error:
            model.breaker.failed(time.monotonic())
            raise Failure(error.message, Refusal(500, error.message)) from error
        model.breaker.succeeded()
        return answers

    async def _run(self, model: Model, query: Query, seconds: float) -> Mapping[str, np.ndarray]:
        if model.remote is not None:
            return await asyncio.wait_for(model.remote.run(query.inputs, query.rows), seconds)
        if query.rows <= model.inline_rows:
            return model.session.run(query.inputs)
        running = asyncio.get_running_loop().run_in_executor(self._pool, model.session.run, query.inputs)
        return await asyncio.wait_for(running, seconds)

    def _left(self, call: Call, model: Model, how: How) -> float:
        """Seconds that a model may take, so that the champion has time to answer what a challenger does not."""
        whole = self.settings.timeout_seconds
        if how == "hash" and model.variant.role != "champion":
            whole *= CHALLENGER_SHARE
        return max(0.0, whole - (time.perf_counter() - call.begin))

    @staticmethod
    def _again(call: Call, query: Query, before: Model, model: Model) -> Query:
        """The query for another model: parsed anew where its inputs are others."""
        if before.bundle.signature == model.bundle.signature:
            return query
        return call.parse(model.schema)

    def close(self) -> None:
        """Let the threads go; requests in them are answered first."""
        self._pool.shutdown(wait=True)
