"""Feedback that is invented, early, or of one client: it decides no verdict. Real logs, the real join and judge."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mlflowkit.judging.online.evidence import Evidence, Moments
from mlflowkit.judging.online.judge import MetricSpec, judge
from mlflowkit.rollout.admin.snapshot import read_snapshot
from mlflowkit.service_state.records import Desired, GatewaySettings, ServiceFiles
from mlflowkit.serving.feedback import join as joins
from mlflowkit.serving.feedback.intake import Feedback
from mlflowkit.serving.feedback.join import FeedbackJoin
from mlflowkit.serving.observer.prediction_log import LogWriter, log_rows
from mlflowkit.values import Outcome
from tests.support.observing import SIGNATURE, answered, record


class Service:
    """A service's folder with its logs: requests are answered at their time, feedback arrives at its own."""

    def __init__(self, folder: Path, **settings: float) -> None:
        self.files = ServiceFiles(folder / "services" / "lending")
        self.files.folder.mkdir(parents=True)
        self.files.write_desired(Desired(1, True, GatewaySettings("lending", **settings)))  # type: ignore[arg-type]
        self.log = LogWriter(self.files.folder / "predictions", "r1", days=7, megabytes=10)
        (self.files.folder / "feedback").mkdir()
        self.join = FeedbackJoin(self.files.folder)

    def answer(self, ids: Sequence[str], variant: str, *, time: float = 1000.0, score: float = 0.9) -> None:
        """Answers of one row: "good" from a score of 0.5."""
        for batch in answered(*(record(id, [score], time=time, variant=variant) for id in ids)):
            header = replace(batch.header, answered=variant)
            self.log.add(log_rows(replace(batch, header=header), SIGNATURE))
        self.log.roll()

    def say(self, ids: Sequence[str], label: str, source: str, *, received: float = 2000.0) -> None:
        with (self.files.folder / "feedback" / "r1-1-000001.jsonl").open("ab") as stream:
            stream.writelines(Feedback(id, "label", (label,), None, source).to_line(received) for id in ids)

    def step(self) -> Evidence:
        return self.join.step("e1")

    def accuracy(self, variant: str) -> Moments:
        return self.step().of(variant).quality.get("accuracy", Moments())

    @property
    def problems(self) -> str:
        return "\n".join(read_snapshot(self.files).problems)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    made.join.close()


