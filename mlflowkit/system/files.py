"""Atomic file replacement, and errors of the disk. Standard library only: light paths import it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflowkit.errors import StoreError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk and of an exceeded quota."""


def replace_file(path: Path, content: bytes, *, durable: bool = True, private: bool = False) -> None:
    """Replace a file atomically: a reader sees the old or the new content, never a part. Creates its folder.

    With ``durable`` the content is synced before the rename; a ``private`` file is readable by its owner only, from its
    creation on. Raises StoreError when the disk refuses it; the old file is then intact.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "new" / "a.txt"
    >>> replace_file(path, b"a")
    >>> path.read_text(), [item.name for item in path.parent.iterdir()]
    ('a', ['a.txt'])
    """
    with staged_file(path, content, durable=durable, private=private) as temporary:
        temporary.replace(path)


@contextmanager
def staged_file(path: Path, content: bytes, *, durable: bool = True, private: bool = False) -> Iterator[Path]:
    """Yield a hidden file with ``content`` beside ``path``, for the block to rename; see `replace_file`.

    Its name is unique, so any number of threads and processes may replace the same file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(os.open(str(temporary), flags, 0o600 if private else 0o666), "wb") as stream:
                stream.write(content)
                if durable:
                    stream.flush()
                    os.fsync(stream.fileno())
            yield temporary
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename == str(temporary):
                error.filename = str(path)
            raise


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Convert an OSError in the block to a StoreError (see `disk_error`)."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error


def disk_error(error: OSError, path: Path) -> StoreError:
    """The StoreError for an OSError under ``path``, with a hint on what to do."""
    if error.errno in FULL:
        reason = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
        return StoreError(
            f"{reason} while writing under {path}",
            hint="make room (or choose another place with --state DIR) and run the same command again: "
            "finished steps are kept",
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        message = f"{error.filename or path} is a file where a folder is needed"
        return StoreError(message, hint="choose another --state DIR")
    reason = error.strerror or type(error).__name__
    return StoreError(f"{error.filename or path} cannot be written: {reason}", hint=f"check the permissions of {path}")


def file_stamp(path: Path) -> tuple[int, int] | None:
    """Modification time (ns) and inode of a file, which change when it is replaced; None when there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino
