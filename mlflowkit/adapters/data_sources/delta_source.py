"""The Delta source: a version of a Delta Lake table.

A version or a time is resolved once to ``<table id>@<version>``; the log says which files that version has, and they
are fetched like any objects. What deltalake 1.6 answers in silence is refused here: a time before the table existed
(it gives version 0), one that has not passed, and tables whose rows their files alone do not tell.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, field_validator, model_validator

from mlflowkit.adapters.data_sources.delta_rows import TABLE_FILE, read_delta_files, table_description
from mlflowkit.data_access.connections import S3Connection
from mlflowkit.data_access.remote_source import RemoteAccess, RemoteSource
from mlflowkit.data_access.transfer import ObjectOpener, TransientError
from mlflowkit.errors import DataError
from mlflowkit.features.cells import ReadingPlan
from mlflowkit.system.extras import require_extra
from mlflowkit.system.text import first_line, format_count
from mlflowkit.values import DataObject, DataSnapshot

if TYPE_CHECKING:
    from mlflowkit.features.text_columns import TableRead
    from mlflowkit.ports import Tables

READABLE_FEATURES = frozenset({"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck", "deletionVectors"})
"""Features of a table's protocol that leave its rows to its files; deleted rows are looked for besides."""
MAX_FILES = 200_000
STATUS = re.compile(r"status code\W{1,5}(\d{3})")
PASSING = re.compile(r"(?i)generic s3 error|error sending request|timed? ?out|connect error|dns error")
REQUEST_SECONDS = 5
"""Longest time of a request."""
LONGEST_WAIT = 2.0
"""Longest wait between two attempts to resolve a version."""
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class DeltaSource(RemoteSource):
    """A version of a Delta Lake table."""

    location_keys: ClassVar[tuple[str, ...]] = ("url", "connection", "version", "as_of")

    kind: Literal["delta"]
    url: str = Field(min_length=1)
    """The table: a folder relative to the recipe, or s3://BUCKET/PATH."""
    connection: str | None = None
    """The connection (of kind s3) of a table in S3; without it the credentials of the AWS SDK's own chain."""
    version: int | None = Field(default=None, ge=0)
    """The version; without it and as_of the latest when a run is planned."""
    as_of: str | None = None
    """The version at this time, such as 2026-11-01T00:00:00Z, by the times that the table's log tells."""
    order_by: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Columns that no two rows share, to read the rows in their order. Without it they are in that of the files, by
    the time and name of each: a table whose files were compacted has another, and so another split."""

    @field_validator("url")
    @classmethod
    def _plain(cls, value: str) -> str:
        scheme, separator, rest = value.partition("://")
        if "\0" in value or (separator and (scheme != "s3" or not re.fullmatch(r"[^/@?#\s]+/[^@?#]+", rest))):
            raise ValueError("expected a folder such as tables/loans, or s3://bucket/loans")
        return value

    @field_validator("as_of")
    @classmethod
    def _is_a_time(cls, value: str | None) -> str | None:
        if value is not None:
            _time(value)
        return value

    @model_validator(mode="after")
    def _one_of_them(self) -> DeltaSource:
        if self.version is not None and self.as_of is not None:
            raise ValueError("name version or as_of, not both")
        return self

    @property
    def asked(self) -> str:
        """What the recipe asks for."""
        return f"version {self.version}" if self.version is not None else self.as_of or "latest"

    def describe(self) -> str:
        return f"delta {self.url} {self.asked}"

    def is_pinned(self) -> bool:
        return self.version is not None

    def pin(self, version: str) -> str:
        number = version.rpartition("@")[2]
        return f"data.source.version={number}" + (" data.source.as_of=null" if self.as_of is not None else "")

    def place(self, access: RemoteAccess) -> str:
        if "://" in self.url:
            return self.url.rstrip("/")
        return (access.folder / Path(self.url).expanduser()).resolve().as_uri()

    def look_up(self, access: RemoteAccess) -> DataSnapshot:
        try:
            return self._look_up(access)
        except TransientError as error:
            known = access.memory.latest(self.memory_key(access), self.asked) if self.is_pinned() else None
            if known is not None:
                return known
            left = access.resolve_seconds - (time.monotonic() - access.started)
            if left < REQUEST_SECONDS + LONGEST_WAIT:  # a request that outlives the process crashes deltalake
                raise TransientError(first_line(error), after=access.resolve_seconds) from None
            raise

    def _look_up(self, access: RemoteAccess) -> DataSnapshot:
        import pyarrow as pa

        place = self.place(access)
        table = self._open(access, self.version)
        commit: Mapping[str, Any] = {}
        if self.as_of is not None:
            commit = _commit_at(table.history(), self.as_of, place)
            table = self._open(access, int(commit["version"]))
        _require_readable(table, place)
        added = pa.table(table.get_add_actions(flatten=False)).select(["path", "size_bytes", "modification_time"])
        if added.num_rows > MAX_FILES:
            message = f"{place} has {added.num_rows:,} files; the most are {MAX_FILES:,}"
            raise DataError(message, hint="compact the table: DeltaTable(...).optimize.compact()")
        files = sorted(added.to_pylist(), key=lambda file: (file["modification_time"], file["path"]))
        objects = tuple(_object(file["path"], file["size_bytes"], index, place) for index, file in enumerate(files))
        version = f"{table.metadata().id}@{table.version()}"
        details = {"shown": f"{place} {self.asked}", **_details(commit or _last_commit(table))}
        return DataSnapshot("delta", f"{place}/", self.asked, version, objects, details)

    def fetch(self, access: RemoteAccess, snapshot: DataSnapshot) -> Mapping[str, Path]:
        description = DataObject(TABLE_FILE, 0, f"delta:{snapshot.version}")
        described = access.cache.find(snapshot.uri, description, sized=False)
        if described is None:
            content = table_description(self._open_planned(access, snapshot))
            described = access.cache.add(snapshot.uri, description, content)
        return {**super().fetch(access, snapshot), TABLE_FILE: described}

    @contextmanager
    def open_objects(self, access: RemoteAccess, snapshot: DataSnapshot) -> Iterator[ObjectOpener]:
        from deltalake.fs import DeltaStorageHandler

        handler = DeltaStorageHandler.from_table(self._open_planned(access, snapshot)._table)
        known = access.cache.known_digest
        new = [item.path for item in snapshot.objects if not known(access.cache.identity(snapshot.uri, item))]
        _require_present(handler, snapshot, new)

        @contextmanager
        def open_object(item: DataObject, start: int) -> Iterator[DeltaStream]:
            try:
                stream = handler.open_input_file(item.path)
            except FileNotFoundError:
                raise _vacuumed(snapshot, [item.path]) from None
            except OSError as error:
                raise TransientError(_words(error)) from None
            with stream:
                stream.seek(start)
                yield DeltaStream(stream, start)

        yield open_object

    def read_fetched(
        self, files: Mapping[str, Path], tables: Tables, plan: ReadingPlan, skip: Sequence[str]
    ) -> TableRead:
        return read_delta_files(files, self.order_by, plan, skip)

    def _open_planned(self, access: RemoteAccess, snapshot: DataSnapshot) -> Any:
        """The table at the version of a snapshot. Raises DataError."""
        try:
            table = self._open(access, int(snapshot.version.rpartition("@")[2]))
        except TransientError as error:
            hint = "the store may be down: run the same command again to retry"
            raise DataError(f"{snapshot.uri}: {first_line(error)}", hint=hint) from None
        if f"{table.metadata().id}@{table.version()}" != snapshot.version:
            message = f"{snapshot.uri} was replaced by another table after the run was planned"
            raise DataError(message, hint="run the same command again: it plans by what is there now")
        return table

    def _open(self, access: RemoteAccess, version: int | None) -> Any:
        """The table at a version. Raises DataError, TransientError and UsageError."""
        require_extra("deltalake", "delta", "data.source.kind: delta")
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        place = self.place(access)
        options = self._storage_options(access)
        address = place if "://" in self.url else unquote(urlsplit(place).path)
        try:
            return DeltaTable(address, version=version, storage_options=options or None)
        except TableNotFoundError:
            hint = "mlkit explain RECIPE data.source.url shows what set it"
            raise DataError(f"there is no Delta table at {place}", hint=hint) from None
        except (DeltaError, OSError) as error:
            problem = _problem(_words(error), place, version)
        if version is not None and isinstance(problem, DataError) and "no version" in problem.message:
            latest = self._open(access, None).version()
            message = f"{problem.message}: its latest is {latest}"
            raise DataError(message, hint=f"mlkit plan RECIPE data.source.version={latest}")
        raise problem

    def _storage_options(self, access: RemoteAccess) -> dict[str, str]:
        if "://" not in self.url:
            return {}
        # Requests are tried again by whoever makes them here, who heeds deadlines.
        limits = {"max_retries": "0", "connect_timeout": "2s", "timeout": f"{REQUEST_SECONDS}s"}
        if self.connection is None:
            return limits
        connection = access.connection(self.connection, S3Connection)
        names = {"access_key": "AWS_ACCESS_KEY_ID", "secret": "AWS_SECRET_ACCESS_KEY"}
        options = limits | {
            option: access.secrets.read(reference)
            for key, option in {**names, "session_token": "AWS_SESSION_TOKEN"}.items()
            if (reference := getattr(connection, key)) is not None
        }
        if connection.endpoint:
            is_plain = connection.endpoint.startswith("http://")
            options |= {"AWS_ENDPOINT_URL": connection.endpoint, "AWS_ALLOW_HTTP": str(is_plain).lower()}
        return {**options, "AWS_REGION": connection.region} if connection.region else options


class DeltaStream:
    """The bytes of a file."""

    def __init__(self, stream: Any, start: int) -> None:
        self._stream, self.start = stream, start

    def chunks(self, size: int) -> Iterator[bytes]:
        """The bytes. Raises TransientError."""
        try:
            while chunk := self._stream.read(size):
                yield chunk
        except OSError as error:
            raise TransientError(_words(error)) from None


def _time(text: str) -> datetime:
    """The time of ISO 8601 with a zone. Raises ValueError."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("expected a time such as 2026-11-01T00:00:00Z") from None
    if time.tzinfo is None:
        raise ValueError("expected a time with its zone, such as 2026-11-01T00:00:00Z")
    return time.astimezone(UTC)


