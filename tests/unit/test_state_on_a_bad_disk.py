"""What is said when the place of the state cannot hold it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlflowkit.errors import StoreError
from mlflowkit.pipeline.storage.journal import SqliteJournal
from mlflowkit.pipeline.storage.store import FolderStore
from tests.support.file_limit import failing_writes


def test_an_io_error_without_room_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    with failing_writes(), pytest.raises(StoreError, match="the disk is full") as caught:
        SqliteJournal(tmp_path)
    assert "free some space" in caught.value.hint


def test_an_io_error_with_room_sends_to_the_disk(tmp_path: Path) -> None:
    with failing_writes(), pytest.raises(StoreError, match="disk I/O error") as caught:
        SqliteJournal(tmp_path)
    assert "quota" in caught.value.hint


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_where_the_state_should_be_is_called_a_file(tmp_path: Path, below: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="is a file where a folder is needed") as caught:
        FolderStore(tmp_path / "notes.txt" / below).workspace("f" * 64, fence=1)
    assert "--state" in caught.value.hint
    assert (tmp_path / "notes.txt").read_text() == "mine"
