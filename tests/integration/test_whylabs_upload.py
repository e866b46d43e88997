"""Profiles of closed windows are uploaded to WhyLabs once each: real profiles and panes, a strict fake of its API."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlflowkit.adapters.whylabs import WhylabsUploads
from mlflowkit.adapters.whylogs import WhylogsProfiler
from mlflowkit.errors import ServiceError
from mlflowkit.judging.shift.counts import ProfileCounts, WindowCounts
from mlflowkit.monitoring.export import whylabs_upload
from mlflowkit.monitoring.export.export_loop import ExportLoop
from mlflowkit.monitoring.export.whylabs_upload import UploadCursor, WhylabsExporter
from mlflowkit.monitoring.monitor_settings import MonitorSection, MonitorSettings, write_settings
from mlflowkit.rollout.outbound import request
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.serving.observer.panes import Pane, PaneRange, write_pane
from mlflowkit.system.failpoint import EXPORT_POINTS, VARIABLE
from tests.support.fake_whylabs import DATASET, KEY, FakeWhylabs
from tests.support.monitor_views import START, view, window, write_view
from tests.support.rollout_world import RolloutWorld
from tests.support.waiting import wait_for

VERSION = "20261101-aa11"
SECRETS = ("geheim", "Signature")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWhylabs]:
    with FakeWhylabs() as server:
        monkeypatch.setenv("WHYLABS_API_ENDPOINT", server.url)
        monkeypatch.setenv("WHYLABS_KEY", KEY)
        yield server


def service(state: Path, windows: int = 3, dataset: str = DATASET) -> ServiceFiles:
    """A service with windows of a minute, each with two panes of two and three rows."""
    files = RolloutWorld(state).files
    section = MonitorSection.model_validate({"export": {"whylabs": {"dataset": dataset, "key_env": "WHYLABS_KEY"}}})
    write_settings(files, MonitorSettings(section))
    profiler = WhylogsProfiler()
    for number in range(windows):
        start = START + 60 * number
        for part, rows in enumerate((2, 3)):
            table = pd.DataFrame({"age": [float(number)] * rows, "city": ["Ulm"] * rows})
            counts = WindowCounts(VERSION, start, 60, ProfileCounts(1, rows, rows**2))
            ranges = (PaneRange("w", 2 * number + part, 2 * number + part),)
            pane = Pane("lending", counts, ranges, profiler.profile(table), rows)
            write_pane(files.folder / "profiles" / VERSION, pane, durable=False)
    show(files, windows)
    return files


def show(files: ServiceFiles, windows: int) -> None:
    """The monitor has closed so many windows."""
    write_view(files.state, view(windows=[window(number, rows=5) for number in range(windows)]))


def exporter() -> WhylabsExporter:
    return WhylabsExporter(WhylabsUploads(request), WhylogsProfiler)


def contents(fake: FakeWhylabs) -> list[tuple[float, float, int]]:
    """(window's start after START, the mean age, rows) of what was uploaded, by start."""
    profiler = WhylogsProfiler()
    summaries = [(stamp / 1000 - START, profiler.summary(profile)) for stamp, profile in fake.profiles]
    return sorted((start, value["columns"]["age"]["mean"], value["rows"]) for start, value in summaries)


def state_text(files: ServiceFiles) -> str:
    return "".join(path.read_text() for path in (files.folder / "monitor").glob("*.json"))


def test_each_window_is_uploaded_once_merged_with_its_time(tmp_path: Path, fake: FakeWhylabs) -> None:
    files = service(tmp_path, windows=3)
    show(files, 2)
    exporter().export(files, START)
    exporter().export(files, START)
    assert contents(fake) == [(0, 0.0, 5), (60, 1.0, 5)]
    show(files, 3)
    exporter().export(files, START)
    assert contents(fake) == [(0, 0.0, 5), (60, 1.0, 5), (120, 2.0, 5)]
    from whylogs.core import DatasetProfileView

    stamp, profile = fake.profiles[1]
    assert DatasetProfileView.deserialize(profile).dataset_timestamp == datetime.fromtimestamp(stamp / 1000, UTC)
    assert not any(secret in state_text(files) for secret in SECRETS)


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        ([401, 500, 503, 0], ("HTTP 401", "HTTP 500", "HTTP 503")),
        ([0, 500, 0], ("HTTP 500",)),
        ([0, "slow"], ("does not answer",)),
        (["slow"], ("does not answer",)),
    ],
)
def test_refusals_are_tried_again_and_told_without_secrets(
    tmp_path: Path, fake: FakeWhylabs, statuses: Any, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflowkit.adapters.whylabs.SECONDS", 0.3)
    files = service(tmp_path, windows=2)
    fake.statuses = list(statuses)
    for word in words:
        with pytest.raises(ServiceError, match=word) as raised:
            exporter().export(files, START)
        assert not any(secret in f"{raised.value.message}{raised.value.hint}" for secret in SECRETS)
    exporter().export(files, START)
    assert contents(fake) == [(0, 0.0, 5), (60, 1.0, 5)]


def test_address_that_has_expired_is_replaced(tmp_path: Path, fake: FakeWhylabs) -> None:
    files = service(tmp_path, windows=1)
    fake.statuses = [0, 500]
    with pytest.raises(ServiceError):
        exporter().export(files, START)
    fake.expired = set(fake.uploads)
    with pytest.raises(ServiceError, match="HTTP 403"):
        exporter().export(files, START)
    exporter().export(files, START)
    assert contents(fake) == [(0, 0.0, 5)]


def test_loop_tells_a_refusal_once_and_goes_on(
    tmp_path: Path, fake: FakeWhylabs, caplog: pytest.LogCaptureFixture
) -> None:
    files = service(tmp_path, windows=2)
    fake.statuses = [401] * 5
    with caplog.at_level(logging.DEBUG), ExportLoop(files.state, [exporter()], poll_seconds=0.01):
        wait_for(lambda: len(fake.profiles) == 2)
    assert sum("HTTP 401" in record.getMessage() for record in caplog.records) == 1
    assert not any(secret in caplog.text for secret in SECRETS)


def test_service_without_a_key_says_which_variable_is_missing(
    tmp_path: Path, fake: FakeWhylabs, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = service(tmp_path, windows=1)
    monkeypatch.delenv("WHYLABS_KEY")
    with pytest.raises(ServiceError, match="no WHYLABS_KEY"):
        exporter().export(files, START)
    monkeypatch.setenv("WHYLABS_KEY", "id.secret")
    with pytest.raises(ServiceError, match="no organisation"):
        exporter().export(files, START)
    assert not fake.requests


def test_dataset_that_the_key_does_not_permit_is_told(tmp_path: Path, fake: FakeWhylabs) -> None:
    files = service(tmp_path, windows=1, dataset="model-4")
    with pytest.raises(ServiceError, match="HTTP 403") as raised:
        exporter().export(files, START)
    assert "not permit this dataset" in raised.value.hint


def test_window_without_a_profile_is_told_once_and_passed(
    tmp_path: Path, fake: FakeWhylabs, caplog: pytest.LogCaptureFixture
) -> None:
    files = service(tmp_path, windows=1)
    show(files, 3)
    sender = exporter()
    for _ in range(2):
        sender.export(files, START)
    assert contents(fake) == [(0, 0.0, 5)]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"dataset": "model-3", "ends": 3, "pending": null}'])
def test_damaged_cursor_starts_again(tmp_path: Path, content: str) -> None:
    if content != "{":  # a record that is no JSON is an error of its own, with the command that removes it
        import json

        assert UploadCursor.from_json(json.loads(content), DATASET) == UploadCursor(DATASET)
        return
    files = service(tmp_path, windows=1)
    (files.folder / whylabs_upload.RECORD).write_text(content)
    with pytest.raises(ServiceError, match="damaged"):
        exporter().export(files, START)


def _export_once(state: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    exporter().export(ServiceFiles(state / "services" / "lending"), START)


@pytest.mark.parametrize("point", EXPORT_POINTS)
def test_process_that_is_killed_uploads_nothing_twice(tmp_path: Path, fake: FakeWhylabs, point: str) -> None:
    files = service(tmp_path, windows=2)
    context = multiprocessing.get_context("spawn")
    common = {"WHYLABS_API_ENDPOINT": fake.url, "WHYLABS_KEY": KEY}
    killed = context.Process(target=_export_once, args=(tmp_path, {**common, VARIABLE: f"{point}:1"}))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -9
    exporter().export(files, START)
    assert contents(fake) == [(0, 0.0, 5), (60, 1.0, 5)]
    assert len(fake.uploads) == 2
