"""Feedback: which items are accepted, how they are scored, and that they are on disk when acknowledged."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.judging.online.evidence import Moments
from mlflowkit.serving.feedback import intake as intakes
from mlflowkit.serving.feedback.intake import Feedback, Intake, parse, read_since
from mlflowkit.serving.feedback.scoring import AnsweredRequest, join_request, sources_beyond
from mlflowkit.serving.protocol.http_error import RequestError


@pytest.mark.parametrize(
    ("body", "kind", "values"),
    [
        ({"id": "a", "label": "good"}, "label", ("good",)),
        ({"id": "a", "label": 1}, "label", (1,)),
        ({"id": "a", "label": [True, None]}, "label", (True, None)),
        ({"id": "a", "target": 2.5, "time": 12}, "target", (2.5,)),
        ({"id": "a", "target": [1, 2.5, None]}, "target", (1, 2.5, None)),
    ],
)
def test_a_value_or_one_a_row(body: dict[str, Any], kind: str, values: tuple[Any, ...]) -> None:
    (item,) = parse(body, limit=10)
    assert (item.id, item.kind, item.values) == ("a", kind, values)
    stored, received = Feedback.from_line(item.to_line(5.0))
    assert (stored, received) == (item, 5.0)


def test_many_at_once() -> None:
    items = parse({"feedback": [{"id": "a", "label": "x"}, {"id": "b", "target": 1.0}]}, limit=2)
    assert [(item.id, item.kind) for item in items] == [("a", "label"), ("b", "target")]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "id"),
        ({"id": "a"}, "either a label"),
        ({"id": "", "label": "x"}, "id"),
        ({"id": 7, "label": "x"}, "id"),
        ({"id": "a" * 257, "label": "x"}, "id"),
        ({"id": "a", "label": "x", "target": 1}, "either a label"),
        ({"id": "a", "label": None}, "no value is given"),
        ({"id": "a", "label": []}, "no value is given"),
        ({"id": "a", "label": 1.5}, "label: text"),
        ({"id": "a", "label": {"x": 1}}, "label: text"),
        ({"id": "a", "label": [["x"]]}, "label: text"),
        ({"id": "a", "target": "1"}, "target: a number"),
        ({"id": "a", "target": True}, "target: a number"),
        ({"id": "a", "target": math.inf}, "target: a number"),
        ({"id": "a", "target": 10**400}, "target: a number"),
        ({"id": "a", "label": "x", "time": "now"}, "time"),
        ({"id": "a", "label": "x", "time": -1}, "time"),
        ({"id": "a", "lable": "x"}, "did you mean label?"),
        ({"feedback": []}, "a list is needed"),
        ({"feedback": {"id": "a"}}, "a list is needed"),
        ({"feedback": [{"id": "a", "label": "x"}, 3]}, r"feedback\[1\]: an object"),
        ({"feedback": [{"id": "a", "label": "x"}], "id": "b"}, "no place beside feedback"),
    ],
)
def test_invalid_items_are_refused_with_a_reason(body: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse(body, limit=10)
    assert caught.value.status == 400


def test_more_than_the_limit_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        parse({"feedback": [{"id": str(number), "label": "x"} for number in range(3)]}, limit=2)
    assert caught.value.status == 413


def test_what_is_accepted_is_on_the_disk(tmp_path: Path) -> None:
    async def send() -> None:
        intake = Intake(tmp_path, "r1", days=1)
        await asyncio.gather(*(intake.accept([Feedback(f"r{number}", "label", ("x",))]) for number in range(50)))
        ids = [Feedback.from_line(line)[0].id for _, _, lines in read_since(tmp_path, {}) for line in lines]
        assert sorted(ids) == sorted(f"r{number}" for number in range(50))
        assert intake.accepted == 50
        intake.stop()

    asyncio.run(send())


def test_a_flood_is_bounded_by_size_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intakes, "FILE_BYTES", 64 << 10)
    items = [Feedback("x" * 200, "label", ("y" * 200,)) for _ in range(400)]

    async def send() -> Intake:
        intake = Intake(tmp_path, "r1", days=1, megabytes=0.5)
        for _ in range(20):  # 3.5 MB
            await intake.accept(items)
        await intake.accept([Feedback("last", "label", ("x",))])
        intake.stop()
        return intake

    intake = asyncio.run(send())
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 0.5 * (1 << 20) + 2 * 180_000
    assert "serve.feedback.max_mb" in intake.warning
    ids = [Feedback.from_line(line)[0].id for _, _, lines in read_since(tmp_path, {}) for line in lines]
    assert ids[-1] == "last"


def test_a_file_that_was_removed_while_it_was_idle_loses_nothing(tmp_path: Path) -> None:
    async def send() -> None:
        intake = Intake(tmp_path, "r1", days=1)
        await intake.accept([Feedback("one", "label", ("x",))])
        for path in tmp_path.iterdir():  # as another replica does when the file is old
            path.unlink()
        await intake.accept([Feedback("two", "label", ("x",))])
        intake.stop()

    asyncio.run(send())
    ids = [Feedback.from_line(line)[0].id for _, _, lines in read_since(tmp_path, {}) for line in lines]
    assert ids == ["two"]


def test_feedback_is_stamped_when_it_arrives_not_when_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an item that waits for the disk could pass for one that came after an answer."""
    import threading

    async def send() -> float:
        intake = Intake(tmp_path, "r1", days=1)
        gate = threading.Event()
        write = intake._append
        monkeypatch.setattr(intake, "_append", lambda lines: (gate.wait(20), write(lines)))
        waiting = asyncio.gather(*(intake.accept([Feedback(name, "label", ("x",))]) for name in "ab"))
        await asyncio.sleep(0)
        answered = time.time()
        gate.set()
        await waiting
        intake.stop()
        return answered

    answered = asyncio.run(send())
    lines = [line for _, _, found in read_since(tmp_path, {}) for line in found]
    assert len(lines) == 2
    assert all(Feedback.from_line(line)[1] <= answered for line in lines)


