"""The keys of a recipe's ``decision``: how the threshold of a binary task is chosen. Values only; see `thresholds`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlflowkit.sections import Section


class MistakeCosts(Section):
    """What a wrong answer costs, in any unit: the threshold with the least cost on the validation rows is chosen."""

    false_positive: float = Field(ge=0)
    """Cost of answering the positive class for a row of the other."""
    false_negative: float = Field(ge=0)
    """Cost of answering the other class for a row of the positive one."""


class DecisionSection(Section):
    """When a binary task answers its positive class: one of the keys. Without the section, when it is more probable."""

    threshold: float | None = Field(default=None, gt=0, lt=1)
    """The probability of the positive class from which it is the answer."""
    maximize: Literal["f1", "balanced_accuracy", "accuracy"] | None = None
    """Choose the threshold with the largest value of this metric on the validation rows."""
    costs: MistakeCosts | None = None
    """Choose the threshold with the least cost on the validation rows."""
    rate: float | None = Field(default=None, gt=0, lt=1)
    """Choose the threshold at which this share of the validation rows is answered with the positive class."""
