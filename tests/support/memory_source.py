"""A remote source whose store is in this process: for tests of what all kinds of sources share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from mlflowkit.data_access.object_patterns import select_objects
from mlflowkit.data_access.remote_source import FileTreeSource, RemoteAccess
from mlflowkit.data_access.transfer import ObjectOpener
from mlflowkit.values import DataObject, DataSnapshot


@dataclass
class MemoryStore:
    """Objects by name; ``opened`` are the (name, offset) of requests, and ``fault`` is called for each of them."""

    objects: dict[str, bytes] = field(default_factory=dict)
    version: str = "v1"
    opened: list[tuple[str, int]] = field(default_factory=list)
    fault: Callable[[str, int, bytes], Any] | None = None
    sent: int = 0
    algorithm: str = "sha256"


STORES: dict[str, MemoryStore] = {}


class MemoryStream:
    def __init__(self, content: bytes, start: int, error: Exception | None, store: MemoryStore) -> None:
        self._content, self.start, self._error, self._store = content, start, error, store

    def chunks(self, size: int) -> Iterator[bytes]:
        for index in range(0, len(self._content), size):
            piece = self._content[index : index + size]
            self._store.sent += len(piece)
            yield piece
        if self._error is not None:
            raise self._error


class MemorySource(FileTreeSource):
    """Objects of a store in this process."""

    location_keys: ClassVar[tuple[str, ...]] = ("store",)

    kind: Literal["memory"]
    store: str
    path: str = ""

    def place(self, access: RemoteAccess) -> str:
        return f"memory://{self.store}/{self.path}"

    def look_up(self, access: RemoteAccess) -> DataSnapshot:
        store = STORES[self.store]
        folder, selected = select_objects(store.objects, self.path, self.format)
        digests = {path: self._digest(store.objects[folder + path]) for path in selected}
        objects = tuple(
            DataObject(path, len(store.objects[folder + path]), digests[path], folder + path) for path in selected
        )
        return DataSnapshot("memory", f"memory://{self.store}/{folder}", "", store.version, objects)

    def _digest(self, content: bytes) -> str:
        algorithm = STORES[self.store].algorithm
        name = algorithm if algorithm in ("sha256", "md5") else "sha256"
        return f"{algorithm}:{hashlib.new(name, content).hexdigest()}"

    @contextmanager
    def open_objects(self, access: RemoteAccess, snapshot: DataSnapshot) -> Iterator[ObjectOpener]:
        store = STORES[self.store]

        @contextmanager
        def open_object(item: DataObject, start: int) -> Iterator[MemoryStream]:
            store.opened.append((item.path, start))
            content: bytes = store.objects[item.locator][start:]
            error: Exception | None = None
            if store.fault is not None:
                answer = store.fault(item.path, start, content)
                if isinstance(answer, tuple):
                    content, error = answer
                elif isinstance(answer, Exception):
                    raise answer
                else:
                    content = answer
            yield MemoryStream(content, start, error, store)

        yield open_object
