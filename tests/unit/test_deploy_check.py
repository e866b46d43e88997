"""What a deployment does about the service's responses to the sample rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlflowkit.stages.deploy import decide_sample_check
from mlflowkit.values import RoutingTable, Variant

OURS, OTHER = "ours", "other"


def table(epoch: int) -> RoutingTable:
    return RoutingTable("lending", epoch, (Variant("champion", "v1", OURS, "/bundle"),))


def rollout_of(digest: str) -> Any:
    return SimpleNamespace(candidate=SimpleNamespace(digest=digest))


@pytest.mark.parametrize(
    ("problem", "running", "before", "current", "action"),
    [
        ("", None, table(3), table(4), "accept"),
        ("", rollout_of(OURS), table(3), table(4), "accept"),
        ("wrong", None, table(3), None, "accept"),
        ("wrong", rollout_of(OURS), table(3), table(4), "abort"),
        ("wrong", rollout_of(OURS), table(4), table(4), "abort"),
        ("wrong", rollout_of(OTHER), table(3), table(4), "report"),
        ("wrong", None, table(3), table(4), "restore"),
        ("wrong", None, table(4), table(4), "report"),
        ("wrong", None, None, table(4), "report"),
    ],
)
def test_a_wrong_response_undoes_what_this_deployment_did(
    problem: str, running: Any, before: RoutingTable | None, current: RoutingTable | None, action: str
) -> None:
    check = decide_sample_check(problem, OURS, running, before, current)
    assert (check.action, check.problem) == (action, "" if action == "accept" else problem)
