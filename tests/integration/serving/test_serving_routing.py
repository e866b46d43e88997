"""Several variants behind one gateway: who answers, who answers instead, and who is charged. Over the wire."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mlflowkit.bundle import Bundle, Signature, TensorSpec
from mlflowkit.errors import EngineError
from mlflowkit.serving.inference.answer_records import MirrorRecord, Record
from mlflowkit.serving.inference.circuit_breaker import MAX_FAILURES
from mlflowkit.serving.inference.router import Router
from mlflowkit.serving.protocol.http_error import RequestError, refusal_reason
from mlflowkit.serving.protocol.input_schema import Schema
from mlflowkit.values import Affinity, RoutingTable, Variant
from tests.support.gateways import InProcess
from tests.support.lending_bundle import ROWS, table
from tests.support.waiting import wait_for

from .test_serving_gateway import Held, tensors

VARIANT, VERSION, FALLBACK = "x-mlkit-variant", "x-mlkit-version", "x-mlkit-fallback-from"


def split(epoch: int, one: Bundle, two: Bundle, weight: float = 0.5, **table_fields: Any) -> RoutingTable:
    """The first bundle as champion, the second as a challenger with a share of the traffic."""
    challenger = Variant("challenger", two.manifest.version, two.manifest.identity, str(two.path), "challenger", weight)
    champion = replace(table(epoch, one).variants[0], weight=1.0 - weight)
    fields = {"experiment": "e1", "salt": "e1", "affinity": Affinity("header", "x-user"), **table_fields}
    return RoutingTable("lending", epoch, (champion, challenger), **fields)


class Kept:
    """A tap that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.refusals: list[tuple[str, str]] = []

    def answered(self, record: Record) -> None:
        self.records.append(record)

    def compared(self, mirrored: MirrorRecord) -> None:
        raise AssertionError("nothing is mirrored here")

    def refused(self, version: str, error: RequestError) -> None:
        self.refusals.append((version, refusal_reason(error)[0]))


@pytest.fixture
def running(start: Callable[..., InProcess], first: Bundle, second: Bundle) -> InProcess:
    running = start(timeout_seconds=2.0)
    running.swap(split(1, first, second))
    return running


