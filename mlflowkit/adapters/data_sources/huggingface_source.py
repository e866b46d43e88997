"""The Hugging Face source: files of a dataset's repository on the Hub, at a commit.

Plain HTTP, and not huggingface_hub: that retries by itself past any deadline, and has returned folders that lack files
as whole ones. A snapshot here is whole or an error, since each file of the list is held against the Hub's SHA-256, or
git's digest where the Hub does not keep it apart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from pydantic import Field, field_validator, model_validator

from mlflowkit.data_access.connections import CredentialReference, HuggingfaceConnection
from mlflowkit.data_access.head_probe import HeadProbe
from mlflowkit.data_access.http_store import HttpBody, HttpRefusal, HttpStore, open_store
from mlflowkit.data_access.object_patterns import ENDS, listed_prefix, select_objects
from mlflowkit.data_access.remote_source import FileTreeSource, RemoteAccess
from mlflowkit.data_access.transfer import ObjectOpener, TransientError
from mlflowkit.errors import DataError, closest_match
from mlflowkit.values import DataObject, DataSnapshot

HUB = "https://huggingface.co"
COMMIT = re.compile(r"[0-9a-f]{40}")
MAX_OBJECTS = 200_000


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
    def _hub(self, access: RemoteAccess) -> Iterator[DatasetHub]:
        connection = self._connection(access)
        reference = connection.token or own_token(connection.endpoint)
        token = access.secrets.read(reference) if reference is not None else ""
        seconds = access.limits.read_seconds
        key = "data.source.kind: huggingface"
        with open_store(connection.endpoint, token, seconds, extra="hub", key=key) as store:
            yield DatasetHub(store, self, bool(token))

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


def own_token(endpoint: str) -> CredentialReference | None:
    """Where Hugging Face's own tools keep the token of this user, for their Hub only; None for nowhere."""
    if endpoint != HUB:
        return None
    if os.environ.get("HF_TOKEN", "").strip():
        return CredentialReference(env="HF_TOKEN")
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    return CredentialReference(file=str(file.absolute())) if file.is_file() else None


