"""What is answered is observed: counted, compared, logged, joined with feedback. A real replica with its observer."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.bundle import Bundle
from mlflowkit.cli.app import main
from mlflowkit.judging.online.evidence import Evidence, VariantCounts
from mlflowkit.service_state.records import Desired, GatewaySettings, ServiceFiles
from mlflowkit.serving.feedback.join import FeedbackJoin
from mlflowkit.serving.observer.prediction_log import read_log
from mlflowkit.serving.replica import Replica
from mlflowkit.values import RoutingTable, Variant
from tests.support.lending_bundle import CATEGORIES, expected
from tests.support.waiting import wait_for

TERMS = CATEGORIES["term"]


@dataclass
class Served:
    """A replica that answers with the first bundle and mirrors to the second, and what it was asked."""

    files: ServiceFiles
    replica: Replica
    client: httpx.Client
    champion: Bundle
    shadow: Bundle
    asked: dict[str, dict[str, Any]]
    replies: dict[str, dict[str, Any]]

    def ask(self, number: str, row: dict[str, Any], **headers: str) -> None:
        reply = self.client.post("/predict", json={"rows": [row]}, headers={"x-request-id": number, **headers})
        assert reply.status_code == 200, reply.text
        self.asked[number] = row
        self.replies[number] = reply.json()["predictions"][0]

    def counts(self, variant: str) -> VariantCounts:
        path = self.files.folder / "evidence" / "r1.observer.json"
        return Evidence.from_json(json.loads(path.read_bytes())).of(variant) if path.exists() else VariantCounts()

    def log(self) -> list[dict[str, Any]]:
        return [row for table in read_log(self.files.folder / "predictions") for row in table.to_pylist()]


def row(number: int) -> dict[str, Any]:
    return {
        "age": 20.0 + number,
        "income": 1000.0 * number,
        "debt": None if number % 5 == 0 else 10.0 * number,
        "term": TERMS[number % 2],
        "purpose": "car",
    }


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory, first: Bundle, second: Bundle) -> Iterator[Served]:
    import socket

    files = ServiceFiles(tmp_path_factory.mktemp("observed") / "services" / "lending")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    files.write_desired(Desired(1, True, GatewaySettings("lending", port=port, profile=False)))
    champion = Variant("champion", first.manifest.version, first.manifest.identity, str(first.path))
    shadow = Variant(
        "candidate", second.manifest.version, second.manifest.identity, str(second.path), role="shadow", weight=0.0
    )
    files.write_table(RoutingTable("lending", 1, (champion, shadow), experiment="e1", salt="e1"))
    replica = Replica(files.folder, OnnxRuntime(), "r1")
    wait_for(lambda: any(report.state == "serving" for report in files.reports()))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        served = Served(files, replica, client, first, second, {}, {})
        for number in range(40):
            served.ask(f"ask-{number}", row(number))
        served.ask("tester", row(7), **{"x-mlkit-variant": "champion"})
        yield served
    replica.stop()


def answers_of(bundle: Bundle, served: Served) -> list[str]:
    rows = [served.asked[f"ask-{number}"] for number in range(40)]
    return list(expected(bundle.path, rows)["label"])


def test_predictions_of_the_split_are_counted(observed: Served) -> None:
    wait_for(lambda: sum(observed.counts("champion").predictions.values()) >= 80)
    counts = observed.counts("champion").predictions
    labels = answers_of(observed.champion, observed)
    for label in set(labels):
        assert counts[f"label:{label}"] == labels.count(label)  # the tester's is not among them
    assert sum(count for key, count in counts.items() if key.startswith("score:")) == 40


def test_the_shadow_is_compared_row_by_row_and_slice_by_slice(observed: Served) -> None:
    wait_for(lambda: "" in (found := observed.counts("candidate").agreement) and found[""].count == 40)
    pairs = list(zip(answers_of(observed.champion, observed), answers_of(observed.shadow, observed), strict=True))
    agreement = observed.counts("candidate").agreement
    assert agreement[""].total == sum(one == other for one, other in pairs)
    for place, term in enumerate(TERMS):
        mine = pairs[place::2]
        assert (agreement[f"term={term}"].count, agreement[f"term={term}"].total) == (
            len(mine),
            sum(one == other for one, other in mine),
        )
    assert observed.counts("candidate").difference.count == 40
    path = observed.files.folder / "disagreements" / "candidate.json"
    seen = wait_for(
        lambda: path.exists() and (found := json.loads(path.read_bytes()))["agreement"][""][0] == 40 and found
    )
    differing = sum(one != other for one, other in pairs)
    assert differing > 0
    assert (seen["disagreements"], len(seen["examples"])) == (differing, differing)
    example = seen["examples"][0]
    assert example["inputs"] == observed.asked[example["id"]]
    assert example["champion"]["label"] == observed.replies[example["id"]]["label"] != example["shadow"]["label"]
    assert f"term={example['inputs']['term']}" in example["slices"]


def test_what_was_asked_and_answered_is_in_the_log(observed: Served) -> None:
    found = wait_for(lambda: len(rows := observed.log()) >= 81 and rows)
    mine = {line["id"]: line for line in found if line["how"] != "mirror"}
    assert set(mine) == set(observed.asked)
    assert mine["tester"]["how"] == "override"
    for number, line in mine.items():
        asked = observed.asked[number]
        assert line["label"] == observed.replies[number]["label"]
        assert (line["input.term"], line["input.age"]) == (asked["term"], asked["age"])
        assert (line["input.debt"] != line["input.debt"]) == (asked["debt"] is None)
        assert (line["version"], line["epoch"], line["error"]) == (observed.champion.manifest.version, 1, "")
    assert {line["id"] for line in found if line["how"] == "mirror"} == set(observed.asked) - {"tester"}


def test_feedback_is_joined_into_quality(observed: Served) -> None:
    early = observed.client.post("/v2/feedback", json={"id": "ask-not-yet", "label": "good"})
    assert (early.status_code, early.json()) == (202, {"accepted": 1})
    items = [{"id": f"ask-{number}", "label": "good"} for number in range(40)]
    assert observed.client.post("/v2/feedback", json={"feedback": items}).json() == {"accepted": 40}
    items = [{"id": f"ask-{number}", "label": "bad"} for number in range(5)]  # a correction
    assert observed.client.post(
        "/v2/feedback", json={"feedback": [*items, {"id": "tester", "label": "bad"}]}
    ).is_success
    wait_for(lambda: len(observed.log()) >= 81)
    join = FeedbackJoin(observed.files.folder)
    quality = join.step().of("champion").quality
    labels = answers_of(observed.champion, observed)
    right = labels[:5].count("bad") + labels[5:40].count("good")
    assert (quality["accuracy"].count, quality["accuracy"].total) == (40, right)
    shadow = join.evidence("e1").of("candidate").quality["accuracy"]
    answers = answers_of(observed.shadow, observed)
    assert (shadow.count, shadow.total) == (40, answers[:5].count("bad") + answers[5:40].count("good"))
    assert join.counters()["corrections"] == 5
    assert join.counters()["pending"] == 2  # the tester's answer is no evidence, and one id was never asked
    observed.ask("ask-not-yet", row(3))
    wait_for(lambda: join.step() and join.counters()["premature"] == 1)  # it was sent before there was an answer
    assert join.evidence("e1").of("champion").quality["accuracy"].count == 40
    assert observed.client.post("/v2/feedback", json={"id": "ask-not-yet", "label": "good"}).is_success
    wait_for(lambda: join.step().of("champion").quality["accuracy"].count == 41)
    assert (observed.files.folder / "evidence" / "feedback.json").exists()
    join.close()


@pytest.mark.parametrize("body", [{}, {"id": "a"}, {"feedback": 3}, {"id": "a", "label": {"x": 1}}, [1], "x"])
def test_feedback_that_says_nothing_is_refused(observed: Served, body: Any) -> None:
    reply = observed.client.post("/v2/feedback", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["feedback", *arguments])
    return int(caught.value.code or 0)


def test_feedback_is_told_from_the_command_line(
    observed: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ("--endpoint", str(observed.client.base_url))
    assert run(*url, "--id", "ask-1", "--label", "good", "--json") == 0
    assert json.loads(capsys.readouterr().out)["accepted"] == 1
    (tmp_path / "labels.csv").write_text("id,label\nask-1,good\nask-2,bad\nask-2,good\nask-3,\n")
    assert run(*url, str(tmp_path / "labels.csv"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["accepted"] == 2  # ask-2 has two rows, of ask-3 nothing is known
    (tmp_path / "labels.jsonl").write_text('{"id": "a", "label": "x"}\n\n{"id": "b", "target": 3}\n')
    assert run(*url, str(tmp_path / "labels.jsonl")) == 0
    assert "2 items accepted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "id,truth\na,x\n", "a.csv:1: the columns"),
        ("a.csv", "id,target\na,much\n", "a.csv:2: 'much' is not a number"),
        ("a.csv", 'id,label\na,"x\n', "not CSV"),
        ("a.jsonl", '{"id": "a", "label": "x"}\n{', "a.jsonl:2: not JSON"),
        ("a.json", "[]", "holds no feedback"),
        ("a.json", '[{"id": "a", "lable": "x"}]', "did you mean label?"),
    ],
)
def test_a_wrong_file_of_feedback_is_told_with_its_place(
    observed: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, says: str
) -> None:
    (tmp_path / name).write_text(text)
    assert run("--endpoint", str(observed.client.base_url), str(tmp_path / name)) == 2
    assert says in capsys.readouterr().err


def test_counting_goes_on_where_a_killed_observer_left_it(observed: Served) -> None:
    wait_for(lambda: sum(observed.counts("champion").predictions.values()) >= 80)
    before = sum(observed.counts("champion").predictions.values())
    tap = observed.replica._observer
    assert tap.pid is not None
    dead = tap.pid
    os.kill(dead, signal.SIGKILL)
    wait_for(lambda: tap.pid not in (None, dead))
    for number in range(10):
        observed.ask(f"again-{number}", row(number))
    wait_for(lambda: sum(observed.counts("champion").predictions.values()) == before + 20)
    page = observed.client.get("/metrics").text
    assert any(line.startswith("mlkit_tap_restarts") and line.endswith(" 1.0") for line in page.splitlines())


def test_another_experiment_is_counted_from_nothing(observed: Served) -> None:
    table = observed.files.table()
    assert table is not None
    observed.files.write_table(replace(table, epoch=2, experiment="e2"))
    wait_for(lambda: any(report.epoch == 2 for report in observed.files.reports()))
    observed.ask("first-of-e2", row(1))
    path = observed.files.folder / "evidence" / "r1.observer.json"
    found = wait_for(lambda: (one := Evidence.from_json(json.loads(path.read_bytes()))).experiment == "e2" and one)
    wait_for(lambda: sum(observed.counts("champion").predictions.values()) == 2)
    assert set(found.epochs) == {2}
