"""Carries out the changes of an export: all of them, or none.

The new files are staged in ``.mlkit-export.staging`` beside the lock, with a journal of what is to be moved where.
Before the journal is complete nothing has changed, and what was staged is dropped; from then on the moves are carried
out, after a crash by the next export. An error in the middle (a folder that refuses, a full disk) moves all back.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from mlflowkit.delivery.regeneration.export_lock import LOCK, LockEntry, lock_text, read_lock
from mlflowkit.delivery.regeneration.file_changes import FileChange
from mlflowkit.delivery.regeneration.generated_header import digest_of
from mlflowkit.errors import StoreError, UsageError
from mlflowkit.system.files import disk_error
from mlflowkit.system.text import shell_word

STAGING = ".mlkit-export.staging"
_JOURNAL = "journal.json"
_MAX_FILE = 16 * 2**20


@dataclass(frozen=True, slots=True)
class _Move:
    """One file to put in place of another: ``staged`` and ``kept`` are names in the staging folder, "" for none."""

    path: str
    staged: str
    kept: str
    before: str
    after: str
    """SHA-256 before and after; "" for no file."""


def place(root: Path, path: str) -> Path:
    """Where a generated path is written, links resolved. Raises UsageError for one outside of ``root``."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or pure.parts[0] == ".git" or "\\" in path:
        raise UsageError(
            f"{path!r} is no path of a generated file", hint="mlkit export RECIPE writes below the repository only"
        )
    resolved = Path(os.path.realpath(root / pure))
    if not resolved.is_relative_to(root):
        raise UsageError(
            f"{path} leads out of the repository, to {resolved}: nothing was written",
            hint=f"rm {shell_word(path)}, or write elsewhere: mlkit export RECIPE --out DIR",
        )
    if resolved.is_relative_to(root / ".git"):
        raise UsageError(f"{path} leads into .git: nothing was written", hint=f"rm {shell_word(path)}")
    return resolved


def read_file(file: Path) -> bytes | None:
    """The content of a file, or None where there is none. Raises UsageError for anything else."""
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_FILE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", hint=f"ls -ld {shell_word(file)}") from error
    if len(content) > _MAX_FILE:
        raise UsageError(
            f"{file} is larger than {_MAX_FILE >> 20} MiB: no generated file is", hint=f"ls -l {shell_word(file)}"
        )
    return content


