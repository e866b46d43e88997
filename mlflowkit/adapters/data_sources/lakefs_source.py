"""The lakeFS source: files at a commit of a repository.

A branch is not a version, even at one instant: reading by its name sees staged, uncommitted objects first. So a
reference is resolved once to a 64-hex commit, and everything is read by that. Answers are always streamed
(``_preload_content=False``): `lakefs_client` 1.44 writes whole objects under a name of the server's choice to the
temporary folder, and fails on the header that servers send from 1.66 on.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from pydantic import Field, field_validator

from mlflowkit.adapters.data_sources.lakectl import config_file, lakectl_credentials
from mlflowkit.adapters.data_sources.lakefs_answers import BoundedPool
from mlflowkit.data_access.connections import HeldSecrets, LakefsConnection, OpenSecrets
from mlflowkit.data_access.head_probe import HeadProbe
from mlflowkit.data_access.object_patterns import listed_prefix, select_objects
from mlflowkit.data_access.remote_source import FileTreeSource, RemoteAccess
from mlflowkit.data_access.transfer import ObjectOpener, TransientError
from mlflowkit.errors import DataError, UsageError, closest_match
from mlflowkit.system.extras import require_extra
from mlflowkit.system.text import first_line
from mlflowkit.values import DataObject, DataSnapshot, Json

PAGE = 1000
"""Objects in one answer; the server allows no more."""
MAX_OBJECTS = 200_000
MAX_ANSWER = 64 << 20
"""Bytes of an answer in JSON."""
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 8.0
SHORTEST_PREFIX = 12
"""Hexadecimal digits of a commit that a recipe may name it by."""
COMMIT = re.compile(r"[0-9a-f]{64}")
LASTING = (400, 401, 403, 404, 410, 412, 416)
"""Statuses that another attempt does not change."""


class LakefsSource(FileTreeSource):
    """Files in a lakeFS repository, at a commit."""

    location_keys: ClassVar[tuple[str, ...]] = ("connection", "repository", "ref", "path", "checksums")

    kind: Literal["lakefs"]
    connection: str = Field(min_length=1)
    """The connection (of kind lakefs) by which it is reached."""
    repository: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{2,62}$")
    """The repository."""
    ref: str = Field(default="main", min_length=1, max_length=1024)
    """A branch, a tag, or a commit (all 64 digits, or 12 and more): `main~2` is two commits before. Resolved to a
    commit when a run is planned, which reads from that commit alone."""
    path: str = ""
    """A file, a folder (every file of the format in it and in its KEY=VALUE folders) or a glob; all by default."""
    checksums: Literal["md5", "opaque"] = "md5"
    """What the server's checksums of 32 digits are. A store that encrypts with keys of its own (SSE-KMS) has opaque
    ones: objects are then held against their first download only."""

    @field_validator("ref")
    @classmethod
    def _names_commits(cls, value: str) -> str:
        if "$" in value:
            raise ValueError("$ would read what is staged and not committed; name the branch alone")
        if re.search(r"[\s/?*:\[\]\\\x00-\x1f]", value) or ".." in value:
            raise ValueError("expected a branch, a tag, or a commit such as 3f2a9c41d07e")
        if re.fullmatch(r"[0-9a-f]{4,11}", value) and re.search(r"[0-9]", value):
            raise ValueError(f"name a commit by {SHORTEST_PREFIX} digits at least: a shorter text may be a branch too")
        return value

    @field_validator("path")
    @classmethod
    def _below_the_root(cls, value: str) -> str:
        if value.startswith("/") or "//" in value or {"..", "."} & set(value.split("/")) or "\x00" in value:
            raise ValueError("expected a path below the repository's root, such as loans/")
        return value

    def describe(self) -> str:
        return f"lakefs://{self.repository}/{self.ref}/{self.path}"

    def is_pinned(self) -> bool:
        return COMMIT.fullmatch(self.ref) is not None

    def pin(self, version: str) -> str:
        return f"data.source.ref={version}"

    def place(self, access: RemoteAccess) -> str:
        connection = access.connection(self.connection, LakefsConnection)
        return f"{connection.url} lakefs://{self.repository}/{self.path}"

    def memory_key(self, access: RemoteAccess) -> str:
        return f"{super().memory_key(access)} {self.checksums}"

    def look_up(self, access: RemoteAccess) -> DataSnapshot:
        place = self.memory_key(access)
        if self.is_pinned() and (known := access.memory.version(place, self.ref)) is not None:
            return replace(known, asked=self.ref, details={**known.details, "shown": self.describe()})
        with _server(self, access) as server:
            commit = server.commit(self.ref)
            version = str(commit["id"])
            details = {**_details(commit), "shown": self.describe(), **self._credentials_shown(access)}
            known = access.memory.version(place, version)
            if known is not None:
                return replace(known, asked=self.ref, details=details)
            names = {item.path: item for item in server.objects(version, listed_prefix(self.path))}
        folder, selected = select_objects(names, self.path, self.format)
        if not selected:
            raise self._nothing(version, names)
        objects = tuple(replace(names[folder + path], path=path) for path in selected)
        return DataSnapshot("lakefs", f"lakefs://{self.repository}/{folder}", self.ref, version, objects, details)

    @contextmanager
    def open_objects(self, access: RemoteAccess, snapshot: DataSnapshot) -> Iterator[ObjectOpener]:
        with _server(self, access) as server:

            @contextmanager
            def open_object(item: DataObject, start: int) -> Iterator[LakefsStream]:
                stream = server.open(snapshot.version, item.locator, start)
                try:
                    yield stream
                finally:
                    stream.close()

            yield open_object

    def head_probe(self, access: RemoteAccess, snapshot: DataSnapshot) -> HeadProbe | None:
        if self.is_pinned():
            return None
        connection = access.connection(self.connection, LakefsConnection)
        if connection.access_key is None or connection.secret is None:
            return None  # a probe reads variables and files of secrets, and not lakectl's
        return HeadProbe(
            url=f"{connection.url}/api/v1/repositories/{self.repository}/commits/{quote(self.ref, safe='')}",
            field="id",
            value=snapshot.version,
            user=connection.access_key.model_dump(),
            password=connection.secret.model_dump(),
        )

    def _credentials_shown(self, access: RemoteAccess) -> dict[str, str]:
        named = access.connection(self.connection, LakefsConnection).access_key is not None
        return {} if named else {"credentials": f"credentials of lakectl ({config_file()})"}

    def _nothing(self, version: str, names: dict[str, DataObject]) -> DataError:
        where = f"lakefs://{self.repository}/{self.ref}/{self.path} (commit {version[:12]})"
        if names:
            message = f"there is no {self.format} file at {where}, among {len(names):,} objects below it"
            return DataError(
                message, hint=f"for files in its folders: path: {self.path.rstrip('/')}/**/*.{self.format}"
            )
        return DataError(
            f"there is no object at {where}", hint="mlkit explain RECIPE data.source.path shows what set it"
        )


def _details(commit: dict[str, Json]) -> dict[str, str]:
    message = str(commit.get("message", "")).partition("\n")[0]
    return {"author": str(commit["committer"]), "time": str(commit["creation_date"]), "message": message[:200]}


class LakefsStream:
    """The body of an answer."""

    def __init__(self, response: Any, start: int) -> None:
        self._response, self.start = response, start

    def chunks(self, size: int) -> Iterator[bytes]:
        """The bytes, as they are sent. Raises TransientError."""
        import urllib3

        try:
            yield from self._response.stream(size, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TransientError(f"the body was cut: {first_line(error)}") from None

    def close(self) -> None:
        self._response.close()


@contextmanager
def _server(source: LakefsSource, access: RemoteAccess) -> Iterator[LakefsServer]:
    """A client of the source's server. Raises UsageError where lakefs-client is not installed."""
    require_extra("lakefs_client", "lakefs", "data.source.kind: lakefs")
    import lakefs_client

    connection = access.connection(source.connection, LakefsConnection)
    secrets = HeldSecrets(lambda: read_credentials(connection, access.secrets))
    used = _UsedSecrets()
    configuration = lakefs_client.Configuration(host=f"{connection.url}/api/v1", username="", password="")
    configuration.get_basic_auth_token = used.authorization  # asked for within each call, by its thread
    configuration.retries = False  # the transfer's own: the client's heed no deadline, and no 429 without Retry-After
    configuration.connection_pool_maxsize = access.limits.streams
    with lakefs_client.ApiClient(configuration) as client:
        client.rest_client.pool_manager = BoundedPool(client.rest_client.pool_manager, ANSWER_SECONDS)
        yield LakefsServer(client, source, secrets, used, access.limits.read_seconds)


