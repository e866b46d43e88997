"""Threads on Azure Repos' pull requests (REST API 7.1). A comment is the first of a thread of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from mlflowkit.ci.comments.forge_client import ForgeClient, ForgeComment
from mlflowkit.errors import UsageError

VERSION = "7.1"


class AzureComments:
    """The threads of the pull request that a pipeline runs for."""

    name = "Azure DevOps"

    def __init__(self, client: ForgeClient, project: str, repository: str, number: int) -> None:
        self._client = client
        self._root = f"/{project}/_apis/git/repositories/{repository}/pullRequests/{number}"
        self._account = ""

    def head(self) -> str:
        return str(self._client.get(self._root, **_VERSION)["lastMergeSourceCommit"]["commitId"])

    def comments(self) -> list[ForgeComment]:
        if not self._account:
            self._account = str(self._client.get("/_apis/connectionData")["authenticatedUser"]["id"])
        threads = self._client.get(f"{self._root}/threads", **_VERSION)["value"]
        shown = [thread for thread in threads if thread["comments"] and not thread["isDeleted"]]
        return [
            ForgeComment(
                int(thread["id"]),
                str(comment.get("content") or ""),
                comment["author"]["id"] == self._account,
                str(comment["id"]),
            )
            for thread in shown
            for comment in thread["comments"][:1]
        ]

    def written(self, text: str) -> str:
        return text

    def create(self, body: str) -> None:
        thread = {"comments": [{"parentCommentId": 0, "content": body, "commentType": 1}], "status": "closed"}
        self._client.send("POST", f"{self._root}/threads", thread, **_VERSION)

    def update(self, comment: ForgeComment, body: str) -> None:
        self._client.send("PATCH", self._path(comment), {"content": body}, **_VERSION)

    def delete(self, comment: ForgeComment) -> None:
        self._client.send("DELETE", self._path(comment), None, **_VERSION)

    def _path(self, comment: ForgeComment) -> str:
        return f"{self._root}/threads/{comment.id}/comments/{comment.place}"


_VERSION = {"api-version": VERSION}


def connect(environment: Mapping[str, str], **options: Any) -> tuple[AzureComments, str] | None:
    """The threads of this pipeline's pull request and its commit; None where it runs for none."""
    number = environment.get("SYSTEM_PULLREQUEST_PULLREQUESTID", "")
    if not number.isdigit():
        return None
    token = environment.get("SYSTEM_ACCESSTOKEN")
    collection, project = environment.get("SYSTEM_COLLECTIONURI", ""), environment.get("SYSTEM_TEAMPROJECT", "")
    repository = environment.get("BUILD_REPOSITORY_ID", "")
    if not (token and collection and project and repository):
        hint = "env: {SYSTEM_ACCESSTOKEN: $(System.AccessToken)} in the pipeline's step"
        raise UsageError("SYSTEM_ACCESSTOKEN is not set: Azure DevOps cannot be asked", hint=hint)
    client = ForgeClient(collection, {"authorization": f"Bearer {token}"}, AzureComments.name, **options)
    commit = environment.get("SYSTEM_PULLREQUEST_SOURCECOMMITID", "")
    return AzureComments(client, quote(project, safe=""), quote(repository, safe=""), int(number)), commit
