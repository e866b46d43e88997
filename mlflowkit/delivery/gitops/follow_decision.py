"""What a gateway does about its ``delivery.yaml``: one action at a time, from what git wants and what is served. Pure.

The rollout itself stays with the rollout controller: a follower only starts and aborts it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mlflowkit.delivery.gitops.desired_delivery import DesiredCandidate, DesiredChampion, DesiredDelivery

FollowKind = Literal["none", "swap", "roll_out", "abort"]


@dataclass(frozen=True, slots=True)
class ServedVersions:
    """Identities: of the champion ("" for none), of the candidate of a running rollout, of the rejected."""

    champion: str = ""
    candidate: str = ""
    rejected: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class FollowMemory:
    """``promoted`` is the identity of a candidate that became champion here before git named it as champion.

    ``superseded`` tells that git has named another candidate since: its champion is then older than what is served,
    and is no wish to go back. Where git drops the promoted candidate and names no other, it is one (``git revert``).
    """

    promoted: str = ""
    superseded: bool = False


@dataclass(frozen=True, slots=True)
class FollowAction:
    """``swap`` in a champion at once, ``roll_out`` a candidate, ``abort`` the running rollout, or none; and why."""

    kind: FollowKind
    reason: str
    version: DesiredChampion | DesiredCandidate | None = None


def remember(desired: DesiredDelivery, served: ServedVersions, memory: FollowMemory) -> FollowMemory:
    """The memory after a look at both; kept across restarts."""
    if desired.champion is not None and desired.champion.identity == served.champion:
        return FollowMemory()
    if desired.candidate is not None and desired.candidate.identity == served.champion:
        return FollowMemory(served.champion)
    if memory.promoted != served.champion:
        return FollowMemory()
    return memory if desired.candidate is None else replace(memory, superseded=True)


def decide_follow(
    desired: DesiredDelivery, served: ServedVersions, memory: FollowMemory = FollowMemory()
) -> FollowAction:
    """The next action; the same files give the same one, so that a restart goes on where it was.

    ``memory`` is that after `remember`.
    """
    candidate, champion = desired.candidate, desired.champion
    if candidate is not None and served.champion == candidate.identity:
        return FollowAction("none", f"{candidate.identity[:12]} is promoted here; git learns it when it is settled")
    if served.candidate and (candidate is None or candidate.identity != served.candidate):
        return FollowAction("abort", f"git no longer names {served.candidate[:12]} as the candidate")
    if served.candidate:
        return FollowAction("none", f"the rollout of {served.candidate[:12]} runs")
    unsettled = bool(served.champion) and memory.promoted == served.champion and memory.superseded
    if champion is not None and champion.identity != served.champion and not unsettled:
        if champion.identity in served.rejected:
            return FollowAction("none", f"git's champion {champion.identity[:12]} was rolled back here")
        return FollowAction("swap", f"git's champion is {champion.identity[:12]}", champion)
    if candidate is None:
        return FollowAction("none", _idle_reason(desired, served, unsettled))
    if candidate.identity in served.rejected or desired.rejection(candidate.identity) is not None:
        return FollowAction("none", f"{candidate.identity[:12]} was rolled back here and is not tried again")
    if not served.champion:
        return FollowAction("swap", f"{candidate.identity[:12]} is the first version", candidate.as_champion)
    return FollowAction("roll_out", f"git's candidate is {candidate.identity[:12]}", candidate)


def _idle_reason(desired: DesiredDelivery, served: ServedVersions, unsettled: bool) -> str:
    if unsettled:
        return f"{served.champion[:12]} was promoted here and git never learnt it: promote it again, then settle it"
    return "served as git says" if desired.champion is not None else "git names no version"
