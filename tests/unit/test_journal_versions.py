"""A journal of any version and in any condition is opened, brought up to date, or refused with what to do."""

from __future__ import annotations

import os
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection

from mlflowkit.errors import MlkitError, StoreError
from mlflowkit.pipeline.storage import journal_migrations, journal_tables
from mlflowkit.pipeline.storage.journal import SqliteJournal
from mlflowkit.values import Alias
from tests.support.pipeline_world import PipelineWorld, lay_out

LAYOUTS = Path(__file__).parents[1] / "data" / "journal_layouts"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    lay_out(tmp_path)
    PipelineWorld(tmp_path).run()
    return tmp_path / ".mlkit"


def change(state: Path, *statements: str) -> None:
    with closing(sqlite3.connect(state / "journal.db")) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def layout(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")
        return "\n\n".join(" ".join(sql.split()) for (sql,) in rows) + "\n"


def typed(hint: str, folder: Path) -> None:
    """Run the command that a hint begins with."""
    command = hint.partition(" puts it aside")[0]
    subprocess.run(command, shell=True, check=True, cwd=folder)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0", "its version is 0, and the first was 1"),
        ("-1", "its version is '-1'"),
        ("abc", "its version is 'abc'"),
        ("1.5", "its version is '1.5'"),
        ("", "its version is ''"),
        ("９", "its version is '９'"),
        ("1" * 5000, "its version is '1111"),
        ("3", "was written by a newer mlflowkit (journal 3; this one reads 2)"),
    ],
)
def test_a_version_that_is_none_of_ours_is_refused(state: Path, value: str, message: str) -> None:
    change(state, f"UPDATE meta SET value = '{value}'")
    before = (state / "journal.db").read_bytes()
    for create in (True, False):
        with pytest.raises(StoreError) as raised:
            SqliteJournal(state, create)
        assert message in raised.value.message
        assert raised.value.hint
    assert (state / "journal.db").read_bytes() == before, "what is not understood is not written to"


def test_a_database_of_someone_else_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "journal.db")) as connection, connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
    with pytest.raises(StoreError, match="it has the tables customers and none named meta"):
        SqliteJournal(tmp_path)


DAMAGES = {
    "a run's lineage": "UPDATE runs SET lineage = '{'",
    "a run's recipe": "UPDATE runs SET recipe = '[]'",
    "a run's overrides": "UPDATE runs SET overrides = '3'",
    "a run's owner": "UPDATE runs SET owner = 'nobody', status = 'running'",
    "a run's status": "UPDATE runs SET status = 'great'",
    "a run's time": "UPDATE runs SET started = 'yesterday'",
    "a run's text is bytes": "UPDATE runs SET name = x'ff00'",
    "a step's result": "UPDATE steps SET result = '{}'",
    "a step's result is deep": "UPDATE steps SET result = '" + "[" * 100_000 + "'",
    "a step's seconds": "UPDATE steps SET seconds = 'long'",
    "a result's files": "UPDATE results SET files = 'x'",
    "a result's result": "UPDATE results SET result = '{\"metrics\": 1}'",
    "a lease's owner": "UPDATE leases SET owner = 'a|b|c'",
    "a table": "DROP TABLE results",
    "a column": "ALTER TABLE runs DROP COLUMN endpoint",
}