def _commit_at(history: Sequence[Mapping[str, Any]], as_of: str, place: str) -> Mapping[str, Any]:
    """The last commit at a time. Raises DataError for one before the first, and for one that has not passed."""
    wanted = _time(as_of)
    if wanted > datetime.now(UTC):
        message = f"data.source.as_of {as_of} has not passed: commits until then would change what it means"
        raise DataError(message, hint="leave data.source.as_of out for the latest version")
    commits = [commit for commit in history if "timestamp" in commit and "version" in commit]
    until = [commit for commit in commits if commit["timestamp"] <= wanted.timestamp() * 1000]
    if until:
        return max(until, key=lambda commit: int(commit["version"]))
    if not commits:
        raise DataError(f"the log of {place} tells no times", hint="name data.source.version instead of as_of")
    first = min(commits, key=lambda commit: int(commit["version"]))
    begun = datetime.fromtimestamp(first["timestamp"] / 1000, UTC).isoformat(timespec="milliseconds")
    message = f"data.source.as_of {as_of} is before the first version that {place} knows: {first['version']}, {begun}"
    raise DataError(message, hint=f"mlkit plan RECIPE data.source.as_of={begun}")


def _last_commit(table: Any) -> Mapping[str, Any]:
    history = table.history(1)
    return history[0] if history and history[0].get("version") == table.version() else {}


