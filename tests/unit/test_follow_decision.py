"""What a gateway does about its delivery.yaml."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlflowkit.delivery.gitops.desired_delivery import (
    DesiredCandidate,
    DesiredChampion,
    DesiredDelivery,
    RejectedIdentity,
)
from mlflowkit.delivery.gitops.follow_decision import FollowMemory, ServedVersions, decide_follow, remember

A, B, C = "a" * 64, "b" * 64, "c" * 64
CHAMPION = DesiredChampion("r/x@sha256:" + A, A)
OTHER = DesiredChampion("r/x@sha256:" + C, C)
CANDIDATE = DesiredCandidate("r/x@sha256:" + B, B)
BOTH = DesiredDelivery("lending", CHAMPION, CANDIDATE)
ONE = DesiredDelivery("lending", CHAMPION)
REJECTED = (RejectedIdentity(B, "drill", "now"),)


@pytest.mark.parametrize(
    ("desired", "served", "kind", "identity"),
    [
        (BOTH, ServedVersions(A), "roll_out", B),
        (BOTH, ServedVersions(A, B), "none", ""),
        (BOTH, ServedVersions(B), "none", ""),
        (BOTH, ServedVersions(A, C), "abort", ""),
        (BOTH, ServedVersions(A, "", frozenset([B])), "none", ""),
        (replace(BOTH, rejected=REJECTED), ServedVersions(A), "none", ""),
        (BOTH, ServedVersions(), "swap", A),
        (replace(BOTH, champion=None), ServedVersions(), "swap", B),
        (replace(BOTH, champion=None), ServedVersions(C), "roll_out", B),
        (ONE, ServedVersions(A), "none", ""),
        (ONE, ServedVersions(A, B), "abort", ""),
        (ONE, ServedVersions(B), "swap", A),
        (ONE, ServedVersions(B, "", frozenset([A])), "none", ""),
        (BOTH, ServedVersions(A, B, busy=True), "none", ""),
        (replace(BOTH, champion=DesiredChampion("r/x@sha256:" + C, C)), ServedVersions(A, B), "abort", ""),
        (
            replace(BOTH, champion=DesiredChampion("r/x@sha256:" + C, C)),
            ServedVersions(A, "", frozenset([C])),
            "roll_out",
            B,
        ),
        (DesiredDelivery("lending"), ServedVersions(A), "none", ""),
        (DesiredDelivery("lending"), ServedVersions(), "none", ""),
    ],
)
def test_actions(desired: DesiredDelivery, served: ServedVersions, kind: str, identity: str) -> None:
    action = decide_follow(desired, served)
    assert action.kind == kind
    assert ("" if action.version is None else action.version.identity) == identity
    assert action.reason


def test_a_rejected_version_that_is_applied_ten_times_is_tried_once() -> None:
    """A syncer re-applies the commit before the rejection again and again."""
    served, tried = ServedVersions(A), 0
    for _ in range(10):
        if decide_follow(BOTH, served).kind == "roll_out":
            tried += 1
            served = ServedVersions(A, "", frozenset([B]))  # the controller rolled it back
    assert tried == 1


def test_a_promotion_and_its_revert() -> None:
    served = ServedVersions(A)
    assert decide_follow(BOTH, served).kind == "roll_out"
    served = ServedVersions(B)  # promoted here, not settled yet: the old champion in git is not swapped back in
    assert decide_follow(BOTH, served).kind == "none"
    settled = DesiredDelivery("lending", CANDIDATE.as_champion)
    assert decide_follow(settled, served).kind == "none"
    assert decide_follow(ONE, served).version == CHAMPION


def follow(desired: DesiredDelivery, served: ServedVersions, memory: FollowMemory) -> tuple[str, str, FollowMemory]:
    """Kind and identity of the action, and the memory after it."""
    memory = remember(desired, served, memory)
    action = decide_follow(desired, served, memory)
    return action.kind, "" if action.version is None else action.version.identity, memory


def test_a_new_candidate_on_top_of_an_unsettled_promotion_does_not_bring_the_old_champion_back() -> None:
    newer = replace(BOTH, candidate=DesiredCandidate("r/x@sha256:" + C, C))
    *_, memory = follow(BOTH, ServedVersions(B), FollowMemory())  # B is promoted here, and git was not told
    kind, identity, memory = follow(newer, ServedVersions(B), memory)
    assert (kind, identity) == ("roll_out", C)
    rejected = ServedVersions(B, "", frozenset([C]))
    kind, _, memory = follow(
        replace(newer, candidate=None, rejected=(RejectedIdentity(C, "x", "y"),)), rejected, memory
    )
    assert kind == "none"
    kind, _, memory = follow(BOTH, rejected, memory)  # it is promoted again, to be settled
    assert kind == "none"
    settled = DesiredDelivery("lending", CANDIDATE.as_champion)
    assert follow(settled, rejected, memory)[:2] == ("none", "")


def test_a_revert_of_an_unsettled_promotion_swaps_back() -> None:
    *_, memory = follow(BOTH, ServedVersions(B), FollowMemory())
    assert follow(ONE, ServedVersions(B), memory)[:2] == ("swap", A)


def test_a_revert_of_a_settlement_goes_back_and_does_not_try_the_version_again() -> None:
    settled = DesiredDelivery("lending", CANDIDATE.as_champion)
    *_, memory = follow(BOTH, ServedVersions(B), FollowMemory())
    *_, memory = follow(settled, ServedVersions(B), memory)
    kind, identity, memory = follow(BOTH, ServedVersions(B), memory)  # git revert: champion A, candidate B
    assert (kind, identity) == ("swap", A)
    kind, _, memory = follow(BOTH, ServedVersions(A), memory)
    assert kind == "none"
    kind, _, memory = follow(ONE, ServedVersions(A), memory)
    assert kind == "none"
    assert follow(BOTH, ServedVersions(A), memory)[:2] == ("roll_out", B)  # promoted anew


def test_a_candidate_that_was_promoted_between_two_looks_is_not_taken_back() -> None:
    newer = replace(BOTH, candidate=DesiredCandidate("r/x@sha256:" + C, C))
    *_, memory = follow(BOTH, ServedVersions(A), FollowMemory())
    assert follow(newer, ServedVersions(B), memory)[:2] == ("roll_out", C)


def test_a_champion_that_a_person_names_after_a_settlement_is_swapped_in() -> None:
    settled = DesiredDelivery("lending", CANDIDATE.as_champion)
    *_, memory = follow(BOTH, ServedVersions(B), FollowMemory())
    *_, memory = follow(settled, ServedVersions(B), memory)
    assert follow(ONE, ServedVersions(B), memory)[:2] == ("swap", A)
