"""The observer: what it counts and what it excludes. In this process, without a pipe."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflowkit.bundle import Signature
from mlflowkit.judging.online.evidence import Evidence, VariantCounts
from mlflowkit.report.rollout.rollout_page import render_service
from mlflowkit.rollout.admin.snapshot import ServiceMonitor
from mlflowkit.serving.inference.answer_records import Record
from mlflowkit.serving.observer.observer_process import Observer, PredictionCounts
from mlflowkit.serving.observer.shadow_comparison import EDGE_ROWS
from mlflowkit.values import RoutingTable, Variant
from tests.support.observing import REGRESSION, SIGNATURE, answered, classified, compared, mirrored, record
from tests.support.rollout_world import RolloutWorld


def table(folder: Path, signature: Signature = SIGNATURE, **changes: Any) -> bytes:
    variants = []
    for name, role in (("champion", "champion"), ("candidate", "shadow")):
        bundle = folder / name
        (bundle / "evidence").mkdir(parents=True, exist_ok=True)
        (bundle / "signature.json").write_text(signature.model_dump_json())
        reference = {"columns": {"term": {"frequent": [["36 months", 2]]}}}
        (bundle / "evidence" / "reference.json").write_text(json.dumps(reference))
        variants.append(Variant(name, f"v-{name}", f"{folder.name}-{name}", str(bundle), role=role))  # type: ignore[arg-type]
    routing = RoutingTable("lending", 3, tuple(variants), experiment="e1")
    return json.dumps(asdict(routing) | changes).encode()


@pytest.fixture
def observers(tmp_path: Path) -> Iterator[list[Observer]]:
    pair = [Observer(tmp_path / "services" / "lending", f"r{number}", "") for number in (1, 2)]
    yield pair
    for observer in pair:
        observer.sinks.close()


def of(observer: Observer, variant: str) -> VariantCounts:
    return observer.predictions.evidence().of(variant)


def test_only_what_the_split_gave_a_variant_and_it_answered_itself_counts(
    tmp_path: Path, observers: list[Observer]
) -> None:
    observer = observers[0]
    observer.add_table(table(tmp_path))
    for batch in answered(
        record("a", [0.7]),
        record("b", [0.7], how="override"),
        record("c", [0.7], how="version"),
        record("d", [0.7], variant="candidate", answered="champion", error="late"),
    ):
        observer.answered(batch)
    assert of(observer, "champion").predictions == {"label:good": 1, "score:35": 1}
    assert of(observer, "candidate") == VariantCounts()


def test_a_request_of_many_rows_is_one_observation(tmp_path: Path, observers: list[Observer]) -> None:
    observer = observers[0]
    observer.add_table(table(tmp_path))
    batch = record("a", [0.9] * 3 + [0.1])
    for decoded in answered(batch, record("b", [0.1])):
        observer.answered(decoded)
    counts = of(observer, "champion")
    assert {name: counts.predictions[name] for name in ("label:good", "label:bad")} == {"label:good": 3, "label:bad": 2}
    shares = {name: counts.request_predictions[name] for name in ("label:good", "label:bad")}
    assert shares == {"label:good": 0.75, "label:bad": 1.25}
    answers = classified([0.9, 0.9, 0.1, 0.1]), classified([0.9])
    for decoded in compared(mirrored(batch, answers[0]), mirrored(record("b", [0.1], "60 months"), answers[1])):
        observer.compared(decoded)
    shadow = of(observer, "candidate")
    assert (shadow.agreement[""].count, shadow.agreement[""].total) == (5, 3.0)
    assert (shadow.request_agreement[""].count, shadow.request_agreement[""].total) == (2, 0.75)
    assert shadow.request_agreement["term=36 months"].count == 1
    written = Evidence.from_json(json.loads(json.dumps(observer.predictions.evidence().to_json())))
    assert written.of("candidate") == shadow


def test_agreement_is_sliced_by_the_columns_that_the_rollout_names(tmp_path: Path, observers: list[Observer]) -> None:
    observer = observers[0]
    plan = {"metrics": [{"metric": "agreement", "columns": ["age"]}]}  # a number: there are no slices of it
    observer.files.folder.mkdir(parents=True, exist_ok=True)
    saved = {"state": {"experiment": "e1", "plan": plan}}
    (observer.files.folder / "rollout.json").write_text(json.dumps(saved))
    observer.add_table(table(tmp_path))
    for batch in compared(mirrored(record("a", [0.7]), classified([0.6]))):
        observer.compared(batch)
    assert set(of(observer, "candidate").agreement) == {""}
    observer.add_table(table(tmp_path, epoch=4, experiment="e2"))
    for batch in compared(mirrored(record("a", [0.7], epoch=4, experiment="e2"), classified([0.6]))):
        observer.compared(batch)
    assert set(of(observer, "candidate").agreement) == {"", "term=36 months"}


def test_a_rollout_that_cannot_be_read_costs_no_evidence(tmp_path: Path, observers: list[Observer]) -> None:
    observer = observers[0]
    observer.files.folder.mkdir(parents=True, exist_ok=True)
    (observer.files.folder / "rollout.json").write_text('{"state": {"experiment": "e1"}}')
    observer.add_table(table(tmp_path))
    for batch in compared(mirrored(record("a", [0.7]), classified([0.6]))):
        observer.compared(batch)
    assert of(observer, "candidate").agreement[""].count == 1


ODD = ("[]", "{}", '{"experiment": "e1"}', '{"experiment": "e1", "agreement": {"": [1]}}', "{")


@pytest.mark.parametrize("odd", ODD)
def test_a_replicas_comparison_that_is_odd_is_left_out_of_what_all_saw(
    tmp_path: Path, observers: list[Observer], odd: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = observers[0].files.folder / "disagreements"
    (folder / "r0").mkdir(parents=True)
    (folder / "r0" / "candidate.json").write_text(odd)
    for number, observer in enumerate(observers, 1):
        observer.add_table(table(tmp_path))
        for batch in compared(mirrored(record("a", [0.7]), classified([0.4]))):
            observer.compared(batch)
        observer.tick(last=True)
        assert json.loads((folder / "candidate.json").read_text())["disagreements"] == number
        observer.tick(last=True)
        assert observer.counters()["write_failures"] == 0
    assert caplog.text.count("r0/candidate.json is damaged and was left out") == len(observers)


def test_what_observers_write_of_disagreements_is_what_the_page_shows(
    tmp_path: Path, observers: list[Observer]
) -> None:
    world = RolloutWorld(tmp_path).begin()
    for number, observer in enumerate(observers):
        observer.add_table(table(tmp_path))
        source = record(f"request-{number}", [0.7, 0.9], time=1000.0 + number)
        for batch in compared(mirrored(source, classified([0.4, 0.8]))):
            observer.compared(batch)
        observer.tick(last=True)
    view = ServiceMonitor(world.state).view("lending")
    assert view is not None
    assert view.problems == ()
    seen = view.comparisons["candidate"]
    assert (seen.rows, seen.disagreements, seen.version) == (4, 2, "v2")
    assert seen.latency == pytest.approx(0.003)
    assert seen.difference == pytest.approx(-0.2, abs=1e-6)
    assert [example.id for example in seen.examples] == ["request-1", "request-0"]
    text = unescape(re.sub(r"<[^>]+>", " ", render_service(view)))
    for words in (
        "2 of 4 compared", "+3 ms on average", "request-0", "good, 70 %", "bad, 60 %", "-0.3000", "36 months",
        "2 of 2, drawn at random",
    ):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize("odd", ["[]", '{"experiment": "e1", "epochs": []}'])
def test_evidence_of_an_earlier_observer_that_is_odd_begins_anew(tmp_path: Path, odd: str) -> None:
    path = tmp_path / "services" / "lending" / "evidence" / "r1.observer.json"
    path.parent.mkdir(parents=True)
    path.write_text(odd)
    observer = Observer(tmp_path / "services" / "lending", "r1", "")
    assert observer.predictions.evidence() == Evidence("")
    observer.close()


def test_an_answer_that_the_champion_did_not_give_is_compared_with_nothing(
    tmp_path: Path, observers: list[Observer]
) -> None:
    observer = observers[0]
    observer.add_table(table(tmp_path))
    for batch in compared(mirrored(record("a", [0.7], answered="candidate"), classified([0.6]))):
        observer.compared(batch)
    for batch in compared(mirrored(record("a", [0.7]), None)):
        observer.compared(batch)
    assert of(observer, "candidate") == VariantCounts()


def test_late_records_of_an_experiment_that_is_over_are_left_out() -> None:
    predictions = PredictionCounts()
    for experiment, epoch in (("e1", 3), ("e2", 5)):
        assert predictions.accepts(experiment, epoch)
        predictions.add(epoch, "champion", VariantCounts(predictions={"label:good": 1}))
    assert not predictions.accepts("e1", 4)
    assert predictions.evidence() == Evidence("e2", {5: {"champion": VariantCounts(predictions={"label:good": 1})}})
    restarted = PredictionCounts(Evidence.from_json(predictions.evidence().to_json()))
    assert restarted.evidence() == predictions.evidence()
    assert not restarted.accepts("e1", 4)


def valued(values: np.ndarray, **changes: Any) -> Record:
    answer = record(changes.pop("number", "r"), [0.0] * len(values), **changes)
    answer.inputs = {"numeric": np.zeros((len(values), 1), np.float32)}
    answer.answers = {"prediction": values.astype(np.float32)}
    return answer


def test_predictions_of_a_regression_are_counted_by_deciles_that_all_replicas_share(
    tmp_path: Path, observers: list[Observer]
) -> None:
    first, second = observers
    for observer in observers:
        observer.add_table(table(tmp_path, REGRESSION))
    values = np.linspace(0.0, 100.0, EDGE_ROWS)
    shadow = {"prediction": (values[:100] + 100.0).astype(np.float32)}
    for batch in compared(mirrored(valued(values[:100]), shadow)):
        first.compared(batch)  # held until the decile edges are known
    assert of(first, "candidate") == VariantCounts()
    for begin in range(0, EDGE_ROWS, 100):
        for batch in answered(valued(values[begin : begin + 100])):
            first.answered(batch)
    assert of(first, "champion").predictions == {f"decile:{decile}": EDGE_ROWS // 10 for decile in range(10)}
    assert of(first, "candidate").agreement[""].count == 100
    assert of(first, "candidate").agreement[""].total == 0
    assert of(first, "candidate").difference.mean == pytest.approx(100, rel=1e-5)
    assert of(first, "candidate").pairs.pairs == 0  # all rows are of one request
    for batch in compared(mirrored(valued(values[:1]), {"prediction": values[:1].astype(np.float32)})):
        first.compared(batch)
    assert of(first, "candidate").pairs.pairs == 1
    for batch in answered(valued(np.array([3.0, 97.0]))):
        second.answered(batch)
    assert of(second, "champion").predictions == {"decile:0": 1, "decile:9": 1}
