"""Atomic file replacement, files that only their owner can read, errors of the disk. Standard library only."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflowkit.errors import StoreError
from mlflowkit.system.text import shell_word

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk and of an exceeded quota."""
FOLDER_MODE, FILE_MODE = 0o700, 0o600
"""Modes in a state folder: what it holds (rows, predictions, feedback, keys) is its owner's business only."""
OTHERS = 0o077
"""Permission bits of group and others."""
_users_umask: int | None = None
"""The umask before `use_private_umask`; None in a process that did not call it."""


def use_private_umask() -> None:
    """Create files that only their owner can read from now on, in this process and its children.

    For the entry points of processes of our own. A library must not change the umask of its caller's process.
    """
    global _users_umask
    before = os.umask(OTHERS)
    _users_umask = before if _users_umask is None else _users_umask


def make_folder(path: Path) -> Path:
    """Create a folder and its missing parents, each for its owner only.

    >>> import tempfile
    >>> folder = make_folder(Path(tempfile.mkdtemp()) / "a" / "b")
    >>> oct(folder.stat().st_mode & 0o777), oct(folder.parent.stat().st_mode & 0o777)
    ('0o700', '0o700')
    """
    if not path.is_dir():
        if path.parent != path:
            make_folder(path.parent)
        path.mkdir(mode=FOLDER_MODE, exist_ok=True)
    return path


def private_opener(path: str, flags: int) -> int:
    """The ``opener`` of `open` for a file that only its owner can read."""
    return os.open(path, flags, FILE_MODE)


def close_to_others(folder: Path) -> int:
    """Take a folder's permissions for group and others away, where it has any; returns how many entries changed.

    The folder itself comes last, so that a cut run starts over. Entries of another owner stay as they are; links are
    not followed. Raises StoreError for a folder that cannot be read.
    """
    with disk_errors(folder):
        if not folder.is_dir() or not folder.stat().st_mode & OTHERS:
            return 0
        changed = 0
        for parent, folders, files in os.walk(folder):
            for name in (*folders, *files):
                changed += _close(os.path.join(parent, name))
        return changed + _close(str(folder))


def _close(path: str) -> bool:
    """Clear the bits of group and others of one file or folder; False when there are none, or it is not ours."""
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode) or not status.st_mode & OTHERS:
            return False
        os.chmod(path, stat.S_IMODE(status.st_mode) & ~OTHERS)
    except (FileNotFoundError, PermissionError):
        return False
    return True


def replace_file(path: Path, content: bytes, *, durable: bool = True, shared: bool = False) -> None:
    """Replace a file atomically: a reader sees the old or the new content, never a part. Creates its folder.

    With ``durable`` the content is synced before the rename. Only its owner can read the file, from its creation on;
    a ``shared`` one, which a user asked for by name, has the permissions of the user's umask. Raises StoreError when
    the disk refuses it; the old file is then intact.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "new" / "a.txt"
    >>> replace_file(path, b"a")
    >>> path.read_text(), [item.name for item in path.parent.iterdir()]
    ('a', ['a.txt'])
    """
    with staged_file(path, content, durable=durable, shared=shared) as temporary:
        temporary.replace(path)


@contextmanager
def staged_file(path: Path, content: bytes, *, durable: bool = True, shared: bool = False) -> Iterator[Path]:
    """Yield a hidden file with ``content`` beside ``path``, for the block to rename; see `replace_file`.

    Its name is unique, so any number of threads and processes may replace the same file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with disk_errors(path):
        if shared:
            _make_shared_folder(path.parent)
        else:
            make_folder(path.parent)
        try:
            with open(os.open(str(temporary), flags, 0o666 if shared else FILE_MODE), "wb") as stream:
                stream.write(content)
                if shared and _users_umask is not None:
                    os.fchmod(stream.fileno(), 0o666 & ~_users_umask)
                if durable:
                    stream.flush()
                    os.fsync(stream.fileno())
            yield temporary
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename == str(temporary):
                error.filename = str(path)
            raise


def _make_shared_folder(path: Path) -> None:
    """Create a folder and its missing parents with the permissions of the user's umask."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    if _users_umask is not None:
        for folder in missing:
            folder.chmod(0o777 & ~_users_umask)


def create_private_file(path: Path, content: bytes) -> None:
    """Create a file with mode 0600 unless it exists; no reader ever sees it empty. Raises StoreError."""
    if path.exists():
        return
    with staged_file(path, content) as temporary:
        try:
            os.link(temporary, path)  # unlike a rename, does not replace what another process created meanwhile
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)


def leads_elsewhere(folder: Path, root: Path) -> bool:
    """Whether ``folder``, below ``root``, is reached through a symbolic link that leaves ``root``.

    What such a folder holds is not removed: a state folder may have been unpacked from anywhere.
    """
    return not folder.resolve().is_relative_to(root.resolve())


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
    return StoreError(
        f"{error.filename or path} cannot be written: {reason}", hint=f"ls -ld {shell_word(path)} shows its permissions"
    )


def folder_identity(folder: Path) -> str:
    """What a folder is on this machine: its path without links, and its inode. A copy of it is another one; so is one
    that was unpacked from somebody's archive. Raises OSError when there is none."""
    return f"{folder.resolve()}:{folder.stat().st_ino}"


def file_stamp(path: Path) -> tuple[int, int] | None:
    """Modification time (ns) and inode of a file, which change when it is replaced; None when there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino
