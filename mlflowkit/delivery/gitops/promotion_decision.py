"""Whether a version may become an environment's candidate, and what a rollout's end makes of its file. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mlflowkit.delivery.gitops.desired_delivery import (
    MAX_REJECTED,
    DesiredCandidate,
    DesiredChampion,
    DesiredDelivery,
    RejectedIdentity,
)
from mlflowkit.system.text import printable_line, truncate


@dataclass(frozen=True, slots=True)
class PromotionDecision:
    """``commit`` with the new file, ``unchanged``, ``waiting`` while it bakes, or ``refused``, each with its reason."""

    action: Literal["commit", "unchanged", "waiting", "refused"]
    desired: DesiredDelivery
    reason: str


@dataclass(frozen=True, slots=True)
class BakingFact:
    """Since when an environment's champion has been a version; None while it is not."""

    environment: str
    since: float | None
    seconds: float = 0.0
    """How long it must have been."""


@dataclass(frozen=True, slots=True)
class RolloutVerdict:
    """What became of a version in the gateway."""

    outcome: Literal["promoted", "rolled_back", "running", "unknown"]
    reason: str
    at: str = ""


def decide_promotion(
    present: DesiredDelivery, candidate: DesiredCandidate, baking: BakingFact | None, now: float
) -> PromotionDecision:
    """Decide whether a verified version becomes the candidate."""
    short = candidate.identity[:12]
    if present.champion is not None and present.champion.identity == candidate.identity:
        return PromotionDecision("unchanged", present, f"{short} is the champion already")
    if present.candidate is not None and present.candidate.identity == candidate.identity:
        return PromotionDecision("unchanged", present, f"{short} is the candidate already")
    rejected = present.rejection(candidate.identity)
    if rejected is not None:
        incident = rejected.incident or "no incident is named"
        return PromotionDecision("refused", present, f"{short} was rejected {rejected.at}: {incident}")
    if baking is not None:
        problem = _unbaked(baking, short, now)
        if problem:
            return PromotionDecision("refused" if baking.since is None else "waiting", present, problem)
    previous = "" if present.candidate is None else f" in place of {present.candidate.identity[:12]}"
    return PromotionDecision("commit", replace(present, candidate=candidate), f"{short} is the candidate{previous}")


def _unbaked(baking: BakingFact, short: str, now: float) -> str:
    if baking.since is None:
        return f"{short} is not the champion of {baking.environment}, where it must be promoted first"
    left = baking.seconds - (now - baking.since)
    if left <= 0:
        return ""
    served = (now - baking.since) / 3600
    return f"{short} has been champion of {baking.environment} for {served:.1f} h, of {baking.seconds / 3600:.1f} h"


def champion_since(versions: Sequence[tuple[float, DesiredDelivery | None]], identity: str) -> float | None:
    """Since when the newest versions of a file (time of commit, newest first) all have this champion.

    >>> champion_since([(9.0, None)], "a") is None
    True
    """
    since = None
    for at, desired in versions:
        if desired is None or desired.champion is None or desired.champion.identity != identity:
            break
        since = at
    return since


def decide_settlement(present: DesiredDelivery, identity: str, verdict: RolloutVerdict) -> PromotionDecision:
    """What the end of the rollout of ``identity`` makes of the file; the file may have changed since it was read."""
    candidate = present.candidate
    if candidate is None or candidate.identity != identity:
        return PromotionDecision("unchanged", present, f"{identity[:12]} is no longer the candidate")
    if verdict.outcome == "promoted":
        desired = replace(present, champion=candidate.as_champion, candidate=None)
        return PromotionDecision("commit", desired, f"{identity[:12]} is promoted: {_plain(verdict.reason)}")
    if verdict.outcome == "rolled_back":
        desired = _with_rejection(replace(present, candidate=None), identity, verdict)
        return PromotionDecision("commit", desired, f"{identity[:12]} is rejected: {_plain(verdict.reason)}")
    return PromotionDecision("unchanged", present, verdict.reason)


def decide_champion_settlement(
    present: DesiredDelivery, served: DesiredChampion | None, verdict: RolloutVerdict
) -> PromotionDecision:
    """What it makes of the file that its champion was rolled back in the gateway after its promotion was settled.

    ``served`` is the version that answers now, as the file named it before; None where it never did.
    """
    champion = present.champion
    if champion is None or verdict.outcome != "rolled_back":
        return PromotionDecision("unchanged", present, "there is no candidate to settle")
    short = champion.identity[:12]
    if served is None:
        reason = f"{short} was rolled back, and no commit of the file names what is served now: promote that"
        return PromotionDecision("refused", present, reason)
    desired = _with_rejection(replace(present, champion=served), champion.identity, verdict)
    return PromotionDecision(
        "commit", desired, f"{short} is rejected: {_plain(verdict.reason)}; {served.identity[:12]} is back"
    )


def _with_rejection(present: DesiredDelivery, identity: str, verdict: RolloutVerdict) -> DesiredDelivery:
    entry = RejectedIdentity(identity, truncate(_plain(verdict.reason) or "rolled back", 200), verdict.at)
    kept = [item for item in present.rejected if item.identity != identity]
    return replace(present, rejected=(*kept, entry)[-MAX_REJECTED:])


def _plain(text: str) -> str:
    """A text as the file takes it: ASCII, one line."""
    return printable_line(text).encode("ascii", "replace").decode().replace("\t", " ").strip()