def ids(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{number}" for number in range(count)]


def test_labels_before_their_requests_neither_count_nor_spoil_the_truth(service: Service) -> None:
    """The attack that was seen: ids are guessed, labels sent first, the truth that comes later was a conflict."""
    for label in ("bad", "good"):
        service.say(ids("q", 30), label, "0badf00d+infer", received=999.0)
    assert service.accuracy("champion") == Moments()
    assert service.join.counters()["pending"] == 60
    service.answer(ids("q", 30), "champion")
    assert service.accuracy("champion") == Moments()
    service.say(ids("q", 30), "good", "5f0c2a91")
    assert service.accuracy("champion") == Moments(30, 30.0, 30.0)
    counters = service.join.counters()
    assert (counters["conflicts"], counters["premature"], counters["pending"]) == (0, 60, 0)
    assert "60 items came before their request was answered" in service.problems


def verdict(evidence: Evidence) -> Outcome:
    """What an A/B by accuracy says: is the challenger worse by more than a point?"""
    spec = MetricSpec("accuracy", "accuracy", margin=0.01)
    results, _ = judge(
        [spec], evidence, champion="champion", challenger="challenger", epochs=(3,), level=0.05, traces={}
    )
    return results[0].verdict.outcome


@pytest.mark.parametrize("answered_first", [True, False])
def test_one_client_that_asks_and_labels_decides_nothing(service: Service, *, answered_first: bool) -> None:
    """Its labels call every answer of the challenger right and of the champion wrong."""

    def attack() -> None:
        service.say(ids("mine-a", 80), "bad", "0badf00d+infer")
        service.say(ids("mine-b", 80), "good", "0badf00d+infer")

    if not answered_first:
        attack()
    service.answer(ids("mine-a", 80), "champion")
    service.answer(ids("mine-b", 80), "challenger")
    if answered_first:
        attack()
    evidence = service.step()
    assert evidence.of("champion").quality == evidence.of("challenger").quality == {}
    assert verdict(evidence) is Outcome.INCONCLUSIVE
    assert verdict(service.join.evidence("e1")) is Outcome.PASSED  # as it was before there was a share
    assert service.files.read_json("evidence/feedback.json") in (None, evidence.to_json())
    status = service.files.read_json("feedback.json")
    assert status["withheld"] == {"0badf00d": 1.0}
    assert "API key 0badf00d sent 100% of a variant's labels" in service.problems
    # what a backend with a key for feedback alone says is judged, and by then the client's share is small
    service.answer(ids("true", 400), "champion")
    service.answer(ids("true-b", 400), "challenger")
    service.say(ids("true", 400), "good", "5f0c2a91")
    service.say(ids("true-b", 400), "bad", "5f0c2a91")
    assert service.accuracy("champion") == Moments(480, 400.0, 400.0)
    assert service.accuracy("challenger") == Moments(480, 80.0, 80.0)
    assert verdict(service.step()) is Outcome.FAILED
    assert service.files.read_json("feedback.json")["withheld"] == {}


def test_a_share_is_of_each_variant_not_of_all_labels(service: Service) -> None:
    """At 5 % of the traffic a client could own the challenger's labels and still send few of all."""
    service.answer(ids("a", 400), "champion")
    service.answer(ids("b", 20), "challenger")
    service.say(ids("a", 400), "good", "5f0c2a91")
    service.say(ids("b", 20), "good", "0badf00d+infer")
    assert service.accuracy("challenger") == Moments()
    assert service.accuracy("champion") == Moments(400, 400.0, 400.0)
    desired = Desired(2, True, GatewaySettings("lending", feedback_max_share=1.0))
    service.files.write_desired(desired)
    assert service.accuracy("challenger") == Moments(20, 20.0, 20.0)


def test_another_key_cannot_take_over_a_label(service: Service) -> None:
    service.answer(ids("q", 10), "champion")
    service.say(ids("q", 10), "good", "5f0c2a91", received=1500.0)
    service.say(ids("q", 10), "bad", "0badf00d+infer", received=1600.0)
    assert service.accuracy("champion") == Moments(10, 10.0, 10.0)
    assert service.join.counters()["conflicts"] == 10


def test_labels_of_unknown_requests_are_held_for_a_time_and_a_number(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(joins, "PENDING_ITEMS", 50)
    service.answer(["known"], "champion", time=now)
    service.say(["known"], "good", "5f0c2a91", received=now + 1)
    service.say(ids("flood", 500), "good", "0badf00d+infer", received=now + 1)
    service.step()
    counters = service.join.counters()
    assert (counters["pending"], counters["unmatched"], counters["joined"]) == (50, 450, 1)
    assert "450 items name a request that is not in the prediction log" in service.problems
    service.say(["much later"], "good", "5f0c2a91", received=now + joins.PENDING_SECONDS + 2)
    service.step()
    assert (service.join.counters()["pending"], service.join.counters()["unmatched"]) == (1, 500)
    assert service.accuracy("champion") == Moments(1, 1.0, 1.0)


def test_repeated_items_of_one_request_are_bounded_and_the_last_ones_count(service: Service) -> None:
    service.answer(["q"], "champion")
    for number in range(300):
        service.say(["q"], f"label {number}", "0badf00d+infer", received=1001.0 + number)
    service.say(["q"], "good", "0badf00d+infer", received=9000.0)
    service.step()
    kept = service.join._database.execute("SELECT COUNT(*) FROM items").fetchone()[0]
    assert kept == joins.ITEMS_PER_ID
    assert service.join.evidence("e1").of("champion").quality["accuracy"] == Moments(1, 1.0, 1.0)


def test_the_index_is_bounded_by_size_and_says_so(tmp_path: Path) -> None:
    service = Service(tmp_path, feedback_mb=0.5)
    for part in range(10):
        service.say(ids("x" * 200 + str(part), 1000), "good", "0badf00d+infer")
        service.step()
    pages, free = (
        service.join._database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count")
    )
    assert (pages - free) * 4096 < 1.5 * (1 << 20)
    assert service.join.counters()["trimmed"] > 0
    assert "serve.feedback.max_mb" in service.problems
    service.join.close()


def test_an_index_of_the_format_before_keeps_its_counts(tmp_path: Path) -> None:
    """Feedback was in a table without sources; the logs that it came from may be gone by now."""
    folder = tmp_path / "services" / "lending"
    folder.mkdir(parents=True)
    old = sqlite3.connect(folder / "join.sqlite")
    old.executescript(
        """
        CREATE TABLE answers (number INTEGER PRIMARY KEY, id TEXT, variant TEXT, row INTEGER, time REAL,
            experiment TEXT, epoch INTEGER, label TEXT, prediction REAL, probabilities BLOB, classes INTEGER,
            UNIQUE (id, variant, row));
        CREATE TABLE feedback (number INTEGER PRIMARY KEY, id TEXT, kind TEXT, said TEXT, received REAL,
            UNIQUE (id, kind, said));
        CREATE TABLE counted (number INTEGER PRIMARY KEY, id TEXT, variant TEXT, experiment TEXT, epoch INTEGER,
            outcome TEXT, UNIQUE (id, variant));
        CREATE TABLE totals (experiment TEXT, epoch INTEGER, variant TEXT, metric TEXT, count INTEGER, total REAL,
            squares REAL, PRIMARY KEY (experiment, epoch, variant, metric)) WITHOUT ROWID;
        INSERT INTO answers VALUES (1, 'q', 'champion', 0, 10.0, 'e1', 3, 'good', NULL, NULL, NULL);
        INSERT INTO feedback VALUES (1, 'q', 'label', '["good"]', 12.0), (2, 'later', 'label', '["good"]', 13.0);
        INSERT INTO counted VALUES (1, 'q', 'champion', 'e1', 3, '{"accuracy": [1, 1.0, 1.0]}');
        INSERT INTO totals VALUES ('e1', 3, 'champion', 'accuracy', 1, 1.0, 1.0);
        """
    )
    old.close()
    join = FeedbackJoin(folder)
    assert join.step("e1").of("champion").quality["accuracy"] == Moments(1, 1.0, 1.0)
    counters = join.counters()
    assert counters["joined"] == 1
    join.close()
