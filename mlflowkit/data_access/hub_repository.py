"""A repository of the Hugging Face Hub, read at a commit: its files with their digests, whole or an error.

Plain HTTP, and not huggingface_hub: that retries by itself past any deadline, and has returned folders that lack files
as whole ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from mlflowkit.data_access.connections import CredentialReference
from mlflowkit.data_access.http_store import HttpBody, HttpRefusal, HttpStore
from mlflowkit.data_access.transfer import TransientError
from mlflowkit.errors import DataError, closest_match
from mlflowkit.values import DataObject

HUB = "https://huggingface.co"
COMMIT = re.compile(r"[0-9a-f]{40}")
MAX_OBJECTS = 200_000


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
class HubRepository:
    """The requests that read a repository of a Hub.

    revision       what was asked for: a branch, a tag or a commit
    wanted         the files that were asked for, for messages
    no_token_hint  how to name a token; token_hint: what to do where one is refused
    revision_hint  the command line with another revision in the place of ``{}``
    """

    store: HttpStore
    kind: Literal["datasets", "models"]
    name: str
    revision: str
    wanted: str
    has_token: bool
    no_token_hint: str
    token_hint: str
    revision_hint: str

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
                raise DataError(message, hint="name a folder with fewer files")
            following = re.search(r'<([^<>]+)>;\s*rel="next"', headers.get("link", ""))
            url = following[1] if following else ""

    @contextmanager
    def open(self, commit: str, path: str, start: int) -> Iterator[HttpBody]:
        """The bytes of a file from an offset. Raises DataError and TransientError."""
        place = "/".join(quote(part, safe="") for part in path.split("/"))
        url = f"{self.page}/resolve/{commit}/{place}"
        with self.store.open(url, start, lambda refusal: self._refusal(refusal, path)) as body:
            answered = body.headers.get("x-repo-commit", commit)
            if answered != commit:
                raise self._strange(f"it answered with {path} of commit {answered}, not of {commit}")
            yield body

    def read(self, commit: str, path: str, limit: int) -> bytes:
        """A small file. Raises DataError for one of more than ``limit`` bytes, and as `open` does."""
        with self.open(commit, path, 0) as body:
            content = b""
            for chunk in body.chunks(1 << 16):
                content += chunk
                if len(content) > limit:
                    raise self._strange(f"{path} has more than {limit:,} bytes")
            return content

    def references(self) -> Mapping[str, str] | None:
        """The commits of branches and tags by name; None where there is no such repository, or it may not be seen."""
        missing: list[HttpRefusal] = []

        def refuse(refusal: HttpRefusal) -> Exception:
            if refusal.headers.get("x-error-code") == "RepoNotFound" or refusal.status == 404:
                missing.append(refusal)
            return self._refusal(refusal)

        try:
            answer, _ = self.store.json(self._api("refs"), refuse)
        except DataError:
            if missing:
                return None
            raise
        try:
            named = [item for group in ("branches", "tags") for item in answer.get(group) or []]
            return {str(item["name"]): str(item["targetCommit"]) for item in named}
        except (LookupError, TypeError, AttributeError):
            raise self._strange("its list of branches and tags is none") from None

    @property
    def page(self) -> str:
        """Its address for people, and for its files."""
        return f"{self.store.origin}/{'datasets/' if self.kind == 'datasets' else ''}{self.name}"

    def _api(self, *parts: str) -> str:
        path = "/".join(quote(part, safe="") for part in parts)
        return f"{self.store.origin}/api/{self.kind}/{self.name}/{path}"

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
        if code == "GatedRepo":  # before the others: its statuses are theirs
            token = "with the account of the token" if self.has_token else f"then {self.no_token_hint}"
            return DataError(f"{where} is gated ({words})", hint=f"accept its terms on {self.page}, {token}")
        if code == "RevisionNotFound":
            return self._no_revision(words)
        if code == "EntryNotFound":
            message = f"{where} has no {path or self.wanted} at {self.revision} ({words})"
            return DataError(message, hint=f"{self.page}/tree/{self.revision} shows what there is")
        if refusal.status in (401, 403) and self.has_token and code != "RepoNotFound":
            refused = "does not know the token" if refusal.status == 401 else "does not allow the token to read"
            return DataError(f"{self.store.origin} {refused} ({words})", hint=self.token_hint)
        if code == "RepoNotFound" or refusal.status in (401, 403, 404):
            reason = "or the token may not see it" if self.has_token else "or it is private and there is no token"
            hint = (
                self.token_hint
                if self.has_token
                else f"{self.page} shows a public one; for a private one {self.no_token_hint}"
            )
            return DataError(f"{where}: there is no such {self.kind[:-1]}, {reason} ({words})", hint=hint)
        return DataError(f"{where}: the server answered {words}", hint="run the same command again later")

    def _no_revision(self, words: str) -> DataError:
        """The error for a revision that is not there, with the nearest that is."""
        message = f"{self._where()} has no branch, tag or commit {self.revision!r} ({words})"
        try:
            answer, _ = self.store.json(self._api("refs"), lambda refusal: DataError(refusal.words))
            groups = [answer.get(group) or [] for group in ("branches", "tags")]
            names = [str(item["name"]) for group in groups for item in group]
        except (DataError, TransientError, LookupError, TypeError, AttributeError):
            names = []
        near = closest_match(self.revision, names) or (names[0] if names else "main")
        return DataError(message, hint=self.revision_hint.format(near))

    def _strange(self, reason: str) -> DataError:
        message = f"{self._where()}: {reason}"
        return DataError(message, hint="is connections' endpoint a Hugging Face Hub? else run the same command again")

    def _where(self) -> str:
        return f"hf://{'datasets/' if self.kind == 'datasets' else ''}{self.name}"
