"""A query of SQLite as a source: one state, a stated order, stated types, nothing written."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.adapters.arrow import ArrowTables
from mlflowkit.adapters.data_sources.sql_connection import SqlConnection
from mlflowkit.adapters.data_sources.sql_source import SqlSource
from mlflowkit.data_access.remote_source import RemoteAccess, fetch_remote, resolve_remote
from mlflowkit.errors import DataError, RecipeError
from mlflowkit.features.cells import ReadingPlan
from mlflowkit.recipe.check import load
from mlflowkit.stages.tabular import canonical, data_version
from mlflowkit.testing import RemoteTableContract

WATERMARK = "select count(*), sum(id) from loans"
CONNECTION = SqlConnection(kind="sql", url="sqlite:///loans.db")


def database(folder: Path, *statements: str, rows: Sequence[Sequence[Any]] = ()) -> Path:
    path = folder / "loans.db"
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
        for row in rows:
            connection.execute(f"insert into loans values ({', '.join('?' * len(row))})", row)
    connection.close()
    return path


def read(folder: Path, query: str = "select * from loans", **keys: Any) -> Any:
    keys = {"order_by": ["id"], "watermark": WATERMARK, **keys}
    source = SqlSource(kind="sql", connection="wh", query=query, **keys)
    access = RemoteAccess(folder, folder / "state", {"wh": CONNECTION}, resolve_seconds=2.0)
    files = fetch_remote(source, access, resolve_remote(source, access))
    return source.read_fetched(files, ArrowTables(), ReadingPlan(), ()).table


def problem(read_table: Callable[[], object]) -> DataError:
    with pytest.raises(DataError) as caught:
        read_table()
    assert caught.value.hint
    return caught.value


class TestSqliteSource(RemoteTableContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.folder = tmp_path_factory.mktemp("db")

    def source(self) -> SqlSource:
        watermark = "select count(*), total(amount), max(name) from loans"
        return SqlSource(kind="sql", connection="wh", query="select * from loans", order_by=["id"], watermark=watermark)

    def connections(self) -> dict[str, SqlConnection]:
        return {"wh": SqlConnection(kind="sql", url=f"sqlite:///{self.folder}/loans.db")}

    def put(self, rows: list[dict[str, Any]]) -> None:
        create = "create table loans (id integer, name text, amount real)"
        database(self.folder, "drop table if exists loans", create, rows=[tuple(row.values()) for row in rows])

    def stop(self) -> bool:
        (self.folder / "loans.db").unlink()
        return True


def test_columns_are_typed_by_all_their_values(tmp_path: Path) -> None:
    rows = [(index, index, None, 1 if index else 1.5, "x") for index in range(20_000)]
    database(tmp_path, "create table loans (id, whole, gone, mixed, text)", rows=rows)
    table = read(tmp_path)
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {"id": "int64", "whole": "int64", "gone": "null", "mixed": "double", "text": "string"}
    assert table.num_rows == 20_000
    assert table["mixed"][:2].to_pylist() == [1.5, 1.0], "the first value alone would have said otherwise of the rest"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(1, 5), (2, " 36 months")], "column 'x' has 1 texts among 1 numbers"),
        ([(1, b"ab"), (2, None)], "column 'x' has 1 blobs"),
        ([(1, 2**53 + 1), (2, 0.5)], "9007199254740993, which float64 does not hold exactly"),
    ],
)
def test_values_that_no_type_holds_are_refused(tmp_path: Path, rows: list[tuple[Any, Any]], words: str) -> None:
    database(tmp_path, "create table loans (id, x)", rows=rows)
    error = problem(lambda: read(tmp_path))
    assert words in error.message
    assert "query" in error.hint


def test_texts_are_ordered_by_their_bytes(tmp_path: Path) -> None:
    """Not by a collation of the column: one without case would give two orders to A and a."""
    database(tmp_path, "create table loans (id text collate nocase)", rows=[("a",), ("B",), ("A",), ("ä",)])
    assert read(tmp_path)["id"].to_pylist() == ["A", "B", "a", "ä"]


def test_keys_that_are_not_unique_are_named(tmp_path: Path) -> None:
    rows = [(1, "a"), (1, "b"), (None, "c"), (None, "d"), (None, "e"), (2, "f")]
    database(tmp_path, "create table loans (id, name)", rows=rows)
    error = problem(lambda: read(tmp_path))
    assert "id=1 (2 rows); id=None (3 rows)" in error.message
    assert read(tmp_path, order_by=["id", "name"])["name"].to_pylist() == ["a", "b", "f", "c", "d", "e"]


def test_a_query_that_writes_is_refused_by_the_database(tmp_path: Path) -> None:
    path = database(tmp_path, "create table loans (id)", rows=[(1,)])
    before = path.read_bytes()
    for query in (
        "delete from loans returning id",
        "select id from loans) as a; delete from loans; select * from (select 1 as id",
    ):
        problem(lambda query=query: read(tmp_path, query))  # type: ignore[misc]
    problem(lambda: read(tmp_path, watermark="commit"))
    assert path.read_bytes() == before


def test_rows_that_change_between_plan_and_read_are_an_error(tmp_path: Path) -> None:
    database(tmp_path, "create table loans (id)", rows=[(1,)])
    source = SqlSource(kind="sql", connection="wh", query="select id from loans", order_by=["id"], watermark=WATERMARK)
    access = RemoteAccess(tmp_path, tmp_path / "state", {"wh": CONNECTION})
    snapshot = resolve_remote(source, access)
    database(tmp_path, rows=[(2,)])
    error = problem(lambda: fetch_remote(source, access, snapshot))
    assert "changed after the run was planned: the watermark is now 2, 3" in error.message
    assert not list((tmp_path / "state").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("watermark", "words"),
    [
        ("select id from loans", "several rows"),
        ("select id from loans where id > 9", "no row"),
        ("select max(gone) from loans", "no value"),
        ("select max(gon) from loans", "no such column: gon"),
    ],
)
def test_a_watermark_is_one_row_with_a_value(tmp_path: Path, watermark: str, words: str) -> None:
    database(tmp_path, "create table loans (id, gone)", rows=[(1, None), (2, None)])
    assert words in problem(lambda: read(tmp_path, watermark=watermark)).message


def test_a_query_is_a_file_beside_the_recipe_with_parameters(tmp_path: Path) -> None:
    database(tmp_path, "create table loans (id, name)", rows=[(1, "a:b"), (2, "c"), (3, "d")])
    (tmp_path / "loans.sql").write_text("select id, name\nfrom loans where id < :most -- the first ones\n;\n")
    assert read(tmp_path, "loans.sql", parameters={"most": 3})["id"].to_pylist() == [1, 2]
    assert ":most, which data.source.parameters does not have" in problem(lambda: read(tmp_path, "loans.sql")).message
    missing = problem(lambda: read(tmp_path, "loan.sql"))
    assert str(tmp_path / "loan.sql") in missing.message


def test_the_version_hangs_on_query_parameters_order_and_watermark(tmp_path: Path) -> None:
    database(tmp_path, "create table loans (id, name)", rows=[(1, "a"), (2, "b")])

    def version(query: str = "select * from loans where id < :n", **keys: Any) -> str:
        keys = {"order_by": ["id"], "watermark": WATERMARK, "parameters": {"n": 5}, **keys}
        source = SqlSource(kind="sql", connection="wh", query=query, **keys)
        return resolve_remote(source, RemoteAccess(tmp_path, tmp_path / "state", {"wh": CONNECTION})).tree

    first = version()
    assert version("select * from loans where id < :n ;\n") == first
    others = [
        version("select id from loans where id < :n"),
        version(parameters={"n": 6}),
        version(parameters={"n": 5.0}),
        version(order_by=["name"]),
        version(watermark="select 7"),
    ]
    assert len({first, *others}) == 6
    database(tmp_path, rows=[(3, "c")])
    assert version() != first


def test_a_copy_as_csv_has_the_same_data_version(tmp_path: Path) -> None:
    rows = [(1, 0.1, "a"), (2, None, "b"), (3, 2.5e-7, None)]
    database(tmp_path, "create table loans (id, amount, name)", rows=rows)
    (tmp_path / "loans.csv").write_text("id,amount,name\n1,0.1,a\n2,,b\n3,2.5e-07,\n")
    csv = ArrowTables().read_csv([tmp_path / "loans.csv"])
    assert data_version(canonical(read(tmp_path))) == data_version(canonical(csv))


def test_faults_of_its_keys_are_found_before_anything_is_asked(tmp_path: Path) -> None:
    recipe = """name: loans
