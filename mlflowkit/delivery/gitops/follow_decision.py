"""What a gateway does about its ``delivery.yaml``: one action at a time, from what git wants and what is served. Pure.

The rollout itself stays with the rollout controller: a follower only starts and aborts it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mlflowkit.delivery.gitops.desired_delivery import DesiredCandidate, DesiredChampion, DesiredDelivery

WITHDRAWN = "git no longer names"
"""Begins the reason of an abort that a follower orders: no judgement of the version, which may be tried again."""
FollowKind = Literal["none", "swap", "roll_out", "abort"]


@dataclass(frozen=True, slots=True)
class ServedVersions:
    """Identities: of the champion ("" for none), of the candidate of a running rollout, of the rejected.

    ``busy`` tells that a rollback is being executed: what is served and what is rejected do not fit together yet.
    """

    champion: str = ""
    candidate: str = ""
    rejected: frozenset[str] = frozenset()
    busy: bool = False


@dataclass(frozen=True, slots=True)
class FollowMemory:
    """What a look at the present file does not show. Identities, "" for none.

    promoted    the champion, a candidate that git has not named as champion yet
    superseded  whether git has named another candidate since: git's champion is then older than what is served, and is
                no wish to go back; where git drops the promoted candidate and names no other, it is one
    named       the candidate that git named last
    settled     the champion that git named last while it was served
    reverted    a settled champion that git made a candidate again (``git revert`` of its settlement)
    """

    promoted: str = ""
    superseded: bool = False
    named: str = ""
    settled: str = ""
    reverted: str = ""


@dataclass(frozen=True, slots=True)
class FollowAction:
    """``swap`` in a champion at once, ``roll_out`` a candidate, ``abort`` the running rollout, or none; and why."""

    kind: FollowKind
    reason: str
    version: DesiredChampion | DesiredCandidate | None = None


def remember(desired: DesiredDelivery, served: ServedVersions, memory: FollowMemory) -> FollowMemory:
    """The memory after a look at both; kept across restarts."""
    candidate = "" if desired.candidate is None else desired.candidate.identity
    champion = "" if desired.champion is None else desired.champion.identity
    named, now = candidate or memory.named, served.champion
    reverted = memory.reverted if memory.reverted == candidate else ""
    if not now or champion == now:
        return FollowMemory(named=named, settled=now, reverted=reverted)
    if candidate == now:
        taken_back = now in (memory.settled, memory.reverted)
        return FollowMemory("" if taken_back else now, False, named, memory.settled, now if taken_back else reverted)
    if memory.promoted == now:
        return replace(memory, superseded=memory.superseded or bool(candidate), named=named, reverted=reverted)
    if memory.named == now and memory.settled != now:  # it was promoted between two looks
        return FollowMemory(now, bool(candidate), named, memory.settled, reverted)
    return FollowMemory(named=named, reverted=reverted)


def decide_follow(
    desired: DesiredDelivery, served: ServedVersions, memory: FollowMemory = FollowMemory()
) -> FollowAction:
    """The next action; the same files give the same one, so that a restart goes on where it was.

    ``memory`` is that after `remember`.
    """
    candidate, champion = desired.candidate, desired.champion
    if served.busy:
        return FollowAction("none", "a rollback is being executed")
    if candidate is not None and served.champion == candidate.identity:
        if champion is not None and memory.reverted == candidate.identity:
            return FollowAction("swap", f"git took the settlement of {candidate.identity[:12]} back", champion)
        return FollowAction("none", f"{candidate.identity[:12]} is promoted here; git learns it when it is settled")
    if served.candidate and (candidate is None or candidate.identity != served.candidate):
        return FollowAction("abort", f"{WITHDRAWN} {served.candidate[:12]} as the candidate")
    unsettled = bool(served.champion) and memory.promoted == served.champion and memory.superseded
    other = champion is not None and champion.identity != served.champion and not unsettled
    blocked = champion is not None and champion.identity in served.rejected
    if served.candidate and other and not blocked:
        return FollowAction("abort", f"{WITHDRAWN} {served.champion[:12]} as the champion")
    if served.candidate:
        return FollowAction("none", f"the rollout of {served.candidate[:12]} runs")
    if champion is not None and other and not blocked:
        return FollowAction("swap", f"git's champion is {champion.identity[:12]}", champion)
    if candidate is None and other and champion is not None:
        return FollowAction("none", f"git's champion {champion.identity[:12]} was rolled back here; settle it")
    return _decide_candidate(desired, served, memory, unsettled)


def _decide_candidate(
    desired: DesiredDelivery, served: ServedVersions, memory: FollowMemory, unsettled: bool
) -> FollowAction:
    """What follows from the candidate, where the champion is as it is to be and nothing is tried."""
    candidate = desired.candidate
    if candidate is None:
        return FollowAction("none", _idle_reason(desired, served, unsettled))
    short = candidate.identity[:12]
    if candidate.identity in served.rejected or desired.rejection(candidate.identity) is not None:
        return FollowAction("none", f"{short} was rolled back here and is not tried again")
    if memory.reverted == candidate.identity:
        return FollowAction(
            "none", f"git took the settlement of {short} back: it is tried again when it is promoted anew"
        )
    if not served.champion:
        return FollowAction("swap", f"{short} is the first version", candidate.as_champion)
    return FollowAction("roll_out", f"git's candidate is {short}", candidate)


def _idle_reason(desired: DesiredDelivery, served: ServedVersions, unsettled: bool) -> str:
    if unsettled:
        return f"{served.champion[:12]} was promoted here and git never learnt it: promote it again, then settle it"
    return "served as git says" if desired.champion is not None else "git names no version"
