"""The suite of remote data sources: what each kind must do, over a real or a strict fake store."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflowkit.data_access.remote_source import RemoteAccess, fetch_remote, resolve_remote
from mlflowkit.data_access.transfer import TransferLimits
from mlflowkit.errors import MlkitError
from mlflowkit.sections import Section
from mlflowkit.testing.concurrency import refusal
from mlflowkit.values import DataSnapshot

HASTE = TransferLimits(read_seconds=1.0, stall_seconds=2.0, first_wait=0.01, last_wait=0.05)
"""Limits of a suite: a store in the same machine answers at once."""


class RemoteSourceSupport:
    """What the suites of remote sources share."""

    def source(self) -> Any:
        """The source, a `RemoteSource`."""
        raise NotImplementedError

    def connections(self) -> Mapping[str, Any]:
        """The recipe's connections."""
        return {}

    def damage(self, path: str) -> bool:
        """Change a byte of a stored file behind the store's back; False where the store cannot be damaged so."""
        return False

    def lose(self, path: str) -> bool:
        """Remove a stored file of the present version; False where the store cannot lose one."""
        return False

    def stop(self) -> bool:
        """Make the store unreachable, and nothing else; False where there is nothing to reach."""
        return False

    def secrets(self) -> tuple[str, ...]:
        """Secrets that the store takes."""
        return ()

    limits = HASTE
    """The limits of fetches. Longer ones suit a store that answers slowly on a busy machine."""
    resolve_seconds = 30.0
    """Longest time in which a version is resolved, on a busy machine too."""

    def access(self, folder: Path) -> RemoteAccess:
        seconds = self.resolve_seconds
        return RemoteAccess(folder, folder / "state", self.connections(), limits=self.limits, resolve_seconds=seconds)

    def resolved(self, folder: Path) -> DataSnapshot:
        return resolve_remote(self.source(), self.access(folder))

    def assert_no_secret_is_left(self, folder: Path, *errors: MlkitError) -> None:
        """No secret in a file of the state folder or in the text of an error, its hint and traceback included."""
        texts = ["\n".join([error.message, error.hint, *traceback.format_exception(error)]) for error in errors]
        contents = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
        for secret in self.secrets():
            assert not any(secret in text for text in texts)
            assert not any(secret.encode() in content for content in contents)


