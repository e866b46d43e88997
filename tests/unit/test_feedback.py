"""Feedback: which items are accepted, how they are scored, and that they are on disk when acknowledged."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.judging.online.evidence import Moments
from mlflowkit.serving.feedback.intake import Feedback, Intake, parse, read_since
from mlflowkit.serving.feedback.join import AnsweredRequest, join_request
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


def test_the_first_value_counts_and_others_are_conflicts() -> None:
    feedback = [(2.0, Feedback("r", "label", ("bad",))), (1.0, Feedback("r", "label", ("good",)))]
    outcome = join_request([GOOD], feedback)
    assert outcome.quality["accuracy"] == Moments(1, 1.0, 1.0)
    assert outcome.conflicts == 1


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
