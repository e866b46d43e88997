"""The result of judging a column of live traffic."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from mlflowkit.values import Json, Outcome

Aspect = Literal["distribution", "missing", "new", "range", "type"]
"""What of a column is judged: its distribution over cells, or one share: missing, new, outside of the range."""


@dataclass(frozen=True, slots=True)
class ColumnFinding:
    """One aspect of one column, in one segment ("" for all rows), against the baseline.

    outcome     PASSED: surely within the margin; FAILED: surely beyond it, over several windows; else INCONCLUSIVE
    value       the distance (or the share) in the current window, with its interval ``low`` to ``high``; None where the
                window has too few rows
    evidence    the e-process as a share of its threshold in logarithms: 1 and more is FAILED
    rows        in the window; ``effective_rows`` after the design effect
    detectable  the smallest distance that the coming windows could show, at this number of effective rows
    since       start of the window in which the evidence began to grow; None when there is none
    message     one sentence with the numbers
    """

    column: str
    aspect: Aspect
    outcome: Outcome
    value: float | None
    low: float | None
    high: float | None
    margin: float
    evidence: float
    rows: int
    effective_rows: float
    detectable: float | None = None
    since: float | None = None
    segment: str = ""
    message: str = ""

    def to_json(self) -> Json:
        """The finding as JSON."""
        return asdict(self)
