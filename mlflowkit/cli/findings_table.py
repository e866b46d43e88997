"""What was found of each metric of a rollout, in a line each, as every command shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflowkit.rollout.admin.view_models import FindingView


def lines(findings: Sequence[FindingView]) -> list[str]:
    """A metric a line: its verdict, and how much of the evidence that decides there is either way."""
    width = max((len(one.name) for one in findings), default=0)
    return [f"{one.name:<{width}}  {_words(one)}" for one in findings]


def _words(finding: FindingView) -> str:
    harm, proof = (min(1.0, max(0.0, part or 0.0)) for part in (finding.harm, finding.proof))
    return f"{finding.outcome:<12}  worse {harm:4.0%}  not worse {proof:4.0%}  {finding.message}"