def ask(running: InProcess, user: str = "", **headers: str) -> Any:
    given = {"x-user": user, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return running.client.post("/predict", json={"rows": ROWS}, headers={k: v for k, v in given.items() if v})


def users(running: InProcess, of: str, count: int) -> list[str]:
    """Users whom the split gives to a variant."""
    router = Router(running.versions.active.table)  # type: ignore[union-attr]
    return [name for name in map("user-{}".format, range(1000)) if router.assign(name) == of][:count]


def replaced(running: InProcess, session: Any) -> None:
    """Have the challenger answer with another session."""
    object.__setattr__(running.versions.active.by_name["challenger"], "session", session)  # type: ignore[union-attr]


def counts(running: InProcess) -> dict[str, tuple[int, int]]:
    """Requests and errors by variant, as the evidence has them."""
    found = running.versions.counters.evidence()
    return {name: (found.of(name).requests, found.of(name).errors) for name in ("champion", "challenger")}


class Broken:
    """A session that does what a test says."""

    def __init__(self, does: Callable[[Any], Any]) -> None:
        self.does = does

    def run(self, inputs: Any) -> Any:
        return self.does(inputs)


def raises(error: Exception) -> Broken:
    def fail(_: Any) -> Any:
        raise error

    return Broken(fail)


def test_a_user_is_answered_by_the_variant_that_the_split_says_and_the_reply_names_it(
    running: InProcess, first: Bundle, second: Bundle
) -> None:
    versions = {"champion": first.manifest.version, "challenger": second.manifest.version}
    router = Router(running.versions.active.table)  # type: ignore[union-attr]
    seen = Counter()
    for number in range(60):
        user = f"user-{number}"
        for path, body in (("/predict", {"rows": ROWS}), ("/v2/models/lending/infer", {"inputs": tensors(ROWS)})):
            reply = running.client.post(path, json=body, headers={"x-user": user})
            assert reply.headers[VARIANT] == router.assign(user)
            assert reply.headers[VERSION] == reply.json()["model_version"] == versions[reply.headers[VARIANT]]
            assert reply.headers["x-mlkit-request-id"] == reply.json()["id"]
            seen[reply.headers[VARIANT]] += 1
    assert min(seen["champion"], seen["challenger"]) > 20
    assert counts(running) == {name: (seen[name], 0) for name in versions}


@pytest.mark.parametrize("kind", ["cookie", "parameter", "request_id"])
def test_the_key_is_read_where_the_table_says(
    start: Callable[..., InProcess], first: Bundle, second: Bundle, kind: Any
) -> None:
    running = start()
    running.swap(split(1, first, second, affinity=Affinity(kind, "" if kind == "request_id" else "user")))
    router = Router(running.versions.active.table)  # type: ignore[union-attr]
    for number in range(30):
        key = f"u{number}"
        headers = {"cookie": f"a=1; user={key}"} if kind == "cookie" else {}
        headers |= {"x-request-id": key} if kind == "request_id" else {}
        parameters = {"parameters": {"user": key}} if kind == "parameter" else {}
        for path, body in (("/predict", {"rows": ROWS}), ("/v2/models/lending/infer", {"inputs": tensors(ROWS)})):
            reply = running.client.post(path, json={**body, **parameters}, headers=headers)
            assert reply.headers[VARIANT] == router.assign(key), reply.text
    if kind == "parameter":
        odd = running.client.post("/predict", json={"rows": ROWS, "parameters": {"user": [1]}})
        assert (odd.status_code, "parameters.user" in odd.json()["error"]) == (400, True)


def test_a_tester_names_the_variant_and_is_no_evidence(running: InProcess) -> None:
    for name in ("challenger", "champion"):
        assert ask(running, "user-1", x_mlkit_variant=name).headers[VARIANT] == name
    wrong = ask(running, x_mlkit_variant="nobody")
    assert (wrong.status_code, "there is champion, challenger" in wrong.json()["error"]) == (404, True)
    assert counts(running) == {"champion": (0, 0), "challenger": (0, 0)}


@pytest.mark.parametrize(
    "session",
    [
        raises(EngineError("out of order")),
        raises(ZeroDivisionError("a session of someone else's")),
        Broken(lambda _: {"label": np.array(["bad", "bad"], object), "probabilities": np.full((2, 2), np.nan)}),
        Broken(lambda _: {"label": np.array(["bad", "bad"], object), "probabilities": np.full((2, 2), np.inf)}),
    ],
    ids=["raises", "raises-anything", "nan", "infinite"],
)
def test_the_champion_answers_what_a_challenger_fails_and_the_challenger_is_charged(
    running: InProcess, first: Bundle, session: Any
) -> None:
    running.plane.dispatcher.sink = kept = Kept()
    replaced(running, session)
    reply = ask(running, users(running, "challenger", 1)[0])
    assert reply.status_code == 200
    assert (reply.headers[VARIANT], reply.headers[FALLBACK]) == ("champion", "challenger")
    assert reply.headers[VERSION] == reply.json()["model_version"] == first.manifest.version
    assert FALLBACK not in ask(running, users(running, "champion", 1)[0]).headers
    assert counts(running) == {"champion": (1, 0), "challenger": (1, 1)}
    charged = kept.records[0]
    assert (charged.variant, charged.answered, bool(charged.error)) == ("challenger", "champion", True)
    page = running.client.get("/metrics").text
    assert [line for line in page.splitlines() if line.startswith("mlkit_fallbacks_total") and line.endswith(" 1.0")]


def test_a_late_challenger_leaves_the_champion_time_and_threads(
    start: Callable[..., InProcess], first: Bundle, second: Bundle
) -> None:
    running = start(timeout_seconds=1.0)
    running.swap(split(1, first, second))
    model = running.versions.active.by_name["challenger"]  # type: ignore[union-attr]
    held = Held(model.session)
    replaced(running, held)
    object.__setattr__(model, "inline_rows", 0)
    object.__setattr__(running.versions.active.champion, "inline_rows", 0)  # type: ignore[union-attr]
    hung, fine = users(running, "challenger", 8), users(running, "champion", 8)
    try:
        with ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(lambda user: ask(running, user), [*hung, *fine]))
    finally:
        held.gate.set()
    assert {reply.status_code for reply in replies} == {200}
    assert [reply.headers[VARIANT] for reply in replies] == ["champion"] * 16
    assert counts(running) == {"champion": (8, 0), "challenger": (8, 8)}
    assert running.versions.active.by_name["challenger"].breaker.open  # type: ignore[union-attr]


def test_a_challenger_that_keeps_failing_is_left_alone_and_still_charged_a_champion_never(running: InProcess) -> None:
    asked = []

    def fail(inputs: Any) -> Any:
        asked.append(inputs)
        raise EngineError("out of order")

    replaced(running, Broken(fail))
    for user in users(running, "challenger", MAX_FAILURES + 5):
        assert ask(running, user).status_code == 200
    assert len(asked) == MAX_FAILURES
    assert counts(running)["challenger"] == (MAX_FAILURES + 5, MAX_FAILURES + 5)
    page = running.client.get("/metrics").text
    breakers = {line.split("{")[1]: line[-3:] for line in page.splitlines() if line.startswith("mlkit_breaker_open{")}
    assert sorted(value for key, value in breakers.items() if 'variant="challenger"' in key) == ["1.0"]

    object.__setattr__(running.versions.active.champion, "session", raises(EngineError("out of order")))  # type: ignore[union-attr]
    for user in users(running, "champion", MAX_FAILURES + 5):
        reply = ask(running, user)
        assert (reply.status_code, reply.json()["error"]) == (500, "out of order")
    assert counts(running)["champion"] == (MAX_FAILURES + 5, MAX_FAILURES + 5)


