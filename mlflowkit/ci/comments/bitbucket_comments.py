"""Comments on Bitbucket Cloud's pull requests (REST API 2.0). Bitbucket shows HTML comments as text: the marker is a
reference that nothing refers to, which it hides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlflowkit.ci.comments.forge_client import MAX_PAGES, ForgeClient, ForgeComment
from mlflowkit.errors import ServiceError, UsageError

API = "https://api.bitbucket.org/2.0"
_HIDDEN = re.compile(r"^<!-- (mlkit:.*) -->$", re.M)


class BitbucketComments:
    """The comments of the pull request that a pipeline runs for."""

    name = "Bitbucket"

    def __init__(self, client: ForgeClient, repository: str, number: int) -> None:
        self._client = client
        self._root = f"/repositories/{repository}/pullrequests/{number}"
        self._account = ""

    def head(self) -> str:
        return ""  # the API gives the first twelve digits only

    def comments(self) -> list[ForgeComment]:
        self._account = self._account or str(self._client.get("/user")["uuid"])
        comments: list[ForgeComment] = []
        for page in range(1, MAX_PAGES + 1):
            answer = self._client.get(f"{self._root}/comments", pagelen=100, page=page)
            for item in answer["values"]:
                if not item.get("deleted"):
                    own = item["user"]["uuid"] == self._account
                    comments.append(ForgeComment(int(item["id"]), str(item["content"]["raw"]), own))
            if "next" not in answer:
                return comments
        raise ServiceError(f"Bitbucket lists more than {MAX_PAGES * 100:,} comments", hint="mlkit ci comment --help")

    def written(self, text: str) -> str:
        return _hidden(text)

    def create(self, body: str) -> None:
        self._client.send("POST", f"{self._root}/comments", {"content": {"raw": body}})

    def update(self, comment: ForgeComment, body: str) -> None:
        self._client.send("PUT", f"{self._root}/comments/{comment.id}", {"content": {"raw": body}})

    def delete(self, comment: ForgeComment) -> None:
        self._client.send("DELETE", f"{self._root}/comments/{comment.id}", None)


def _hidden(body: str) -> str:
    """
    >>> _hidden("<!-- mlkit:comment a -->\\nx<br>y")
    '[//]: # (mlkit:comment a)\\n\\nx y'
    """
    text = _HIDDEN.sub(r"[//]: # (\1)", body).replace("<br>", " ")
    head, _, rest = text.partition("\n")
    return f"{head}\n\n{rest}"


def connect(environment: Mapping[str, str], **options: Any) -> tuple[BitbucketComments, str] | None:
    """The comments of this pipeline's pull request and its commit; None where it runs for none."""
    number = environment.get("BITBUCKET_PR_ID", "")
    if not number.isdigit():
        return None
    token, repository = environment.get("BITBUCKET_TOKEN"), environment.get("BITBUCKET_REPO_FULL_NAME", "")
    if not token or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        hint = "add a secured variable BITBUCKET_TOKEN with a repository access token that may write pull requests"
        raise UsageError("BITBUCKET_TOKEN or BITBUCKET_REPO_FULL_NAME is not set: Bitbucket cannot be asked", hint=hint)
    api = environment.get("BITBUCKET_API_URL") or API
    client = ForgeClient(api, {"authorization": f"Bearer {token}"}, BitbucketComments.name, **options)
    return BitbucketComments(client, repository, int(number)), environment.get("BITBUCKET_COMMIT", "")
