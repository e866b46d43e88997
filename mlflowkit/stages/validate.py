"""Check the table and compute its reference profile."""

from __future__ import annotations

from mlflowkit.stages.base import Check, Section


class Spec(Section):
    """What the validate stage's result depends on, besides its input."""

    checks: list[Check]
