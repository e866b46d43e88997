"""What a judgement leaves in the job that ran it: the summary, the outputs and the annotations of GitHub Actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflowkit.ci import comment_text, forge_formats
from mlflowkit.ci.judge_report import JudgeReport
from mlflowkit.errors import Fault
from mlflowkit.system.text import limited

SUMMARY_LIMIT = 1_000_000
"""Characters of a job's summary; GitHub takes 1 MiB."""


def publish(report: JudgeReport, faults: Sequence[Fault], environment: Mapping[str, str]) -> list[str]:
    """Append to the files that ``environment`` names, and return the workflow commands to print; [] elsewhere."""
    if environment.get("GITHUB_ACTIONS") != "true":
        return []
    if summary := environment.get("GITHUB_STEP_SUMMARY"):
        _append(Path(summary), comment_text.render(report, limit=SUMMARY_LIMIT))
    if outputs := environment.get("GITHUB_OUTPUT"):
        values = {"identity": report.identity, "exit_code": report.exit_code, "blessed": str(report.blessed).lower()}
        _append(Path(outputs), "".join(f"{name}={value}\n" for name, value in values.items()))
    return list(forge_formats.workflow_commands(report, faults))


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def as_text(report: JudgeReport) -> str:
    """The judgement for a terminal."""
    where = f" for {report.environment}" if report.environment else ""
    lines = [f"{report.recipe}{where}: {comment_text.verdict_words(report)}"]
    if report.identity:
        lines.append(f"  version {report.identity[:12]}")
    if report.git_commit:
        tree = f", tree {report.tree[:12]}" if report.tree else ""
        changes = f", with changes that no commit has: {limited(report.git_changes)}" if report.git_dirty else ""
        lines.append(f"  commit {report.git_commit[:12]}{tree}{changes}")
    if report.champion is not None:
        lines.append(f"  champion {report.champion.version} ({report.champion.source})")
    for verdict in report.verdicts:
        where = f" where {verdict.slice}" if verdict.slice else ""
        lines.append(f"  {verdict.verdict:<12}  {verdict.gate}{where}: {verdict.message}")
    for name, item in report.comparisons.items():
        figure = comment_text.interval(item.difference)
        lines.append(f"  {name}: {item.champion.value:.4g} -> {item.candidate.value:.4g}, difference {figure}")
    return "\n".join(lines)
