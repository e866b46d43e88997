"""Remote data sources: a recipe's source whose rows are in a store, resolved once and fetched from that version only.

A kind is one file: a subclass of `RemoteSource` (most of `FileTreeSource`) with its keys, and three methods::

    place(access)                  where the data is: its store's address and URI
    look_up(access)                the version that the recipe asks for, and its objects (plan time)
    open_objects(access, snapshot) what opens an object at an offset (fetch time)

It raises `TransientError` for what may pass (429, 5xx, timeouts, resets) and DataError for what will not, imports its
vendor inside its methods, and reads secrets by ``access.secrets`` at the call. Retries, deadlines, resuming, checks of
digests, redaction of errors, the cache and the readers are here. `mlflowkit.testing.RemoteSourceContract` tests one.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from mlflowkit.data_access.cached_files import remember_fetch
from mlflowkit.data_access.connections import ConnectionSection, OpenSecrets
from mlflowkit.data_access.object_cache import FOLDER, ObjectCache
from mlflowkit.data_access.snapshot_memory import SnapshotMemory
from mlflowkit.data_access.source_sections import SourceContent, TextKeys
from mlflowkit.data_access.transfer import ObjectOpener, Transfer, TransferLimits, TransientError
from mlflowkit.errors import DataError, UsageError, closest_match
from mlflowkit.features.cells import DEFAULT_MISSING, ReadingPlan
from mlflowkit.system.file_patterns import folder_columns
from mlflowkit.system.text import first_line
from mlflowkit.values import DataSnapshot

if TYPE_CHECKING:
    import pyarrow as pa

    from mlflowkit.data_access.head_probe import HeadProbe
    from mlflowkit.features.text_columns import TableRead
    from mlflowkit.ports import Tables

RESOLVE_SECONDS = 10.0
"""Longest time in which a version is resolved."""
_FIRST_WAIT, _LAST_WAIT = 0.2, 2.0
ConnectionT = TypeVar("ConnectionT", bound=ConnectionSection)


def _no_progress(message: str, fraction: float) -> None:
    """Tell nobody."""


@dataclass
class RemoteAccess:
    """What a remote source is given: the recipe's folder and connections, and the state's cache."""

    folder: Path
    state: Path
    connections: Mapping[str, ConnectionSection] = field(default_factory=dict)
    progress: Callable[[str, float], None] = _no_progress
    """Told what is being done and the share of it in [0, 1]."""
    limits: TransferLimits = field(default_factory=TransferLimits)
    resolve_seconds: float = field(default_factory=lambda: RESOLVE_SECONDS)
    started: float = field(default_factory=time.monotonic)

    @cached_property
    def secrets(self) -> OpenSecrets:
        return OpenSecrets(self.folder)

    @property
    def cache(self) -> ObjectCache:
        return ObjectCache.of(self.state)

    @property
    def memory(self) -> SnapshotMemory:
        return SnapshotMemory(self.state / FOLDER / "snapshots")

    def connection(self, name: str, kind: type[ConnectionT]) -> ConnectionT:
        """The recipe's connection of this name. Raises UsageError for a missing one, and one of another kind."""
        connection = self.connections.get(name)
        if isinstance(connection, kind):
            return connection
        if connection is not None:
            message = f"connection {name!r} is of kind {connection.kind}, which this source cannot use"
            raise UsageError(message, hint="mlkit explain RECIPE data.source.connection")
        near = closest_match(name, self.connections)
        hint = f"did you mean {near}?" if near else f"add connections: {{{name}: {{kind: ...}}}}"
        raise UsageError(f"there is no connection {name!r}", hint=hint)


class RemoteSource(TextKeys):
    """A data source whose rows are in a store."""

    def place(self, access: RemoteAccess) -> str:
        """Where the data is: the address of its store and its URI, without user information."""
        raise NotImplementedError

    def look_up(self, access: RemoteAccess) -> DataSnapshot:
        """The version that the recipe asks for, and its objects; ``access.memory`` may know those (`memory_key`).

        Called at plan time; once more after TransientError, until the deadline. Raises DataError.
        """
        raise NotImplementedError

    def open_objects(self, access: RemoteAccess, snapshot: DataSnapshot) -> AbstractContextManager[ObjectOpener]:
        """What opens the objects of a snapshot, from several threads at a time."""
        raise NotImplementedError

    def memory_key(self, access: RemoteAccess) -> str:
        """What the objects of a version depend on: their place, and the keys that select some of them."""
        return self.place(access)

    def pin(self, version: str) -> str:
        """The override that makes the recipe ask for exactly this version, "" where there is none."""
        return ""

    def head_probe(self, access: RemoteAccess, snapshot: DataSnapshot) -> HeadProbe | None:
        """The request that tells whether a branch still stands for this version; None where no single one does."""
        return None

    def is_pinned(self) -> bool:
        """Whether the recipe names a version that never changes: a commit."""
        return False

    def fetch(self, access: RemoteAccess, snapshot: DataSnapshot) -> Mapping[str, Path]:
        """The objects as files by path, checked, in their order. Raises DataError and StoreError."""
        cached = {item.path: access.cache.find(snapshot.uri, item) for item in snapshot.objects}
        files = {path: file for path, file in cached.items() if file is not None}
        missing = [item for item in snapshot.objects if item.path not in files]
        if missing:
            with self.open_objects(access, snapshot) as opener:
                transfer = Transfer(snapshot.uri, opener, access.cache, access.progress, access.limits)
                files |= transfer.fetch(missing)
        return {item.path: files[item.path] for item in snapshot.objects}

    def read_fetched(
        self, files: Mapping[str, Path], tables: Tables, plan: ReadingPlan, skip: Sequence[str]
    ) -> TableRead:
        """The table in fetched files."""
        raise NotImplementedError

    def resolve(self, folder: Path) -> SourceContent:
        """Local files and versions besides the snapshot."""
        return SourceContent()

    def read(self, folder: Path, tables: Tables, *, skip: Sequence[str] = ()) -> pa.Table:
        raise UsageError(f"{self.describe()} is remote: its objects are fetched by a run", hint="mlkit run RECIPE")


