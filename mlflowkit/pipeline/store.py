"""The content-addressed store: folders under ``objects/<digest>``, published whole or not at all.

A folder is filled under ``tmp/``, flushed to the disk file by file, renamed to its digest, and only then named by a
row of the journal. What a killed process leaves under ``tmp/`` is nobody's and is swept by the next run.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from mlflowkit.errors import StoreError
from mlflowkit.pipeline import OBJECTS
from mlflowkit.system import failpoint
from mlflowkit.system.digests import digest_file, digest_json
from mlflowkit.system.files import disk_errors


@dataclass(frozen=True, slots=True)
class Published:
    """A folder in the store: its digest and the size of each of its files by relative name."""

    digest: str
    files: Mapping[str, int]


class Store:
    """The folders of one state folder.

    >>> import tempfile
    >>> store = Store(Path(tempfile.mkdtemp()))
    >>> out = store.workspace("f" * 64, fence=1)
    >>> _ = (out / "a.txt").write_text("a")
    >>> published = store.publish(out)
    >>> (store.path(published.digest) / "a.txt").read_text(), store.intact(published)
    ('a', True)
    """

    def __init__(self, state: Path) -> None:
        self.objects = state / OBJECTS
        self.tmp = state / "tmp"
        self.scratches = state / "scratch"

    def path(self, digest: str) -> Path:
        """Where the folder of a digest is, or would be."""
        return self.objects / digest

    def workspace(self, fingerprint: str, fence: int) -> Path:
        """An empty folder to fill, for the holder of a lease; earlier holders' folders are removed."""
        with disk_errors(self.tmp):
            for stale in self.tmp.glob(f"{fingerprint[:32]}.*"):
                shutil.rmtree(stale)
            folder = self.tmp / f"{fingerprint[:32]}.{fence}"
            folder.mkdir(parents=True)
        return folder

    def scratch(self, fingerprint: str) -> Path:
        """A folder that belongs to a fingerprint and survives a kill."""
        folder = self.scratches / fingerprint
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def publish(self, folder: Path, stage: str = "") -> Published:
        """Flush a folder, make its files read-only and move it to its digest. Raises StoreError.

        A folder of the same content that is already there wins, unless it was altered since.
        """
        with disk_errors(folder):
            published = describe(folder, flush=True)
            failpoint.reach("store.synced", stage)
            self.objects.mkdir(parents=True, exist_ok=True)
            self._move(folder, self.path(published.digest))
            flush_folder(self.objects)
            failpoint.reach("store.renamed", stage)
        return published

    def _move(self, folder: Path, target: Path) -> None:
        if target.exists() and describe(target).digest != target.name:
            shutil.rmtree(target)
        try:
            folder.rename(target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            shutil.rmtree(folder)

    def intact(self, published: Published) -> bool:
        """Whether the folder is there with all its files at their sizes. Contents are not read."""
        folder = self.path(published.digest)
        try:
            return all((folder / name).stat().st_size == size for name, size in published.files.items())
        except OSError:
            return False

    def discard(self, folder: Path) -> None:
        """Remove a workspace or a scratch folder, if it is there."""
        if folder.exists():
            with disk_errors(folder):
                shutil.rmtree(folder)

    def sweep(self, live: Callable[[], Set[str]], finished: Callable[[Sequence[str]], Set[str]]) -> None:
        """Remove what killed runs left: workspaces and finished fingerprints' scratch that no live run holds.

        The folders are listed before ``live`` and ``finished`` are asked, so that what a run creates meanwhile is
        not in the list.
        """
        workspaces, scratches = list(self.tmp.glob("*")), list(self.scratches.glob("*"))
        if not workspaces and not scratches:
            return
        held = live()
        prefixes = {fingerprint[:32] for fingerprint in held}
        done = finished([folder.name for folder in scratches]) - held
        for folder in workspaces:
            if folder.name.partition(".")[0] not in prefixes:
                shutil.rmtree(folder, ignore_errors=True)
        for folder in scratches:
            if folder.name in done:
                shutil.rmtree(folder, ignore_errors=True)


def describe(folder: Path, *, flush: bool = False) -> Published:
    """Digest a folder: SHA-256 over the sorted names and contents of its files.

    With ``flush`` each file and folder is made read-only (files) and forced to the disk. Raises StoreError for a
    link or another thing that is not a plain file.
    """
    digests: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for file in _files(folder):
        name = file.relative_to(folder).as_posix()
        if flush:
            _flush_file(file)
        digests[name] = digest_file(file)
        sizes[name] = file.stat().st_size
    if flush:
        for parent in sorted({folder, *(folder / name for name in _parents(digests))}):
            flush_folder(parent)
    return Published(digest_json(digests), sizes)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise StoreError(f"{path} is neither a file nor a folder; a stage may publish plain files only")
        if path.is_file():
            yield path


def _parents(names: Iterable[str]) -> set[str]:
    return {parent.as_posix() for name in names for parent in Path(name).parents if parent.name}


def _flush_file(file: Path) -> None:
    """Force a file to the disk and make it read-only."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    file.chmod(0o444)


def flush_folder(folder: Path) -> None:
    """Force a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
