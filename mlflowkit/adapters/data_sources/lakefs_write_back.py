"""Write-back to lakeFS: a branch per result from the commit that was read, one commit, and a merge once blessed.

How far an earlier attempt came is asked of the server, so that a process may be killed anywhere: a branch that exists
must begin at our commit, a commit of ours bears the result's fingerprint, and a merged branch's head is the merge base.
The merge names the commit, not the branch: what somebody else commits there meanwhile is not merged.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflowkit.adapters.data_sources.lakefs_answers import BoundedPool, read_answer
from mlflowkit.adapters.data_sources.lakefs_source import (
    ANSWER_SECONDS,
    COMMIT,
    CONNECT_SECONDS,
    MAX_ANSWER,
    LakefsSource,
    read_credentials,
)
from mlflowkit.data_access.connections import LakefsConnection
from mlflowkit.data_access.remote_source import RemoteAccess
from mlflowkit.data_access.results.write_back import (
    WriteBackSection,
    branch_name,
    commit_metadata,
    evaluation_fingerprint,
    merge_metadata,
    written_files,
)
from mlflowkit.errors import DeliveryRefusedError, ServiceError
from mlflowkit.ports import FinishedRun
from mlflowkit.system import failpoint
from mlflowkit.system.extras import require_extra
from mlflowkit.system.text import first_line
from mlflowkit.values import Json, RunRecord

HISTORY = 100
"""Commits of a branch among which ours is looked for."""
BUSY = (429, 503)
"""Statuses of a server that did nothing, and may be asked again at once."""
LASTING = (400, 401, 403, 404, 405, 409, 410, 412, 413)
"""Statuses that another attempt does not change."""
TRIES, LONGEST_PAUSE = 4, 5.0
UPLOAD_SECONDS = 120.0
TEXT = re.compile(r"\S+")


@dataclass
class LakefsWriteBack:
    """Delivers the results of runs to the repository that their data came from (see `ports.RunTarget`)."""

    source: LakefsSource
    section: WriteBackSection
    access: RemoteAccess
    version: str
    """Of mlflowkit."""

    @property
    def name(self) -> str:
        return f"lakefs {self.source.repository}/{self.section.to} {self.section.path}"[:200]

    def key(self, run: RunRecord) -> str:
        """The result, and whether it was blessed: one that was not may be judged again."""
        fingerprint = evaluation_fingerprint(run)
        if not fingerprint or not run.lineage.data_commit:
            return ""
        return f"{branch_name(run)} {'blessed' if run.blessed else 'not blessed'}"

    def deliver(self, run: FinishedRun) -> str:
        """Branch, upload, commit, merge: what of it is not done yet. Returns the branch and the commit."""
        branch, place = branch_name(run.record), f"lakefs://{self.source.repository}"
        with self.access.secrets.guarded(place), self._client() as client:
            commit = self._committed(client, branch, run)
            failpoint.hit("writeback.committed")
            if not run.record.blessed or self.section.merge == "never":
                return f"{place}/{branch} commit {commit[:12]}, not merged"
            self._merge(client, branch, commit, run)
            failpoint.hit("writeback.merged")
            return f"{place}/{branch} commit {commit[:12]}, merged into {self.section.to}"

    def defer(self) -> bool:
        return False

    def close(self) -> None:
        """There is nothing to end."""

    def _committed(self, client: LakefsWriter, branch: str, run: FinishedRun) -> str:
        """The commit of the result, made now unless it is there."""
        start = run.record.lineage.data_commit
        if not client.create_branch(branch, start) and (commit := self._own_commit(client, branch, run.record)):
            return commit
        failpoint.hit("writeback.branched")
        for path, file in written_files(self.section, run).items():
            client.upload(branch, path, file)
            failpoint.hit("writeback.uploaded")
        metadata = commit_metadata(run.record, self.version)
        message = f"{run.record.name}: results of run {run.record.run}"
        commit = client.commit(branch, message, metadata) or self._own_commit(client, branch, run.record)
        return commit or start  # nothing of it is new: the commit that was read has it already

    def _own_commit(self, client: LakefsWriter, branch: str, record: RunRecord) -> str:
        """The commit of the result on its branch; "" while there is none.

        Raises DeliveryRefusedError for a branch that does not begin at the commit that was read.
        """
        start, fingerprint = record.lineage.data_commit, evaluation_fingerprint(record)
        first = client.head(branch)
        for commit in client.history(first):
            if commit["id"] == start:
                return ""
            metadata = commit.get("metadata")
            if isinstance(metadata, dict) and metadata.get("mlkit.fingerprint") == fingerprint:
                return str(commit["id"])
        raise DeliveryRefusedError(
            f"branch {branch} of {self.source.repository} is there, and does not begin at commit {start[:12]}",
            hint="remove the branch, then: mlkit deliveries --retry",
        )

    def _merge(self, client: LakefsWriter, branch: str, commit: str, run: FinishedRun) -> None:
        if client.merge_base(commit, self.section.to) == commit:
            return
        message = f"{run.record.name}: blessed results of run {run.record.run} ({branch})"
        client.merge(commit, self.section.to, message, merge_metadata(run))

    @contextmanager
    def _client(self) -> Iterator[LakefsWriter]:
        """A client of the source's server. Raises UsageError where lakefs-client is not installed."""
        require_extra("lakefs_client", "lakefs", "data.write_back")
        import lakefs_client

        connection = self.access.connection(self.source.connection, LakefsConnection)
        user, password = read_credentials(connection, self.access.secrets)
        configuration = lakefs_client.Configuration(host=f"{connection.url}/api/v1", username=user, password=password)
        configuration.retries = False  # the client repeats requests that the server may have carried out
        with lakefs_client.ApiClient(configuration) as client:
            client.rest_client.pool_manager = BoundedPool(client.rest_client.pool_manager, ANSWER_SECONDS)
            yield LakefsWriter(client, self.source.repository)


