"""The DVC source: files that DVC tracks, at a commit of git, from its cache or a remote that is a folder.

What DVC tracks at a commit is read from git's objects, and the bytes from where DVC keeps them by MD5, so DVC itself
(seconds to import) is not needed; and a dirty working tree is never read for a commit, as DVC does without a revision.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal

from pydantic import Field, field_validator

from mlflowkit.data_access.dvc.outputs import MAX_FOLDER, DvcOutput, read_dvc_file, read_folder, read_lock
from mlflowkit.data_access.dvc.storage import DvcStorage, describe_places, read_storage
from mlflowkit.data_access.object_patterns import listed_prefix, select_objects
from mlflowkit.data_access.remote_source import FileTreeSource, RemoteAccess
from mlflowkit.data_access.transfer import ObjectOpener, TransientError
from mlflowkit.errors import DataError, closest_match
from mlflowkit.system.git.git_objects import (
    GitBlob,
    GitWorkTree,
    commit_files,
    find_commit,
    find_work_tree,
    read_blobs,
)
from mlflowkit.system.text import first_line, shell_word
from mlflowkit.values import DataObject, DataSnapshot

WORKSPACE = "workspace"
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
MAX_FILES = 200_000
MAX_TRACKING_FILES = 20_000
"""Files of DVC in a repository."""
MAX_GIT_FILE = 256 << 20
"""Bytes of a file that git itself holds: it is read whole."""
LFS = b"version https://git-lfs"


class DvcSource(FileTreeSource):
    """Files that DVC tracks, at a commit of git."""

    location_keys: ClassVar[tuple[str, ...]] = ("repository", "rev", "path")

    kind: Literal["dvc"]
    repository: str = Field(default=".", min_length=1)
    """A folder in a git repository with DVC, relative to the recipe."""
    rev: str = Field(default="HEAD", min_length=1, max_length=250)
    """A tag, a branch or a commit: resolved to a commit when a run is planned, whatever the working tree holds.
    ``workspace`` reads the working tree, which is no version."""
    path: str = Field(min_length=1)
    """A file, a folder (every file of the format in it and in its KEY=VALUE folders) or a glob, below the repository's
    folder."""

    @field_validator("rev")
    @classmethod
    def _names_one_commit(cls, value: str) -> str:
        if not re.fullmatch(r"[^\W_][\w./+#@^~-]*", value) or ".." in value or "//" in value:
            raise ValueError("expected a tag, a branch or a commit such as v1.2, or workspace")
        return value

    @field_validator("path")
    @classmethod
    def _below_the_folder(cls, value: str) -> str:
        if value.startswith("/") or {"..", "."} & set(value.split("/")) or "//" in value or "\0" in value:
            raise ValueError("expected a path below the repository's folder, such as data/loans.csv")
        return value

    @field_validator("repository")
    @classmethod
    def _is_a_folder(cls, value: str) -> str:
        if "://" in value or re.match(r"[\w.-]+@[\w.-]+:", value):
            raise ValueError("expected a folder: clone the repository, and name the clone")
        return value

    @property
    def ref(self) -> str:
        """What the recipe asks for."""
        return self.rev

    def describe(self) -> str:
        return f"dvc:{self.path}@{self.rev}"

    def is_pinned(self) -> bool:
        return COMMIT.fullmatch(self.rev) is not None

    def pin(self, version: str) -> str:
        return f"data.source.rev={version}"

    def place(self, access: RemoteAccess) -> str:
        return f"{os.path.normpath(access.folder.absolute() / self.repository)} dvc:{self.path}"

    def look_up(self, access: RemoteAccess) -> DataSnapshot:
        if self.rev == WORKSPACE:
            return self._workspace(access)
        memory = self.memory_key(access)
        shown = {"shown": self.describe()}
        if self.is_pinned() and (known := access.memory.version(memory, self.rev)) is not None:
            return replace(known, asked=self.rev, details={**known.details, **shown})
        repository = DvcRepository.open(self, access)
        commit = find_commit(repository.folder, self.rev)
        details = {"author": commit.author, "time": commit.time, "message": commit.message[:200], **shown}
        if (known := access.memory.version(memory, commit.id)) is not None:
            return replace(known, asked=self.rev, details=details)
        names = repository.files_at(commit.id, listed_prefix(self.path))
        folder, selected = select_objects(names, self.path, self.format)
        if not selected:
            near = repository.files_beside(commit.id, self.path)
            raise self._nothing(f"at {self.rev} (commit {commit.id[:8]})", near)
        storage = repository.storage(commit.id)
        objects = tuple(repository.data_object(names[folder + path], path, storage) for path in selected)
        return DataSnapshot("dvc", f"{repository.uri}{folder}", self.rev, commit.id, objects, details)

    def _workspace(self, access: RemoteAccess) -> DataSnapshot:
        """The files of the working tree, by the same digests as DVC's."""
        root = access.folder / self.repository
        names = dict(_files_below(root, listed_prefix(self.path)))
        folder, selected = select_objects(names, self.path, self.format)
        if not selected:
            raise self._nothing("in the working tree", names)
        objects = []
        for path in selected:
            file = names[folder + path]
            with _opened(file) as stream:
                stat = _stat_text(file)
                digest = hashlib.md5(usedforsecurity=False)
                for chunk in DvcStream(stream, 0).chunks(1 << 20):
                    digest.update(chunk)
                size = stream.tell()
            objects.append(DataObject(path, size, f"md5:{digest.hexdigest()}", f"{stat} {folder + path}"))
        shown = f"dvc:{self.path} in the working tree, which is no version: rev: HEAD reads what is committed"
        uri = f"dvc://{root.resolve().name}/{folder}"
        return DataSnapshot("dvc", uri, WORKSPACE, "", tuple(objects), {"shown": shown})

    @contextmanager
    def open_objects(self, access: RemoteAccess, snapshot: DataSnapshot) -> Iterator[ObjectOpener]:
        if not snapshot.version:
            yield _WorkspaceOpener(access.folder / self.repository)
        else:
            repository = DvcRepository.open(self, access)
            yield _StoredOpener(repository, repository.storage(snapshot.version), Counter())

    def _nothing(self, where: str, near_names: Iterable[str]) -> DataError:
        message = f"there is no {self.format} file {self.path} {where} that DVC or git tracks"
        if self.rev == WORKSPACE:
            message = f"there is no {self.format} file {self.path} {where}"
            return DataError(message, hint=f"dvc checkout {shell_word(self.path)} puts there what DVC tracks")
        near = closest_match(self.path, near_names)
        hint = f"did you mean {near}?" if near else f"dvc list -R --rev {shell_word(self.rev)} . shows what there is"
        return DataError(message, hint=hint)