def test_lines_are_read_once_they_are_whole(tmp_path: Path) -> None:
    lines = [Feedback(name, "label", ("x",)).to_line(1.0) for name in "ab"]
    path = tmp_path / "r1-1-000001.jsonl"
    path.write_bytes(lines[0] + lines[1][:10])
    ((name, offset, complete),) = read_since(tmp_path, {})
    assert complete == [lines[0].rstrip()]
    assert list(read_since(tmp_path, {name: offset})) == []
    path.write_bytes(lines[0] + lines[1])
    ((_, _, complete),) = read_since(tmp_path, {name: offset})
    assert complete == [lines[1].rstrip()]


def test_a_line_longer_than_what_is_read_at_once_is_read(tmp_path: Path) -> None:
    lines = [Feedback(name, "label", ("x" * 200,) * 20).to_line(1.0) for name in "ab"]
    (tmp_path / "r1-1-000001.jsonl").write_bytes(b"".join(lines))
    cursor: dict[str, int] = {}
    lines_read: list[bytes] = []
    for _ in range(2):
        for name, offset, complete in read_since(tmp_path, cursor, max_bytes=100):
            cursor[name] = offset
            lines_read += complete
    assert lines_read == [line.rstrip() for line in lines]


GOOD = AnsweredRequest("good", {"bad": 0.2, "good": 0.8})


def test_quality_of_a_classification() -> None:
    quality = join_request([GOOD, GOOD], [(1.0, Feedback("r", "label", ("good", "bad")))]).quality
    assert quality["accuracy"] == Moments(2, 1.0, 1.0)
    assert quality["log_loss"].total == pytest.approx(-math.log(0.8) - math.log(0.2))


def test_quality_of_a_regression() -> None:
    quality = join_request([AnsweredRequest(prediction=3.0)], [(1.0, Feedback("r", "target", (5,)))]).quality
    assert quality == {"absolute_error": Moments(1, 2.0, 4.0), "squared_error": Moments(1, 4.0, 16.0)}


def test_a_certain_mistake_has_a_finite_loss() -> None:
    sure = AnsweredRequest("good", {"bad": 0.0, "good": 1.0})
    assert join_request([sure], [(1.0, Feedback("r", "label", ("bad",)))]).quality["log_loss"].total < 17


def said(label: Any, received: float, source: str = "") -> tuple[float, Feedback]:
    return received, Feedback("r", "label", label if isinstance(label, tuple) else (label,), None, source)


def test_a_source_may_correct_itself_and_its_last_value_counts() -> None:
    outcome = join_request([GOOD], [said("bad", 2.0), said("good", 1.0)])
    assert outcome.quality["accuracy"] == Moments(1, 0.0, 0.0)
    assert (outcome.corrections, outcome.conflicts) == (1, 0)


