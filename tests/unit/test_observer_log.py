"""The prediction log: every row once, whatever is merged meanwhile; bounded in age and size."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mlflowkit.serving.observer import prediction_log
from mlflowkit.serving.observer.prediction_log import (
    LogWriter,
    Segment,
    log_rows,
    read_log,
    read_since,
    sample_requests,
    segments,
    shadow_log_rows,
)
from tests.support.observing import SIGNATURE, answered, classified, compared, mirrored, record


def rows(*names: str) -> pa.Table:
    (batch,) = answered(*(record(name, [0.3]) for name in names))
    return log_rows(batch, SIGNATURE)


def writer(folder: Path) -> LogWriter:
    return LogWriter(folder, "r1", days=7, megabytes=100)


def ids(folder: Path) -> list[str]:
    return [name for table in read_log(folder) for name in table["id"].to_pylist()]


def test_a_row_is_kept_as_it_was_asked_and_answered(tmp_path: Path) -> None:
    (batch,) = answered(record("a", [0.3, 0.75], how="override", error="late"))
    log = writer(tmp_path)
    log.add(log_rows(batch, SIGNATURE))
    log.roll()
    (table,) = read_log(tmp_path)
    first, second = table.to_pylist()
    assert first["time"].timestamp() == 1000.0
    assert (second["id"], second["row"], second["how"], second["error"]) == ("a", 1, "override", "late")
    assert (second["input.age"], second["input.term"], second["label"]) == (1.0, "36 months", "good")
    assert np.isnan(second["input.income"])
    assert second["probability.good"] == pytest.approx(0.75)
    assert (second["experiment"], second["epoch"], second["version"]) == ("e1", 3, "v1")


def test_a_shadows_row_has_its_answer_and_no_inputs() -> None:
    (batch,) = compared(mirrored(record("a", [0.3]), classified([0.8])))
    (row,) = shadow_log_rows(batch, SIGNATURE).to_pylist()
    assert (row["variant"], row["version"], row["how"], row["label"]) == ("candidate", "v2", "mirror", "good")
    assert row["seconds"] == pytest.approx(0.005)
    assert not any(name.startswith("input.") for name in row)


def test_sampling_keeps_a_share_of_the_requests_the_same_each_time() -> None:
    (batch,) = answered(*(record(f"request-{number:x}", [0.3, 0.4]) for number in range(4000)))
    sampled = sample_requests(log_rows(batch, SIGNATURE), batch, 0.25)
    sampled_ids = set(sampled["id"].to_pylist())
    assert 850 < len(sampled_ids) < 1150  # 1000 expected; over five standard deviations
    assert sampled.num_rows == 2 * len(sampled_ids)
    assert set(sample_requests(log_rows(batch, SIGNATURE), batch, 0.25)["id"].to_pylist()) == sampled_ids


def test_merged_segments_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_log, "MERGE_FACTOR", 3)
    log = writer(tmp_path)
    cursor: dict[str, int] = {}
    ids_read: list[str] = []
    for number in range(10):
        log.add(rows(f"a{number}", f"b{number}"))
        log.roll()
        if number in (0, 4, 9):
            for table, name, number_read in read_since(tmp_path, cursor):
                cursor[name] = number_read
                ids_read += table["id"].to_pylist()
    expected = [f"{letter}{number}" for number in range(10) for letter in "ab"]
    assert sorted(ids_read) == sorted(expected)
    assert ids(tmp_path) == expected
    assert len(segments(tmp_path)) < 5


def test_a_segment_that_is_merged_while_it_is_read_is_not_lost(tmp_path: Path) -> None:
    log = writer(tmp_path)
    for name in ("a", "b", "c"):
        log.add(rows(name))
        log.roll()
    sources = segments(tmp_path)
    reading = read_log(tmp_path)
    ids_read = next(reading)["id"].to_pylist()
    prediction_log.merge(tmp_path, sources, Segment(sources[0].writer, 1, 3))
    assert [segment.last for segment in segments(tmp_path)] == [3]
    ids_read += [name for table in reading for name in table["id"].to_pylist()]
    assert ids_read == ["a", "b", "c"]


def test_versions_with_other_columns_share_the_log(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.add(rows("a"))
    log.add(rows("b").rename_columns({"input.term": "input.note"}))
    log.add(rows("c").set_column(11, "input.age", pa.array(["old"])))
    log.roll()
    assert sorted(ids(tmp_path)) == ["a", "b", "c"]
    assert len(segments(tmp_path)) == 2  # age is a number in one and text in the other
    assert log.written == 3


def test_the_log_is_read_between_two_times(tmp_path: Path) -> None:
    log = writer(tmp_path)
    (batch,) = answered(*(record(f"t{when}", [0.3], time=float(when)) for when in (10, 20, 30)))
    log.add(log_rows(batch, SIGNATURE))
    log.roll()
    assert [name for table in read_log(tmp_path, 20, 30) for name in table["id"].to_pylist()] == ["t20"]


def test_the_oldest_segments_go_first(tmp_path: Path) -> None:
    log = writer(tmp_path)
    now = time.time()
    for age, name in enumerate(["new", "day-old", "week-old"]):
        log.add(rows(name))
        log.roll()
        path = tmp_path / Segment(log._writer, age + 1, age + 1).name
        os.utime(path, (now - 86_400 * age * 3, now - 86_400 * age * 3))
    size = path.stat().st_size
    prediction_log.sweep(tmp_path, days=5, megabytes=100)
    assert ids(tmp_path) == ["new", "day-old"]
    prediction_log.sweep(tmp_path, days=5, megabytes=1.5 * size / (1 << 20))
    assert ids(tmp_path) == ["new"]


def test_a_damaged_segment_is_skipped(tmp_path: Path) -> None:
    log = writer(tmp_path)
    for name in ("a", "b"):
        log.add(rows(name))
        log.roll()
    broken = tmp_path / segments(tmp_path)[0].name
    broken.write_bytes(broken.read_bytes()[:100])
    assert ids(tmp_path) == ["b"]


def test_other_files_are_no_segments(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".r1-1-00000001-00000001.parquet.tmp").write_text("half")
    assert segments(tmp_path) == []
    assert segments(tmp_path / "nothing") == []