class FileTreeSource(RemoteSource):
    """A remote source whose objects are CSV or Parquet files."""

    format: Literal["csv", "parquet"]
    """The format of the files. Folders named KEY=VALUE below the path are columns."""
    separator: str = Field(default=",", min_length=1, max_length=1)
    """The character between the fields of CSV files."""

    def memory_key(self, access: RemoteAccess) -> str:
        return f"{self.place(access)} {self.format}"

    def default_missing(self) -> tuple[str, ...]:
        return DEFAULT_MISSING if self.format == "csv" else ()

    def read_fetched(
        self, files: Mapping[str, Path], tables: Tables, plan: ReadingPlan, skip: Sequence[str]
    ) -> TableRead:
        folders = [folder_columns(Path(path), Path()) for path in files]
        paths = list(files.values())
        try:
            if self.format == "csv":
                return tables.read_csv_by_plan(paths, plan, separator=self.separator, skip=skip, folders=folders)
            return tables.read_parquet_by_plan(paths, plan, skip=skip, folders=folders)
        except DataError as error:
            raise DataError(_by_object(error.message, files), hint=_by_object(error.hint, files)) from None


def _by_object(text: str, files: Mapping[str, Path]) -> str:
    """A message with the names of objects in place of those of the cache's files."""
    for path, file in files.items():
        text = text.replace(str(file), path).replace(file.name, path)
    return text


def resolve_remote(source: RemoteSource, access: RemoteAccess) -> DataSnapshot:
    """Resolve what a recipe asks for to one version, and remember it.

    Raises DataError when there is no answer within ``access.resolve_seconds``, with the last known version as hint.
    """
    place = source.place(access)
    with access.secrets.guarded(place):
        snapshot = _with_deadline(source, access)
        _require_unique_paths(snapshot)
        access.memory.remember(source.memory_key(access), snapshot)
    return snapshot


def fetch_remote(source: RemoteSource, access: RemoteAccess, snapshot: DataSnapshot) -> Mapping[str, Path]:
    """The objects of a snapshot as local files by path, every byte of them checked. Raises DataError and StoreError."""
    with access.secrets.guarded(snapshot.uri):
        files = source.fetch(access, snapshot)
    remember_fetch(access.state, snapshot, files.values())
    return files


def _with_deadline(source: RemoteSource, access: RemoteAccess) -> DataSnapshot:
    """The snapshot of `RemoteSource.look_up`, in a thread that ends with the process: a vendor may hang."""
    deadline = time.monotonic() + access.resolve_seconds
    answers: list[DataSnapshot | BaseException] = []
    problems: list[str] = []
    answered = threading.Event()

    def look_up() -> None:
        wait = _FIRST_WAIT
        while True:
            try:
                answers.append(source.look_up(access))
            except TransientError as error:
                problems.append(first_line(error))
                pause = max(random.uniform(0, wait), error.after)
                if time.monotonic() + pause < deadline and not answered.wait(pause):
                    wait = min(2 * wait, _LAST_WAIT)
                    continue
                answers.append(error)
            except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
                answers.append(error)
            answered.set()
            return

    threading.Thread(target=look_up, daemon=True, name="mlkit-resolve").start()
    answered.wait(max(deadline - time.monotonic(), 0))
    answered.set()
    answer: Any = answers[0] if answers else TransientError(problems[-1] if problems else "no answer")
    if isinstance(answer, TransientError):
        raise _unreachable(source, access, str(answer)) from None
    if isinstance(answer, BaseException):
        raise answer
    return answer  # type: ignore[no-any-return]


def _unreachable(source: RemoteSource, access: RemoteAccess, reason: str) -> DataError:
    place = source.place(access)
    message = f"{place} cannot be resolved: {reason} (tried for {access.resolve_seconds:.0f} s)"
    last = access.memory.latest(source.memory_key(access), getattr(source, "ref", ""))
    override = source.pin(last.version) if last is not None and last.version else ""
    if not override:
        return DataError(message, hint="the store may be down: run the same command again to retry")
    return DataError(message, hint=f"mlkit run RECIPE {override} uses the version that it was last")


def _require_unique_paths(snapshot: DataSnapshot) -> None:
    """Raise DataError for no object, for a path twice, and for one that is no plain relative path."""
    if not snapshot.objects:
        return
    seen: set[str] = set()
    for item in snapshot.objects:
        parts = item.path.split("/")
        if item.size < 0 or ".." in parts or "." in parts or "" in parts or "\0" in item.path:
            message = f"{snapshot.uri} has an object of the name {item.path!r}, which is no path below it"
            raise DataError(message, hint="rename the object in its store, or name a folder without it")
        if item.path in seen:
            raise DataError(f"{snapshot.uri} lists {item.path!r} twice", hint="run the same command again to retry")
        seen.add(item.path)
