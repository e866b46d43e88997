"""A version of a Delta table as a source, over tables that deltalake itself writes."""

from __future__ import annotations

import http.server
import shutil
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mlflowkit.adapters.arrow import ArrowTables
from mlflowkit.adapters.data_sources.delta_source import DeltaSource
from mlflowkit.data_access.connections import S3Connection
from mlflowkit.data_access.remote_source import RemoteAccess, fetch_remote, resolve_remote
from mlflowkit.errors import DataError, RecipeError
from mlflowkit.features.cells import ReadingPlan
from mlflowkit.recipe.check import load
from mlflowkit.stages.tabular import canonical, data_version
from mlflowkit.testing import RemoteTableContract

deltalake = pytest.importorskip("deltalake", reason="pip install 'mlflowkit[delta]'")
SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string()), ("amount", pa.float64())])


def access(folder: Path) -> RemoteAccess:
    return RemoteAccess(folder, folder / "state", resolve_seconds=5.0)


def write(folder: Path, table: Any, **options: Any) -> None:
    deltalake.write_deltalake(str(folder / "loans"), table, **{"mode": "append", **options})


def numbers(first: int, last: int) -> pa.Table:
    return pa.table({"id": list(range(first, last + 1))})


def read(folder: Path, **keys: Any) -> Any:
    source = DeltaSource(kind="delta", url="loans", **keys)
    asked = access(folder)
    files = fetch_remote(source, asked, resolve_remote(source, asked))
    return source.read_fetched(files, ArrowTables(), ReadingPlan(), ()).table


def problem(call: Callable[[], object]) -> DataError:
    with pytest.raises(DataError) as caught:
        call()
    assert caught.value.hint
    assert "\x1b" not in caught.value.message
    return caught.value


