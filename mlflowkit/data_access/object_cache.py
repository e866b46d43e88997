"""The objects of remote sources on this machine, by SHA-256 of their content.

Layout, below ``STATE/sources``::

    objects/<sha256><suffix>   a complete object; the suffix is that of its path (.csv.gz, .parquet)
    parts/<identity>.part      what has been received of an object; locked by who receives it
    fetches/<digest>.json      the objects that the fetch of a version used (`cached_files`)
    known/<identity>.json      the SHA-256 that an object turned out to have, by where it is and its store's digest
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mlflowkit.system.digests import digest_file, digest_json
from mlflowkit.system.files import FILE_MODE, disk_errors, make_folder, replace_file
from mlflowkit.values import DataObject

FOLDER = "sources"
_SUFFIX = re.compile(r"(?:\.[a-z0-9]{1,8}){1,2}$")


@dataclass(frozen=True, slots=True)
class ObjectCache:
    """The objects of one state folder. Safe between threads and processes."""

    folder: Path

    @classmethod
    def of(cls, state: Path) -> ObjectCache:
        return cls(state / FOLDER)

    def identity(self, uri: str, item: DataObject) -> str:
        """A digest of where an object is and of what its store says of its content."""
        return digest_json([uri, item.path, item.size, item.digest])

    def known_digest(self, identity: str) -> str:
        """The SHA-256 that this machine once computed of an object, or ""."""
        try:
            value = json.loads((self.folder / "known" / f"{identity}.json").read_bytes())
            digest = str(value["sha256"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return ""
        return digest if re.fullmatch(r"[0-9a-f]{64}", digest) else ""

    def find(self, uri: str, item: DataObject, *, sized: bool = True) -> Path | None:
        """The file of an object whose content has the digest that was computed once; a damaged one is removed.

        ``sized`` is whether the size of the object is known: that of a query's rows is not.
        """
        digest = self.known_digest(self.identity(uri, item))
        if not digest:
            return None
        path = self._object(digest, item.path)
        try:
            if (path.stat().st_size == item.size or not sized) and digest_file(path) == digest:
                return path
            path.unlink(missing_ok=True)
        except OSError:
            return None
        return None

    @contextmanager
    def part(self, identity: str) -> Iterator[BinaryIO | None]:
        """The open, locked file with what has been received of an object; None while another process has it."""
        folder = make_folder(self.folder / "parts")
        path = folder / f"{identity}.part"
        with disk_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        with open(descriptor, "r+b") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            yield stream if _is_at(descriptor, path) else None

    def publish(self, identity: str, item: DataObject, sha256: str, part: BinaryIO) -> Path:
        """Make a complete, checked part an object. Raises StoreError.

        It is not synced: what a power failure leaves has another digest, which `find` notices.
        """
        path = self._object(sha256, item.path)
        with disk_errors(path):
            part.flush()
            make_folder(path.parent)
            os.replace(self.folder / "parts" / f"{identity}.part", path)
        entry = {"sha256": sha256, "size": item.size, "path": item.path, "digest": item.digest}
        replace_file(self.folder / "known" / f"{identity}.json", json.dumps(entry).encode(), durable=False)
        return path

    def add(self, uri: str, item: DataObject, content: bytes) -> Path:
        """Make bytes an object, such as what a store tells of its files. Raises StoreError."""
        digest = hashlib.sha256(content).hexdigest()
        path = self._object(digest, item.path)
        replace_file(path, content)
        entry = {"sha256": digest, "size": len(content), "path": item.path, "digest": item.digest}
        known = self.folder / "known" / f"{self.identity(uri, item)}.json"
        replace_file(known, json.dumps(entry).encode(), durable=False)
        return path

    def _object(self, digest: str, path: str) -> Path:
        suffix = _SUFFIX.search(PurePosixPath(path).name.lower())
        return self.folder / "objects" / f"{digest}{suffix[0] if suffix else ''}"


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has its name: another process may have published it before we had the lock."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