@dataclass(frozen=True)
class DvcRepository:
    """A folder in a checkout of git, and the repository of DVC around it."""

    folder: Path
    tree: GitWorkTree

    @classmethod
    def open(cls, source: DvcSource, access: RemoteAccess) -> DvcRepository:
        """Raises DataError where there is no repository of git, or none of DVC."""
        folder = Path(os.path.normpath(access.folder.absolute() / source.repository))
        repository = cls(folder, find_work_tree(folder))
        _ = repository.root
        return repository

    @cached_property
    def root(self) -> Path:
        """The folder with ``.dvc``: the nearest one from here up to git's root. Raises DataError."""
        prefix = self.tree.prefix.rstrip("/")
        while True:
            if (self.tree.root / prefix / ".dvc").is_dir():
                return self.tree.root / prefix
            if not prefix:
                message = f"{self.folder} is in no repository of DVC"
                raise DataError(message, hint=f"ls -d {shell_word(self.tree.root / '.dvc')}")
            prefix = posixpath.dirname(prefix)

    @property
    def uri(self) -> str:
        return f"dvc://{self.tree.root.name}/{self.tree.prefix}"

    def storage(self, commit: str) -> DvcStorage:
        """Where the bytes are. Raises DataError."""
        config = commit_files(self.tree.root, commit).get(f"{self._below}.dvc/config")
        return read_storage(self.root, read_blobs(self.tree.root, [config])[0] if config else b"")

    def files_at(self, commit: str, prefix: str) -> dict[str, DvcOutput | GitBlob]:
        """The files of a commit whose paths from the folder begin with ``prefix``. Raises DataError."""
        blobs = commit_files(self.tree.root, commit)
        start = self.tree.prefix
        files: dict[str, DvcOutput | GitBlob] = {
            path.removeprefix(start): blob
            for path, blob in blobs.items()
            if path.startswith(start + prefix) and not _is_of_dvc(path)
        }
        storage = self.storage(commit)
        for output in self._outputs(blobs):
            if output.folder and _meet(f"{output.path}/", start + prefix):
                for file in read_folder(output, _folder_list(output, storage)):
                    _add(files, file, start, prefix)
            elif not output.folder:
                _add(files, output, start, prefix)
            if len(files) > MAX_FILES:
                message = f"more than {MAX_FILES:,} files of {self.folder} begin with {prefix!r}"
                raise DataError(message, hint="begin data.source.path with the folder that holds the table's files")
        return files

    def files_beside(self, commit: str, path: str) -> Mapping[str, DvcOutput | GitBlob]:
        """The files of a commit in the folder of a path; none where they cannot be told."""
        try:
            return self.files_at(commit, path[: path.rfind("/") + 1])
        except DataError:
            return {}

    def data_object(self, file: DvcOutput | GitBlob, path: str, storage: DvcStorage) -> DataObject:
        """A file as an object. Raises DataError for one whose bytes are not there, and would be needed for its size."""
        if isinstance(file, GitBlob):
            if file.size > MAX_GIT_FILE:
                message = f"git itself holds {file.path}, of {file.size:,} bytes (at most {MAX_GIT_FILE:,})"
                raise DataError(
                    message, hint=f"git rm --cached {shell_word(file.path)}, then dvc add {shell_word(file.path)}"
                )
            return DataObject(path, file.size, f"git-sha1:{file.id}", file.path)
        if not file.md5:
            message = f"{file.path} has no digest in {file.file}: it was never made, or only partly imported"
            raise DataError(message, hint=f"dvc repro, or dvc update {shell_word(file.file)}, then commit {file.file}")
        size = file.size
        if size is None or file.text:  # the size in DVC 2 may be that of other line ends
            try:
                size = _stored_file(file.path, file.md5, file.text, file.remote, storage, 0).stat().st_size
            except OSError as error:
                raise _unreadable(file.path, error) from None
        algorithm = "md5-dos2unix" if file.text else "md5"
        return DataObject(path, size, f"{algorithm}:{file.md5}", f"{file.remote}:{file.path}")

    @property
    def _below(self) -> str:
        """The root of DVC from git's: "" or a path that ends with a slash."""
        below = self.root.relative_to(self.tree.root).as_posix()
        return "" if below == "." else f"{below}/"

    def _outputs(self, blobs: Mapping[str, GitBlob]) -> Iterator[DvcOutput]:
        tracking = [blob for path, blob in blobs.items() if path.startswith(self._below) and _is_of_dvc(path)]
        if len(tracking) > MAX_TRACKING_FILES:
            message = f"{self.root} has {len(tracking):,} files of DVC (at most {MAX_TRACKING_FILES:,})"
            raise DataError(message, hint="track folders instead of files: dvc add FOLDER")
        contents = dict(zip((blob.path for blob in tracking), read_blobs(self.tree.root, tracking), strict=True))
        for path, content in contents.items():
            if path.endswith(".dvc"):
                yield from read_dvc_file(path, content)
            elif path.endswith(".lock"):
                yield from read_lock(path, content, contents.get(f"{path.removesuffix('lock')}yaml", b""))