def _details(commit: Mapping[str, Any]) -> dict[str, str]:
    details = {"time": str(commit["timestamp"] / 1000)} if isinstance(commit.get("timestamp"), int) else {}
    return {**details, "author": str(commit["userName"])[:100]} if commit.get("userName") else details


def _object(raw: str, size: int, index: int, place: str) -> DataObject:
    """A file of the log. Paths in a log are URL-encoded; ``index`` is its place in the order of rows."""
    path = unquote(raw)
    if "://" in path or path.startswith(("/", "file:")):
        message = f"{place} has a file outside its folder ({path}): a shallow clone"
        raise DataError(message, hint="name the table that it was cloned from, or clone it deeply")
    return DataObject(path, size, f"delta:{raw}", str(index))


def _require_readable(table: Any, place: str) -> None:
    """Raise DataError for a table whose rows are not those of its files."""
    import pyarrow as pa

    unknown = sorted(set(table.protocol().reader_features or ()) - READABLE_FEATURES)
    mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    if mapping != "none":
        unknown = sorted({*unknown, "columnMapping"})
    if unknown:
        message = f"{place} uses {', '.join(unknown)}, which this source does not read"
        raise DataError(message, hint="write a copy without it, and name that in data.source.url")
    if "deletionVectors" in (table.protocol().reader_features or ()):
        rows = pa.table(table.deletion_vectors()).num_rows
        if rows:
            message = f"{place} has {format_count(rows, 'file')} with rows that are marked as deleted"
            raise DataError(message, hint="rewrite them where the table is written: REORG TABLE ... APPLY (PURGE)")


