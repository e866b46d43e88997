"""The Hugging Face source: files of a dataset's repository on the Hub, at a commit.

A snapshot is whole or an error, since each file of the list is held against the Hub's SHA-256, or git's digest where
the Hub does not keep it apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar, Literal
from urllib.parse import quote

from pydantic import Field, field_validator, model_validator

from mlflowkit.data_access.connections import HeldSecrets, HuggingfaceConnection
from mlflowkit.data_access.head_probe import HeadProbe
from mlflowkit.data_access.http_store import HttpBody, open_store
from mlflowkit.data_access.hub_repository import COMMIT, HubRepository, own_token
from mlflowkit.data_access.object_patterns import ENDS, listed_prefix, select_objects
from mlflowkit.data_access.remote_source import FileTreeSource, RemoteAccess
from mlflowkit.data_access.transfer import ObjectOpener
from mlflowkit.errors import DataError, closest_match
from mlflowkit.values import DataObject, DataSnapshot


class HuggingfaceSource(FileTreeSource):
    """Files of a dataset on the Hugging Face Hub, at a commit."""

    location_keys: ClassVar[tuple[str, ...]] = ("connection", "dataset", "revision", "files")

    kind: Literal["huggingface"]
    connection: str | None = Field(default=None, min_length=1)
    """The connection (of kind huggingface) with the token of a private or gated dataset, or with another Hub's address.
    Without it the token is HF_TOKEN, or that of ``hf auth login``, and a public dataset needs none."""
    dataset: str = Field(pattern=r"^[\w][\w.-]{0,95}(?:/[\w][\w.-]{0,95})?$")
    """The dataset's repository, such as org/loans."""
    revision: str = Field(default="main", min_length=1, max_length=250)
    """A branch, a tag, a commit of 40 digits, or refs/convert/parquet: resolved to a commit when a run is planned."""
    files: str = Field(min_length=1)
    """A file, a folder or a glob, such as data/train-*.parquet."""
    format: Literal["csv", "parquet"] = "parquet"
    """The format of the files. Folders named KEY=VALUE below the path are columns."""

    @field_validator("revision")
    @classmethod
    def _names_one_commit(cls, value: str) -> str:
        if not re.fullmatch(r"[^\W_][\w./+-]*", value) or ".." in value or "//" in value:
            raise ValueError("expected a branch, a tag or a commit of 40 digits")
        return value

    @field_validator("files")
    @classmethod
    def _below_the_root(cls, value: str) -> str:
        if value.startswith("/") or "//" in value or {"..", "."} & set(value.split("/")) or "\0" in value:
            raise ValueError("expected files of the repository, such as data/train-*.parquet")
        return value

    @model_validator(mode="after")
    def _is_in_its_format(self) -> HuggingfaceSource:
        other = "csv" if self.format == "parquet" else "parquet"
        if self.files.endswith(ENDS[other]):
            raise ValueError(f"the files are {other}, and format is {self.format}: write format: {other}")
        return self

    @property
    def ref(self) -> str:
        """What the recipe asks for."""
        return self.revision

    def describe(self) -> str:
        return f"hf://datasets/{self.dataset}@{self.revision}/{self.files}"

    def is_pinned(self) -> bool:
        return COMMIT.fullmatch(self.revision) is not None

    def pin(self, version: str) -> str:
        return f"data.source.revision={version}"

    def place(self, access: RemoteAccess) -> str:
        return f"{self._connection(access).endpoint} hf://datasets/{self.dataset}/{self.files}"

    def look_up(self, access: RemoteAccess) -> DataSnapshot:
        memory, shown = self.memory_key(access), {"shown": self.describe()}
        if self.is_pinned() and (known := access.memory.version(memory, self.revision)) is not None:
            return replace(known, asked=self.revision, details={**known.details, **shown})
        with self._hub(access) as hub:
            version = hub.commit(self.revision)
            if (known := access.memory.version(memory, version)) is not None:
                return replace(known, asked=self.revision, details={**known.details, **shown})
            names = {item.path: item for item in hub.files(version, listed_prefix(self.files))}
        folder, selected = select_objects(names, self.files, self.format)
        if not selected:
            raise self._nothing(version, list(names))
        objects = tuple(replace(names[folder + path], path=path) for path in selected)
        return DataSnapshot(
            "huggingface", f"hf://datasets/{self.dataset}/{folder}", self.revision, version, objects, shown
        )

    @contextmanager
    def open_objects(self, access: RemoteAccess, snapshot: DataSnapshot) -> Iterator[ObjectOpener]:
        with self._hub(access) as hub:

            @contextmanager
            def open_object(item: DataObject, start: int) -> Iterator[HttpBody]:
                with hub.open(snapshot.version, item.locator, start) as body:
                    yield body

            yield open_object

    def head_probe(self, access: RemoteAccess, snapshot: DataSnapshot) -> HeadProbe | None:
        if self.is_pinned():
            return None
        connection = self._connection(access)
        token = connection.token or own_token(connection.endpoint)
        url = f"{connection.endpoint}/api/datasets/{self.dataset}/revision/{quote(self.revision, safe='')}"
        return HeadProbe(url, "sha", snapshot.version, bearer=token.model_dump() if token else None)

    @contextmanager
    def _hub(self, access: RemoteAccess) -> Iterator[HubRepository]:
        connection = self._connection(access)
        reference = connection.token or own_token(connection.endpoint)
        token = HeldSecrets.of(access.secrets, reference) if reference is not None else None
        seconds = access.limits.read_seconds
        key = "data.source.kind: huggingface"
        with open_store(connection.endpoint, token, seconds, extra="hub", key=key) as store:
            yield HubRepository(
                store, "datasets", self.dataset, self.revision, self.files, token is not None, self._name_a_token(),
                self._token_place(), "mlkit plan RECIPE data.source.revision={}",
            )  # fmt: skip

    def _connection(self, access: RemoteAccess) -> HuggingfaceConnection:
        if self.connection is None:
            return HuggingfaceConnection(kind="huggingface")
        return access.connection(self.connection, HuggingfaceConnection)

    def _nothing(self, version: str, names: list[str]) -> DataError:
        message = f"there is no {self.format} file {self.files} in {self.dataset} at {self.revision} ({version[:8]})"
        near = closest_match(self.files, names)
        if near:
            return DataError(message, hint=f"did you mean {near}?")
        folder = self.files.rstrip("/")
        return DataError(message, hint=f"for files in its folders: files: {folder}/**/*.{self.format}")

    def _name_a_token(self) -> str:
        name = self.connection or "hub"
        written = "" if self.connection else f", and data.source.connection: {name}"
        return f"name a token: connections: {{{name}: {{kind: huggingface, token: {{env: HF_TOKEN}}}}}}{written}"

    def _token_place(self) -> str:
        if self.connection is None:
            return "hf auth whoami tells whose token it is: that of HF_TOKEN, or of hf auth login"
        return f"mlkit explain RECIPE connections.{self.connection} shows where the token is kept"