task: classification
connections:
  wh: {kind: sql, url: "%s"}
data:
  source: {kind: sql, connection: wh, query: select 1, %s}
  target: Class
  split: {kind: random}
model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}
"""
    good = 'order_by: [id], watermark: "select 1"'
    cases = {
        ("postgresql://me:hunter2@db/loans", good): (4, "a user or password in a URL"),
        ("mysql://db/loans", good): (4, "expected postgresql://db.example:5432/loans or sqlite:///loans.db"),
        ("sqlite://loans.db", good): (4, "expected postgresql://db.example:5432/loans or sqlite:///loans.db"),
        ("sqlite:///loans.db", 'watermark: "select 1"'): (6, "order_by"),
        ("sqlite:///loans.db", "order_by: [id]"): (6, "watermark"),
        ("sqlite:///loans.db", 'order_by: [], watermark: "select 1"'): (6, "order_by"),
    }
    path = tmp_path / "recipe.yaml"
    for (url, keys), (line, words) in cases.items():
        path.write_text(recipe % (url, keys))
        with pytest.raises(RecipeError) as caught:
            load(path)
        (fault,) = caught.value.faults
        assert fault.line == line
        assert words in f"{fault.key} {fault.message} {fault.hint}"
        assert "hunter2" not in repr(caught.value.faults)
    path.write_text(recipe % ("sqlite:///loans.db", good))
    assert load(path).recipe.data.source.describe() == "sql wh: select 1"
