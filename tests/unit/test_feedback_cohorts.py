"""Labels along the time of the answers: cohorts from the join's index."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflowkit.judging.online.evidence import Moments
from mlflowkit.judging.performance.realised import LabelledCohort, cohort_block
from mlflowkit.judging.performance.score_table import score_cell
from mlflowkit.serving.feedback import matured
from mlflowkit.serving.feedback.cohorts import read_cohorts
from mlflowkit.serving.feedback.intake import Feedback
from mlflowkit.serving.feedback.join import FeedbackJoin
from mlflowkit.serving.observer.prediction_log import LogWriter, log_rows
from tests.support.observing import REGRESSION, SIGNATURE, answered, record

DAY = 86_400.0


class LabelWorld:
    """A service's folder: answers and labels are written, and joined."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = LogWriter(folder / "predictions", "r1", days=7, megabytes=10)
        (folder / "feedback").mkdir()
        self.lines = 0

    def answer(self, number: str, scores: Sequence[float], time: float, **changes: Any) -> None:
        (batch,) = answered(record(number, list(scores), time=time, **changes))
        self.log.add(log_rows(batch, REGRESSION if "answers" in changes else SIGNATURE))
        self.log.roll()

    def label(self, number: str, values: Sequence[Any], received: float, source: str = "", kind: str = "label") -> None:
        self.lines += 1
        line = Feedback(number, kind, tuple(values), None, source).to_line(received)  # type: ignore[arg-type]
        (self.folder / "feedback" / f"r1-1-{self.lines:06d}.jsonl").write_bytes(line)

    def cohorts(self, version: str = "v1", **options: Any) -> tuple[LabelledCohort, ...]:
        with contextlib.closing(FeedbackJoin(self.folder)) as join:
            join.step("e1")
        return read_cohorts(self.folder, version, 0.0, 1e12, DAY, **options)


@pytest.fixture
def world(tmp_path: Path) -> LabelWorld:
    folder = tmp_path / "services" / "loans"
    folder.mkdir(parents=True)
    return LabelWorld(folder)


def test_labels_count_on_the_day_of_the_answer(world: LabelWorld) -> None:
    world.answer("a", [0.9, 0.2], 0.5 * DAY)
    world.answer("b", [0.7], 1.5 * DAY)
    world.label("a", ["good", "good"], 9 * DAY)
    first, second = world.cohorts()
    assert (first.start, first.seconds, first.answered, first.labels) == (0.0, DAY, 2, 2)
    high, low = score_cell(float(np.float32(0.9))), score_cell(float(np.float32(0.2)))
    assert first.labelled_cells == {(high, 1, 1): 1, (low, 0, 1): 1}
    assert first.answered_cells == {(high, 1): 1, (low, 0): 1}
    assert first.moments["accuracy"] == Moments(2, 1.0, 1.0)
    assert first.moments["brier"].total == pytest.approx(0.1**2 + 0.8**2, rel=1e-5)
    assert sum(first.delays.values()) == 2
    assert (second.start, second.answered, second.labels) == (DAY, 1, 0)
    assert world.cohorts("v2") == ()


def test_a_correction_moves_a_label_and_a_conflict_does_not(world: LabelWorld) -> None:
    world.answer("a", [0.9], 0.5 * DAY)
    world.label("a", ["good"], 2 * DAY)
    before = world.cohorts()
    world.label("a", ["good"], 3 * DAY)  # again
    world.label("a", ["bad"], 4 * DAY, source="someone else")
    assert [cohort.labelled_cells for cohort in world.cohorts()] == [before[0].labelled_cells]
    world.label("a", ["bad"], 5 * DAY)
    (after,) = world.cohorts()
    assert after.labelled_cells == {(score_cell(float(np.float32(0.9))), 1, 0): 1}
    assert after.delays == before[0].delays  # it came when it first came
    assert after.labels == 1


def test_labels_for_unknown_requests_count_nowhere(world: LabelWorld) -> None:
    world.answer("a", [0.9], 0.5 * DAY)
    world.label("zzz", ["good"], 2 * DAY)
    (cohort,) = world.cohorts()
    assert (cohort.answered, cohort.labels) == (1, 0)


def test_a_label_that_comes_after_a_month_counts_on_its_day(world: LabelWorld) -> None:
    world.answer("a", [0.9], 0.5 * DAY)
    world.cohorts()
    for segment in (world.folder / "predictions").glob("*.parquet"):
        segment.unlink()  # the log was swept
    world.label("a", ["good"], 30 * DAY)
    (cohort,) = world.cohorts()
    assert cohort.labels == 1
    assert list(cohort.delays) == [22]  # 2^21 s = 24.3 days


def test_labels_of_a_key_that_also_asks_are_limited(world: LabelWorld) -> None:
    for number in range(4):
        world.answer(str(number), [0.9], 0.5 * DAY)
        world.label(str(number), ["bad"], DAY, source="5f0c2a91+infer" if number else "trusted")
    assert world.cohorts()[0].labels == 4
    assert world.cohorts(max_share=0.5)[0].labels == 1


def test_a_regression_has_moments(world: LabelWorld) -> None:
    answers = {"prediction": np.array([3.0, 5.0], dtype=np.float32)}
    world.answer("a", [0, 0], 0.5 * DAY, answers=answers)
    world.label("a", [4.0, 2.0], 2 * DAY, kind="target")
    (cohort,) = world.cohorts()
    block = cohort_block("absolute_error", cohort)
    assert block is not None
    assert (block.value, cohort.labels, cohort.answered, cohort.answered_cells) == (2.0, 2, 2, {})


def test_an_index_of_before_is_read_and_counts_from_now_on(world: LabelWorld) -> None:
    world.answer("a", [0.9], 0.5 * DAY)
    world.label("a", ["good"], DAY)
    world.cohorts()
    with contextlib.closing(sqlite3.connect(world.folder / "join.sqlite")) as index:
        for name in ("answered_first", "answered_earlier"):
            index.execute(f"DROP TRIGGER {name}")
        for name in ("matured", "contributed"):
            index.execute(f"DROP TABLE {name}")
        for column in ("version", "period", "cell"):
            index.execute(f"ALTER TABLE answers DROP COLUMN {column}")
        index.commit()
    assert read_cohorts(world.folder, "v1", 0.0, 1e12, DAY) == ()
    world.answer("b", [0.9], 0.5 * DAY)
    world.label("a", ["bad"], 2 * DAY)
    world.label("b", ["good"], 2 * DAY)
    (cohort,) = world.cohorts()
    assert (cohort.answered, cohort.labels) == (1, 1)
    with contextlib.closing(FeedbackJoin(world.folder)) as join:
        assert join.evidence("e1").of("champion").quality["accuracy"] == Moments(2, 1.0, 1.0)


def test_periods_are_bounded(world: LabelWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matured, "MAX_PERIODS", 3)
    for day in range(6):
        world.answer(str(day), [0.9], (day + 0.5) * DAY)
    assert [cohort.start / DAY for cohort in world.cohorts()] == [3.0, 4.0, 5.0]


def test_no_index_has_no_cohorts(tmp_path: Path) -> None:
    assert read_cohorts(tmp_path, "v1", 0.0, 1e12, DAY) == ()
