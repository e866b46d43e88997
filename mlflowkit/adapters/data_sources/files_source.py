"""The files source: objects in a store with the S3 protocol, or a file of a web server, read as they were planned."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from mlflowkit.adapters.data_sources.s3_store import S3Store
from mlflowkit.data_access.connections import S3Connection
from mlflowkit.data_access.http_store import HttpBody, HttpRefusal, HttpStore, open_store
from mlflowkit.data_access.object_patterns import listed_prefix, select_objects
from mlflowkit.data_access.remote_source import FileTreeSource, RemoteAccess
from mlflowkit.data_access.transfer import ObjectOpener
from mlflowkit.errors import DataError
from mlflowkit.values import DataObject, DataSnapshot


class FilesSource(FileTreeSource):
    """Files by URL: objects of a store with the S3 protocol, or one file of a web server."""

    location_keys: ClassVar[tuple[str, ...]] = ("connection", "url", "pinned_by", "checksums")

    kind: Literal["files"]
    url: str = Field(min_length=1)
    """``s3://bucket/loans/`` (an object, a folder or a glob), or ``https://...`` (one file)."""
    connection: str | None = Field(default=None, min_length=1)
    """The connection (of kind s3) by which a store is reached. Without it: Amazon's, with the AWS SDK's credentials."""
    pinned_by: Literal["etag", "versions"] = "etag"
    """What holds an object to what was planned: its ETag (an object that is replaced meanwhile is an error), or in a
    bucket with versioning its version (the planned one is read)."""
    checksums: Literal["md5", "opaque"] = "md5"
    """What ETags of 32 digits are. A store that encrypts with keys of its own (SSE-KMS) has opaque ones: objects are
    then held against their first download only."""

    @field_validator("url")
    @classmethod
    def _is_read(cls, value: str) -> str:
        scheme, _, rest = value.partition("://")
        host, _, path = rest.partition("/")
        if scheme == "gs":
            raise ValueError("write s3:// and a connection with endpoint: https://storage.googleapis.com and HMAC keys")
        if scheme not in ("s3", "http", "https") or not host or "\0" in value or "#" in value:
            raise ValueError("expected a URL such as s3://bucket/loans/ or https://host/loans.csv")
        if scheme != "s3" and ("?" in value or not path or value.endswith("/")):
            raise ValueError("expected the URL of one file, without a query: a signed URL is a secret")
        if {"..", "."} & set(path.split("/")) or "//" in path:
            raise ValueError("expected a URL without .. and without //")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> FilesSource:
        if not self._is_s3 and (self.connection or self.pinned_by == "versions"):
            raise ValueError("connection and pinned_by: versions go with s3:// only")
        return self

    @property
    def _is_s3(self) -> bool:
        return self.url.startswith("s3://")

    def describe(self) -> str:
        return self.url

    def place(self, access: RemoteAccess) -> str:
        endpoint = self._connection(access).endpoint if self._is_s3 else ""
        return f"{endpoint} {self.url}" if endpoint else self.url

    def memory_key(self, access: RemoteAccess) -> str:
        return f"{super().memory_key(access)} {self.pinned_by} {self.checksums}"

    def look_up(self, access: RemoteAccess) -> DataSnapshot:
        if not self._is_s3:
            return self._one_file(access)
        bucket, _, path = self.url.removeprefix("s3://").partition("/")
        store = self._store(access)
        names = {item.path: item for item in store.objects(listed_prefix(path), self.pinned_by)}
        folder, selected = select_objects(names, path, self.format)
        if not selected:
            message = f"there is no {self.format} file at {self.url}, among {len(names):,} objects"
            glob = f"{self.url.rstrip('/')}/**/*.{self.format}"
            raise DataError(message, hint=f"for files in its folders: url: {glob}")
        objects = tuple(replace(names[folder + item], path=item) for item in selected)
        version = ""
        if self.pinned_by == "versions":
            locators = "\n".join(sorted(item.locator for item in objects))
            version = hashlib.sha256(locators.encode()).hexdigest()
        return DataSnapshot("files", f"s3://{bucket}/{folder}", "", version, objects, {"shown": self.url})

    @contextmanager
    def open_objects(self, access: RemoteAccess, snapshot: DataSnapshot) -> Iterator[ObjectOpener]:
        if self._is_s3:
            yield self._store(access).open
            return
        with self._web(access) as store:

            @contextmanager
            def open_object(item: DataObject, start: int) -> Iterator[HttpBody]:
                tag = item.locator
                headers = {"If-Match": tag} if tag.startswith('"') else {}
                with store.open(self.url, start, self._refusal, **headers) as body:
                    if _tag(body) != tag:
                        raise self._replaced(f"it was {tag}, and is {_tag(body)}")
                    yield body

            yield open_object

    def _one_file(self, access: RemoteAccess) -> DataSnapshot:
        with self._web(access) as store, store.open(self.url, 0, self._refusal) as body:
            tag, size = _tag(body), body.headers.get("content-length", "")
        if not tag or not size.isdigit():
            lacking = "neither an ETag nor Last-Modified" if not tag else "no Content-Length"
            message = f"{self.url}: the server says {lacking}: what is read could not be held to what was planned"
            raise DataError(message, hint="download the file, and name it in a source of kind csv or parquet")
        folder, _, name = self.url.rpartition("/")
        item = DataObject(name, int(size), f"etag:{tag}", tag)
        return DataSnapshot("files", f"{folder}/", "", "", (item,), {"shown": self.url})

    def _refusal(self, refusal: HttpRefusal) -> Exception:
        words = f"{refusal.status}: {refusal.words}"
        if refusal.status == 412:
            return self._replaced(words)
        return DataError(f"{self.url}: the server answered {words}", hint="mlkit explain RECIPE data.source.url")

    def _replaced(self, words: str) -> DataError:
        message = f"{self.url} was replaced after the run was planned ({words})"
        return DataError(message, hint="run the same command again to read the new one")

    @contextmanager
    def _web(self, access: RemoteAccess) -> Iterator[HttpStore]:
        parts = urlsplit(self.url)
        seconds = access.limits.read_seconds
        origin = f"{parts.scheme}://{parts.netloc}"
        with open_store(origin, None, seconds, extra="hub", key="data.source.url: https://") as store:
            yield store

    def _connection(self, access: RemoteAccess) -> S3Connection:
        if self.connection is None:
            return S3Connection(kind="s3")
        return access.connection(self.connection, S3Connection)

    def _store(self, access: RemoteAccess) -> S3Store:
        bucket = self.url.removeprefix("s3://").partition("/")[0]
        return S3Store(bucket, self._connection(access), access, self.checksums == "md5")


def _tag(body: HttpBody) -> str:
    """What tells one content of a URL from another: its ETag, else its time."""
    return body.headers.get("etag") or body.headers.get("last-modified", "")
