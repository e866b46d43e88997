"""What this machine knows of remote sources: the objects of a version, and the version that a name stood for last."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mlflowkit.system.digests import digest_json
from mlflowkit.system.files import replace_file
from mlflowkit.values import DataSnapshot, Json


@dataclass(frozen=True, slots=True)
class SnapshotMemory:
    """Snapshots in a folder. ``place`` is where the data is: the address of its store and the snapshot's URI."""

    folder: Path

    def version(self, place: str, version: str) -> DataSnapshot | None:
        """The objects of a version, which never change."""
        return self._read("versions", [place, version]) if version else None

    def latest(self, place: str, asked: str) -> DataSnapshot | None:
        """What a branch, tag or time was resolved to last."""
        return self._read("asked", [place, asked])

    def remember(self, place: str, snapshot: DataSnapshot) -> None:
        """Keep a snapshot. Raises StoreError."""
        content = json.dumps(snapshot.to_json(), separators=(",", ":"), ensure_ascii=False).encode()
        keys: list[tuple[str, Json]] = [("asked", [place, snapshot.asked])]
        keys += [("versions", [place, snapshot.version])] if snapshot.version else []
        for kind, key in keys:
            path = self._path(kind, key)
            if not path.is_file() or path.read_bytes() != content:
                replace_file(path, content, durable=False)

    def _read(self, kind: str, key: Json) -> DataSnapshot | None:
        try:
            return DataSnapshot.from_json(json.loads(self._path(kind, key).read_bytes()))
        except (OSError, ValueError, LookupError, TypeError, RecursionError):  # none, or damaged: asked for again
            return None

    def _path(self, kind: str, key: Json) -> Path:
        return self.folder / kind / f"{digest_json(key)}.json"
