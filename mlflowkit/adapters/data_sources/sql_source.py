"""The SQL source: the rows of a query, read in one transaction that sees one state and cannot write.

A database has no versions. What stands for one is a digest of the query, its parameters and the row of a watermark
query, which is asked whenever a run is planned, and once more in the transaction that reads: rows that changed between
are an error, not another table. The rows are materialised once into the object cache, as Parquet.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from mlflowkit.adapters.data_sources.sql_connection import SqlConnection, read_only_transaction
from mlflowkit.adapters.data_sources.sql_rows import TYPE_RULES, QueryReader
from mlflowkit.data_access.remote_source import RemoteAccess, RemoteSource
from mlflowkit.data_access.transfer import TransientError
from mlflowkit.errors import DataError
from mlflowkit.features.cells import ReadingPlan
from mlflowkit.system.digests import digest_json
from mlflowkit.system.text import first_line, shell_word, truncate
from mlflowkit.values import DataObject, DataSnapshot

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from mlflowkit.features.text_columns import TableRead
    from mlflowkit.ports import Tables

FILE = "query.parquet"
"""The one object of a snapshot."""
MAX_QUERY_BYTES = 1 << 20
WATERMARK_SECONDS = 8.0
ATTEMPTS = 3
"""How often a read that is cut is begun."""
RETRY_SECONDS = 1.0


class SqlSource(RemoteSource):
    """The rows of a query."""

    location_keys: ClassVar[tuple[str, ...]] = ("connection", "query", "watermark")

    kind: Literal["sql"]
    connection: str = Field(min_length=1)
    """The connection (of kind sql) of the database."""
    query: str = Field(min_length=1)
    """The query, or a file that holds it (NAME.sql, relative to the recipe): one SELECT. `:NAME` is a parameter."""
    order_by: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    """Columns of the query, which no two rows share: rows are read in their order, texts by their bytes. A database
    gives rows in no order of its own, and a split goes by the order."""
    watermark: str = Field(min_length=1)
    """A query of one row that changes when the rows do, such as "select max(updated_at), count(*) from loans". It
    decides whether the data is read anew: a change that it does not show is not seen."""
    parameters: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Values of the parameters of query and watermark by name."""

    @field_validator("query", "watermark")
    @classmethod
    def _one_statement(cls, value: str) -> str:
        if not value.strip(" \t\r\n;"):
            raise ValueError("expected a query that reads, such as select id, amount from loans")
        return value

    def describe(self) -> str:
        return f"sql {self.connection}: {truncate(' '.join(self.query.split()), 60)}"

    def place(self, access: RemoteAccess) -> str:
        return access.connection(self.connection, SqlConnection).place(access.folder)

    def memory_key(self, access: RemoteAccess) -> str:
        return f"{self.place(access)} {digest_json(self.model_dump(mode='json'))}"

    def look_up(self, access: RemoteAccess) -> DataSnapshot:
        connection = access.connection(self.connection, SqlConnection)
        with read_only_transaction(connection, access, min(WATERMARK_SECONDS, access.resolve_seconds)) as opened:
            watermark = self._watermark(opened)
        version = self._version(access.folder, watermark)
        shown = f"{self.describe()} at {', '.join(truncate(text, 40) for _, text in watermark)}"
        item = DataObject(FILE, 0, f"watermark:{version}")
        return DataSnapshot("sql", self.place(access), "", version, (item,), {"shown": shown})

    def fetch(self, access: RemoteAccess, snapshot: DataSnapshot) -> Mapping[str, Path]:
        (item,) = snapshot.objects
        for attempt in range(1, ATTEMPTS + 1):
            if (path := access.cache.find(snapshot.uri, item, sized=False)) is not None:
                return {item.path: path}
            try:
                if (path := self._materialise(access, snapshot)) is not None:
                    return {item.path: path}
                time.sleep(RETRY_SECONDS)
            except TransientError as error:
                if attempt == ATTEMPTS:
                    hint = "run the same command again to retry"
                    raise DataError(f"{snapshot.uri}: {first_line(error)} ({attempt} attempts)", hint=hint) from None
                time.sleep(RETRY_SECONDS)
        raise DataError(f"{snapshot.uri}: another run reads it", hint="run the same command again when it has ended")

    def read_fetched(
        self, files: Mapping[str, Path], tables: Tables, plan: ReadingPlan, skip: Sequence[str]
    ) -> TableRead:
        return tables.read_parquet_by_plan(list(files.values()), plan, skip=skip)

    def _materialise(self, access: RemoteAccess, snapshot: DataSnapshot) -> Path | None:
        """Read the rows into the cache; None while another process does."""
        (item,) = snapshot.objects
        identity = access.cache.identity(snapshot.uri, item)
        connection = access.connection(self.connection, SqlConnection)
        with access.cache.part(identity) as part:
            if part is None:
                return None
            part.seek(0)
            part.truncate()
            with read_only_transaction(connection, access) as opened:
                self._require_unchanged(access, snapshot, opened)
                reader = self._reader(opened, self._query(access.folder))
                rows = reader.write(part, lambda count: access.progress(f"{count:,} rows read", 0.5))
            access.progress(f"{rows:,} rows read", 1.0)
            part.seek(0)
            sha256 = hashlib.file_digest(part, "sha256").hexdigest()  # type: ignore[arg-type]
            return access.cache.publish(identity, item, sha256, part)

    def _require_unchanged(self, access: RemoteAccess, snapshot: DataSnapshot, opened: Connection) -> None:
        watermark = self._watermark(opened)
        if self._version(access.folder, watermark) != snapshot.version:
            now = ", ".join(truncate(text, 40) for _, text in watermark)
            message = f"the rows of {self.describe()} changed after the run was planned: the watermark is now {now}"
            raise DataError(message, hint="run the same command again: it plans by what is there now")

    def _watermark(self, opened: Connection) -> list[tuple[str, str]]:
        """The type and text of each value of the watermark's row. Raises DataError for none, and for several."""
        rows = self._reader(opened, _without_end(self.watermark)).rows(2)
        if len(rows) != 1 or not any(value is not None for value in rows[0]):
            given = "no value" if len(rows) == 1 else "no row" if not rows else "several rows"
            message = f"data.source.watermark gives {given}: it must be one row that changes when the rows do"
            raise DataError(message, hint='for example watermark: "select max(updated_at), count(*) from loans"')
        return [(type(value).__name__, str(value)) for value in rows[0]]

    def _version(self, folder: Path, watermark: Sequence[tuple[str, str]]) -> str:
        """SHA-256 over all that the rows and their order depend on."""
        parameters = {key: [type(value).__name__, value] for key, value in sorted(self.parameters.items())}
        return digest_json([TYPE_RULES, self._query(folder), parameters, self.order_by, [list(x) for x in watermark]])

    def _reader(self, opened: Connection, query: str) -> QueryReader:
        return QueryReader(opened, query, self.parameters, self.order_by)

    def _query(self, folder: Path) -> str:
        """The text of the query. Raises DataError for a file that cannot be read."""
        return _without_end(_query_text(folder, self.query))


def _query_text(folder: Path, query: str) -> str:
    if not query.endswith(".sql") or len(query.split()) != 1:
        return query
    path = folder / query
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_QUERY_BYTES + 1)
        text = content.decode()
    except OSError as error:
        message = f"the query {path} cannot be read: {error.strerror}"
        raise DataError(message, hint=f"ls -l {shell_word(path.parent)}") from None
    except UnicodeDecodeError:
        raise DataError(f"the query {path} is not UTF-8", hint=f"file {shell_word(path)}") from None
    if len(content) > MAX_QUERY_BYTES or not text.strip(" \t\r\n;"):
        raise DataError(f"the query {path} is empty or longer than 1 MiB", hint=f"ls -l {shell_word(path)}")
    return text


def _without_end(query: str) -> str:
    return query.strip().rstrip("; \t\r\n")
