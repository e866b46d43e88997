"""Brings a journal of an earlier version up to date: one function a version, each run once, all in one transaction.

To change the tables: edit `journal_tables`, raise its VERSION, append the function that changes a journal of the
version before to MIGRATIONS, and keep a state folder of that version under ``tests/data`` (`tests/data/make_state.py`).
A version only adds: a process of the version before may have the journal open.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

from sqlalchemy import Connection, insert, select, update

from mlflowkit.errors import StoreError
from mlflowkit.pipeline.storage import delivery_rows, journal_tables
from mlflowkit.pipeline.storage.journal_rows import start_over
from mlflowkit.pipeline.storage.journal_tables import meta
from mlflowkit.system import failpoint
from mlflowkit.system.files import private_opener

FIRST_VERSION = 1


def _add_deliveries(connection: Connection) -> None:
    """Version 2: an outbox for every system, in place of a mark for the tracker alone."""
    journal_tables.deliveries.create(connection)
    delivery_rows.adopt_untracked(connection)


MIGRATIONS: Mapping[int, Callable[[Connection], None]] = {1: _add_deliveries}
"""Functions by the version that they start from."""


def journal_version(connection: Connection, path: Path) -> int | None:
    """The version of a journal; None when it has none yet. Raises StoreError when that is no version of ours."""
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    tables = set(connection.exec_driver_sql(query).scalars())
    if "meta" not in tables:
        if not tables:
            return None
        raise _not_ours(path, f"it has the tables {', '.join(sorted(tables))[:80]} and none named meta")
    value = connection.scalar(select(meta.c.value).where(meta.c.key == "version"))
    if value is None:
        return None
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise _not_ours(path, f"its version is {text[:40]!r}")
    if int(text) < FIRST_VERSION:
        raise _not_ours(path, f"its version is {text}, and the first was {FIRST_VERSION}")
    if int(text) > journal_tables.VERSION:
        raise StoreError(
            f"{path} was written by a newer mlflowkit (journal {text}; this one reads {journal_tables.VERSION})",
            hint="pip install --upgrade mlflowkit, or use another state folder with --state DIR",
        )
    return int(text)


def _not_ours(path: Path, what: str) -> StoreError:
    return StoreError(f"{path} is not a journal of mlflowkit, or is damaged: {what}", hint=start_over(path))


def create(connection: Connection) -> None:
    """Create the tables of the current version."""
    journal_tables.metadata.create_all(connection)
    connection.execute(insert(meta), {"key": "version", "value": str(journal_tables.VERSION)})


def migrate(connection: Connection, path: Path, version: int) -> None:
    """Bring a journal up to date in the transaction of ``connection``: all of it, or nothing."""
    for start in range(version, journal_tables.VERSION):
        MIGRATIONS[start](connection)
        failpoint.hit("journal.migrating")
    values = {"value": str(journal_tables.VERSION)}
    connection.execute(update(meta).where(meta.c.key == "version").values(values))


def back_up(path: Path, version: int) -> Path:
    """Copy a journal beside itself before it is migrated; an earlier copy of that version is kept."""
    copy = path.with_name(f"{path.name}.version-{version}")
    if not copy.exists():
        draft = copy.with_name(f".{copy.name}.{os.getpid()}.{os.urandom(4).hex()}")
        with open(draft, "xb", opener=private_opener):
            pass
        with contextlib.closing(sqlite3.connect(path)) as old, contextlib.closing(sqlite3.connect(draft)) as new:
            old.backup(new)
        draft.rename(copy)
    return copy
