"""Connections to databases, opened for reading only, and what their errors mean."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote, urlsplit

from pydantic import Field, field_validator

from mlflowkit.data_access.connections import ConnectionSection, CredentialReference
from mlflowkit.data_access.transfer import TransientError
from mlflowkit.errors import DataError
from mlflowkit.system.extras import require_extra
from mlflowkit.system.text import first_line, shell_word

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from mlflowkit.data_access.remote_source import RemoteAccess

CONNECT_SECONDS = 5
SETTINGS = "-c default_transaction_read_only=on -c TimeZone=UTC -c DateStyle=ISO"
"""Of a session in PostgreSQL: what a query prints of times depends on no server's settings."""
PASSING_STATES = ("08", "40", "53", "55", "57", "58")
"""Classes of SQLSTATE that another attempt may change: connections, conflicts, resources, locks, operators."""
PASSING_WORDS = ("starting up", "shutting down", "in recovery", "too many", "connection slots")
URL_FORMS = "postgresql://db.example:5432/loans or sqlite:///loans.db"


class SqlConnection(ConnectionSection):
    """A database: PostgreSQL, or a file of SQLite."""

    kind: Literal["sql"]
    url: str = Field(min_length=1)
    """Its address: postgresql://HOST:PORT/DATABASE, or sqlite:///PATH relative to the recipe; without user."""
    user: CredentialReference | None = None
    """The user of PostgreSQL; without it that of libpq (PGUSER)."""
    password: CredentialReference | None = None
    """The password; without it what libpq finds itself (~/.pgpass)."""
    sslmode: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] = "prefer"
    """How a connection to PostgreSQL is encrypted."""

    @field_validator("url")
    @classmethod
    def _plain(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError:
            raise ValueError(f"expected {URL_FORMS}") from None
        if "@" in parts.netloc:
            raise ValueError("a URL holds no user or password: name them by {env: NAME}")
        path = parts.path.removeprefix("/")
        is_file = parts.scheme == "sqlite" and not parts.netloc
        is_server = parts.scheme in ("postgresql", "postgres") and parts.hostname and "/" not in path and port != 0
        if not path or parts.query or parts.fragment or not (is_file or is_server) or "\0" in unquote(path):
            raise ValueError(f"expected {URL_FORMS}")
        return value

    @property
    def is_file(self) -> bool:
        return self.url.startswith("sqlite:")

    @property
    def path(self) -> str:
        """The file of SQLite, or the name of the database."""
        return unquote(urlsplit(self.url).path.removeprefix("/"))

    def place(self, folder: Path) -> str:
        """The address, with the whole path of a file."""
        if self.is_file:
            return f"sqlite://{(folder / Path(self.path).expanduser()).resolve()}"
        parts = urlsplit(self.url)
        return f"postgresql://{parts.hostname}:{parts.port or 5432}/{self.path}"


@contextmanager
def read_only_transaction(
    connection: SqlConnection, access: RemoteAccess, seconds: float = 0.0
) -> Iterator[Connection]:
    """A transaction that sees one state of the database and cannot write: the server refuses it.

    ``seconds`` is the longest time of a statement in PostgreSQL; 0 is that of the server. Raises TransientError for
    what may pass, and DataError.
    """
    import sqlalchemy

    is_file = connection.is_file
    engine = _file_engine(connection, access) if is_file else _server_engine(connection, access, seconds)
    try:
        with engine.connect() as opened:
            if is_file:
                opened.exec_driver_sql("PRAGMA query_only=ON")
                opened.exec_driver_sql("BEGIN")
                yield opened
            else:
                options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
                yield opened.execution_options(**options)
            opened.rollback()
    except sqlalchemy.exc.DBAPIError as error:
        raise _problem(error.orig, connection, access) from None
    finally:
        engine.dispose()


def _file_engine(connection: SqlConnection, access: RemoteAccess) -> Engine:
    import sqlalchemy

    path = Path(connection.place(access.folder).removeprefix("sqlite://"))
    if not path.is_file():
        raise DataError(f"there is no database {path}", hint=f"ls -l {shell_word(path.parent)}")
    address = f"file:{quote(str(path))}?mode=ro"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(
            address, uri=True, timeout=CONNECT_SECONDS, isolation_level=None, check_same_thread=False
        )

    return sqlalchemy.create_engine("sqlite://", creator=connect, poolclass=sqlalchemy.pool.NullPool)


def _server_engine(connection: SqlConnection, access: RemoteAccess, seconds: float) -> Engine:
    import sqlalchemy

    require_extra("psycopg", "postgresql", "a connection to PostgreSQL")
    parts = urlsplit(connection.url)
    user = access.secrets.read(connection.user) if connection.user else None
    password = access.secrets.read(connection.password) if connection.password else None
    url = sqlalchemy.URL.create(
        "postgresql+psycopg", user, password, parts.hostname, parts.port or 5432, connection.path
    )
    options = {
        "connect_timeout": CONNECT_SECONDS,
        "sslmode": connection.sslmode,
        "application_name": "mlflowkit",
        "options": f"{SETTINGS} -c statement_timeout={round(1000 * seconds)}" if seconds else SETTINGS,
        "prepare_threshold": 0,  # prepared statements hold one command: none can end the read-only transaction
    }
    return sqlalchemy.create_engine(url, connect_args=options, poolclass=sqlalchemy.pool.NullPool)


def _problem(error: Any, connection: SqlConnection, access: RemoteAccess) -> Exception:
    """The exception for an error of a driver."""
    place, words = connection.place(access.folder), _words(error)
    name = next((key for key, value in access.connections.items() if value is connection), "NAME")
    if connection.is_file:
        if "locked" in words or "busy" in words:
            return TransientError(words)
        if "readonly" in words:
            return _writes(place, words)
        return DataError(f"{place}: {words}", hint="mlkit explain RECIPE data.source shows the query")
    state = getattr(error, "sqlstate", None) or ""
    if state == "25006":
        return _writes(place, words)
    if not state and type(error).__name__ in ("OperationalError", "ConnectionTimeout"):
        if "FATAL" not in words or any(text in words for text in PASSING_WORDS):
            return TransientError(words)
        hint = f"mlkit explain RECIPE connections.{name} shows where user and password are kept"
        return DataError(f"{place} refuses the connection: {words}", hint=hint)
    if state[:2] in PASSING_STATES:
        return TransientError(words)
    return DataError(f"{place}: {words}", hint="mlkit explain RECIPE data.source shows the query")


def _writes(place: str, words: str) -> DataError:
    return DataError(f"{place}: a source only reads, and the query writes: {words}", hint="write a query that reads")


def _words(error: Any) -> str:
    """What a driver says, in one line without the query that it quotes."""
    message = getattr(getattr(error, "diag", None), "message_primary", None)
    return " ".join(str(message or first_line(error)).split())[:300]
