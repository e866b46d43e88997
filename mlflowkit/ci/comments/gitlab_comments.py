"""Notes on GitLab's merge requests (REST API v4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflowkit.ci.comments.forge_client import ForgeClient, ForgeComment
from mlflowkit.errors import UsageError


class GitlabComments:
    """The notes of the merge request that a pipeline runs for."""

    name = "GitLab"

    def __init__(self, client: ForgeClient, project: str, number: int) -> None:
        self._client = client
        self._root = f"/projects/{project}/merge_requests/{number}"
        self._account: int | None = None

    def head(self) -> str:
        return str(self._client.get(self._root)["sha"] or "")

    def comments(self) -> list[ForgeComment]:
        if self._account is None:
            self._account = int(self._client.get("/user")["id"])
        notes = self._client.pages(f"{self._root}/notes", sort="asc", order_by="created_at")
        return [
            ForgeComment(int(note["id"]), str(note["body"]), note["author"]["id"] == self._account) for note in notes
        ]

    def written(self, text: str) -> str:
        return text

    def create(self, body: str) -> None:
        self._client.send("POST", f"{self._root}/notes", {"body": body})

    def update(self, comment: ForgeComment, body: str) -> None:
        self._client.send("PUT", f"{self._root}/notes/{comment.id}", {"body": body})

    def delete(self, comment: ForgeComment) -> None:
        self._client.send("DELETE", f"{self._root}/notes/{comment.id}", None)


def connect(environment: Mapping[str, str], **options: Any) -> tuple[GitlabComments, str] | None:
    """The notes of this pipeline's merge request and its head commit; None where it runs for none.

    A job's own token may not write notes: GITLAB_TOKEN holds a project access token of the scope api.
    """
    number = environment.get("CI_MERGE_REQUEST_IID", "")
    if not number.isdigit():
        return None
    token, api = environment.get("GITLAB_TOKEN"), environment.get("CI_API_V4_URL", "https://gitlab.com/api/v4")
    project = environment.get("CI_PROJECT_ID", "")
    if not token or not project.isdigit():
        hint = "add a masked variable GITLAB_TOKEN with a project access token of the scope api"
        raise UsageError("GITLAB_TOKEN or CI_PROJECT_ID is not set: GitLab cannot be asked", hint=hint)
    client = ForgeClient(api, {"private-token": token}, GitlabComments.name, **options)
    head = environment.get("CI_MERGE_REQUEST_SOURCE_BRANCH_SHA") or environment.get("CI_COMMIT_SHA", "")
    return GitlabComments(client, project, int(number)), head