def _is_of_dvc(path: str) -> bool:
    """Whether a file says what DVC tracks."""
    return path.endswith(".dvc") or posixpath.basename(path) in ("dvc.lock", "dvc.yaml")


class DvcStream:
    """The bytes of a file from an offset."""

    def __init__(self, stream: BinaryIO, start: int) -> None:
        self._stream, self.start = stream, start
        stream.seek(start)

    def chunks(self, size: int) -> Iterator[bytes]:
        """The bytes. Raises TransientError: a remote may be a share of a network."""
        try:
            while chunk := self._stream.read(size):
                yield chunk
        except OSError as error:
            raise TransientError(f"it cannot be read: {first_line(error)}") from None


@dataclass(frozen=True)
class _StoredOpener:
    """Opens files in DVC's cache, on its remotes and in git; where the first bytes were wrong, the next ones."""

    repository: DvcRepository
    storage: DvcStorage
    opened: Counter[str]

    @contextmanager
    def __call__(self, item: DataObject, start: int) -> Iterator[DvcStream]:
        algorithm, _, digest = item.digest.partition(":")
        if algorithm == "git-sha1":
            blob = GitBlob(item.locator, item.size, digest)
            content = read_blobs(self.repository.tree.root, [blob])[0]
            if content.startswith(LFS) and item.size < 1024:
                message = f"{item.locator} is kept by Git LFS: the commit has only a reference to it"
                raise DataError(message, hint=f"dvc add {shell_word(item.locator)}, or read it as kind: {WORKSPACE}")
            yield DvcStream(io.BytesIO(content), start)
            return
        remote, _, path = item.locator.partition(":")
        text = algorithm != "md5"
        file = _stored_file(path, digest, text, remote, self.storage, self.opened[item.path])
        self.opened[item.path] += start == 0
        if text and start == 0 and _text_digest(file) != digest:
            message = f"{path}: the bytes in {file} have not the MD5 {digest} that DVC says"
            raise DataError(message, hint=f"dvc fetch {shell_word(path)} where a remote has it")
        with _opened(file) as stream:
            yield DvcStream(stream, start)


