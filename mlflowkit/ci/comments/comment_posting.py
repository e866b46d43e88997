"""Exactly one comment for each recipe and environment on a pull request."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mlflowkit.ci.comments.forge_client import CommentForge, ForgeComment, RetryCreationError

PostingAction = Literal["created", "updated", "unchanged", "superseded"]
ATTEMPTS = 4
"""How often a comment is created whose creation was not confirmed."""
_HEAD = re.compile(r"<!-- mlkit:head ([0-9a-f]{40,64}|-) -->|^\[//\]: # \(mlkit:head ([0-9a-f]{40,64}|-)\)", re.M)


@dataclass(frozen=True, slots=True)
class Posting:
    """What was done; ``removed`` counts own duplicates that were deleted."""

    action: PostingAction
    removed: int = 0


def post(forge: CommentForge, marker: str, body: str, head: str) -> Posting:
    """Write the comment whose first line is ``marker``: update this account's own, or create it.

    Two jobs that create it at once both look again, keep the one with the lowest id and delete their own other one. The
    judgement of an older commit never replaces that of the pull request's newest. Raises ServiceError.
    """
    marker, body = forge.written(marker).strip(), forge.written(body).strip()
    existing = _own(forge, marker)
    if not existing:
        existing = _create(forge, marker, body)
        kept = existing[0]
        action: PostingAction = "created"
        if _is_newer(forge, kept, head):
            return Posting("superseded", _remove(forge, existing[1:]))
        if kept.body.strip() != body:
            forge.update(kept, body)
        return Posting(action, _remove(forge, existing[1:]))
    kept = existing[0]
    removed = _remove(forge, existing[1:])
    if _is_newer(forge, kept, head):
        return Posting("superseded", removed)
    if kept.body.strip() == body:
        return Posting("unchanged", removed)
    forge.update(kept, body)
    return Posting("updated", removed)


def _own(forge: CommentForge, marker: str) -> list[ForgeComment]:
    """This account's comments with the marker, oldest first."""
    comments = [comment for comment in forge.comments() if comment.own and comment.body.lstrip().startswith(marker)]
    return sorted(comments, key=lambda comment: comment.id)


def _create(forge: CommentForge, marker: str, body: str) -> list[ForgeComment]:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            forge.create(body)
        except RetryCreationError:
            if attempt == ATTEMPTS:
                raise
        if comments := _own(forge, marker):
            return comments
    raise RetryCreationError("the forge took the comment and does not list it", hint="mlkit ci comment --help")


def _remove(forge: CommentForge, comments: list[ForgeComment]) -> int:
    for comment in comments:
        forge.delete(comment)
    return len(comments)


def _is_newer(forge: CommentForge, comment: ForgeComment, head: str) -> bool:
    """Whether a comment is about the pull request's newest commit, and the judgement about another."""
    newest = forge.head()
    return bool(newest) and newest != head and commented_head(comment.body) == newest


def commented_head(body: str) -> str:
    """The commit that a comment says it is about; "" where it says none.

    >>> commented_head("<!-- mlkit:comment … -->\\n<!-- mlkit:head " + "a" * 40 + " -->\\n")[:5]
    'aaaaa'
    """
    match = _HEAD.search(body)
    named = (match.group(1) or match.group(2)) if match else ""
    return "" if named == "-" else named