def _require_present(handler: Any, snapshot: DataSnapshot, paths: Sequence[str]) -> None:
    """Raise DataError, before anything is fetched, when files of the version are gone."""
    from pyarrow.fs import FileType

    infos = handler.get_file_info(list(paths))
    gone = [path for path, info in zip(paths, infos, strict=True) if info.type == FileType.NotFound]
    if gone:
        raise _vacuumed(snapshot, gone)


def _vacuumed(snapshot: DataSnapshot, paths: Sequence[str]) -> DataError:
    version = snapshot.version.rpartition("@")[2]
    message = f"{snapshot.uri} version {version}: {format_count(len(paths), 'file')} of it are gone, such as {paths[0]}"
    hint = "the table was vacuumed: mlkit plan RECIPE data.source.version=null data.source.as_of=null for the latest"
    return DataError(message, hint=hint)


def _problem(words: str, place: str, version: int | None) -> Exception:
    """The exception for what deltalake says."""
    if "not the same as the specified end version" in words or "Invalid table version" in words:
        return DataError(f"{place} has no version {version}", hint="mlkit plan RECIPE data.source.version=null")
    if "found gap" in words or "contiguous" in words:
        names = re.findall(r'filename: "(\d{20}\.json)"', words)
        between = f" between {names[0]} and {names[-1]}" if len(names) > 1 else ""
        message = f"the log of {place} has a gap{between}: a commit is missing, and with it the state of the table"
        return DataError(message, hint="restore the files of _delta_log, or name an older data.source.version")
    status = STATUS.search(words)
    code = re.search(r"<Code>(\w+)</Code>", words)
    if status and status[1] in ("401", "403"):
        hint = "mlkit explain RECIPE data.source.connection shows which credentials are used"
        return DataError(
            f"the store does not let these credentials read {place} ({status[1]}{f': {code[1]}' if code else ''})",
            hint=hint,
        )
    if status and status[1] == "404":
        hint = "mlkit explain RECIPE data.source.url shows what set it"
        return DataError(f"there is no Delta table at {place} ({status[1]})", hint=hint)
    if status or PASSING.search(words):
        return TransientError(f"the server answered {status[1]}" if status else words[:300])
    return DataError(f"{place}: {words[:300]}", hint="mlkit explain RECIPE data.source shows what set it")


def _words(error: BaseException) -> str:
    return " ".join(_ANSI.sub("", str(error) or first_line(error)).split())