class TestDeltaSource(RemoteTableContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.folder = tmp_path_factory.mktemp("lake")

    def source(self) -> DeltaSource:
        return DeltaSource(kind="delta", url=str(self.folder / "loans"), order_by=["id"])

    def put(self, rows: list[dict[str, Any]]) -> None:
        write(self.folder, pa.Table.from_pylist(rows, SCHEMA), mode="overwrite")

    def lose(self, path: str) -> bool:
        (self.folder / "loans" / path).unlink()
        return True

    def stop(self) -> bool:
        shutil.rmtree(self.folder / "loans")
        return True


def test_the_version_is_the_tables_id_and_number(tmp_path: Path) -> None:
    write(tmp_path, numbers(1, 2))
    write(tmp_path, numbers(3, 3))
    identity = deltalake.DeltaTable(str(tmp_path / "loans")).metadata().id
    for keys, version, rows in (({}, 1, [1, 2, 3]), ({"version": 0}, 0, [1, 2])):
        source = DeltaSource(kind="delta", url="loans", **keys)
        snapshot = resolve_remote(source, access(tmp_path))
        assert snapshot.version == f"{identity}@{version}"
        assert read(tmp_path, **keys)["id"].to_pylist() == rows
    assert source.pin(f"{identity}@7") == "data.source.version=7"


def test_a_version_that_is_not_there_is_named_with_the_latest(tmp_path: Path) -> None:
    write(tmp_path, numbers(1, 2))
    error = problem(lambda: read(tmp_path, version=99))
    assert "has no version 99: its latest is 0" in error.message
    assert error.hint == "mlkit plan RECIPE data.source.version=0"
    assert "there is no Delta table at file://" in problem(lambda: read(tmp_path / "elsewhere")).message


def test_a_time_is_the_last_version_until_then_and_never_one_before_the_table(tmp_path: Path) -> None:
    write(tmp_path, numbers(1, 1))
    write(tmp_path, numbers(2, 2))
    times = sorted(commit["timestamp"] for commit in deltalake.DeltaTable(str(tmp_path / "loans")).history())
    first = datetime.fromtimestamp(times[0] / 1000, UTC)
    assert read(tmp_path, as_of=first.isoformat())["id"].to_pylist() == [1]
    assert read(tmp_path, as_of=datetime.now(UTC).isoformat())["id"].to_pylist() == [1, 2]
    early = problem(lambda: read(tmp_path, as_of=(first - timedelta(milliseconds=1)).isoformat()))
    assert "is before the first version" in early.message
    assert early.hint.endswith(first.isoformat(timespec="milliseconds"))
    late = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert "has not passed" in problem(lambda: read(tmp_path, as_of=late)).message


def test_a_gap_in_the_log_is_named(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path, numbers(number, number))
    (tmp_path / "loans" / "_delta_log" / f"{1:020}.json").unlink()
    error = problem(lambda: read(tmp_path))
    assert f"has a gap between {0:020}.json and {2:020}.json" in error.message


def test_files_that_were_vacuumed_are_named_before_any_is_fetched(tmp_path: Path) -> None:
    write(tmp_path, numbers(1, 2))
    write(tmp_path, numbers(3, 4), mode="overwrite")
    table = deltalake.DeltaTable(str(tmp_path / "loans"))
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    error = problem(lambda: read(tmp_path, version=0))
    assert "version 0: 1 file of it are gone" in error.message
    assert "vacuumed" in error.hint
    assert not list((tmp_path / "state").rglob("*.parquet"))
    assert read(tmp_path)["id"].to_pylist() == [3, 4]


def test_twenty_commits_meanwhile_change_nothing_of_what_was_planned(tmp_path: Path) -> None:
    write(tmp_path, numbers(1, 3))
    source = DeltaSource(kind="delta", url="loans")
    asked = access(tmp_path)
    snapshot = resolve_remote(source, asked)
    writer = threading.Thread(target=lambda: [write(tmp_path, numbers(9, 9)) for _ in range(20)])
    writer.start()
    files = fetch_remote(source, asked, snapshot)
    writer.join()
    assert source.read_fetched(files, ArrowTables(), ReadingPlan(), ()).table["id"].to_pylist() == [1, 2, 3]
    assert resolve_remote(source, asked).version.endswith("@20")


def test_partitions_and_later_columns_have_the_types_of_the_schema(tmp_path: Path) -> None:
    days = [date(2026, 1, 1), date(2026, 1, 2)]
    rows = {"id": [1, 2], "zip": ["02116", "a/b ü"], "day": days, "part": [7, 8]}
    write(tmp_path, pa.table(rows), partition_by=["zip", "day", "part"])
    later = {"id": [3], "zip": [None], "day": [None], "part": [None], "new": [1.5]}
    schema = pa.schema(
        [("id", pa.int64()), ("zip", pa.string()), ("day", pa.date32()), ("part", pa.int64()), ("new", pa.float64())]
    )
    write(tmp_path, pa.table(later, schema=schema), schema_mode="merge")
    table = read(tmp_path, order_by=["id"])
    assert {field.name: field.type for field in table.schema} == {field.name: field.type for field in schema}
    assert table.column("zip").to_pylist() == ["02116", "a/b ü", None], "a text, though it looks like a number"
    assert table.column("day").to_pylist() == [*days, None]
    assert table.column("part").to_pylist() == [7, 8, None]
    assert table.column("new").to_pylist() == [None, None, 1.5]


def test_a_compacted_table_is_the_same_data_where_rows_have_an_order(tmp_path: Path) -> None:
    for first in (40, 1, 20):
        write(tmp_path, numbers(first, first + 5))
    before = data_version(canonical(read(tmp_path, order_by=["id"])))
    deltalake.DeltaTable(str(tmp_path / "loans")).optimize.compact()
    assert data_version(canonical(read(tmp_path, order_by=["id"]))) == before
    (tmp_path / "loans.csv").write_text("id\n" + "".join(f"{n}\n" for f in (1, 20, 40) for n in range(f, f + 6)))
    csv = ArrowTables().read_csv([tmp_path / "loans.csv"])
    assert data_version(canonical(csv)) == before


def test_a_table_whose_columns_are_renamed_by_its_log_is_refused(tmp_path: Path) -> None:
    write(tmp_path, numbers(1, 2))
    log = tmp_path / "loans" / "_delta_log" / f"{0:020}.json"
    text = log.read_text().replace('"configuration":{}', '"configuration":{"delta.columnMapping.mode":"name"}')
    log.write_text(text.replace('"minReaderVersion":1', '"minReaderVersion":2'))
    error = problem(lambda: read(tmp_path))
    assert "columnMapping" in error.message


def test_a_pinned_version_needs_no_store_once_it_is_there(tmp_path: Path) -> None:
    write(tmp_path, numbers(1, 2))
    source = DeltaSource(kind="delta", url="loans", version=0)
    asked = access(tmp_path)
    snapshot = resolve_remote(source, asked)
    fetch_remote(source, asked, snapshot)
    shutil.rmtree(tmp_path / "loans")
    assert len(fetch_remote(source, asked, snapshot)) == 2


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("version: 1, as_of: 2026-11-01T00:00:00Z", "not both"),
        ("as_of: yesterday", "expected a time such as 2026-11-01T00:00:00Z"),
        ('as_of: "2026-11-01T00:00:00"', "with its zone"),
        ("version: -1", "version"),
    ],
)
def test_faults_of_its_keys_have_their_place(tmp_path: Path, keys: str, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""name: loans
task: classification
data:
  source: {{kind: delta, url: loans, {keys}}}
  target: Class
  split: {{kind: random}}
model: {{kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}}
"""
    )
    with pytest.raises(RecipeError) as caught:
        load(path)
    (fault,) = caught.value.faults
    assert fault.line == 4
    assert words in f"{fault.key} {fault.message} {fault.hint}"


class RefusingStore(http.server.BaseHTTPRequestHandler):
    """Answers every request with one status, and the credentials that it was sent."""

    status = 403

    def do_GET(self) -> None:
        sent = self.headers.get("Authorization", "")
        body = f'<?xml version="1.0"?><Error><Code>Refused</Code><Message>{sent}</Message></Error>'.encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("status", "words", "hint"),
    [
        (403, "does not let these credentials read s3://bkt/loans (403: Refused)", "data.source.connection"),
        (404, "there is no Delta table at s3://bkt/loans (404)", "data.source.url"),
        (503, "cannot be resolved: the server answered 503", "retry"),
    ],
)
def test_what_a_store_answers_is_told_without_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, words: str, hint: str
) -> None:
    monkeypatch.setenv("LAKE_KEY", "CANARYKEY")
    monkeypatch.setenv("LAKE_SECRET", "canary/secret+1")
    handler = type("Handler", (RefusingStore,), {"status": status})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        keys = {"access_key": {"env": "LAKE_KEY"}, "secret": {"env": "LAKE_SECRET"}, "region": "eu-central-1"}
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        connection = S3Connection.model_validate({"kind": "s3", "endpoint": endpoint, **keys})
        source = DeltaSource(kind="delta", url="s3://bkt/loans", connection="bucket")
        asked = RemoteAccess(tmp_path, tmp_path / "state", {"bucket": connection}, resolve_seconds=5.5)
        error = problem(lambda: resolve_remote(source, asked))
        server.shutdown()
    assert words in error.message
    assert hint in error.hint
    assert not any("anary" in text.lower() for text in traceback.format_exception(error))