class RemoteSourceContract(RemoteSourceSupport):
    """What every remote source of files must do. Override `source` (of CSV files), `put` and what the
    store needs besides.

    ``put`` replaces all that the source reads: the files by path below the source's folder, as one new version.
    """

    moving = True
    """Whether the source asks for something that moves (a branch): a new version changes what it resolves to."""

    def put(self, files: Mapping[str, bytes]) -> None:
        """Make a version of the data whose files are exactly these."""
        raise NotImplementedError

    def fetched(self, folder: Path, snapshot: DataSnapshot) -> dict[str, bytes]:
        files = fetch_remote(self.source(), self.access(folder), snapshot)
        return {path: file.read_bytes() for path, file in files.items()}

    # --------------------------------------------------------------------------------------------------------- tests

    FILES: Mapping[str, bytes] = {"a.csv": b"x,y\n1,2\n", "m=1/b.csv": b"x,y\n3,4\n", "m=2/b.csv": b"x,y\n5,6\n"}

    def test_the_files_of_a_version_are_listed_and_fetched(self, tmp_path: Path) -> None:
        self.put(self.FILES)
        snapshot = self.resolved(tmp_path)
        assert [item.path for item in snapshot.objects] == sorted(self.FILES)
        assert {item.path: item.size for item in snapshot.objects} == {k: len(v) for k, v in self.FILES.items()}
        assert self.fetched(tmp_path, snapshot) == self.FILES
        self.assert_no_secret_is_left(tmp_path)

    def test_the_same_content_is_the_same_tree(self, tmp_path: Path) -> None:
        self.put(self.FILES)
        first = self.resolved(tmp_path)
        assert self.resolved(tmp_path).tree == first.tree
        self.put(self.FILES)
        assert self.resolved(tmp_path / "elsewhere").tree == first.tree

    def test_a_changed_file_changes_the_tree_and_no_other_digest(self, tmp_path: Path) -> None:
        self.put(self.FILES)
        first = self.resolved(tmp_path)
        self.put({**self.FILES, "a.csv": b"x,y\n1,3\n"})
        second = self.resolved(tmp_path)
        if self.moving:
            assert second.tree != first.tree
            before, after = ({item.path: item.digest for item in tree.objects} for tree in (first, second))
            assert [path for path in before if before[path] != after[path]] == ["a.csv"]
        else:
            assert second.tree == first.tree

    def test_what_was_planned_is_fetched_though_the_data_moved(self, tmp_path: Path) -> None:
        self.put(self.FILES)
        snapshot = self.resolved(tmp_path)
        self.put({"a.csv": b"x,y\n7,8\n"})
        if snapshot.version:
            assert self.fetched(tmp_path, snapshot) == self.FILES
        else:  # a store without versions refuses
            assert refusal(MlkitError, lambda: self.fetched(tmp_path, snapshot)).hint

    def test_a_snapshot_is_json_without_secrets(self, tmp_path: Path) -> None:
        self.put(self.FILES)
        snapshot = self.resolved(tmp_path)
        text = json.dumps(snapshot.to_json())
        assert DataSnapshot.from_json(json.loads(text)) == snapshot
        assert not any(secret in text for secret in self.secrets())
        assert "@" not in snapshot.uri.partition("://")[2].partition("/")[0]

    def test_what_was_fetched_needs_no_store(self, tmp_path: Path) -> None:
        self.put(self.FILES)
        snapshot = self.resolved(tmp_path)
        self.fetched(tmp_path, snapshot)
        if self.stop():
            assert self.fetched(tmp_path, snapshot) == self.FILES

    def test_a_store_that_cannot_be_reached_is_an_error_in_time(self, tmp_path: Path) -> None:
        self.put(self.FILES)
        if self.stop():
            self.resolve_seconds = 2.0
            error = refusal(MlkitError, lambda: self.resolved(tmp_path))
            assert error.hint
            assert error.exit_code == 3
            self.assert_no_secret_is_left(tmp_path, error)

    def test_damaged_bytes_are_never_given_out(self, tmp_path: Path) -> None:
        self.put(self.FILES)
        snapshot = self.resolved(tmp_path)
        if self.damage("a.csv"):
            error = refusal(MlkitError, lambda: self.fetched(tmp_path, snapshot))
            assert "a.csv" in error.message
            assert error.hint
            self.assert_no_secret_is_left(tmp_path, error)

    def test_a_lost_file_is_named(self, tmp_path: Path) -> None:
        self.put(self.FILES)
        snapshot = self.resolved(tmp_path)
        if self.lose("a.csv"):
            error = refusal(MlkitError, lambda: self.fetched(tmp_path, snapshot))
            assert "a.csv" in error.message
            assert error.hint

    def test_a_damaged_cache_is_fetched_anew(self, tmp_path: Path) -> None:
        self.put(self.FILES)
        snapshot = self.resolved(tmp_path)
        files = fetch_remote(self.source(), self.access(tmp_path), snapshot)
        files["a.csv"].write_bytes(b"x,y\n9,9\n")
        assert self.fetched(tmp_path, snapshot) == self.FILES

    def test_a_snapshot_of_other_bytes_is_refused(self, tmp_path: Path) -> None:
        """A size that the content does not have: nothing is parsed."""
        self.put(self.FILES)
        snapshot = self.resolved(tmp_path)
        longer = [replace(item, size=item.size + 1) if item.path == "a.csv" else item for item in snapshot.objects]
        error = refusal(MlkitError, lambda: self.fetched(tmp_path, replace(snapshot, objects=tuple(longer))))
        assert "a.csv" in error.message

    def test_its_keys_are_plain_values(self) -> None:
        source: Section = self.source()
        assert type(source).model_validate_json(source.model_dump_json()) == source
