"""The join counts the same in any order, with any duplication, delay and interleaving, and killed anywhere."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.judging.online.evidence import Evidence
from mlflowkit.serving.feedback.intake import Feedback
from mlflowkit.serving.feedback.join import FeedbackJoin
from mlflowkit.serving.observer.frames import Batch
from mlflowkit.serving.observer.prediction_log import LogWriter, Segment, log_rows, merge, segments
from tests.support.observing import SIGNATURE, answered, record

REQUESTS = 6
HOUR = 3600.0


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Batch], list[tuple[float, Feedback]]]:
    """Answered requests (some with one id, of several rows, asked by override) and what was feedback of them."""
    batches = []
    for number in range(REQUESTS):
        scores = draw(st.lists(st.sampled_from([0.1, 0.4, 0.9]), min_size=1, max_size=3))
        batches += answered(
            record(
                f"r{draw(st.integers(0, REQUESTS - 1))}",
                scores,
                time=number * HOUR,
                epoch=draw(st.sampled_from([3, 4])),
                variant=draw(st.sampled_from(["champion", "candidate"])),
                how=draw(st.sampled_from(["hash", "hash", "hash", "override"])),
            )
        )
    for batch in batches:
        object.__setattr__(batch, "header", _answering(batch))
    feedback = draw(
        st.lists(
            st.tuples(
                st.integers(0, 9).map(lambda number: number * HOUR),
                st.builds(
                    Feedback,
                    st.integers(0, REQUESTS).map(lambda number: f"r{number}"),
                    st.just("label"),
                    st.lists(st.sampled_from(["good", "bad", None]), min_size=1, max_size=3).map(tuple),
                    st.none(),
                    st.sampled_from(["", "5f0c2a91", "0badf00d+infer"]),
                ),
            ),
            max_size=12,
        )
    )
    return batches, feedback


def _answering(batch: Batch) -> Any:
    from dataclasses import replace

    return replace(batch.header, answered=batch.header.variant)


class FeedbackWorld:
    """A service's folder to which logs are written piece by piece."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = LogWriter(folder / "predictions", "r1", days=7, megabytes=10)
        (folder / "feedback").mkdir()
        self.feedback = (folder / "feedback" / "r1-1-000001.jsonl").open("ab")

    def write(self, event: Batch | tuple[float, Feedback]) -> None:
        if isinstance(event, Batch):
            self.log.add(log_rows(event, SIGNATURE))
            self.log.roll()
        else:
            self.feedback.write(event[1].to_line(event[0]))
            self.feedback.flush()

    def merge(self) -> None:
        sources = segments(self.folder / "predictions")
        if len(sources) > 1:
            merge(self.folder / "predictions", sources, Segment(sources[0].writer, sources[0].first, sources[-1].last))


def rounded(evidence: Evidence) -> Any:
    return {
        (epoch, name, metric): (moments.count, round(moments.total, 6), round(moments.squares, 6))
        for epoch, variants in evidence.epochs.items()
        for name, counts in variants.items()
        for metric, moments in counts.quality.items()
    }


def result(events: Sequence[Any], steps: Sequence[str]) -> tuple[Any, dict[str, int]]:
    """What the join says after the events, with something done after some of them."""
    with tempfile.TemporaryDirectory() as name:
        world = FeedbackWorld(Path(name))
        join = FeedbackJoin(world.folder)
        for event, then in zip(events, [*steps, *["nothing"] * len(events)], strict=False):
            world.write(event)
            if then == "step":
                join.step("e1")
            elif then == "merge":
                world.merge()
            elif then == "restart":
                join.close()
                join = FeedbackJoin(world.folder)
            elif then == "killed":
                _cut(join)
        evidence = join.step("e1")
        counters = dict(join.counters())
        join.close()
        world.feedback.close()
        return (rounded(evidence), matured(world.folder)), counters


def matured(folder: Path) -> Any:
    """What the index counts along the time of the answers."""
    with contextlib.closing(sqlite3.connect(folder / "join.sqlite")) as index:
        rows = index.execute("SELECT period, version, kind, key, count, total, squares FROM matured WHERE count != 0")
        return {row[:4]: (row[4], round(row[5], 6), round(row[6], 6)) for row in rows}


def _cut(join: FeedbackJoin) -> None:
    """Be killed in the middle of a step: nothing of it is kept."""

    class KilledError(Exception):
        pass

    def cut(megabytes: float) -> None:
        raise KilledError

    join._trim = cut  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        join.step("e1")
    del join._trim  # type: ignore[method-assign]


THEN = st.lists(st.sampled_from(["nothing", "step", "merge", "restart", "killed"]), max_size=12)


@settings(max_examples=20, deadline=None)
@given(histories(), st.data(), THEN)
def test_order_duplicates_and_interruptions_do_not_matter(history: Any, data: st.DataObject, then: list[str]) -> None:
    batches, feedback = history
    expected, counters = result([*batches, *feedback], [])
    again = data.draw(st.lists(st.sampled_from(feedback), max_size=4)) if feedback else []
    events = data.draw(st.permutations([*batches, *feedback, *again]))
    assert result(events, then) == (expected, counters)
