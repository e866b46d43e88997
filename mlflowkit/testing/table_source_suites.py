"""The suite of remote sources whose versions are tables, not files that a recipe names: a query, a Delta table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit.data_access.remote_source import fetch_remote
from mlflowkit.errors import MlkitError
from mlflowkit.features.cells import ReadingPlan
from mlflowkit.sections import Section
from mlflowkit.testing.concurrency import refusal
from mlflowkit.testing.source_suites import RemoteSourceSupport
from mlflowkit.values import DataSnapshot

if TYPE_CHECKING:
    import pyarrow as pa

ROWS: tuple[dict[str, Any], ...] = (
    {"id": 1, "name": "a", "amount": 1.5},
    {"id": 2, "name": None, "amount": 2.25},
    {"id": 3, "name": "ü", "amount": None},
    {"id": 4, "name": " d", "amount": -4.0},
)
"""Rows with what gets lost easily: missing values, blanks, and letters that are not ASCII."""


class RemoteTableContract(RemoteSourceSupport):
    """What every remote source of a table must do. Override `source`, `put` and what the store needs besides.

    The source reads all columns, ordered by ``id``. ``put`` replaces all rows by these, in this physical order.
    """

    def put(self, rows: list[dict[str, Any]]) -> None:
        """Make a version of the table with these rows: id int64, name text, amount float64."""
        raise NotImplementedError

    def table(self, folder: Path, snapshot: DataSnapshot) -> pa.Table:
        """The table of a snapshot, as the data stage reads it."""
        from mlflowkit.wiring import Wiring

        files = fetch_remote(self.source(), self.access(folder), snapshot)
        table: pa.Table = self.source().read_fetched(files, Wiring(folder).tables, ReadingPlan(), ()).table
        return table

    def rows(self, folder: Path, snapshot: DataSnapshot) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.table(folder, snapshot).to_pylist()
        return rows

    def test_the_rows_have_their_order_types_and_missing_values(self, tmp_path: Path) -> None:
        self.put(list(ROWS))
        table = self.table(tmp_path, self.resolved(tmp_path))
        assert table.to_pylist() == list(ROWS)
        assert [str(field.type) for field in table.schema] == ["int64", "string", "double"]
        self.assert_no_secret_is_left(tmp_path)

    def test_another_physical_order_is_the_same_table(self, tmp_path: Path) -> None:
        self.put(list(ROWS))
        first = self.table(tmp_path, self.resolved(tmp_path))
        self.put(list(reversed(ROWS)))
        elsewhere = tmp_path / "elsewhere"
        assert self.table(elsewhere, self.resolved(elsewhere)).equals(first)

    def test_what_did_not_change_has_the_same_tree(self, tmp_path: Path) -> None:
        self.put(list(ROWS))
        first = self.resolved(tmp_path)
        assert self.resolved(tmp_path).tree == first.tree
        assert self.resolved(tmp_path / "elsewhere").tree == first.tree

    def test_a_row_more_is_another_tree(self, tmp_path: Path) -> None:
        self.put(list(ROWS[:3]))
        first = self.resolved(tmp_path)
        self.put(list(ROWS))
        second = self.resolved(tmp_path)
        assert second.tree != first.tree
        assert second.version != first.version
        assert self.rows(tmp_path, second) == list(ROWS)

    def test_what_was_planned_is_read_or_refused_though_the_data_moved(self, tmp_path: Path) -> None:
        self.put(list(ROWS[:3]))
        snapshot = self.resolved(tmp_path)
        self.put(list(ROWS))
        try:
            rows: list[dict[str, Any]] | None = self.rows(tmp_path, snapshot)
        except MlkitError as error:
            rows = [] if error.hint and error.exit_code == 3 else None
        assert rows in ([], list(ROWS[:3]))

    def test_rows_that_share_their_keys_are_refused(self, tmp_path: Path) -> None:
        self.put([*ROWS, {"id": 3, "name": "b", "amount": 3.0}])
        snapshot = self.resolved(tmp_path)
        error = refusal(MlkitError, lambda: self.rows(tmp_path, snapshot))
        assert "id=3" in error.message
        assert "order_by" in error.message

    def test_a_snapshot_is_json_without_secrets(self, tmp_path: Path) -> None:
        self.put(list(ROWS))
        snapshot = self.resolved(tmp_path)
        text = json.dumps(snapshot.to_json())
        assert DataSnapshot.from_json(json.loads(text)) == snapshot
        assert not any(secret in text for secret in self.secrets())
        assert "@" not in snapshot.uri.partition("://")[2].partition("/")[0]

    def test_what_was_fetched_needs_no_store(self, tmp_path: Path) -> None:
        self.put(list(ROWS))
        snapshot = self.resolved(tmp_path)
        self.rows(tmp_path, snapshot)
        if self.stop():
            assert self.rows(tmp_path, snapshot) == list(ROWS)

    def test_a_store_that_cannot_be_reached_is_an_error_in_time(self, tmp_path: Path) -> None:
        self.put(list(ROWS))
        snapshot = self.resolved(tmp_path)
        if self.stop():
            self.resolve_seconds = 2.0
            for action in (lambda: self.resolved(tmp_path), lambda: self.rows(tmp_path, snapshot)):
                error = refusal(MlkitError, action)
                assert error.hint
                assert error.exit_code == 3
                self.assert_no_secret_is_left(tmp_path, error)

    def test_a_damaged_cache_is_fetched_anew(self, tmp_path: Path) -> None:
        self.put(list(ROWS))
        snapshot = self.resolved(tmp_path)
        for file in fetch_remote(self.source(), self.access(tmp_path), snapshot).values():
            file.write_bytes(b"PAR1 no more")
        assert self.rows(tmp_path, snapshot) == list(ROWS)

    def test_a_lost_file_is_named(self, tmp_path: Path) -> None:
        self.put(list(ROWS))
        snapshot = self.resolved(tmp_path)
        path = snapshot.objects[0].path
        if self.lose(path):
            error = refusal(MlkitError, lambda: self.rows(tmp_path, snapshot))
            assert path in error.message
            assert error.hint

    def test_its_keys_are_plain_values(self) -> None:
        source: Section = self.source()
        assert type(source).model_validate_json(source.model_dump_json()) == source
