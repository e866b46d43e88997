"""``mlkit report`` on a real journal and a real store."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mlflowkit.cli.app import main
from mlflowkit.pipeline.storage.journal import SqliteJournal
from mlflowkit.pipeline.storage.step_lease import this_owner
from mlflowkit.pipeline.storage.store import FolderStore
from mlflowkit.values import RunEnd, RunRecord
from tests.support import report_evidence


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    """A state folder in which a run finished, its folders published in the store."""
    state = tmp_path_factory.mktemp("state")
    run = report_evidence.regression(tmp_path_factory.mktemp("made"))
    store, journal = FolderStore(state), SqliteJournal(state)
    steps = tuple(
        replace(step, digest=store.publish(run.folders[step.stage]).digest) if step.stage in run.folders else step
        for step in run.record.steps
    )
    record = replace(run.record, steps=steps)
    journal.start_run(record, this_owner())
    journal.finish_run(record.run, RunEnd("done", bundle=record.bundle, blessed=True))
    journal.close()
    return state, record


def mlkit(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_report_writes_the_page_and_says_where(
    state: tuple[Path, RunRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, record = state
    page = tmp_path / "deep" / "page.html"
    code = mlkit(record.run[:6], "--state", str(folder), "--output", str(page), "--json")
    printed = json.loads(capsys.readouterr().out)
    assert code == 0
    assert printed == {"run": record.run, "name": "diabetes", "status": "done", "report": str(page)}
    assert f"<code>{record.run}</code>" in page.read_text(encoding="utf-8")


def test_report_of_the_last_run_goes_into_the_state_folder(
    state: tuple[Path, RunRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, record = state
    assert mlkit("--state", str(folder)) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page.is_relative_to(folder)
    assert record.bundle in page.read_text(encoding="utf-8")


def test_unknown_run_and_empty_state_are_usage_errors(
    state: tuple[Path, RunRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mlkit("nosuch", "--state", str(state[0]), "--json") == 2
    assert json.loads(capsys.readouterr().out)["error"]["hint"]
    assert mlkit("--state", str(tmp_path / "none"), "--json") == 2
    assert not (tmp_path / "none").exists()


def test_folder_that_is_no_longer_in_the_store_is_named(
    state: tuple[Path, RunRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, record = state
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "objects" / record.steps[2].digest)
    assert mlkit("--state", str(copy), "--json") == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert "the output of train is missing from the store" in error["message"]
    assert "--force train" in error["hint"]
