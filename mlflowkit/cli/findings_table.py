"""One line for each metric of a rollout, shared by all commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflowkit.rollout.admin.view_models import FindingView


def lines(findings: Sequence[FindingView]) -> list[str]:
    """Format each metric: its verdict, and the share of the deciding evidence in either direction."""
    width = max((len(finding.name) for finding in findings), default=0)
    texts = []
    for finding in findings:
        worse, not_worse = (min(1.0, max(0.0, part or 0.0)) for part in (finding.harm, finding.proof))
        evidence = f"worse {worse:4.0%}  not worse {not_worse:4.0%}"
        texts.append(f"{finding.name:<{width}}  {finding.outcome:<12}  {evidence}  {finding.message}")
    return texts
