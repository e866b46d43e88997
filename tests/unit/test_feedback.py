"""What feedback is taken, what it is held to mean, and that it is on the disk when it is acknowledged."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.judging.online.evidence import Moments
from mlflowkit.serving.feedback.intake import Feedback, Intake, parse, read_since
from mlflowkit.serving.feedback.join import Answer, settle
from mlflowkit.serving.protocol.http_error import Refusal


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
    kept, received = Feedback.from_line(item.line(5.0))
    assert (kept, received) == (item, 5.0)


def test_many_at_once() -> None:
    found = parse({"feedback": [{"id": "a", "label": "x"}, {"id": "b", "target": 1.0}]}, limit=2)
    assert [(item.id, item.kind) for item in found] == [("a", "label"), ("b", "target")]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "id"),
        ({"id": "a"}, "either a label"),
        ({"id": "", "label": "x"}, "id"),
        ({"id": 7, "label": "x"}, "id"),
        ({"id": "a" * 257, "label": "x"}, "id"),
        ({"id": "a", "label": "x", "target": 1}, "either a label"),
        ({"id": "a", "label": None}, "nothing is said"),
        ({"id": "a", "label": []}, "nothing is said"),
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
def test_what_is_wrong_is_said(body: dict[str, Any], says: str) -> None:
    with pytest.raises(Refusal, match=says) as caught:
        parse(body, limit=10)
    assert caught.value.status == 400


def test_more_than_the_limit_is_refused() -> None:
    with pytest.raises(Refusal) as caught:
        parse({"feedback": [{"id": str(number), "label": "x"} for number in range(3)]}, limit=2)
    assert caught.value.status == 413


def test_what_is_accepted_is_on_the_disk(tmp_path: Path) -> None:
    async def say() -> None:
        intake = Intake(tmp_path, "r1", days=1)
        await asyncio.gather(*(intake.accept([Feedback(f"r{number}", "label", ("x",))]) for number in range(50)))
        found = [Feedback.from_line(line)[0].id for _, _, lines in read_since(tmp_path, {}) for line in lines]
        assert sorted(found) == sorted(f"r{number}" for number in range(50))
        assert intake.accepted == 50
        intake.stop()

    asyncio.run(say())


def test_lines_are_read_once_they_are_whole(tmp_path: Path) -> None:
    lines = [Feedback(name, "label", ("x",)).line(1.0) for name in "ab"]
    path = tmp_path / "r1-1-000001.jsonl"
    path.write_bytes(lines[0] + lines[1][:10])
    ((name, place, found),) = read_since(tmp_path, {})
    assert found == [lines[0].rstrip()]
    assert list(read_since(tmp_path, {name: place})) == []
    path.write_bytes(lines[0] + lines[1])
    ((_, _, found),) = read_since(tmp_path, {name: place})
    assert found == [lines[1].rstrip()]


def test_a_line_longer_than_what_is_read_at_once_is_read(tmp_path: Path) -> None:
    lines = [Feedback(name, "label", ("x" * 200,) * 20).line(1.0) for name in "ab"]
    (tmp_path / "r1-1-000001.jsonl").write_bytes(b"".join(lines))
    cursor: dict[str, int] = {}
    seen = []
    for _ in range(2):
        for name, place, found in read_since(tmp_path, cursor, most=100):
            cursor[name] = place
            seen += found
    assert seen == [line.rstrip() for line in lines]


GOOD = Answer("good", {"bad": 0.2, "good": 0.8})


def test_quality_of_a_classification() -> None:
    found = settle([GOOD, GOOD], [(1.0, Feedback("r", "label", ("good", "bad")))]).quality
    assert found["accuracy"] == Moments(2, 1.0, 1.0)
    assert found["log_loss"].total == pytest.approx(-math.log(0.8) - math.log(0.2))


def test_quality_of_a_regression() -> None:
    found = settle([Answer(prediction=3.0)], [(1.0, Feedback("r", "target", (5,)))]).quality
    assert found == {"absolute_error": Moments(1, 2.0, 4.0), "squared_error": Moments(1, 4.0, 16.0)}


def test_a_certain_mistake_has_a_finite_loss() -> None:
    sure = Answer("good", {"bad": 0.0, "good": 1.0})
    assert settle([sure], [(1.0, Feedback("r", "label", ("bad",)))]).quality["log_loss"].total < 17


def test_the_first_value_counts_and_others_are_conflicts() -> None:
    said = [(2.0, Feedback("r", "label", ("bad",))), (1.0, Feedback("r", "label", ("good",)))]
    found = settle([GOOD], said)
    assert found.quality["accuracy"] == Moments(1, 1.0, 1.0)
    assert found.conflicts == 1


def test_rows_become_known_one_by_one() -> None:
    said = [(1.0, Feedback("r", "label", (None, "good"))), (2.0, Feedback("r", "label", ("bad", None)))]
    found = settle([GOOD, GOOD], said)
    assert found.quality["accuracy"] == Moments(2, 1.0, 1.0)
    assert found.conflicts == 0


@pytest.mark.parametrize("item", [Feedback("r", "label", ("good", "bad")), Feedback("r", "target", (1.0,))])
def test_what_does_not_fit_the_answer_is_counted_apart(item: Feedback) -> None:
    found = settle([GOOD], [(1.0, item)])
    assert (found.quality, found.mismatched) == ({}, 1)


def test_a_label_that_is_no_class_is_counted_apart() -> None:
    found = settle([GOOD], [(1.0, Feedback("r", "label", ("goood",)))])
    assert (found.quality, found.unknown) == ({}, 1)


@pytest.mark.parametrize("label", [1, "1", True])
def test_labels_are_compared_as_the_data_stage_reads_them(label: Any) -> None:
    answer = Answer("1", {"0": 0.1, "1": 0.9})
    assert settle([answer], [(1.0, Feedback("r", "label", (label,)))]).quality["accuracy"].total == 1.0
