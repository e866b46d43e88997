"""Comments on GitHub's pull requests (REST API 2022-11-28)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflowkit.ci.comments.forge_client import ForgeClient, ForgeComment
from mlflowkit.errors import ServiceError, UsageError

API = "https://api.github.com"
BOT = "github-actions[bot]"
"""The account behind a workflow's own token."""
MAX_EVENT_BYTES = 25 << 20


class GithubComments:
    """The comments of the pull request that a workflow runs for; ``account`` is who comments."""

    name = "GitHub"

    def __init__(self, client: ForgeClient, repository: str, number: int, account: str = BOT) -> None:
        self._client, self._number, self._account = client, number, account
        self._root = f"/repos/{repository}"

    def head(self) -> str:
        return str(self._client.get(f"{self._root}/pulls/{self._number}")["head"]["sha"])

    def comments(self) -> list[ForgeComment]:
        items = self._client.pages(f"{self._root}/issues/{self._number}/comments")
        return [
            ForgeComment(int(item["id"]), str(item["body"] or ""), item["user"]["login"] == self._account)
            for item in items
        ]

    def written(self, text: str) -> str:
        return text

    def create(self, body: str) -> None:
        self._client.send("POST", f"{self._root}/issues/{self._number}/comments", {"body": body})

    def update(self, comment: ForgeComment, body: str) -> None:
        self._client.send("PATCH", f"{self._root}/issues/comments/{comment.id}", {"body": body})

    def delete(self, comment: ForgeComment) -> None:
        self._client.send("DELETE", f"{self._root}/issues/comments/{comment.id}", None)


def connect(environment: Mapping[str, str], **options: Any) -> tuple[GithubComments, str] | None:
    """The comments of this workflow's pull request and its head commit; None where it runs for none.

    The pull request is that of the event. Of a ``workflow_run`` it is the open one whose head is the commit that
    GitHub says the other workflow ran for: what the other workflow wrote is not asked.

    Raises UsageError without a token.
    """
    token = environment.get("GITHUB_TOKEN") or environment.get("GH_TOKEN")
    repository = environment.get("GITHUB_REPOSITORY", "")
    if not token or not repository:
        hint = "env: {GITHUB_TOKEN: ${{ github.token }}} in the workflow's step"
        raise UsageError("GITHUB_TOKEN or GITHUB_REPOSITORY is not set: GitHub cannot be asked", hint=hint)
    headers = {
        "authorization": f"Bearer {token}",
        "accept": "application/vnd.github+json",
        "x-github-api-version": "2022-11-28",
    }
    client = ForgeClient(environment.get("GITHUB_API_URL") or API, headers, GithubComments.name, **options)
    event = _read_event(environment.get("GITHUB_EVENT_PATH", ""))
    try:
        pull_request = _pull_request(client, repository, event)
    except (KeyError, TypeError, IndexError) as error:
        raise ServiceError(f"GitHub's event lacks {error}", hint="mlkit ci comment --help") from error
    if pull_request is None:
        return None
    number, head = pull_request
    account = environment.get("MLKIT_COMMENT_ACCOUNT") or BOT
    return GithubComments(client, repository, number, account), head


def _pull_request(client: ForgeClient, repository: str, event: Mapping[str, Any]) -> tuple[int, str] | None:
    if "pull_request" in event:
        return int(event["pull_request"]["number"]), str(event["pull_request"]["head"]["sha"])
    if "workflow_run" not in event:
        return None
    run = event["workflow_run"]
    if run["event"] != "pull_request":
        return None
    head = f"{run['head_repository']['owner']['login']}:{run['head_branch']}"
    for item in client.get(f"/repos/{repository}/pulls", state="open", head=head, per_page=100):
        if item["head"]["sha"] == run["head_sha"]:
            return int(item["number"]), str(run["head_sha"])
    return None


def _read_event(path: str) -> Mapping[str, Any]:
    if not path:
        return {}
    try:
        with Path(path).open("rb") as file:
            value = json.loads(file.read(MAX_EVENT_BYTES))
    except (OSError, ValueError) as error:
        raise ServiceError(f"GITHUB_EVENT_PATH cannot be read: {error}", hint="mlkit ci comment --help") from error
    return value if isinstance(value, dict) else {}