@pytest.mark.parametrize("statement", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_row_is_an_error_of_ours_whose_hint_helps(state: Path, statement: str) -> None:
    change(state, statement)
    world = PipelineWorld(state.parent)
    raised = None
    try:
        with SqliteJournal(state, create=False) as journal:
            journal.runs()
            journal.live_fingerprints()
        world.run({"train.epochs": 4})
    except MlkitError as error:
        raised = error
    assert isinstance(raised, StoreError)
    assert str(state / "journal.db") in raised.message
    typed(raised.hint, state)
    assert world.run({"train.epochs": 4}).status == "done"
    assert (state / "damaged" / "journal.db").is_file()


def test_an_alias_that_is_damaged_is_named(state: Path) -> None:
    with SqliteJournal(state) as journal:
        journal.put_alias(journal_alias())
    change(state, "UPDATE aliases SET created = 'x'")
    with SqliteJournal(state) as journal, pytest.raises(StoreError, match="the alias champion of tiny"):
        journal.alias("tiny", "champion")


def journal_alias() -> Alias:
    return Alias("tiny", "champion", "a" * 64, "b" * 64, "c" * 64, "", "", "run")


# migrations: two invented versions after today's, so that the path itself is tested


@pytest.fixture
def next_versions(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def third(connection: Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE runs ADD COLUMN note TEXT NOT NULL DEFAULT ''")

    def fourth(connection: Connection) -> None:
        connection.exec_driver_sql("UPDATE runs SET note = 'version 4'")

    def reach(version: int) -> None:
        monkeypatch.setattr(journal_tables, "VERSION", version)

    monkeypatch.setattr(journal_migrations, "MIGRATIONS", {2: third, 3: fourth})
    return reach


def notes(state: Path) -> list[str]:
    with closing(sqlite3.connect(state / "journal.db")) as connection:
        return [note for (note,) in connection.execute("SELECT note FROM runs")]


@pytest.mark.parametrize("create", [True, False])
def test_an_older_journal_is_brought_up_to_date_and_kept(
    state: Path, next_versions: Callable[[int], None], create: bool
) -> None:
    next_versions(3)
    with SqliteJournal(state, create):
        pass
    assert notes(state) == [""]
    next_versions(4)
    with SqliteJournal(state, create):
        pass
    assert notes(state) == ["version 4"]
    for version, has_note in ((2, False), (3, True)):
        copy = state / f"journal.db.version-{version}"
        assert ("note" in layout(copy)) == has_note
        assert not copy.stat().st_mode & 0o077


def test_a_migration_that_fails_changes_nothing(
    state: Path, next_versions: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    next_versions(4)

    def broken(connection: Connection) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(journal_migrations.MIGRATIONS, 3, broken)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        SqliteJournal(state)
    assert "note" not in layout(state / "journal.db")
    next_versions(2)
    with SqliteJournal(state) as journal:
        assert len(journal.runs()) == 1


KILLED = """
import sys
from pathlib import Path
from mlflowkit.pipeline.storage import journal_migrations, journal_tables
from mlflowkit.pipeline.storage.journal import SqliteJournal
journal_tables.VERSION = 3
statement = "ALTER TABLE runs ADD COLUMN note TEXT NOT NULL DEFAULT ''"
journal_migrations.MIGRATIONS = {2: lambda connection: connection.exec_driver_sql(statement)}
with SqliteJournal(Path(sys.argv[1])) as journal:
    print(len(journal.runs()))
"""


@pytest.mark.parametrize("point", ["journal.copied", "journal.migrating"])
def test_a_migration_that_was_killed_is_done_by_the_next_one(state: Path, point: str) -> None:
    def migrate(failpoint: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "MLKIT_FAILPOINT": failpoint}
        command = [sys.executable, "-c", KILLED, str(state)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert migrate(point).returncode == -9
    assert "note" not in layout(state / "journal.db")
    done = migrate("")
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
    assert notes(state) == [""]


def test_processes_that_migrate_at_once_do_it_once(state: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(state)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [child.communicate(timeout=120)[0].strip() for child in children] == ["1"] * 4
    assert notes(state) == [""]


def test_the_layout_is_that_of_its_version(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A change of the tables needs a new version and a migration (see `journal_migrations`)."""
    with SqliteJournal(tmp_path / "state"):
        pass
    golden = LAYOUTS / f"version_{journal_tables.VERSION}.sql"
    text = layout(tmp_path / "state" / "journal.db")
    if request.config.getoption("--update-golden") and not golden.exists():
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    assert golden.read_text() == text, "raise journal_tables.VERSION and add a migration"


def test_there_is_a_migration_from_every_version() -> None:
    first, now = journal_migrations.FIRST_VERSION, journal_tables.VERSION
    assert set(journal_migrations.MIGRATIONS) == set(range(first, now))
    assert {path.stem for path in LAYOUTS.iterdir()} == {f"version_{number}" for number in range(first, now + 1)}


def test_a_journal_that_is_being_created_reads_as_empty(tmp_path: Path) -> None:
    (tmp_path / "journal.db").touch()
    with SqliteJournal(tmp_path, create=False) as journal:
        assert journal.runs() == ()
    assert (tmp_path / "journal.db").read_bytes() == b""


def test_the_hint_may_be_typed_for_any_path(tmp_path: Path) -> None:
    state = tmp_path / "odd place; touch x 'ü'"
    state.mkdir()
    (state / "journal.db").write_bytes(b"no database, though long enough to be one" * 30)
    with pytest.raises(StoreError) as raised:
        SqliteJournal(state)
    assert shlex.quote(str(state / "journal.db")) in raised.value.hint
    typed(raised.value.hint, tmp_path)
    assert sorted(path.name for path in state.iterdir()) == [".gitignore", "damaged"]


def test_runs_that_the_tracker_lacks_are_owed_to_it(state: Path) -> None:
    """Of version 1, where a run's row says whether the tracker has it: also by a process that still runs."""
    run = SqliteJournal(state).run("last").run
    change(state, "DROP TABLE deliveries", "UPDATE meta SET value = '1'", "UPDATE runs SET tracked = 0")
    with SqliteJournal(state) as journal:
        assert [(item.target, item.key, item.status) for item in journal.deliveries()] == [("mlflow", run, "pending")]
        journal.save_delivery(replace(journal.deliveries()[0], status="delivered"))
        change(state, "DELETE FROM deliveries", "UPDATE runs SET tracked = 0")
        journal.sweep()
        assert [item.run for item in journal.deliveries("pending")] == [run]
