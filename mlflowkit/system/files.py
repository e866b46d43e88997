"""Files that are replaced whole, and what a disk's refusals mean. Standard library only: light paths import it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflowkit.errors import StoreError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk and of a quota that is used up."""


def replace_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace a file so that a reader sees the old one or the new one, never a part; makes its folder.

    With ``durable`` the content is on the disk before the file has its name. Raises StoreError when the disk refuses
    it; the old file is then intact.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "new" / "a.txt"
    >>> replace_file(path, b"a")
    >>> path.read_text(), [item.name for item in path.parent.iterdir()]
    ('a', ['a.txt'])
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                stream.write(content)
                if durable:
                    stream.flush()
                    os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename == str(temporary):
                error.filename = str(path)
            raise


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say what an OSError under ``path`` means to the person at the keyboard."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error


def disk_error(error: OSError, path: Path) -> StoreError:
    """The StoreError for an OSError: a full disk and an exceeded quota say so, with what to do."""
    if error.errno in FULL:
        what = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
        return StoreError(
            f"{what} while writing under {path}",
            hint="make room (or choose another place with --state DIR) and run the same command again: "
            "finished steps are kept",
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return StoreError(
            f"{error.filename or path} is a file where a folder is needed", hint="choose another --state DIR"
        )
    reason = error.strerror or type(error).__name__
    return StoreError(f"{error.filename or path} cannot be written: {reason}", hint=f"check the permissions of {path}")
