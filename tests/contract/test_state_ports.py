"""The embedded adapters of the state ports pass the shipped contract suites."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from mlflowkit.pipeline.storage.journal import SqliteJournal
from mlflowkit.pipeline.storage.step_lease import this_owner
from mlflowkit.pipeline.storage.store import FolderStore
from mlflowkit.ports import ControlRecords, Journal, ObjectStore
from mlflowkit.service_state.file_records import FileRecords
from mlflowkit.testing import ControlRecordsContract, JournalContract, ObjectStoreContract
from mlflowkit.values import Owner


class TestFileRecords(ControlRecordsContract):
    def open(self, folder: Path) -> ControlRecords:
        return FileRecords(folder)

    def test_versions_differ_while_the_clock_stands_still(self, tmp_path: Path) -> None:
        records, later = self.open(tmp_path), time.time_ns() + 10**12
        first = records.put("a.json", b"1")
        os.utime(tmp_path / "a.json", ns=(later, later))
        second = records.put("a.json", b"1")
        third = records.put_if("a.json", b"1", second)
        assert len({first, second, third}) == 3
        assert (tmp_path / "a.json").stat().st_mtime_ns == later + 2

    def test_files_have_the_names_bytes_and_modes_of_their_records(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)
        records.put("services/lending/table.json", b"{}")
        records.put("services/lending/isolated/1/r1.json", b"{}", private=True)
        with records.lock("services/lending/publish"), records.lock("controller"):
            files = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
        assert sorted(files) == [
            "controller.lock",
            "services/lending/isolated/1/r1.json",
            "services/lending/publish.lock",
            "services/lending/table.json",
        ]
        secret = files["services/lending/isolated/1/r1.json"]
        assert [stat.S_IMODE(path.stat().st_mode) for path in (secret, secret.parent)] == [0o600, 0o700]
        assert files["services/lending/table.json"].read_bytes() == b"{}"


class TestSqliteJournal(JournalContract):
    def open(self, folder: Path, *, create: bool = True) -> Journal:
        return SqliteJournal(folder, create)

    def this_owner(self) -> Owner:
        return this_owner()


class TestFolderStore(ObjectStoreContract):
    def open(self, folder: Path) -> ObjectStore:
        return FolderStore(folder)