def test_a_correction_can_be_taken_back_and_is_one_value_a_row() -> None:
    outcome = join_request([GOOD, GOOD], [said(("bad", "bad"), 1.0), said((None, "good"), 2.0), said("good", 2.5)])
    assert outcome.quality["accuracy"] == Moments(2, 1.0, 1.0)
    assert (outcome.corrections, outcome.mismatched) == (1, 1)


def test_another_source_neither_overwrites_nor_delays_the_first_one() -> None:
    feedback = [said("good", 1.0, "a"), said("bad", 2.0, "b"), said("bad", 0.5, "b")]
    outcome = join_request([GOOD], feedback, answered=1.0)
    assert outcome.by_source[("accuracy", "a")] == Moments(1, 1.0, 1.0)
    assert (outcome.conflicts, outcome.premature) == (1, 0)  # "bad" came again when it could count


def test_what_came_before_the_answer_does_not_count_even_against_the_truth() -> None:
    invented = [said(label, 0.1, "thief") for label in ("bad", "good")]
    assert join_request([GOOD], invented, answered=1.0).quality == {}
    outcome = join_request([GOOD], [*invented, said("good", 5.0, "bank")], answered=1.0)
    assert outcome.quality["accuracy"] == Moments(1, 1.0, 1.0)
    assert (outcome.conflicts, outcome.premature) == (0, 2)
    same = join_request([GOOD], [said("good", 0.1), said("good", 5.0)], answered=1.0)
    assert same.quality["accuracy"] == Moments(1, 1.0, 1.0)  # the truth was sent early and again


def test_a_key_that_also_asks_has_a_share_and_one_for_feedback_alone_has_none() -> None:
    assert sources_beyond({"challenger": {"a+infer": 51, "b+infer": 49}}, 0.5) == {"a+infer": 0.51, "b+infer": 1.0}
    assert sources_beyond({"challenger": {"a+infer": 50, "b+infer": 50}}, 0.5) == {}
    assert sources_beyond({"challenger": {"bank": 100}, "champion": {"": 3}}, 0.1) == {}
    assert sources_beyond({"champion": {"a+infer": 1, "bank": 99}, "challenger": {"a+infer": 9, "bank": 1}}, 0.5) == {
        "a+infer": 0.9
    }
    assert sources_beyond({"challenger": {"a+infer": 100}}, 1.0) == {}
    assert sources_beyond({}, 0.5) == {}


def test_rows_become_known_one_by_one() -> None:
    feedback = [(1.0, Feedback("r", "label", (None, "good"))), (2.0, Feedback("r", "label", ("bad", None)))]
    outcome = join_request([GOOD, GOOD], feedback)
    assert outcome.quality["accuracy"] == Moments(2, 1.0, 1.0)
    assert outcome.conflicts == 0


@pytest.mark.parametrize("item", [Feedback("r", "label", ("good", "bad")), Feedback("r", "target", (1.0,))])
def test_what_does_not_fit_the_answer_is_counted_apart(item: Feedback) -> None:
    outcome = join_request([GOOD], [(1.0, item)])
    assert (outcome.quality, outcome.mismatched) == ({}, 1)


def test_a_label_that_is_no_class_is_counted_apart() -> None:
    outcome = join_request([GOOD], [(1.0, Feedback("r", "label", ("goood",)))])
    assert (outcome.quality, outcome.unknown) == ({}, 1)


@pytest.mark.parametrize("label", [1, "1", True])
def test_labels_are_compared_as_the_data_stage_reads_them(label: Any) -> None:
    answer = AnsweredRequest("1", {"0": 0.1, "1": 0.9})
    assert join_request([answer], [(1.0, Feedback("r", "label", (label,)))]).quality["accuracy"].total == 1.0


def test_a_request_with_labels_of_many_rows_is_one_observation() -> None:
    answers = [AnsweredRequest("good", {"good": 0.8, "bad": 0.2})] * 4
    document = join_request(answers, [(1.0, Feedback("r", "label", ("good", "good", "bad", None)))]).to_json()
    assert document["accuracy"] == [3, 2.0, 2.0]
    count, total, squares = document["~accuracy"]
    assert (count, total, squares) == (1, pytest.approx(2 / 3), pytest.approx(4 / 9))
    assert document["~log_loss"][0] == 1