def test_a_circuit_stays_with_its_variant_when_weights_change_and_not_with_another(
    running: InProcess, first: Bundle, second: Bundle
) -> None:
    breaker = running.versions.active.by_name["challenger"].breaker  # type: ignore[union-attr]
    active = running.versions.active
    from mlflowkit.adapters.onnxruntime import OnnxRuntime
    from mlflowkit.serving.inference.variants import load_table

    models = tuple(active.by_name.values())  # type: ignore[union-attr]
    more = load_table(split(2, first, second, 0.7), OnnxRuntime(), 1, models)
    assert more.by_name["challenger"].breaker is breaker
    assert more.by_name["challenger"].session is models[1].session
    promoted = load_table(table(3, second), OnnxRuntime(), 1, models)
    assert promoted.champion.session is models[1].session
    assert promoted.champion.breaker is not breaker


def test_a_challenger_that_takes_other_inputs_is_charged_and_a_wrong_request_is_nobodys(running: InProcess) -> None:
    model = running.versions.active.by_name["challenger"]  # type: ignore[union-attr]
    signature = model.bundle.signature
    wider = TensorSpec(name="numeric", datatype="FP32", shape=(-1, 4), columns=("age", "income", "debt", "height"))
    other = signature.model_copy(update={"inputs": (wider, signature.inputs[1])})
    assert isinstance(other, Signature)
    object.__setattr__(model, "schema", Schema(other))
    object.__setattr__(model, "bundle", model.bundle.model_copy(update={"signature": other}))
    user = users(running, "challenger", 1)[0]
    tap = running.plane.dispatcher.sink = Kept()
    reply = ask(running, user)
    assert (reply.status_code, reply.headers[FALLBACK]) == (200, "challenger")
    assert counts(running)["challenger"] == (1, 1)
    assert tap.refusals == []
    wrong = running.client.post("/predict", json={"rows": [{"age": 1}]}, headers={"x-user": user})
    assert wrong.status_code == 400
    assert counts(running)["challenger"] == (1, 1)
    champion = running.versions.active.champion.variant.version  # type: ignore[union-attr]
    assert tap.refusals == [(champion, "missing column income")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "missing column age"),
        ({"age": "old"}, "value of column age"),
        ({"size": 1.0}, "unknown column size"),
        ({"income": -5.0}, "no finite answer"),
    ],
)
def test_a_refused_request_is_seen_by_its_reason(running: InProcess, row: dict[str, Any], reason: str) -> None:
    tap = running.plane.dispatcher.sink = Kept()
    sent = {**ROWS[0], **row} if row else {name: ROWS[0][name] for name in list(ROWS[0])[1:]}
    assert running.client.post("/predict", json={"rows": [sent]}).status_code in (400, 422)
    assert [found for _, found in tap.refusals] == [reason]


def test_a_row_without_a_finite_answer_fails_its_own_request_and_none_in_flight(running: InProcess) -> None:
    bad = [ROWS[0], {**ROWS[0], "income": -5.0}]
    with ThreadPoolExecutor(8) as pool:
        replies = list(
            pool.map(
                lambda number: running.client.post("/predict", json={"rows": bad if number % 4 == 0 else ROWS}),
                range(40),
            )
        )
    codes = [reply.status_code for reply in replies]
    assert codes == [422 if number % 4 == 0 else 200 for number in range(40)]
    assert all("row 1" in reply.json()["error"] for reply in replies if reply.status_code == 422)
    assert not running.versions.active.by_name["challenger"].breaker.open  # type: ignore[union-attr]


def test_a_swap_mid_flight_answers_by_the_table_that_the_request_met(
    running: InProcess, first: Bundle, second: Bundle
) -> None:
    model = running.versions.active.by_name["challenger"]  # type: ignore[union-attr]
    held = Held(model.session)
    replaced(running, held)
    object.__setattr__(model, "inline_rows", 0)
    user = users(running, "challenger", 1)[0]
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, running, user)
        wait_for(lambda: held.entered.acquire(blocking=False))
        running.swap(split(2, first, second, 0.0))
        assert ask(running, user).headers[VARIANT] == "champion"
        held.gate.set()
        assert asked.result().headers[VARIANT] == "challenger"
    found = running.versions.counters.evidence()
    assert (found.of("challenger", [1]).requests, found.of("champion", [2]).requests) == (1, 1)