@dataclass(frozen=True, slots=True)
class DatasetHub:
    """The requests that a source makes."""

    store: HttpStore
    source: HuggingfaceSource
    has_token: bool

    def commit(self, revision: str) -> str:
        """The commit that a revision stands for. Raises DataError."""
        answer, _ = self.store.json(self._api("revision", revision), self._refusal)
        commit = answer.get("sha") if isinstance(answer, dict) else None
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise self._strange("the answer has no commit")
        if COMMIT.fullmatch(revision) and commit != revision:
            raise self._strange(f"the server answered {commit} for commit {revision}")
        return commit

    def files(self, commit: str, prefix: str) -> Iterator[DataObject]:
        """The files of a commit in the folder of ``prefix``, and below it. Raises DataError for a list that is none."""
        folder = prefix[: prefix.rfind("/")] if "/" in prefix else ""
        url = self._api("tree", commit, *(folder.split("/") if folder else ()))
        url, pages = f"{url}?recursive=true&expand=false", set[str]()
        seen: set[str] = set()
        while url:
            if url in pages:
                raise self._strange("its list of files leads back to a page")
            pages.add(url)
            entries, headers = self.store.json(url, self._refusal)
            if not isinstance(entries, list):
                raise self._strange("its list of files is none")
            for entry in entries:
                item = self._file(entry)
                if item is None:
                    continue
                if item.path in seen:
                    raise self._strange(f"its list of files has {item.path!r} twice")
                seen.add(item.path)
                yield item
            if len(seen) > MAX_OBJECTS:
                message = f"{self._where()}: more than {MAX_OBJECTS:,} files begin with {prefix!r}"
                raise DataError(message, hint="begin data.source.files with the folder that holds the table's files")
            following = re.search(r'<([^<>]+)>;\s*rel="next"', headers.get("link", ""))
            url = following[1] if following else ""

    @contextmanager
    def open(self, commit: str, path: str, start: int) -> Iterator[HttpBody]:
        """The bytes of a file from an offset. Raises DataError and TransientError."""
        place = "/".join(quote(part, safe="") for part in path.split("/"))
        url = f"{self.store.origin}/datasets/{self.source.dataset}/resolve/{commit}/{place}"
        with self.store.open(url, start, lambda refusal: self._refusal(refusal, path)) as body:
            answered = body.headers.get("x-repo-commit", commit)
            if answered != commit:
                raise self._strange(f"it answered with {path} of commit {answered}, not of {commit}")
            yield body

    def _api(self, *parts: str) -> str:
        path = "/".join(quote(part, safe="") for part in parts)
        return f"{self.store.origin}/api/datasets/{self.source.dataset}/{path}"

    def _file(self, entry: Any) -> DataObject | None:
        """A file of a list; None for a folder."""
        try:
            if entry["type"] != "file":
                return None
            path, lfs = str(entry["path"]), entry.get("lfs")
            size = int(lfs["size"] if lfs else entry["size"])
            digest = f"sha256:{lfs['oid']}" if lfs else f"git-sha1:{entry['oid']}"
        except (LookupError, TypeError, ValueError, AttributeError):
            raise self._strange("an entry of its list of files lacks path, size or oid") from None
        if not re.fullmatch(r"sha256:[0-9a-f]{64}|git-sha1:[0-9a-f]{40}", digest):
            raise self._strange(f"{path!r} has the digest {digest[:80]!r}")
        return DataObject(path, size, digest, path)

    def _refusal(self, refusal: HttpRefusal, path: str = "") -> Exception:
        code, words = refusal.headers.get("x-error-code", ""), f"{refusal.status}: {refusal.words}"
        where = f"{self._where()}{f'/{path}' if path else ''}"
        page = f"{self.store.origin}/datasets/{self.source.dataset}"
        if code == "GatedRepo":  # before the others: its statuses are theirs
            token = "with the account of the token" if self.has_token else f"then {self._name_a_token()}"
            return DataError(f"{where} is gated ({words})", hint=f"accept its terms on {page}, {token}")
        if code == "RevisionNotFound":
            return self._no_revision(words)
        if code == "EntryNotFound":
            message = f"{where} has no {path or self.source.files} at {self.source.revision} ({words})"
            return DataError(message, hint=f"{page}/tree/{self.source.revision} shows what there is")
        if refusal.status in (401, 403) and self.has_token and code != "RepoNotFound":
            refused = "does not know the token" if refusal.status == 401 else "does not allow the token to read"
            return DataError(f"{self.store.origin} {refused} ({words})", hint=self._token_place())
        if code == "RepoNotFound" or refusal.status in (401, 403, 404):
            reason = "or the token may not see it" if self.has_token else "or it is private and there is no token"
            hint = (
                self._token_place()
                if self.has_token
                else f"{page} shows a public one; for a private one {self._name_a_token()}"
            )
            return DataError(f"{where}: there is no such dataset, {reason} ({words})", hint=hint)
        return DataError(f"{where}: the server answered {words}", hint="mlkit explain RECIPE data.source")

    def _no_revision(self, words: str) -> DataError:
        """The error for a revision that is not there, with the nearest that is."""
        message = f"{self._where()} has no branch, tag or commit {self.source.revision!r} ({words})"
        try:
            answer, _ = self.store.json(self._api("refs"), lambda refusal: DataError(refusal.words))
            groups = [answer.get(group) or [] for group in ("branches", "tags")]
            names = [str(item["name"]) for group in groups for item in group]
        except (DataError, TransientError, LookupError, TypeError, AttributeError):
            names = []
        near = closest_match(self.source.revision, names) or (names[0] if names else "main")
        return DataError(message, hint=f"mlkit plan RECIPE data.source.revision={near}")

    def _name_a_token(self) -> str:
        name = self.source.connection or "hub"
        written = "" if self.source.connection else f", and data.source.connection: {name}"
        return f"name a token: connections: {{{name}: {{kind: huggingface, token: {{env: HF_TOKEN}}}}}}{written}"

    def _token_place(self) -> str:
        if self.source.connection is None:
            return "hf auth whoami tells whose token it is: that of HF_TOKEN, or of hf auth login"
        return f"mlkit explain RECIPE connections.{self.source.connection} shows where the token is kept"

    def _strange(self, reason: str) -> DataError:
        message = f"{self._where()}: {reason}"
        return DataError(message, hint="is connections' endpoint a Hugging Face Hub? else run the same command again")

    def _where(self) -> str:
        return f"hf://datasets/{self.source.dataset}"