def read_credentials(connection: LakefsConnection, secrets: OpenSecrets) -> tuple[str, str]:
    """The key and the secret of a connection, or those of lakectl. Raises DataError."""
    if connection.access_key is not None and connection.secret is not None:
        return secrets.read(connection.access_key), secrets.read(connection.secret)
    pair = lakectl_credentials(connection.url)
    secrets.add(*pair)
    return pair


class _UsedSecrets(threading.local):
    """The key and secret of the call that a thread makes."""

    values: tuple[str, ...] = ()

    def authorization(self) -> str:
        import urllib3

        return str(urllib3.make_headers(basic_auth=":".join(self.values))["authorization"])


@dataclass(frozen=True, slots=True)
class LakefsServer:
    """The requests that a source makes. Credentials that the server does not know (401) are read again once."""

    client: Any
    source: LakefsSource
    secrets: HeldSecrets
    used: _UsedSecrets
    read_seconds: float

    def commit(self, reference: str) -> dict[str, Json]:
        """The commit that a reference stands for. Raises DataError."""
        from lakefs_client.api.commits_api import CommitsApi

        call = CommitsApi(self.client).get_commit
        commit = self._json(call, self.source.repository, reference)
        identity = commit.get("id")
        fields = {"committer", "creation_date", "message"} <= set(commit)
        if not isinstance(identity, str) or not COMMIT.fullmatch(identity) or not fields:
            raise DataError(
                f"{self._where(reference)}: the server's answer is no commit", hint="is url a lakeFS server?"
            )
        if COMMIT.fullmatch(reference) and identity != reference:
            raise DataError(f"the server answered {identity} for commit {reference}", hint="is url a lakeFS server?")
        if (
            re.fullmatch(r"[0-9a-f]+", reference)
            and len(reference) < SHORTEST_PREFIX
            and identity.startswith(reference)
        ):
            message = f"{reference} is the beginning of commit {identity[:SHORTEST_PREFIX]}, and may be a branch too"
            raise DataError(message, hint=f"mlkit plan RECIPE data.source.ref={identity}")
        return commit

    def objects(self, commit: str, prefix: str) -> Iterator[DataObject]:
        """The objects of a commit whose names begin with ``prefix``. Raises DataError for a list that is not one."""
        from lakefs_client.api.objects_api import ObjectsApi

        call = ObjectsApi(self.client).list_objects
        after, count = "", 0
        while True:
            page = self._json(call, self.source.repository, commit, prefix=prefix, amount=PAGE, after=after)
            results, pagination = page.get("results"), page.get("pagination")
            if not isinstance(results, list) or not isinstance(pagination, dict):
                raise self._no_list("it lacks results or pagination")
            for entry in results:
                item = self._object(entry)
                if item.path <= after or not item.path.startswith(prefix):
                    raise self._no_list(f"{item.path!r} comes after {after!r}")
                after, count = item.path, count + 1
                yield item
            if not pagination.get("has_more"):
                return
            if not results:
                raise self._no_list("it says that there are more, and has none")
            if count >= MAX_OBJECTS:
                message = f"{self._where(commit)}: more than {MAX_OBJECTS:,} objects begin with {prefix!r}"
                raise DataError(message, hint="begin data.source.path with the folder that holds the table's files")

    def open(self, commit: str, path: str, start: int) -> LakefsStream:
        """The bytes of an object from an offset. Raises DataError and TransientError."""
        from lakefs_client.api.objects_api import ObjectsApi

        options = {"range": f"bytes={start}-"} if start else {}
        call = ObjectsApi(self.client).get_object
        response = self._call(call, self.source.repository, commit, path, wait=self.read_seconds, **options)
        if response.status == 206:
            begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            return LakefsStream(response, int(begins[1]) if begins else -1)
        return LakefsStream(response, 0)

    def _object(self, entry: Any) -> DataObject:
        try:
            path, checksum, size = str(entry["path"]), str(entry["checksum"]), int(entry["size_bytes"])
        except (LookupError, TypeError, ValueError):
            raise self._no_list("an entry lacks path, checksum or size_bytes") from None
        is_md5 = self.source.checksums == "md5" and re.fullmatch(r"[0-9a-fA-F]{32}", checksum) is not None
        return DataObject(path, size, f"{'md5' if is_md5 else 'etag'}:{checksum}", path)

    def _json(self, call: Any, *arguments: Any, **options: Any) -> dict[str, Json]:
        import urllib3

        response = self._call(call, *arguments, wait=ANSWER_SECONDS, **options)
        try:
            content = response.read(MAX_ANSWER + 1)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TransientError(f"the answer was cut: {first_line(error)}") from None
        finally:
            response.close()
        try:
            value = json.loads(content) if len(content) <= MAX_ANSWER else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise DataError(f"{self._where('')}: the server's answer is not JSON", hint="is url a lakeFS server?")
        return value

    def _call(self, call: Any, *arguments: Any, wait: float, **options: Any) -> Any:
        """The response of a request, its body unread. Raises TransientError for what may pass, else DataError."""
        import lakefs_client
        import urllib3

        options |= {"_preload_content": False, "_request_timeout": (CONNECT_SECONDS, wait)}
        try:
            while True:
                self.used.values = self.secrets.values
                try:
                    return call(*arguments, **options)
                except lakefs_client.ApiException as error:
                    if error.status != 401 or not self.secrets.renew(self.used.values):
                        raise
        except lakefs_client.ApiException as error:
            raise self._problem(error, arguments) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TransientError(f"no answer: {first_line(error)}") from None

    def _problem(self, error: Any, arguments: tuple[Any, ...]) -> Exception:
        status, words = error.status, _words(error)
        where = self._where(*arguments[1:])
        if status not in LASTING:
            after = (error.headers or {}).get("Retry-After", "")
            text = f"the server answered {status} ({words})" if status else words
            return TransientError(text, after=float(after) if re.fullmatch(r"\d{1,5}", after) else 0.0)
        if status in (401, 403):
            refused = "does not know these credentials" if status == 401 else "does not allow these credentials to read"
            hint = (
                f"mlkit explain RECIPE connections.{self.source.connection} shows where access_key and secret are kept"
            )
            return DataError(f"lakeFS {refused} {where} ({status}: {words})", hint=hint)
        if status == 410:
            hint = f"mlkit plan RECIPE data.source.ref={self._newer()}"
            return DataError(f"{where} was collected: its bytes are gone from the store ({words})", hint=hint)
        if status == 404 and len(arguments) == 2:
            return self._missing_reference(str(arguments[1]), words)
        return DataError(f"{where}: the server answered {status} ({words})", hint="mlkit explain RECIPE data.source")

    def _newer(self) -> str:
        return "main" if COMMIT.fullmatch(self.source.ref) or self.source.ref == "main" else self.source.ref

    def _missing_reference(self, reference: str, words: str) -> DataError:
        """The error for a reference or a repository that the server does not know, with the nearest name."""
        from lakefs_client.api.branches_api import BranchesApi
        from lakefs_client.api.tags_api import TagsApi

        names: list[str] = []
        for call in (BranchesApi(self.client).list_branches, TagsApi(self.client).list_tags):
            try:
                results = self._json(call, self.source.repository, amount=PAGE).get("results")
            except (DataError, TransientError, UsageError):
                break
            names += [str(item.get("id")) for item in results or () if isinstance(item, dict)]
        if not names:
            hint = "mlkit explain RECIPE data.source.repository shows what set it"
            return DataError(f"lakeFS has no repository {self.source.repository!r} ({words})", hint=hint)
        near = closest_match(reference, names)
        hint = f"mlkit plan RECIPE data.source.ref={near or names[0]}"
        return DataError(f"{self.source.repository} has no branch, tag or commit {reference!r} ({words})", hint=hint)

    def _no_list(self, reason: str) -> DataError:
        return DataError(
            f"{self._where('')}: the server's list of objects is wrong: {reason}", hint="mlkit plan RECIPE"
        )

    def _where(self, *parts: object) -> str:
        return "/".join([f"lakefs://{self.source.repository}", *(str(part) for part in parts if part)])


def _words(error: Any) -> str:
    """What the server says about an error, in one line."""
    try:
        message = json.loads(error.body)["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        message = error.reason
    return " ".join(str(message).split())[:300]
