"""`mlkit ci comment`: from a report to the comment on the pull request that this job runs for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlflowkit.ci import comment_text
from mlflowkit.ci.comments.comment_posting import post
from mlflowkit.ci.comments.forge_client import ForgeRefusedError
from mlflowkit.ci.judge_report import JudgeReport
from mlflowkit.errors import ServiceError, UsageError, closest_match

FORGES = ("github", "gitlab", "bitbucket", "azure", "jenkins")
STDOUT = "stdout"
_SIGNS = {
    "GITHUB_ACTIONS": "github",
    "GITLAB_CI": "gitlab",
    "BITBUCKET_BUILD_NUMBER": "bitbucket",
    "TF_BUILD": "azure",
    "JENKINS_URL": "jenkins",
}


@dataclass(frozen=True, slots=True)
class CommentResult:
    """What became of a comment. ``action`` is created, updated, unchanged, superseded (the comment is about a newer
    commit), refused (a fork's token may not comment), none (no pull request), failed or dry-run."""

    forge: str
    action: str
    text: str
    removed: int = 0
    warning: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def detect_forge(environment: Mapping[str, str]) -> str:
    """The forge whose job this is; stdout in none.

    >>> detect_forge({"GITLAB_CI": "true"}), detect_forge({})
    ('gitlab', 'stdout')
    """
    return next((forge for sign, forge in _SIGNS.items() if environment.get(sign)), STDOUT)


def comment(
    report: JudgeReport,
    forge: str,
    environment: Mapping[str, str],
    *,
    dry_run: bool = False,
    page: str = "",
    **options: Any,
) -> CommentResult:
    """Comment on the pull request of this job. A forge that fails costs a warning, never the verdict.

    Raises UsageError for an unknown forge and for a token that is not set.
    """
    forge = forge or detect_forge(environment)
    text = comment_text.render(report, page=page)
    if forge == STDOUT:
        return CommentResult(forge, "none", text)
    if forge not in FORGES:
        near = closest_match(forge, (*FORGES, STDOUT))
        message = f"there is no forge {forge!r}: it may be {', '.join((*FORGES, STDOUT))}"
        raise UsageError(message, hint=f"--forge {near}" if near else "mlkit ci comment --help")
    try:
        connect = importlib.import_module(f"mlflowkit.ci.comments.{forge}_comments").connect
        connected = connect(environment, **options)
        if connected is None:
            return CommentResult(
                forge, "none", text, warning="this job runs for no pull request: nothing to comment on"
            )
        client, head = connected
        if report.head and head and not (report.head.startswith(head) or head.startswith(report.head)):
            about = f"the report is about commit {report.head[:12]}, and this job for {head[:12]}: judge that one"
            return CommentResult(forge, "refused", text, warning=about)
        text = comment_text.render(report.model_copy(update={"head": head}), page=page)
        if dry_run:
            return CommentResult(forge, "dry-run", text)
        posting = post(client, comment_text.marker(report), text, head)
    except ForgeRefusedError as error:
        remedy = "a pull request from a fork is commented on by the workflow that runs after this one"
        return CommentResult(forge, "refused", text, warning=f"{error.message}; {remedy}")
    except ServiceError as error:
        return CommentResult(forge, "failed", text, warning=error.message)
    return CommentResult(forge, posting.action, text, posting.removed)