@dataclass(frozen=True)
class _WorkspaceOpener:
    """Opens files of a working tree, as they were when the run was planned."""

    folder: Path

    @contextmanager
    def __call__(self, item: DataObject, start: int) -> Iterator[DvcStream]:
        stat, _, path = item.locator.partition(" ")
        file = self.folder / path
        with _opened(file) as stream:
            if _stat_text(file) != stat:
                message = f"{file} changed after the run was planned: the working tree is no version"
                raise DataError(message, hint="run the same command again, or name a commit in data.source.rev")
            yield DvcStream(stream, start)


def _stored_file(path: str, md5: str, text: bool, remote: str, storage: DvcStorage, skip: int) -> Path:
    """A file that has the bytes of an output, after ``skip`` others. Raises DataError, with the command that helps."""
    files = list(storage.files(md5, text=text, remote=remote))
    if files:
        return files[min(skip, len(files) - 1)]
    raise _missing(f"md5 {md5} of {path}", path, remote, storage)


def _folder_list(output: DvcOutput, storage: DvcStorage) -> bytes:
    """The list of the files of a folder, its digest checked. Raises DataError."""
    wrong = ""
    for file in storage.files(output.md5, text=output.text, remote=output.remote, suffix=".dir"):
        with _opened(file) as stream:
            content = stream.read(MAX_FOLDER + 1)
        if len(content) > MAX_FOLDER:
            message = f"the list of folder {output.path} has more than {MAX_FOLDER:,} bytes"
            raise DataError(message, hint="track its folders one by one: dvc add FOLDER/*")
        if hashlib.md5(content, usedforsecurity=False).hexdigest() == output.md5:
            return content
        wrong = f"the list of folder {output.path} in {file} has not the MD5 {output.md5} of {output.file}"
    if wrong:
        raise DataError(wrong, hint=f"dvc fetch {shell_word(output.path)} where a remote has it")
    raise _missing(f"md5 {output.md5}.dir of folder {output.path}", output.path, output.remote, storage)


