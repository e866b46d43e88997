"""Comments of a Jenkins job on the pull request that it builds: on GitHub, GitLab or Bitbucket Cloud, by its address.

Jenkins' branch sources set CHANGE_URL; its host alone gets the token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from mlflowkit.ci.comments import bitbucket_comments, github_comments
from mlflowkit.ci.comments.bitbucket_comments import BitbucketComments
from mlflowkit.ci.comments.forge_client import CommentForge, ForgeClient
from mlflowkit.ci.comments.github_comments import GithubComments
from mlflowkit.ci.comments.gitlab_comments import GitlabComments
from mlflowkit.errors import UsageError

TOKEN = "MLKIT_COMMENT_TOKEN"
_ADDRESS = re.compile(
    r"https://(?P<host>[A-Za-z0-9.-]+(?::\d+)?)/(?P<project>[\w.-]+(?:/[\w.-]+)+?)"
    r"/(?P<kind>pull|-/merge_requests|pull-requests)/(?P<number>\d+)/?"
)


def connect(environment: Mapping[str, str], **options: Any) -> tuple[CommentForge, str] | None:
    """The comments of the pull request that a Jenkins job builds, and the commit that it built; None for a branch.

    Raises UsageError without a token and for an address that is no pull request of a known forge.
    """
    address = environment.get("CHANGE_URL", "")
    if not address:
        return None
    match = _ADDRESS.fullmatch(address)
    if match is None:
        message = "CHANGE_URL is no pull request on GitHub, GitLab or Bitbucket: nothing can be written there"
        raise UsageError(message, hint="mlkit ci comment --forge stdout --from report.json")
    token = environment.get(TOKEN)
    if not token:
        hint = f"bind a credential of Jenkins to {TOKEN}: a token that may comment on {match['project']}"
        raise UsageError(f"{TOKEN} is not set: {match['host']} cannot be asked", hint=hint)
    open_comments = {"pull": _github, "-/merge_requests": _gitlab, "pull-requests": _bitbucket}[match["kind"]]
    return open_comments(match, token, environment, options), environment.get("GIT_COMMIT", "")


def _github(match: re.Match[str], token: str, environment: Mapping[str, str], options: dict[str, Any]) -> CommentForge:
    host = match["host"]
    api = environment.get("GITHUB_API_URL") or (
        github_comments.API if host == "github.com" else f"https://{host}/api/v3"
    )
    headers = {
        "authorization": f"Bearer {token}",
        "accept": "application/vnd.github+json",
        "x-github-api-version": "2022-11-28",
    }
    client = ForgeClient(api, headers, GithubComments.name, **options)
    account = environment.get("MLKIT_COMMENT_ACCOUNT") or str(client.get("/user")["login"])
    return GithubComments(client, match["project"], int(match["number"]), account)


def _gitlab(match: re.Match[str], token: str, environment: Mapping[str, str], options: dict[str, Any]) -> CommentForge:
    api = environment.get("CI_API_V4_URL") or f"https://{match['host']}/api/v4"
    client = ForgeClient(api, {"private-token": token}, GitlabComments.name, **options)
    return GitlabComments(client, quote(match["project"], safe=""), int(match["number"]))


def _bitbucket(
    match: re.Match[str], token: str, environment: Mapping[str, str], options: dict[str, Any]
) -> CommentForge:
    if match["host"] != "bitbucket.org" and not environment.get("BITBUCKET_API_URL"):
        message = f"{match['host']} is no Bitbucket Cloud: its API is another"
        raise UsageError(message, hint="mlkit ci comment --forge stdout --from report.json")
    api = environment.get("BITBUCKET_API_URL") or bitbucket_comments.API
    client = ForgeClient(api, {"authorization": f"Bearer {token}"}, BitbucketComments.name, **options)
    return BitbucketComments(client, match["project"], int(match["number"]))