@dataclass(frozen=True, slots=True)
class LakefsWriter:
    """The requests of a write-back. Each raises DeliveryRefusedError, or ServiceError for what may pass."""

    client: Any
    repository: str

    def create_branch(self, name: str, commit: str) -> bool:
        """Whether the branch is new; False where there is one of that name."""
        from lakefs_client.api.branches_api import BranchesApi
        from lakefs_client.models import BranchCreation

        call, what = BranchesApi(self.client).create_branch, f"branch {name} at commit {commit[:12]}"
        status, _ = self._request(what, call, self.repository, BranchCreation(name=name, source=commit), accept=(409,))
        if status not in (201, 409):  # its answer is no JSON: its status alone says that it was made
            raise self._strange(what)
        return status == 201

    def head(self, branch: str) -> str:
        """The commit of a branch."""
        from lakefs_client.api.branches_api import BranchesApi

        what, call = f"branch {branch}", BranchesApi(self.client).get_branch
        return self._text(what, self._request(what, call, self.repository, branch)[1], "commit_id")

    def history(self, commit: str) -> list[dict[str, Json]]:
        """A commit and those before it, newest first, as far as a page holds."""
        from lakefs_client.api.refs_api import RefsApi

        call = RefsApi(self.client).log_commits
        what = f"commits before {commit[:12]}"
        _, reply = self._request(what, call, self.repository, commit, amount=HISTORY)
        results = reply.get("results")
        if not isinstance(results, list) or not all(isinstance(item, dict) for item in results):
            raise self._strange(what)
        return [item for item in results if self._text(what, item, "id")]

    def upload(self, branch: str, path: str, file: Path) -> None:
        """Stage an object on a branch."""
        from lakefs_client.api.objects_api import ObjectsApi

        def call(**options: Any) -> Any:
            with file.open("rb") as stream:
                return ObjectsApi(self.client).upload_object(self.repository, branch, path, content=stream, **options)

        what = f"{path} on {branch}"
        self._text(what, self._request(what, call, wait=UPLOAD_SECONDS)[1], "checksum", TEXT)

    def commit(self, branch: str, message: str, metadata: dict[str, str]) -> str:
        """Commit what is staged; "" where nothing differs from the branch's head."""
        from lakefs_client.api.commits_api import CommitsApi
        from lakefs_client.models import CommitCreation

        call, creation = CommitsApi(self.client).commit, CommitCreation(message=message, metadata=metadata)
        what = f"a commit on {branch}"
        status, reply = self._request(what, call, self.repository, branch, creation, accept=(400,), words="no changes")
        return "" if status == 400 else self._text(what, reply, "id")

    def merge_base(self, commit: str, branch: str) -> str:
        """The newest commit that a commit and a branch have in common."""
        from lakefs_client.api.refs_api import RefsApi

        call = RefsApi(self.client).find_merge_base
        what = f"the merge base with {branch}"
        return self._text(what, self._request(what, call, self.repository, commit, branch)[1], "base_commit_id", TEXT)

    def merge(self, commit: str, branch: str, message: str, metadata: dict[str, str]) -> None:
        """Merge a commit into a branch, without a strategy: a conflict is an error."""
        from lakefs_client.api.refs_api import RefsApi
        from lakefs_client.models import Merge

        call, body = RefsApi(self.client).merge_into_branch, Merge(message=message, metadata=metadata)
        options = {"merge": body, "accept": (400,), "words": "no changes"}
        what = f"the merge into {branch}"
        status, reply = self._request(what, call, self.repository, commit, branch, **options)
        if status != 400:
            self._text(what, reply, "reference", TEXT)

    def _text(self, what: str, reply: dict[str, Json], name: str, form: re.Pattern[str] = COMMIT) -> str:
        """A text of an answer. Raises ServiceError for an answer without it, such as the page of a proxy."""
        value = reply.get(name)
        if not isinstance(value, str) or not form.fullmatch(value):
            raise self._strange(what)
        return value

    def _strange(self, what: str) -> ServiceError:
        return ServiceError(
            f"lakeFS {self.repository}: {what}: the answer is none of lakeFS", hint="is url a lakeFS server?"
        )

    def _request(
        self,
        what: str,
        call: Any,
        *arguments: Any,
        accept: tuple[int, ...] = (),
        words: str = "",
        wait: float = ANSWER_SECONDS,
        **options: Any,
    ) -> tuple[int, dict[str, Json]]:
        """Status and JSON of a request. Errors of a status in ``accept`` whose message has ``words`` are answers."""
        import lakefs_client
        import urllib3

        options |= {"_preload_content": False, "_request_timeout": (CONNECT_SECONDS, wait)}
        for attempt in range(1, TRIES + 1):
            try:
                response = call(*arguments, **options)
                try:
                    return response.status, _json(read_answer(response, MAX_ANSWER, wait))
                finally:
                    response.close()
            except lakefs_client.ApiException as error:
                server_message = _message(error)
                if error.status in accept and words in server_message:
                    return error.status, {}
                if error.status not in BUSY or attempt == TRIES:
                    raise _problem(self.repository, what, error.status, server_message) from None
                time.sleep(_pause(attempt, (error.headers or {}).get("Retry-After", "")))
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise ServiceError(f"lakeFS {self.repository}: {what}: no answer: {first_line(error)}") from None
        raise AssertionError("unreachable")