@contextlib.contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Hold a folder against other exports. Raises UsageError when one is at work there."""
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UsageError(
            f"another command generates files in {root}", hint="run it again when that has ended"
        ) from error
    finally:
        os.close(handle)


def was_cut(root: Path) -> bool:
    """Whether an export was cut off while its files were moved."""
    return (root / STAGING / _JOURNAL).exists()


def write_changes(root: Path, changes: Mapping[str, FileChange], entries: Mapping[str, LockEntry]) -> None:
    """Carry out the changes and write the lock, all or nothing. Call within `exclusive`.

    Raises UsageError when a file was changed since it was read, StoreError when the disk refuses.
    """
    folder = root / STAGING
    try:
        moves = _stage(root, folder, changes, entries)
        _carry_out(root, folder, moves)
        _drop_empty(root, [move.path for move in moves if not move.staged])
    except OSError as error:
        raise disk_error(error, root) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def recover(root: Path) -> tuple[str, ...]:
    """Finish an export that was cut off; returns the paths that it put in place. Call within `exclusive`.

    A file that was edited since keeps the edits, and its entry in the lock.
    """
    folder = root / STAGING
    if not os.path.lexists(folder):
        return ()
    if folder.is_symlink() or not was_cut(root):
        _drop(folder)
        return ()
    try:
        moves = [_Move(**item) for item in json.loads((folder / _JOURNAL).read_bytes())]
        edited, done = [], []
        for move in moves:
            target = place(root, move.path)
            content = read_file(target)
            digest = "" if content is None else digest_of(content)
            if digest == move.after:
                continue
            if digest != move.before and move.path != LOCK:
                edited.append(move.path)
            elif move.path == LOCK and edited:
                _keep_entries(folder / move.staged, read_lock(root), edited)
                _move(folder, move, target)
            else:
                _move(folder, move, target)
                done.append(move.path)
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{folder} is damaged: {error}",
            hint=f"rm -r {shell_word(folder)}, then mlkit export RECIPE, and read git diff",
        ) from error
    except OSError as error:
        raise disk_error(error, root) from error
    _drop(folder)
    _drop_empty(root, [move.path for move in moves if not move.staged])
    return tuple(path for path in done if path != LOCK)


def _stage(
    root: Path, folder: Path, changes: Mapping[str, FileChange], entries: Mapping[str, LockEntry]
) -> tuple[_Move, ...]:
    """Write the new files into the staging folder, keep the old ones there, and complete the journal."""
    _drop(folder)
    folder.mkdir(mode=0o700)
    moves: list[_Move] = []
    lock = lock_text(entries).encode()
    wanted: list[tuple[str, bytes | None, bytes | None]] = [
        (change.path, change.before, change.content) for change in changes.values() if change.writes
    ]
    for number, (path, before, content) in enumerate([*wanted, (LOCK, read_file(root / LOCK), lock)]):
        target = place(root, path)
        if read_file(target) != before:
            raise UsageError(f"{path} was changed meanwhile: nothing was written", hint="run it again")
        staged, kept = "" if content is None else f"new-{number}", "" if before is None else f"old-{number}"
        if before is not None:
            _keep(target, folder / kept)
        if content is not None:
            _write(folder / staged, content, mode=_mode(target))
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.parent.stat().st_dev != folder.stat().st_dev:
                raise UsageError(f"{path} is on another file system than {root}", hint="mlkit export RECIPE --out DIR")
        digests = ["" if text is None else digest_of(text) for text in (before, content)]
        moves.append(_Move(path, staged, kept, *digests))
    _write(folder / f"{_JOURNAL}.part", json.dumps([asdict(move) for move in moves]).encode(), mode=0o600)
    os.replace(folder / f"{_JOURNAL}.part", folder / _JOURNAL)
    _sync(folder)
    return tuple(moves)


def _carry_out(root: Path, folder: Path, moves: tuple[_Move, ...]) -> None:
    """Move the staged files into place, the lock last; all back on an error."""
    done: list[_Move] = []
    try:
        for move in moves:
            done.append(move)
            _move(folder, move, place(root, move.path))
        for parent in {place(root, move.path).parent for move in moves}:
            if parent.is_dir():
                _sync(parent)
    except BaseException:
        for move in reversed(done):
            target = place(root, move.path)
            if move.kept and (folder / move.kept).exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(folder / move.kept, target)
            elif not move.kept:
                target.unlink(missing_ok=True)
        raise


def _move(folder: Path, move: _Move, target: Path) -> None:
    if move.staged:
        os.replace(folder / move.staged, target)
        return
    target.unlink(missing_ok=True)


def _drop_empty(root: Path, removed: list[str]) -> None:
    """Remove the folders of removed files that are empty now."""
    for path in removed:
        for parent in list(PurePosixPath(path).parents)[:-1]:
            with contextlib.suppress(OSError):  # not empty
                (root / parent).rmdir()


def _keep_entries(staged: Path, old: Mapping[str, LockEntry], paths: list[str]) -> None:
    """Give files that keep their edits their old entries in a staged lock: the next merge has the right base."""
    value = json.loads(staged.read_bytes())
    recorded = json.loads(lock_text(old))["files"]
    for path in paths:
        value["files"].pop(path, None)
        if path in recorded:
            value["files"][path] = recorded[path]
    value["files"] = dict(sorted(value["files"].items()))
    _write(staged, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode(), mode=0o644)


def _keep(file: Path, copy: Path) -> None:
    """A second name for a file, or a copy where the file system has no links."""
    try:
        os.link(file, copy)
    except OSError:
        shutil.copy2(file, copy)


def _mode(target: Path) -> int:
    """The permissions of the file that is replaced, or those of a new file."""
    try:
        return target.stat().st_mode & 0o777
    except FileNotFoundError:
        return 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _write(file: Path, content: bytes, *, mode: int) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        os.fchmod(stream.fileno(), mode)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _drop(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
