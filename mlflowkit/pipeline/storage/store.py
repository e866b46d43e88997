"""The content-addressed store: folders under ``objects/<digest>``, published atomically.

A folder is filled under ``tmp/``, flushed to disk, renamed to its digest, and only then referenced by the journal.
The next run removes what a killed process left under ``tmp/``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path

from mlflowkit.errors import StoreError
from mlflowkit.pipeline import OBJECTS
from mlflowkit.system import failpoint
from mlflowkit.system.digests import digest_file, digest_json
from mlflowkit.system.files import FOLDER_MODE, disk_errors, leads_elsewhere, make_folder, private_opener
from mlflowkit.system.text import shell_word
from mlflowkit.values import Published

PUBLISHED_MODE = 0o400
"""Of published files: read-only, for their owner."""

LOCK = "storage.lock"


@contextlib.contextmanager
def storage_lock(state: Path, *, alone: bool = False) -> Iterator[None]:
    """Hold the storage lock of a state folder: shared with other runs, or alone. Raises StoreError."""
    path = state / LOCK
    with disk_errors(path):
        make_folder(state)
        stream = open(path, "a", opener=private_opener)  # noqa: SIM115  (closed below)
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


class FolderStore:
    """The store of a state folder.

    >>> import tempfile
    >>> store = FolderStore(Path(tempfile.mkdtemp()))
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
        """The path of a digest's folder, which need not exist."""
        return self.objects / digest

    def workspace(self, fingerprint: str, fence: int) -> Path:
        """Create an empty folder for the holder of a lease; removes those of earlier holders."""
        require_own(self.tmp)
        with disk_errors(self.tmp):
            for stale in self.tmp.glob(f"{fingerprint[:32]}.*"):
                shutil.rmtree(stale)
            folder = self.tmp / f"{fingerprint[:32]}.{fence}"
            make_folder(folder)
        return folder

    def scratch(self, fingerprint: str) -> Path:
        """The scratch folder of a fingerprint, which survives a kill."""
        folder = self.scratches / fingerprint
        with disk_errors(folder):
            make_folder(folder)
        return folder

    def publish(self, folder: Path, stage: str = "") -> Published:
        """Flush a folder, make its files read-only and move it to its digest. Raises StoreError.

        An existing folder of the same content is kept, unless it was altered.
        """
        with disk_errors(folder):
            published = describe(folder, flush=True)
            failpoint.hit("store.synced", stage)
            make_folder(self.objects)
            self._move(folder, self.path(published.digest))
            _sync(self.objects)
            failpoint.hit("store.renamed", stage)
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
        """Whether the folder has all its files at their sizes. Contents are not read."""
        folder = self.path(published.digest)
        try:
            return all((folder / name).stat().st_size == size for name, size in published.files.items())
        except OSError:
            return False

    def verified(self, published: Published) -> Path:
        """The path of a folder, after reading all of it. Raises StoreError unless its content has its digest."""
        folder = self.path(published.digest)
        with disk_errors(folder):
            if not folder.is_dir() or describe(folder).digest != published.digest:
                hint = "mlkit run RECIPE --force STAGE makes it again"
                raise StoreError(f"{folder} is missing or was altered", hint=hint)
        return folder

    def discard(self, folder: Path) -> None:
        """Remove a workspace if it exists."""
        if folder.exists():
            with disk_errors(folder):
                shutil.rmtree(folder)

    def discard_scratch(self, fingerprint: str) -> None:
        """Remove the scratch folder of a fingerprint if it exists."""
        self.discard(self.scratches / fingerprint)

    def sweep(self, live: Callable[[], Set[str]], finished: Callable[[Sequence[str]], Set[str]]) -> None:
        """Remove leftovers of killed runs: workspaces, and scratch of finished fingerprints, without a live lease.

        Lists the folders before it calls ``live`` and ``finished``, so that folders created meanwhile are kept.
        """
        own = [folder for folder in (self.tmp, self.scratches) if not leads_elsewhere(folder, folder.parent)]
        workspaces, scratches = (list(root.glob("*")) if root in own else [] for root in (self.tmp, self.scratches))
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

    With ``flush``, files are made read-only, files and folders are closed to others and synced to disk. Raises
    StoreError for anything but regular files and folders.
    """
    digests: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for file in sorted(folder.rglob("*")):
        if file.is_symlink() or not (file.is_file() or file.is_dir()):
            raise StoreError(f"{file} is neither a file nor a folder; a stage may publish plain files only")
        if file.is_dir():
            if flush:
                file.chmod(FOLDER_MODE)
            continue
        name = file.relative_to(folder).as_posix()
        if flush:
            _sync(file)
            file.chmod(PUBLISHED_MODE)
        digests[name] = digest_file(file)
        sizes[name] = file.stat().st_size
    if flush:
        for parent in sorted({folder, *(folder / parent for name in digests for parent in Path(name).parents)}):
            _sync(parent)
    return Published(digest_json(digests), sizes)


def _sync(path: Path) -> None:
    """Sync a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_own(folder: Path) -> None:
    """Raise StoreError for a folder of the state that is a link to somewhere else: nothing there is removed."""
    if leads_elsewhere(folder, folder.parent):
        target = folder.resolve()
        raise StoreError(f"{folder} is a link to {target}, outside the state folder", hint=f"rm {shell_word(folder)}")
