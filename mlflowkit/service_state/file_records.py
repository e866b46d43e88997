"""FileRecords: control records (`ports.ControlRecords`) as files of a state folder, one a key.

A record's version is its file's stamp: modification time in nanoseconds, inode and size. A write that meets a file of
the same or a later time gets a time one nanosecond later, so that versions differ also within one tick of the clock.
Only the standard library is imported: ``mlkit status`` and a run in which everything is reused read records.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from mlflowkit.errors import ConflictError, ServiceError, StoreError
from mlflowkit.ports import ControlRecord, RecordEntry
from mlflowkit.system.files import FOLDER_MODE, leads_elsewhere, make_folder, private_opener, staged_file
from mlflowkit.system.text import shell_word

POLL_SECONDS = 0.02
"""Interval at which `FileRecords.watch` reads the stamps."""


class FileRecords:
    """The control records of a state folder.

    >>> import tempfile
    >>> records = FileRecords(Path(tempfile.mkdtemp()))
    >>> version = records.put_if("services/lending/table.json", b"{}", None)
    >>> records.get("services/lending/table.json") == ControlRecord(b"{}", version)
    True
    >>> [entry.key for entry in records.list("services/*/table.json")]
    ['services/lending/table.json']
    >>> records.put_if("services/lending/table.json", b"{}", None)
    Traceback (most recent call last):
    mlflowkit.errors.ConflictError: services/lending/table.json exists already
    """

    def __init__(self, state: Path, *, poll_seconds: float = POLL_SECONDS) -> None:
        self.state = state
        self._poll_seconds = poll_seconds

    def location(self, key: str) -> str:
        """The path of a record's file."""
        return str(self._path(key))

    def get(self, key: str) -> ControlRecord | None:
        """Read a file and the stamp of what was read; None when there is none. Raises ServiceError."""
        path = self._path(key)
        with _read_errors(path):
            try:
                with path.open("rb") as stream:
                    version = _stamp(os.fstat(stream.fileno()))
                    return ControlRecord(stream.read(), version)
            except FileNotFoundError:
                return None

    def put(self, key: str, value: bytes, *, durable: bool = True, private: bool = False) -> str:
        """Replace a file, of mode 0600; the folder of a private one is set to 0700. Raises ServiceError."""
        path = self._path(key)
        with _write_errors():
            if private:
                make_folder(path.parent).chmod(FOLDER_MODE)
            with staged_file(path, value, durable=durable) as temporary:
                return _replace(temporary, path, _status(path))

    def put_if(self, key: str, value: bytes, version: str | None) -> str:
        """Replace a file that has the stamp ``version``. Raises ConflictError, ServiceError."""
        path = self._path(key)
        with _write_errors(), staged_file(path, value) as temporary, _exclusive(_lock_path(path)):
            before = _status(path)
            if version is None and before is not None:
                raise ConflictError(f"{key} exists already", hint="run the same command again")
            if version is not None and (before is None or _stamp(before) != version):
                raise ConflictError(f"{key} changed since it was read", hint="run the same command again")
            return _replace(temporary, path, before)

    def delete(self, key: str, *, version: str | None = None) -> None:
        """Remove a file, or a folder of files. Raises ConflictError, ServiceError (also beyond a link out of state)."""
        path = self._path(key)
        if leads_elsewhere(path.parent, self.state):
            raise ServiceError(f"{path.parent} is a link out of {self.state}", hint=f"ls -ld {shell_word(path.parent)}")
        with _read_errors(path):
            if version is None:
                _remove(path)
                return
            if path.parent.is_dir():
                with _exclusive(_lock_path(path)):
                    before = _status(path)
                    if before is not None and _stamp(before) != version:
                        raise ConflictError(f"{key} changed since it was read", hint="run the same command again")
                    _remove(path)

    def list(self, pattern: str) -> tuple[RecordEntry, ...]:
        """The files that match a pattern, sorted by key. Hidden files (temporary ones, locks) never match."""
        entries = []
        for key in sorted(_matching(self.state, _parts(pattern, pattern=True))):
            with _read_errors(self.state / key):
                status = _status(self.state / key)
            if status is not None:
                entries.append(RecordEntry(key, _stamp(status), status.st_mtime))
        return tuple(entries)

    def watch(self, patterns: Iterable[str], known: Mapping[str, str], timeout: float) -> Mapping[str, str]:
        """Read the stamps until they differ from ``known`` or ``timeout`` is over."""
        patterns, deadline = tuple(patterns), time.monotonic() + timeout
        while True:
            versions = {entry.key: entry.version for pattern in patterns for entry in self.list(pattern)}
            left = deadline - time.monotonic()
            if versions != known or left <= 0:
                return versions
            time.sleep(min(left, self._poll_seconds))

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lock of ``<name>.lock``. The state folder itself is not created. Raises ServiceError."""
        path = self._path(f"{name}.lock")
        with contextlib.ExitStack() as held:
            with _read_errors(path):
                if path.parent != self.state:
                    make_folder(path.parent)
                held.enter_context(_exclusive(path))
            yield

    def _path(self, key: str) -> Path:
        return self.state.joinpath(*_parts(key))


def _parts(key: str, *, pattern: bool = False) -> list[str]:
    """The parts of a key or a pattern. Raises ServiceError when it is neither, so that none leaves the folder."""
    parts = key.split("/")
    if "\0" in key or any(not part or part.startswith(".") or ("*" in part and not pattern) for part in parts):
        raise ServiceError(f"{key!r} is not the key of a control record", hint="mlkit status")
    return parts


def _matching(folder: Path, parts: list[str], prefix: str = "") -> Iterator[str]:
    """Keys below a folder that match the parts of a pattern; those of its last literal part need not exist."""
    part, *rest = parts
    if "*" not in part:
        names: Iterable[str] = (part,)
    else:
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _cannot_read(folder, error) from error
        names = [name for name in names if not name.startswith(".") and _expression(part).fullmatch(name)]
    for name in names:
        if rest:
            yield from _matching(folder / name, rest, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}"


@lru_cache(maxsize=64)
def _expression(part: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, part.split("*"))), re.DOTALL)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_ino}-{status.st_size}"


def _replace(temporary: Path, path: Path, before: os.stat_result | None) -> str:
    """Rename a staged file to its path, with a later modification time than that of the file ``before``."""
    status = temporary.stat()
    if before is not None and status.st_mtime_ns <= before.st_mtime_ns:
        os.utime(temporary, ns=(status.st_atime_ns, before.st_mtime_ns + 1))
        status = temporary.stat()
    temporary.replace(path)
    return _stamp(status)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        import shutil  # not for readers

        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a file lock; the system releases it when the process dies."""
    with open(path, "w", opener=private_opener) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _cannot_read(path, error) from error


def _cannot_read(path: Path, error: OSError) -> ServiceError:
    return ServiceError(f"{path} cannot be read: {error.strerror}", hint=f"ls -ld {shell_word(path)}")


@contextlib.contextmanager
def _write_errors() -> Iterator[None]:
    """Convert the StoreError of a file that cannot be written."""
    try:
        yield
    except StoreError as error:
        raise ServiceError(error.message, hint=error.hint) from error
