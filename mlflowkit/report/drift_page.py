"""A comparison of two tables as one self-contained HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflowkit.report.run.run_page import render_template
from mlflowkit.system.text import format_count

if TYPE_CHECKING:
    from mlflowkit.judging.shift.findings import ColumnFinding
    from mlflowkit.scoring.table_drift import DriftReport

HEAD = ("column", "aspect", "where", "outcome", "value", "interval", "allowed")
ORDER = ("FAILED", "INCONCLUSIVE", "PASSED")


def render(report: DriftReport) -> str:
    """Render a comparison as HTML, what failed first; all texts are escaped."""
    findings = sorted(report.findings, key=lambda finding: ORDER.index(str(finding.outcome)))
    counts = [format_count(count, "row") for count in report.rows]
    if report.unit is not None:
        counts = [f"{count} of {units:,} {report.unit}" for count, units in zip(counts, report.units, strict=True)]
    return render_template(
        "drift.html", first=report.first, second=report.second, outcome=str(report.outcome),
        rows=f"{counts[0]} and {counts[1]}", assumption=report.assumption, problems=report.shift.problems, head=HEAD,
        table=[_row(finding) for finding in findings],
    )  # fmt: skip


def _row(finding: ColumnFinding) -> tuple[str, ...]:
    interval = "" if finding.low is None or finding.high is None else f"{finding.low:.3f} to {finding.high:.3f}"
    value = "" if finding.value is None else f"{finding.value:.3f}"
    where = finding.segment or "all rows"
    return finding.column, finding.aspect, where, str(finding.outcome), value, interval, f"{finding.margin:g}"