def _problem(repository: str, what: str, status: int, server_message: str) -> Exception:
    message = f"lakeFS {repository}: {what}: the server answered {status} ({server_message})"
    staged = status == 400 and (
        "uncommitted" in server_message or "dirty" in server_message
    )  # somebody will commit it, or take it back
    if status not in LASTING or staged:
        return ServiceError(message)
    hints = {
        401: "mlkit explain RECIPE connections shows where access_key and secret are kept",
        403: "the credentials, or a rule of the branch, do not allow it",
        409: "somebody changed the same objects: merge the branch by hand, or remove it and retry",
        412: "a hook of the repository refused it: its run says why",
    }
    return DeliveryRefusedError(message, hint=hints.get(status, ""))


def _pause(attempt: int, after: str) -> float:
    longest = float(after) if re.fullmatch(r"\d{1,4}", after) else random.uniform(0, 0.2 * 2**attempt)
    return min(longest, LONGEST_PAUSE)


def _json(content: bytes) -> dict[str, Json]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # a new branch is answered by its commit alone
        return {}
    return value if isinstance(value, dict) else {}


def _message(error: Any) -> str:
    """What the server says about an error, in one line."""
    try:
        message = json.loads(error.body)["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        message = error.reason
    return " ".join(str(message).split())[:300]
