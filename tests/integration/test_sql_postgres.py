"""A query of PostgreSQL as a source, over a real server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.adapters.arrow import ArrowTables
from mlflowkit.adapters.data_sources.sql_connection import SqlConnection
from mlflowkit.adapters.data_sources.sql_rows import QueryReader
from mlflowkit.adapters.data_sources.sql_source import SqlSource
from mlflowkit.data_access.remote_source import RemoteAccess, fetch_remote, resolve_remote
from mlflowkit.errors import DataError, MlkitError
from mlflowkit.features.cells import ReadingPlan
from mlflowkit.stages.tabular import canonical, data_version
from mlflowkit.testing import RemoteTableContract
from tests.support.postgres import PASSWORD, USER, PostgresServer, postgres_server

pytest.importorskip("psycopg", reason="pip install 'mlflowkit[postgresql]'")
WRONG = "canary-wrong-pw"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as started:
        yield started


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WH_USER", USER)
    monkeypatch.setenv("WH_PASSWORD", PASSWORD)


def connect(port: int) -> dict[str, SqlConnection]:
    keys = {"user": {"env": "WH_USER"}, "password": {"env": "WH_PASSWORD"}}
    url = f"postgresql://127.0.0.1:{port}/postgres"
    return {"wh": SqlConnection.model_validate({"kind": "sql", "url": url, **keys})}


def ask(query: str, **keys: Any) -> SqlSource:
    keys = {"order_by": ["id"], "watermark": "select count(*), sum(id) from loans", **keys}
    return SqlSource(kind="sql", connection="wh", query=query, **keys)


def read(server: PostgresServer, folder: Path, source: SqlSource) -> Any:
    access = RemoteAccess(folder, folder / "state", connect(server.port))
    files = fetch_remote(source, access, resolve_remote(source, access))
    return source.read_fetched(files, ArrowTables(), ReadingPlan(), ()).table


class TestPostgresSource(RemoteTableContract):
    @pytest.fixture(autouse=True)
    def _server(self, server: PostgresServer) -> None:
        self.server, self.port = server, server.port

    def source(self) -> SqlSource:
        return ask("select * from loans", watermark="select count(*), sum(amount), max(name) from loans")

    def connections(self) -> dict[str, SqlConnection]:
        return connect(self.port)

    def put(self, rows: list[dict[str, Any]]) -> None:
        def literal(value: Any) -> str:
            return "null" if value is None else repr(value)

        values = ", ".join(f"({', '.join(map(literal, row.values()))})" for row in rows)
        create = "create table loans (id integer, name text, amount double precision)"
        self.server.run("drop table if exists loans", create, f"insert into loans values {values}")

    def stop(self) -> bool:
        self.port = 1  # nobody listens there
        return True

    def secrets(self) -> tuple[str, ...]:
        return (USER, PASSWORD)


def test_types_follow_the_stated_rules(server: PostgresServer, tmp_path: Path) -> None:
    server.run(
        "drop table if exists loans",
        "drop type if exists mood",
        "create type mood as enum ('good', 'bad')",
        """create table loans (id bigint, s smallint, price numeric(10,2), whole numeric(12,0), free numeric, f4 real,
        b boolean, t timestamptz, n timestamp, d date, v varchar(5), m mood, nothing integer)""",
        """insert into loans values
        (2, 1, 0.10, 7, 3.3333333333333333333, 0.1, true, '2026-01-01 00:00+02', '2026-01-01', '2026-01-01',
        'ab', 'bad'),
        (1, null, null, null, 'NaN', null, null, null, null, null, null, null)""",
    )
    table = read(server, tmp_path, ask("select * from loans"))
    assert {field.name: str(field.type) for field in table.schema} == {
        "id": "int64",
        "s": "int64",
        "price": "double",
        "whole": "int64",
        "free": "double",
        "f4": "float",
        "b": "bool",
        "t": "timestamp[us, tz=UTC]",
        "n": "timestamp[us]",
        "d": "date32[day]",
        "v": "string",
        "m": "string",
        "nothing": "int64",
    }
    assert table["id"].to_pylist() == [1, 2]
    assert table["price"].to_pylist() == [None, 0.1], "the double that 0.10 of a CSV file is"
    assert table["free"].to_pylist()[1] == 3.3333333333333335
    assert table["t"].to_pylist()[1].isoformat() == "2025-12-31T22:00:00+00:00"
    assert table["nothing"].null_count == 2


@pytest.mark.parametrize(
    ("column", "words", "hint"),
    [
        ("'{}'::jsonb as j", "column 'j' is of type jsonb", "j::text"),
        ("12345678901234567890::numeric as j", "does not hold exactly", "bigint or text"),
        ("interval '1 day' as j", "column 'j' is of type interval", "j::text"),
    ],
)
def test_types_without_a_rule_are_refused(
    server: PostgresServer, tmp_path: Path, column: str, words: str, hint: str
) -> None:
    server.run("drop table if exists loans", "create table loans as select 1 as id")
    with pytest.raises(DataError) as caught:
        read(server, tmp_path, ask(f"select id, {column} from loans"))
    assert words in caught.value.message
    assert hint in caught.value.hint


def test_a_query_that_writes_is_refused_by_the_server(server: PostgresServer, tmp_path: Path) -> None:
    server.run(
        "drop table if exists loans",
        "create table loans as select 1 as id",
        "create sequence if not exists numbers",
        """create or replace function add_row() returns integer language plpgsql as
        $$ begin insert into loans values (9); return 1; end $$""",
    )
    writes = "a source only reads, and the query writes: cannot execute"
    queries = {
        "select id, add_row() from loans": writes,
        "select id, nextval('numbers') from loans": writes,
        "select id from loans) as a; commit; drop table loans; select * from (select 1 as id": "multiple commands",
    }
    for query, words in queries.items():
        with pytest.raises(DataError) as caught:
            read(server, tmp_path, ask(query))
        assert words in caught.value.message
    assert read(server, tmp_path, ask("select id from loans"))["id"].to_pylist() == [1]


def test_the_same_rows_in_another_physical_order_are_the_same_data(server: PostgresServer, tmp_path: Path) -> None:
    versions = []
    for order in ("asc", "desc"):
        server.run(
            "drop table if exists loans",
            f"create table loans as select i as id, 'k'||i as name from generate_series(1, 3000) i order by i {order}",
        )
        table = read(server, tmp_path / order, ask("select * from loans", order_by=["name"]))
        versions.append(data_version(canonical(table)))
    assert versions[0] == versions[1]
    assert table["name"].to_pylist() == sorted(f"k{index}" for index in range(1, 3001)), "by bytes, as in Python"


def test_rows_inserted_during_the_read_are_not_in_it(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.run("drop table if exists loans", "create table loans as select i as id from generate_series(1, 40000) i")
    columns = QueryReader.columns

    def insert_meanwhile(self: QueryReader) -> Any:
        """After the watermark was checked in the transaction that reads, and before its rows are."""
        writer = threading.Thread(target=server.run, args=["insert into loans values (40001)"])
        writer.start()
        writer.join()
        return columns(self)

    monkeypatch.setattr(QueryReader, "columns", insert_meanwhile)
    table = read(server, tmp_path, ask("select id from loans"))
    assert table.num_rows == 40_000
    assert table["id"].to_pylist()[-1] == 40_000


def test_a_wrong_password_is_told_at_once_and_never_shown(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.run("drop table if exists loans", "create table loans as select 1 as id")
    source = ask("select id from loans")
    access = RemoteAccess(tmp_path, tmp_path / "state", connect(server.port))
    for value, words in ((WRONG, "password authentication failed"), ("", "is empty"), (f"{PASSWORD}\t", "blanks")):
        monkeypatch.setenv("WH_PASSWORD", value)
        with pytest.raises(MlkitError) as caught:
            resolve_remote(source, access)
        assert words in caught.value.message
        assert WRONG not in caught.value.message + caught.value.hint
        assert PASSWORD not in caught.value.message + caught.value.hint
    monkeypatch.setenv("WH_PASSWORD", f"{PASSWORD}\n")
    assert resolve_remote(source, access).version, "a newline at the end is none of the password"


def test_what_may_pass_is_tried_again_and_what_will_not_is_not(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.run("drop table if exists loans", "create table loans as select 1 as id")
    source = ask("select id from loans", watermark="select max(idx) from loans")
    access = RemoteAccess(tmp_path, tmp_path / "state", connect(server.port), resolve_seconds=3600)
    with pytest.raises(DataError, match='column "idx" does not exist'):
        resolve_remote(source, access)
