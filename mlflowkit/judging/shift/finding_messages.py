"""Findings in words."""

from __future__ import annotations

from mlflowkit.judging.shift.findings import ColumnFinding
from mlflowkit.values import Outcome

_SHARES = {
    "missing": "missing values",
    "new": "values that the reference does not have",
    "range": "values outside of the reference's range",
    "type": "requests refused",
}


def describe(finding: ColumnFinding, learning: str = "") -> str:
    """One sentence about a finding. ``learning``: the windows learned so far, of those needed, while they do not
    suffice.

    >>> describe(ColumnFinding("age", "missing", Outcome.PASSED, 0.012, 0.01, 0.02, 0.05, 0.0, 2000, 2000.0))
    'age: 1.2 % missing values (1 to 2 %), within the 5 % allowed'
    """
    name = finding.column + (f" where {finding.segment}" if finding.segment else "")
    if learning and finding.aspect != "type" and finding.low is None:
        return f"{name}: learning how windows differ by themselves, {learning} windows so far"
    if finding.value is None or finding.low is None or finding.high is None:
        return f"{name}: {finding.effective_rows:,.0f} effective rows of {finding.rows:,} are too few to judge"
    if finding.aspect == "distribution":
        size = f"distance {finding.value:.3f} from the baseline ({finding.low:.3f} to {finding.high:.3f})"
        allowed = f"{finding.margin:.3g}"
    else:
        size = f"{_percent(finding.value)} % {_SHARES[finding.aspect]}"
        size += f" ({_percent(finding.low)} to {_percent(finding.high)} %)"
        allowed = f"{_percent(finding.margin)} %"
    if finding.outcome is Outcome.FAILED:
        return f"{name}: {size}; shown to be beyond the {allowed} allowed"
    if finding.outcome is Outcome.PASSED:
        return f"{name}: {size}, within the {allowed} allowed"
    grown = f"; evidence {_percent(finding.evidence)} % of what an alarm takes" if finding.evidence > 0 else ""
    return f"{name}: {size}, {allowed} allowed: not yet decided{grown}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}"
