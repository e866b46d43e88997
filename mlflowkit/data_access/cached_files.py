"""What a state folder keeps of remote sources, file by file: which versions of the data need it, and when it was used.

A fetch leaves a record of what it used (``fetches/``): a store may lose a version that a run read. Beside it are the
objects, parts of unfinished transfers, and the lists of objects of versions; see `object_cache`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mlflowkit.data_access.object_cache import FOLDER, ObjectCache
from mlflowkit.system.digests import digest_json
from mlflowkit.system.files import replace_file
from mlflowkit.values import DataSnapshot

DataVersion = tuple[str, str]
"""The URI of a source and the version that was read, "" for a store that has none: of a run's `Lineage`."""
_FOLDERS = ("objects", "parts", "fetches", "snapshots/versions")


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A file below ``STATE/sources``: its size, its last use, and the versions of data that it belongs to."""

    name: str
    bytes: int
    used: float
    versions: frozenset[DataVersion] = frozenset()


def remember_fetch(state: Path, snapshot: DataSnapshot, files: Iterable[Path]) -> None:
    """Record that a fetch of a version used these files. Raises StoreError."""
    names = sorted(file.name for file in files)
    record = {"uri": snapshot.uri, "version": snapshot.version, "objects": names}
    path = state / FOLDER / "fetches" / f"{digest_json([snapshot.uri, snapshot.version, snapshot.tree])}.json"
    replace_file(path, json.dumps(record).encode(), durable=False)


def cached_files(state: Path) -> dict[str, CachedFile]:
    """The files by name. Of a store without versions, only the last fetch from a URI says what is needed of it."""
    folder = state / FOLDER
    files = {file.name: file for file in _files(folder)}
    read = _RecordReader(folder, files)
    records = [(file, *read(file.name)) for file in files.values() if file.name.endswith(".json")]
    last = {version[0]: file.name for file, version, _ in sorted(records, key=lambda entry: entry[0].used)}
    for record, version, objects in records:
        needed = frozenset({version}) if version[1] or last[version[0]] == record.name else frozenset()
        for name in (record.name, *objects):
            if (file := files.get(name)) is not None:
                files[name] = replace(file, used=max(file.used, record.used), versions=file.versions | needed)
    return files


def remove_cached(state: Path, names: Collection[str]) -> None:
    """Remove files, and what is known of objects that are gone."""
    folder = state / FOLDER
    for name in names:
        (folder / name).unlink(missing_ok=True)
    present = {file.name.split("/")[1].partition(".")[0] for file in _files(folder) if file.name.startswith("objects/")}
    for path in (folder / "known").glob("*.json") if names else ():
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if json.loads(path.read_bytes())["sha256"] not in present:
                path.unlink()


def _files(folder: Path) -> Iterator[CachedFile]:
    """The files of the folders; a link is none, and leads nowhere."""
    for name in _FOLDERS:
        parent = folder / name
        if any(path.is_symlink() for path in (folder, parent.parent, parent)) or not parent.is_dir():
            continue
        for path in sorted(parent.iterdir()):
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                yield CachedFile(f"{name}/{path.name}", status.st_size, status.st_mtime)


class _RecordReader:
    """Reads what a record of a fetch, or the list of objects of a version, tells: the version, and names of objects."""

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        self.cache = ObjectCache(folder)
        self.objects: dict[str, list[str]] = {}
        for name in files:
            if not name.startswith("objects/"):
                continue
            self.objects.setdefault(name.rpartition("/")[2].partition(".")[0], []).append(name)

    def __call__(self, name: str) -> tuple[DataVersion, tuple[str, ...]]:
        """Nothing for a damaged file."""
        try:
            value = json.loads((self.cache.folder / name).read_bytes())
            version = (str(value["uri"]), str(value["version"]))
            if name.startswith("fetches/"):
                return version, tuple(f"objects/{file}" for file in value["objects"])
            snapshot = DataSnapshot.from_json(value)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return ("", ""), ()
        identities = (self.cache.identity(snapshot.uri, item) for item in snapshot.objects)
        digests = (self.cache.known_digest(identity) for identity in identities)
        return version, tuple(name for digest in digests for name in self.objects.get(digest, ()))