def _missing(what: str, path: str, remote: str, storage: DvcStorage) -> DataError:
    message = f"{what} is {describe_places(storage, remote)}"
    first = next(storage.ordered(remote), None)
    if first is None:
        return DataError(message, hint="dvc remote add -d storage URL names a remote; then dvc fetch")
    if first.folder is None:
        message = f"{message}; remote {first.name} ({first.url}) is read by DVC"
        return DataError(message, hint=f"dvc fetch -r {shell_word(first.name)} --all-commits {shell_word(path)}")
    if not first.folder.is_dir():
        message = f"{message}: there is no folder {first.folder}"
        return DataError(message, hint=f"ls {shell_word(first.folder)} once the remote's disk is mounted")
    hint = f"dvc push -r {shell_word(first.name)} {shell_word(path)} where the file was made"
    return DataError(message, hint=hint)


def _files_below(root: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    """The files of a folder whose paths begin with a prefix. Raises DataError for too many."""
    top = root / prefix
    if top.is_file():
        yield prefix, top
    count = 0
    start = top if top.is_dir() else top.parent
    for folder, folders, names in os.walk(start):
        folders[:] = [name for name in folders if name not in (".git", ".dvc")]
        for name in names:
            file = Path(folder, name)
            path = file.relative_to(root).as_posix()
            if path.startswith(prefix) and not _is_of_dvc(path):
                yield path, file
                count += 1
        if count > MAX_FILES:
            message = f"{start} has more than {MAX_FILES:,} files"
            raise DataError(message, hint="begin data.source.path with the folder that holds the table's files")


def _add(files: dict[str, DvcOutput | GitBlob], output: DvcOutput, start: str, prefix: str) -> None:
    """Add an output. Raises DataError where another file says something else of the same path."""
    if not output.path.startswith(start + prefix):
        return
    name = output.path.removeprefix(start)
    other = files.get(name)
    if isinstance(other, DvcOutput) and other.md5 != output.md5:
        message = f"{output.path} has md5 {other.md5} in {other.file} and {output.md5} in {output.file}"
        raise DataError(message, hint=f"dvc remove one of {other.file} and {output.file}")
    files[name] = output


def _meet(folder: str, prefix: str) -> bool:
    """Whether a folder has paths that begin with a prefix."""
    return folder.startswith(prefix) or prefix.startswith(folder)


def _text_digest(file: Path) -> str:
    """The MD5 of DVC 1 and 2: of a text with CRLF as LF. What is a text is told from its first 512 bytes, as there."""
    digest = hashlib.md5(usedforsecurity=False)
    with _opened(file) as stream:
        head = stream.read(512)
        stream.seek(0)
        plain = bytes(range(32, 127)) + b"\n\r\t\f\b"
        strange = len(head.translate(None, plain))
        is_text = b"\0" not in head and (not head or strange / len(head) <= 0.30)
        pending = b""
        while chunk := stream.read(1 << 20):
            chunk, pending = pending + chunk, b""
            if is_text and chunk.endswith(b"\r"):
                chunk, pending = chunk[:-1], b"\r"
            digest.update(chunk.replace(b"\r\n", b"\n") if is_text else chunk)
        digest.update(pending)
    return digest.hexdigest()


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    try:
        stream = file.open("rb")
    except OSError as error:
        raise _unreadable(str(file), error) from None
    with stream:
        yield stream


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror}", hint=f"ls -l {shell_word(path)}")


def _stat_text(file: Path) -> str:
    try:
        stat = file.stat()
    except OSError as error:
        raise _unreadable(str(file), error) from None
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
